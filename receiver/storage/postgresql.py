"""PostgreSQL through its driver: the transaction that appends to the event log, and connections outside of the pool."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import cache, lru_cache
from typing import Any, Final, TypeVar

import orjson
from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Integer,
    LargeBinary,
    Table,
    event,
)
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from receiver.models.columns import Json, UTCDateTime, json_text
from receiver.storage.bulk import ExecuteMany, Spelling, Step, Transaction, row_reader, select_text
from receiver.storage.postgresql_url import DEFAULT_PORT, POOLER

Result = TypeVar("Result")

# No statement waits longer for the database: a callback must be answered well within Bandwidth's ten seconds.
STATEMENT_SECONDS: Final = 4.0

_SESSION: Final = {
    "application_name": "receiver",
    "timezone": "UTC",
    # Generic plans made while the tables were empty stay in use; they were seen to cost more than half of the rate.
    "plan_cache_mode": "force_custom_plan",
    "lock_timeout": f"{STATEMENT_SECONDS:.0f}s",
    "idle_in_transaction_session_timeout": "10s",
    "tcp_user_timeout": "5s",
    "synchronous_commit": "on",
    "jit": "off",
}


# A session behind a connection pooler is another one in each transaction, so these are set for the transaction. The
# others of `_SESSION` need a session of one's own, or have no effect on statements without a name.
_OF_TRANSACTION: Final = ("lock_timeout", "idle_in_transaction_session_timeout", "synchronous_commit", "jit")
# Poolers track these two, and give them to the session that a transaction gets.
_TRACKED_BY_POOLERS: Final = ("application_name", "timezone")
_SET_LOCAL: Final = "; ".join(f"SET LOCAL {name} = '{_SESSION[name]}'" for name in _OF_TRANSACTION)
_SET_LOCAL_BY_QUERY: Final = "SELECT " + ", ".join(
    f"set_config('{name}', '{_SESSION[name]}', true)" for name in _OF_TRANSACTION
)


class PostgresqlServer:
    """The server, or the servers, of a URL: makes engines for it.

    `is_pooled` says that a connection pooler such as PgBouncer stands before it, which the first connection finds out.
    A pooler may give each transaction another session, so nothing then outlives a transaction: statements have no names
    and settings hold for the transaction. `demotions` counts how often a server took no writes: connections that were
    opened before lead to a server whose rows no longer change.
    """

    def __init__(self, url: URL) -> None:
        self.is_pooled = url.query.get(POOLER) == "true"
        self._url = url.difference_update_query([POOLER])
        # The place of the host that answered last.
        self._host = 0
        self.demotions = 0

    def engine(self, pool_size: int, *, bounded: bool = True) -> AsyncEngine:
        engine = create_async_engine(
            self._url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=STATEMENT_SECONDS,
            hide_parameters=True,
            json_serializer=json_text,
            json_deserializer=orjson.loads,
            connect_args={
                "async_creator_fn": self._connect,
                "command_timeout": STATEMENT_SECONDS + 1 if bounded else None,
            },
        )
        event.listen(engine.sync_engine, "do_connect", self._open)
        event.listen(engine.sync_engine, "begin", self._begin)
        event.listen(engine.sync_engine, "handle_error", self._discard_if_useless)
        return engine

    def is_demoted(self, error: BaseException) -> bool:
        """Whether the server of a connection takes no writes, which is counted.

        After a failover it is the standby, or the old primary. The connection would stay there for as long as it is
        open, while a new one may lead to the new primary.
        """
        is_demoted = getattr(getattr(error, "orig", error), "sqlstate", None) == "25006"
        self.demotions += is_demoted
        return is_demoted

    def begin(self, *statements: str) -> str:
        """The statements that begin a transaction, for the driver."""
        return "; ".join(
            ("BEGIN ISOLATION LEVEL READ COMMITTED", *([_SET_LOCAL] if self.is_pooled else ()), *statements)
        )

    def _open(self, dialect: Any, _record: Any, _arguments: Any, options: dict[str, Any]) -> Any:
        """Opens a connection; if that finds a pooler, which nobody expected, another one for it."""
        was_pooled = self.is_pooled
        connection = dialect.connect(**options, **self._options())
        if self.is_pooled == was_pooled:
            return connection
        connection.close()
        return dialect.connect(**options, **self._options())

    def _options(self) -> dict[str, Any]:
        if not self.is_pooled:
            return {"server_settings": _SESSION}
        return {
            "server_settings": {name: _SESSION[name] for name in _TRACKED_BY_POOLERS},
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
        }

    def _discard_if_useless(self, context: ExceptionContext) -> None:
        error = context.original_exception
        if error is not None and (isinstance(error, TimeoutError) or self.is_demoted(error)):
            context.is_disconnect = True

    def _begin(self, connection: Any) -> None:
        if self.is_pooled:
            connection.exec_driver_sql(_SET_LOCAL_BY_QUERY)
        seconds = connection.get_execution_options().get("receiver_seconds")
        if seconds is not None:
            connection.exec_driver_sql(
                f"SELECT set_config('statement_timeout', '{max(1, round(seconds * 1000))}', true)"
            )

    async def _connect(self, **options: Any) -> Any:
        """The driver's connection to the first host that can be used; each host has its share of the time."""
        hosts = _listed(options.pop("host", None))
        ports = _listed(options.pop("port", None))
        failures = []
        for attempt in range(len(hosts)):
            place = (self._host + attempt) % len(hosts)
            try:
                connection = await self._connect_to(
                    hosts[place], ports[place], timeout=STATEMENT_SECONDS / len(hosts), **options
                )
            except _connection_errors() as error:
                if len(hosts) == 1:
                    raise
                failures.append(str(error))
            else:
                self._host = place
                return connection
        raise ConnectionError("; ".join(failures))

    async def _connect_to(self, host: str | None, port: int | None, **options: Any) -> Any:
        import asyncpg

        try:
            connection = await self._connect_directly(host, port, **options)
            if not self.is_pooled:
                self.is_pooled = await _is_pooled(connection)
        except TimeoutError:
            raise ConnectionError(f"{_address(host, port)}: no answer within {options['timeout']:.0f} s") from None
        except asyncpg.TargetServerAttributeNotMatched:
            raise ConnectionError(f"{_address(host, port)}: the server takes no writes") from None
        except OSError as error:
            raise ConnectionError(f"{_address(host, port)}: {_reason(error)}") from error
        return connection

    async def _connect_directly(self, host: str | None, port: int | None, **options: Any) -> Any:
        import asyncpg

        given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
        try:
            return await asyncpg.connect(**given, **options)
        except asyncpg.ProtocolViolationError as error:
            if "startup parameter" not in str(error):
                raise
            self.is_pooled = True
            return await asyncpg.connect(**given, **options | {"server_settings": {}})


async def _is_pooled(connection: Any) -> bool:
    """Whether a new connection leads to a pooler; closes the connection if that cannot be found out."""
    # A pooler gives numbers of its own to its sessions. The status tells how many rows there are; a query with rows
    # would leave a named statement behind in a session of the pooler.
    ours = f"SELECT WHERE pg_backend_pid() = {connection.get_server_pid()}"
    try:
        return bool(await connection.execute(ours) != "SELECT 1")
    except BaseException:
        # Nobody else has it yet: a client that leaves at this moment would leave a session behind.
        connection.terminate()
        raise


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _address(host: str | None, port: int | None) -> str:
    if host is not None and host.startswith("/"):
        return f"database server at {host}"
    return f"database server {host or 'localhost'} port {port or DEFAULT_PORT}"


def _reason(error: OSError) -> str:
    """Why a connection failed, without the number that only programs read."""
    if error.errno is not None and error.errno > 0 and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__


@cache
def _connection_errors() -> tuple[type[Exception], ...]:
    # Imported when it is needed: commands on SQLite start without the driver of PostgreSQL.
    import asyncpg

    return (OSError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError, asyncpg.TooManyConnectionsError)


class PostgresqlAppender:
    """Appends with asyncpg directly, over an engine of its own: readers must not use up the intake's connection."""

    def __init__(self, server: PostgresqlServer, lock: int) -> None:
        self._server = server
        self._engine = server.engine(1)
        self._lock = f"SELECT pg_advisory_xact_lock({lock})"

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        async with self._engine.connect() as pooled:
            driver = await self._begun(pooled)
            try:
                yield _PostgresqlTransaction(driver)
                await driver.execute("COMMIT")
            except BaseException as error:
                await _abandon(driver, error)
                if not driver.is_closed() and not self._server.is_demoted(error):
                    raise
                await pooled.invalidate()
                if not isinstance(error, Exception):
                    raise
                # Whatever the error was, the lost connection is the cause, and not the data.
                raise ConnectionError(f"the connection to the database was lost ({type(error).__name__})") from error

    async def _begun(self, pooled: AsyncConnection) -> Any:
        """The driver's connection, in a transaction that holds the lock.

        A connection that was lost while idle is replaced: v1 does not send its callbacks a second time.
        """
        driver: Any = (await pooled.get_raw_connection()).driver_connection
        try:
            # The isolation is set, whatever the server's default: reads after the lock must see what its last holder
            # wrote.
            await driver.execute(self._server.begin(self._lock))
        except BaseException as error:
            if isinstance(error, Exception) and driver.is_closed():
                await pooled.invalidate()
                driver = (await pooled.get_raw_connection()).driver_connection
                await driver.execute(self._server.begin(self._lock))
            else:
                await _abandon(driver, error)
                raise
        return driver

    async def close(self) -> None:
        await self._engine.dispose()


async def _abandon(driver: Any, error: BaseException) -> None:
    """Rolls back a failed transaction; closes the connection if that fails too, or if the server did not answer."""
    if isinstance(error, TimeoutError):
        driver.terminate()
        return
    try:
        await asyncio.shield(driver.execute("ROLLBACK"))
    except Exception:  # whatever the error is, the connection is unusable
        driver.terminate()


class _PostgresqlTransaction:
    def __init__(self, driver: Any) -> None:
        self._driver = driver

    spelling = Spelling(time=lambda moment: moment, flag=lambda flag: flag)

    async def select(
        self, columns: Sequence[Any], where: str, values: Iterable[str], *parameters: Any, limit: int = -1
    ) -> list[Any]:
        # One index search for each value: without statistics, as for a new table, the planner scans the whole table.
        each = select_text(columns, where.format(among="= wanted.value"))
        statement = numbered(
            f"SELECT found.* FROM unnest(?::text[]) AS wanted (value) CROSS JOIN LATERAL ({each} OFFSET 0) AS found"  # noqa: S608
        )
        bounded = f"{statement} LIMIT {limit}" if limit >= 0 else statement
        return row_reader(tuple(columns), sqlite=False)(await self._driver.fetch(bounded, list(values), *parameters))

    async def fetch(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return [tuple(record) for record in await self._driver.fetch(numbered(statement), *parameters)]

    async def execute(self, statement: str, parameters: Sequence[Any] = ()) -> int:
        # The command tag, for example "UPDATE 1".
        tag: str = await self._driver.execute(numbered(statement), *parameters)
        return int(tag.rpartition(" ")[2])

    async def run(self, steps: Iterable[Step]) -> None:
        for step in steps:
            if not step.rows:
                continue
            if isinstance(step, ExecuteMany):
                await self._driver.executemany(numbered(step.statement), step.rows)
            elif step.conflict:
                await self._driver.execute(
                    insert_arrays(step.table, step.columns, step.conflict), *zip(*step.rows, strict=True)
                )
            else:
                await self._driver.copy_records_to_table(step.table.name, records=step.rows, columns=step.columns)


@lru_cache(maxsize=64)
def numbered(statement: str) -> str:
    """A statement with `$1`, `$2` … in place of each `?`."""
    parts = statement.split("?")
    return parts[0] + "".join(f"${place}{part}" for place, part in enumerate(parts[1:], 1))


_ARRAYS: Final[tuple[tuple[type, str], ...]] = (
    (UTCDateTime, "timestamptz[]"),
    (BigInteger, "bigint[]"),
    (Integer, "integer[]"),
    (Boolean, "boolean[]"),
    (LargeBinary, "bytea[]"),
)


@lru_cache(maxsize=64)
def insert_arrays(table: Table, names: tuple[str, ...], conflict: str) -> str:
    """An INSERT for PostgreSQL whose parameters are one array for each column."""
    columns = [table.columns[name] for name in names]
    listed = ", ".join(names)
    # jsonb comes as an array of text.
    given = ", ".join(f"{column.name}::jsonb" if isinstance(column.type, Json) else column.name for column in columns)
    arrays = ", ".join(f"${place}::{_array(column)}" for place, column in enumerate(columns, 1))
    return f"INSERT INTO {table.name} ({listed}) SELECT {given} FROM unnest({arrays}) AS given ({listed}) {conflict}"  # noqa: S608


def _array(column: Any) -> str:
    return next((array for kind, array in _ARRAYS if isinstance(column.type, kind)), "text[]")


class DriverConnection:
    """One connection of PostgreSQL's driver, opened at its first use and reopened after it was lost."""

    def __init__(self, server: PostgresqlServer) -> None:
        self._server = server
        self._engine = server.engine(1)
        self._pooled: AsyncConnection | None = None
        self._demotions = 0

    async def use(self, work: Callable[[Any], Awaitable[Result]]) -> Result:
        """Calls `work` with the driver's connection; if that turns out to be closed, once more with a new one."""
        was_open = self._pooled is not None
        try:
            return await self._once(work)
        except Exception:
            if not was_open or self._pooled is not None:
                raise
            return await self._once(work)

    async def _once(self, work: Callable[[Any], Awaitable[Result]]) -> Result:
        if self._demotions != self._server.demotions:
            await self._discard()
        if self._pooled is None:
            self._demotions = self._server.demotions
            self._pooled = await self._engine.connect()
        driver: Any = (await self._pooled.get_raw_connection()).driver_connection
        try:
            return await (self._in_transaction(driver, work) if self._server.is_pooled else work(driver))
        except BaseException as error:
            if isinstance(error, TimeoutError):
                # The server waits for no lock that long: it is frozen, or cannot be reached any more. Without this,
                # closing the connection would wait for it again.
                driver.terminate()
            if driver.is_closed() or self._server.is_demoted(error):
                await self._discard()
            raise

    async def _discard(self) -> None:
        pooled, self._pooled = self._pooled, None
        if pooled is not None:
            await pooled.invalidate()
            await pooled.close()

    async def _in_transaction(self, driver: Any, work: Callable[[Any], Awaitable[Result]]) -> Result:
        """Calls `work` in a transaction, because a pooler could give each of its statements another session."""
        try:
            await driver.execute(self._server.begin())
            result = await work(driver)
            await driver.execute("COMMIT")
        except BaseException as error:
            await _abandon(driver, error)
            raise
        return result

    async def close(self) -> None:
        if self._pooled is not None:
            await self._pooled.close()
            self._pooled = None
        await self._engine.dispose()
