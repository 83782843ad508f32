"""The routes of v1 (Catapult) and v2 of the messages API: send, list and get messages.

`/v2/` is v2's path prefix from before June 2019.
"""

import base64
import binascii
import hmac
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import orjson
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from receiver.domain.events import Api
from receiver.sandbox import v1, v1_requests, v2, v2_requests
from receiver.sandbox.messages import timestamp
from receiver.sandbox.settings import SandboxSettings
from receiver.sandbox.state import State
from receiver.sandbox.v1_requests import V1Error
from receiver.sandbox.v2_requests import V2Error

V1_PREFIX: Final = "/v1/"
V2_PREFIXES: Final = ("/api/v2/", "/v2/")
log = structlog.get_logger("receiver.sandbox")

_V1_HEADERS: Final = {"Cache-Control": "no-cache"}
_CHALLENGE: Final = {"WWW-Authenticate": 'Basic realm="Bandwidth API"'}

Handler = Callable[[Request], Awaitable[Response]]


def sandbox_state(request: Request) -> State:
    state: State = request.app.state.sandbox
    return state


def user_id(request: Request) -> str:
    """The user (v2: account) in the path."""
    return str(request.path_params["userId"])


def base_url(request: Request) -> str:
    """The start of message URLs: `public_url`, else the URL of the request."""
    return sandbox_state(request).settings.public_url or f"{request.url.scheme}://{request.url.netloc}"


def is_authorized(request: Request) -> bool:
    """Whether the credentials are accepted and the user exists."""
    settings = sandbox_state(request).settings
    user_exists = not settings.users or user_id(request) in settings.users
    headers = request.headers.getlist("authorization")
    # Which of two headers counts is not for a server to choose: a proxy before it may have checked the other.
    return user_exists and len(headers) < 2 and _is_accepted("".join(headers), settings)


def _is_accepted(authorization: str, settings: SandboxSettings) -> bool:
    if not settings.credentials:
        return True
    scheme, _, encoded = authorization.partition(" ")
    try:
        pair = base64.b64decode(encoded.strip(), validate=True) if scheme.lower() == "basic" else b""
    except (binascii.Error, ValueError):
        return False
    return any(hmac.compare_digest(accepted.get_secret_value().encode(), pair) for accepted in settings.credentials)


def is_json(request: Request) -> bool:
    """Whether the Content-Type is JSON."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def json_line(value: Any) -> bytes:
    """A value as JSON, with the end of the line: the prompt after `curl` begins a line then."""
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


async def json_body(request: Request) -> Any:
    """Returns the parsed body. Raises ValueError if it is not JSON."""
    return orjson.loads(await request.body())


def _authorized(unauthorized: V1Error | V2Error, **handlers: Handler) -> Handler:
    """Dispatches by method, requires credentials, and answers errors in the format of the API version."""

    async def authorized(request: Request) -> Response:
        if not is_authorized(request):
            return _error(request, unauthorized, _CHALLENGE)
        try:
            return await handlers["GET" if request.method == "HEAD" else request.method](request)
        except (V1Error, V2Error) as error:
            return _error(request, error)

    return authorized


def _error(request: Request, error: V1Error | V2Error, headers: Any = None) -> Response:
    if isinstance(error, V2Error):
        return _v2_json(error.body(), error.status, headers)
    details = (
        ("requestMethod", request.method),
        ("remoteAddress", request.client.host if request.client else ""),
        ("requestPath", request.url.path.removeprefix(V1_PREFIX)),
    )
    all_headers = {**_V1_HEADERS, **dict(error.headers), **(headers or {})}
    return _v1_json(error.body(*details), error.http_status, all_headers)


# --- v1 ---


def v1_error_response(request: Request, error: HTTPException) -> Response:
    """Answers a request that reached no handler: unknown path or method."""
    if error.status_code == 404:
        v1_error = V1Error("not-found", "resource-not-found", "The requested resource could not be found.")
    else:
        v1_error = V1Error("bad-request", "bad-request", error.detail, status=error.status_code)
    return _error(request, v1_error, error.headers)


def _v1_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json_line(value), status, headers or _V1_HEADERS, "application/json")


async def send_v1(request: Request) -> Response:
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
        return _v1_json([_v1_result(request, message) for message in body], 202)
    message = sandbox_state(request).send_v1(user_id(request), v1_requests.parse_message(body), base_url(request))
    # An empty answer has no Content-Type: a client that parses JSON by the Content-Type would fail on an empty body.
    return Response(status_code=201, headers={**_V1_HEADERS, "Location": v1.path(user_id(request), message.id)})


async def send_v1_to_user(request: Request) -> Response:
    """Accepts messages at the path of the user, as every curl example of v1's documents sends them.

    Bandwidth does not, so the header and the log name the right path.
    """
    response = await send_v1(request)
    right = v1.list_path(user_id(request))
    response.headers["X-Sandbox-Hint"] = f"did you mean {right}?"
    log.warning("a message was posted to the path of a user, which Bandwidth does not accept", did_you_mean=right)
    return response


def _v1_result(request: Request, body: Any) -> dict[str, Any]:
    """Accepts one message of an array and returns its result."""
    try:
        message = sandbox_state(request).send_v1(user_id(request), v1_requests.parse_message(body), base_url(request))
    except V1Error as error:
        return {"result": "error", "error": error.body()}
    return {"result": "accepted", "location": message.uri}


async def list_v1(request: Request) -> Response:
    state = sandbox_state(request)
    parameters = v1_requests.parse_list_parameters(request.query_params)
    messages, now, speed = state.messages(Api.V1, user_id(request)), state.clock.now(), state.settings.speed
    page = v1.page(parameters, messages, now, speed)
    representations = [v1.representation(message, now, speed) for message in page.messages]
    return _v1_json(representations, headers={**_V1_HEADERS, **(_v1_link(request, page.next) if page.next else {})})


def _v1_link(request: Request, next_page: tuple[str, int]) -> dict[str, str]:
    """Returns the Link header of the next page."""
    query = parse_qsl(request.url.query, keep_blank_values=True)
    unchanged = [(name, value) for name, value in query if name not in ("page", "sortKeyGT", "sortKeyLT")]
    url = f"{base_url(request)}{v1.list_path(user_id(request))}?{urlencode([*unchanged, next_page])}"
    return {"Link": f'<{url}>; rel="next"'}


async def get_v1(request: Request) -> Response:
    state, message_id = sandbox_state(request), request.path_params["messageId"]
    message = state.get(Api.V1, user_id(request), message_id)
    if message is None:
        raise v1_requests.not_found(message_id)
    return _v1_json(v1.representation(message, state.clock.now(), state.settings.speed))


V1_ROUTES: Final = (
    *(
        Route(path, _authorized(v1_requests.ACCESS_DENIED, POST=send_v1_to_user), methods=["POST"])
        for path in ("/v1/users/{userId}/", "/v1/users/{userId}")
    ),
    Route(
        "/v1/users/{userId}/messages",
        _authorized(v1_requests.ACCESS_DENIED, GET=list_v1, POST=send_v1),
        methods=["GET", "POST"],
    ),
    Route(
        "/v1/users/{userId}/messages/{messageId}", _authorized(v1_requests.ACCESS_DENIED, GET=get_v1), methods=["GET"]
    ),
)


# --- v2 ---


def v2_error_response(request: Request, error: HTTPException) -> Response:
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
        return _v2_json(body, 404)
    return _error(request, V2Error(error.status_code, phrase.lower().replace(" ", "-"), phrase), error.headers)


def _v2_json(value: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(json_line(value), status, headers, "application/json; charset=utf-8")


async def send_v2(request: Request) -> Response:
    """Accepts a message to one or several recipients."""
    if not is_json(request):
        raise v2_requests.unsupported_content_type()
    try:
        body = await json_body(request)
    except ValueError:
        raise v2_requests.invalid() from None
    message = sandbox_state(request).send_v2(user_id(request), v2_requests.parse_message(body))
    return _v2_json(v2.representation(message), 202)


async def list_v2(request: Request) -> Response:
    state = sandbox_state(request)
    query = dict(request.query_params)
    start = _v2_offset(query.pop("pageToken", ""))
    parameters = v2_requests.parse_list_parameters(query)
    messages, now = state.messages(Api.V2, user_id(request)), state.clock.now()
    items = v2.list_items(parameters, messages, now, state.settings.speed)
    page_info: dict[str, str] = {}
    if start:
        page_info |= _v2_page(request, "prev", max(0, start - parameters.limit))
    if len(items) > start + parameters.limit:
        page_info |= _v2_page(request, "next", start + parameters.limit)
    return _v2_json(
        {"totalCount": len(items), "pageInfo": page_info, "messages": items[start : start + parameters.limit]}
    )


def _v2_page(request: Request, which: str, offset: int) -> dict[str, str]:
    token = base64.urlsafe_b64encode(str(offset).encode()).decode("ascii")
    unchanged = [pair for pair in parse_qsl(request.url.query, keep_blank_values=True) if pair[0] != "pageToken"]
    url = f"{base_url(request)}{request.url.path}?{urlencode([*unchanged, ('pageToken', token)])}"
    return {f"{which}Page": url, f"{which}PageToken": token}


def _v2_offset(token: str) -> int:
    """Returns the index of the first item of the page that a token stands for."""
    try:
        offset = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        offset = "?"
    if offset and not re.fullmatch(r"\d{1,9}", offset):
        raise v2_requests.invalid(("pageToken", "'pageToken' is not a token of this list"))
    return int(offset or 0)


V2_ROUTES: Final = tuple(
    Route(
        f"{prefix}users/{{userId}}/messages",
        _authorized(v2_requests.UNAUTHORIZED, GET=list_v2, POST=send_v2),
        methods=["GET", "POST"],
    )
    for prefix in V2_PREFIXES
)
