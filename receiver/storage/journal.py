"""The journal: appended to by the web process, processed and pruned by the worker, and listed for people.

On SQLite it is a file of its own, on PostgreSQL a table, with a narrow table beside it for the pending callbacks.
"""

import asyncio
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from sqlalchemy import (
    ColumnElement,
    Select,
    Subquery,
    Text,
    UnaryExpression,
    and_,
    delete,
    false,
    func,
    literal_column,
    not_,
    select,
    true,
    union,
)
from sqlalchemy.engine import Row as SqlRow
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.callbacks import Callback
from receiver.domain.events import Api
from receiver.models.queries import CallbackQuery, Page, SortOrder
from receiver.models.callbacks import Callback, CallbackSummary, ElementProblem
from receiver.errors import StorageUnavailable
from receiver.models.callbacks import CALLBACKS, PENDING, PROCESSOR, QUARANTINE
from receiver.models.columns import json_text, sqlite_time
from receiver.models.events import EVENTS
from receiver.storage.bulk import FileReplaced, OpenFile, insert_arrays, prepared
from receiver.storage.database import SQLITE_PRAGMAS, Database, unavailable

_COLUMNS: Final = ("id", "received_at", "api", "route", "method", "remote", "query", "headers", "body")
_MAX_REMOTE: Final = 100
# A probe is inserted and removed in one transaction, so readers never see it.
_PROBE_ID: Final = "probe"

Row = tuple[Any, ...]


class JournalWriter(Protocol):
    """Appends callbacks and returns once they are on disk."""

    async def append(self, callbacks: Sequence[Callback]) -> int:
        """Appends in one transaction and returns how many callbacks are new; known ids are skipped.

        Any error of the database raises StorageUnavailable and appends nothing: raw bytes give the database no reason
        to refuse a single callback.
        """
        ...

    async def probe(self) -> None:
        """Appends and removes a callback as `append` does; raises StorageUnavailable if that fails."""
        ...

    async def close(self) -> None: ...


def journal_writer(database: Database) -> JournalWriter:
    return _SqliteWriter(database) if database.is_sqlite else _PostgresqlWriter(database)


def _row(callback: Callback, received_at: Any) -> Row:
    headers = json_text(callback.headers)
    if "\\u0000" in headers:
        # PostgreSQL cannot store NUL, in JSON neither.
        headers = json_text({_storable(name): _storable(value) for name, value in callback.headers.items()})
    return (
        callback.id,
        received_at,
        callback.api.value,
        callback.route,
        callback.method,
        _storable(callback.remote[:_MAX_REMOTE]) if callback.remote else None,
        _storable(callback.query),
        headers,
        callback.body,
    )


def _storable(text: str) -> str:
    return text.replace("\x00", "\ufffd") if "\x00" in text else text


# --- SQLite ---


class _SqliteWriter:
    """Appends through a connection and a thread of its own."""

    def __init__(self, database: Database) -> None:
        assert database.journal_file is not None  # noqa: S101
        self._file = database.journal_file
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="receiver-journal")
        self._connection: sqlite3.Connection | None = None
        self._opened: OpenFile | None = None

    async def append(self, callbacks: Sequence[Callback]) -> int:
        rows = [_row(callback, sqlite_time(callback.received_at)) for callback in callbacks]
        added: int = await self._in_thread(self._append, rows)
        return added

    async def probe(self) -> None:
        await self._in_thread(self._probe)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
        except FileReplaced as error:
            raise StorageUnavailable(str(error)) from None
        except Exception as error:
            raise StorageUnavailable(f"{type(error).__name__}: {error}") from error

    def _append(self, rows: list[Row]) -> int:
        connection = self._begun()
        try:
            added = connection.executemany(_INSERT, rows).rowcount
            connection.execute("COMMIT")
        except BaseException:
            self._abandon(connection)
            raise
        return added

    def _probe(self) -> None:
        connection = self._begun()
        try:
            connection.execute(_INSERT, (_PROBE_ID, "", "", "", "", None, "", "{}", b""))
            connection.execute(_REMOVE_PROBE, (_PROBE_ID,))
            connection.execute("COMMIT")
        except BaseException:
            self._abandon(connection)
            raise

    def _begun(self) -> sqlite3.Connection:
        """The connection to the file, in a transaction with the write lock; raises FileReplaced if the file changed."""
        if self._connection is None:
            # `rw`: an append must not create a removed file again, empty.
            uri = f"{self._file.absolute().as_uri()}?mode=rw"
            connection = sqlite3.connect(uri, uri=True, isolation_level=None)
            self._connection, self._opened = prepared(connection, SQLITE_PRAGMAS), OpenFile(self._file)
        assert self._opened is not None  # noqa: S101
        self._opened.check()
        self._connection.execute("BEGIN IMMEDIATE")
        self._opened.note_wal()
        return self._connection

    def _abandon(self, connection: sqlite3.Connection) -> None:
        if connection.in_transaction:
            connection.rollback()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


_INSERT: Final = (
    f"INSERT INTO callbacks ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "  # noqa: S608
    "ON CONFLICT (id) DO NOTHING"
)
_REMOVE_PROBE: Final = "DELETE FROM callbacks WHERE id = ?"


# --- PostgreSQL ---


class _PostgresqlWriter:
    """Appends by one statement, which is a transaction by itself: one round trip to the server for a whole group."""

    def __init__(self, database: Database) -> None:
        self._connection = database.driver_connection()
        # An id of its own: a process that freezes during its probe must not block the probes of others.
        probe = f"probe-{secrets.token_hex(8)}"
        self._probe_statement = _PROBE.format(id=probe)

    async def append(self, callbacks: Sequence[Callback]) -> int:
        if not callbacks:
            return 0
        rows = [_row(callback, callback.received_at) for callback in callbacks]
        # The statement may be sent twice: the second one skips what the first one committed.
        return int(await self._use(lambda driver: driver.fetchval(_APPEND, *zip(*rows, strict=True))))

    async def probe(self) -> None:
        await self._use(lambda driver: driver.execute(self._probe_statement))

    async def close(self) -> None:
        await self._connection.close()

    async def _use(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        try:
            return await self._connection.use(work)
        except Exception as error:
            raise StorageUnavailable(f"{type(error).__name__}: {error}") from error


_APPEND: Final = (
    f"WITH added AS ({insert_arrays(CALLBACKS, _COLUMNS, 'ON CONFLICT (id) DO NOTHING')} RETURNING sequence), "  # noqa: S608
    "noted AS (INSERT INTO pending_callbacks (sequence) SELECT sequence FROM added) "
    "SELECT count(*) FROM added"
)
# Statements that are sent together are one transaction.
_PROBE: Final = """
WITH added AS (
    INSERT INTO callbacks (id, received_at, api, route, method, query, headers, body)
    VALUES ('{id}', now(), '', '', '', '', '{{}}', '') RETURNING sequence
)
INSERT INTO pending_callbacks (sequence) SELECT sequence FROM added;
DELETE FROM pending_callbacks WHERE sequence IN (SELECT sequence FROM callbacks WHERE id = '{id}');
DELETE FROM callbacks WHERE id = '{id}'
"""


# --- reading pending callbacks ---


@dataclass(frozen=True, slots=True)
class Entry:
    """A pending callback of the journal, without headers and remote address, which processing does not need."""

    sequence: int
    callback: Callback


class JournalReader(Protocol):
    """Reads the pending callbacks, oldest first, over a connection of its own."""

    async def after(self, sequence: int, *, limit: int, max_bytes: int) -> list[Entry]:
        """The pending callbacks after a sequence: at most `limit`, with bodies of about `max_bytes` in total."""
        ...

    async def close(self) -> None: ...


def journal_reader(database: Database) -> JournalReader:
    return _SqliteReader(database) if database.is_sqlite else _PostgresqlReader(database)


def _entry(row: Sequence[Any], received_at: datetime) -> Entry:
    sequence, id_, _, api, route, method, query, body = row
    return Entry(
        sequence,
        Callback(
            id=id_, received_at=received_at, api=Api(api), route=route, method=method, query=query, body=bytes(body)
        ),
    )


class _SqliteReader:
    def __init__(self, database: Database) -> None:
        assert database.journal_file is not None  # noqa: S101
        self._file = database.journal_file
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="receiver-pending")
        self._connection: sqlite3.Connection | None = None

    async def after(self, sequence: int, *, limit: int, max_bytes: int) -> list[Entry]:
        with unavailable():
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, self._after, sequence, limit, max_bytes
            )

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    def _after(self, sequence: int, limit: int, max_bytes: int) -> list[Entry]:
        if self._connection is None:
            self._connection = sqlite3.connect(
                f"{self._file.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None
            )
        entries: list[Entry] = []
        # Row by row: a body may have a megabyte.
        for row in self._connection.execute(_PENDING_OF_FILE, (sequence, limit)):
            entries.append(_entry(row, datetime.fromisoformat(row[2])))
            max_bytes -= len(row[7])
            if max_bytes <= 0:
                break
        return entries

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


_READ: Final = "c.sequence, c.id, c.received_at, c.api, c.route, c.method, c.query, c.body"
_PENDING_OF_FILE: Final = f"SELECT {_READ} FROM callbacks AS c WHERE c.sequence > ? ORDER BY c.sequence LIMIT ?"  # noqa: S608


class _PostgresqlReader:
    """Reads from the beginning once a second, because a larger sequence may be committed first.

    Doing so every time would be slow during a long transaction elsewhere in the cluster, which prevents the removed
    entries from leaving the index.
    """

    def __init__(self, database: Database) -> None:
        self._connection = database.driver_connection()
        self._whole_at = float("-inf")

    async def after(self, sequence: int, *, limit: int, max_bytes: int) -> list[Entry]:
        with unavailable():
            return await self._connection.use(lambda driver: self._after(driver, sequence, limit, max_bytes))

    async def close(self) -> None:
        await self._connection.close()

    async def _after(self, driver: Any, sequence: int, limit: int, max_bytes: int) -> list[Entry]:
        sized: list[Any] = []
        if time.monotonic() - self._whole_at < _WHOLE_SECONDS:
            sized = await driver.fetch(_SIZES, sequence, limit)
        if not sized:
            self._whole_at = time.monotonic()
            sized = await driver.fetch(_SIZES, -1, limit)
        chosen = []
        for record in sized:
            chosen.append(record[0])
            max_bytes -= record[1]
            if max_bytes <= 0:
                break
        if not chosen:
            return []
        return [_entry(row, row[2].astimezone(UTC)) for row in await driver.fetch(_PENDING_OF_TABLE, chosen)]


_WHOLE_SECONDS: Final = 1.0
# LATERAL and OFFSET 0: one search for each row. Without statistics the planner joins with the whole journal, which made
# every batch wait for more than a second. octet_length does not read bodies that PostgreSQL stores outside of the row.
_SIZES: Final = (
    "SELECT p.sequence, c.size FROM "
    "(SELECT sequence FROM pending_callbacks WHERE sequence > $1 ORDER BY sequence LIMIT $2) AS p CROSS JOIN LATERAL "
    "(SELECT octet_length(body) AS size FROM callbacks WHERE sequence = p.sequence OFFSET 0) AS c ORDER BY p.sequence"
)
_PENDING_OF_TABLE: Final = (
    "SELECT c.* FROM unnest($1::bigint[]) AS wanted (sequence) CROSS JOIN LATERAL "  # noqa: S608
    f"(SELECT {_READ} FROM callbacks AS c WHERE c.sequence = wanted.sequence OFFSET 0) AS c ORDER BY c.sequence"
)


# --- progress ---


async def pending(database: Database, connection: AsyncConnection, *, until: int | None = None) -> int:
    """How many callbacks up to a sequence (None: all) are pending; the count stops at `COUNTED`."""
    waiting = is_pending(database)
    if until is not None:
        column = CALLBACKS.c.sequence if database.is_sqlite else PENDING.c.sequence
        waiting = and_(waiting, column <= until)
    source = CALLBACKS if database.is_sqlite else PENDING
    found = select(literal_column("1")).select_from(source).where(waiting).limit(COUNTED).subquery()
    return await connection.scalar(select(func.count()).select_from(found)) or 0


COUNTED: Final = 100_000


def is_pending(database: Database) -> ColumnElement[bool]:
    """Whether a row of the journal (SQLite) or of `pending_callbacks` (PostgreSQL) is pending."""
    if not database.is_sqlite:
        return true()
    behind: ColumnElement[bool] = CALLBACKS.c.sequence > select(PROCESSOR.c.cursor).scalar_subquery()
    return behind


# --- listing ---

_PAGE_CALLBACKS: Final = 100
_PAGE_BYTES: Final = 4 * 1024 * 1024
_LISTED: Final = ("id", "received_at", "api", "route", "method", "remote")
# An alias for look-ups by id: the statement of a page may select from `callbacks` itself.
_ROW: Final[Any] = CALLBACKS.alias("journal_row")


async def find(database: Database, query: CallbackQuery) -> Page[CallbackSummary]:
    """A page of the callbacks that match a query, ordered by id; ids rise with the time of receipt."""
    async with database.reading() as connection:
        rows = list(await connection.execute(page_statement(database, query)))
    return Page(items=[CallbackSummary(**_listed(row)) for row in rows[: query.size]], more=len(rows) > query.size)


async def one(database: Database, callback_id: str) -> Callback | None:
    """A callback in full, with its quarantined elements; None if the journal does not have it."""
    columns = [*_listed_columns(database), *(CALLBACKS.c[name] for name in ("query", "headers", "body"))]
    elements = select(QUARANTINE).where(QUARANTINE.c.callback_id == callback_id).order_by(QUARANTINE.c.element)
    async with database.reading() as connection:
        row = (await connection.execute(select(*columns).where(CALLBACKS.c.id == callback_id))).one_or_none()
        if row is None:
            return None
        problems = [_element(element) for element in await connection.execute(elements)]
    return Callback(**_listed(row), query=row.query, headers=row.headers, body=bytes(row.body), problems=problems)


async def by_ids(database: Database, ids: Sequence[str]) -> list[CallbackSummary]:
    """The callbacks with these ids, in the order of the ids; unknown ids are skipped."""
    statement = select(*_listed_columns(database)).where(database.among(CALLBACKS.c.id, "ids"))
    async with database.reading() as connection:
        rows = {row.id: row for row in await connection.execute(statement, {"ids": database.texts(ids)})}
    return [CallbackSummary(**_listed(rows[id_])) for id_ in ids if id_ in rows]


async def with_ids(database: Database, ids: Sequence[str]) -> list[Callback]:
    """The callbacks with these ids in full, oldest first; unknown ids are skipped."""
    async with database.reading() as connection:
        return await _whole(database, connection, ids)


async def pages_with_ids(database: Database, ids: Sequence[str]) -> AsyncIterator[list[Callback]]:
    """As `with_ids`, one page at a time; the bodies of a page have about 4 MiB at most, or are a single one."""
    listed = sorted(set(ids))
    while listed:
        async with database.reading() as connection:
            sized = await connection.execute(
                _sized(database).where(database.among(CALLBACKS.c.id, "ids")),
                {"ids": database.texts(listed[:_PAGE_CALLBACKS])},
            )
            chosen = _that_fit(sized)
            page = await _whole(database, connection, chosen)
        yield page
        # Ids that the journal does not have are skipped.
        listed = [id_ for id_ in listed if id_ > chosen[-1]] if chosen else listed[_PAGE_CALLBACKS:]


async def pages(database: Database, query: CallbackQuery) -> AsyncIterator[list[Callback]]:
    """All callbacks that match a query, in full, oldest first, one page at a time.

    No transaction stays open between two pages. The order, place and size of the query are ignored.
    """
    place = replace(query, order=SortOrder.ASC, after=None, skip=0, size=_PAGE_CALLBACKS)
    while page := await _page(database, place):
        yield page
        place = replace(place, after=page[-1].id)


async def _page(database: Database, query: CallbackQuery) -> list[Callback]:
    ids = _ids(database, query).limit(query.size).subquery()
    async with database.reading() as connection:
        sized = await connection.execute(_sized(database).where(_is_one_of(database, ids)))
        return await _whole(database, connection, _that_fit(sized))


def _sized(database: Database) -> Select[Any]:
    # octet_length does not read bodies that PostgreSQL stores outside of the row.
    length = func.length if database.is_sqlite else func.octet_length
    return select(CALLBACKS.c.id, length(CALLBACKS.c.body)).order_by(CALLBACKS.c.id)


def _that_fit(sized: Iterable[Any]) -> list[str]:
    """The first ids whose bodies fit into a page of `_PAGE_BYTES` (about); at least one."""
    ids: list[str] = []
    room = _PAGE_BYTES
    for id_, size in sized:
        ids.append(id_)
        room -= size
        if room <= 0:
            break
    return ids


async def _whole(database: Database, connection: AsyncConnection, ids: Sequence[str]) -> list[Callback]:
    columns = [CALLBACKS.c[name] for name in _COLUMNS]
    statement = select(*columns).where(database.among(CALLBACKS.c.id, "ids")).order_by(CALLBACKS.c.id)
    return [_callback(row) for row in await connection.execute(statement, {"ids": database.texts(ids)})]


def page_statement(database: Database, query: CallbackQuery) -> Select[Any]:
    """The SELECT for a page of callbacks and one row more, which tells whether the list goes on."""
    ids = _ids(database, query).limit(query.size + 1).offset(query.skip).subquery()
    page = select(*_listed_columns(database)).where(_is_one_of(database, ids))
    return page.order_by(_in_order(query, CALLBACKS.c.id))


def _is_one_of(database: Database, ids: Subquery) -> ColumnElement[bool]:
    """Whether a callback is one of those on a page."""
    found = select(ids.c.id)
    if database.is_sqlite:
        return CALLBACKS.c.id.in_(found)  # type: ignore[no-any-return]
    # With an array each id is looked up; with a join, PostgreSQL was seen to hash the ids and scan the whole journal.
    return CALLBACKS.c.id == func.any(func.array(found.scalar_subquery()))  # type: ignore[no-any-return]


def first_id(moment: datetime) -> str:
    """The smallest possible id of a callback received at a time: ids begin with microseconds since 1970."""
    return f"{max(0, round(moment.timestamp() * 1_000_000)):014x}"


def _ids(database: Database, query: CallbackQuery) -> Select[Any]:
    """The ids of the callbacks that match a query, in its order, as the column `id`.

    The most selective filter decides which table is searched. The other conditions are scalar subqueries, which no
    planner turns into a scan of the whole journal.
    """
    if query.message_id is not None:
        return _ids_of_message(database, query)
    if query.outcome == "quarantined" or query.reason is not None:
        return _quarantined_ids(database, query)
    if query.outcome == "pending":
        return _pending_ids(database, query)
    conditions = _of_place(query, CALLBACKS.c.id)
    if query.outcome == "accepted":
        conditions += [not_(_is_waiting(database, CALLBACKS.c.sequence)), not_(_is_quarantined(CALLBACKS.c.id))]
    return select(CALLBACKS.c.id).where(*conditions).order_by(_in_order(query, CALLBACKS.c.id))


def _ids_of_message(database: Database, query: CallbackQuery) -> Select[Any]:
    brought = select(EVENTS.c.callback_id.label("id")).where(EVENTS.c.message_id == query.message_id)
    quarantined = select(QUARANTINE.c.callback_id).where(QUARANTINE.c.message_id == query.message_id)
    found = union(brought, quarantined).subquery("found")
    conditions = [*_of_place(query, found.c.id), *_of_outcome(database, query, found.c.id)]
    return select(found.c.id).where(*conditions).order_by(_in_order(query, found.c.id))


def _of_outcome(database: Database, query: CallbackQuery, callback_id: ColumnElement[str]) -> list[ColumnElement[bool]]:
    """The conditions for a callback of the journal with the outcome and the reason of a query."""
    if query.outcome == "pending":
        return [_is_in_journal(database, callback_id, waiting=True), *([false()] if query.reason else [])]
    if query.outcome == "accepted":
        settled = _is_in_journal(database, callback_id, waiting=False)
        return [settled, not_(_is_quarantined(callback_id)), *([false()] if query.reason else [])]
    if query.outcome == "quarantined" or query.reason is not None:
        return [_is_in_journal(database, callback_id, waiting=False), _is_quarantined(callback_id, query.reason)]
    return [_is_in_journal(database, callback_id)]


def _quarantined_ids(database: Database, query: CallbackQuery) -> Select[Any]:
    callback_id = QUARANTINE.c.callback_id
    conditions = [*_of_place(query, callback_id), _is_in_journal(database, callback_id, waiting=False)]
    if query.reason is not None:
        conditions.append(QUARANTINE.c.reason == query.reason)
    if query.outcome in ("pending", "accepted"):
        conditions.append(false())
    return select(callback_id.label("id")).distinct().where(*conditions).order_by(_in_order(query, callback_id))


def _pending_ids(database: Database, query: CallbackQuery) -> Select[Any]:
    if database.is_sqlite:
        # The plus prevents SQLite from scanning the whole journal by id for the few pending callbacks.
        callback_id = literal_column("+callbacks.id", Text)
        conditions = [_is_waiting(database, CALLBACKS.c.sequence), *_of_place(query, callback_id)]
        return select(CALLBACKS.c.id).where(*conditions).order_by(_in_order(query, callback_id))
    row = select(CALLBACKS.c.id).where(CALLBACKS.c.sequence == PENDING.c.sequence, *_of_place(query, CALLBACKS.c.id))
    # OFFSET prevents the planner from scanning the journal for the pending callbacks.
    each = row.correlate(PENDING).offset(0).lateral("each_row")
    return select(each.c.id).join_from(PENDING, each, true()).order_by(_in_order(query, each.c.id))


def _is_waiting(database: Database, sequence: ColumnElement[int]) -> ColumnElement[bool]:
    """Whether the row of the journal with this sequence is pending."""
    if database.is_sqlite:
        return sequence > select(PROCESSOR.c.cursor).scalar_subquery()
    found = select(PENDING.c.sequence).where(PENDING.c.sequence == sequence).limit(1)
    return found.scalar_subquery().is_not(None)


def _is_in_journal(
    database: Database, callback_id: ColumnElement[str], *, waiting: bool | None = None
) -> ColumnElement[bool]:
    """Whether the journal has this callback, pending or processed (None: either)."""
    found = select(_ROW.c.id).where(_ROW.c.id == callback_id).limit(1)
    if waiting is not None:
        is_waiting = _is_waiting(database, _ROW.c.sequence)
        found = found.where(is_waiting if waiting else not_(is_waiting))
    return found.scalar_subquery().is_not(None)


def _is_quarantined(callback_id: ColumnElement[str], reason: str | None = None) -> ColumnElement[bool]:
    """Whether an element of this callback is quarantined for this reason (None: for any reason)."""
    found = select(QUARANTINE.c.element).where(QUARANTINE.c.callback_id == callback_id).limit(1)
    if reason is not None:
        found = found.where(QUARANTINE.c.reason == reason)
    return found.scalar_subquery().is_not(None)


def _of_place(query: CallbackQuery, callback_id: ColumnElement[str]) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if query.since is not None:
        conditions.append(callback_id >= first_id(query.since))
    if query.until is not None:
        conditions.append(callback_id < first_id(query.until))
    if query.after is not None:
        ascending = query.order is SortOrder.ASC
        conditions.append(callback_id > query.after if ascending else callback_id < query.after)
    return conditions


def _in_order(query: CallbackQuery, column: ColumnElement[Any]) -> UnaryExpression[Any]:
    return column.asc() if query.order is SortOrder.ASC else column.desc()


def _listed_columns(database: Database) -> list[ColumnElement[Any]]:
    """The columns of a list: the callback's own, whether it is pending, and reason and time of its first element."""
    first = select(QUARANTINE).where(QUARANTINE.c.callback_id == CALLBACKS.c.id).order_by(QUARANTINE.c.element).limit(1)
    return [
        *(CALLBACKS.c[name] for name in _LISTED),
        _is_waiting(database, CALLBACKS.c.sequence).label("is_pending"),
        first.with_only_columns(QUARANTINE.c.reason).scalar_subquery().label("reason"),
        first.with_only_columns(QUARANTINE.c.reprocessed_at).scalar_subquery().label("reprocessed_at"),
    ]


def _listed(row: SqlRow[Any]) -> dict[str, Any]:
    columns = row._mapping
    listed = {name: columns[name] for name in (*_LISTED, "reason", "reprocessed_at")}
    listed["api"] = Api(row.api)
    if row.is_pending:
        return {**listed, "outcome": "pending", "reason": None, "reprocessed_at": None}
    return {**listed, "outcome": "accepted" if row.reason is None else "quarantined"}


def _element(row: SqlRow[Any]) -> ElementProblem:
    return ElementProblem(index=row.element, reason=row.reason, detail=row.detail, message_id=row.message_id)


def _callback(row: SqlRow[Any]) -> Callback:
    return Callback(**{**row._mapping, "api": Api(row.api), "body": bytes(row.body)})


# --- removing ---


async def remove(database: Database, ids: Sequence[str]) -> None:
    """Removes callbacks from the journal. Keep the list short: on SQLite new callbacks wait for it."""
    async with database.writing_journal() as connection:
        await connection.execute(delete(CALLBACKS).where(CALLBACKS.c.id.in_(ids)))
