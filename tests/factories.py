"""Events, callbacks, bodies and publications for tests: one call with sensible defaults."""

import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from receiver.domain.events import Api, Callback, Direction, Event, MessageFields, Rejected, Status, event_id
from receiver.domain.publication import Publication
from receiver.providers import PROVIDERS, parse

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


RECEIVED_AT = datetime(2024, 6, 12, 14, tzinfo=UTC)


def request(api: Api = Api.V2, method: str = "POST", query: str = "", body: bytes = b"") -> Callback:
    return Callback(
        id="callback-1",
        received_at=RECEIVED_AT,
        api=api,
        route="primary",
        method=method,
        query=query,
        body=body,
    )


def post(body: Any, api: Api = Api.V2) -> Callback:
    """A POST of a body: bytes as they are, anything else as JSON."""
    return request(api, body=body if isinstance(body, bytes) else json.dumps(body).encode())


def get(query: str) -> Callback:
    return request(Api.V1, "GET", query)


def event_of(callback: Callback) -> Event:
    """The one event of a callback."""
    [element] = parse(callback)
    assert isinstance(element, Event), element
    return element


def rejected_of(callback: Callback) -> Rejected:
    """The one element of a callback that did not become an event."""
    [element] = parse(callback)
    assert isinstance(element, Rejected), element
    return element


_numbers = itertools.count(1)


def v2_event(message_id: str = "m1", type: str = "message-delivered", **more: Any) -> dict[str, Any]:  # noqa: A002
    """One element of a v2 array; keywords go to the envelope, those in `message` to the message."""
    message = {
        "id": message_id,
        "time": "2026-01-01T00:00:00.000Z",
        "to": ["+15550001"],
        "from": "+15559999",
        "text": "",
        "applicationId": "93de2206-9669-4e07-948d-329f4b722ee2",
        "owner": "+15559999",
        "direction": "out",
        "segmentCount": 1,
        **more.pop("message", {}),
    }
    envelope = {"type": type, "time": "2026-01-01T00:00:05.000Z", "to": message["to"][0], "description": "ok"}
    return {**envelope, **more, "message": message}


def v2_accepted(id_: str = "m1", **more: Any) -> dict[str, Any]:
    """The body of a 202 of v2."""
    return {
        "id": id_,
        "owner": "+15559999",
        "applicationId": "a-1",
        "time": "2026-01-01T00:00:00Z",
        "segmentCount": 1,
        "direction": "out",
        "to": ["+15550001"],
        "from": "+15559999",
        "text": "hello",
        "tag": "order 4711",
        **more,
    }


def v1_event(message_id: str = "m-1", **more: Any) -> dict[str, Any]:
    return {
        "eventType": "sms",
        "direction": "out",
        "messageId": message_id,
        "from": "+15559999",
        "to": "+15550001",
        "text": "hello",
        "time": "2026-01-01T00:00:00Z",
        "state": "sent",
        **more,
    }


def callback(body: Any, *, received: float = 0, **more: Any) -> Callback:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    defaults = {"id": f"callback-{next(_numbers):06}", "api": Api.V2, "route": "primary", "method": "POST"}
    return Callback(**{**defaults, "received_at": at(received), "body": raw, **more})


TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def make_publication(
    number: int = 1, *, ordering_key: str | None = None, replayed: bool = False, **data: Any
) -> Publication:
    """A publication of a delivered event; keywords change its data."""
    message_id = data.pop("messageId", f"m{number}")
    event_data = {
        "messageId": message_id,
        "api": "v2",
        "direction": "out",
        "recipient": "+15550001",
        "from": "+15559999",
        "to": ["+15550001"],
        "status": "delivered",
        "tag": None,
        "applicationId": None,
        "channel": "SMS",
        "text": "two\nlines Ü \u2028",
        "sequence": number,
        **data,
    }
    event = {
        "specversion": "1.0",
        "id": f"e{number}",
        "source": "/bandwidth/v2",
        "type": "message.delivered",
        "subject": message_id,
        "time": "2026-01-01T00:00:00Z",
        "datacontenttype": "application/json",
        "dataschema": "urn:bandwidth-receiver:schemas/message-event/1",
        "data": event_data,
    }
    return Publication(
        id=f"e{number}",
        position=number,
        ordering_key=ordering_key or f"v2:{message_id}",
        type="message.delivered",
        received_at=datetime(2026, 1, 1, tzinfo=UTC),
        event=event,
        body=orjson.dumps(event),
        recipient=event_data["recipient"],
        replayed=replayed,
    )


def batch(count: int) -> list[Publication]:
    """`count` publications, each of another message."""
    return [make_publication(number) for number in range(1, count + 1)]
