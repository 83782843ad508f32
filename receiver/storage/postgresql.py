"""PostgreSQL through its driver: the transaction that appends to the event log, and connections outside of the pool."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
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


class PostgresqlAppender:
    """Appends with asyncpg directly, over an engine of its own: readers must not use up the intake's connection."""

    def __init__(self, engine: AsyncEngine, lock: int) -> None:
        self._engine = engine
        # Set explicitly, whatever the server's default: reads after the lock must see what its last holder wrote.
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
                if not driver.is_closed() and not is_read_only(error):
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
    """Rolls back a failed transaction; closes the connection if that fails too."""
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

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._pooled: AsyncConnection | None = None

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
        if self._pooled is None:
            self._pooled = await self._engine.connect()
        driver: Any = (await self._pooled.get_raw_connection()).driver_connection
        try:
            return await work(driver)
        except BaseException as error:
            if driver.is_closed() or is_read_only(error):
                pooled, self._pooled = self._pooled, None
                await pooled.invalidate()
                await pooled.close()
            raise

    async def close(self) -> None:
        if self._pooled is not None:
            await self._pooled.close()
            self._pooled = None
        await self._engine.dispose()


def is_read_only(error: BaseException) -> bool:
    """Whether the server of a connection takes no writes: after a failover it is the standby, or the old primary.

    The connection would stay there for as long as it is open, while a new one may lead to the new primary.
    """
    return getattr(getattr(error, "orig", error), "sqlstate", None) == "25006"


def _discard_if_read_only(context: ExceptionContext) -> None:
    if context.original_exception is not None and is_read_only(context.original_exception):
        context.is_disconnect = True


def postgresql_engine(url: URL, pool_size: int, *, bounded: bool = True) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=STATEMENT_SECONDS,
        hide_parameters=True,
        json_serializer=json_text,
        json_deserializer=orjson.loads,
        connect_args={
            "timeout": STATEMENT_SECONDS,
            "command_timeout": STATEMENT_SECONDS + 1 if bounded else None,
            "server_settings": dict(_SESSION),
        },
    )
    event.listen(engine.sync_engine, "handle_error", _discard_if_read_only)
    return engine
