"""A callback: one HTTP request from Bandwidth, raw, and what reading it gave."""

from dataclasses import dataclass, field
from datetime import datetime

from receiver.domain.events import Api, Event, Quarantine


@dataclass(frozen=True, slots=True, kw_only=True)
class Callback:
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
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Unread:
    """An element of a callback that did not become an event: its place in the array, the reason, words for people."""

    index: int
    reason: Quarantine
    detail: str = ""


Element = Event | Unread
