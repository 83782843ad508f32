"""The tables, as row classes.

`receiver help sql` documents the columns for readers; columns are added, not renamed.
"""

from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    UniqueConstraint,
    false,
)
from sqlalchemy import text as sql
from sqlmodel import Field, SQLModel

from receiver.storage.columns import Position, json_column, only_where, text_column, time_column

# An index entry of PostgreSQL has room for some 2700 bytes; a tag may be longer.
TAG_START_CHARACTERS: Final = 200
_TAG_START: Final = f"substr(tag, 1, {TAG_START_CHARACTERS})"


class CallbackRow(SQLModel, table=True):
    """The journal: one HTTP request from Bandwidth, appended and never changed.

    On SQLite it is a file of its own (see `receiver.storage.database.journal_file`). `sequence` is the order of the
    commits, except on PostgreSQL, where a larger one may become visible first. `id` rises with `received_at` and orders
    the lists.
    """

    __tablename__ = "callbacks"
    # Without AUTOINCREMENT SQLite would reuse the number of a deleted row, which is before the processor's cursor.
    __table_args__ = (UniqueConstraint("id", name="uq_callbacks_id"), {"sqlite_autoincrement": True})

    sequence: int | None = Field(default=None, sa_column=Column(Position, primary_key=True, autoincrement=True))
    id: str = text_column()
    received_at: datetime = time_column(nullable=False)
    api: str = text_column()
    route: str = text_column()
    method: str = text_column()
    remote: str | None = text_column(nullable=True)
    query: str = text_column()
    headers: dict[str, str] = json_column(nullable=False)
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class PendingCallbackRow(SQLModel, table=True):
    """PostgreSQL only: the pending callbacks. Appends insert rows, and the processor removes them.

    A cursor over `sequence` would skip rows on PostgreSQL, where a larger number can be committed first.
    """

    __tablename__ = "pending_callbacks"

    sequence: int = Field(sa_column=Column(Position, primary_key=True, autoincrement=False))


class ProcessorRow(SQLModel, table=True):
    """A single row: the processor's cursor, lease and failure.

    SQLite: every callback up to `cursor` is processed. PostgreSQL: `cursor` is the largest processed `sequence`, and
    `pending_callbacks` has the pending ones. `epoch` rises with every change of the lease's holder and fences off the
    previous one. `backend` is the process number of the holder's PostgreSQL session, which a successor terminates.
    `last_callbacks` has the time of the latest processed callback by version and route. `repeats` counts the dropped
    callbacks without a new event.
    """

    __tablename__ = "processor"

    id: int = Field(default=1, sa_column=Column(Integer, primary_key=True, autoincrement=False))
    cursor: int = Field(default=0, sa_column=Column(Position, nullable=False))
    epoch: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    lease_holder: str | None = text_column(nullable=True)
    lease_until: datetime | None = time_column()
    backend: int | None = None
    callbacks: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    repeats: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    last_callbacks: dict[str, str] = json_column(nullable=False)
    failing_since_at: datetime | None = time_column()
    last_error: str | None = text_column(nullable=True)


class QuarantineRow(SQLModel, table=True):
    """An element of a callback that did not become an event, with the reason; `element` is its place in the array."""

    __tablename__ = "quarantine"
    __table_args__ = (
        Index("ix_quarantine_reason", "reason", "callback_id"),
        Index("ix_quarantine_message", "message_id", **only_where("message_id IS NOT NULL")),
    )

    callback_id: str = text_column(primary_key=True)
    element: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    reason: str = text_column()
    detail: str = text_column()
    message_id: str | None = text_column(nullable=True)
    reprocessed_at: datetime | None = time_column()


class EventRow(SQLModel, table=True):
    """The event log: one row per event, `position` rising in commit order.

    `facts` has the fields of the event without a column of their own, but no text and media. `delivery` is the delivery
    after the event, `previous_status` its status before (null: it had no row).
    """

    __tablename__ = "events"
    __table_args__ = (
        # Not a key on `id` alone: digests are random, so at a million rows every event wrote an index page of its own.
        # The digest contains the message id, so this key refuses the same duplicates.
        UniqueConstraint("message_id", "id", name="uq_events_message_id"),
        # Without AUTOINCREMENT SQLite would reuse a pruned position.
        {"sqlite_autoincrement": True},
    )

    position: int | None = Field(default=None, sa_column=Column(Position, primary_key=True, autoincrement=True))
    id: str = text_column()
    api: str = text_column()
    message_id: str = text_column()
    recipient: str | None = text_column(nullable=True)
    direction: str = text_column()
    type: str = text_column()
    status: str = text_column()
    occurred_at: datetime | None = time_column()
    received_at: datetime = time_column(nullable=False)
    code: int | None = Field(sa_column=Column(BigInteger, nullable=True))
    description: str | None = text_column(nullable=True)
    tag_verdict: str = text_column()
    route: str = text_column()
    callback_id: str = text_column()
    previous_status: str | None = text_column(nullable=True)
    changed: bool
    facts: dict[str, Any] = json_column(nullable=False)
    delivery: dict[str, Any] = json_column(nullable=False)


class MessageRow(SQLModel, table=True):
    """A message, known by version, direction and id: its fields and its status.

    `listed_at` is `created_at`, else `first_received_at`. `events_forgotten` is set once retention has removed events
    of the message; the row does not change after that.
    """

    __tablename__ = "messages"
    __table_args__ = (
        # The id comes first: most look-ups know only the id, and with `api` first PostgreSQL read all of a version.
        PrimaryKeyConstraint("id", "api", "direction", name="pk_messages"),
        Index("ix_messages_listed", "listed_at", "api", "direction", "id"),
        Index("ix_messages_sender", "sender_key", "listed_at"),
        Index("ix_messages_status", "status", "listed_at", **only_where("status NOT IN ('delivered', 'received')")),
        Index("ix_messages_tag", sql(_TAG_START), "listed_at", **only_where(f"{_TAG_START} IS NOT NULL")),
        Index("ix_messages_application", "application_id", "listed_at", **only_where("application_id IS NOT NULL")),
        Index("ix_messages_state", "state", "listed_at", **only_where("state IN ('queued', 'sending', 'error')")),
        Index(
            "ix_messages_delivery_state",
            "delivery_state",
            "listed_at",
            **only_where("delivery_state IN ('waiting', 'not-delivered')"),
        ),
        # These have the whole order of the list: otherwise SQLite would scan all of `ix_messages_listed`.
        Index("ix_messages_awaiting", "listed_at", "api", "direction", "id", **only_where("awaiting_receipt")),
        Index("ix_messages_contradicted", "listed_at", "api", "direction", "id", **only_where("contradicted")),
        Index(
            "ix_messages_tag_verdict",
            "tag_verdict",
            "listed_at",
            **only_where("tag_verdict NOT IN ('unchecked', 'not-applicable')"),
        ),
        Index("ix_messages_text", "listed_at", **only_where("text IS NOT NULL OR media IS NOT NULL")),
    )

    api: str = text_column(primary_key=True)
    direction: str = text_column(primary_key=True)
    id: str = text_column(primary_key=True)
    sender: str | None = text_column(nullable=True)
    sender_key: str | None = text_column(nullable=True)
    recipients: list[str] = json_column(nullable=False)
    owner: str | None = text_column(nullable=True)
    application_id: str | None = text_column(nullable=True)
    text: str | None = text_column(nullable=True)
    media: list[str] | None = json_column()
    tag: str | None = text_column(nullable=True)
    tag_verdict: str = text_column()
    segment_count: int | None = Field(sa_column=Column(BigInteger, nullable=True))
    channel: str | None = text_column(nullable=True)
    carrier_name: str | None = text_column(nullable=True)
    priority: str | None = text_column(nullable=True)
    created_at: datetime | None = time_column()
    listed_at: datetime = time_column(nullable=False)
    status: str = text_column()
    state: str | None = text_column(nullable=True)
    delivery_state: str | None = text_column(nullable=True)
    delivery_code: int | None = Field(sa_column=Column(BigInteger, nullable=True))
    delivery_description: str | None = text_column(nullable=True)
    contradicted: bool
    awaiting_receipt: bool
    first_received_at: datetime = time_column(nullable=False)
    updated_at: datetime = time_column(nullable=False)
    events_forgotten: bool = Field(default=False, sa_column_kwargs={"server_default": false()})


class DeliveryRow(SQLModel, table=True):
    """How far one message got to one recipient. `recipient_key` is the number without plus; empty: number unknown."""

    __tablename__ = "deliveries"
    # No foreign key to `messages`: the same transaction writes both tables, and PostgreSQL checks a foreign key per
    # row: a sixth of the transaction.
    __table_args__ = (
        PrimaryKeyConstraint("message_id", "api", "direction", "recipient_key", name="pk_deliveries"),
        Index("ix_deliveries_recipient", "recipient_key", "listed_at"),
        # This index is not on messages because the recipients of a group message have codes of their own.
        Index("ix_deliveries_code", "delivery_code", "listed_at", **only_where("delivery_code IS NOT NULL")),
    )

    api: str = text_column(primary_key=True)
    direction: str = text_column(primary_key=True)
    message_id: str = text_column(primary_key=True)
    recipient_key: str = text_column(primary_key=True)
    recipient: str | None = text_column(nullable=True)
    place: int
    listed_at: datetime = time_column(nullable=False)
    status: str = text_column()
    state: str | None = text_column(nullable=True)
    delivery_state: str | None = text_column(nullable=True)
    delivery_code: int | None = Field(sa_column=Column(BigInteger, nullable=True))
    delivery_description: str | None = text_column(nullable=True)
    sent_at: datetime | None = time_column()
    delivered_at: datetime | None = time_column()
    failed_at: datetime | None = time_column()
    read_at: datetime | None = time_column()
    contradicted: bool
    updated_at: datetime | None = time_column()


class DeliveryCodeRow(SQLModel, table=True):
    """The code catalogue as a table, for joins; `receiver migrate` writes it from `receiver.providers`."""

    __tablename__ = "delivery_codes"

    api: str = text_column(primary_key=True)
    code: int = Field(primary_key=True, sa_type=Integer, sa_column_kwargs={"autoincrement": False})
    name: str = text_column()
    description: str = text_column()
    category: str = text_column()
    outcome: str = text_column()
    retryable: bool | None
    billable: bool | None


class SinkRow(SQLModel, table=True):
    """A sink: its cursor in the log, lease holder, lease expiry, health.

    `epoch` rises with every change of the holder and fences off the previous one. `revision` rises with every action of
    an operator.
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
    position: int = Field(sa_column=Column(Position, primary_key=True, autoincrement=False))
    ordering_key: str = text_column()
    state: str = text_column()
    attempts: int = 0
    due_at: datetime | None = time_column()
    first_at: datetime = time_column(nullable=False)
    reason: str | None = text_column(nullable=True)


class ReplayRow(SQLModel, table=True):
    """A replay: the events after `after_position`, up to `to_position`, are published to a sink again.

    The replay has passed all events up to `position`; `published` and `dead_letters` count them. `state` is `running`,
    `paused`, `cancelled`, `finished` or `expired`; a replay in one of the first two has not ended.
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
    """One attempt to publish one event to one sink: its outcome, and the decision about the event.

    `replay_id` names the replay that the attempt belongs to; null outside of a replay.
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
    """An event that is not published to one sink again by itself: the sink `refused` it, or its retries `expired`.

    `detail` is the sink's last error.
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
    ordering_key: str = text_column()
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
