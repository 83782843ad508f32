"""Events for tests: one call with sensible defaults."""

from datetime import UTC, datetime, timedelta
from typing import Any

from receiver.domain.events import Api, Direction, Event, MessageFields, Status, event_id
from receiver.providers import PROVIDERS

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


def make_event(
    status: Status = Status.DELIVERED,
    *,
    message_id: str = "1661365814859loidf7mcwd4qacn7",
    recipient: str | None = "+15550001",
    time: float | None = 0,
    code: int | None = None,
    received: float = 0,
    api: Api = Api.V2,
    to: tuple[str, ...] = ("+15550001",),
    fields: dict[str, Any] | None = None,
    **more: Any,
) -> Event:
    occurred_at = None if time is None else at(time)
    kind = more.pop("type", f"message-{status}")
    identity = event_id(
        api=api,
        message_id=message_id,
        recipient=recipient,
        type=kind,
        time=occurred_at.isoformat() if occurred_at else None,
        delivery=(more.get("state"), more.get("delivery_state")),
        code=str(code) if code is not None else None,
    )
    expects_receipt = PROVIDERS[api].expects_receipt
    direction = Direction.IN if status is Status.RECEIVED else Direction.OUT
    return Event(
        **{
            "id": identity,
            "api": api,
            "message_id": message_id,
            "direction": direction,
            "type": kind,
            "status": status,
            "recipient": recipient,
            "occurred_at": occurred_at,
            "code": code,
            "receipt_expected": expects_receipt is None or expects_receipt(more.get("delivery_state")),
            "fields": MessageFields(sender="+15559999", recipients=to, **(fields or {})),
            "received_at": at(received),
            "route": "primary",
            "callback_id": f"callback-{received}",
            **more,
        }
    )
