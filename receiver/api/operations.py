"""The operations of the query API as a table. The routes and the OpenAPI document are made from its rows."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

from pydantic import BaseModel
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Mount, Route, Router
from starlette.types import ASGIApp, Scope

from receiver.api import problems
from receiver.api.answers import JSON, MOUNTED_AT
from receiver.api.auth import Scheme, TokenAuth, Tokens
from receiver.api.parameters import Parameters, parse_parameters
from receiver.api.problems import Problem, ProblemError
from receiver.domain.installation import Findings
from receiver.providers.fields import storable
from receiver.storage.database import Database

PENDING_HEADER: Final = "Receiver-Pending"


async def _no_pending_callbacks() -> int:
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """What the operations need.

    `reprocess` processes the callbacks with these ids again and returns when the result is committed. `settle` waits
    until the callbacks accepted so far are processed, and returns how many are still pending (`Settling.wait`).
    `tokens` are the accepted tokens (None: no token is required). `sinks` are the sink tables of the settings by name.
    `tag_key` is the kid and the secret of the key that signs tags (None: there is no key). `public_url` is the start
    of every link (None: the Host header). `findings` reads the state of the installation (None: from the database
    alone).
    """

    database: Database
    reprocess: Callable[[Sequence[str]], Awaitable[object]]
    tokens: Tokens | None
    clock: Callable[[], datetime]
    sinks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    tag_key: tuple[str, str] | None = field(default=None, repr=False)
    public_url: str | None = None
    settle: Callable[[], Awaitable[int]] = _no_pending_callbacks
    findings: Callable[[], Awaitable[Findings]] | None = field(default=None, repr=False)


Handle = Callable[[ApiContext, Request, Any], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation: its address, its parameters, its response and its handler.

    `answer` is the type of the body of a 200, `problems` are the expected error statuses besides those that every
    operation has, `path_words` describes the parameters in the path. `reads_processed`: the response shows what the
    processor writes, so the operation waits for the processor, and the header `Receiver-Pending` has the number of
    callbacks that are still pending. `settles_itself`: the handler does both, where its response needs them.
    """

    name: str
    method: str = "GET"
    path: str
    summary: str
    description: str = ""
    handle: Handle
    parameters: type[Parameters] = Parameters
    body: type[BaseModel] | None = None
    answer: Any
    media_type: str = JSON
    has_csv: bool = False
    has_next: bool = False
    reads_processed: bool = False
    settles_itself: bool = False
    problems: tuple[int, ...] = ()
    path_words: dict[str, str] = field(default_factory=dict)


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
    app: ASGIApp = Router(
        [_route(operation, context, group.prefix) for operation in group.operations], redirect_slashes=False
    )
    if context.tokens is not None:
        app = TokenAuth(app, context.tokens, group.scheme)
    return EncodedMount(group.prefix, ExceptionMiddleware(app, problems.handlers(group.error_handler)))


class EncodedMount(Mount):
    """Routes by the undecoded path, so that `%2F` is part of an id and not a separator."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        raw = scope.get("raw_path")
        path = raw.decode("latin-1") if raw else quote(scope["path"])
        match, child = super().matches({**scope, "path": path})
        # The path under which this application is mounted; `Mount` adds its own prefix to `root_path`.
        return match, {**child, "path": path, MOUNTED_AT: scope.get("root_path", "")}


def _route(operation: Operation, context: ApiContext, prefix: str) -> Route:
    async def endpoint(request: Request) -> Response:
        parameters = parse_parameters(operation.parameters, request.scope["query_string"])
        if not operation.reads_processed:
            return await operation.handle(context, request, parameters)
        pending = await context.settle()
        try:
            response = await operation.handle(context, request, parameters)
        except ProblemError as problem:
            problem.headers = {**(problem.headers or {}), **pending_header(pending)}
            raise
        response.headers.update(pending_header(pending))
        return response

    path = operation.path.removeprefix(prefix)
    return Route(path, endpoint, methods=[operation.method], name=operation.name)


def pending_header(callbacks: int) -> dict[str, str]:
    """The header with the number of callbacks that are not in the response yet; no header if there are none."""
    return {PENDING_HEADER: str(callbacks)} if callbacks else {}


def path_value(request: Request, name: str) -> str:
    """A decoded value of the path. One that is not UTF-8 cannot be an id, so the answer is 404."""
    try:
        return storable(unquote_to_bytes(request.path_params[name]).decode("utf-8"))
    except UnicodeDecodeError:
        raise ProblemError(404) from None
