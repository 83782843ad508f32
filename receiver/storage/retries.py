"""What a sink must be given again: in each lane one retry is the head, the others wait behind it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, TextClause, and_, bindparam, case, delete, exists, func, select, true, update
from sqlalchemy import text as sql
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.events import MessageKey
from receiver.domain.publication import DeadLettered, RetryAt
from receiver.domain.queries import AttemptView
from receiver.domain.window import Attempt, Decided, Settlement
from receiver.providers.fields import storable
from receiver.storage.columns import UTCDateTime
from receiver.storage.database import Database
from receiver.storage.event_log import EVENTS
from receiver.storage.sinks import Health, Lease, hold_lease
from receiver.storage.tables import ATTEMPTS, DEAD_LETTERS, REPLAYS, RETRIES

# spelled as in the partial indexes, which SQLite otherwise does not take
_IS_DUE: Final = sql("retries.state = 'due'")
_IS_HEAD: Final = sql("retries.state <> 'parked'")
_TOLD: Final = (RETRIES.c.position, RETRIES.c.ordering_key, RETRIES.c.attempts, RETRIES.c.first_at)

THIS_RETRY: Final = and_(RETRIES.c.sink == bindparam("of_sink"), RETRIES.c.position == bindparam("at"))


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingRetry:
    """A retry that waits to be tried, or behind one that does."""

    position: int
    ordering_key: str
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
    database: Database, connection: AsyncConnection, sink: str, ordering_keys: Iterable[str], *, limit: int
) -> list[WaitingRetry]:
    """The retries of these lanes that no operator holds, in the order of the log."""
    waiting = select(*_TOLD).where(RETRIES.c.sink == sink, RETRIES.c.state != "held")
    found = database.for_each("lanes", lambda ordering_key: waiting.where(RETRIES.c.ordering_key == ordering_key))
    # a sum is in no index: SQLite would read all of the sink's retries in the order of one
    statement = select(found).order_by(found.c.position + 0).limit(limit)
    return _waiting(await connection.execute(statement, {"lanes": database.texts(ordering_keys)}))


def _waiting(rows: Iterable[Row[Any]]) -> list[WaitingRetry]:
    return [
        WaitingRetry(position=row.position, ordering_key=row.ordering_key, attempts=row.attempts, first_at=row.first_at)
        for row in rows
    ]


async def awaited(connection: AsyncConnection, sink: str, after: int, until: int) -> frozenset[int]:
    """The positions in a range of the log, its end included, that a sink keeps as retries."""
    positions = select(RETRIES.c.position).where(
        RETRIES.c.sink == sink, RETRIES.c.position > after, RETRIES.c.position <= until
    )
    return frozenset((await connection.scalars(positions)).all())


async def blocked_keys(
    database: Database, connection: AsyncConnection, sink: str, ordering_keys: Iterable[str]
) -> frozenset[str]:
    """Those of these lanes in which a retry waits."""
    ordering_key = database.listed("lanes").c.value
    statement = select(ordering_key).where(_first_in(sink, ordering_key).is_not(None))
    return frozenset((await connection.scalars(statement, {"lanes": database.texts(ordering_keys)})).all())


async def promote(
    database: Database, connection: AsyncConnection, sink: str, ordering_keys: Iterable[str], now: datetime
) -> None:
    """Makes the smallest position of each of these lanes its head, where it has none.

    It is due at its time, else at once; or held for an operator if it is among the dead letters.
    """
    listed = database.listed("lanes")
    ordering_key = listed.c.value
    headless = (
        select(_first_in(sink, ordering_key))
        .select_from(listed)
        .where(_first_in(sink, ordering_key, _IS_HEAD).is_(None))
    )
    positions = (await connection.scalars(headless, {"lanes": database.texts(sorted(set(ordering_keys)))})).all()
    heads = [{"of_sink": sink, "at": position, "now": now} for position in positions if position is not None]
    if heads:
        await connection.execute(_SEAT, heads)


def _first_in(sink: str, ordering_key: ColumnElement[str], *conditions: TextClause) -> ColumnElement[int | None]:
    """The smallest position among the retries of a lane.

    It is looked up lane by lane: without statistics a planner would rather read all retries of the sink.
    """
    first: ColumnElement[int | None] = (
        select(RETRIES.c.position)
        .where(RETRIES.c.sink == sink, RETRIES.c.ordering_key == ordering_key, *conditions)
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


_LONGEST_TEXT: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a replay has got, and what became of its events since that was last written."""

    replay_id: int
    settlement: Settlement
    published: int
    finished: bool


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
        await hold_lease(connection, lease, values | ({"paused": True} if pause else {}))
        # before the retries: what is dead among them holds its lane
        await _write_dead_letters(database, connection, lease.sink, (*settlement.firsts, *settlement.retries), now)
        await _write_retries(database, connection, lease.sink, settlement, now)
        await _write_attempts(connection, lease.sink, settlement)
        if progress is not None:
            await _write_progress(database, connection, lease.sink, progress, now)


async def _write_retries(
    database: Database, connection: AsyncConnection, sink: str, settlement: Settlement, now: datetime
) -> None:
    """Rows go in as parked, also those that were tried: `promote` alone says who is the head of a lane."""
    new = [_retry(sink, verdict, now) for verdict in settlement.firsts if verdict.blocks]
    over = [_key(sink, verdict) for verdict in settlement.retries if not verdict.blocks]
    again = [
        _key(sink, verdict) | _later(verdict, verdict.decision)
        for verdict in settlement.retries
        if isinstance(verdict.decision, RetryAt)
    ]
    held = [_key(sink, verdict) | {"attempts": verdict.attempts} for verdict in settlement.retries if verdict.holds]
    if new:
        insert = database.insert(RETRIES).on_conflict_do_nothing(index_elements=["sink", "position"])
        await connection.execute(insert, new)
    if over:
        await connection.execute(delete(RETRIES).where(THIS_RETRY), over)
    if again:
        await connection.execute(_POSTPONE, again)
    if held:
        await connection.execute(_UNSEAT, held)
    ordering_keys = {
        verdict.candidate.ordering_key for verdict in (*settlement.firsts, *settlement.retries) if _moves_key(verdict)
    }
    if ordering_keys:
        await promote(database, connection, sink, ordering_keys, now)


def _moves_key(verdict: Decided) -> bool:
    return verdict.candidate.is_retry or verdict.blocks


_POSTPONE: Final = (
    update(RETRIES).where(THIS_RETRY).values({name: bindparam(name) for name in ("attempts", "due_at", "reason")})
)

_UNSEAT: Final = update(RETRIES).where(THIS_RETRY).values(state="parked", attempts=bindparam("attempts"))


def _key(sink: str, verdict: Decided) -> dict[str, Any]:
    return {"of_sink": sink, "at": verdict.candidate.position}


def _retry(sink: str, verdict: Decided, now: datetime) -> dict[str, Any]:
    decision = verdict.decision
    return {
        "sink": sink,
        "position": verdict.candidate.position,
        "ordering_key": verdict.candidate.ordering_key,
        "state": "parked",
        "first_at": now,
        **(_later(verdict, decision) if isinstance(decision, RetryAt) else {"attempts": verdict.attempts, **_UNTIMED}),
    }


def _later(verdict: Decided, decision: RetryAt) -> dict[str, Any]:
    return {"attempts": verdict.attempts, "due_at": decision.due_at, "reason": _short(decision.reason)}


_UNTIMED: Final[dict[str, Any]] = {"due_at": None, "reason": None}


async def _write_dead_letters(
    database: Database, connection: AsyncConnection, sink: str, verdicts: Iterable[Decided], now: datetime
) -> None:
    rows = [
        _dead_letter(sink, verdict, verdict.decision, now)
        for verdict in verdicts
        if isinstance(verdict.decision, DeadLettered)
    ]
    if rows:
        insert = database.insert(DEAD_LETTERS).on_conflict_do_nothing(index_elements=["sink", "position"])
        await connection.execute(insert, rows)


def _dead_letter(sink: str, verdict: Decided, decision: DeadLettered, now: datetime) -> dict[str, Any]:
    candidate = verdict.candidate
    return {
        "sink": sink,
        "position": candidate.position,
        "ordering_key": candidate.ordering_key,
        "event_id": candidate.publication.id,
        "reason": decision.death,
        "detail": _short(decision.reason),
        "attempts": verdict.attempts,
        "response_code": decision.response_code,
        "response": _short(decision.response),
        "first_at": candidate.since or now,
        "died_at": now,
    }


async def _write_attempts(
    connection: AsyncConnection, sink: str, settlement: Settlement, replay_id: int | None = None
) -> None:
    if settlement.attempts:
        rows = [_attempt(sink, one) | {"replay_id": replay_id} for one in settlement.attempts]
        await connection.execute(ATTEMPTS.insert(), rows)


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


async def _write_progress(
    database: Database, connection: AsyncConnection, sink: str, progress: Progress, now: datetime
) -> None:
    """A replay that was cancelled meanwhile stays so, and an event that was requeued meanwhile is no dead letter."""
    settlement, values = progress.settlement, {"state": "finished", "ended_at": now} if progress.finished else {}
    dead = [verdict for verdict in settlement.firsts if isinstance(verdict.decision, DeadLettered)]
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


async def _among_retries(connection: AsyncConnection, sink: str, positions: Sequence[int]) -> frozenset[int]:
    if not positions:
        return frozenset()
    found = select(RETRIES.c.position).where(RETRIES.c.sink == sink, RETRIES.c.position.in_(positions))
    return frozenset((await connection.scalars(found)).all())


def _short(text: str | None) -> str | None:
    """A sink's words as they can be stored; a plug-in may say anything."""
    return storable(text[:_LONGEST_TEXT]) if text is not None else None


_COLUMNS: Final = (*ATTEMPTS.c, EVENTS.c.recipient, EVENTS.c.status)


async def attempts_of_message(connection: AsyncConnection, key: MessageKey, sink: str | None) -> list[AttemptView]:
    """All attempts to publish a message's events, perhaps to one sink alone, in the order in which they ended."""
    api, direction, message_id = key
    statement = (
        select(*_COLUMNS)
        .join(EVENTS, EVENTS.c.position == ATTEMPTS.c.position)
        .where(and_(EVENTS.c.message_id == message_id, EVENTS.c.api == api, EVENTS.c.direction == direction))
        .where(ATTEMPTS.c.sink == sink if sink is not None else true())
        .order_by(ATTEMPTS.c.id)
    )
    return [AttemptView(**row._mapping) for row in await connection.execute(statement)]
