"""Operations of the query API as a table: routes and description are both made from its rows."""

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

from receiver.api import parameters, problems
from receiver.api.answers import JSON, MOUNTED_AT
from receiver.api.auth import Scheme, TokenAuth, Tokens
from receiver.api.parameters import Parameters
from receiver.api.problems import Problem, ProblemError
from receiver.domain.installation import Findings
from receiver.providers.fields import storable
from receiver.storage.database import Database

PENDING_HEADER: Final = "Receiver-Pending"


async def _nothing_to_wait_for() -> int:
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """What the operations need.

    `reprocess` processes the callbacks with these ids again; what follows from that is then in the database. `settle`
    waits until what was accepted before is processed and returns how many callbacks are left (`Settling.wait`).
    `tag_key` is the kid and the secret that sign (None: there is none). `tokens` None: everybody may ask. `public_url`
    is what the links start with (None: the Host header). `sinks` are the settings' tables of them, by name.
    `findings` finds out how the installation is doing (None: only the database is asked).
    """

    database: Database
    reprocess: Callable[[Sequence[str]], Awaitable[object]]
    tokens: Tokens | None
    clock: Callable[[], datetime]
    sinks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    tag_key: tuple[str, str] | None = field(default=None, repr=False)
    public_url: str | None = None
    settle: Callable[[], Awaitable[int]] = _nothing_to_wait_for
    findings: Callable[[], Awaitable[Findings]] | None = field(default=None, repr=False)


Handle = Callable[[Api, Request, Any], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation: where, what it takes, what it answers, who does it.

    `answer` is the type of a good answer's body, `problems` the further statuses that are to be expected, `path_words`
    what the names in the path stand for. `reads_processed`: the answer is made of what the processor writes, so the
    operation waits until the processor has passed what was accepted before, and says in a header how many callbacks it
    has not passed. `settles_itself`: the handler does both, where its answer needs it.
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
    """Operations under one prefix that ask for a token and answer errors in the same way."""

    prefix: str
    operations: Sequence[Operation]
    scheme: Scheme
    refuse: problems.Handler = problems.answer
    error: type[BaseModel] = Problem
    error_media_type: str = problems.MEDIA_TYPE


def mount(group: Group, api: Api) -> Mount:
    """The routes of a group, behind its token check."""
    app: ASGIApp = Router([_route(one, api, group.prefix) for one in group.operations], redirect_slashes=False)
    if api.tokens is not None:
        app = TokenAuth(app, api.tokens, group.scheme)
    return EncodedMount(group.prefix, ExceptionMiddleware(app, problems.handlers(group.refuse)))


class EncodedMount(Mount):
    """Routes by the path as it was sent: `%2F` is part of an id, not a separator, and no path has two spellings."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        raw = scope.get("raw_path")
        path = raw.decode("latin-1") if raw else quote(scope["path"])
        match, child = super().matches({**scope, "path": path})
        # where this application is mounted, which the mount adds its own prefix to
        return match, {**child, "path": path, MOUNTED_AT: scope.get("root_path", "")}


def _route(operation: Operation, api: Api, prefix: str) -> Route:
    async def endpoint(request: Request) -> Response:
        asked = parameters.read(operation.parameters, request.scope["query_string"])
        if not operation.reads_processed:
            return await operation.handle(api, request, asked)
        pending = await api.settle()
        try:
            response = await operation.handle(api, request, asked)
        except ProblemError as problem:
            problem.headers = {**(problem.headers or {}), **pending_header(pending)}
            raise
        response.headers.update(pending_header(pending))
        return response

    path = operation.path.removeprefix(prefix)
    return Route(path, endpoint, methods=[operation.method], name=operation.name)


def pending_header(callbacks: int) -> dict[str, str]:
    """The header that says how many callbacks the answer does not take into account; none where that is 0."""
    return {PENDING_HEADER: str(callbacks)} if callbacks else {}


def path_value(request: Request, name: str) -> str:
    """A value in the path, decoded; what no id can look like is answered 404 like any id that is not there."""
    try:
        return storable(unquote_to_bytes(request.path_params[name]).decode("utf-8"))
    except UnicodeDecodeError:
        raise ProblemError(404) from None
