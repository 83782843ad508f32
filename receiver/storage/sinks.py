"""The bookkeeping of the sinks: whose turn it is, how far each has got, and what it must still be given."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Interval, Row, and_, bindparam, case, delete, func, literal, or_, select, update
from sqlalchemy import text as sql
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.publication import Again, Dead, Done
from receiver.domain.window import Attempt, Settlement, Verdict
from receiver.errors import ReceiverError
from receiver.providers.values import storable
from receiver.storage import event_log
from receiver.storage.database import Database
from receiver.storage.event_log import EVENTS
from receiver.storage.tables import AttemptRow, DeadLetterRow, RetryRow, SinkRow, UTCDateTime

SINKS: Final[Any] = SinkRow.__table__  # type: ignore[attr-defined]
RETRIES: Final[Any] = RetryRow.__table__  # type: ignore[attr-defined]
ATTEMPTS: Final[Any] = AttemptRow.__table__  # type: ignore[attr-defined]
DEAD_LETTERS: Final[Any] = DeadLetterRow.__table__  # type: ignore[attr-defined]

Start = Literal["end", "beginning"] | datetime

_LONGEST_TEXT: Final = 1000
# spelled as in the partial index, which SQLite otherwise does not take
_IS_DUE: Final = sql("retries.state = 'due'")


class LeaseLost(ReceiverError):
    """Another process works for this sink; nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a sink is doing: failures in a row, since when it is down, its last success and its last complaint."""

    failures: int = 0
    down_since_at: datetime | None = None
    last_success_at: datetime | None = None
    last_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to work for a sink; `epoch` fences off whoever held it before."""

    sink: str
    epoch: int
    cursor: int
    revision: int
    health: Health


@dataclass(frozen=True, slots=True, kw_only=True)
class DueRetry:
    """A retry whose time has come."""

    position: int
    attempts: int
    first_at: datetime


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
    async with database.writing() as connection:
        row = {
            "name": name,
            "cursor": await _cursor_at(connection, start),
            "epoch": 0,
            "revision": 0,
            "paused": False,
            "fingerprint": fingerprint,
            "failures": 0,
        }
        insert = database.insert(SINKS).values(**row, seen_at=_clock(database))
        await connection.execute(insert.on_conflict_do_nothing(index_elements=["name"]))


async def acquire(
    database: Database, name: str, *, holder: str, fingerprint: str, seconds: float, take_over: bool = False
) -> Lease | None:
    """Takes the lease of a sink if nobody holds it, by the database's clock; `take_over` takes it all the same."""
    free = or_(SINKS.c.lease_until.is_(None), SINKS.c.lease_until < _clock(database))
    statement = (
        update(SINKS)
        .where(SINKS.c.name == name, literal(True) if take_over else free)
        .values(epoch=SINKS.c.epoch + 1, lease_holder=holder, lease_until=_clock(database, seconds))
        .values(fingerprint=fingerprint, seen_at=_clock(database))
        .returning(*SINKS.c)
    )
    async with database.writing() as connection:
        row = (await connection.execute(statement)).one_or_none()
    return _lease(row) if row is not None else None


async def renew(database: Database, lease: Lease, *, seconds: float) -> int:
    """Prolongs a lease and returns the sink's revision; raises LeaseLost if it is no longer ours."""
    values = {"lease_until": _clock(database, seconds), "seen_at": _clock(database)}
    async with database.writing() as connection:
        return await _as_holder(connection, lease, values)


async def release(database: Database, lease: Lease) -> None:
    """Gives a lease back; one that is lost already is let be."""
    mine = and_(SINKS.c.name == lease.sink, SINKS.c.epoch == lease.epoch)
    async with database.writing() as connection:
        await connection.execute(update(SINKS).where(mine).values(lease_holder=None, lease_until=None))


async def settle(database: Database, lease: Lease, settlement: Settlement, health: Health, *, now: datetime) -> int:
    """Writes what was decided, in one transaction, and returns the sink's revision.

    Raises LeaseLost, and changes nothing, if another process has taken over: the first statement finds that out, and
    holds the sink's row so that nobody else touches its retries meanwhile.
    """
    values = {
        "cursor": settlement.cursor,
        "failures": health.failures,
        "down_since_at": health.down_since_at,
        "last_success_at": health.last_success_at,
        "last_error": _short(health.last_error),
    }
    async with database.writing() as connection:
        revision = await _as_holder(connection, lease, values)
        await _write_retries(database, connection, lease.sink, settlement, now)
        await _write_dead_letters(database, connection, lease.sink, settlement, now)
        if settlement.attempts:
            await connection.execute(ATTEMPTS.insert(), [_attempt(lease.sink, one) for one in settlement.attempts])
    return revision


async def blocked_lanes(
    database: Database, connection: AsyncConnection, sink: str, lanes: Iterable[str]
) -> frozenset[str]:
    """Those of these lanes in which a retry waits."""
    statement = select(RETRIES.c.lane).where(RETRIES.c.sink == sink, database.among(RETRIES.c.lane, "lanes")).distinct()
    return frozenset((await connection.scalars(statement, {"lanes": database.texts(lanes)})).all())


async def due_retries(connection: AsyncConnection, sink: str, *, now: datetime, limit: int) -> list[DueRetry]:
    """The retries whose time has come, longest due first."""
    statement = (
        select(RETRIES.c.position, RETRIES.c.attempts, RETRIES.c.first_at)
        .where(RETRIES.c.sink == sink, _IS_DUE, RETRIES.c.due_at <= now)
        .order_by(RETRIES.c.due_at)
        .limit(limit)
    )
    rows = await connection.execute(statement)
    return [DueRetry(position=row.position, attempts=row.attempts, first_at=row.first_at) for row in rows]


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


async def promote(
    database: Database, connection: AsyncConnection, sink: str, lanes: Iterable[str], now: datetime
) -> None:
    """Makes the smallest position of each of these lanes its head, where it has none: due at its time, else at once."""
    is_head = case((RETRIES.c.state != "parked", 1), else_=0)
    headless = (
        select(func.min(RETRIES.c.position))
        .where(RETRIES.c.sink == sink, database.among(RETRIES.c.lane, "lanes"))
        .group_by(RETRIES.c.lane)
        .having(func.sum(is_head) == 0)
    )
    statement = (
        update(RETRIES)
        .where(RETRIES.c.sink == sink, RETRIES.c.position.in_(headless))
        .values(state="due", due_at=func.coalesce(RETRIES.c.due_at, literal(now, UTCDateTime)))
    )
    await connection.execute(statement, {"lanes": database.texts(sorted(set(lanes)))})


async def _as_holder(connection: AsyncConnection, lease: Lease, values: dict[str, Any]) -> int:
    """Updates the sink's row, which also locks it, and returns its revision."""
    mine = and_(SINKS.c.name == lease.sink, SINKS.c.epoch == lease.epoch)
    revision = await connection.scalar(update(SINKS).where(mine).values(**values).returning(SINKS.c.revision))
    if revision is None:
        raise LeaseLost(f"another process works for sink {lease.sink}")
    return int(revision)


async def _write_retries(
    database: Database, connection: AsyncConnection, sink: str, settlement: Settlement, now: datetime
) -> None:
    """Rows go in as parked, also those that were tried: `promote` alone says who is the head of a lane."""
    new = [_retry(sink, verdict, now) for verdict in settlement.firsts if verdict.blocks]
    over = [_key(sink, verdict) for verdict in settlement.retries if isinstance(verdict.decision, Done | Dead)]
    again = [
        _key(sink, verdict) | _later(verdict, verdict.decision)
        for verdict in settlement.retries
        if isinstance(verdict.decision, Again)
    ]
    if new:
        insert = database.insert(RETRIES).on_conflict_do_nothing(index_elements=["sink", "position"])
        await connection.execute(insert, new)
    if over:
        await connection.execute(delete(RETRIES).where(_THIS_RETRY), over)
    if again:
        await connection.execute(_POSTPONE, again)
    lanes = {verdict.candidate.lane for verdict in (*settlement.firsts, *settlement.retries) if _moves_lane(verdict)}
    if lanes:
        await promote(database, connection, sink, lanes, now)


def _moves_lane(verdict: Verdict) -> bool:
    return verdict.candidate.is_retry or verdict.blocks


async def _write_dead_letters(
    database: Database, connection: AsyncConnection, sink: str, settlement: Settlement, now: datetime
) -> None:
    rows = [
        _dead_letter(sink, verdict, verdict.decision, now)
        for verdict in (*settlement.firsts, *settlement.retries)
        if isinstance(verdict.decision, Dead)
    ]
    if rows:
        insert = database.insert(DEAD_LETTERS).on_conflict_do_nothing(index_elements=["sink", "position"])
        await connection.execute(insert, rows)


_THIS_RETRY: Final = and_(RETRIES.c.sink == bindparam("of_sink"), RETRIES.c.position == bindparam("at"))
_POSTPONE: Final = (
    update(RETRIES).where(_THIS_RETRY).values({name: bindparam(name) for name in ("attempts", "due_at", "reason")})
)


_UNTRIED: Final = {"attempts": 0, "due_at": None, "reason": None}


def _key(sink: str, verdict: Verdict) -> dict[str, Any]:
    return {"of_sink": sink, "at": verdict.candidate.position}


def _later(verdict: Verdict, decision: Again) -> dict[str, Any]:
    return {"attempts": verdict.attempts, "due_at": decision.due_at, "reason": _short(decision.reason)}


def _retry(sink: str, verdict: Verdict, now: datetime) -> dict[str, Any]:
    decision = verdict.decision
    return {
        "sink": sink,
        "position": verdict.candidate.position,
        "lane": verdict.candidate.lane,
        "state": "parked",
        "first_at": now,
        **(_later(verdict, decision) if isinstance(decision, Again) else _UNTRIED),
    }


def _dead_letter(sink: str, verdict: Verdict, decision: Dead, now: datetime) -> dict[str, Any]:
    candidate = verdict.candidate
    return {
        "sink": sink,
        "position": candidate.position,
        "lane": candidate.lane,
        "event_id": candidate.publication.id,
        "reason": decision.death,
        "detail": _short(decision.reason),
        "attempts": verdict.attempts,
        "response_code": decision.response_code,
        "response": _short(decision.response),
        "first_at": candidate.since or now,
        "died_at": now,
    }


def _attempt(sink: str, attempt: Attempt) -> dict[str, Any]:
    return {
        "sink": sink,
        "position": attempt.position,
        "event_id": attempt.event_id,
        "started_at": attempt.started_at,
        "ended_at": attempt.ended_at,
        "outcome": attempt.outcome,
        "decision": attempt.decision,
        "reason": _short(attempt.reason),
        "response_code": attempt.response_code,
        "response": _short(attempt.response),
    }


def _short(text: str | None) -> str | None:
    """A sink's words as they can be stored; a plug-in may say anything."""
    return storable(text[:_LONGEST_TEXT]) if text is not None else None


def _lease(row: Row[Any]) -> Lease:
    health = Health(
        failures=row.failures,
        down_since_at=row.down_since_at,
        last_success_at=row.last_success_at,
        last_error=row.last_error,
    )
    return Lease(sink=row.name, epoch=row.epoch, cursor=row.cursor, revision=row.revision, health=health)


def _clock(database: Database, plus: float = 0.0) -> ColumnElement[Any]:
    """The database's clock, some seconds ahead: processes need not agree on the time."""
    if database.is_sqlite:
        # strftime knows milliseconds; the column's text has microseconds
        return func.strftime("%Y-%m-%dT%H:%M:%f", "now", f"{plus:+.3f} seconds").concat("000Z")
    return func.clock_timestamp() + literal(timedelta(seconds=plus), Interval)


async def _cursor_at(connection: AsyncConnection, start: Start) -> int:
    if start == "beginning":
        return 0
    _, end = await event_log.bounds(connection)
    if start == "end":
        return end
    first = await connection.scalar(select(func.min(EVENTS.c.position)).where(EVENTS.c.received_at >= start))
    return end if first is None else int(first) - 1


async def _received_at(connection: AsyncConnection, position: int) -> datetime | None:
    found: datetime | None = await connection.scalar(select(EVENTS.c.received_at).where(EVENTS.c.position == position))
    return found


async def _counts(connection: AsyncConnection, table: Any, column: Any, sink: str) -> dict[str, int]:
    rows: Sequence[Any] = (
        await connection.execute(select(column, func.count()).where(table.c.sink == sink).group_by(column))
    ).all()
    return {row[0]: row[1] for row in rows}
