"""The tables, as rows. `README.md` documents the columns people may read; columns are added, not renamed."""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import orjson
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
)
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

SQLModel.metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def json_text(value: Any) -> str:
    """A value as the JSON text that a database is given."""
    return orjson.dumps(value).decode()


@lru_cache(maxsize=4096)
def sqlite_time(moment: datetime) -> str:
    """A time as the text that SQLite holds, 27 characters that sort as time does; one row repeats the same few."""
    if moment.tzinfo is None:
        raise ValueError(f"a time without zone must not reach the database: {moment!r}")
    # not strftime: its %Y drops the zeros of years before 1000
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


class UTCDateTime(TypeDecorator[datetime]):
    """An aware UTC time: `timestamptz` on PostgreSQL, on SQLite text that sorts as time does."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(String(27))
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if dialect.name == "sqlite":
            return sqlite_time(value)
        if value.tzinfo is None:
            raise ValueError(f"a time without zone must not reach the database: {value!r}")
        return value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if dialect.name == "sqlite":
            return datetime.fromisoformat(value)
        moment: datetime = value.astimezone(UTC)
        return moment


class Json(TypeDecorator[Any]):
    """A JSON value: `jsonb` on PostgreSQL, text on SQLite. Text in it must be free of NUL (PostgreSQL has no place)."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(JSONB(none_as_null=True))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return json_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return orjson.loads(value)


# An index entry of PostgreSQL has room for some 2700 bytes, a tag need not.
TAG_START_CHARACTERS: Final = 200
_TAG_START: Final = f"substr(tag, 1, {TAG_START_CHARACTERS})"

Position = BigInteger().with_variant(Integer, "sqlite")


def _text(*, primary_key: bool = False, nullable: bool = False) -> Any:
    return Field(sa_column=Column(Text, primary_key=primary_key, nullable=nullable))


def _time(*, nullable: bool = True) -> Any:
    return Field(sa_column=Column(UTCDateTime, nullable=nullable))


def _json(*, nullable: bool = True) -> Any:
    return Field(sa_column=Column(Json, nullable=nullable))


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sql(condition), "postgresql_where": sql(condition)}


class CallbackRow(SQLModel, table=True):
    """One HTTP request from Bandwidth, raw. `id` rises with `received_at`, so that it serves as the list's order."""

    __tablename__ = "callbacks"
    __table_args__ = (Index("ix_callbacks_quarantined", "id", **_where("outcome = 'quarantined'")),)

    id: str = _text(primary_key=True)
    received_at: datetime = _time(nullable=False)
    api: str = _text()
    route: str = _text()
    method: str = _text()
    remote: str | None = _text(nullable=True)
    query: str = _text()
    headers: dict[str, str] = _json(nullable=False)
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    outcome: str = _text()
    reason: str | None = _text(nullable=True)
    problems: list[dict[str, Any]] | None = _json()
    events: int
    duplicates: int = Field(sa_column=Column(Integer, nullable=False, server_default="0"))
    reread_at: datetime | None = _time()


class EventRow(SQLModel, table=True):
    """The event log: one row per event, `position` rising in commit order.

    `facts` are the facts of the message this event told, without text and media. `delivery` is what the delivery
    was after it; `previous_status` what it was before (null: it had no row).
    """

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_message_id", "message_id"),
        UniqueConstraint("id", name="uq_events_id"),
        # AUTOINCREMENT: without it SQLite gives a pruned position away a second time
        {"sqlite_autoincrement": True},
    )

    position: int | None = Field(default=None, sa_column=Column(Position, primary_key=True, autoincrement=True))
    id: str = _text()
    api: str = _text()
    message_id: str = _text()
    recipient: str | None = _text(nullable=True)
    direction: str = _text()
    type: str = _text()
    status: str = _text()
    occurred_at: datetime | None = _time()
    received_at: datetime = _time(nullable=False)
    code: int | None = Field(sa_column=Column(BigInteger, nullable=True))
    description: str | None = _text(nullable=True)
    tag_verdict: str = _text()
    route: str = _text()
    callback_id: str = _text()
    previous_status: str | None = _text(nullable=True)
    changed: bool
    facts: dict[str, Any] = _json(nullable=False)
    delivery: dict[str, Any] = _json(nullable=False)


class MessageRow(SQLModel, table=True):
    """A message: its facts and its standing. `listed_at` is `created_at`, else `first_received_at`.

    `events_forgotten` is set when retention has removed events of it; the row then moves no more.
    """

    __tablename__ = "messages"
    __table_args__ = (
        Index("ix_messages_listed", "listed_at", "api", "id"),
        Index("ix_messages_sender", "sender_key", "listed_at"),
        Index("ix_messages_status", "status", "listed_at"),
        Index("ix_messages_tag", sql(_TAG_START), "listed_at", **_where(f"{_TAG_START} IS NOT NULL")),
        Index("ix_messages_application", "application_id", "listed_at", **_where("application_id IS NOT NULL")),
        Index("ix_messages_state", "state", "listed_at", **_where("state IN ('queued', 'sending', 'error')")),
        Index(
            "ix_messages_delivery_state",
            "delivery_state",
            "listed_at",
            **_where("delivery_state IN ('waiting', 'not-delivered')"),
        ),
        # the whole order in them: without, SQLite would rather read all of `ix_messages_listed`
        Index("ix_messages_awaiting", "listed_at", "api", "id", **_where("awaiting_receipt")),
        Index("ix_messages_contradicted", "listed_at", "api", "id", **_where("contradicted")),
        Index(
            "ix_messages_distrusted",
            "tag_verdict",
            "listed_at",
            **_where("tag_verdict IN ('forged', 'unsigned', 'missing')"),
        ),
        Index("ix_messages_text", "listed_at", **_where("text IS NOT NULL OR media IS NOT NULL")),
    )

    api: str = _text(primary_key=True)
    id: str = _text(primary_key=True)
    direction: str = _text()
    sender: str | None = _text(nullable=True)
    sender_key: str | None = _text(nullable=True)
    recipients: list[str] = _json(nullable=False)
    owner: str | None = _text(nullable=True)
    application_id: str | None = _text(nullable=True)
    text: str | None = _text(nullable=True)
    media: list[str] | None = _json()
    tag: str | None = _text(nullable=True)
    tag_verdict: str = _text()
    segment_count: int | None = Field(sa_column=Column(BigInteger, nullable=True))
    channel: str | None = _text(nullable=True)
    carrier_name: str | None = _text(nullable=True)
    priority: str | None = _text(nullable=True)
    created_at: datetime | None = _time()
    listed_at: datetime = _time(nullable=False)
    status: str = _text()
    state: str | None = _text(nullable=True)
    delivery_state: str | None = _text(nullable=True)
    delivery_code: int | None = Field(sa_column=Column(BigInteger, nullable=True))
    delivery_description: str | None = _text(nullable=True)
    contradicted: bool
    awaiting_receipt: bool
    first_received_at: datetime = _time(nullable=False)
    updated_at: datetime = _time(nullable=False)
    events_forgotten: bool = Field(default=False, sa_column_kwargs={"server_default": false()})


class DeliveryRow(SQLModel, table=True):
    """How far one message got to one recipient. `recipient_key` is the number without plus; empty: none known."""

    __tablename__ = "deliveries"
    # No foreign key to `messages`: both are written by one statement after another in the same transaction, and on
    # PostgreSQL the check was a sixth of it.
    __table_args__ = (
        Index("ix_deliveries_recipient", "recipient_key", "listed_at"),
        # not on messages: the recipients of a group message have codes of their own
        Index("ix_deliveries_code", "delivery_code", "listed_at", **_where("delivery_code IS NOT NULL")),
    )

    api: str = _text(primary_key=True)
    message_id: str = _text(primary_key=True)
    recipient_key: str = _text(primary_key=True)
    recipient: str | None = _text(nullable=True)
    place: int
    listed_at: datetime = _time(nullable=False)
    status: str = _text()
    state: str | None = _text(nullable=True)
    delivery_state: str | None = _text(nullable=True)
    delivery_code: int | None = Field(sa_column=Column(BigInteger, nullable=True))
    delivery_description: str | None = _text(nullable=True)
    sent_at: datetime | None = _time()
    delivered_at: datetime | None = _time()
    failed_at: datetime | None = _time()
    read_at: datetime | None = _time()
    contradicted: bool
    updated_at: datetime | None = _time()


class DeliveryCodeRow(SQLModel, table=True):
    """The code catalogue as a table, for joins; written by `receiver migrate` from the code that knows it."""

    __tablename__ = "delivery_codes"

    api: str = _text(primary_key=True)
    code: int = Field(primary_key=True, sa_type=Integer, sa_column_kwargs={"autoincrement": False})
    name: str = _text()
    description: str = _text()
    category: str = _text()
    outcome: str = _text()
    retryable: bool | None
    billable: bool | None


class SinkRow(SQLModel, table=True):
    """A sink: how far it has got in the log (`cursor`), who works for it until when, and how it feels.

    `epoch` rises with every change of holder and fences the earlier one off. `revision` rises with every action of an
    operator.
    """

    __tablename__ = "sinks"

    name: str = _text(primary_key=True)
    cursor: int = Field(sa_column=Column(Position, nullable=False))
    epoch: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    lease_holder: str | None = _text(nullable=True)
    lease_until: datetime | None = _time()
    revision: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    paused: bool = False
    fingerprint: str = _text()
    failures: int = 0
    down_since_at: datetime | None = _time()
    last_success_at: datetime | None = _time()
    last_error: str | None = _text(nullable=True)
    seen_at: datetime = _time(nullable=False)


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
        Index("uq_retries_head", "sink", "lane", unique=True, **_where("state <> 'parked'")),
        Index("ix_retries_due", "sink", "due_at", **_where("state = 'due'")),
        Index("ix_retries_lane", "sink", "lane", "position"),
        Index("ix_retries_position", "position"),
    )

    sink: str = _text(primary_key=True)
    position: int = Field(sa_column=Column(Position, primary_key=True, autoincrement=False))
    lane: str = _text()
    state: str = _text()
    attempts: int = 0
    due_at: datetime | None = _time()
    first_at: datetime = _time(nullable=False)
    reason: str | None = _text(nullable=True)


class ReplayRow(SQLModel, table=True):
    """Old events to be given to a sink again: those after `after_position`, up to `to_position`.

    All up to `position` are done with. `published` and `dead_letters` count what became of them. `state` is `running`,
    `paused`, `cancelled`, `finished` or `expired`; the first two have yet to end.
    """

    __tablename__ = "replays"
    __table_args__ = (
        ForeignKeyConstraint(["sink"], ["sinks.name"], ondelete="CASCADE"),
        CheckConstraint("state IN ('running', 'paused', 'cancelled', 'finished', 'expired')", name="state"),
        Index("ix_replays_open", "sink", "id", **_where("state IN ('running', 'paused')")),
        {"sqlite_autoincrement": True},
    )

    id: int | None = Field(default=None, sa_column=Column(Position, primary_key=True, autoincrement=True))
    sink: str = _text()
    state: str = _text()
    after_position: int = Field(sa_column=Column(Position, nullable=False))
    to_position: int = Field(sa_column=Column(Position, nullable=False))
    position: int = Field(sa_column=Column(Position, nullable=False))
    published: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    dead_letters: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    requested_at: datetime = _time(nullable=False)
    ended_at: datetime | None = _time()


class AttemptRow(SQLModel, table=True):
    """One try to publish one event to one sink: its outcome, and what was decided about the event.

    `replay_id` names the replay it was part of; null where it was none.
    """

    __tablename__ = "attempts"
    __table_args__ = (Index("ix_attempts_position", "position"), {"sqlite_autoincrement": True})

    id: int | None = Field(default=None, sa_column=Column(Position, primary_key=True, autoincrement=True))
    sink: str = _text()
    position: int = Field(sa_column=Column(Position, nullable=False))
    event_id: str = _text()
    started_at: datetime = _time(nullable=False)
    ended_at: datetime = _time(nullable=False)
    outcome: str = _text()
    decision: str = _text()
    reason: str | None = _text(nullable=True)
    response_code: int | None = None
    response: str | None = _text(nullable=True)
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
        {"sqlite_autoincrement": True},
    )

    id: int | None = Field(default=None, sa_column=Column(Position, primary_key=True, autoincrement=True))
    sink: str = _text()
    position: int = Field(sa_column=Column(Position, nullable=False))
    lane: str = _text()
    event_id: str = _text()
    reason: str = _text()
    detail: str = _text()
    attempts: int
    response_code: int | None = None
    response: str | None = _text(nullable=True)
    first_at: datetime = _time(nullable=False)
    died_at: datetime = _time(nullable=False)
