"""The journal: appended to by the web process, processed and pruned by the worker; `callbacks` lists it.

On SQLite it is a file of its own, on PostgreSQL a table, with a narrow table beside it for the pending callbacks.
"""

import secrets
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from sqlalchemy import (
    ColumnElement,
    and_,
    delete,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.counts import COUNTED
from receiver.domain.events import Api, Callback
from receiver.errors import StorageUnavailable
from receiver.models.callbacks import CALLBACKS, PENDING, PROCESSOR
from receiver.models.columns import json_text, sqlite_time
from receiver.storage.bulk import FileReplaced, SqliteConnection
from receiver.storage.database import SQLITE_PRAGMAS, Database, unavailable
from receiver.storage.postgresql import insert_arrays

COLUMNS: Final = ("id", "received_at", "api", "route", "method", "remote", "query", "headers", "body")
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
    def __init__(self, database: Database) -> None:
        assert database.journal_file is not None  # noqa: S101
        self._connection = SqliteConnection(database.journal_file, SQLITE_PRAGMAS, thread="receiver-journal")

    async def append(self, callbacks: Sequence[Callback]) -> int:
        rows = [_row(callback, sqlite_time(callback.received_at)) for callback in callbacks]
        return await self._in_transaction(lambda connection: connection.executemany(_INSERT, rows).rowcount)

    async def probe(self) -> None:
        await self._in_transaction(self._probe)

    async def close(self) -> None:
        await self._connection.close()

    @staticmethod
    def _probe(connection: sqlite3.Connection) -> int:
        connection.execute(_INSERT, (_PROBE_ID, "", "", "", "", None, "", "{}", b""))
        return connection.execute(_REMOVE_PROBE, (_PROBE_ID,)).rowcount

    async def _in_transaction(self, work: Callable[[sqlite3.Connection], int]) -> int:
        def run() -> int:
            try:
                done = work(self._connection.begun())
                self._connection.commit()
            except BaseException:
                self._connection.roll_back()
                raise
            return done

        try:
            done: int = await self._connection.in_thread(run)
        except FileReplaced as error:
            raise StorageUnavailable(str(error)) from None
        except Exception as error:
            raise StorageUnavailable(f"{type(error).__name__}: {error}") from error
        return done


_INSERT: Final = (
    f"INSERT INTO callbacks ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))}) "  # noqa: S608
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
    f"WITH added AS ({insert_arrays(CALLBACKS, COLUMNS, 'ON CONFLICT (id) DO NOTHING')} RETURNING sequence), "  # noqa: S608
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
        self._connection = SqliteConnection(database.journal_file, thread="receiver-pending", mode="ro")

    async def after(self, sequence: int, *, limit: int, max_bytes: int) -> list[Entry]:
        with unavailable():
            entries: list[Entry] = await self._connection.in_thread(self._after, sequence, limit, max_bytes)
        return entries

    async def close(self) -> None:
        await self._connection.close()

    def _after(self, sequence: int, limit: int, max_bytes: int) -> list[Entry]:
        entries: list[Entry] = []
        # Row by row: a body may have a megabyte.
        for row in self._connection.opened().execute(_PENDING_OF_FILE, (sequence, limit)):
            entries.append(_entry(row, datetime.fromisoformat(row[2])))
            max_bytes -= len(row[7])
            if max_bytes <= 0:
                break
        return entries


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


def is_pending(database: Database) -> ColumnElement[bool]:
    """Whether a row of the journal (SQLite) or of `pending_callbacks` (PostgreSQL) is pending."""
    if not database.is_sqlite:
        return true()
    behind: ColumnElement[bool] = CALLBACKS.c.sequence > select(PROCESSOR.c.cursor).scalar_subquery()
    return behind


# --- pruning ---


def first_id(moment: datetime) -> str:
    """The smallest possible id of a callback received at a time: ids begin with microseconds since 1970."""
    return f"{max(0, round(moment.timestamp() * 1_000_000)):014x}"


async def remove(database: Database, ids: Sequence[str]) -> None:
    """Removes callbacks from the journal. Keep the list short: on SQLite new callbacks wait for it."""
    async with database.writing_journal() as connection:
        await connection.execute(delete(CALLBACKS).where(CALLBACKS.c.id.in_(ids)))
