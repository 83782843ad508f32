"""The retries of a sink: one retry of each ordering key is the head, the others are parked behind it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, TextClause, and_, bindparam, case, delete, exists, func, select, update
from sqlalchemy import text as sql
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.publication import DeadLettered, RetryAt
from receiver.domain.window import Attempt, Decided, Settlement
from receiver.models.columns import UTCDateTime
from receiver.models.sinks import ATTEMPTS, DEAD_LETTERS, REPLAYS, RETRIES
from receiver.providers.fields import storable
from receiver.storage.database import Database
from receiver.storage.sinks import Health, Lease, hold_lease

# Spelled as in the partial indexes; SQLite would not use the indexes otherwise.
_IS_DUE: Final = sql("retries.state = 'due'")
_IS_HEAD: Final = sql("retries.state <> 'parked'")
_RETRY_COLUMNS: Final = (RETRIES.c.position, RETRIES.c.ordering_key, RETRIES.c.attempts, RETRIES.c.first_at)

THIS_RETRY: Final = and_(RETRIES.c.sink == bindparam("of_sink"), RETRIES.c.position == bindparam("at"))


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingRetry:
    """A retry that waits for its next attempt, or is parked behind another."""

    position: int
    ordering_key: str
    attempts: int
    first_at: datetime


async def due(connection: AsyncConnection, sink: str, *, now: datetime, limit: int) -> list[WaitingRetry]:
    """The due retries, the earliest `due_at` first."""
    statement = (
        select(*_RETRY_COLUMNS)
        .where(RETRIES.c.sink == sink, _IS_DUE, RETRIES.c.due_at <= now)
        .order_by(RETRIES.c.due_at)
        .limit(limit)
    )
    return _waiting(await connection.execute(statement))


async def waiting_in(
    database: Database, connection: AsyncConnection, sink: str, ordering_keys: Iterable[str], *, limit: int
) -> list[WaitingRetry]:
    """The retries with these ordering keys that are not held, in the order of the log."""
    waiting = select(*_RETRY_COLUMNS).where(RETRIES.c.sink == sink, RETRIES.c.state != "held")
    found = database.for_each("ordering_keys", lambda value: waiting.where(RETRIES.c.ordering_key == value))
    # `+ 0` prevents the use of an index for the order: SQLite would read all retries of the sink in that order.
    statement = select(found).order_by(found.c.position + 0).limit(limit)
    return _waiting(await connection.execute(statement, {"ordering_keys": database.texts(ordering_keys)}))


def _waiting(rows: Iterable[Row[Any]]) -> list[WaitingRetry]:
    return [
        WaitingRetry(position=row.position, ordering_key=row.ordering_key, attempts=row.attempts, first_at=row.first_at)
        for row in rows
    ]


async def awaited(connection: AsyncConnection, sink: str, after: int, until: int) -> frozenset[int]:
    """The positions after one and up to another (included) for which a sink has retries."""
    positions = select(RETRIES.c.position).where(
        RETRIES.c.sink == sink, RETRIES.c.position > after, RETRIES.c.position <= until
    )
    return frozenset((await connection.scalars(positions)).all())


async def blocked_keys(
    database: Database, connection: AsyncConnection, sink: str, ordering_keys: Iterable[str]
) -> frozenset[str]:
    """Those of these ordering keys that have a retry."""
    ordering_key = database.listed("ordering_keys").c.value
    statement = select(ordering_key).where(_first_in(sink, ordering_key).is_not(None))
    return frozenset((await connection.scalars(statement, {"ordering_keys": database.texts(ordering_keys)})).all())


async def promote(
    database: Database, connection: AsyncConnection, sink: str, ordering_keys: Iterable[str], now: datetime
) -> None:
    """Makes the smallest position of each of these ordering keys its head, unless the key has one.

    The head is due at its `due_at`, or at once without one; it is held if it is also a dead letter.
    """
    listed = database.listed("ordering_keys")
    ordering_key = listed.c.value
    headless = (
        select(_first_in(sink, ordering_key))
        .select_from(listed)
        .where(_first_in(sink, ordering_key, _IS_HEAD).is_(None))
    )
    values = {"ordering_keys": database.texts(sorted(set(ordering_keys)))}
    positions = (await connection.scalars(headless, values)).all()
    heads = [{"of_sink": sink, "at": position, "now": now} for position in positions if position is not None]
    if heads:
        await connection.execute(_MAKE_HEAD, heads)


def _first_in(sink: str, ordering_key: ColumnElement[str], *conditions: TextClause) -> ColumnElement[int | None]:
    """The smallest position among the retries with an ordering key.

    Each key is looked up on its own: without statistics the planner would read all retries of the sink.
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

_MAKE_HEAD: Final = (
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
    """The progress of a replay: its settlement, and the events published since the last settlement."""

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
    """Writes a settlement in one transaction; `pause` pauses the sink until an operator resumes it.

    Raises LeaseLost, and changes nothing, if another process has taken over: the first statement checks the lease, and
    locks the sink's row so that no other transaction changes its retries meanwhile.
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
        # Before the retries: `promote` holds those that are also dead letters.
        await _write_dead_letters(database, connection, lease.sink, (*settlement.firsts, *settlement.retries), now)
        await _write_retries(database, connection, lease.sink, settlement, now)
        await _write_attempts(connection, lease.sink, settlement)
        if progress is not None:
            await _write_progress(database, connection, lease.sink, progress, now)


async def move_schedule(database: Database, lease: Lease, health: Health, by: timedelta) -> None:
    """Moves the times of all retries of a sink, because the clock was set by that much; `health` is moved already.

    Raises LeaseLost, and changes nothing, if another process has taken over.
    """
    moved = {"due_at": database.moved(RETRIES.c.due_at, by), "first_at": database.moved(RETRIES.c.first_at, by)}
    async with database.writing() as connection:
        await hold_lease(connection, lease, {"down_since_at": health.down_since_at})
        await connection.execute(update(RETRIES).where(RETRIES.c.sink == lease.sink).values(**moved))


async def _write_retries(
    database: Database, connection: AsyncConnection, sink: str, settlement: Settlement, now: datetime
) -> None:
    """Inserts rows as parked, also those that were tried: only `promote` decides the head of an ordering key."""
    new = [_retry(sink, decided, now) for decided in settlement.firsts if decided.blocks]
    over = [_key(sink, decided) for decided in settlement.retries if not decided.blocks]
    again = [
        _key(sink, decided) | _later(decided, decided.decision)
        for decided in settlement.retries
        if isinstance(decided.decision, RetryAt)
    ]
    held = [_key(sink, decided) | {"attempts": decided.attempts} for decided in settlement.retries if decided.holds]
    if new:
        insert = database.insert(RETRIES).on_conflict_do_nothing(index_elements=["sink", "position"])
        await connection.execute(insert, new)
    if over:
        await connection.execute(delete(RETRIES).where(THIS_RETRY), over)
    if again:
        await connection.execute(_POSTPONE, again)
    if held:
        await connection.execute(_PARK, held)
    ordering_keys = {
        decided.candidate.ordering_key for decided in (*settlement.firsts, *settlement.retries) if _moves_key(decided)
    }
    if ordering_keys:
        await promote(database, connection, sink, ordering_keys, now)


def _moves_key(decided: Decided) -> bool:
    return decided.candidate.is_retry or decided.blocks


_POSTPONE: Final = (
    update(RETRIES).where(THIS_RETRY).values({name: bindparam(name) for name in ("attempts", "due_at", "reason")})
)

_PARK: Final = update(RETRIES).where(THIS_RETRY).values(state="parked", attempts=bindparam("attempts"))


def _key(sink: str, decided: Decided) -> dict[str, Any]:
    return {"of_sink": sink, "at": decided.candidate.position}


def _retry(sink: str, decided: Decided, now: datetime) -> dict[str, Any]:
    decision = decided.decision
    return {
        "sink": sink,
        "position": decided.candidate.position,
        "ordering_key": decided.candidate.ordering_key,
        "state": "parked",
        "first_at": now,
        **(_later(decided, decision) if isinstance(decision, RetryAt) else {"attempts": decided.attempts, **_UNTIMED}),
    }


def _later(decided: Decided, decision: RetryAt) -> dict[str, Any]:
    return {"attempts": decided.attempts, "due_at": decision.due_at, "reason": _short(decision.reason)}


_UNTIMED: Final[dict[str, Any]] = {"due_at": None, "reason": None}


async def _write_dead_letters(
    database: Database, connection: AsyncConnection, sink: str, decisions: Iterable[Decided], now: datetime
) -> None:
    rows = [
        _dead_letter(sink, decided, decided.decision, now)
        for decided in decisions
        if isinstance(decided.decision, DeadLettered)
    ]
    if rows:
        insert = database.insert(DEAD_LETTERS).on_conflict_do_nothing(index_elements=["sink", "position"])
        await connection.execute(insert, rows)


def _dead_letter(sink: str, decided: Decided, decision: DeadLettered, now: datetime) -> dict[str, Any]:
    candidate = decided.candidate
    return {
        "sink": sink,
        "position": candidate.position,
        "ordering_key": candidate.ordering_key,
        "event_id": candidate.publication.id,
        "reason": decision.cause,
        "detail": _short(decision.reason),
        "attempts": decided.attempts,
        "response_code": decision.response_code,
        "response": _short(decision.response),
        "first_at": candidate.since or now,
        "died_at": now,
    }


async def _write_attempts(
    connection: AsyncConnection, sink: str, settlement: Settlement, replay_id: int | None = None
) -> None:
    if settlement.attempts:
        rows = [_attempt(sink, attempt) | {"replay_id": replay_id} for attempt in settlement.attempts]
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
    """Leaves a replay that was cancelled meanwhile, and writes no dead letter for an event that has a retry."""
    settlement, values = progress.settlement, {"state": "finished", "ended_at": now} if progress.finished else {}
    dead = [decided for decided in settlement.firsts if isinstance(decided.decision, DeadLettered)]
    awaited = await _among_retries(connection, sink, [decided.candidate.position for decided in dead])
    dead = [decided for decided in dead if decided.candidate.position not in awaited]
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
    """A sink's text in storable form, at most `_LONGEST_TEXT` characters; a plug-in may return any text."""
    return storable(text[:_LONGEST_TEXT]) if text is not None else None
