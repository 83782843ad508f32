"""The routes of version 1: send, list, get."""

from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.domain.events import Api
from receiver.sandbox import v1, v1_requests
from receiver.sandbox.asking import CHALLENGE, base_url, is_json, json_body, may_ask, user, world
from receiver.sandbox.v1_requests import Refusal

PREFIX: Final = "/v1/"
_HEADERS: Final = {"Cache-Control": "no-cache"}

Handler = Callable[[Request], Awaitable[Response]]


def _guarded(**handlers: Handler) -> Handler:
    """The handlers by method, for those who may ask; what they refuse is told in v1's words."""

    async def guarded(request: Request) -> Response:
        if not may_ask(request):
            return _refused(request, v1_requests.NO_ACCESS, {"WWW-Authenticate": CHALLENGE})
        try:
            return await handlers["GET" if request.method == "HEAD" else request.method](request)
        except Refusal as refusal:
            return _refused(request, refusal)

    return guarded


def refuse(request: Request, error: HTTPException) -> Response:
    """What is wrong before a handler is reached: no such address, no such method."""
    if error.status_code == 404:
        refusal = Refusal("not-found", "resource-not-found", "The requested resource could not be found.")
    else:
        refusal = Refusal("bad-request", "bad-request", error.detail, status=error.status_code)
    return _refused(request, refusal, error.headers)


def _refused(request: Request, refusal: Refusal, headers: Any = None) -> Response:
    about = (
        ("requestMethod", request.method),
        ("remoteAddress", request.client.host if request.client else ""),
        ("requestPath", request.url.path.removeprefix(PREFIX)),
    )
    more = {**_HEADERS, **dict(refusal.headers), **(headers or {})}
    return _json(refusal.body(*about), refusal.answer_status, more)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers or _HEADERS, "application/json")


async def send(request: Request) -> Response:
    """Takes one message (201) or an array of them (202)."""
    if not is_json(request):
        raise Refusal("bad-request", "unsupported-media-type", "The Content-Type must be application/json", status=415)
    try:
        given = await json_body(request)
    except ValueError:
        raise v1_requests.unreadable("The request body is not valid JSON") from None
    if isinstance(given, list):
        if len(given) > v1_requests.MOST_AT_ONCE:
            raise v1_requests.too_many(len(given))
        return _json([_result(request, each) for each in given], 202)
    message = world(request).send_v1(user(request), v1_requests.read(given), base_url(request))
    # without a body there is no type of it: a client that reads JSON where the type says so fails on nothing
    return Response(status_code=201, headers={**_HEADERS, "Location": v1.path(user(request), message.id)})


def _result(request: Request, given: Any) -> dict[str, Any]:
    """What became of one message of several."""
    try:
        message = world(request).send_v1(user(request), v1_requests.read(given), base_url(request))
    except Refusal as refusal:
        return {"result": "error", "error": refusal.body()}
    return {"result": "accepted", "location": message.uri}


async def list_messages(request: Request) -> Response:
    there = world(request)
    asked = v1_requests.read_list(request.query_params)
    messages, now, speed = there.messages(Api.V1, user(request)), there.clock.now(), there.settings.speed
    page = v1.page(asked, messages, now, speed)
    shown = [v1.representation(message, now, speed) for message in page.messages]
    return _json(shown, headers={**_HEADERS, **(_link(request, page.next) if page.next else {})})


def _link(request: Request, following: tuple[str, int]) -> dict[str, str]:
    """The header with the address of the next page."""
    name, key = following
    given = parse_qsl(request.url.query, keep_blank_values=True)
    kept = [(each, value) for each, value in given if each not in ("page", "sortKeyGT", "sortKeyLT")]
    address = f"{base_url(request)}{v1.list_path(user(request))}?{urlencode([*kept, (name, key)])}"
    return {"Link": f'<{address}>; rel="next"'}


async def get_message(request: Request) -> Response:
    there, message_id = world(request), request.path_params["messageId"]
    message = there.get(Api.V1, user(request), message_id)
    if message is None:
        raise v1_requests.not_found(message_id)
    return _json(v1.representation(message, there.clock.now(), there.settings.speed))


ROUTES: Final = (
    Route("/v1/users/{userId}/messages", _guarded(GET=list_messages, POST=send), methods=["GET", "POST"]),
    Route("/v1/users/{userId}/messages/{messageId}", _guarded(GET=get_message), methods=["GET"]),
)
