"""Connections to the database, embedded SQLite or PostgreSQL, with the same SQLAlchemy Core statements for both."""

import sqlite3
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

from receiver.errors import SettingsError, StorageUnavailable
from receiver.models.columns import json_text
from receiver.storage.bulk import SqliteAppender, Transaction
from receiver.storage.postgresql import STATEMENT_SECONDS, DriverConnection, PostgresqlAppender, postgresql_engine

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
)
# The key of the advisory lock that permits appending to the event log; it is the same in every process.
_LOG_LOCK: Final = 8243108420253738354
# SQLSTATEs, or their classes, of temporary faults of the server, not of the data: connection, login, database, grants,
# resources, locks, operator.
_TRANSIENT_SQLSTATES: Final = ("08", "25", "28", "3D", "40", "42501", "53", "55", "57", "58", "XX")


def driver_url(url: str) -> URL:
    """The URL with the async driver: users write only `sqlite:///…` or `postgresql://…`. Raises SettingsError."""
    try:
        parsed = make_url(url)
    except SQLAlchemyError as error:
        raise SettingsError("RECEIVER_DATABASE_URL is not a database URL", topic="settings") from error
    match parsed.get_backend_name():
        case "sqlite" if parsed.database and parsed.database != ":memory:":
            return parsed.set(drivername="sqlite+aiosqlite")
        case "sqlite":
            raise SettingsError(
                "RECEIVER_DATABASE_URL: SQLite needs a file; a database in memory is lost with the process",
                topic="settings",
            )
        case "postgresql" | "postgres":
            return _for_asyncpg(parsed)
        case other:
            raise SettingsError(
                f"RECEIVER_DATABASE_URL: {other} is not supported; use sqlite:/// or postgresql://", topic="settings"
            )


# libpq's parameters as hosts of databases print them. These have nothing to set here: asyncpg authenticates without
# channel binding, and the timeouts and the name of a session are ours.
_NOT_NEEDED: Final = frozenset(
    {
        "application_name",
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "gssencmode",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "tcp_user_timeout",
    }
)
_TAKEN: Final = {
    "host": "host",
    "passfile": "passfile",
    "password": "password",
    "port": "port",
    "prepared_statement_cache_size": "prepared_statement_cache_size",
    "ssl": "ssl",
    "sslmode": "ssl",
    "target_session_attrs": "target_session_attrs",
    "user": "user",
}


def _for_asyncpg(url: URL) -> URL:
    """The URL for asyncpg, from the one that libpq's programs take. Raises SettingsError for an unknown parameter."""
    query = {}
    for name, value in url.query.items():
        if name in _TAKEN:
            query[_TAKEN[name]] = value
        elif name not in _NOT_NEEDED:
            raise SettingsError(f"RECEIVER_DATABASE_URL: the parameter {name} is not supported", topic="settings")
    return url.set(drivername="postgresql+asyncpg", query=query)


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
        if self.journal_file:
            self.engine = _sqlite_engine(self.url, attached=self.journal_file)
            self._journal_engine = _sqlite_engine(self.url.set(database=str(self.journal_file)))
        else:
            self.engine = self._journal_engine = postgresql_engine(self.url, pool_size)
        self._appender: SqliteAppender | PostgresqlAppender
        self._turn: AbstractAsyncContextManager[None]
        if self.is_sqlite:
            self._appender = appender = SqliteAppender(self.url.database or "", SQLITE_PRAGMAS)
            self._turn = appender.turn
        else:
            self._appender, self._turn = (
                PostgresqlAppender(postgresql_engine(self.url, 1), _LOG_LOCK),
                nullcontext(),
            )

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
            if self.is_sqlite
            else postgresql_engine(self.url, 1, bounded=False)
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
        return DriverConnection(postgresql_engine(self.url, 1))

    async def lock_log(self, connection: AsyncConnection) -> None:
        """Locks the event log against appends until this transaction ends; SQLite's write lock already does that."""
        if not self.is_sqlite:
            await connection.execute(sql(f"SELECT pg_advisory_xact_lock({_LOG_LOCK})"))

    def among(self, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        """Whether `column` is one of the texts of the single parameter `name`, whose value `self.texts` makes."""
        if self.is_sqlite:
            return column.in_(select(self.listed(name).c.value))
        return column == func.any(bindparam(name, type_=postgresql.ARRAY(Text)))

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
    return str(driver_error).partition("\n")[0] or type(driver_error).__name__


def _is_transient(error: Exception) -> bool:
    if isinstance(error, _connection_errors()):
        return True
    if isinstance(error, DBAPIError) and (
        error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    ):
        return True
    sqlstate = getattr(getattr(error, "orig", error), "sqlstate", None)
    return isinstance(sqlstate, str) and sqlstate.startswith(_TRANSIENT_SQLSTATES)


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
    """An engine for a file; the file `attached`, if it exists, is attached for reading as `journal`."""
    engine = create_async_engine(
        url,
        pool_size=4,
        max_overflow=0,
        pool_timeout=STATEMENT_SECONDS,
        hide_parameters=True,
        connect_args={"uri": True},
    )

    def prepare(connection: Any, _record: Any) -> None:
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
        cursor.close()

    event.listen(engine.sync_engine, "do_connect", _open_existing)
    event.listen(engine.sync_engine, "connect", prepare)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _open_existing(_dialect: Any, _record: Any, arguments: list[Any], _options: Any) -> None:
    """Opens an existing file only: a connection must not create a removed file again, empty."""
    arguments[0] = f"{Path(arguments[0]).absolute().as_uri()}?mode=rw"


def _begin_sqlite(connection: Any) -> None:
    writes = connection.get_execution_options().get("receiver_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


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
