"""The routes of v2: send and list messages. `/v2/` is the path prefix from before June 2019."""

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
from receiver.sandbox.messages import timestamp
from receiver.sandbox.requests import CHALLENGE, base_url, is_authorized, is_json, json_body, sandbox_state, user_id
from receiver.sandbox.v2_requests import V2Error

PREFIXES: Final = ("/api/v2/", "/v2/")
_JSON: Final = "application/json; charset=utf-8"

Handler = Callable[[Request], Awaitable[Response]]


def _authorized(**handlers: Handler) -> Handler:
    """Dispatches by method, requires credentials, and answers errors in v2's format."""

    async def authorized(request: Request) -> Response:
        if not is_authorized(request):
            return _error(v2_requests.UNAUTHORIZED, {"WWW-Authenticate": CHALLENGE})
        try:
            return await handlers["GET" if request.method == "HEAD" else request.method](request)
        except V2Error as error:
            return _error(error)

    return authorized


def error_response(request: Request, error: HTTPException) -> Response:
    """Answers a request that reached no handler: unknown path or method."""
    phrase = HTTPStatus(error.status_code).phrase
    if error.status_code == 404:
        body = {
            "timestamp": timestamp(datetime.now(UTC), "milliseconds"),
            "status": 404,
            "error": phrase,
            "message": phrase,
            "path": request.url.path,
        }
        return _json(body, 404)
    return _error(V2Error(error.status_code, phrase.lower().replace(" ", "-"), phrase), error.headers)


def _error(error: V2Error, headers: Any = None) -> Response:
    return _json(error.body(), error.status, headers)


def _json(value: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(orjson.dumps(value), status, headers, _JSON)


async def send(request: Request) -> Response:
    """Accepts a message to one or several recipients."""
    if not is_json(request):
        raise v2_requests.unsupported_content_type()
    try:
        body = await json_body(request)
    except ValueError:
        raise v2_requests.invalid() from None
    message = sandbox_state(request).send_v2(user_id(request), v2_requests.parse_message(body))
    return _json(v2.representation(message), 202)


async def list_messages(request: Request) -> Response:
    state = sandbox_state(request)
    query = dict(request.query_params)
    start = _offset(query.pop("pageToken", ""))
    parameters = v2_requests.parse_list_parameters(query)
    messages, now = state.messages(Api.V2, user_id(request)), state.clock.now()
    items = v2.list_items(parameters, messages, now, state.settings.speed)
    page_info: dict[str, str] = {}
    if start:
        page_info |= _page(request, "prev", max(0, start - parameters.limit))
    if len(items) > start + parameters.limit:
        page_info |= _page(request, "next", start + parameters.limit)
    return _json({"totalCount": len(items), "pageInfo": page_info, "messages": items[start : start + parameters.limit]})


def _page(request: Request, which: str, offset: int) -> dict[str, str]:
    token = base64.urlsafe_b64encode(str(offset).encode()).decode("ascii")
    unchanged = [pair for pair in parse_qsl(request.url.query, keep_blank_values=True) if pair[0] != "pageToken"]
    url = f"{base_url(request)}{request.url.path}?{urlencode([*unchanged, ('pageToken', token)])}"
    return {f"{which}Page": url, f"{which}PageToken": token}


def _offset(token: str) -> int:
    """Returns the index of the first item of the page that a token stands for."""
    try:
        offset = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        offset = "?"
    if offset and not re.fullmatch(r"\d{1,9}", offset):
        raise v2_requests.invalid(("pageToken", "'pageToken' is not a token of this list"))
    return int(offset or 0)


ROUTES: Final = tuple(
    Route(f"{prefix}users/{{userId}}/messages", _authorized(GET=list_messages, POST=send), methods=["GET", "POST"])
    for prefix in PREFIXES
)
