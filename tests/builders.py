"""Rows of the status table, the log and the journal for tests of queries: one call with sensible defaults."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select, update

from receiver.domain.events import number_key
from receiver.models.callbacks import CALLBACKS, PENDING, PROCESSOR, QUARANTINE
from receiver.models.messages import DELIVERIES, MESSAGES
from receiver.storage.database import Database

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
