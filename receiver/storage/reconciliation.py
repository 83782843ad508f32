"""The state of reconciliation: leases and budgets by API, and when each message was looked up.

Requests are claimed before they are made: tries, next time and budget are committed first. After a crash a message that
was claimed is therefore looked up again when its claim ends and not at once, and no request is missing in the budget.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, and_, delete, func, literal_column, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.events import Api, Direction
from receiver.domain.reconciliation import HEALTHY, Answer, ApiHealth, ReconciliationPolicy, budget_day
from receiver.errors import ReceiverError
from receiver.explanation.installation import ReconcilerRecord
from receiver.models.messages import MESSAGES
from receiver.models.reconciliation import RECONCILERS, RECONCILIATIONS
from receiver.storage import leases
from receiver.storage.database import Database

_FORGOTTEN_AT_ONCE: Final = 500


class ReconcilerLeaseLost(ReceiverError):
    """Another worker queries this API; nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcilerLease:
    """The right to query an API; `epoch` fences off the previous holder. `health` is what was recorded last."""

    api: Api
    epoch: int
    health: ApiHealth


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A message whose turn it is, after `tries` earlier ones; `due_at` is when it was due (None: it is new)."""

    message_id: str
    tries: int
    due_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The next messages to be looked up. `is_exhausted`: the budget of the day is used up."""

    messages: Sequence[Claimed]
    is_exhausted: bool = False


async def acquire(
    database: Database, api: Api, *, holder: str, seconds: float, take_over: bool = False
) -> ReconcilerLease | None:
    """Takes the lease of an API if no other worker holds it, by the database's clock; with `take_over` in any case.

    A lease of the same `holder` belongs to its dead predecessor.
    """
    of_api = RECONCILERS.c.api == api
    take = leases.taken(database, RECONCILERS, of_api, holder=holder, seconds=seconds, take_over=take_over)
    new = {"api": api.value, "epoch": 0, "requests": 0, "failures": 0, "is_exhausted": False}
    async with database.writing() as connection:
        await connection.execute(database.insert(RECONCILERS).values(**new).on_conflict_do_nothing())
        row = (await connection.execute(take.returning(*RECONCILERS.c))).one_or_none()
    return ReconcilerLease(api=api, epoch=row.epoch, health=_health(row)) if row is not None else None


def _health(row: Row[Any]) -> ApiHealth:
    if not row.failures:
        return HEALTHY
    return ApiHealth(
        failures=row.failures,
        since=row.failing_since_at,
        answer=Answer(row.answer) if row.answer else None,
        error=row.last_error,
        # Its requests were claimed just before the pause.
        paused_at=row.requested_at,
        until=row.paused_until_at,
    )


async def renew(database: Database, lease: ReconcilerLease, *, seconds: float) -> None:
    """Extends the lease; raises ReconcilerLeaseLost if another worker has it."""
    async with database.writing() as connection:
        await _hold(connection, lease, lease_until=database.clock(seconds))


async def release(database: Database, lease: ReconcilerLease) -> None:
    """Releases the lease; does nothing if it is lost already."""
    await leases.release(database, RECONCILERS, RECONCILERS.c.api == lease.api, epoch=lease.epoch)


async def _hold(connection: AsyncConnection, lease: ReconcilerLease, **values: Any) -> Row[Any]:
    """Updates the row of the API, which also locks it; raises ReconcilerLeaseLost if another worker has the lease."""
    mine = and_(RECONCILERS.c.api == lease.api, RECONCILERS.c.epoch == lease.epoch)
    statement = update(RECONCILERS).where(mine).values(**values).returning(*RECONCILERS.c)
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise ReconcilerLeaseLost(f"another worker queries the API {lease.api}")
    return row


# --- the messages ---


async def claim(
    database: Database,
    lease: ReconcilerLease,
    policy: ReconciliationPolicy,
    *,
    now: datetime,
    limit: int,
    seconds: float,
) -> Claim:
    """Claims the next messages for some seconds: first those never looked up, then those due again, the oldest first.

    If the budget is too small, new messages get it: most of them are settled by their first answer.
    """
    async with database.reading() as connection:
        found = await _candidates(connection, lease.api, policy, now, limit=limit)
    # Nobody but the holder of the lease claims messages, so they are still free. Without any, nothing is written.
    if not found:
        return Claim(messages=[])
    async with database.writing() as connection:
        row = await _hold(connection, lease, api=lease.api.value)
        today = budget_day(now, row.day)
        spent = row.requests if row.day == today else 0
        claimed = found[: policy.room(spent, limit)]
        if claimed:
            due_at = now + timedelta(seconds=seconds)
            await _write(database, connection, lease.api, claimed, now=now, due_at=due_at)
        values = {"requested_at": now} if claimed else {}
        await _hold(connection, lease, day=today, requests=spent + len(claimed), is_exhausted=not claimed, **values)
    return Claim(messages=claimed, is_exhausted=not claimed)


# Spelled as in the partial index; SQLAlchemy would write `= 1` for SQLite.
_AWAITING: Final[ColumnElement[bool]] = literal_column("messages.awaiting_receipt")


async def _candidates(
    connection: AsyncConnection, api: Api, policy: ReconciliationPolicy, now: datetime, *, limit: int
) -> list[Claimed]:
    oldest, youngest = policy.ages(now)
    same = and_(RECONCILIATIONS.c.message_id == MESSAGES.c.id, RECONCILIATIONS.c.api == MESSAGES.c.api)
    waiting = (
        select(MESSAGES.c.id, RECONCILIATIONS.c.tries, RECONCILIATIONS.c.due_at)
        .select_from(MESSAGES.outerjoin(RECONCILIATIONS, same))
        .where(_AWAITING, MESSAGES.c.direction == Direction.OUT, MESSAGES.c.api == api)
        # The row of a message that has lost events to retention does not change any more.
        .where(~MESSAGES.c.events_forgotten, MESSAGES.c.listed_at >= oldest, MESSAGES.c.listed_at <= youngest)
        .order_by(MESSAGES.c.listed_at, MESSAGES.c.id)
    )
    found: list[Claimed] = []
    for condition in (RECONCILIATIONS.c.due_at.is_(None), RECONCILIATIONS.c.due_at <= now):
        if len(found) < limit:
            rows = await connection.execute(waiting.where(condition).limit(limit - len(found)))
            found += [Claimed(message_id=row.id, tries=row.tries or 0, due_at=row.due_at) for row in rows]
    return found


async def _write(
    database: Database,
    connection: AsyncConnection,
    api: Api,
    claimed: Sequence[Claimed],
    *,
    now: datetime,
    due_at: datetime,
) -> None:
    insert = database.insert(RECONCILIATIONS).values(
        [
            {"api": api.value, "message_id": one.message_id, "tries": one.tries + 1, "asked_at": now, "due_at": due_at}
            for one in claimed
        ]
    )
    changed = {name: insert.excluded[name] for name in ("tries", "asked_at", "due_at")}
    await connection.execute(insert.on_conflict_do_update(index_elements=["message_id", "api"], set_=changed))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a claimed message: when it is looked up again; None: at its old time, as before the claim.

    `was_sent`: a request was sent, which counts against the budget.
    """

    claimed: Claimed
    due_at: datetime | None
    was_sent: bool = True


async def record(
    database: Database, lease: ReconcilerLease, outcomes: Collection[Outcome], health: ApiHealth, *, now: datetime
) -> None:
    """Records the outcomes of a claim, and the health of the API."""
    unsent = sum(not one.was_sent for one in outcomes)
    async with database.writing() as connection:
        row = await _hold(
            connection,
            lease,
            failures=health.failures,
            failing_since_at=health.since,
            answer=health.answer,
            last_error=health.error,
            paused_until_at=health.until,
        )
        if unsent and row.day == budget_day(now, row.day):
            await _hold(connection, lease, requests=max(0, row.requests - unsent))
        for one in outcomes:
            await connection.execute(_settled(lease.api, one))


def _settled(api: Api, outcome: Outcome) -> Any:
    claimed = outcome.claimed
    this = and_(RECONCILIATIONS.c.message_id == claimed.message_id, RECONCILIATIONS.c.api == api)
    if outcome.due_at is not None:
        return update(RECONCILIATIONS).where(this).values(due_at=outcome.due_at)
    if claimed.due_at is None:
        return delete(RECONCILIATIONS).where(this)
    return update(RECONCILIATIONS).where(this).values(tries=claimed.tries, due_at=claimed.due_at)


async def forget(database: Database, lease: ReconcilerLease, *, before: datetime) -> int:
    """Removes some records of messages last looked up before a time: they are too old to be looked up again."""
    mine = RECONCILIATIONS.c.api == lease.api
    async with database.writing() as connection:
        await _hold(connection, lease, api=lease.api.value)
        old = select(RECONCILIATIONS.c.message_id).where(mine, RECONCILIATIONS.c.asked_at < before)
        among = RECONCILIATIONS.c.message_id.in_(old.limit(_FORGOTTEN_AT_ONCE))
        return int((await connection.execute(delete(RECONCILIATIONS).where(mine, among))).rowcount)


async def state(database: Database, *, now: datetime) -> list[ReconcilerRecord]:
    """The state of every API that was ever queried."""
    held = and_(RECONCILERS.c.lease_until.is_not(None), RECONCILERS.c.lease_until > database.clock())
    statement = select(RECONCILERS, func.coalesce(held, False).label("is_held")).order_by(RECONCILERS.c.api)
    async with database.reading() as connection:
        rows = (await connection.execute(statement)).all()
    return [
        ReconcilerRecord(
            api=row.api,
            lease_is_held=bool(row.is_held),
            requests_today=row.requests if row.day == budget_day(now, row.day) else 0,
            last_request_at=row.requested_at,
            is_exhausted=bool(row.is_exhausted) and row.day == budget_day(now, row.day),
            health=_health(row),
        )
        for row in rows
    ]
