"""Callbacks for tests: one HTTP request, made from its body or query string."""

import json
from datetime import UTC, datetime
from typing import Any

from receiver.domain.events import Api, Callback, Event, Rejected
from receiver.providers import parse

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
