"""Alerts: their tables, what the evaluation counts, and what is shown of an alert."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict
from pydantic import Field as Description
from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKeyConstraint, Index, Integer
from sqlmodel import Field

from receiver.domain.alerts import Alert, RuleType, Severity
from receiver.models.columns import (
    Model,
    Read,
    Time,
    integer_column,
    json_column,
    only_where,
    position_column,
    serial_column,
    table_of,
    text_column,
    time_column,
)


class EvidenceRead(BaseModel):
    """The numbers of an alert."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    value: float = Description(description="what the rule measures, now")
    threshold: float
    volume: int | None = Description(None, description="how much was looked at")
    before: float | None = Description(None, description="the value before, where it is known")


class AlertBase(Model):
    """An alert: what a rule found for one group, from when it fired until it is resolved."""

    id: str = text_column(primary_key=True)
    rule: RuleType = text_column()
    name: str = text_column(description="the name of the rule in the settings")
    severity: Severity = text_column()
    group_value: str | None = text_column(
        nullable=True, serialization_alias="group", description="the value of the rule's `by`; null without one"
    )
    summary: str = text_column(description="a sentence for people")
    messages: list[str] = json_column(nullable=False, description="ids of up to ten of the messages it is about")
    fired_at: Time | None = time_column()
    updated_at: Time = time_column(nullable=False)
    resolved_at: Time | None = time_column()
    acknowledged_at: Time | None = time_column()
    muted_until: Time | None = time_column(serialization_alias="mutedUntil")


class AlertRow(AlertBase, table=True):
    """An alert; one that is pending or firing is the only one of its rule and group.

    `targets` is the rule's `to`. `began_at` is when the condition began to hold, `clear_since` since when it does not,
    `unknown_since` since when too little is known to tell. `announced_at` is when others heard that it fires. `ends_at`
    is the end that the program which posted it has named.
    """

    __tablename__ = "alerts"
    __table_args__ = (
        CheckConstraint("status IN ('pending', 'firing', 'resolved')", name="status"),
        Index("ix_alerts_open", "name", "group_value", **only_where("status <> 'resolved'")),
        Index("ix_alerts_fired_at", "fired_at", "id"),
        Index("ix_alerts_muted_until", "muted_until", **only_where("muted_until IS NOT NULL")),
    )

    status: str = text_column()
    evidence: dict[str, float | int | None] = json_column(nullable=False)
    targets: list[str] = json_column(nullable=False)
    began_at: datetime = time_column(nullable=False)
    clear_since: datetime | None = time_column()
    unknown_since: datetime | None = time_column()
    announced_at: datetime | None = time_column()
    ends_at: datetime | None = time_column()


class AlertRead(AlertBase, Read):
    """An alert, as the API shows it and as the `data` of `alert.fired` and `alert.resolved` has it."""

    status: Literal["firing", "resolved"]
    evidence: EvidenceRead
    link: str = Description(description="where the alert is shown")
    runbook: str = Description(description="what to do about alerts of this rule")


def alert_read(alert: Alert, base_url: str) -> AlertRead:
    """What is shown of an alert; `base_url` is the start of its links."""
    return AlertRead(
        id=alert.id,
        rule=alert.rule,
        name=alert.name,
        severity=alert.severity,
        status="resolved" if alert.resolved_at is not None else "firing",
        group_value=alert.group,
        summary=alert.summary,
        evidence=EvidenceRead.model_validate(alert.evidence),
        messages=list(alert.messages),
        link=f"{base_url}/alerts/{alert.id}",
        runbook=f"{base_url}/docs/alerts#{alert.rule}",
        fired_at=alert.fired_at,
        updated_at=alert.updated_at,
        resolved_at=alert.resolved_at,
        acknowledged_at=alert.acknowledged_at,
        muted_until=alert.muted_until,
    )


class AlertingRow(Model, table=True):
    """The state of the evaluation, one row: the lease of the process that evaluates, and how far it has counted.

    `epoch` rises with every change of the holder and fences off the previous one. `cursor` is the position of the event
    log up to which `event_counts` counts; no event received after `counting_since_at` is left out. `watching_since_at`
    is since when no evaluation was left out: what happened before it is not evidence of silence. `failing_since_at` and
    `last_error` are set while an evaluation fails.
    """

    __tablename__ = "alerting"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: int = Field(default=1, sa_column=Column(Integer, primary_key=True, autoincrement=False))
    epoch: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    lease_holder: str | None = text_column(nullable=True)
    lease_until: datetime | None = time_column()
    cursor: int = position_column()
    counting_since_at: datetime | None = time_column()
    evaluated_at: datetime | None = time_column()
    watching_since_at: datetime | None = time_column()
    failing_since_at: datetime | None = time_column()
    last_error: str | None = text_column(nullable=True)


class EventCountRow(Model, table=True):
    """How many events of a minute or an hour (by our clock) have these values; see `receiver.storage.event_counts`.

    `grain` is `minute`, `hour`, or `history`, which is an hour without the values after `application_id`. `start` is
    the beginning in minutes or hours since 1970. `measure` says what is counted. Texts are empty where there is none.
    """

    __tablename__ = "event_counts"
    # The table is its own index on SQLite.
    __table_args__ = ({"sqlite_with_rowid": False},)

    grain: str = text_column(primary_key=True)
    start: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False, nullable=False))
    measure: str = text_column(primary_key=True)
    api: str = text_column(primary_key=True)
    direction: str = text_column(primary_key=True)
    application_id: str = text_column(primary_key=True)
    carrier_name: str = text_column(primary_key=True)
    sender: str = text_column(primary_key=True)
    delivery_code: int = integer_column(primary_key=True)
    bucket: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False, nullable=False))
    events: int = integer_column()


class RefusalRow(Model, table=True):
    """How many requests to the callback routes were refused in a minute, for a reason."""

    __tablename__ = "refusals"
    __table_args__ = ({"sqlite_with_rowid": False},)

    minute: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False, nullable=False))
    reason: str = text_column(primary_key=True)
    requests: int = integer_column()


class NotificationRow(Model, table=True):
    """A change of an alert on its way to one target for people.

    `target` is a digest of the target, which may contain secrets; `label` is what people are shown of it. `state` is
    `due`, `sent`, `failed` (its time is over) or `withdrawn` (the alert was resolved first). `attempts` were begun.
    `under_way_until` is the end of the time in which the last of them may last; null once its result is recorded.
    """

    __tablename__ = "notifications"
    __table_args__ = (
        ForeignKeyConstraint(["alert_id"], ["alerts.id"], ondelete="CASCADE"),
        CheckConstraint("transition IN ('fired', 'resolved')", name="transition"),
        CheckConstraint("state IN ('due', 'sent', 'failed', 'withdrawn')", name="state"),
        Index("uq_notifications_alert_id", "alert_id", "target", "transition", unique=True),
        Index("ix_notifications_due", "due_at", **only_where("state = 'due'")),
        {"sqlite_autoincrement": True},
    )

    id: int = serial_column()
    alert_id: str = text_column()
    transition: str = text_column()
    target: str = text_column()
    label: str = text_column()
    state: str = text_column()
    attempts: int = 0
    created_at: datetime = time_column(nullable=False)
    due_at: datetime = time_column(nullable=False)
    under_way_until: datetime | None = time_column()
    sent_at: datetime | None = time_column()
    last_error: str | None = text_column(nullable=True)


class NotificationRead(Read):
    """A notification of one target for people about an alert."""

    target: str = Description(description="the target, without its secrets")
    transition: Literal["fired", "resolved"]
    state: Literal["due", "sent", "failed", "withdrawn"] = Description(
        description="`failed`: it is not tried again; `withdrawn`: the alert was resolved before it was sent"
    )
    attempts: int
    error: str | None = Description(description="why the last attempt failed")
    created_at: Time
    next_at: Time | None = Description(description="when it is tried next; null unless it is due")
    sent_at: Time | None


ALERTS = table_of(AlertRow)
ALERTING = table_of(AlertingRow)
EVENT_COUNTS = table_of(EventCountRow)
REFUSALS = table_of(RefusalRow)
NOTIFICATIONS = table_of(NotificationRow)
