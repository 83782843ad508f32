"""Events: the event log, and what is shown of an event of a message."""

from typing import Any

from sqlalchemy import UniqueConstraint

from receiver.domain.events import Api, Direction, Status, TagVerdict
from receiver.models.columns import (
    Model,
    Read,
    Time,
    integer_column,
    json_column,
    serial_column,
    table_of,
    text_column,
    time_column,
)


class EventBase(Model):
    """One event of a message; `status` is the status in this event alone, `type` is Bandwidth's name for it."""

    id: str = text_column()
    type: str = text_column()
    occurred_at: Time | None = time_column(serialization_alias="time")
    received_at: Time = time_column(nullable=False)
    recipient: str | None = text_column(nullable=True)
    code: int | None = integer_column(nullable=True)
    description: str | None = text_column(nullable=True)
    tag_verdict: TagVerdict = text_column()
    route: str = text_column()
    callback_id: str = text_column()
    status: Status = text_column()


class EventRow(EventBase, table=True):
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

    position: int | None = serial_column()
    api: Api = text_column()
    message_id: str = text_column()
    direction: Direction = text_column()
    previous_status: str | None = text_column(nullable=True)
    changed: bool
    facts: dict[str, Any] = json_column(nullable=False)
    delivery: dict[str, Any] = json_column(nullable=False)


EVENTS = table_of(EventRow)


class MessageEventRead(EventBase, Read):
    """One event of a message; `status` is the status in this event alone, `type` is Bandwidth's name for it."""
