"""What a sink must be given again: in each lane one retry is the head, the others wait behind it."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, TextClause, and_, bindparam, case, exists, func, select, update
from sqlalchemy import text as sql
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.storage.columns import UTCDateTime
from receiver.storage.database import Database
from receiver.storage.sink_tables import DEAD_LETTERS, RETRIES

# spelled as in the partial indexes, which SQLite otherwise does not take
_IS_DUE: Final = sql("retries.state = 'due'")
_IS_HEAD: Final = sql("retries.state <> 'parked'")
_TOLD: Final = (RETRIES.c.position, RETRIES.c.lane, RETRIES.c.attempts, RETRIES.c.first_at)

THIS_RETRY: Final = and_(RETRIES.c.sink == bindparam("of_sink"), RETRIES.c.position == bindparam("at"))


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingRetry:
    """A retry that waits to be tried, or behind one that does."""

    position: int
    lane: str
    attempts: int
    first_at: datetime


async def due(connection: AsyncConnection, sink: str, *, now: datetime, limit: int) -> list[WaitingRetry]:
    """The retries whose time has come, longest due first."""
    statement = (
        select(*_TOLD)
        .where(RETRIES.c.sink == sink, _IS_DUE, RETRIES.c.due_at <= now)
        .order_by(RETRIES.c.due_at)
        .limit(limit)
    )
    return _waiting(await connection.execute(statement))


async def waiting_in(
    database: Database, connection: AsyncConnection, sink: str, lanes: Iterable[str], *, limit: int
) -> list[WaitingRetry]:
    """The retries of these lanes that no operator holds, in the order of the log."""
    waiting = select(*_TOLD).where(RETRIES.c.sink == sink, RETRIES.c.state != "held")
    found = database.for_each("lanes", lambda lane: waiting.where(RETRIES.c.lane == lane))
    # a sum is in no index: SQLite would read all of the sink's retries in the order of one
    statement = select(found).order_by(found.c.position + 0).limit(limit)
    return _waiting(await connection.execute(statement, {"lanes": database.texts(lanes)}))


def _waiting(rows: Iterable[Row[Any]]) -> list[WaitingRetry]:
    return [
        WaitingRetry(position=row.position, lane=row.lane, attempts=row.attempts, first_at=row.first_at) for row in rows
    ]


async def awaited(connection: AsyncConnection, sink: str, after: int, until: int) -> frozenset[int]:
    """The positions in a range of the log, its end included, that a sink keeps as retries."""
    positions = select(RETRIES.c.position).where(
        RETRIES.c.sink == sink, RETRIES.c.position > after, RETRIES.c.position <= until
    )
    return frozenset((await connection.scalars(positions)).all())


async def blocked_lanes(
    database: Database, connection: AsyncConnection, sink: str, lanes: Iterable[str]
) -> frozenset[str]:
    """Those of these lanes in which a retry waits."""
    lane = database.listed("lanes").c.value
    statement = select(lane).where(_first_in(sink, lane).is_not(None))
    return frozenset((await connection.scalars(statement, {"lanes": database.texts(lanes)})).all())


async def promote(
    database: Database, connection: AsyncConnection, sink: str, lanes: Iterable[str], now: datetime
) -> None:
    """Makes the smallest position of each of these lanes its head, where it has none.

    It is due at its time, else at once; or held for an operator if it is among the dead letters.
    """
    listed = database.listed("lanes")
    lane = listed.c.value
    headless = select(_first_in(sink, lane)).select_from(listed).where(_first_in(sink, lane, _IS_HEAD).is_(None))
    positions = (await connection.scalars(headless, {"lanes": database.texts(sorted(set(lanes)))})).all()
    heads = [{"of_sink": sink, "at": position, "now": now} for position in positions if position is not None]
    if heads:
        await connection.execute(_SEAT, heads)


def _first_in(sink: str, lane: ColumnElement[str], *conditions: TextClause) -> ColumnElement[int | None]:
    """The smallest position among the retries of a lane.

    It is looked up lane by lane: without statistics a planner would rather read all retries of the sink.
    """
    first: ColumnElement[int | None] = (
        select(RETRIES.c.position)
        .where(RETRIES.c.sink == sink, RETRIES.c.lane == lane, *conditions)
        .order_by(RETRIES.c.position)
        .limit(1)
        .scalar_subquery()
    )
    return first


_IS_DEAD: Final = (
    exists()
    .where(DEAD_LETTERS.c.sink == RETRIES.c.sink, DEAD_LETTERS.c.position == RETRIES.c.position)
    .correlate(RETRIES)
)

_SEAT: Final = (
    update(RETRIES)
    .where(THIS_RETRY)
    .values(
        state=case((_IS_DEAD, "held"), else_="due"),
        due_at=func.coalesce(RETRIES.c.due_at, bindparam("now", type_=UTCDateTime)),
    )
)
