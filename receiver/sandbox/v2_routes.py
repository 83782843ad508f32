"""The routes of version 2, under today's address and the one of before June 2019: send, list."""

import base64
import binascii
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.domain.events import Api
from receiver.sandbox import v2, v2_requests
from receiver.sandbox.asking import CHALLENGE, base_url, is_json, json_body, may_ask, user, world
from receiver.sandbox.messages import instant
from receiver.sandbox.v2_requests import Refusal

PREFIXES: Final = ("/api/v2/", "/v2/")
_JSON: Final = "application/json; charset=utf-8"

Handler = Callable[[Request], Awaitable[Response]]


def _guarded(**handlers: Handler) -> Handler:
    """The handlers by method, for those who may ask; what they refuse is told in v2's words."""

    async def guarded(request: Request) -> Response:
        if not may_ask(request):
            return _refused(v2_requests.UNAUTHORIZED, {"WWW-Authenticate": CHALLENGE})
        try:
            return await handlers["GET" if request.method == "HEAD" else request.method](request)
        except Refusal as refusal:
            return _refused(refusal)

    return guarded


def refuse(request: Request, error: HTTPException) -> Response:
    """What is wrong before a handler is reached: no such address, no such method."""
    phrase = HTTPStatus(error.status_code).phrase
    if error.status_code == 404:
        told = {
            "timestamp": instant(datetime.now(UTC), "milliseconds"),
            "status": 404,
            "error": phrase,
            "message": phrase,
            "path": request.url.path,
        }
        return _json(told, 404)
    return _refused(Refusal(error.status_code, phrase.lower().replace(" ", "-"), phrase), error.headers)


def _refused(refusal: Refusal, headers: Any = None) -> Response:
    return _json(refusal.body(), refusal.status, headers)


def _json(value: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(orjson.dumps(value), status, headers, _JSON)


async def send(request: Request) -> Response:
    """Takes a message, to one or several."""
    if not is_json(request):
        raise v2_requests.not_json()
    try:
        given = await json_body(request)
    except ValueError:
        raise v2_requests.invalid() from None
    message = world(request).send_v2(user(request), v2_requests.read(given))
    return _json(v2.representation(message), 202)


async def list_messages(request: Request) -> Response:
    there = world(request)
    given = dict(request.query_params)
    start = _offset(given.pop("pageToken", ""))
    asked = v2_requests.read_list(given)
    found = v2.items(asked, there.messages(Api.V2, user(request)), there.clock.now(), there.settings.speed)
    pages: dict[str, str] = {}
    if start:
        pages |= _page(request, "prev", max(0, start - asked.limit))
    if len(found) > start + asked.limit:
        pages |= _page(request, "next", start + asked.limit)
    return _json({"totalCount": len(found), "pageInfo": pages, "messages": found[start : start + asked.limit]})


def _page(request: Request, which: str, offset: int) -> dict[str, str]:
    token = base64.urlsafe_b64encode(str(offset).encode()).decode("ascii")
    kept = [pair for pair in parse_qsl(request.url.query, keep_blank_values=True) if pair[0] != "pageToken"]
    address = f"{base_url(request)}{request.url.path}?{urlencode([*kept, ('pageToken', token)])}"
    return {f"{which}Page": address, f"{which}PageToken": token}


def _offset(token: str) -> int:
    """Where the page begins that a token asks for."""
    try:
        told = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        told = "?"
    if told and not re.fullmatch(r"\d{1,9}", told):
        raise v2_requests.invalid(("pageToken", "'pageToken' is not one of ours"))
    return int(told or 0)


ROUTES: Final = tuple(
    Route(f"{prefix}users/{{userId}}/messages", _guarded(GET=list_messages, POST=send), methods=["GET", "POST"])
    for prefix in PREFIXES
)
