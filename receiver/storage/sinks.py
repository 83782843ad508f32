"""The bookkeeping of the sinks: whose turn it is, how far each has got, and what it must still be given."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import (
    ColumnElement,
    Interval,
    Row,
    TextClause,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy import text as sql
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.publication import Again, Dead
from receiver.domain.window import Attempt, Settlement, Verdict
from receiver.errors import ReceiverError
from receiver.providers.values import storable
from receiver.storage import event_log
from receiver.storage.database import Database
from receiver.storage.event_log import EVENTS
from receiver.storage.tables import AttemptRow, DeadLetterRow, ReplayRow, RetryRow, SinkRow, UTCDateTime

SINKS: Final[Any] = SinkRow.__table__  # type: ignore[attr-defined]
RETRIES: Final[Any] = RetryRow.__table__  # type: ignore[attr-defined]
ATTEMPTS: Final[Any] = AttemptRow.__table__  # type: ignore[attr-defined]
DEAD_LETTERS: Final[Any] = DeadLetterRow.__table__  # type: ignore[attr-defined]
REPLAYS: Final[Any] = ReplayRow.__table__  # type: ignore[attr-defined]

Start = Literal["end", "beginning"] | datetime

_LONGEST_TEXT: Final = 1000
# spelled as in the partial indexes, which SQLite otherwise does not take
_IS_DUE: Final = sql("retries.state = 'due'")
_IS_HEAD: Final = sql("retries.state <> 'parked'")


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
    health: Health


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What operators have decided about a sink; `revision` rises whenever one has moved something of it.

    A sink that says it is gone is paused too.
    """

    revision: int
    paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a replay has got, and what became of its events since that was last written."""

    replay_id: int
    settlement: Settlement
    published: int
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingRetry:
    """A retry that waits to be tried, or behind one that does."""

    position: int
    lane: str
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


async def renew(database: Database, lease: Lease, *, seconds: float) -> None:
    """Prolongs a lease; raises LeaseLost if it is no longer ours."""
    values = {"lease_until": _clock(database, seconds), "seen_at": _clock(database)}
    async with database.writing() as connection:
        await _as_holder(connection, lease, values)


async def release(database: Database, lease: Lease) -> None:
    """Gives a lease back; one that is lost already is let be."""
    mine = and_(SINKS.c.name == lease.sink, SINKS.c.epoch == lease.epoch)
    async with database.writing() as connection:
        await connection.execute(update(SINKS).where(mine).values(lease_holder=None, lease_until=None))


async def orders(connection: AsyncConnection, sink: str) -> Orders:
    """What operators have decided about a sink."""
    row = (await connection.execute(select(SINKS.c.revision, SINKS.c.paused).where(SINKS.c.name == sink))).one()
    return Orders(revision=row.revision, paused=row.paused)


async def settle(
    database: Database,
    lease: Lease,
    settlement: Settlement,
    health: Health,
    *,
    now: datetime,
    progress: Progress | None = None,
    pause: bool = False,
) -> None:
    """Writes what was decided, in one transaction; `pause` has the sink wait for an operator.

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
        await _as_holder(connection, lease, values | ({"paused": True} if pause else {}))
        # before the retries: what is dead among them holds its lane
        await _write_dead_letters(database, connection, lease.sink, (*settlement.firsts, *settlement.retries), now)
        await _write_retries(database, connection, lease.sink, settlement, now)
        await _write_attempts(connection, lease.sink, settlement)
        if progress is not None:
            await _write_progress(database, connection, lease.sink, progress, now)


async def blocked_lanes(
    database: Database, connection: AsyncConnection, sink: str, lanes: Iterable[str]
) -> frozenset[str]:
    """Those of these lanes in which a retry waits."""
    lane = database.listed("lanes").c.value
    statement = select(lane).where(_first_in(sink, lane).is_not(None))
    return frozenset((await connection.scalars(statement, {"lanes": database.texts(lanes)})).all())


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


async def due_retries(connection: AsyncConnection, sink: str, *, now: datetime, limit: int) -> list[WaitingRetry]:
    """The retries whose time has come, longest due first."""
    statement = (
        select(RETRIES.c.position, RETRIES.c.lane, RETRIES.c.attempts, RETRIES.c.first_at)
        .where(RETRIES.c.sink == sink, _IS_DUE, RETRIES.c.due_at <= now)
        .order_by(RETRIES.c.due_at)
        .limit(limit)
    )
    return _waiting(await connection.execute(statement))


def _waiting(rows: Iterable[Row[Any]]) -> list[WaitingRetry]:
    return [
        WaitingRetry(position=row.position, lane=row.lane, attempts=row.attempts, first_at=row.first_at) for row in rows
    ]


async def waiting_in(
    database: Database, connection: AsyncConnection, sink: str, lanes: Iterable[str], *, limit: int
) -> list[WaitingRetry]:
    """The retries of these lanes that no operator holds, in the order of the log."""
    columns = (RETRIES.c.position, RETRIES.c.lane, RETRIES.c.attempts, RETRIES.c.first_at)
    waiting = select(*columns).where(RETRIES.c.sink == sink, RETRIES.c.state != "held")
    found = database.for_each("lanes", lambda lane: waiting.where(RETRIES.c.lane == lane))
    # a sum is in no index: SQLite would read all of the sink's retries in the order of one
    statement = select(found).order_by(found.c.position + 0).limit(limit)
    return _waiting(await connection.execute(statement, {"lanes": database.texts(lanes)}))


async def awaited(connection: AsyncConnection, sink: str, after: int, until: int) -> frozenset[int]:
    """The positions in a range of the log, its end included, that a sink keeps as retries."""
    positions = select(RETRIES.c.position).where(
        RETRIES.c.sink == sink, RETRIES.c.position > after, RETRIES.c.position <= until
    )
    return frozenset((await connection.scalars(positions)).all())


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


_IS_DEAD: Final = (
    exists()
    .where(DEAD_LETTERS.c.sink == RETRIES.c.sink, DEAD_LETTERS.c.position == RETRIES.c.position)
    .correlate(RETRIES)
)
_THIS_RETRY: Final = and_(RETRIES.c.sink == bindparam("of_sink"), RETRIES.c.position == bindparam("at"))
_SEAT: Final = (
    update(RETRIES)
    .where(_THIS_RETRY)
    .values(
        state=case((_IS_DEAD, "held"), else_="due"),
        due_at=func.coalesce(RETRIES.c.due_at, bindparam("now", type_=UTCDateTime)),
    )
)


async def _as_holder(connection: AsyncConnection, lease: Lease, values: dict[str, Any]) -> None:
    """Updates the sink's row, which also locks it."""
    mine = and_(SINKS.c.name == lease.sink, SINKS.c.epoch == lease.epoch)
    if not (await connection.execute(update(SINKS).where(mine).values(**values))).rowcount:
        raise LeaseLost(f"another process works for sink {lease.sink}")


async def _write_retries(
    database: Database, connection: AsyncConnection, sink: str, settlement: Settlement, now: datetime
) -> None:
    """Rows go in as parked, also those that were tried: `promote` alone says who is the head of a lane."""
    new = [_retry(sink, verdict, now) for verdict in settlement.firsts if verdict.blocks]
    over = [_key(sink, verdict) for verdict in settlement.retries if not verdict.blocks]
    again = [
        _key(sink, verdict) | _later(verdict, verdict.decision)
        for verdict in settlement.retries
        if isinstance(verdict.decision, Again)
    ]
    held = [_key(sink, verdict) | {"attempts": verdict.attempts} for verdict in settlement.retries if verdict.holds]
    if new:
        insert = database.insert(RETRIES).on_conflict_do_nothing(index_elements=["sink", "position"])
        await connection.execute(insert, new)
    if over:
        await connection.execute(delete(RETRIES).where(_THIS_RETRY), over)
    if again:
        await connection.execute(_POSTPONE, again)
    if held:
        await connection.execute(_UNSEAT, held)
    lanes = {verdict.candidate.lane for verdict in (*settlement.firsts, *settlement.retries) if _moves_lane(verdict)}
    if lanes:
        await promote(database, connection, sink, lanes, now)


def _moves_lane(verdict: Verdict) -> bool:
    return verdict.candidate.is_retry or verdict.blocks


async def _among_retries(connection: AsyncConnection, sink: str, positions: Sequence[int]) -> frozenset[int]:
    if not positions:
        return frozenset()
    found = select(RETRIES.c.position).where(RETRIES.c.sink == sink, RETRIES.c.position.in_(positions))
    return frozenset((await connection.scalars(found)).all())


async def _write_dead_letters(
    database: Database, connection: AsyncConnection, sink: str, verdicts: Iterable[Verdict], now: datetime
) -> None:
    rows = [
        _dead_letter(sink, verdict, verdict.decision, now) for verdict in verdicts if isinstance(verdict.decision, Dead)
    ]
    if rows:
        insert = database.insert(DEAD_LETTERS).on_conflict_do_nothing(index_elements=["sink", "position"])
        await connection.execute(insert, rows)


_POSTPONE: Final = (
    update(RETRIES).where(_THIS_RETRY).values({name: bindparam(name) for name in ("attempts", "due_at", "reason")})
)


_UNSEAT: Final = update(RETRIES).where(_THIS_RETRY).values(state="parked", attempts=bindparam("attempts"))

_UNTIMED: Final[dict[str, Any]] = {"due_at": None, "reason": None}


def _key(sink: str, verdict: Verdict) -> dict[str, Any]:
    return {"of_sink": sink, "at": verdict.candidate.position}


def _later(verdict: Verdict, decision: Again) -> dict[str, Any]:
    return {"attempts": verdict.attempts, "due_at": decision.due_at, "reason": _short(decision.reason)}


async def _write_attempts(
    connection: AsyncConnection, sink: str, settlement: Settlement, replay_id: int | None = None
) -> None:
    if settlement.attempts:
        rows = [_attempt(sink, one) | {"replay_id": replay_id} for one in settlement.attempts]
        await connection.execute(ATTEMPTS.insert(), rows)


async def _write_progress(
    database: Database, connection: AsyncConnection, sink: str, progress: Progress, now: datetime
) -> None:
    """A replay that was cancelled meanwhile stays so, and an event that was requeued meanwhile is no dead letter."""
    settlement, values = progress.settlement, {"state": "finished", "ended_at": now} if progress.finished else {}
    dead = [verdict for verdict in settlement.firsts if isinstance(verdict.decision, Dead)]
    awaited = await _among_retries(connection, sink, [verdict.candidate.position for verdict in dead])
    dead = [verdict for verdict in dead if verdict.candidate.position not in awaited]
    await _write_dead_letters(database, connection, sink, dead, now)
    open_still = and_(REPLAYS.c.id == progress.replay_id, REPLAYS.c.state.in_(("running", "paused")))
    moved = {
        "position": settlement.cursor,
        "published": REPLAYS.c.published + progress.published,
        "dead_letters": REPLAYS.c.dead_letters + len(dead),
    }
    await connection.execute(update(REPLAYS).where(open_still).values(**moved, **values))
    await _write_attempts(connection, sink, settlement, progress.replay_id)


def _retry(sink: str, verdict: Verdict, now: datetime) -> dict[str, Any]:
    decision = verdict.decision
    return {
        "sink": sink,
        "position": verdict.candidate.position,
        "lane": verdict.candidate.lane,
        "state": "parked",
        "first_at": now,
        **(_later(verdict, decision) if isinstance(decision, Again) else {"attempts": verdict.attempts, **_UNTIMED}),
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
    return Lease(sink=row.name, epoch=row.epoch, cursor=row.cursor, health=health)


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
