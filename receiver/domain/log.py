"""The event log's entries: an event with its place in the log and what the delivery was after it."""

from typing import Any

import msgspec

from receiver.domain.delivery import Change, Delivery
from receiver.domain.events import Event


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
