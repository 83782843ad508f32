"""The status table, written: `messages` and `deliveries`, from folded messages."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from receiver.domain.delivery import Message, Recipient, roll_up
from receiver.domain.events import Api, Direction, Facts, MessageKey, number_key
from receiver.storage.bulk import ExecuteMany, InsertMany, Spelling, Step, Transaction, upsert
from receiver.storage.columns import json_text
from receiver.storage.tables import DeliveryRow, MessageRow

MESSAGES: Final[Any] = MessageRow.__table__  # type: ignore[attr-defined]
DELIVERIES: Final[Any] = DeliveryRow.__table__  # type: ignore[attr-defined]

# Kept where the first event that brought them is already in: the log does not hold them, so they come as null then.
_KEPT: Final = ("text", "media")


MESSAGE_COLUMNS: Final = (
    "api",
    "direction",
    "id",
    "sender",
    "sender_key",
    "recipients",
    "owner",
    "application_id",
    "text",
    "media",
    "tag",
    "tag_verdict",
    "segment_count",
    "channel",
    "carrier_name",
    "priority",
    "created_at",
    "listed_at",
    "status",
    "state",
    "delivery_state",
    "delivery_code",
    "delivery_description",
    "contradicted",
    "awaiting_receipt",
    "first_received_at",
    "updated_at",
)
DELIVERY_COLUMNS: Final = (
    "api",
    "direction",
    "message_id",
    "recipient_key",
    "recipient",
    "place",
    "listed_at",
    "status",
    "state",
    "delivery_state",
    "delivery_code",
    "delivery_description",
    "sent_at",
    "delivered_at",
    "failed_at",
    "read_at",
    "contradicted",
    "updated_at",
)

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows one message makes: its own, and one per recipient by the recipient's key."""

    message: Row
    deliveries: dict[str, Row]


def rows_of(message: Message, spelling: Spelling) -> Rows:
    """The rows of a message; they depend on the set of its events alone."""
    recipients, facts = message.recipients(), message.facts()
    listed_at = spelling.time(facts.created_at or message.first_received_at)
    deliveries = {}
    for place, recipient in enumerate(recipients):
        key = number_key(recipient.number)
        deliveries[key] = _delivery_row(message, recipient, key, place, listed_at, spelling)
    return Rows(_message_row(message, facts, recipients, listed_at, spelling), deliveries)


def _message_row(
    message: Message, facts: Facts, recipients: Sequence[Recipient], listed_at: Any, spelling: Spelling
) -> Row:
    time, flag = spelling.time, spelling.flag
    standing = roll_up([recipient.delivery for recipient in recipients], message.direction)
    sender, media = facts.sender, facts.media
    return (
        message.api.value,
        message.direction.value,
        message.id,
        sender,
        number_key(sender) if sender else None,
        json_text([recipient.number for recipient in recipients if recipient.number is not None]),
        facts.owner,
        facts.application_id,
        facts.text,
        json_text(media) if media else None,
        facts.tag,
        message.tag_verdict.value,
        facts.segment_count,
        facts.channel,
        facts.carrier_name,
        facts.priority,
        time(facts.created_at),
        listed_at,
        str(standing.status),
        standing.state,
        standing.delivery_state,
        standing.code,
        standing.description,
        flag(standing.contradicted),
        flag(standing.awaiting_receipt),
        time(message.first_received_at),
        time(message.updated_at),
    )


def _delivery_row(
    message: Message, recipient: Recipient, key: str, place: int, listed_at: Any, spelling: Spelling
) -> Row:
    time, delivery = spelling.time, recipient.delivery
    state, delivery_state = delivery.axes
    return (
        message.api.value,
        message.direction.value,
        message.id,
        key,
        recipient.number,
        place,
        listed_at,
        delivery.status.value,
        state,
        delivery_state,
        delivery.code,
        delivery.description,
        time(delivery.sent_at),
        time(delivery.delivered_at),
        time(delivery.failed_at),
        time(delivery.read_at),
        spelling.flag(delivery.contradicted),
        time(delivery.updated_at),
    )


_KEEP_MESSAGE: Final = upsert(MESSAGES, kept=_KEPT, untouched=("events_forgotten",))
_KEEP_DELIVERY: Final = upsert(DELIVERIES)
_REMOVE: Final = "DELETE FROM deliveries WHERE api = ? AND direction = ? AND message_id = ? AND recipient_key = ?"


async def existing(transaction: Transaction, message_ids: Iterable[str]) -> dict[MessageKey, bool]:
    """Which messages with these ids have a row, and whether retention has removed events of them.

    The rows of such a message must not be folded again.
    """
    columns = [MESSAGES.c.api, MESSAGES.c.direction, MESSAGES.c.id, MESSAGES.c.events_forgotten]
    found = await transaction.select(columns, "id {among}", message_ids)
    return {(Api(row[0]), Direction(row[1]), row[2]): bool(row[3]) for row in found}


def write(changes: Iterable[tuple[bool, Rows | None, Rows]]) -> list[Step]:
    """The steps that write messages: whether each has a row, its rows before (None: unknown or none) and after.

    What is known to be there already is not written.
    """
    new: list[Row] = []
    new_deliveries: list[Row] = []
    messages: list[Row] = []
    deliveries: list[Row] = []
    gone: list[Row] = []
    for exists, before, after in changes:
        old = before.deliveries if before else {}
        gone.extend(row[:4] for key, row in old.items() if key not in after.deliveries)
        if not exists:
            new.append(after.message)
            # a message without a row may still have deliveries: retention removes both, a rebuild may meet either
            (new_deliveries if before is None else deliveries).extend(after.deliveries.values())
            continue
        if before is None or before.message != after.message:
            messages.append(after.message)
        deliveries.extend(row for key, row in after.deliveries.items() if old.get(key) != row)
    return [
        InsertMany(MESSAGES, MESSAGE_COLUMNS, new),
        InsertMany(MESSAGES, MESSAGE_COLUMNS, messages, _KEEP_MESSAGE),
        ExecuteMany(_REMOVE, gone),
        InsertMany(DELIVERIES, DELIVERY_COLUMNS, new_deliveries),
        InsertMany(DELIVERIES, DELIVERY_COLUMNS, deliveries, _KEEP_DELIVERY),
    ]
