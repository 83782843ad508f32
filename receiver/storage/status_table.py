"""The status table, written: `messages` and `deliveries`, from folded messages."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from receiver.domain.delivery import Message, Recipient, roll_up
from receiver.domain.events import Api, number_key
from receiver.storage.appending import Change, Insert, Step, Transaction, upsert
from receiver.storage.tables import DeliveryRow, MessageRow

MESSAGES: Final[Any] = MessageRow.__table__  # type: ignore[attr-defined]
DELIVERIES: Final[Any] = DeliveryRow.__table__  # type: ignore[attr-defined]

# Kept where the first event that brought them is already in: the log does not hold them, so they come as null then.
_KEPT: Final = ("text", "media")


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows one message makes: its own, and one per recipient by the recipient's key."""

    message: dict[str, Any]
    deliveries: dict[str, dict[str, Any]]


def rows_of(message: Message) -> Rows:
    """The rows of a message; they depend on the set of its events alone."""
    recipients = message.recipients()
    deliveries = {
        number_key(recipient.number): _delivery_row(message, recipient, place)
        for place, recipient in enumerate(recipients)
    }
    return Rows(_message_row(message, recipients), deliveries)


def _message_row(message: Message, recipients: Sequence[Recipient]) -> dict[str, Any]:
    standing = roll_up([recipient.delivery for recipient in recipients], message.direction)
    fact, sender = message.fact, message.fact("sender")
    media = fact("media")
    return {
        "api": message.api,
        "id": message.id,
        "direction": message.direction,
        "sender": sender,
        "sender_key": number_key(sender) if sender else None,
        "recipients": [recipient.number for recipient in recipients if recipient.number is not None],
        "owner": fact("owner"),
        "application_id": fact("application_id"),
        "text": fact("text"),
        "media": list(media) if media else None,
        "tag": fact("tag"),
        "tag_verdict": message.tag_verdict,
        "segment_count": fact("segment_count"),
        "channel": fact("channel"),
        "carrier_name": fact("carrier_name"),
        "priority": fact("priority"),
        "created_at": fact("created_at"),
        "listed_at": message.listed_at,
        "status": standing.status,
        "state": standing.state,
        "delivery_state": standing.delivery_state,
        "delivery_code": standing.code,
        "delivery_description": standing.description,
        "contradicted": standing.contradicted,
        "awaiting_receipt": standing.awaiting_receipt,
        "first_received_at": message.first_received_at,
        "updated_at": message.updated_at,
    }


def _delivery_row(message: Message, recipient: Recipient, place: int) -> dict[str, Any]:
    delivery = recipient.delivery
    state, delivery_state = delivery.axes
    return {
        "api": message.api,
        "message_id": message.id,
        "recipient_key": number_key(recipient.number),
        "recipient": recipient.number,
        "place": place,
        "listed_at": message.listed_at,
        "status": delivery.status,
        "state": state,
        "delivery_state": delivery_state,
        "delivery_code": delivery.code,
        "delivery_description": delivery.description,
        "sent_at": delivery.sent_at,
        "delivered_at": delivery.delivered_at,
        "failed_at": delivery.failed_at,
        "read_at": delivery.read_at,
        "contradicted": delivery.contradicted,
        "updated_at": delivery.updated_at,
    }


_KEEP_MESSAGE: Final = upsert(MESSAGES, kept=_KEPT, untouched=("events_forgotten",))
_KEEP_DELIVERY: Final = upsert(DELIVERIES)
_GONE: Final = ("api", "message_id", "recipient_key")
_REMOVE: Final = (
    "DELETE FROM deliveries WHERE api = :api AND message_id = :message_id AND recipient_key = :recipient_key"
)


async def existing(transaction: Transaction, message_ids: Iterable[str]) -> dict[tuple[Api, str], bool]:
    """Which of the messages have a row, and whether retention has removed events of them.

    The rows of such a message must not be folded anew.
    """
    columns = [MESSAGES.c.api, MESSAGES.c.id, MESSAGES.c.events_forgotten]
    found = await transaction.select(columns, f"{OF_EITHER_API} AND id {{among}}", message_ids)
    return {(Api(row.api), row.id): bool(row.events_forgotten) for row in found}


# said so that the primary key finds the rows
OF_EITHER_API: Final = f"api IN ('{Api.V1}', '{Api.V2}')"


def write(changes: Iterable[tuple[Rows | None, Rows]]) -> list[Step]:
    """The steps that write what differs between the rows of messages before (None: no row yet) and after."""
    messages: list[dict[str, Any]] = []
    deliveries: list[dict[str, Any]] = []
    gone: list[dict[str, Any]] = []
    for before, after in changes:
        if before is None or before.message != after.message:
            messages.append(after.message)
        old = before.deliveries if before else {}
        deliveries.extend(row for key, row in after.deliveries.items() if old.get(key) != row)
        gone.extend(row for key, row in old.items() if key not in after.deliveries)
    return [
        Insert(MESSAGES, messages, _KEEP_MESSAGE),
        Change(_REMOVE, _GONE, gone),
        Insert(DELIVERIES, deliveries, _KEEP_DELIVERY),
    ]
