"""Notifications of people: made in the transaction that changes an alert, sent later, until they are sent or fail."""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, false, func, not_, or_, select, update

from receiver.domain.alerts import Alert, Transition
from receiver.domain.notifications import LONGEST_PAUSE, Announcement, DueNotification, NotificationState
from receiver.models.alerts import NOTIFICATIONS, NotificationRead, NotificationRow
from receiver.models.columns import table_of
from receiver.providers.fields import storable
from receiver.storage import alerts
from receiver.storage.bulk import ExecuteMany, InsertMany, Spelling, Step
from receiver.storage.database import Database

_COLUMNS: Final = ("alert_id", "transition", "target", "label", "state", "attempts", "created_at", "due_at")
_ONCE: Final = "ON CONFLICT (alert_id, target, transition) DO NOTHING"
# Those who may have heard that it fired hear that it is resolved: an attempt that failed may have opened an incident
# nevertheless. `coalesce` tells PostgreSQL the type of a parameter.
_RESOLVE: Final = (
    f"INSERT INTO notifications ({', '.join(_COLUMNS)}) "  # noqa: S608  (names are ours)
    "SELECT alert_id, 'resolved', target, label, 'due', 0, coalesce(?, created_at), coalesce(?, due_at) "
    "FROM notifications WHERE alert_id = ? AND transition = 'fired' "
    f"AND (state IN ('due', 'sent') OR state = 'failed' AND attempts > 0) {_ONCE}"
)
_LONGEST_ERROR: Final = 300


def steps(announcement: Announcement, spelling: Spelling, now: datetime) -> list[Step]:
    """The steps that make notifications, after those that write the alerts."""
    at = spelling.time(now)
    fired = [
        (alert_id, "fired", recipient.target, recipient.label, "due", 0, at, at)
        for alert_id, recipient in announcement.fired
    ]
    return [
        InsertMany(NOTIFICATIONS, _COLUMNS, fired, _ONCE),
        ExecuteMany(_RESOLVE, [(at, at, alert_id) for alert_id in announcement.resolved]),
    ]


_FIRED: Final = table_of(NotificationRow).alias("fired")
_DUE: Final = NOTIFICATIONS.c.state == "due"


async def due(
    database: Database,
    *,
    now: datetime,
    limit: int,
    known: Collection[str],
    unknown_before: datetime,
    without: Collection[str] = (),
    ended: Collection[int] = (),
) -> list[DueNotification]:
    """The due notifications, the earliest `due_at` first, but for those of the targets `without`.

    Those of targets that are not `known` only if they were due before `unknown_before`: another process may know them.
    `ended` are ids whose pause is over, whatever the clock says: it may have been set back. For the same reason, those
    are due that were never tried, or whose pause would be longer than any.
    That an alert is resolved is not due while the attempt to send that it fired is under way, in whatever process: its
    target would hear first that the alert is resolved, then that it fires.
    """
    same = and_(
        _FIRED.c.alert_id == NOTIFICATIONS.c.alert_id,
        _FIRED.c.target == NOTIFICATIONS.c.target,
        _FIRED.c.transition == "fired",
        NOTIFICATIONS.c.transition == "resolved",
    )
    is_due = or_(
        NOTIFICATIONS.c.due_at <= now,
        NOTIFICATIONS.c.attempts == 0,
        NOTIFICATIONS.c.due_at > now + LONGEST_PAUSE,
        NOTIFICATIONS.c.id.in_(ended),
    )
    statement = (
        select(NOTIFICATIONS, _FIRED.c.state.label("fired_state"), _FIRED.c.attempts.label("fired_attempts"))
        .outerjoin(_FIRED, same)
        .where(_DUE, is_due, NOTIFICATIONS.c.target.not_in(without))
        .where(or_(NOTIFICATIONS.c.target.in_(known), NOTIFICATIONS.c.due_at <= unknown_before))
        .where(or_(_FIRED.c.id.is_(None), _FIRED.c.state != "due", not_(_is_under_way(_FIRED, now))))
        .order_by(NOTIFICATIONS.c.due_at, NOTIFICATIONS.c.id)
        .limit(limit)
    )
    async with database.reading() as connection:
        rows = (await connection.execute(statement)).all()
        found = await alerts.with_ids(connection, {row.alert_id for row in rows})
    # Retention may have removed an alert, with its notifications, meanwhile.
    return [_due(row, found[row.alert_id]) for row in rows if row.alert_id in found]


def _due(row: Any, alert: Alert) -> DueNotification:
    return DueNotification(
        id=row.id,
        target=row.target,
        label=row.label,
        transition=Transition(row.transition),
        attempts=row.attempts,
        created_at=row.created_at,
        alert=alert,
        fired_state=NotificationState(row.fired_state) if row.fired_state is not None else None,
        fired_attempts=row.fired_attempts or 0,
    )


def _is_under_way(table: Any, now: datetime) -> ColumnElement[bool]:
    until = table.c.under_way_until
    return func.coalesce(and_(until > now, until <= now + _LONGEST_ATTEMPT), false())


# A later end is that of an attempt before the clock was set back.
_LONGEST_ATTEMPT: Final = timedelta(minutes=1)


async def begin(database: Database, notification: DueNotification, *, again_at: datetime) -> bool:
    """Counts an attempt before it is made; false if another process has begun one.

    `again_at` is when it is due again if this process dies before it records the result.
    """
    changes: dict[str, Any] = {"attempts": notification.attempts + 1, "due_at": again_at, "under_way_until": again_at}
    return await _change(database, _unchanged(notification), **changes)


async def sent(database: Database, notification: DueNotification, *, now: datetime) -> bool:
    """Records that the attempt that was begun was accepted; false if another process has begun the next one."""
    changes: dict[str, Any] = {"state": "sent", "sent_at": now, "last_error": None, "under_way_until": None}
    return await _change(database, _begun(notification), **changes)


async def failed(database: Database, notification: DueNotification, error: str, *, due_at: datetime | None) -> bool:
    """Records that the attempt that was begun failed; without `due_at` the notification is not tried again.

    False if another process has begun the next attempt.
    """
    changes: dict[str, Any] = {"state": "failed"} if due_at is None else {"due_at": due_at}
    error = storable(error[:_LONGEST_ERROR])
    return await _change(database, _begun(notification), last_error=error, under_way_until=None, **changes)


async def give_up(database: Database, notification: DueNotification, error: str) -> bool:
    """Lets a notification fail without an attempt; false if another process has begun one."""
    return await _change(database, _unchanged(notification), state="failed", last_error=error, under_way_until=None)


async def withdraw(database: Database, notification: DueNotification) -> bool:
    """Withdraws a notification that is due; false if another process has begun an attempt."""
    return await _change(database, _unchanged(notification), state="withdrawn")


async def withdraw_fired(database: Database, notification: DueNotification) -> bool:
    """Withdraws the notification that an alert fired, which this one, that it is resolved, follows.

    False if another process has begun an attempt.
    """
    fired = and_(
        NOTIFICATIONS.c.alert_id == notification.alert.id,
        NOTIFICATIONS.c.target == notification.target,
        NOTIFICATIONS.c.transition == "fired",
        NOTIFICATIONS.c.attempts == notification.fired_attempts,
        _DUE,
    )
    return await _change(database, fired, state="withdrawn")


def _unchanged(notification: DueNotification) -> Any:
    return and_(_this(notification.id), NOTIFICATIONS.c.attempts == notification.attempts)


def _begun(notification: DueNotification) -> Any:
    return and_(_this(notification.id), NOTIFICATIONS.c.attempts == notification.attempts + 1)


def _this(notification_id: int) -> Any:
    return and_(NOTIFICATIONS.c.id == notification_id, _DUE)


async def _change(database: Database, where: Any, **values: Any) -> bool:
    async with database.writing() as connection:
        return bool((await connection.execute(update(NOTIFICATIONS).where(where).values(**values))).rowcount)


async def of_alert(database: Database, alert_id: str) -> list[NotificationRead]:
    """The notifications of an alert, in the order in which they were made; raises UnknownAlert."""
    statement = select(NOTIFICATIONS).where(NOTIFICATIONS.c.alert_id == alert_id).order_by(NOTIFICATIONS.c.id)
    await alerts.with_id(database, alert_id)
    async with database.reading() as connection:
        return [_read(row) for row in await connection.execute(statement)]


def _read(row: Any) -> NotificationRead:
    return NotificationRead(
        target=row.label,
        transition=row.transition,
        state=row.state,
        attempts=row.attempts,
        error=row.last_error,
        created_at=row.created_at,
        next_at=row.due_at if row.state == NotificationState.DUE else None,
        sent_at=row.sent_at,
    )
