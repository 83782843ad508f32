"""Rows of the status table, the log and the ledger for tests of what reads them: one call, sensible values."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from receiver.domain.events import number_key
from receiver.storage.callbacks import CALLBACKS
from receiver.storage.database import Database
from receiver.storage.status_table import DELIVERIES, MESSAGES

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
    told = {"direction": "in", "status": "received", "state": "received", "tag_verdict": "not-applicable"}
    return message(id, **{**told, "delivery_state": None, **columns})


_SHARED = ("api", "listed_at", "status", "state", "delivery_state", "delivery_code", "delivery_description")


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


def callback(id: str, **columns: Any) -> dict[str, Any]:  # noqa: A002
    """A POST that was accepted."""
    return {
        "id": id,
        "received_at": NOON,
        "api": "v2",
        "route": "primary",
        "method": "POST",
        "remote": "192.0.2.1",
        "query": "",
        "headers": {"content-type": "application/json"},
        "body": b"[]",
        "outcome": "accepted",
        "reason": None,
        "problems": None,
        "events": 1,
        "duplicates": 0,
        "reread_at": None,
        **columns,
    }


async def insert(database: Database, *built: MessageRows) -> None:
    async with database.writing() as connection:
        await connection.execute(MESSAGES.insert(), [one.message for one in built])
        await connection.execute(DELIVERIES.insert(), [row for one in built for row in one.deliveries])


async def insert_callbacks(database: Database, *built: dict[str, Any]) -> None:
    async with database.writing() as connection:
        await connection.execute(CALLBACKS.insert(), list(built))
