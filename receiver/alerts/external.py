"""Alerts of other programs: what they post becomes alerts of ours, which go the same ways."""

from datetime import datetime

import structlog

from receiver.alerts.alertmanager import AlertmanagerPost, changes, external_id
from receiver.alerts.targets import Targets
from receiver.domain.alerts import AlertChange, Transition
from receiver.storage import alerts
from receiver.storage.database import Database

log = structlog.get_logger("receiver.alerts")


async def take(database: Database, post: AlertmanagerPost, targets: Targets, *, now: datetime) -> list[AlertChange]:
    """Writes what a post changes, with its events and notifications, in one transaction; returns what others hear of.

    Alertmanager posts again what it has posted, and two of them post the same: only the first post changes something.
    """
    async with database.reading() as connection:
        mutes = await alerts.mutes(connection, now)
    ids = [external_id(alert) for alert in post.alerts]
    async with database.appending() as transaction:
        known = await alerts.stored(transaction, ids)
        found = changes(post.alerts, known, targets.rules, now, mutes=mutes)
        heard = await alerts.write(
            transaction,
            found,
            now=now,
            base_url=targets.base_url,
            sinks=targets.sinks_of,
            further=targets.further(now),
        )
    for change in heard:
        alert = change.alert
        fields = {"alert": alert.id, "rule": alert.name, "severity": alert.severity, "group": alert.group}
        if change.transition is Transition.FIRED:
            log.warning("an alert fires", **fields, summary=alert.summary)
        else:
            log.info("an alert is resolved", **fields)
    return heard
