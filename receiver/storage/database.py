"""Connections to the database, embedded SQLite or PostgreSQL, with the same SQLAlchemy Core statements for both."""

import re
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    URL,
    ColumnElement,
    Interval,
    Select,
    Subquery,
    TableValuedAlias,
    Text,
    bindparam,
    event,
    func,
    literal,
    make_url,
    select,
    true,
)
from sqlalchemy import text as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from receiver.errors import SettingsError, StorageUnavailable, TooSlow
from receiver.models.columns import json_text
from receiver.storage.bulk import OpenFile, SqliteAppender, Transaction
from receiver.storage.postgresql import STATEMENT_SECONDS, DriverConnection, PostgresqlAppender, PostgresqlServer
from receiver.storage.postgresql_url import postgresql_url

WAL_BYTES: Final = 64 * 1024**2
"""What a write-ahead log has at most once nobody reads from it; it grows to half of that before a checkpoint."""
SQLITE_PRAGMAS: Final = (
    "PRAGMA journal_mode = WAL",
    # NORMAL can lose acknowledged callbacks in a power failure.
    "PRAGMA synchronous = FULL",
    f"PRAGMA busy_timeout = {STATEMENT_SECONDS * 1000:.0f}",
    "PRAGMA foreign_keys = ON",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA cache_size = -32768",
    # In pages: with the default of 1000, every third commit under load was a checkpoint.
    "PRAGMA wal_autocheckpoint = 8000",
    # Without it, the file stays as large as a long reader has once made it.
    f"PRAGMA journal_size_limit = {WAL_BYTES}",
)
# The key of the advisory lock that permits appending to the event log; it is the same in every process.
_LOG_LOCK: Final = 8243108420253738354
# SQLSTATEs, or their classes, of temporary faults of the server, not of the data: connection, login, database, grants,
# resources, locks, operator.
_TRANSIENT_SQLSTATES: Final = ("08", "25", "28", "3D", "40", "42501", "53", "55", "57", "58", "XX")


def driver_url(url: str) -> URL:
    """The URL with the async driver: users write only `sqlite:///…` or `postgresql://…`. Raises SettingsError.

    An error contains no part of the URL that may belong to a password.
    """
    url = url.strip()
    if re.match(r"postgres(ql)?(\+asyncpg)?://", url):
        return postgresql_url(url)
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError):
        raise SettingsError("RECEIVER_DATABASE_URL is not a database URL", topic="settings") from None
    backend = parsed.get_backend_name()
    if backend != "sqlite":
        # Another name may be the beginning of anything.
        named = backend if backend in _OTHERS else "this kind of database"
        raise _refused(f"{named} is not supported; use sqlite:/// or postgresql://")
    if parsed.host:
        raise _refused("SQLite's file follows three slashes or four: sqlite:///relative.db, sqlite:////absolute.db")
    if (parsed.database or "").startswith("file:"):
        raise _refused("give SQLite's file as a path, sqlite:///path, not as a file: URI")
    if parsed.query:
        raise _refused("SQLite takes no parameters; a ? in the name of a file is written %3F")
    if not parsed.database or parsed.database == ":memory:":
        raise _refused("SQLite needs a file; a database in memory is lost with the process")
    return parsed.set(drivername="sqlite+aiosqlite")


_OTHERS: Final = ("cockroachdb", "mariadb", "mssql", "mysql", "oracle", "postgres", "postgresql")


def _refused(reason: str) -> SettingsError:
    return SettingsError(f"RECEIVER_DATABASE_URL: {reason}", topic="settings")


def is_sqlite(url: str) -> bool:
    return driver_url(url).get_backend_name() == "sqlite"


def journal_file(file: Path) -> Path:
    """The journal's file of an SQLite database: `callbacks.db` beside `receiver.db`, else `name-callbacks.db`.

    A separate file has its own write lock: in one file with the processor's tables the rate of accepted callbacks was
    seen to fall to a third, and their p99 to rise to 610 ms.
    """
    name = "callbacks" if file.stem == "receiver" else f"{file.stem}-callbacks"
    return file.with_name(name + file.suffix)


class Database:
    """The connections to one database, and the SQL that differs between SQLite and PostgreSQL."""

    def __init__(self, url: str, *, pool_size: int = 8) -> None:
        self.url = driver_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.file = Path(self.url.database or "") if self.is_sqlite else None
        self.journal_file = journal_file(self.file) if self.file else None
        self._server = None if self.is_sqlite else PostgresqlServer(self.url)
        self._appender: SqliteAppender | PostgresqlAppender
        self._turn: AbstractAsyncContextManager[None]
        if self._server is not None:
            self.engine = self._journal_engine = self._server.engine(pool_size)
            self._appender, self._turn = PostgresqlAppender(self._server, _LOG_LOCK), nullcontext()
        else:
            assert self.journal_file is not None  # noqa: S101
            self.engine = _sqlite_engine(self.url, attached=self.journal_file)
            self._journal_engine = _sqlite_engine(self.url.set(database=str(self.journal_file)))
            self._appender = appender = SqliteAppender(self.url.database or "", SQLITE_PRAGMAS)
            self._turn = appender.turn

    @property
    def is_pooled(self) -> bool:
        """Whether a connection found out that a pooler such as PgBouncer stands before the server."""
        return self._server is not None and self._server.is_pooled

    async def close(self) -> None:
        await self._appender.close()
        await self.engine.dispose()
        await self._journal_engine.dispose()

    @asynccontextmanager
    async def appending(self) -> AsyncIterator[Transaction]:
        """The transaction that may append to the event log and fold; only one of them runs at a time.

        Positions therefore become visible in rising order, and no other transaction changes the messages that it reads.
        """
        with unavailable():
            async with self._appender.transaction() as transaction:
                yield transaction

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection for statements that only read, also the journal. On SQLite it has one snapshot of each file."""
        with unavailable():
            async with self.engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def searching(self, seconds: float | None = None) -> AsyncIterator[AsyncConnection]:
        """As `reading`, for what people filter. Raises TooSlow after so many seconds, on PostgreSQL of one statement.

        By default PostgreSQL has `STATEMENT_SECONDS`, and SQLite no limit. The database itself ends the statement, so
        that the connection stays in use.
        """
        if seconds is None and not self.is_sqlite:
            seconds = STATEMENT_SECONDS
        async with self.reading() as connection:
            await connection.execution_options(receiver_seconds=seconds)
            try:
                yield connection
            except DBAPIError as error:
                if not _ran_out_of_time(error):
                    raise
                raise TooSlow("the search takes too long: give a shorter time, or a filter that fewer match") from error

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction for statements that write; on SQLite it takes the write lock at once."""
        with unavailable():
            async with self._turn, self.engine.connect() as connection:
                await connection.execution_options(receiver_writes=True)
                async with connection.begin():
                    yield connection

    @asynccontextmanager
    async def writing_journal(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that removes from the journal. Keep it small: on SQLite callbacks wait for it."""
        with unavailable():
            async with self._journal_engine.connect() as connection:
                await connection.execution_options(receiver_writes=True)
                async with connection.begin():
                    yield connection

    @asynccontextmanager
    async def migrating(self) -> AsyncIterator[AsyncConnection]:
        """A transaction for changes of the schema: without a time limit, and on SQLite without foreign keys.

        SQLite changes keys by copying a table, and dropping the old one must not cascade to other tables.
        """
        engine = (
            _sqlite_engine(self.url, foreign_keys=False)
            if self._server is None
            else self._server.engine(1, bounded=False)
        )
        try:
            with unavailable():
                async with engine.connect() as connection:
                    await connection.execution_options(receiver_writes=True)
                    async with connection.begin():
                        yield connection
        finally:
            await engine.dispose()

    def driver_connection(self) -> "DriverConnection":
        """A connection of PostgreSQL's driver, outside of the pool, so that readers do not use it up for callbacks."""
        assert self._server is not None  # noqa: S101
        return DriverConnection(self._server)

    async def lock_log(self, connection: AsyncConnection) -> None:
        """Locks the event log against appends until this transaction ends; SQLite's write lock already does that."""
        if not self.is_sqlite:
            await connection.execute(sql(f"SELECT pg_advisory_xact_lock({_LOG_LOCK})"))

    def one_of(self, column: ColumnElement[Any], values: Iterable[Any]) -> ColumnElement[bool]:
        """Whether `column` is one of these values. They are one parameter: a statement has at most 32,766."""
        if self.is_sqlite:
            listed = func.json_each(bindparam(None, json_text(list(values)), type_=Text)).table_valued("value")
            return column.in_(select(listed.c.value))
        return column == func.any(bindparam(None, list(values), type_=postgresql.ARRAY(column.type)))

    def listed(self, name: str) -> TableValuedAlias:
        """The texts of the parameter `name`, whose value `self.texts` makes, as rows with a column `value`."""
        if self.is_sqlite:
            return func.json_each(bindparam(name, type_=Text)).table_valued("value")
        return func.unnest(bindparam(name, type_=postgresql.ARRAY(Text))).table_valued("value").render_derived()

    def for_each(self, name: str, find: Callable[[ColumnElement[str]], Select[Any]]) -> Subquery:
        """The rows of `find` for each text of the parameter `name`, whose value `self.texts` makes.

        Each text is looked up on its own: without statistics, the planner would scan the whole table for all of them.
        """
        listed = self.listed(name)
        found = find(listed.c.value)
        if self.is_sqlite:
            return found.subquery()
        each = found.correlate(listed).offset(0).lateral()
        return select(each).join_from(listed, each, true()).subquery()

    def texts(self, values: Iterable[str]) -> Any:
        listed = list(values)
        return json_text(listed) if self.is_sqlite else listed

    def insert(self, table: Any) -> Any:
        """An INSERT with `on_conflict_do_update` and `on_conflict_do_nothing`."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def clock(self, plus: float = 0.0) -> ColumnElement[Any]:
        """The database's clock, `plus` seconds ahead. It is used because the clocks of processes may differ."""
        if self.is_sqlite:
            # strftime gives milliseconds; the column's text has microseconds.
            return func.strftime("%Y-%m-%dT%H:%M:%f", "now", f"{plus:+.3f} seconds").concat("000Z")
        return func.clock_timestamp() + literal(timedelta(seconds=plus), Interval)

    def moved(self, moment: ColumnElement[Any], by: timedelta) -> ColumnElement[Any]:
        """A time moved by a span; null stays null."""
        if self.is_sqlite:
            return func.strftime("%Y-%m-%dT%H:%M:%f", moment, f"{by.total_seconds():+.3f} seconds").concat("000Z")
        return moment + literal(by, Interval)

    async def reference_time(self, connection: AsyncConnection, clock: Callable[[], datetime]) -> datetime:
        """The time that all processes with this database agree on: the server's, with SQLite that of this machine."""
        if self.is_sqlite:
            return clock()
        moment: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
        return moment.astimezone(UTC)


@contextmanager
def unavailable() -> Iterator[None]:
    """Turns temporary faults of the database into `StorageUnavailable`; errors of the data pass unchanged."""
    try:
        yield
    except _database_errors() as error:
        if _is_transient(error):
            raise StorageUnavailable(_driver_message(error)) from error
        raise


def is_data_error(error: Exception) -> bool:
    """Whether a driver refuses the values themselves, and would do so every time.

    A duplicate key is not a data error: it means that a sequence was set back or an index is damaged.
    """
    error = getattr(error, "orig", None) or error
    if isinstance(error, sqlite3.IntegrityError):
        return error.sqlite_errorname in _DATA_CONSTRAINTS
    if isinstance(error, sqlite3.DataError | OverflowError | UnicodeEncodeError):
        return True
    sqlstate = getattr(error, "sqlstate", None)
    return isinstance(sqlstate, str) and sqlstate.startswith(_DATA_SQLSTATES)


_DATA_CONSTRAINTS: Final = ("SQLITE_CONSTRAINT_NOTNULL", "SQLITE_CONSTRAINT_CHECK", "SQLITE_CONSTRAINT_DATATYPE")
# Data exception; not null; check; program limit exceeded.
_DATA_SQLSTATES: Final = ("22", "23502", "23514", "54")


def _driver_message(error: Exception) -> str:
    """The first line of the driver's error, without SQLAlchemy's statement and link."""
    driver_error = getattr(error, "orig", None) or error
    reason = str(driver_error).partition("\n")[0] or type(driver_error).__name__
    # SQLAlchemy's class of the error is no part of what happened.
    reason = re.sub(r"^<class '[\w.]+'>: ", "", reason)
    remedy = _REMEDIES.get(getattr(driver_error, "sqlstate", None) or "")
    return f"{reason}; {remedy}" if remedy else reason


# Faults that waiting does not end, by SQLSTATE: the password, the user, the database, and a grant.
_REMEDIES: Final = {
    "28P01": "correct the password in RECEIVER_DATABASE_URL",
    "28000": "correct the user in RECEIVER_DATABASE_URL, or let it in (pg_hba.conf)",
    "3D000": "create it (createdb), or correct its name in RECEIVER_DATABASE_URL",
    "42501": "grant it to the user in RECEIVER_DATABASE_URL",
}


def _is_transient(error: Exception) -> bool:
    if isinstance(error, _connection_errors()):
        return True
    if isinstance(error, DBAPIError) and (
        error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    ):
        return True
    sqlstate = getattr(getattr(error, "orig", error), "sqlstate", None)
    return isinstance(sqlstate, str) and sqlstate.startswith(_TRANSIENT_SQLSTATES)


def _ran_out_of_time(error: DBAPIError) -> bool:
    """Whether the database ended a statement: because its time was over, or an operator cancelled it."""
    driver_error = error.orig
    return (
        getattr(driver_error, "sqlstate", None) == "57014"
        or getattr(driver_error, "sqlite_errorname", None) == "SQLITE_INTERRUPT"
    )


@cache
def _connection_errors() -> tuple[type[Exception], ...]:
    # Imported when an error is looked at: commands on SQLite start without the driver of PostgreSQL.
    import asyncpg

    return (
        OSError,
        PoolTimeoutError,
        sqlite3.OperationalError,
        asyncpg.InterfaceError,
        # asyncpg may raise this if the server closes the connection between two statements.
        asyncpg.InternalClientError,
    )


@cache
def _database_errors() -> tuple[type[Exception], ...]:
    import asyncpg

    return (*_connection_errors(), DBAPIError, sqlite3.Error, asyncpg.PostgresError)


def _sqlite_engine(url: URL, *, attached: Path | None = None, foreign_keys: bool = True) -> AsyncEngine:
    """An engine for a file; the file `attached`, if it exists, is attached for reading as `journal`.

    Each transaction begins with a check that the open files are still those with their names: SQLite would read a
    removed file until the next start. That takes a few microseconds.
    """
    engine = create_async_engine(
        url,
        pool_size=4,
        max_overflow=0,
        pool_timeout=STATEMENT_SECONDS,
        hide_parameters=True,
        connect_args={"uri": True},
    )

    def prepare(connection: Any, record: Any) -> None:
        opened = record.info[_OPENED] = [OpenFile(Path(url.database or ""))]
        deadline = record.info[_DEADLINE] = _Deadline()
        connection.run_async(lambda driver: driver.set_progress_handler(deadline.is_over, _INSTRUCTIONS))
        # We send BEGIN ourselves: by default the driver begins late and without the write lock.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in SQLITE_PRAGMAS:
            cursor.execute(pragma)
        if not foreign_keys:
            cursor.execute("PRAGMA foreign_keys = OFF")
        if attached is not None and attached.exists():
            # Read-only: every BEGIN IMMEDIATE locks a file that is attached for writing.
            cursor.execute("ATTACH ? AS journal", (f"{attached.absolute().as_uri()}?mode=ro",))
            opened.append(OpenFile(attached))
        cursor.close()

    event.listen(engine.sync_engine, "do_connect", _open_existing)
    event.listen(engine.sync_engine, "connect", prepare)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _open_existing(_dialect: Any, _record: Any, arguments: list[Any], _options: Any) -> None:
    """Opens an existing file only: a connection must not create a removed file again, empty."""
    arguments[0] = f"{Path(arguments[0]).absolute().as_uri()}?mode=rw"


def _begin_sqlite(connection: Any) -> None:
    main, *attached = connection.info[_OPENED]
    for file in (main, *attached):
        file.check()
    options = connection.get_execution_options()
    connection.info[_DEADLINE].set(options.get("receiver_seconds"))
    writes = options.get("receiver_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
    # The pragma of the journal mode has opened the WAL of the main file. That of an attached file is opened by the
    # first read, and may be removed before by the last one who closes the file.
    main.note_wal()


class _Deadline:
    """When the present transaction of a connection ends what it runs; SQLite asks for it while a statement runs."""

    def __init__(self) -> None:
        self._at: float | None = None

    def set(self, seconds: float | None) -> None:
        self._at = None if seconds is None else time.monotonic() + seconds

    def is_over(self) -> bool:
        return self._at is not None and time.monotonic() > self._at


# So many instructions of SQLite take a few milliseconds. Each question waits for Python's lock.
_INSTRUCTIONS: Final = 50_000

# The keys of the open files and of the deadline in the info of a connection.
_OPENED: Final = "receiver.opened"
_DEADLINE: Final = "receiver.deadline"


_COST: Final = {
    "fsync": "a crash of the machine can destroy the database",
    "full_page_writes": "a crash of the machine can damage the database",
    "synchronous_commit": "callbacks that were answered 200 can be lost when the server crashes",
}
_SHOW: Final = sql(
    "SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit')"
)


async def weaknesses(database: Database) -> list[str]:
    """A line for each durability setting of the PostgreSQL server that is off; on SQLite we set them ourselves."""
    if database.is_sqlite:
        return []
    async with database.reading() as connection:
        rows = (await connection.execute(_SHOW)).all()
    return [f"PostgreSQL runs with {row.name} = off: {_COST[row.name]}" for row in sorted(rows) if row.setting == "off"]
