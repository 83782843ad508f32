"""The routes of v1 (Catapult): send, list and get messages."""

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
from receiver.sandbox.requests import CHALLENGE, base_url, is_authorized, is_json, json_body, sandbox_state, user_id
from receiver.sandbox.v1_requests import V1Error

PREFIX: Final = "/v1/"
_HEADERS: Final = {"Cache-Control": "no-cache"}

Handler = Callable[[Request], Awaitable[Response]]


def _authorized(**handlers: Handler) -> Handler:
    """Dispatches by method, requires credentials, and answers errors in v1's format."""

    async def authorized(request: Request) -> Response:
        if not is_authorized(request):
            return _error(request, v1_requests.ACCESS_DENIED, {"WWW-Authenticate": CHALLENGE})
        try:
            return await handlers["GET" if request.method == "HEAD" else request.method](request)
        except V1Error as error:
            return _error(request, error)

    return authorized


def error_response(request: Request, error: HTTPException) -> Response:
    """Answers a request that reached no handler: unknown path or method."""
    if error.status_code == 404:
        v1_error = V1Error("not-found", "resource-not-found", "The requested resource could not be found.")
    else:
        v1_error = V1Error("bad-request", "bad-request", error.detail, status=error.status_code)
    return _error(request, v1_error, error.headers)


def _error(request: Request, error: V1Error, headers: Any = None) -> Response:
    details = (
        ("requestMethod", request.method),
        ("remoteAddress", request.client.host if request.client else ""),
        ("requestPath", request.url.path.removeprefix(PREFIX)),
    )
    all_headers = {**_HEADERS, **dict(error.headers), **(headers or {})}
    return _json(error.body(*details), error.http_status, all_headers)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers or _HEADERS, "application/json")


async def send(request: Request) -> Response:
    """Accepts one message (201) or an array of messages (202)."""
    if not is_json(request):
        raise V1Error("bad-request", "unsupported-media-type", "The Content-Type must be application/json", status=415)
    try:
        body = await json_body(request)
    except ValueError:
        raise v1_requests.validation_error("The request body is not valid JSON") from None
    if isinstance(body, list):
        if len(body) > v1_requests.MAX_MESSAGES_PER_REQUEST:
            raise v1_requests.multi_message_limit(len(body))
        return _json([_result(request, message) for message in body], 202)
    message = sandbox_state(request).send_v1(user_id(request), v1_requests.parse_message(body), base_url(request))
    # An empty answer has no Content-Type: a client that parses JSON by the Content-Type would fail on an empty body.
    return Response(status_code=201, headers={**_HEADERS, "Location": v1.path(user_id(request), message.id)})


def _result(request: Request, body: Any) -> dict[str, Any]:
    """Accepts one message of an array and returns its result."""
    try:
        message = sandbox_state(request).send_v1(user_id(request), v1_requests.parse_message(body), base_url(request))
    except V1Error as error:
        return {"result": "error", "error": error.body()}
    return {"result": "accepted", "location": message.uri}


async def list_messages(request: Request) -> Response:
    state = sandbox_state(request)
    parameters = v1_requests.parse_list_parameters(request.query_params)
    messages, now, speed = state.messages(Api.V1, user_id(request)), state.clock.now(), state.settings.speed
    page = v1.page(parameters, messages, now, speed)
    representations = [v1.representation(message, now, speed) for message in page.messages]
    return _json(representations, headers={**_HEADERS, **(_link(request, page.next) if page.next else {})})


def _link(request: Request, next_page: tuple[str, int]) -> dict[str, str]:
    """Returns the Link header of the next page."""
    query = parse_qsl(request.url.query, keep_blank_values=True)
    unchanged = [(name, value) for name, value in query if name not in ("page", "sortKeyGT", "sortKeyLT")]
    url = f"{base_url(request)}{v1.list_path(user_id(request))}?{urlencode([*unchanged, next_page])}"
    return {"Link": f'<{url}>; rel="next"'}


async def get_message(request: Request) -> Response:
    state, message_id = sandbox_state(request), request.path_params["messageId"]
    message = state.get(Api.V1, user_id(request), message_id)
    if message is None:
        raise v1_requests.not_found(message_id)
    return _json(v1.representation(message, state.clock.now(), state.settings.speed))


ROUTES: Final = (
    Route("/v1/users/{userId}/messages", _authorized(GET=list_messages, POST=send), methods=["GET", "POST"]),
    Route("/v1/users/{userId}/messages/{messageId}", _authorized(GET=get_message), methods=["GET"]),
)
