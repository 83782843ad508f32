"""The event log as a consumer pulls it: the next entries, and where the log begins and ends."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import text as sql
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.log import LogEntry
from receiver.storage import event_log
from receiver.storage.database import Database


@dataclass(frozen=True, slots=True)
class Span:
    """The oldest position kept (None: none is) and the last one given away (0: none was)."""

    oldest: int | None
    last: int


async def pull(database: Database, after: int, limit: int) -> tuple[list[LogEntry], Span]:
    """The next entries after a position, and the span of the log, looked at after them.

    In this order: what retention removes in between is seen to be missing, and not skipped.
    """
    async with database.reading() as connection:
        entries = await event_log.read_after(connection, after, limit)
        return entries, await _span(database, connection)


async def _span(database: Database, connection: AsyncConnection) -> Span:
    oldest, newest = await event_log.bounds(connection)
    if oldest:
        return Span(oldest, newest)
    given = await connection.scalar(_SQLITE_GIVEN if database.is_sqlite else _POSTGRESQL_GIVEN)
    return Span(None, given or 0)


# what was given away is remembered also when retention has emptied the log
_SQLITE_GIVEN: Final = sql("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
_POSTGRESQL_GIVEN: Final = sql(
    "SELECT pg_sequence_last_value(CAST(pg_get_serial_sequence('events', 'position') AS regclass))"
)
