"""A message and its deliveries as the status table has them, for tests of the merge."""

from dataclasses import dataclass
from typing import Any

from receiver.domain.delivery import FinalConflict
from receiver.domain.events import Event, number_key
from receiver.domain.message import Message, Recipient, fold, roll_up
from receiver.providers import states


@dataclass
class Rows:
    """A message and its deliveries, by the recipient's key, as the status table has them."""

    message: dict[str, Any]
    deliveries: dict[str, dict[str, Any]]


FIELDS = ("sender", "tag", "segment_count", "carrier_name", "text", "media", "created_at")
OF_A_MESSAGE = ("api", "direction", "id", "tag_verdict", "listed_at", "first_received_at", "updated_at")
OF_A_DELIVERY = ("status", "contradicted", "sent_at", "delivered_at", "failed_at", "read_at", "updated_at")


def rows_of(message: Message) -> Rows:
    recipients = message.recipients()
    summary = roll_up([row.delivery for row in recipients], message.direction, states)
    values = {
        **{name: getattr(message.fields(), name) for name in FIELDS},
        **{name: getattr(message, name) for name in OF_A_MESSAGE},
        "recipients": [row.number for row in recipients if row.number is not None],
        "status": summary.status,
        "state": summary.state,
        "delivery_state": summary.delivery_state,
        "delivery_code": summary.code,
        "contradicted": summary.contradicted,
        "awaiting_receipt": summary.awaiting_receipt,
    }
    deliveries = {number_key(row.number): delivery_row(row, place) for place, row in enumerate(recipients)}
    return Rows(values, deliveries)


def delivery_row(row: Recipient, place: int) -> dict[str, Any]:
    delivery = row.delivery
    state, delivery_state = states.of_delivery(delivery)
    return {
        **{name: getattr(delivery, name) for name in OF_A_DELIVERY},
        "recipient": row.number,
        "place": place,
        "state": state,
        "delivery_state": delivery_state,
        "delivery_code": delivery.code,
        "delivery_description": delivery.description,
    }


def rows(events: list[Event], conflict: FinalConflict = FinalConflict.FAILED_WINS) -> Any:
    return rows_of(fold(events, conflict))
