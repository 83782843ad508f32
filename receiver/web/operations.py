"""Operations of the query API as a table: routes and description are both made from its rows."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from pydantic import BaseModel
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Mount, Route, Router
from starlette.types import ASGIApp, Scope

from receiver.providers.values import storable
from receiver.storage.database import Database
from receiver.web import parameters, problems
from receiver.web.answers import JSON
from receiver.web.auth import Scheme, TokenAuth, Tokens
from receiver.web.parameters import Parameters
from receiver.web.problems import Problem, ProblemError

Reread = Callable[[Sequence[str]], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """What the operations need.

    `reread` reads the callbacks with these ids again; what came of it is then in the ledger. `tag_key` is the kid and
    the secret that sign (None: there is none). `tokens` None: everybody may ask. `public_url` is what the links start
    with (None: what the caller called us). `sinks` are the settings' tables of them, by name.
    """

    database: Database
    reread: Reread
    tokens: Tokens | None
    clock: Callable[[], datetime]
    sinks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    tag_key: tuple[str, str] | None = field(default=None, repr=False)
    public_url: str | None = None


Handle = Callable[[Api, Request, Any], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation: where, what it takes, what it answers, who does it.

    `answer` is the type of a good answer's body, `problems` the further statuses that are to be expected, `path_words`
    what the names in the path stand for.
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
        return match, {**child, "path": path}


def _route(operation: Operation, api: Api, prefix: str) -> Route:
    async def endpoint(request: Request) -> Response:
        asked = parameters.read(operation.parameters, request.scope["query_string"])
        return await operation.handle(api, request, asked)

    path = operation.path.removeprefix(prefix)
    return Route(path, endpoint, methods=[operation.method], name=operation.name)


def path_value(request: Request, name: str) -> str:
    """A value in the path, decoded; what no id can look like is answered 404 like any id that is not there."""
    try:
        return storable(unquote_to_bytes(request.path_params[name]).decode("utf-8"))
    except UnicodeDecodeError:
        raise ProblemError(404) from None
