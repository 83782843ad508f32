"""Finds positions in the event log: where it begins and ends, the first event after a time, the length of a range."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, and_, func, select
from sqlalchemy import text as sql
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.publication import LogEntry
from receiver.models.events import EVENTS
from receiver.storage.database import Database
from receiver.storage.event_log import bounds, read_after, within

# No index has the time of receipt, so the log is searched in parts, each of which is quick.
_SEARCHED_AT_ONCE: Final = 50_000


async def first(connection: AsyncConnection, which: ColumnElement[bool]) -> Row[Any] | None:
    """Position and time of receipt of the first stored event that meets a condition."""
    found = select(EVENTS.c.position, EVENTS.c.received_at).where(which).order_by(EVENTS.c.position).limit(1)
    return (await connection.execute(found)).one_or_none()


async def position_before(database: Database, moment: datetime) -> int:
    """The position before the first event received at a time or later; the end of the log if there is none."""
    place, end = 0, 1
    while place < end:
        async with database.reading() as connection:
            oldest = await first(connection, EVENTS.c.position > place)
            if oldest is None:
                return place
            _, end = await bounds(connection)
            place = oldest.position - 1
            part = within(place, place + _SEARCHED_AT_ONCE)
            if (found := await first(connection, and_(part, EVENTS.c.received_at >= moment))) is not None:
                return int(found.position) - 1
        place += _SEARCHED_AT_ONCE
    return min(place, end)


async def count(database: Database, after: int, until: int) -> int:
    """How many events a part of the log has, counted in pieces so that no statement takes long."""
    number, place = 0, after
    while place < until:
        async with database.reading() as connection:
            oldest = await first(connection, within(place, until))
            if oldest is None:
                return number
            end = min(oldest.position - 1 + _SEARCHED_AT_ONCE, until)
            piece = select(func.count()).select_from(EVENTS).where(within(place, end))
            number += await connection.scalar(piece) or 0
        place = end
    return number


@dataclass(frozen=True, slots=True)
class LogBounds:
    """The oldest stored position (None: the log is empty) and the last one ever assigned (0: none was)."""

    oldest: int | None
    last: int


async def pull(database: Database, after: int, limit: int) -> tuple[list[LogEntry], LogBounds]:
    """The next entries after a position, and then the bounds of the log.

    The order matters: events that retention removes in between show as missing instead of being skipped silently.
    """
    async with database.reading() as connection:
        entries = await read_after(connection, after, limit)
        return entries, await _log_bounds(database, connection)


async def _log_bounds(database: Database, connection: AsyncConnection) -> LogBounds:
    oldest, newest = await bounds(connection)
    if oldest:
        return LogBounds(oldest, newest)
    last = await connection.scalar(_SQLITE_LAST if database.is_sqlite else _POSTGRESQL_LAST)
    return LogBounds(None, last or 0)


# The last assigned position is known also after retention has emptied the log.
_SQLITE_LAST: Final = sql("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
_POSTGRESQL_LAST: Final = sql(
    "SELECT pg_sequence_last_value(CAST(pg_get_serial_sequence('events', 'position') AS regclass))"
)
