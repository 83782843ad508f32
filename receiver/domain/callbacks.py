"""A callback: one HTTP request from a provider, raw, and the elements that parsing it gives."""

from datetime import datetime
from typing import final

import msgspec

from receiver.domain.events import Api, Event, Quarantine


class Callback(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One HTTP request from a provider, unchanged.

    `api` and `route` (`primary`, `fallback`) come from the URL; Bandwidth's parser recognises the API version of an
    event from the event itself. `query` is the raw query string, `headers` lacks the headers that hold secrets,
    `remote` is the peer's address.
    """

    id: str
    received_at: datetime
    api: Api
    route: str
    method: str
    remote: str | None = None
    query: str = ""
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    body: bytes = b""


@final
class Rejected(msgspec.Struct, frozen=True, gc=False):
    """An element of a callback that did not become an event.

    `index` is its place in the array, `detail` describes the reason for people, `message_id` is the message it names.
    """

    index: int
    reason: Quarantine
    detail: str = ""
    message_id: str | None = None


Element = Event | Rejected
