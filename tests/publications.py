"""Makes publications for sinks, without an event log."""

from datetime import UTC, datetime
from typing import Any

import orjson

from receiver.domain.publication import Publication


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
