"""Routes for groups of operations: a request becomes a call, its result or its error a response.

Query strings and bodies are parsed by the models of an operation, which refuse unknown names and invalid values by
name. A result becomes JSON or CSV, with a link to the next page.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Mount, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from receiver.api import problems
from receiver.api.auth import Scheme, TokenBackend, is_admin, token_digest
from receiver.api.operations import JSON, MAX_BODY_BYTES, ApiContext, Call, Listed, Operation, Streamed
from receiver.api.problems import InvalidValue, Problem, ProblemError, as_problem, invalid_values_problem
from receiver.domain.cloudevents import rfc3339
from receiver.errors import ReceiverError
from receiver.intake.server import STREAMED
from receiver.models.parameters import NumberContext, is_relative, moment
from receiver.models.queries import Query
from receiver.providers.fields import storable

CSV: Final = "text/csv"
PENDING_HEADER: Final = "Receiver-Pending"
MOUNTED_AT: Final = "receiver.mounted_at"
"""The key in a request's scope for the path under which another application mounts this one."""

_MAX_PARAMETERS: Final = 100
_MAX_NAME: Final = 60
_HEADERS: Final = {
    # Responses hold message texts and numbers, which no cache may store.
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}

Model = TypeVar("Model", bound=Query)
Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Operations under one prefix, with the same authentication and the same form of errors."""

    prefix: str
    operations: Sequence[Operation]
    scheme: Scheme
    error_handler: problems.Handler = problems.answer
    error: type[BaseModel] = Problem
    error_media_type: str = problems.MEDIA_TYPE


def mount(group: Group, context: ApiContext) -> Mount:
    """The routes of a group, behind its token check."""
    # One route for each path, so that a 405 names all of its methods.
    by_path: dict[str, list[Operation]] = {}
    for operation in group.operations:
        by_path.setdefault(operation.path.removeprefix(group.prefix), []).append(operation)
    app: ASGIApp = Router(
        [_route(path, operations, context) for path, operations in by_path.items()], redirect_slashes=False
    )
    if context.tokens is not None:
        app = AuthenticationMiddleware(app, backend=TokenBackend(context.tokens, group.scheme))
    return EncodedMount(group.prefix, ExceptionMiddleware(app, problems.handlers(group.error_handler)))


class EncodedMount(Mount):
    """Routes by the undecoded path, so that `%2F` is part of an id and not a separator."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        raw = scope.get("raw_path")
        path = raw.decode("latin-1") if raw else quote(scope["path"])
        match, child = super().matches({**scope, "path": path})
        # The path under which this application is mounted; `Mount` adds its own prefix to `root_path`.
        return match, {**child, "path": path, MOUNTED_AT: scope.get("root_path", "")}


def _route(path: str, operations: Sequence[Operation], context: ApiContext) -> Route:
    by_method = {operation.method: operation for operation in operations}

    async def endpoint(request: Request) -> Response:
        operation = by_method["GET" if request.method == "HEAD" else request.method]
        call = Call(
            context=context,
            query=parse_query(operation.query, request.scope["query_string"], context.country_code),
            path={name: decoded_segment(value) for name, value in request.path_params.items()},
            body=await read_body(request, operation.body, operation.max_body_bytes)
            if operation.body is not None
            else None,
            is_admin=is_admin(request),
            headers={name: request.headers[name] for name in operation.headers if name in request.headers},
            token=token_digest(request),
        )
        try:
            response = _response(operation, request, call, await operation(call))
        except (ProblemError, ReceiverError) as error:
            problem = as_problem(error)
            problem.headers = {**(problem.headers or {}), **_pending_header(call)}
            raise problem from error
        response.headers.update(_pending_header(call))
        return response

    return Route(path, endpoint, methods=list(by_method), name=operations[0].name)


def parse_query(model: type[Model], query_string: bytes, country_code: str = "1") -> Model:
    """The parameters in a query string; raises a problem that names every invalid parameter.

    `country_code` is that of a number typed without one.
    """
    values = _values(query_string, model.repeatable)
    try:
        context: NumberContext = {"country_code": lambda: country_code}
        return model.model_validate(values, by_alias=True, by_name=False, context=context)
    except ValidationError as error:
        # A value of a list has the name of its parameter.
        refused = ((item["loc"][:1] or ("query",), item) for item in error.errors(include_url=False))
        raise invalid_values_problem(
            [_invalid_value(location, item["type"], item["msg"]) for location, item in refused]
        ) from None


def _values(query_string: bytes, repeatable: Collection[str]) -> dict[str, str | list[str]]:
    try:
        text = query_string.decode("utf-8")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        raise ProblemError(
            400, f"The query string is not UTF-8, or has more than {_MAX_PARAMETERS} parameters."
        ) from None
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(storable(value))
    repeated = [name for name, items in values.items() if len(items) > 1 and name not in repeatable]
    if repeated:
        errors = [InvalidValue(parameter=name[:_MAX_NAME], detail="is given more than once") for name in repeated]
        raise invalid_values_problem(errors)
    return {name: items if name in repeatable else items[0] for name, items in values.items()}


def invalid_values(error: ValidationError) -> list[InvalidValue]:
    """The values that a model refuses, by name. The values are left out: one may be a secret in the wrong field."""
    return [_invalid_value(item["loc"], item["type"], item["msg"]) for item in error.errors(include_url=False)]


def _invalid_value(location: tuple[int | str, ...], kind: str, message: str) -> InvalidValue:
    name = ".".join(str(part) for part in location) or "body"
    detail = "is not a known parameter or field" if kind == "extra_forbidden" else message.removeprefix("Value error, ")
    return InvalidValue(parameter=name[:_MAX_NAME], detail=detail)


async def read_body(request: Request, model: type[Body], max_bytes: int = MAX_BODY_BYTES) -> Body:
    """The body as a model; raises a problem that names every invalid field."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise ProblemError(415, "The body must be application/json.")
    try:
        return model.model_validate_json(await _body(request, max_bytes))
    except ValidationError as error:
        raise invalid_values_problem(invalid_values(error)) from None


async def _body(request: Request, max_bytes: int) -> bytes:
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > max_bytes:
                raise ProblemError(413, headers={"Connection": "close"})
    except ClientDisconnect:
        raise ProblemError(400) from None
    return body


def decoded_segment(value: str) -> str:
    """A decoded value of the path. One that is not UTF-8 cannot be an id, so the answer is 404."""
    try:
        return storable(unquote_to_bytes(value).decode("utf-8"))
    except UnicodeDecodeError:
        raise ProblemError(404) from None


def _response(operation: Operation, request: Request, call: Call, result: Any) -> Response:
    link: Mapping[str, str] = {}
    if isinstance(result, Listed):
        if result.next_page is not None:
            changes = {**absolute_times(request), **result.next_page}
            link = next_page(request, call.context.public_url, **changes)
        result = result.items
    if operation.is_stream:
        return StreamedResponse(result, operation.media_type)
    if operation.csv is not None and prefers_csv(request.headers.get("accept", "")):
        return csv_answer(operation.csv(result, call.query), name=operation.path.rpartition("/")[2], link=link)
    return json_answer(result, link=link, media_type=operation.media_type, leave_out_null=operation.leaves_out_null)


_TIMES: Final = ("fromDateTime", "toDateTime")


def absolute_times(request: Request) -> dict[str, str]:
    """The relative times among the parameters as absolute ones: on the next page `2h` would mean another time.

    A duration, of `olderThan`, stays: on the next page it may add messages at the newest end, and leaves none out.
    """
    times = {name: request.query_params.get(name, "") for name in _TIMES}
    return {name: rfc3339(moment(value)) for name, value in times.items() if is_relative(value)}


def json_answer(
    value: Any, *, link: Mapping[str, str] | None = None, media_type: str = JSON, leave_out_null: bool = False
) -> Response:
    """Models, lists of them, or plain values as JSON; `link` is a header from `next_page`."""
    # Bytes are JSON already. The end of the line is for terminals: the prompt after `curl` begins a line.
    body = value if isinstance(value, bytes) else to_json(value, by_alias=True, exclude_none=leave_out_null) + b"\n"
    return Response(body, headers={**_HEADERS, **(link or {})}, media_type=media_type)


def csv_answer(text: str, *, name: str, link: Mapping[str, str]) -> Response:
    """A table as a file to download: a browser must not render text that strangers wrote."""
    disposition = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    return Response(text, 200, {**_HEADERS, **disposition, **link}, f"{CSV}; charset=utf-8; header=present")


# How long the client of a stream that ends may take to read the rest.
_LAST_SECONDS: Final = 1.0


class StreamedResponse(Response):
    """A response that ends when the client goes or the stream ends. Without a reader, nothing more is read for it."""

    def __init__(self, stream: Streamed, media_type: str) -> None:
        # nginx would collect the response before it passes on a part.
        super().__init__(headers={**_HEADERS, "X-Accel-Buffering": "no"}, media_type=media_type)
        del self.headers["content-length"]
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks: list[asyncio.Task[Any]] = []
        scope[STREAMED] = True
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body"})
                return
            sending = asyncio.create_task(self._send(send))
            gone = asyncio.create_task(_gone(receive))
            tasks = [sending, gone, asyncio.create_task(self._stream.ended.wait())]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not gone.done():
                await asyncio.wait([sending], timeout=_LAST_SECONDS)
            if sending.done():
                sending.result()
        finally:
            self._stream.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        async with aclosing(self._stream.parts()) as parts:  # type: ignore[type-var]
            async for part in parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# The characters that https://www.rfc-editor.org/rfc/rfc3986 allows in a path, and that of what is encoded.
_IN_PATHS: Final = "/:@!$&'()*+,;=%"


def next_page(request: Request, public_url: str | None, **changes: str) -> dict[str, str]:
    """The `Link` header with this request's own address, some parameters changed, and without `page`."""
    query = parse_qsl(request.scope["query_string"].decode(), keep_blank_values=True)
    unchanged = [(name, value) for name, value in query if name not in {"page", *changes}]
    # Encoded already, but for characters that a client should have encoded: a > would end the link.
    path = quote(request.scope["path"], safe=_IN_PATHS)
    # The Host header, unless `public_url` is set, which includes the path where the application is mounted.
    if public_url is None:
        address = f"{request.url.scheme}://{request.url.netloc}{path}"
    else:
        address = public_url.rstrip("/") + path.removeprefix(request.scope.get(MOUNTED_AT, ""))
    address += f"?{urlencode([*unchanged, *changes.items()])}"
    return {"Link": f'<{address}>; rel="next"'}


def prefers_csv(accept: str) -> bool:
    """Whether an Accept header prefers CSV to JSON."""
    return _quality(accept, "text", "csv") > _quality(accept, "application", "json")


def _quality(accept: str, kind: str, subtype: str) -> float:
    """The quality of a media type in an Accept header, by the most specific range that covers it."""
    ranges = {}
    for part in accept.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        ranges[name] = _weight(parameters)
    wanted = (f"{kind}/{subtype}", f"{kind}/*", "*/*")
    return next((ranges[name] for name in wanted if name in ranges), 0.0)


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter.removeprefix("q="))
            except ValueError:
                return 0.0
    return 1.0


def _pending_header(call: Call) -> dict[str, str]:
    """The header with the number of callbacks that are not in the response yet; no header if there are none."""
    return {PENDING_HEADER: str(call.pending)} if call.pending else {}
