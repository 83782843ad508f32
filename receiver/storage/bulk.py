"""The transaction that appends to the event log: one at a time per database; it runs for every batch of callbacks.

It uses the database drivers directly, with SQL text made from the tables: SQLAlchemy's work for each value and
aiosqlite's thread switches for each statement were measured at more than half of the path. SQLite runs in a thread of
its own; PostgreSQL, in a module of its own, takes the rows of each table as arrays in one statement, or by COPY if no
row can conflict.

Rows are tuples in the order of their columns: JSON as text, enumerations as plain `str`, and times and flags in the
form that `Transaction.spelling` gives them. SQLite's driver looks up an adapter for every value that is not exactly a
`str`, an `int` or the like, which was measured at 0.8 us for each.
"""

import asyncio
import os
import sqlite3
from collections import namedtuple
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import orjson
from sqlalchemy import Table

from receiver.models.columns import Json, UTCDateTime, json_text, sqlite_time

Decoder = Callable[[Any], Any]
Rows = Sequence[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class InsertMany:
    """Inserts rows into a table. `conflict` is the ON CONFLICT clause, in SQL that both databases understand."""

    table: Table
    columns: tuple[str, ...]
    rows: Rows
    conflict: str = ""


@dataclass(frozen=True, slots=True)
class ExecuteMany:
    """Executes a statement with `?` parameters once for each row. It is slow, so use it for rare statements only."""

    statement: str
    rows: Rows


Step = InsertMany | ExecuteMany


@dataclass(frozen=True, slots=True)
class Spelling:
    """Converts times and flags to the form that a database's driver takes."""

    time: Callable[[datetime | None], Any]
    flag: Callable[[bool], Any]


class Transaction(Protocol):
    """An appending transaction, which holds the lock of the event log."""

    @property
    def spelling(self) -> Spelling:
        """Converts times and flags to the form that the database's driver takes."""
        ...

    async def select(
        self, columns: Sequence[Any], where: str, values: Iterable[str], *parameters: Any, limit: int = -1
    ) -> list[Any]:
        """Selects the rows of the columns' table that meet `where`.

        `where` begins with a column and `{among}`, which stands for "is one of the values"; the other parameters are
        `?`.
        """
        ...

    async def fetch(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a statement with `?` parameters, as the driver returns them."""
        ...

    async def execute(self, statement: str, parameters: Sequence[Any] = ()) -> int:
        """Executes a statement with `?` parameters; returns how many rows it changed."""
        ...

    async def run(self, steps: Iterable[Step]) -> None:
        """Runs the steps in order; a step without rows is skipped."""
        ...


def upsert(table: Table, keep_if_null: Iterable[str] = (), untouched: Iterable[str] = ()) -> str:
    """The ON CONFLICT clause by which a row replaces the row with the same primary key.

    A null in a column of `keep_if_null` does not replace the stored value; the columns of `untouched` never change.
    """
    key = [column.name for column in table.primary_key.columns]
    changes = [
        f"{name} = "
        + (f"coalesce(excluded.{name}, {table.name}.{name})" if name in keep_if_null else f"excluded.{name}")
        for name in (column.name for column in table.columns)
        if name not in key and name not in untouched
    ]
    return f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {', '.join(changes)}"


# --- values ---


def _decoder(column: Any, *, sqlite: bool) -> Decoder | None:
    if isinstance(column.type, Json):
        return orjson.loads
    return datetime.fromisoformat if sqlite and isinstance(column.type, UTCDateTime) else None


class _Reader:
    """Turns the driver's rows into rows with attributes."""

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
def row_reader(columns: tuple[Any, ...], *, sqlite: bool) -> _Reader:
    return _Reader(columns, sqlite=sqlite)


# --- SQLite ---


class _SqliteTimes(dict[datetime | None, str | None]):
    """Times as SQLite's text. The rows of a callback repeat a few times, so a transaction formats each of them once."""

    def __missing__(self, moment: datetime | None) -> str | None:
        text = self[moment] = None if moment is None else sqlite_time(moment)
        return text


class FileReplaced(sqlite3.OperationalError):
    """The open file is no longer the file with its name: rows written to it would be lost at the next start."""


class OpenFile:
    """Checks that an open SQLite file and its WAL are still the files with their names.

    SQLite itself never notices: it goes on writing to a removed file, or to the WAL of a truncated one.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._wal = file, file.with_name(f"{file.name}-wal")
        self._identity, self._size = _identity(file)
        self._wal_identity: _FileIdentity | None = None

    def note_wal(self) -> None:
        """Notes that a transaction has begun: from now on there is a WAL, until the connection is closed."""
        if self._wal_identity is None:
            self._wal_identity, _ = _identity(self._wal)

    def check(self) -> None:
        """Raises FileReplaced if a file was removed, replaced or truncated."""
        identity, size = _identity(self._file)
        # We never make the file smaller: the checkpoint of a database that is never vacuumed only extends it.
        if identity is None or identity != self._identity or size < self._size:
            raise FileReplaced(_replaced(self._file))
        self._size = size
        if self._wal_identity is not None and _identity(self._wal)[0] != self._wal_identity:
            raise FileReplaced(_replaced(self._wal))


_FileIdentity = tuple[int, int]


def _identity(file: Path) -> tuple[_FileIdentity | None, int]:
    """The device and the inode of a file (None: the file cannot be found), and its size in bytes."""
    try:
        found = os.stat(file)  # noqa: PTH116  (a third of the time of Path.stat, and it runs in every transaction)
    except OSError:
        return None, 0
    return (found.st_dev, found.st_ino), found.st_size


def _replaced(file: Path) -> str:
    return f"{file} was removed, replaced or truncated under the running receiver; restart it"


class SqliteConnection:
    """A connection to an existing SQLite file, with a thread of its own; it is opened at its first use."""

    def __init__(self, file: Path, pragmas: Sequence[str] = (), *, thread: str, mode: str = "rw") -> None:
        self._file, self._pragmas, self._mode = file, pragmas, mode
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=thread)
        self._connection: sqlite3.Connection | None = None
        self._opened: OpenFile | None = None

    def in_thread(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """Calls a function in the thread of the connection."""
        return asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def close(self) -> None:
        await self.in_thread(self._close)
        self._thread.shutdown(wait=False)

    # what follows runs in the thread

    def opened(self) -> sqlite3.Connection:
        if self._connection is None:
            # Not `rwc`: a file that was removed must not be created again, empty.
            uri = f"{self._file.absolute().as_uri()}?mode={self._mode}"
            connection = sqlite3.connect(uri, uri=True, isolation_level=None)
            self._connection, self._opened = _prepared(connection, self._pragmas), OpenFile(self._file)
        return self._connection

    def begun(self) -> sqlite3.Connection:
        """The connection, in a transaction with the write lock; raises FileReplaced if the file changed."""
        connection = self.opened()
        assert self._opened is not None  # noqa: S101
        if not connection.in_transaction:
            self._opened.check()
            connection.execute("BEGIN IMMEDIATE")
            self._opened.note_wal()
        return connection

    def commit(self) -> None:
        self.begun().execute("COMMIT")

    def roll_back(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            self._connection.rollback()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _prepared(connection: sqlite3.Connection, pragmas: Sequence[str]) -> sqlite3.Connection:
    """The connection with its pragmas set; closes the connection if that fails."""
    try:
        for pragma in pragmas:
            connection.execute(pragma)
    except BaseException:
        connection.close()
        raise
    return connection


class SqliteAppender:
    """Appends through a connection and a thread of its own."""

    def __init__(self, path: str, pragmas: Sequence[str]) -> None:
        self._connection = SqliteConnection(Path(path), pragmas, thread="receiver-sqlite")
        # Writers of this process wait here, in order: SQLite's own busy handler picks an arbitrary one.
        self.turn = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A transaction that begins with its first statement: that saves a thread switch."""
        async with self.turn:
            try:
                yield _SqliteTransaction(self._connection)
                await self._connection.in_thread(self._connection.commit)
            except BaseException:
                await asyncio.shield(self._connection.in_thread(self._connection.roll_back))
                raise

    async def close(self) -> None:
        await self._connection.close()


class _SqliteTransaction:
    def __init__(self, connection: SqliteConnection) -> None:
        self._in_thread, self._connection = connection.in_thread, connection.begun
        self.spelling = Spelling(time=_SqliteTimes().__getitem__, flag=int)

    async def select(
        self, columns: Sequence[Any], where: str, values: Iterable[str], *parameters: Any, limit: int = -1
    ) -> list[Any]:
        among = "IN (SELECT value FROM json_each(?))"
        statement = f"{select_text(columns, where.format(among=among))} LIMIT {limit}"
        found = await self.fetch(statement, (json_text(list(values)), *parameters))
        return row_reader(tuple(columns), sqlite=True)(found)

    async def fetch(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return await self._in_thread(lambda: self._connection().execute(statement, parameters).fetchall())  # type: ignore[no-any-return]

    async def execute(self, statement: str, parameters: Sequence[Any] = ()) -> int:
        return await self._in_thread(lambda: self._connection().execute(statement, parameters).rowcount)  # type: ignore[no-any-return]

    async def run(self, steps: Iterable[Step]) -> None:
        prepared = [(_sqlite_statement(step), step.rows) for step in steps if step.rows]

        def run() -> None:
            connection = self._connection()
            for statement, rows in prepared:
                connection.executemany(statement, rows)

        await self._in_thread(run)


def select_text(columns: Sequence[Any], where: str) -> str:
    # PostgreSQL's jsonb as text, whatever decoder the connection has.
    names = ", ".join(
        f"CAST({column.name} AS text) AS {column.name}" if isinstance(column.type, Json) else column.name
        for column in columns
    )
    return f"SELECT {names} FROM {columns[0].table.name} WHERE {where}"  # noqa: S608  (names are ours)


def _sqlite_statement(step: Step) -> str:
    if isinstance(step, ExecuteMany):
        return step.statement
    places = ", ".join("?" * len(step.columns))
    return f"INSERT INTO {step.table.name} ({', '.join(step.columns)}) VALUES ({places}) {step.conflict}"  # noqa: S608


# --- PostgreSQL ---
