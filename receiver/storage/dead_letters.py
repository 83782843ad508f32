"""The dead letters: what a sink will not be given again by itself, to be looked at and made due again."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, delete, literal, null, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.errors import ReceiverError
from receiver.storage.database import Database
from receiver.storage.event_log import EVENTS
from receiver.storage.sinks import DEAD_LETTERS, RETRIES, SINKS, promote
from receiver.storage.tables import UTCDateTime

_COPIED: Final = ("sink", "position", "lane", "state", "attempts", "due_at", "first_at", "reason")


class UnknownSink(ReceiverError):
    """No sink of this name was ever registered in this database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An event that one sink will not be given again by itself, and why."""

    id: int
    sink: str
    position: int
    event_id: str
    message_id: str
    status: str
    reason: str
    detail: str
    attempts: int
    response_code: int | None
    response: str | None
    first_at: datetime
    died_at: datetime


async def find(
    connection: AsyncConnection, *, sink: str | None = None, reason: str | None = None, after: int = 0, limit: int = 100
) -> list[DeadLetter]:
    """Dead letters in the order they died, those after an id, perhaps of one sink or for one reason alone."""
    columns = [column for column in DEAD_LETTERS.c if column.name != "lane"]
    statement = (
        select(*columns, EVENTS.c.message_id, EVENTS.c.status)
        .join(EVENTS, EVENTS.c.position == DEAD_LETTERS.c.position)
        .where(DEAD_LETTERS.c.id > after)
        .where(DEAD_LETTERS.c.sink == sink if sink is not None else true())
        .where(DEAD_LETTERS.c.reason == reason if reason is not None else true())
        .order_by(DEAD_LETTERS.c.id)
        .limit(limit)
    )
    return [DeadLetter(**row._mapping) for row in await connection.execute(statement)]


async def requeue(database: Database, sink: str, *, now: datetime, ids: Sequence[int] | None = None) -> int:
    """Makes dead letters of a sink due again, with a fresh schedule: those with these ids, or all. Returns how many.

    Takes the sink's row first, as everyone does who writes its retries, and raises its revision to tell the holder.
    """
    chosen = and_(DEAD_LETTERS.c.sink == sink, DEAD_LETTERS.c.id.in_(ids) if ids is not None else true())
    async with database.writing() as connection:
        await _lock(connection, sink)
        lanes = (await connection.scalars(select(DEAD_LETTERS.c.lane).where(chosen).distinct())).all()
        await connection.execute(_as_retries(database, chosen, now))
        requeued = await connection.execute(delete(DEAD_LETTERS).where(chosen))
        await _unseat(database, connection, sink, lanes)
        await promote(database, connection, sink, lanes, now)
    return int(requeued.rowcount)


async def _lock(connection: AsyncConnection, sink: str) -> None:
    raised = update(SINKS).where(SINKS.c.name == sink).values(revision=SINKS.c.revision + 1)
    if not (await connection.execute(raised)).rowcount:
        raise UnknownSink(f"there is no sink {sink}")


def _as_retries(database: Database, chosen: ColumnElement[bool], now: datetime) -> Any:
    letters = select(
        DEAD_LETTERS.c.sink,
        DEAD_LETTERS.c.position,
        DEAD_LETTERS.c.lane,
        literal("parked"),
        literal(0),
        null(),
        literal(now, UTCDateTime),
        literal("requeued"),
    ).where(chosen)
    return database.insert(RETRIES).from_select(_COPIED, letters).on_conflict_do_nothing()


async def _unseat(database: Database, connection: AsyncConnection, sink: str, lanes: Sequence[str]) -> None:
    """Takes the lanes' heads down, for an earlier event may have come back before them."""
    heads = and_(RETRIES.c.sink == sink, RETRIES.c.state == "due", database.among(RETRIES.c.lane, "lanes"))
    await connection.execute(update(RETRIES).where(heads).values(state="parked"), {"lanes": database.texts(lanes)})
