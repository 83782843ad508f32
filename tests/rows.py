"""Rows of the status table, the log and the journal, for tests of the merge and of queries."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select, update

from receiver.domain.delivery import FinalConflict
from receiver.domain.events import Event, number_key
from receiver.domain.message import Message, Recipient, fold, roll_up
from receiver.models.callbacks import CALLBACKS, PENDING, PROCESSOR, QUARANTINE
from receiver.models.messages import DELIVERIES, MESSAGES
from receiver.providers import states
from receiver.storage.database import Database


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


NOON = datetime(2024, 6, 12, 12, tzinfo=UTC)


def minutes(number: float) -> datetime:
    return NOON + timedelta(minutes=number)


@dataclass(frozen=True, slots=True)
class MessageRows:
    """The row of a message, and those of its deliveries."""

    message: dict[str, Any]
    deliveries: list[dict[str, Any]]


def message(
    id: str,  # noqa: A002
    *,
    api: str = "v2",
    to: Sequence[str | None] = ("+19195550002",),
    at: datetime = NOON,
    status: str = "delivered",
    deliveries: Sequence[dict[str, Any]] = (),
    **columns: Any,
) -> MessageRows:
    """An outbound message that was delivered; `deliveries` overrides columns, recipient by recipient."""
    sender = columns.get("sender", "+19195550001")
    row: dict[str, Any] = {
        "api": api,
        "id": id,
        "direction": "out",
        "sender": sender,
        "sender_key": number_key(sender) if sender else None,
        "recipients": [number for number in to if number is not None],
        "owner": None,
        "application_id": None,
        "text": None,
        "media": None,
        "tag": None,
        "tag_verdict": "unchecked",
        "segment_count": None,
        "channel": None,
        "carrier_name": None,
        "priority": None,
        "created_at": at,
        "listed_at": at,
        "status": status,
        "state": "sent",
        "delivery_state": "delivered" if status == "delivered" else None,
        "delivery_code": None,
        "delivery_description": None,
        "contradicted": False,
        "awaiting_receipt": False,
        "first_received_at": at,
        "updated_at": at,
        **columns,
    }
    overrides = [*deliveries, *[{}] * (len(to) - len(deliveries))]
    rows = [_delivery(row, number, place) | overrides[place] for place, number in enumerate(to)]
    return MessageRows(row, rows)


def inbound(id: str, **columns: Any) -> MessageRows:  # noqa: A002
    values = {"direction": "in", "status": "received", "state": "received", "tag_verdict": "not-applicable"}
    return message(id, **{**values, "delivery_state": None, **columns})


_SHARED = (
    "api",
    "direction",
    "listed_at",
    "status",
    "state",
    "delivery_state",
    "delivery_code",
    "delivery_description",
)


def _delivery(row: dict[str, Any], number: str | None, place: int) -> dict[str, Any]:
    return {
        **{name: row[name] for name in _SHARED},
        "message_id": row["id"],
        "recipient_key": number_key(number),
        "recipient": number,
        "place": place,
        "sent_at": None,
        "delivered_at": None,
        "failed_at": None,
        "read_at": None,
        "contradicted": row["contradicted"],
        "updated_at": row["updated_at"],
    }


@dataclass(frozen=True, slots=True)
class CallbackRows:
    """The journal's row of a callback, its rows in the quarantine, and whether it is pending."""

    callback: dict[str, Any]
    quarantine: list[dict[str, Any]]
    is_pending: bool


def callback(
    id: str,  # noqa: A002
    *,
    problems: Sequence[dict[str, Any]] = (),
    is_pending: bool = False,
    **columns: Any,
) -> CallbackRows:
    """A POST that was accepted and processed; `problems` are its quarantined elements."""
    row = {
        "id": id,
        "received_at": NOON,
        "api": "v2",
        "route": "primary",
        "method": "POST",
        "remote": "192.0.2.1",
        "query": "",
        "headers": {"content-type": "application/json"},
        "body": b"[]",
        **columns,
    }
    return CallbackRows(row, [{**problem, "callback_id": id} for problem in problems], is_pending)


def problem(reason: str = "unreadable", element: int = 0, **columns: Any) -> dict[str, Any]:
    """A quarantined element."""
    return {"element": element, "reason": reason, "detail": "", "message_id": None, "reprocessed_at": None, **columns}


async def insert(database: Database, *built: MessageRows) -> None:
    async with database.writing() as connection:
        await connection.execute(MESSAGES.insert(), [one.message for one in built])
        await connection.execute(DELIVERIES.insert(), [row for one in built for row in one.deliveries])


async def insert_callbacks(database: Database, *built: CallbackRows) -> None:
    """Puts callbacks into the journal: first the processed ones, then the pending ones."""
    processed = [one.callback for one in built if not one.is_pending]
    pending = [one.callback for one in built if one.is_pending]
    quarantine = [row for one in built for row in one.quarantine]
    async with database.writing_journal() as connection:
        if processed:
            await connection.execute(CALLBACKS.insert(), processed)
        end = await connection.scalar(select(func.max(CALLBACKS.c.sequence))) or 0
        for row in pending:
            [sequence] = (await connection.execute(CALLBACKS.insert(), row)).inserted_primary_key
            if not database.is_sqlite:
                await connection.execute(PENDING.insert(), {"sequence": sequence})
    async with database.writing() as connection:
        await connection.execute(update(PROCESSOR).values(cursor=end))
        if quarantine:
            await connection.execute(QUARANTINE.insert(), quarantine)
