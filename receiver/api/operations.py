"""What an operation of the query API is.

The routes, the OpenAPI document and the commands that show or change the same things are made from operations. A
handler knows no request and no response: a request and a command call it in the same way.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from pydantic import BaseModel

from receiver.api.streams import Streams
from receiver.domain.events import Callback
from receiver.errors import StorageUnavailable
from receiver.models.queries import Page, PagedQuery, Query
from receiver.storage.database import Database
from receiver.storage.message_search import FOR_PROGRAMS, Patience

if TYPE_CHECKING:
    # Commands run operations too, and need no token and no web framework.
    from receiver.alerts.targets import Targets
    from receiver.api.auth import Tokens
    from receiver.explanation.installation import Findings

JSON: Final = "application/json"
MAX_BODY_BYTES: Final = 65_536

Item = TypeVar("Item")


async def no_pending_callbacks(_: float | None) -> int:
    return 0


async def _no_journal(_: Callback) -> None:
    raise StorageUnavailable("this process appends nothing to the journal")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """What the operations need.

    `append` appends an entry to the journal and returns once it is on disk. `reprocess` processes the callbacks with
    these ids again and returns when the result is committed. `settle` waits until the callbacks accepted so far are
    processed, for so many seconds or for its own time, and returns how many are still pending (`Settling.wait`).
    `tokens` are the accepted tokens (None: no token is required). `sinks` are the sink tables of the settings by name.
    `tag_key` is the kid and the secret of the key that signs tags (None: there is no key). `public_url` is the start
    of every link (None: the Host header). `base_url` is the start of the links of alerts, which events have too.
    `targets` are the targets for people of alerts, with the rules.
    `source` is the setting of that name. `country_code` is that of a number typed without one. `findings` reads the
    state of the installation (None: from the database alone). `streams` are the clients that stay connected.
    """

    database: Database
    reprocess: Callable[[Sequence[str]], Awaitable[object]]
    tokens: "Tokens | None"
    clock: Callable[[], datetime]
    sinks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    tag_key: tuple[str, str] | None = field(default=None, repr=False)
    public_url: str | None = None
    base_url: str = ""
    targets: "Targets | None" = field(default=None, repr=False)
    source: str | None = None
    country_code: str = "1"
    append: Callable[[Callback], Awaitable[object]] = _no_journal
    settle: Callable[[float | None], Awaitable[int]] = no_pending_callbacks
    findings: Callable[[], Awaitable["Findings"]] | None = field(default=None, repr=False)
    streams: Streams = field(default_factory=Streams, repr=False)

    @property
    def sink_types(self) -> dict[str, str]:
        """The types of the configured sinks, by name."""
        return {name: str(table.get("type")) for name, table in self.sinks.items()}


@dataclass(slots=True, kw_only=True)
class Call:
    """One call of an operation: its parameters, the decoded values of its path, its body, and who calls.

    `pending` is the number of callbacks that the result does not contain, because they are not processed yet.
    `headers` are those of the request that the operation reads, `token` is the digest of its token. `patience` is that
    of a search of messages.
    """

    context: ApiContext
    query: Any = field(default_factory=Query)
    path: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    is_admin: bool = True
    pending: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    token: bytes | None = None
    patience: Patience = FOR_PROGRAMS

    @property
    def database(self) -> Database:
        return self.context.database


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed(Generic[Item]):
    """A page of a list; `next_page` are the parameters of the page after it that differ (None: it is the last one).

    `searched_to` and `share` are set if the page ended early because the search takes long (see `Found`).
    """

    items: list[Item]
    next_page: Mapping[str, str] | None
    searched_to: datetime | None = None
    share: float = 1.0


def by_cursor(page: Page[Item], cursor: Callable[[Item], str]) -> Listed[Item]:
    """A page of a list whose next page begins after the last item."""
    return Listed(items=page.items, next_page={"cursor": cursor(page.items[-1])} if page.more else None)


def by_number(page: Page[Item], query: PagedQuery) -> Listed[Item]:
    """A page of a short list, whose pages have numbers."""
    return Listed(items=page.items, next_page={"page": str(query.page + 1)} if page.more else None)


class Streamed(Protocol):
    """A result without an end: its parts as the client takes them, until `ended` is set."""

    ended: asyncio.Event

    def parts(self) -> AsyncIterator[bytes]: ...
    def close(self) -> None: ...


def named(operations: "Sequence[Operation]", name: str) -> "Operation":
    """The operation with this name."""
    return next(operation for operation in operations if operation.name == name)


Handle = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation: its address, its parameters, its response and its handler.

    `answer` is the type of the body of a 200, `problems` are the expected error statuses besides those that every
    operation has, `path_words` describes the parameters in the path. `csv` writes the result of a
    query as a table. `is_stream`: the result is Streamed.
    `reads_processed`: the response shows what the processor writes, so the operation waits for the processor, and the
    header `Receiver-Pending` has the number of callbacks that are still pending. `settles_itself`: the handler does
    both, where its response needs them. `headers` describes the headers of the request that the handler reads.
    """

    name: str
    method: str = "GET"
    path: str
    summary: str
    description: str = ""
    handle: Handle
    query: type[Query] = Query
    body: type[BaseModel] | None = None
    max_body_bytes: int = MAX_BODY_BYTES
    answer: Any
    media_type: str = JSON
    csv: Callable[[Any, Any], str] | None = None
    leaves_out_null: bool = False
    is_stream: bool = False
    has_next: bool = False
    reads_processed: bool = False
    settles_itself: bool = False
    problems: tuple[int, ...] = ()
    path_words: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    async def __call__(self, call: Call) -> Any:
        """The result: a model, a list of models, or a page of them. Raises ProblemError or an error of the tree."""
        if self.reads_processed:
            call.pending = await call.context.settle(None)
        return await self.handle(call)
