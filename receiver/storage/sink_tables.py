"""The tables of the sinks, as rows: how far each has got, and what it must still be given."""

from datetime import datetime
from typing import Any, Final

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKeyConstraint, Index, UniqueConstraint
from sqlmodel import Field, SQLModel

from receiver.storage.columns import Position, only_where, text_column, time_column


class SinkRow(SQLModel, table=True):
    """A sink: how far it has got in the log (`cursor`), who works for it until when, and how it feels.

    `epoch` rises with every change of holder and fences the earlier one off. `revision` rises with every action of an
    operator.
    """

    __tablename__ = "sinks"

    name: str = text_column(primary_key=True)
    cursor: int = Field(sa_column=Column(Position, nullable=False))
    epoch: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    lease_holder: str | None = text_column(nullable=True)
    lease_until: datetime | None = time_column()
    revision: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    paused: bool = False
    fingerprint: str = text_column()
    failures: int = 0
    down_since_at: datetime | None = time_column()
    last_success_at: datetime | None = time_column()
    last_error: str | None = text_column(nullable=True)
    seen_at: datetime = time_column(nullable=False)


class RetryRow(SQLModel, table=True):
    """An event that waits for its next attempt (`due`), for an operator (`held`), or behind one that does (`parked`).

    Of a lane the smallest position is the head and not parked; it is held if it is among the dead letters too.
    `first_at` is when the event began to wait; a parked one without `due_at` was never tried.
    """

    __tablename__ = "retries"
    __table_args__ = (
        ForeignKeyConstraint(["sink"], ["sinks.name"], ondelete="CASCADE"),
        ForeignKeyConstraint(["position"], ["events.position"]),
        CheckConstraint("state IN ('due', 'held', 'parked')", name="state"),
        Index("uq_retries_head", "sink", "lane", unique=True, **only_where("state <> 'parked'")),
        Index("ix_retries_due", "sink", "due_at", **only_where("state = 'due'")),
        Index("ix_retries_lane", "sink", "lane", "position"),
        Index("ix_retries_position", "position"),
    )

    sink: str = text_column(primary_key=True)
    position: int = Field(sa_column=Column(Position, primary_key=True, autoincrement=False))
    lane: str = text_column()
    state: str = text_column()
    attempts: int = 0
    due_at: datetime | None = time_column()
    first_at: datetime = time_column(nullable=False)
    reason: str | None = text_column(nullable=True)


class ReplayRow(SQLModel, table=True):
    """Old events to be given to a sink again: those after `after_position`, up to `to_position`.

    All up to `position` are done with. `published` and `dead_letters` count what became of them. `state` is `running`,
    `paused`, `cancelled`, `finished` or `expired`; the first two have yet to end.
    """

    __tablename__ = "replays"
    __table_args__ = (
        ForeignKeyConstraint(["sink"], ["sinks.name"], ondelete="CASCADE"),
        CheckConstraint("state IN ('running', 'paused', 'cancelled', 'finished', 'expired')", name="state"),
        Index("ix_replays_open", "sink", "id", **only_where("state IN ('running', 'paused')")),
        {"sqlite_autoincrement": True},
    )

    id: int | None = Field(default=None, sa_column=Column(Position, primary_key=True, autoincrement=True))
    sink: str = text_column()
    state: str = text_column()
    after_position: int = Field(sa_column=Column(Position, nullable=False))
    to_position: int = Field(sa_column=Column(Position, nullable=False))
    position: int = Field(sa_column=Column(Position, nullable=False))
    published: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    dead_letters: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    requested_at: datetime = time_column(nullable=False)
    ended_at: datetime | None = time_column()


class AttemptRow(SQLModel, table=True):
    """One try to publish one event to one sink: its outcome, and what was decided about the event.

    `replay_id` names the replay it was part of; null where it was none.
    """

    __tablename__ = "attempts"
    __table_args__ = (Index("ix_attempts_position", "position"), {"sqlite_autoincrement": True})

    id: int | None = Field(default=None, sa_column=Column(Position, primary_key=True, autoincrement=True))
    sink: str = text_column()
    position: int = Field(sa_column=Column(Position, nullable=False))
    event_id: str = text_column()
    started_at: datetime = time_column(nullable=False)
    ended_at: datetime = time_column(nullable=False)
    outcome: str = text_column()
    decision: str = text_column()
    reason: str | None = text_column(nullable=True)
    response_code: int | None = None
    response: str | None = text_column(nullable=True)
    replay_id: int | None = Field(default=None, sa_column=Column(Position, nullable=True))


class DeadLetterRow(SQLModel, table=True):
    """An event that one sink will not be given again by itself: `refused` by it, or `expired` after many attempts.

    `detail` are the sink's last words.
    """

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

    id: int | None = Field(default=None, sa_column=Column(Position, primary_key=True, autoincrement=True))
    sink: str = text_column()
    position: int = Field(sa_column=Column(Position, nullable=False))
    lane: str = text_column()
    event_id: str = text_column()
    reason: str = text_column()
    detail: str = text_column()
    attempts: int
    response_code: int | None = None
    response: str | None = text_column(nullable=True)
    first_at: datetime = time_column(nullable=False)
    died_at: datetime = time_column(nullable=False)


SINKS: Final[Any] = SinkRow.__table__  # type: ignore[attr-defined]
RETRIES: Final[Any] = RetryRow.__table__  # type: ignore[attr-defined]
ATTEMPTS: Final[Any] = AttemptRow.__table__  # type: ignore[attr-defined]
DEAD_LETTERS: Final[Any] = DeadLetterRow.__table__  # type: ignore[attr-defined]
REPLAYS: Final[Any] = ReplayRow.__table__  # type: ignore[attr-defined]
