"""The operations of the query API as a table.

The routes, the OpenAPI document and the commands that show or change the same things are made from its rows. A handler
knows no request and no response: a request and a command call it in the same way.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote, unquote_to_bytes

from pydantic import BaseModel
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Mount, Route, Router
from starlette.types import ASGIApp, Scope

from receiver.api import problems
from receiver.api.answers import JSON, MOUNTED_AT, csv_answer, json_answer, next_page, prefers_csv, read_body
from receiver.api.auth import Scheme, TokenAuth, Tokens, is_admin
from receiver.api.parameters import parse_query
from receiver.api.problems import Problem, ProblemError, as_problem
from receiver.errors import ReceiverError
from receiver.explanation.installation import Findings
from receiver.models.queries import Page, PagedQuery, Query
from receiver.providers.fields import storable
from receiver.storage.database import Database

PENDING_HEADER: Final = "Receiver-Pending"

Item = TypeVar("Item")


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

    @property
    def sink_types(self) -> dict[str, str]:
        """The types of the configured sinks, by name."""
        return {name: str(table.get("type")) for name, table in self.sinks.items()}


@dataclass(slots=True, kw_only=True)
class Call:
    """One call of an operation: its parameters, the decoded values of its path, its body, and who calls.

    `pending` is the number of callbacks that the result does not contain, because they are not processed yet.
    """

    context: ApiContext
    query: Any = field(default_factory=Query)
    path: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    is_admin: bool = True
    pending: int = 0

    @property
    def database(self) -> Database:
        return self.context.database


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed(Generic[Item]):
    """A page of a list; `next_page` are the parameters of the page after it that differ (None: it is the last one)."""

    items: list[Item]
    next_page: Mapping[str, str] | None


def by_cursor(page: Page[Item], cursor: Callable[[Item], str]) -> Listed[Item]:
    """A page of a list whose next page begins after the last item."""
    return Listed(items=page.items, next_page={"cursor": cursor(page.items[-1])} if page.more else None)


def by_number(page: Page[Item], query: PagedQuery) -> Listed[Item]:
    """A page of a short list, whose pages have numbers."""
    return Listed(items=page.items, next_page={"page": str(query.page + 1)} if page.more else None)


Handle = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation: its address, its parameters, its response and its handler.

    `answer` is the type of the body of a 200, `problems` are the expected error statuses besides those that every
    operation has, `path_words` describes the parameters in the path. `csv` writes the items of a list as a table.
    `reads_processed`: the response shows what the processor writes, so the operation waits for the processor, and the
    header `Receiver-Pending` has the number of callbacks that are still pending. `settles_itself`: the handler does
    both, where its response needs them.
    """

    name: str
    method: str = "GET"
    path: str
    summary: str
    description: str = ""
    handle: Handle
    query: type[Query] = Query
    body: type[BaseModel] | None = None
    answer: Any
    media_type: str = JSON
    csv: Callable[[Any], str] | None = None
    leaves_out_null: bool = False
    has_next: bool = False
    reads_processed: bool = False
    settles_itself: bool = False
    problems: tuple[int, ...] = ()
    path_words: Mapping[str, str] = field(default_factory=dict)

    async def __call__(self, call: Call) -> Any:
        """The result: a model, a list of models, or a page of them. Raises ProblemError or an error of the tree."""
        if self.reads_processed:
            call.pending = await call.context.settle()
        return await self.handle(call)


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
        call = Call(
            context=context,
            query=parse_query(operation.query, request.scope["query_string"]),
            path={name: _decoded(value) for name, value in request.path_params.items()},
            body=await read_body(request, operation.body) if operation.body is not None else None,
            is_admin=is_admin(request),
        )
        try:
            response = _response(operation, request, context, await operation(call))
        except (ProblemError, ReceiverError) as error:
            problem = as_problem(error)
            problem.headers = {**(problem.headers or {}), **_pending_header(call)}
            raise problem from error
        response.headers.update(_pending_header(call))
        return response

    path = operation.path.removeprefix(prefix)
    return Route(path, endpoint, methods=[operation.method], name=operation.name)


def _response(operation: Operation, request: Request, context: ApiContext, result: Any) -> Response:
    link: Mapping[str, str] = {}
    if isinstance(result, Listed):
        if result.next_page is not None:
            link = next_page(request, context.public_url, **result.next_page)
        result = result.items
    if operation.csv is not None and prefers_csv(request.headers.get("accept", "")):
        return csv_answer(operation.csv(result), name=operation.path.rpartition("/")[2], link=link)
    return json_answer(result, link=link, media_type=operation.media_type, leave_out_null=operation.leaves_out_null)


def _pending_header(call: Call) -> dict[str, str]:
    """The header with the number of callbacks that are not in the response yet; no header if there are none."""
    return {PENDING_HEADER: str(call.pending)} if call.pending else {}


def _decoded(value: str) -> str:
    """A decoded value of the path. One that is not UTF-8 cannot be an id, so the answer is 404."""
    try:
        return storable(unquote_to_bytes(value).decode("utf-8"))
    except UnicodeDecodeError:
        raise ProblemError(404) from None
