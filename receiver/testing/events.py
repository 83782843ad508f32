"""Makes events for tests, as complete as real ones."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Final
from uuid import uuid4

from receiver.dispatch.publish import publication
from receiver.domain.delivery import EMPTY_DELIVERY, Change, merge
from receiver.domain.events import Api, Direction, Event, MessageFields, Status, event_id
from receiver.domain.publication import Appended, LogEntry, Publication
from receiver.providers import states

TEXT: Final = "Your code is 4711. Tell nobody."

_STATUSES: Final = (Status.QUEUED, Status.SENDING, Status.SENT, Status.DELIVERED)
_RECIPIENT: Final = "+15550100"
_positions: Final = count(1)


def publications(count: int = 1, *, messages: int | None = None, text: str = TEXT) -> list[Publication]:
    """Makes new events as a sink gets them, of `messages` messages in turn; None: each event has its own message."""
    return [_published(event, next(_positions), text) for event in events(count, messages=messages)]


def publication_of_size(size: int) -> Publication:
    """Makes an event whose body has `size` bytes."""
    [event], position = events(1), next(_positions)
    room = size - len(_published(event, position, "").body)
    return _published(event, position, "x" * room)


def events(count: int = 1, *, messages: int | None = None, description: str | None = None) -> list[Event]:
    """Makes new events for the log, of `messages` messages in turn; None: each event has its own message."""
    ids = [uuid4().hex for _ in range(messages or count)]
    return [_event(ids[index % len(ids)], index // len(ids), description) for index in range(count)]


def appended(events: Iterable[Event]) -> list[Appended]:
    """The rows of the events for the log, each as the first event of its delivery."""
    return [Appended.of(event, Change(None, merge(EMPTY_DELIVERY, event), True), states) for event in events]


def _event(message_id: str, number: int, description: str | None) -> Event:
    status = _STATUSES[number % len(_STATUSES)]
    received_at = datetime.now(UTC)
    occurred_at = received_at + timedelta(microseconds=number)
    return Event(
        id=event_id(
            api=Api.V2,
            message_id=message_id,
            recipient=_RECIPIENT,
            type=f"message-{status}",
            time=occurred_at.isoformat(),
            code=None,
        ),
        api=Api.V2,
        message_id=message_id,
        direction=Direction.OUT,
        type=f"message-{status}",
        status=status,
        recipient=_RECIPIENT,
        occurred_at=occurred_at,
        description=description,
        fields=MessageFields(
            sender="+15550199", recipients=(_RECIPIENT,), application_id="receiver.testing", tag="test"
        ),
        received_at=received_at,
        route="primary",
        callback_id=uuid4().hex,
    )


def _published(event: Event, position: int, text: str) -> Publication:
    [row] = appended([event])
    entry = LogEntry(
        position=position,
        event=event,
        previous_status=row.previous_status,
        changed=row.changed,
        delivery=row.delivery,
        message={"text": text},
    )
    return publication(entry)
