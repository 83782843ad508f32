"""The sinks that were ever registered: how far each has got, and what operators have decided."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.storage import event_log
from receiver.storage.database import Database
from receiver.storage.event_log import EVENTS
from receiver.storage.sink_tables import DEAD_LETTERS, RETRIES, SINKS

Start = Literal["end", "beginning"] | datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What operators have decided about a sink; `revision` rises whenever one has moved something of it.

    A sink that says it is gone is paused too.
    """

    revision: int
    paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What a sink still has before it: events after its cursor (those its filter leaves out too), retries by state.

    `oldest_at` is when the oldest of them was received. `dead_letters` are counted by reason.
    """

    events: int
    oldest_at: datetime | None
    retries: dict[str, int]
    dead_letters: dict[str, int]


async def register(database: Database, name: str, *, start: Start, fingerprint: str) -> None:
    """Makes a sink known; a new one begins at `start`, one that is known goes on where it was.

    A known one's row is left alone: its holder may have it locked, and is perhaps frozen.
    """
    async with database.reading() as connection:
        if await connection.scalar(select(SINKS.c.name).where(SINKS.c.name == name)) is not None:
            return
    cursor = await _cursor_at(database, start)
    async with database.writing() as connection:
        row = {
            "name": name,
            "cursor": cursor,
            "epoch": 0,
            "revision": 0,
            "paused": False,
            "fingerprint": fingerprint,
            "failures": 0,
        }
        insert = database.insert(SINKS).values(**row, seen_at=database.clock())
        await connection.execute(insert.on_conflict_do_nothing(index_elements=["name"]))


async def orders(connection: AsyncConnection, sink: str) -> Orders:
    """What operators have decided about a sink."""
    row = (await connection.execute(select(SINKS.c.revision, SINKS.c.paused).where(SINKS.c.name == sink))).one()
    return Orders(revision=row.revision, paused=row.paused)


async def backlog(connection: AsyncConnection, sink: str) -> Backlog:
    """What a sink still has before it."""
    cursor = await connection.scalar(select(SINKS.c.cursor).where(SINKS.c.name == sink)) or 0
    _, end = await event_log.bounds(connection)
    next_position = select(func.min(EVENTS.c.position)).where(EVENTS.c.position > cursor).scalar_subquery()
    oldest_retry = select(func.min(RETRIES.c.position)).where(RETRIES.c.sink == sink).scalar_subquery()
    oldest = (await connection.execute(select(next_position, oldest_retry))).one()
    positions = [position for position in oldest if position is not None]
    return Backlog(
        events=max(0, end - cursor),
        oldest_at=await _received_at(connection, min(positions)) if positions else None,
        retries=await _counts(connection, RETRIES, RETRIES.c.state, sink),
        dead_letters=await _counts(connection, DEAD_LETTERS, DEAD_LETTERS.c.reason, sink),
    )


async def _cursor_at(database: Database, start: Start) -> int:
    if start == "beginning":
        return 0
    if start != "end":
        return await event_log.position_before(database, start)
    async with database.reading() as connection:
        _, end = await event_log.bounds(connection)
        return end


async def _received_at(connection: AsyncConnection, position: int) -> datetime | None:
    found: datetime | None = await connection.scalar(select(EVENTS.c.received_at).where(EVENTS.c.position == position))
    return found


async def _counts(connection: AsyncConnection, table: Any, column: Any, sink: str) -> dict[str, int]:
    rows: Sequence[Any] = (
        await connection.execute(select(column, func.count()).where(table.c.sink == sink).group_by(column))
    ).all()
    return {row[0]: row[1] for row in rows}
