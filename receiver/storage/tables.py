"""The tables of callbacks and messages, as rows.

`README.md` documents the columns people may read; columns are added, not renamed.
"""

from datetime import datetime
from typing import Any, Final

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, UniqueConstraint, false
from sqlalchemy import text as sql
from sqlmodel import Field, SQLModel

from receiver.storage.columns import Position, json_column, only_where, text_column, time_column

# An index entry of PostgreSQL has room for some 2700 bytes, a tag need not.
TAG_START_CHARACTERS: Final = 200
_TAG_START: Final = f"substr(tag, 1, {TAG_START_CHARACTERS})"


class CallbackRow(SQLModel, table=True):
    """One HTTP request from Bandwidth, raw. `id` rises with `received_at`, so that it serves as the list's order."""

    __tablename__ = "callbacks"
    __table_args__ = (Index("ix_callbacks_quarantined", "id", **only_where("outcome = 'quarantined'")),)

    id: str = text_column(primary_key=True)
    received_at: datetime = time_column(nullable=False)
    api: str = text_column()
    route: str = text_column()
    method: str = text_column()
    remote: str | None = text_column(nullable=True)
    query: str = text_column()
    headers: dict[str, str] = json_column(nullable=False)
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    outcome: str = text_column()
    reason: str | None = text_column(nullable=True)
    problems: list[dict[str, Any]] | None = json_column()
    events: int
    duplicates: int = Field(sa_column=Column(Integer, nullable=False, server_default="0"))
    reread_at: datetime | None = time_column()


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
    """A message: its facts and its standing. `listed_at` is `created_at`, else `first_received_at`.

    `events_forgotten` is set when retention has removed events of it; the row then moves no more.
    """

    __tablename__ = "messages"
    __table_args__ = (
        Index("ix_messages_listed", "listed_at", "api", "id"),
        Index("ix_messages_sender", "sender_key", "listed_at"),
        Index("ix_messages_status", "status", "listed_at"),
        Index("ix_messages_tag", sql(_TAG_START), "listed_at", **only_where(f"{_TAG_START} IS NOT NULL")),
        Index("ix_messages_application", "application_id", "listed_at", **only_where("application_id IS NOT NULL")),
        Index("ix_messages_state", "state", "listed_at", **only_where("state IN ('queued', 'sending', 'error')")),
        Index(
            "ix_messages_delivery_state",
            "delivery_state",
            "listed_at",
            **only_where("delivery_state IN ('waiting', 'not-delivered')"),
        ),
        # the whole order in them: without, SQLite would rather read all of `ix_messages_listed`
        Index("ix_messages_awaiting", "listed_at", "api", "id", **only_where("awaiting_receipt")),
        Index("ix_messages_contradicted", "listed_at", "api", "id", **only_where("contradicted")),
        Index(
            "ix_messages_distrusted",
            "tag_verdict",
            "listed_at",
            **only_where("tag_verdict IN ('forged', 'unsigned', 'missing')"),
        ),
        Index("ix_messages_text", "listed_at", **only_where("text IS NOT NULL OR media IS NOT NULL")),
    )

    api: str = text_column(primary_key=True)
    id: str = text_column(primary_key=True)
    direction: str = text_column()
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
    """How far one message got to one recipient. `recipient_key` is the number without plus; empty: none known."""

    __tablename__ = "deliveries"
    # No foreign key to `messages`: both are written by one statement after another in the same transaction, and on
    # PostgreSQL the check was a sixth of it.
    __table_args__ = (
        Index("ix_deliveries_recipient", "recipient_key", "listed_at"),
        # not on messages: the recipients of a group message have codes of their own
        Index("ix_deliveries_code", "delivery_code", "listed_at", **only_where("delivery_code IS NOT NULL")),
    )

    api: str = text_column(primary_key=True)
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
    """The code catalogue as a table, for joins; written by `receiver migrate` from the code that knows it."""

    __tablename__ = "delivery_codes"

    api: str = text_column(primary_key=True)
    code: int = Field(primary_key=True, sa_type=Integer, sa_column_kwargs={"autoincrement": False})
    name: str = text_column()
    description: str = text_column()
    category: str = text_column()
    outcome: str = text_column()
    retryable: bool | None
    billable: bool | None
