"""Publishing one event to one sink: what is handed over, what the sink answers, and what then becomes of the event."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import msgspec

from receiver.domain.delivery import Change, Delivery
from receiver.domain.events import Event
from receiver.domain.retry import RetryPolicy


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a delivery was at one moment."""

    status: str
    state: str | None
    delivery_state: str | None
    code: int | None
    description: str | None
    contradicted: bool

    @classmethod
    def of(cls, delivery: Delivery) -> "Snapshot":
        state, delivery_state = delivery.axes
        return cls(
            status=delivery.status,
            state=state,
            delivery_state=delivery_state,
            code=delivery.code,
            description=delivery.description,
            contradicted=delivery.contradicted,
        )


class Appended(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An event about to be appended to the log, with what it did to its delivery."""

    event: Event
    previous_status: str | None
    changed: bool
    delivery: Snapshot

    @classmethod
    def of(cls, event: Event, change: Change) -> "Appended":
        return cls(
            event=event,
            previous_status=change.before.status if change.before else None,
            changed=change.changed,
            delivery=Snapshot.of(change.after),
        )


class LogEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An event read from the log: its position, what its delivery was after it, and its message's facts today.

    `message` holds the message's columns that an event may lack (sender, recipients, tag, text, media, …), empty where
    retention has removed the message.
    """

    position: int
    event: Event
    previous_status: str | None
    changed: bool
    delivery: Snapshot
    message: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """An event on its way to a sink.

    `id` is the same on every repetition. `position` is its place in the event log, `lane` the message it belongs to:
    events of one lane arrive in order. `recipient` is whom it is about, None where it does not say. `event` is the
    CloudEvent, `body` the same as JSON on one line. `replayed` says that an operator has it published once more.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The sink has it."""

    response_code: int | None = None
    response: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """The sink did not take this event now; another may fare better.

    `after` is the pause the sink asked for. `overloaded` says that it had too much to do or did not answer in time.
    """

    reason: str
    after: timedelta | None = None
    overloaded: bool = False
    response_code: int | None = None
    response: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The sink will never take this event; where it is `gone`, no other either."""

    reason: str
    gone: bool = False
    response_code: int | None = None
    response: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkDown:
    """The sink cannot be reached at all; that is no event's fault and costs none an attempt."""

    reason: str


Result = Published | Retry | Refused | SinkDown


class Outcome(StrEnum):
    """The word for a result in tables and metrics."""

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
    """A publication that wants an attempt; `attempts` were made before, and `since` is when it began to wait for more.

    `since` is None for a first attempt straight from the log.
    """

    publication: Publication
    attempts: int = 0
    since: datetime | None = None

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
        """What it reports on: a later event about the same makes it old news."""
        return self.publication.ordering_key, self.publication.recipient


class DeadLetterReason(StrEnum):
    """Why an event became a dead letter: the sink will never take it, or it was tried for too long."""

    REFUSED = "refused"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The sink has it, or its filter leaves it out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Superseded:
    """A newer event of its delivery goes in its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryAt:
    """It is tried again at its time; its lane waits."""

    due_at: datetime
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """It waits behind an earlier event of its lane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLettered:
    """It is not tried again by itself; its lane goes on, or is held until an operator decides."""

    death: DeadLetterReason
    reason: str
    holds: bool = False
    response_code: int | None = None
    response: str | None = None


Decision = Done | Superseded | RetryAt | Parked | DeadLettered


def decide(
    candidate: PendingPublication, result: Result, policy: RetryPolicy, *, now: datetime, fraction: float
) -> Decision | None:
    """What becomes of an event after an attempt; None where the attempt does not count."""
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
    pause = policy.pause(candidate.attempts + 1, fraction, asked=result.after, overloaded=result.overloaded)
    due_at = policy.due(now, candidate.since or now, pause)
    if due_at is not None:
        return RetryAt(due_at=due_at, reason=result.reason)
    return _dead(DeadLetterReason.EXPIRED, result, holds=policy.holds)


def decide_replayed(result: Result, *, tries_left: int) -> Decision | None:
    """What becomes of a replayed event after an attempt: a replay keeps no retries; None: it is tried again at once."""
    match result:
        case Published():
            return Done()
        case Refused():
            return _dead(DeadLetterReason.REFUSED, result)
        case Retry():
            return None if tries_left else _dead(DeadLetterReason.EXPIRED, result)
        case SinkDown():
            return None


def _dead(death: DeadLetterReason, result: Refused | Retry, *, holds: bool = False) -> DeadLettered:
    return DeadLettered(
        death=death,
        reason=result.reason,
        holds=holds,
        response_code=result.response_code,
        response=result.response,
    )
