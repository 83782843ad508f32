"""Alerts: the lease of the evaluation, the rows of alerts, and the entries of the event log about them."""

import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Row, and_, delete, exists, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.alerts import (
    Alert,
    AlertChange,
    AlertKey,
    AlertStatus,
    Evidence,
    RuleType,
    Severity,
    Transition,
    announcement,
)
from receiver.domain.publication import AlertEvent
from receiver.errors import Conflict, ReceiverError, Unknown
from receiver.explanation.installation import AlertingRecord
from receiver.models.alerts import ALERTING, ALERTS, AlertRow, alert_read
from receiver.models.columns import json_text, table_of
from receiver.models.events import EVENTS
from receiver.models.queries import AlertQuery, Page, SortOrder
from receiver.storage import event_log, leases
from receiver.storage.bulk import ExecuteMany, InsertMany, Spelling, Step, Transaction, upsert
from receiver.storage.database import Database

# --- the lease ---


class AlertingLeaseLost(ReceiverError):
    """Another worker evaluates the alerts of this database; nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertingLease:
    """The right to evaluate; `epoch` fences off the previous holder."""

    epoch: int


async def acquire(database: Database, *, holder: str, seconds: float, take_over: bool = False) -> AlertingLease | None:
    """Takes the lease if no other worker holds it, by the database's clock; with `take_over` even if one does."""
    statement = leases.taken(database, ALERTING, holder=holder, seconds=seconds, take_over=take_over)
    async with database.writing() as connection:
        row = (await connection.execute(statement.returning(ALERTING.c.epoch))).one_or_none()
    return AlertingLease(epoch=row.epoch) if row is not None else None


async def renew(database: Database, lease: AlertingLease, *, seconds: float) -> None:
    """Extends the lease; raises AlertingLeaseLost if another worker has it."""
    await _update(database, lease, lease_until=database.clock(seconds))


async def release(database: Database, lease: AlertingLease) -> None:
    """Releases the lease; does nothing if it is lost already."""
    await leases.release(database, ALERTING, epoch=lease.epoch)


async def record_failure(database: Database, lease: AlertingLease, since: datetime, error: str) -> None:
    """Records since when alerts cannot be evaluated, and why."""
    await _update(database, lease, failing_since_at=since, last_error=error)


async def _update(database: Database, lease: AlertingLease, **values: Any) -> None:
    async with database.writing() as connection:
        if not await leases.hold(connection, ALERTING, epoch=lease.epoch, **values):
            raise AlertingLeaseLost(_LOST)


_LOST: Final = "another worker evaluates the alerts of this database"


async def state(database: Database) -> AlertingRecord:
    """How the evaluation is, and the number of firing alerts by severity."""
    of_severity = select(ALERTS.c.severity, func.count()).where(_IS_FIRING).group_by(ALERTS.c.severity)
    async with database.reading() as connection:
        row = (await connection.execute(select(ALERTING))).one()
        firing = {row[0]: row[1] for row in await connection.execute(of_severity)}
    return AlertingRecord(
        firing={severity.value: firing.get(severity, 0) for severity in reversed(Severity)},
        evaluated_at=row.evaluated_at,
        failing_since_at=row.failing_since_at,
        last_error=row.last_error,
    )


# --- what the evaluation reads ---

_IS_OPEN: Final = ALERTS.c.status != AlertStatus.RESOLVED.value
_IS_FIRING: Final = ALERTS.c.status == AlertStatus.FIRING.value
_IS_SHOWN: Final = ALERTS.c.status != AlertStatus.PENDING.value


async def open_alerts(connection: AsyncConnection) -> list[Alert]:
    """The alerts that are pending or firing."""
    return [_alert(row) for row in await connection.execute(select(ALERTS).where(_IS_OPEN))]


async def with_ids(connection: AsyncConnection, alert_ids: Collection[str]) -> dict[str, Alert]:
    """The alerts with these ids that are stored."""
    rows = await connection.execute(select(ALERTS).where(ALERTS.c.id.in_(alert_ids)))
    return {row.id: _alert(row) for row in rows}


def _alert(row: Row[Any] | Any) -> Alert:
    return Alert(
        id=row.id,
        rule=RuleType(row.rule),
        name=row.name,
        severity=Severity(row.severity),
        status=AlertStatus(row.status),
        group=row.group_value,
        summary=row.summary,
        evidence=Evidence(**row.evidence),
        to=tuple(row.targets),
        messages=tuple(row.messages),
        began_at=row.began_at,
        clear_since=row.clear_since,
        unknown_since=row.unknown_since,
        fired_at=row.fired_at,
        updated_at=row.updated_at,
        resolved_at=row.resolved_at,
        acknowledged_at=row.acknowledged_at,
        muted_until=row.muted_until,
        announced_at=row.announced_at,
        ends_at=row.ends_at,
    )


# --- inside the appending transaction ---


async def hold(transaction: Transaction, lease: AlertingLease, failure: tuple[datetime, str] | None = None) -> None:
    """Records that the rules were evaluated; `failure` is since when one of them cannot be, and why.

    Raises AlertingLeaseLost if another worker has the lease; the transaction must then be rolled back.
    """
    since, error = failure or (None, None)
    if not await transaction.execute(_HOLD, (transaction.spelling.time(since), error, lease.epoch)):
        raise AlertingLeaseLost(_LOST)


_HOLD: Final = "UPDATE alerting SET failing_since_at = ?, last_error = ? WHERE epoch = ?"


async def stored(transaction: Transaction, alert_ids: Iterable[str]) -> dict[str, Alert]:
    """The alerts with these ids that are stored, inside the appending transaction."""
    rows = await transaction.select(list(ALERTS.columns), "id {among}", alert_ids)
    return {row.id: _alert(row) for row in rows}


async def open_external(transaction: Transaction) -> int:
    """How many alerts of other programs are open."""
    statement = f"SELECT count(*) FROM alerts WHERE rule = '{RuleType.EXTERNAL}' AND status <> 'resolved'"  # noqa: S608
    [(number,)] = await transaction.fetch(statement)
    return int(number)


Further = Callable[[Sequence[AlertChange], Spelling], Iterable[Step]]
"""The further steps that go with what others hear of, such as notifications, after those that write the alerts."""


Named = Callable[[Alert], frozenset[str] | None]
"""The sinks that the rule of an alert names; None: every sink that asks for alert events."""


def _nothing(_: Sequence[AlertChange], __: Spelling) -> Iterable[Step]:
    return ()


async def write(
    transaction: Transaction,
    changes: Sequence[AlertChange],
    *,
    now: datetime,
    base_url: str,
    sinks: Named = lambda _: None,
    further: Further = _nothing,
) -> list[AlertChange]:
    """Writes changes of alerts and the entries of the event log about them; returns what others hear of.

    Each alert has one change at most. `base_url` is the start of the links. That an alert is resolved is for the sinks
    that its firing was for. What people have decided (acknowledged, muted) stays as it is in the database; a new alert
    is muted if those of its rule and group are.
    """
    if len({change.alert.id for change in changes}) < len(changes):
        raise ValueError("an alert has several changes at once")
    written, heard = [], []
    for change in await _as_decided(transaction, changes, now):
        alert, heard_as = change.alert, announcement(change, now)
        if heard_as is Transition.FIRED:
            alert = replace(alert, announced_at=now)
        written.append(AlertChange(transition=change.transition, alert=alert))
        if heard_as is not None:
            heard.append(AlertChange(transition=heard_as, alert=alert))
    spelling = transaction.spelling
    named = await _named_before(transaction, [change.alert.id for change in heard])
    events = [_event(change, now, base_url, named.get(change.alert.id, sinks(change.alert))) for change in heard]
    kept = [change.alert for change in written if change.transition is not Transition.FORGOTTEN]
    gone = [(change.alert.id,) for change in written if change.transition is Transition.FORGOTTEN]
    await transaction.run(
        [
            ExecuteMany("DELETE FROM alerts WHERE id = ? AND status = 'pending'", gone),
            InsertMany(ALERTS, _WRITTEN, [_row(alert, spelling) for alert in kept], _REPLACE),
            event_log.append_alerts(events, spelling),
            *further(heard, spelling),
        ]
    )
    return heard


async def _named_before(transaction: Transaction, alert_ids: Sequence[str]) -> dict[str, frozenset[str] | None]:
    """The sinks that the firing of alerts was for, by the id of the alert, as far as it is in the log."""
    if not alert_ids:
        return {}
    rows = await transaction.select(_FIRING, "message_id {among} AND api = 'alert' AND status = 'fired'", alert_ids)
    named = {row.message_id: row.facts["sinks"] for row in rows}
    return {alert_id: frozenset(sinks) if sinks is not None else None for alert_id, sinks in named.items()}


_FIRING: Final = [EVENTS.c.message_id, EVENTS.c.facts]


async def _as_decided(transaction: Transaction, changes: Sequence[AlertChange], now: datetime) -> list[AlertChange]:
    """The changes with what the database has of people's decisions, which may be newer than what was evaluated.

    An alert that was resolved meanwhile, by the program that posted it or by a person, has no further changes. One
    whose end was put off meanwhile does not end.
    """
    stored = await transaction.select(_DECIDED, "id {among}", {change.alert.id for change in changes})
    decided = {row.id: row for row in stored}
    resolved = {row.id for row in stored if row.status == AlertStatus.RESOLVED}
    resolved |= {
        change.alert.id
        for change in changes
        if change.transition is Transition.RESOLVED
        and (row := decided.get(change.alert.id)) is not None
        and row.ends_at != change.alert.ends_at
    }
    mutes = await _mutes(transaction, [change.alert for change in changes if change.alert.id not in decided], now)

    def as_decided(alert: Alert) -> Alert:
        row = decided.get(alert.id)
        if row is None:
            return replace(alert, muted_until=mutes.get(alert.key, alert.muted_until))
        return replace(
            alert,
            acknowledged_at=row.acknowledged_at,
            muted_until=row.muted_until,
            announced_at=row.announced_at,
        )

    return [replace(change, alert=as_decided(change.alert)) for change in changes if change.alert.id not in resolved]


async def _mutes(transaction: Transaction, new: Sequence[Alert], now: datetime) -> dict[AlertKey, datetime]:
    """Until when the alerts of the rules and groups of new alerts are muted; what is not muted is left out."""
    if not new:
        return {}
    # Not by name: a post may bring 500 names, and each value is searched for on its own.
    rules = {alert.rule.value for alert in new}
    rows = await transaction.select(_MUTED, "rule {among} AND muted_until > ?", rules, transaction.spelling.time(now))
    found: dict[AlertKey, datetime] = {}
    for row in rows:
        key = RuleType(row.rule), row.name, row.group_value
        found[key] = max(row.muted_until, found.get(key, row.muted_until))
    return found


_MUTED: Final = [ALERTS.c.rule, ALERTS.c.name, ALERTS.c.group_value, ALERTS.c.muted_until]
_DECIDED: Final = [
    ALERTS.c.id,
    ALERTS.c.status,
    ALERTS.c.acknowledged_at,
    ALERTS.c.muted_until,
    ALERTS.c.announced_at,
    ALERTS.c.ends_at,
]
_WRITTEN: Final = tuple(column.name for column in ALERTS.columns)
_REPLACE: Final = upsert(ALERTS, untouched=("acknowledged_at", "muted_until"))


def _row(alert: Alert, spelling: Spelling) -> tuple[Any, ...]:
    time = spelling.time
    evidence = alert.evidence
    values = {
        "id": alert.id,
        "rule": alert.rule.value,
        "name": alert.name,
        "severity": alert.severity.value,
        "status": alert.status.value,
        "group_value": alert.group,
        "summary": alert.summary,
        "evidence": json_text(
            {
                "value": evidence.value,
                "threshold": evidence.threshold,
                "volume": evidence.volume,
                "before": evidence.before,
            }
        ),
        "messages": json_text(list(alert.messages)),
        "targets": json_text(list(alert.to)),
        "began_at": time(alert.began_at),
        "clear_since": time(alert.clear_since),
        "unknown_since": time(alert.unknown_since),
        "announced_at": time(alert.announced_at),
        "fired_at": time(alert.fired_at),
        "updated_at": time(alert.updated_at),
        "resolved_at": time(alert.resolved_at),
        "acknowledged_at": time(alert.acknowledged_at),
        "muted_until": time(alert.muted_until),
        "ends_at": time(alert.ends_at),
    }
    return tuple(values[name] for name in _WRITTEN)


def _event(change: AlertChange, now: datetime, base_url: str, sinks: frozenset[str] | None) -> AlertEvent:
    alert = change.alert
    transition: Literal["fired", "resolved"] = "fired" if change.transition is Transition.FIRED else "resolved"
    return AlertEvent(
        id=event_id(alert.id, transition),
        alert_id=alert.id,
        transition=transition,
        occurred_at=(alert.fired_at if transition == "fired" else alert.resolved_at) or now,
        received_at=now,
        alert=alert_read(alert, base_url).model_dump(mode="json", by_alias=True),
        sinks=sinks,
    )


def event_id(alert_id: str, transition: str) -> str:
    """The id of an alert event, as long as those of messages: an alert fires once and is resolved once."""
    return hashlib.sha256(f"alert {alert_id} {transition}".encode()).hexdigest()[:32]


# --- what is shown, and what people decide ---


class UnknownAlert(Unknown):
    """No alert has this id; one that does not hold for long enough yet is not shown."""


async def find(database: Database, query: AlertQuery) -> Page[Alert]:
    """A page of the alerts that fire or are resolved, newest first by default."""
    conditions: list[ColumnElement[bool]] = [_IS_SHOWN]
    for column, value in (
        (ALERTS.c.status, query.status),
        (ALERTS.c.rule, query.rule),
        (ALERTS.c.name, query.name),
        (ALERTS.c.severity, query.severity),
        (ALERTS.c.group_value, query.group),
    ):
        if value is not None:
            conditions.append(column == value)
    if query.since is not None:
        conditions.append(ALERTS.c.fired_at >= query.since)
    if query.until is not None:
        conditions.append(ALERTS.c.fired_at < query.until)
    is_rising = query.order is SortOrder.ASC
    if query.after is not None:
        after = query.after
        time, id_ = ALERTS.c.fired_at, ALERTS.c.id
        later = (time > after.fired_at, id_ > after.id) if is_rising else (time < after.fired_at, id_ < after.id)
        conditions.append(or_(later[0], and_(time == after.fired_at, later[1])))
    columns = (ALERTS.c.fired_at, ALERTS.c.id)
    order = [column.asc() if is_rising else column.desc() for column in columns]
    statement = select(ALERTS).where(*conditions).order_by(*order).limit(query.size + 1).offset(query.skip)
    async with database.reading() as connection:
        rows = (await connection.execute(statement)).all()
    return Page(items=[_alert(row) for row in rows[: query.size]], more=len(rows) > query.size)


async def with_id(database: Database, alert_id: str) -> Alert:
    """A single alert; raises UnknownAlert."""
    async with database.reading() as connection:
        return _alert(await _shown(connection, alert_id))


@asynccontextmanager
async def _deciding(database: Database) -> AsyncIterator[AsyncConnection]:
    """A transaction for a decision of people.

    It takes the lock of the event log first, as rounds and posts do: these may lock the same rows in another order, and
    a mute must also hold for the alert that one of them is just writing.
    """
    async with database.writing() as connection:
        await database.lock_log(connection)
        yield connection


async def acknowledge(database: Database, alert_id: str, *, now: datetime) -> Alert:
    """Records that somebody looks after an alert; a second time changes nothing.

    Raises UnknownAlert, or Conflict if the alert is resolved.
    """
    async with _deciding(database) as connection:
        row = await _shown(connection, alert_id)
        if row.status != AlertStatus.FIRING:
            raise Conflict("the alert is resolved; only an alert that fires can be acknowledged")
        first = and_(ALERTS.c.id == alert_id, ALERTS.c.acknowledged_at.is_(None))
        await connection.execute(update(ALERTS).where(first).values(acknowledged_at=now))
        return _alert(await _shown(connection, alert_id))


async def mute(database: Database, alert_id: str, until: datetime | None) -> Alert:
    """Mutes an alert and later alerts of its rule and group until a time; None ends the mute. Raises UnknownAlert."""
    async with _deciding(database) as connection:
        row = await _shown(connection, alert_id)
        others = update(ALERTS).where(_same_key(ALERTS, row), ALERTS.c.muted_until.is_not(None) | _IS_OPEN)
        await connection.execute(others.values(muted_until=until))
        await connection.execute(update(ALERTS).where(ALERTS.c.id == alert_id).values(muted_until=until))
        return _alert(await _shown(connection, alert_id))


def _same_key(alerts: Any, other: Any) -> ColumnElement[bool]:
    """Whether alerts are of the rule and the group of another alert, or of those of another table."""
    return and_(
        alerts.c.rule == other.rule,
        alerts.c.name == other.name,
        alerts.c.group_value.is_not_distinct_from(other.group_value),
    )


async def _shown(connection: AsyncConnection, alert_id: str) -> Row[Any]:
    row = (await connection.execute(select(ALERTS).where(ALERTS.c.id == alert_id, _IS_SHOWN))).one_or_none()
    if row is None:
        raise UnknownAlert("there is no alert with this id")
    return row


# --- retention ---


_LATER: Final = table_of(AlertRow).alias("later")


def is_old(before: datetime, now: datetime) -> ColumnElement[bool]:
    """Whether an alert was resolved before a time, and holds no mute that is still in force.

    Of the alerts of a rule and a group that were muted together, the last holds the mute.
    """
    has_later = exists().where(
        _same_key(_LATER, ALERTS.c),
        _LATER.c.muted_until >= ALERTS.c.muted_until,
        or_(
            _LATER.c.began_at > ALERTS.c.began_at,
            and_(_LATER.c.began_at == ALERTS.c.began_at, _LATER.c.id > ALERTS.c.id),
        ),
    )
    is_resolved: ColumnElement[bool] = and_(
        ALERTS.c.status == AlertStatus.RESOLVED.value, ALERTS.c.resolved_at < before
    )
    return and_(is_resolved, or_(ALERTS.c.muted_until.is_(None), ALERTS.c.muted_until <= now, has_later))


async def prune(connection: AsyncConnection, before: datetime, now: datetime, limit: int) -> int:
    """Removes alerts that were resolved before a time, with their notifications; returns how many."""
    old = select(ALERTS.c.id).where(is_old(before, now)).limit(limit)
    return (await connection.execute(delete(ALERTS).where(ALERTS.c.id.in_(old)))).rowcount
