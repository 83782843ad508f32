"""Sinks with their retries, attempts, dead letters and replays: the tables, and what is shown of them."""

from collections.abc import Iterable
from datetime import datetime
from typing import Literal, TypeVar

from pydantic import computed_field
from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKeyConstraint, Index, UniqueConstraint
from sqlmodel import Field

from receiver.domain.events import Status
from receiver.domain.publication import DeadLetterReason, Outcome
from receiver.models.columns import (
    Model,
    Read,
    Time,
    json_column,
    only_where,
    position_column,
    serial_column,
    table_of,
    text_column,
    time_column,
)

ReplayAction = Literal["pause", "resume", "cancel"]
ReplayState = Literal["running", "paused", "cancelled", "finished", "expired"]
PublicationState = Literal["published", "dead_letter", "retry", "parked", "waiting", "passed"]
SinkState = Literal["working", "down", "paused", "unattended", "removed"]

_RESPONSE = "the response of the sink; null for a token that may only read"


class SinkBase(Model):
    """A sink: its cursor, its lease, its health."""

    name: str = text_column(primary_key=True)
    paused: bool = False
    cursor: int = position_column()
    failures: int = 0
    down_since_at: Time | None = time_column(serialization_alias="downSince")
    last_success_at: Time | None = time_column()
    last_error: str | None = text_column(nullable=True)
    lease_until: Time | None = time_column()


class SinkRow(SinkBase, table=True):
    """A sink: its cursor in the log, lease holder, lease expiry, health.

    `epoch` rises with every change of the holder and fences off the previous one. `revision` rises with every action of
    an operator.
    """

    __tablename__ = "sinks"

    epoch: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    lease_holder: str | None = text_column(nullable=True)
    revision: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    fingerprint: str = text_column()
    seen_at: datetime = time_column(nullable=False)


class RetryRow(Model, table=True):
    """An event that waits for its next attempt (`due`), for an operator (`held`), or behind such an event (`parked`).

    The smallest position of an ordering key is its head, which is not parked; it is held if it is also a dead letter.
    `first_at` is when the event began to wait; a parked event without `due_at` was never tried.
    """

    __tablename__ = "retries"
    __table_args__ = (
        ForeignKeyConstraint(["sink"], ["sinks.name"], ondelete="CASCADE"),
        ForeignKeyConstraint(["position"], ["events.position"]),
        CheckConstraint("state IN ('due', 'held', 'parked')", name="state"),
        Index("uq_retries_head", "sink", "ordering_key", unique=True, **only_where("state <> 'parked'")),
        Index("ix_retries_due", "sink", "due_at", **only_where("state = 'due'")),
        Index("ix_retries_ordering_key", "sink", "ordering_key", "position"),
        Index("ix_retries_position", "position"),
    )

    sink: str = text_column(primary_key=True)
    position: int = position_column(primary_key=True)
    ordering_key: str = text_column()
    state: str = text_column()
    attempts: int = 0
    due_at: datetime | None = time_column()
    first_at: datetime = time_column(nullable=False)
    reason: str | None = text_column(nullable=True)


class ReplayBase(Model):
    """A range of the event log that is published to a sink again.

    The events after `after_position` up to and including `to_position`, all or those of `message_ids`; those up to
    `position` are done, and `published` and `dead_letters` count those that the sink's filter let through.
    """

    sink: str = text_column()
    state: ReplayState = text_column()
    after_position: int = position_column()
    to_position: int = position_column()
    position: int = position_column()
    published: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    dead_letters: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    requested_at: Time = time_column(nullable=False)
    ended_at: Time | None = time_column()
    message_ids: list[str] | None = json_column(nullable=True)


class ReplayRow(ReplayBase, table=True):
    """A replay; one whose state is `running` or `paused` has not ended."""

    __tablename__ = "replays"
    __table_args__ = (
        ForeignKeyConstraint(["sink"], ["sinks.name"], ondelete="CASCADE"),
        CheckConstraint("state IN ('running', 'paused', 'cancelled', 'finished', 'expired')", name="state"),
        Index("ix_replays_open", "sink", "id", **only_where("state IN ('running', 'paused')")),
        {"sqlite_autoincrement": True},
    )

    id: int | None = serial_column()


class AttemptBase(Model):
    """One attempt to publish one event to one sink: its outcome, and the decision about the event.

    `replay_id` names the replay that the attempt belongs to; null outside of a replay.
    """

    sink: str = text_column()
    event_id: str = text_column()
    started_at: Time = time_column(nullable=False)
    ended_at: Time = time_column(nullable=False)
    outcome: Outcome = text_column()
    decision: str = text_column()
    reason: str | None = text_column(nullable=True)
    response_code: int | None = None
    response: str | None = text_column(nullable=True, description=_RESPONSE)
    replay_id: int | None = position_column(nullable=True)


class AttemptRow(AttemptBase, table=True):
    """One attempt to publish one event to one sink: its outcome, and the decision about the event."""

    __tablename__ = "attempts"
    __table_args__ = (Index("ix_attempts_position", "position"), {"sqlite_autoincrement": True})

    id: int | None = serial_column()
    position: int = position_column()


class DeadLetterBase(Model):
    """An event that is not published to a sink again unless it is requeued; `detail` is the sink's last error."""

    sink: str = text_column()
    position: int = position_column()
    event_id: str = text_column()
    reason: DeadLetterReason = text_column()
    detail: str = text_column()
    attempts: int
    response_code: int | None = None
    response: str | None = text_column(nullable=True, description=_RESPONSE)
    first_at: Time = time_column(nullable=False)
    died_at: Time = time_column(nullable=False)


class DeadLetterRow(DeadLetterBase, table=True):
    """An event that is not published to one sink again by itself: the sink `refused` it, or its retries `expired`."""

    __tablename__ = "dead_letters"
    __table_args__ = (
        ForeignKeyConstraint(["sink"], ["sinks.name"]),
        ForeignKeyConstraint(["position"], ["events.position"]),
        UniqueConstraint("sink", "position", name="uq_dead_letters_sink_position"),
        Index("ix_dead_letters_position", "position"),
        Index("ix_dead_letters_sink", "sink", "id"),
        Index("ix_dead_letters_event", "event_id"),
        {"sqlite_autoincrement": True},
    )

    id: int | None = serial_column()
    ordering_key: str = text_column()


SINKS = table_of(SinkRow)
RETRIES = table_of(RetryRow)
ATTEMPTS = table_of(AttemptRow)
DEAD_LETTERS = table_of(DeadLetterRow)
REPLAYS = table_of(ReplayRow)


class AttemptRead(AttemptBase, Read):
    """One attempt to publish an event to a sink: its outcome, the response, and the decision that followed.

    `recipient` and `status` are the event's.
    """

    id: int
    recipient: str | None
    status: Status

    @computed_field  # type: ignore[prop-decorator]
    @property
    def seconds(self) -> float:
        return (self.ended_at - self.started_at).total_seconds()


class DeadLetterRead(DeadLetterBase, Read):
    """An event that is not published to a sink again unless it is requeued; `detail` is the last error."""

    id: int
    message_id: str
    recipient: str | None
    status: str


WithResponse = TypeVar("WithResponse", AttemptRead, DeadLetterRead)


def without_responses(items: Iterable[WithResponse]) -> list[WithResponse]:
    """The same without the responses of sinks, which may reveal details of a network that only an admin may see."""
    return [item.model_copy(update={"response": None}) for item in items]


class ReplayRead(ReplayBase, Read):
    """A range of the event log that is published to a sink again; `progress` is the finished share, from 0 to 1.

    A replay expires if no worker publishes to its sink any more and retention removes its events.
    """

    id: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def progress(self) -> float:
        return round((self.position - self.after_position) / max(1, self.to_position - self.after_position), 4)


class SinkRead(SinkBase, Read):
    """A sink: its state and its backlog.

    `type` is null if the settings have no such sink. `lag` counts the events after its cursor, `oldestTime` is when the
    oldest waiting event was received. `retries` are counted by state, `deadLetters` by reason, the newest 100,000 of
    each.
    """

    type: str | None
    lag: int
    oldest_at: Time | None
    oldest_seconds: float | None
    retries: dict[str, int]
    dead_letters: dict[str, int]
    is_attended: bool = Field(exclude=True, description="whether a worker holds the lease")
    replay: ReplayRead | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def configured(self) -> bool:
        return self.type is not None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def state(self) -> SinkState:
        """The first of these that holds: removed, paused, unattended, down; else working."""
        if not self.configured:
            return "removed"
        if self.paused:
            return "paused"
        if not self.is_attended:
            return "unattended"
        return "down" if self.down_since_at is not None else "working"


class PublicationRead(Read):
    """How far the publication of one event of a message to one sink has got.

    `waiting`: the cursor of the sink has not passed the event. `passed`: it has, and nothing else is stored, so the
    event was published or left out by the filter. `last_at` is when the last stored attempt ended, `due_at` when a
    retry is due. `is_held`: later events of the message wait until an operator decides about a dead letter.
    """

    sink: str
    event_id: str
    status: str
    recipient: str | None
    state: PublicationState
    attempts: int
    last_at: datetime | None
    due_at: datetime | None = None
    reason: str | None = None
    dead_letter_id: int | None = None
    is_held: bool = False
    is_paused: bool = False
    is_down: bool = False
