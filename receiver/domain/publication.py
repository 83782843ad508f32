"""Publishing one event to one sink: the publication, the sink's result, and the decision about the event."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

import msgspec

from receiver.domain.delivery import Change, Delivery, StateRules
from receiver.domain.events import Event
from receiver.domain.retry import RetryPolicy


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The state of a delivery at one moment."""

    status: str
    state: str | None
    delivery_state: str | None
    code: int | None
    description: str | None
    contradicted: bool

    @classmethod
    def of(cls, delivery: Delivery, states: StateRules) -> "Snapshot":
        state, delivery_state = states.of_delivery(delivery)
        return cls(
            status=delivery.status,
            state=state,
            delivery_state=delivery_state,
            code=delivery.code,
            description=delivery.description,
            contradicted=delivery.contradicted,
        )


class Appended(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An event to be appended to the log, with its effect on its delivery."""

    event: Event
    previous_status: str | None
    changed: bool
    delivery: Snapshot

    @classmethod
    def of(cls, event: Event, change: Change, states: StateRules) -> "Appended":
        return cls(
            event=event,
            previous_status=change.before.status if change.before else None,
            changed=change.changed,
            delivery=Snapshot.of(change.after, states),
        )


class LogEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An event of a message, read from the log: position, delivery after the event, the message's fields as of now.

    `message` holds the columns of the message that an event may lack (sender, recipients, tag, text, media, …). Its
    values are None if retention has removed the message.
    """

    position: int
    event: Event
    previous_status: str | None
    changed: bool
    delivery: Snapshot
    message: dict[str, Any]

    @property
    def type(self) -> str:
        """The CloudEvents type, from the event's own status and not from that of its delivery."""
        return f"message.{self.event.status}"

    @property
    def subject(self) -> str:
        return self.event.message_id

    @property
    def ordering_key(self) -> str:
        """The events of one message stay in order."""
        return f"{self.event.api}:{self.event.message_id}"

    @property
    def recipient(self) -> str | None:
        return self.event.recipient

    @property
    def callback_id(self) -> str:
        return self.event.callback_id


class AlertEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A change of an alert that others hear of: it fired, or it was resolved.

    `alert` is the alert after the change in the types of JSON, as the API shows it. `sinks` are the names of the sinks
    that the rule names; None: every sink that asks for the type.
    """

    id: str
    alert_id: str
    transition: Literal["fired", "resolved"]
    occurred_at: datetime
    received_at: datetime
    alert: dict[str, Any]
    sinks: frozenset[str] | None = None


class AlertEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A change of an alert, read from the log. It has the properties of a LogEntry that publishing needs."""

    position: int
    event: AlertEvent

    @property
    def type(self) -> str:
        return f"alert.{self.event.transition}"

    @property
    def subject(self) -> str:
        return self.event.alert_id

    @property
    def ordering_key(self) -> str:
        """The events of one alert stay in order."""
        return f"alert:{self.event.alert_id}"

    @property
    def recipient(self) -> str | None:
        return None

    @property
    def callback_id(self) -> str:
        """No callback brought it: its trace, which is derived from this, is one of its own."""
        return self.event.id


Entry = LogEntry | AlertEntry
"""An entry of the event log: an event of a message, or a change of an alert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """An event to be published to a sink.

    `id` is the same on every repetition. `position` is the event's place in the event log. Events with the same
    `ordering_key` (one message, or one alert) are published in order. `recipient` is the event's recipient, None if it
    names none. `event` is the CloudEvent, `body` the same as JSON on one line. `replayed` is true in a replay.
    `callback_id` is the callback that brought the event (of an alert: its event id). `traceparent` and
    `tracestate` are headers of W3C Trace Context that name the span of this attempt, None unless traces are exported.
    """

    id: str
    position: int
    ordering_key: str
    type: str
    received_at: datetime
    event: Mapping[str, Any]
    body: bytes
    recipient: str | None = None
    replayed: bool = False
    callback_id: str = ""
    traceparent: str | None = None
    tracestate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The sink has confirmed the event. `duplicate`: the destination had the event already, the result is the same."""

    response_code: int | None = None
    response: str | None = None
    duplicate: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """The sink did not accept this event now; other events may still succeed.

    `after` is the pause that the sink asked for (Retry-After). `overloaded` is true if the sink was too busy or did not
    answer in time.
    """

    reason: str
    after: timedelta | None = None
    overloaded: bool = False
    response_code: int | None = None
    response: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The sink will never accept this event; a sink that is `gone` will accept no other event either."""

    reason: str
    gone: bool = False
    response_code: int | None = None
    response: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkDown:
    """The sink cannot be reached at all. No event is at fault, and no attempt is counted."""

    reason: str


Result = Published | Retry | Refused | SinkDown


class Outcome(StrEnum):
    """The name of a result in tables and metrics."""

    PUBLISHED = "published"
    RETRY = "retry"
    REFUSED = "refused"
    SINK_DOWN = "sink_down"

    @classmethod
    def of(cls, result: Result) -> "Outcome":
        return next(outcome for kind, outcome in _OUTCOMES.items() if isinstance(result, kind))


_OUTCOMES = {
    Published: Outcome.PUBLISHED,
    Retry: Outcome.RETRY,
    Refused: Outcome.REFUSED,
    SinkDown: Outcome.SINK_DOWN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingPublication:
    """A publication that needs an attempt: after `attempts` earlier ones, and as a retry since `since`.

    `since` is None for a first attempt straight from the log. `is_import` marks the event of an imported callback,
    whose age says nothing about this installation. `was_put_back`: an earlier attempt did not count, so the next one is
    the second, although none is stored.
    """

    publication: Publication
    attempts: int = 0
    since: datetime | None = None
    is_import: bool = False
    was_put_back: bool = field(default=False, compare=False)

    @property
    def is_retry(self) -> bool:
        return self.since is not None

    @property
    def position(self) -> int:
        return self.publication.position

    @property
    def ordering_key(self) -> str:
        return self.publication.ordering_key

    @property
    def delivery(self) -> tuple[str, str | None]:
        """The delivery that the event reports on; `coalesce` publishes only the newest event of a delivery."""
        return self.publication.ordering_key, self.publication.recipient


class DeadLetterReason(StrEnum):
    """Why an event became a dead letter: the sink refused it, or its retries expired."""

    REFUSED = "refused"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The sink has confirmed the event, or its filter leaves the event out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Superseded:
    """A newer event of the same delivery is published in place of this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryAt:
    """The event is tried again at `due_at`; later events of its ordering key wait."""

    due_at: datetime
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """The event waits behind an earlier event of its ordering key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLettered:
    """The event is not tried again by itself. If it `holds` its ordering key, later events wait for an operator."""

    cause: DeadLetterReason
    reason: str
    holds: bool = False
    response_code: int | None = None
    response: str | None = None


Decision = Done | Superseded | RetryAt | Parked | DeadLettered


def decide(
    candidate: PendingPublication, result: Result, policy: RetryPolicy, *, now: datetime, fraction: float
) -> Decision | None:
    """Decides about an event after an attempt; None: the attempt does not count."""
    match result:
        case Published():
            return Done()
        case Refused():
            return _dead(DeadLetterReason.REFUSED, result, holds=policy.holds)
        case Retry():
            return _later(candidate, result, policy, now, fraction)
        case SinkDown():
            return None


def _later(
    candidate: PendingPublication, result: Retry, policy: RetryPolicy, now: datetime, fraction: float
) -> Decision:
    pause = policy.pause(candidate.attempts + 1, fraction, retry_after=result.after, overloaded=result.overloaded)
    due_at = policy.due(now, candidate.since or now, pause)
    if due_at is not None:
        return RetryAt(due_at=due_at, reason=result.reason)
    return _dead(DeadLetterReason.EXPIRED, result, holds=policy.holds)


def decide_replayed(result: Result, *, tries_left: int) -> Decision | None:
    """Decides about a replayed event after an attempt. A replay stores no retries; None: it is tried again at once."""
    match result:
        case Published():
            return Done()
        case Refused():
            return _dead(DeadLetterReason.REFUSED, result)
        case Retry():
            return None if tries_left else _dead(DeadLetterReason.EXPIRED, result)
        case SinkDown():
            return None


def _dead(cause: DeadLetterReason, result: Refused | Retry, *, holds: bool = False) -> DeadLettered:
    return DeadLettered(
        cause=cause,
        reason=result.reason,
        holds=holds,
        response_code=result.response_code,
        response=result.response,
    )
