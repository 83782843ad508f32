"""An event log for tests: appends entries, builds sinks, and reads what arrived."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from receiver.dispatch.publish import publication
from receiver.domain.delivery import EMPTY_DELIVERY, Change, merge
from receiver.domain.events import Event, Status
from receiver.domain.publication import Appended, LogEntry, Publication
from receiver.providers import states
from receiver.sinks.registry import ConfiguredSink, configure
from receiver.storage import event_log
from receiver.storage.database import Database
from tests.events import make_event

STATUSES = (Status.QUEUED, Status.SENDING, Status.SENT, Status.DELIVERED)


def now() -> datetime:
    return datetime.now(UTC)


def life(message_id: str, statuses: Iterable[Status] = STATUSES, **changes: Any) -> list[Event]:
    """The events of one message, one for each status."""
    return [make_event(status, message_id=message_id, time=second, **changes) for second, status in enumerate(statuses)]


def appended(event: Event) -> Appended:
    return Appended.of(event, Change(None, merge(EMPTY_DELIVERY, event), True), states)


async def append(database: Database, events: Iterable[Event]) -> list[LogEntry]:
    """Appends events to the log, in this order, and returns their stored entries."""
    async with database.reading() as connection:
        _, end = await event_log.bounds(connection)
    async with database.appending() as transaction:
        await transaction.run([event_log.append([appended(event) for event in events], transaction.spelling)])
    async with database.reading() as connection:
        return await event_log.read_after(connection, end, 1_000_000)


def publications(entries: Iterable[LogEntry]) -> list[Publication]:
    return [publication(entry) for entry in entries]


def memory_sink(name: str = "crm", **fields: Any) -> ConfiguredSink:
    [sink] = configure([{"name": name, "type": "memory", "start": "beginning", **fields}])
    return sink


class Nobody:
    """An observer for tests that measure nothing."""

    def attempt_ended(self, sink: str, outcome: str, seconds: float) -> None: ...
    def event_published(self, sink: str, seconds: float) -> None: ...
    def events_superseded(self, sink: str, events: int) -> None: ...
    def backlog_measured(
        self, sink: str, events: int, oldest_seconds: float, retries: Mapping[str, int], dead_letters: Mapping[str, int]
    ) -> None: ...
    def breaker_moved(self, sink: str, state: str) -> None: ...
    def lease_lost(self, sink: str) -> None: ...
    def sink_left(self, sink: str) -> None: ...
