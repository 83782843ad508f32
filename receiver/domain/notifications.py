"""Notifications: a change of an alert on its way to one target for people, and when the target is tried again."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from receiver.domain.alerts import Alert, AlertChange, Severity, Transition
from receiver.domain.retry import RetryPolicy

POLICY: Final = RetryPolicy(
    schedule=(
        timedelta(seconds=10),
        timedelta(seconds=30),
        timedelta(minutes=2),
        timedelta(minutes=5),
        timedelta(minutes=15),
        timedelta(minutes=30),
    ),
    max_age=timedelta(hours=6),
)
"""When a notification is tried again; see `next_attempt`."""
LONGEST_PAUSE: Final = POLICY.pause(len(POLICY.schedule), 1.0, retry_after=POLICY.max_age)
"""No pause is longer, whatever a target asks for."""


def next_attempt(attempts: int, created_at: datetime, now: datetime, pause: timedelta) -> datetime | None:
    """When a notification is tried again; None: it fails, six hours after it was made, and not before all pauses.

    A clock that was six hours ahead for one attempt, or our own outage, would else let it fail at once.
    """
    if attempts <= len(POLICY.schedule) and now - created_at >= POLICY.max_age:
        return now + pause
    return POLICY.due(now, created_at, pause)


class NotificationState(StrEnum):
    DUE = "due"
    SENT = "sent"
    FAILED = "failed"
    """Its time is over; it is not tried again."""
    WITHDRAWN = "withdrawn"
    """The alert was resolved before it was sent."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """A target for people: its digest, since the target may contain secrets, and what people are shown of it."""

    target: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipients:
    """The targets for people by their digest; `defaults` are those of the rules without `to`."""

    by_target: Mapping[str, Recipient] = field(default_factory=dict)
    defaults: tuple[str, ...] = ()

    def of(self, alert: Alert) -> list[Recipient]:
        """Who hears of an alert; a target that is not in the settings hears of nothing."""
        return [
            self.by_target[target] for target in dict.fromkeys(alert.to or self.defaults) if target in self.by_target
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """A change of an alert for people: `transition` is fired or resolved.

    `link` is where the alert is shown, `runbook` what to do about it. A test is about no real alert.
    """

    alert: Alert
    transition: Transition
    link: str
    runbook: str
    is_test: bool = False

    @property
    def is_resolved(self) -> bool:
        return self.transition is Transition.RESOLVED


@dataclass(frozen=True, slots=True, kw_only=True)
class DueNotification:
    """A notification whose time has come. `attempts` were begun; one that was under way in a crash may have arrived.

    `fired_state` and `fired_attempts` are those of the notification that the alert fired, if this one says that it is
    resolved.
    """

    id: int
    target: str
    label: str
    transition: Transition
    attempts: int
    created_at: datetime
    alert: Alert
    fired_state: NotificationState | None = None
    fired_attempts: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """The alert and the target: their notifications are sent in order."""
        return self.alert.id, self.target


class Decision(StrEnum):
    """What becomes of a due notification."""

    SEND = "send"
    WITHDRAW = "withdraw"


def decide(notification: DueNotification) -> Decision:
    """Whether a due notification is still to be sent.

    If the alert is resolved before its target heard that it fired, that notification is withdrawn. The target then
    hears only that the alert is resolved, which says since when it fired; it hears nothing if nothing was tried yet,
    unless the alert is critical. An attempt whose answer is unknown may have opened an incident, so that an alert that
    was tried is always resolved.
    """
    if notification.transition is Transition.FIRED:
        return Decision.WITHDRAW if notification.alert.resolved_at is not None else Decision.SEND
    was_heard = notification.fired_state is NotificationState.SENT or notification.fired_attempts > 0
    if was_heard or notification.alert.severity is Severity.CRITICAL:
        return Decision.SEND
    return Decision.WITHDRAW


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What the changes of alerts mean for people: alerts that fired, with their recipients, and alerts resolved."""

    fired: Sequence[tuple[str, Recipient]]
    resolved: Sequence[str]


def announce(heard: Iterable[AlertChange], recipients: Recipients) -> Announcement:
    """Which notifications changes make that others hear of (`receiver.domain.alerts.announcement`).

    A resolve goes to every target that may have got the firing, whatever the targets are by now.
    """
    fired: list[tuple[str, Recipient]] = []
    resolved: list[str] = []
    for change in heard:
        alert = change.alert
        if change.transition is Transition.RESOLVED:
            resolved.append(alert.id)
        elif change.transition is Transition.FIRED:
            fired += [(alert.id, recipient) for recipient in recipients.of(alert)]
    return Announcement(fired=fired, resolved=resolved)
