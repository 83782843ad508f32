"""Messages and deliveries: the status table, and what is shown of it.

A field that is declared here is a column of its table, and is in the JSON and the CSV of the API and in the output of
the commands; a field of a row class alone is not shown.
"""

from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, computed_field
from sqlalchemy import Index, PrimaryKeyConstraint, false, literal_column
from sqlmodel import Field

from receiver.domain.events import Api, Direction, MessageKey, Status, TagVerdict
from receiver.models.codes import ReasonRead, reason_of
from receiver.models.columns import (
    Model,
    Read,
    Time,
    integer_column,
    json_column,
    only_where,
    table_of,
    text_column,
    time_column,
)
from receiver.models.message_queries import TAG_START_CHARACTERS, MessageStatus
from receiver.models.parameters import MessagePlace

_TAG_START: Final = f"substr(tag, 1, {TAG_START_CHARACTERS})"


def _empty_for_null(value: Any) -> Any:
    return [] if value is None else value


Media = Annotated[list[str], BeforeValidator(_empty_for_null)]


class MessageBase(Model):
    """A message: its fields, its status."""

    id: str = text_column(primary_key=True)
    api: Api = text_column(primary_key=True)
    direction: Direction = text_column(primary_key=True)
    sender: str | None = text_column(nullable=True, serialization_alias="from")
    numbers: list[str] = json_column("recipients", nullable=False, serialization_alias="to")
    owner: str | None = text_column(nullable=True)
    application_id: str | None = text_column(nullable=True)
    text: str | None = text_column(nullable=True)
    media: list[str] | None = json_column()
    tag: str | None = text_column(nullable=True)
    tag_verdict: TagVerdict = text_column()
    segment_count: int | None = integer_column(nullable=True)
    channel: str | None = text_column(nullable=True)
    carrier_name: str | None = text_column(nullable=True)
    priority: str | None = text_column(nullable=True)
    created_at: Time | None = time_column(serialization_alias="time")
    status: MessageStatus = text_column()
    state: str | None = text_column(nullable=True)
    delivery_state: str | None = text_column(nullable=True)
    delivery_code: int | None = integer_column(nullable=True)
    delivery_description: str | None = text_column(nullable=True)
    contradicted: bool
    first_received_at: Time = time_column(nullable=False)
    registered_at: Time | None = time_column()
    awaiting_receipt: bool
    updated_at: Time = time_column(nullable=False)


class MessageRow(MessageBase, table=True):
    """A message, known by version, direction and id: its fields and its status.

    `listed_at` is `created_at`, else `first_received_at`. `events_forgotten` is set once retention has removed events
    of the message; the row does not change after that. The parameters of the send, from `callback_url` on, come from
    its registration; the Catapult API, which has them too, shows them.
    """

    __tablename__ = "messages"
    __table_args__ = (
        # The id comes first: most look-ups know only the id, and with `api` first PostgreSQL read all of a version.
        PrimaryKeyConstraint("id", "api", "direction", name="pk_messages"),
        Index("ix_messages_listed", "listed_at", "api", "direction", "id"),
        Index("ix_messages_sender", "sender_key", "listed_at"),
        Index("ix_messages_status", "status", "listed_at", **only_where("status NOT IN ('delivered', 'received')")),
        # The operator class serves both equality and prefixes, whatever the collation of the database.
        Index(
            "ix_messages_tag",
            literal_column(_TAG_START).label("tag_start"),
            "listed_at",
            postgresql_ops={"tag_start": "text_pattern_ops"},
            **only_where(f"{_TAG_START} IS NOT NULL"),
        ),
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

    sender_key: str | None = text_column(nullable=True)
    listed_at: datetime = time_column(nullable=False)
    events_forgotten: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    callback_url: str | None = text_column(nullable=True)
    callback_timeout: int | None = integer_column(nullable=True)
    fallback_url: str | None = text_column(nullable=True)
    receipt_requested: str | None = text_column(nullable=True)


class DeliveryBase(Model):
    """The delivery of a message to one number; `recipient` is null where no number is known."""

    recipient: str | None = text_column(nullable=True, serialization_alias="to")
    status: Status = text_column()
    state: str | None = text_column(nullable=True)
    delivery_state: str | None = text_column(nullable=True)
    delivery_code: int | None = integer_column(nullable=True)
    delivery_description: str | None = text_column(nullable=True)
    sent_at: Time | None = time_column()
    delivered_at: Time | None = time_column()
    failed_at: Time | None = time_column()
    read_at: Time | None = time_column()
    contradicted: bool
    updated_at: Time | None = time_column()


class DeliveryRow(DeliveryBase, table=True):
    """How far one message got to one recipient. `recipient_key` is the number without plus; empty: number unknown.

    `delivered_received_at` is when, by our clock, the first callback came that says delivered or read.
    """

    __tablename__ = "deliveries"
    # No foreign key to `messages`: the same transaction writes both tables, and PostgreSQL checks a foreign key per
    # row: a sixth of the transaction.
    __table_args__ = (
        PrimaryKeyConstraint("message_id", "api", "direction", "recipient_key", name="pk_deliveries"),
        Index("ix_deliveries_recipient", "recipient_key", "listed_at"),
        # This index is not on messages because the recipients of a group message have codes of their own.
        Index("ix_deliveries_code", "delivery_code", "listed_at", **only_where("delivery_code IS NOT NULL")),
    )

    api: Api = text_column(primary_key=True)
    direction: Direction = text_column(primary_key=True)
    message_id: str = text_column(primary_key=True)
    recipient_key: str = text_column(primary_key=True)
    place: int
    listed_at: datetime = time_column(nullable=False)
    delivered_received_at: datetime | None = time_column()


MESSAGES = table_of(MessageRow)
DELIVERIES = table_of(DeliveryRow)


class RecipientRead(DeliveryBase, Read):
    """The delivery of a message to one number; `to` is null where no number is known."""

    api: Api = Field(exclude=True)

    @computed_field
    def reason(self) -> ReasonRead | None:
        return reason_of(self.api, self.delivery_code)


class MessageRead(MessageBase, Read):
    """A message: its fields, its status, its recipients."""

    media: Media
    listed_at: datetime = Field(exclude=True)
    callback_url: str | None = Field(None, exclude=True)
    callback_timeout: int | None = Field(None, exclude=True)
    fallback_url: str | None = Field(None, exclude=True)
    receipt_requested: str | None = Field(None, exclude=True)
    recipients: list[RecipientRead]

    @property
    def place(self) -> MessagePlace:
        return MessagePlace(self.listed_at, self.api, self.direction, self.id)

    @property
    def key(self) -> MessageKey:
        return (self.api, self.direction, self.id)
