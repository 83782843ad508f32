"""The transaction that appends to the event log: one at a time per database, and the only hot one.

It talks to the drivers themselves, with SQL text made from the tables: SQLAlchemy's work per value and aiosqlite's
turns per statement were measured to cost more than half of the path. SQLite runs in a thread of its own; PostgreSQL
takes each table's rows as arrays in one statement.
"""

import asyncio
import re
import sqlite3
from collections import namedtuple
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import chain
from typing import Any, Final, Protocol

import orjson
from sqlalchemy import BigInteger, Boolean, Integer, LargeBinary, Table
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from receiver.storage.columns import Json, UTCDateTime, json_text, sqlite_time

Values = Sequence[Mapping[str, Any]]
Encoder = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Insert:
    """Rows into a table. `conflict` is the statement's ON CONFLICT clause, in the SQL that both databases speak."""

    table: Table
    rows: Values
    conflict: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A statement of which each row of `rows` is one execution; its parameters are `:named`. For the rare ones."""

    statement: str
    names: tuple[str, ...]
    rows: Values


Step = Insert | Change


class Transaction(Protocol):
    """What one appending transaction can do. It holds the intake lock."""

    async def select(self, columns: Sequence[Any], where: str, values: Iterable[str]) -> list[Any]:
        """Rows of the columns' table for which `where` holds; `{among}` in it is "one of the values"."""
        ...

    async def run(self, steps: Iterable[Step]) -> None:
        """Runs the steps in their order; one without rows is left out."""
        ...


def upsert(table: Table, kept: Iterable[str] = (), untouched: Iterable[str] = ()) -> str:
    """The ON CONFLICT clause by which a row replaces the one with its primary key.

    A null in a column of `kept` leaves what is there; the columns of `untouched` are left alone.
    """
    key = [column.name for column in table.primary_key.columns]
    changes = [
        f"{name} = coalesce(excluded.{name}, {table.name}.{name})" if name in kept else f"{name} = excluded.{name}"
        for name in (column.name for column in table.columns)
        if name not in key and name not in untouched
    ]
    return f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {', '.join(changes)}"


# --- values ---


def _encoder(column: Any, *, sqlite: bool) -> Encoder | None:
    if isinstance(column.type, Json):
        return json_text
    return sqlite_time if sqlite and isinstance(column.type, UTCDateTime) else None


def _decoder(column: Any, *, sqlite: bool) -> Encoder | None:
    if isinstance(column.type, Json):
        return orjson.loads
    return datetime.fromisoformat if sqlite and isinstance(column.type, UTCDateTime) else None


def _encoded(rows: Values, name: str, encode: Encoder | None) -> list[Any]:
    if encode is None:
        return [row[name] for row in rows]
    return [None if (value := row[name]) is None else encode(value) for row in rows]


class _Reader:
    """Makes rows with attributes of what a driver returns."""

    def __init__(self, columns: Sequence[Any], *, sqlite: bool) -> None:
        self._row = namedtuple("Row", [column.name for column in columns])  # type: ignore[misc]
        decoders = [(place, _decoder(column, sqlite=sqlite)) for place, column in enumerate(columns)]
        self._decoders = [(place, decode) for place, decode in decoders if decode]

    def __call__(self, found: Iterable[Sequence[Any]]) -> list[Any]:
        rows = []
        for record in found:
            values = list(record)
            for place, decode in self._decoders:
                if values[place] is not None:
                    values[place] = decode(values[place])
            rows.append(self._row(*values))
        return rows


@lru_cache(maxsize=64)
def _reader(columns: tuple[Any, ...], *, sqlite: bool) -> _Reader:
    return _Reader(columns, sqlite=sqlite)


# --- SQLite ---

_PORTIONS: Final = (128, 32, 8, 1)


class SqliteAppender:
    """Appends through a connection and a thread of its own."""

    def __init__(self, path: str, pragmas: Sequence[str]) -> None:
        self._path, self._pragmas = path, pragmas
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="receiver-sqlite")
        self._connection: sqlite3.Connection | None = None
        # whoever writes within this process waits here, in order: SQLite's own waiting is a lottery
        self.turn = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        async with self.turn:
            try:
                yield _SqliteTransaction(self._in_thread, self._begun)
                await self._in_thread(self._commit)
            except BaseException:
                await asyncio.shield(self._in_thread(self._rollback))
                raise

    async def close(self) -> None:
        await self._in_thread(self._close)
        self._thread.shutdown(wait=False)

    def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _begun(self) -> sqlite3.Connection:
        """The connection with the write lock; taken with the first statement, to save a turn of the thread."""
        if self._connection is None:
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=True)
            for pragma in self._pragmas:
                connection.execute(pragma)
            self._connection = connection
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")
        return self._connection

    def _commit(self) -> None:
        self._begun().execute("COMMIT")

    def _rollback(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            self._connection.rollback()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _SqliteTransaction:
    def __init__(
        self, in_thread: Callable[..., asyncio.Future[Any]], connection: Callable[[], sqlite3.Connection]
    ) -> None:
        self._in_thread, self._connection = in_thread, connection

    async def select(self, columns: Sequence[Any], where: str, values: Iterable[str]) -> list[Any]:
        among = "IN (SELECT value FROM json_each(?))"
        statement, parameters = _select(columns, where.format(among=among)), (json_text(list(values)),)
        found = await self._in_thread(lambda: self._connection().execute(statement, parameters).fetchall())
        return _reader(tuple(columns), sqlite=True)(found)

    async def run(self, steps: Iterable[Step]) -> None:
        prepared = [one for step in steps if step.rows for one in _sqlite_step(step)]

        def run() -> None:
            connection = self._connection()
            for statement, values in prepared:
                connection.execute(statement, values)

        await self._in_thread(run)


def _select(columns: Sequence[Any], where: str) -> str:
    # PostgreSQL's jsonb as text, whatever decoder the connection was given
    names = ", ".join(
        f"CAST({column.name} AS text) AS {column.name}" if isinstance(column.type, Json) else column.name
        for column in columns
    )
    return f"SELECT {names} FROM {columns[0].table.name} WHERE {where}"  # noqa: S608  (names are ours)


def _sqlite_step(step: Step) -> Iterator[tuple[str, Any]]:
    """Statements with their values. Many rows go into one: with each statement the thread gives the interpreter lock
    away, and getting it back from a busy loop was seen to take longer than the work."""
    if isinstance(step, Change):
        for row in step.rows:
            yield step.statement, {name: _loose(row[name], sqlite=True) for name in step.names}
        return
    columns = _columns(step)
    by_column = [_encoded(step.rows, name, _encoder(step.table.columns[name], sqlite=True)) for name in columns]
    rows = list(zip(*by_column, strict=True))
    for start, size in _portions(len(rows)):
        yield (
            _sqlite_insert(step.table.name, tuple(columns), size, step.conflict),
            list(chain.from_iterable(rows[start : start + size])),
        )


def _portions(rows: int) -> Iterator[tuple[int, int]]:
    """Starts and sizes that add up to the rows; few different sizes, so that their statements stay prepared."""
    start = 0
    for size in _PORTIONS:
        while rows - start >= size:
            yield start, size
            start += size


@lru_cache(maxsize=64)
def _sqlite_insert(table: str, columns: tuple[str, ...], rows: int, conflict: str) -> str:
    places = ", ".join([f"({', '.join('?' * len(columns))})"] * rows)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {places} {conflict}"  # noqa: S608


def _columns(step: Insert) -> list[str]:
    return list(step.rows[0])


def _loose(value: Any, *, sqlite: bool) -> Any:
    """A value of a `Change`, encoded by what it is: it has no column to go by."""
    if isinstance(value, list | dict):
        return json_text(value)
    return sqlite_time(value) if sqlite and isinstance(value, datetime) else value


# --- PostgreSQL ---


class PostgresqlAppender:
    """Appends by asyncpg itself, over an engine of its own: whoever reads must not use up what intake needs."""

    def __init__(self, engine: AsyncEngine, lock: int) -> None:
        self._engine = engine
        # said so, whatever the server's default: what is read after the lock must be what its last holder wrote
        self._begin = f"BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock({lock})"

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        async with self._engine.connect() as pooled:
            driver = await self._begun(pooled)
            try:
                yield _PostgresqlTransaction(driver)
                await driver.execute("COMMIT")
            except BaseException as error:
                await _abandon(driver)
                if not driver.is_closed():
                    raise
                await pooled.invalidate()
                if not isinstance(error, Exception):
                    raise
                # whatever it looked like, it says nothing of the data
                raise ConnectionError(f"the connection to the database was lost ({type(error).__name__})") from error

    async def _begun(self, pooled: AsyncConnection) -> Any:
        """The driver's connection, in a transaction that holds the lock.

        A connection that was lost while nobody used it is made anew: v1 does not send its callbacks a second time.
        """
        driver: Any = (await pooled.get_raw_connection()).driver_connection
        try:
            await driver.execute(self._begin)
        except BaseException as error:
            if isinstance(error, Exception) and driver.is_closed():
                await pooled.invalidate()
                driver = (await pooled.get_raw_connection()).driver_connection
                await driver.execute(self._begin)
            else:
                await _abandon(driver)
                raise
        return driver

    async def close(self) -> None:
        await self._engine.dispose()


async def _abandon(driver: Any) -> None:
    """Ends a transaction that failed; a connection that cannot even do that is closed."""
    try:
        await asyncio.shield(driver.execute("ROLLBACK"))
    except Exception:  # whatever it is, this connection is of no more use
        driver.terminate()


class _PostgresqlTransaction:
    def __init__(self, driver: Any) -> None:
        self._driver = driver

    async def select(self, columns: Sequence[Any], where: str, values: Iterable[str]) -> list[Any]:
        statement = _select(columns, where.format(among="= ANY($1::text[])"))
        return _reader(tuple(columns), sqlite=False)(await self._driver.fetch(statement, list(values)))

    async def run(self, steps: Iterable[Step]) -> None:
        for step in steps:
            if not step.rows:
                continue
            if isinstance(step, Change):
                await self._driver.executemany(*_postgresql_change(step))
            else:
                statement, arrays = _postgresql_insert(step)
                await self._driver.execute(statement, *arrays)


_ARRAYS: Final[tuple[tuple[type, str], ...]] = (
    (UTCDateTime, "timestamptz[]"),
    (BigInteger, "bigint[]"),
    (Integer, "integer[]"),
    (Boolean, "boolean[]"),
    (LargeBinary, "bytea[]"),
)


def _postgresql_insert(step: Insert) -> tuple[str, list[list[Any]]]:
    columns = [step.table.columns[name] for name in _columns(step)]
    names = ", ".join(column.name for column in columns)
    # an array has no jsonb of its own here: it comes as text
    given = ", ".join(f"{column.name}::jsonb" if isinstance(column.type, Json) else column.name for column in columns)
    arrays = ", ".join(f"${place}::{_array(column)}" for place, column in enumerate(columns, 1))
    statement = (
        f"INSERT INTO {step.table.name} ({names}) SELECT {given} FROM unnest({arrays}) AS given ({names}) "  # noqa: S608
        f"{step.conflict}"
    )
    return statement, [_encoded(step.rows, column.name, _encoder(column, sqlite=False)) for column in columns]


def _array(column: Any) -> str:
    return next((array for kind, array in _ARRAYS if isinstance(column.type, kind)), "text[]")


def _postgresql_change(step: Change) -> tuple[str, list[tuple[Any, ...]]]:
    places = {name: f"${place}" for place, name in enumerate(step.names, 1)}
    statement = re.sub(r":(\w+)", lambda named: places[named[1]], step.statement)
    return statement, [tuple(_loose(row[name], sqlite=False) for name in step.names) for row in step.rows]
