"""A callback: one HTTP request from Bandwidth, raw, and what reading it gave."""

from datetime import datetime
from typing import final

import msgspec

from receiver.domain.events import Api, Event, Quarantine


class Callback(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One HTTP request from Bandwidth as it came.

    `api` and `route` (`primary`, `fallback`) are those of the URL; which generation an event is of is told by the
    event. `query` is the raw query string, `headers` are without secrets, `remote` is the peer's address.
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
    """An element of a callback that did not become an event: its place in the array, the reason, words for people."""

    index: int
    reason: Quarantine
    detail: str = ""
    message_id: str | None = None


Element = Event | Rejected
