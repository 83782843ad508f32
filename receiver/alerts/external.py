"""Alerts of other programs: what they post becomes alerts of ours, which go the same ways."""

from collections.abc import Sequence
from datetime import datetime

import structlog

from receiver.alerts.alertmanager import MAX_OPEN, AlertmanagerPost, changes, external_id, next_id
from receiver.alerts.targets import Targets
from receiver.domain.alerts import Alert, AlertChange, AlertStatus, RuleType, Transition, resolution
from receiver.errors import Conflict
from receiver.storage import alerts
from receiver.storage.bulk import Transaction
from receiver.storage.database import Database

log = structlog.get_logger("receiver.alerts")


async def take(database: Database, post: AlertmanagerPost, targets: Targets, *, now: datetime) -> list[AlertChange]:
    """Writes what a post changes, with its events and notifications, in one transaction; returns what others hear of.

    Alertmanager posts again what it has posted, and two of them post the same: only the first post changes something.
    Raises Conflict if more alerts would be open than may be; what is resolved or changed is written all the same.
    """
    async with database.appending() as transaction:
        known = await _known(transaction, post)
        found = changes(post.alerts, known, targets.rules, now)
        places = max(0, MAX_OPEN - await alerts.open_external(transaction))
        new = [change.alert.id for change in found if change.transition is Transition.FIRED]
        beyond = set(new[places:])
        taken = [change for change in found if change.alert.id not in beyond]
        heard = await _write(transaction, taken, targets, now)
    log_heard(heard)
    if beyond:
        raise Conflict(
            f"{len(beyond)} new alerts were not taken: {MAX_OPEN:,} alerts of other programs are open; "
            "receiver alerts resolve ends those that are over"
        )
    return heard


async def _known(transaction: Transaction, post: AlertmanagerPost) -> dict[str, Alert]:
    """The latest of our alerts about each alert of a post, by `external_id`."""
    base = {external_id(alert): external_id(alert) for alert in post.alerts}
    known: dict[str, Alert] = {}
    while base:
        found = await alerts.stored(transaction, base)
        known |= {base[id_]: alert for id_, alert in found.items()}
        base = {next_id(id_): base[id_] for id_, alert in found.items() if alert.status is AlertStatus.RESOLVED}
    return known


async def resolve(database: Database, alert_id: str, targets: Targets, *, now: datetime) -> Alert:
    """Ends an alert of another program, which may not exist any more.

    Raises UnknownAlert, or Conflict if the alert is resolved already or if a rule of ours decides about it.
    """
    async with database.appending() as transaction:
        alert = (await alerts.stored(transaction, [alert_id])).get(alert_id)
        if alert is None or alert.status is AlertStatus.PENDING:
            raise alerts.UnknownAlert("there is no alert with this id")
        if alert.rule is not RuleType.EXTERNAL:
            raise Conflict("only alerts of other programs are resolved by hand; a rule decides about this one")
        if alert.status is AlertStatus.RESOLVED:
            raise Conflict("the alert is resolved already")
        change = resolution(alert, now)
        heard = await _write(transaction, [change], targets, now)
    log_heard(heard)
    return change.alert


async def _write(
    transaction: Transaction, found: Sequence[AlertChange], targets: Targets, now: datetime
) -> list[AlertChange]:
    return await alerts.write(
        transaction,
        found,
        now=now,
        base_url=targets.base_url,
        sinks=targets.sinks_of,
        further=targets.further(now),
    )


def log_heard(heard: Sequence[AlertChange]) -> None:
    """Logs what others hear of, after it is committed."""
    for change in heard:
        alert = change.alert
        fields = {"alert": alert.id, "rule": alert.name, "severity": alert.severity, "group": alert.group}
        if change.transition is Transition.FIRED:
            log.warning("an alert fires", **fields, summary=alert.summary)
        else:
            log.info("an alert is resolved", **fields)
