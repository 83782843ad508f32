"""Bodies that Bandwidth posts, for tests: one call with sensible defaults."""

import itertools
import json
from typing import Any

from receiver.domain.events import Api, Callback
from tests.events import at

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
