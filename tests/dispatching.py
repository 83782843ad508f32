"""An event log and dispatchers for tests: appends entries, runs, reads the tables, audits what arrived."""

import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select

from receiver.dispatch.dispatcher import Dispatchers
from receiver.dispatch.publish import publication
from receiver.dispatch.reader import Wakeup
from receiver.domain.delivery import EMPTY_DELIVERY, Change, merge
from receiver.domain.events import Event, Status
from receiver.domain.publication import Appended, LogEntry, Publication
from receiver.models.queries import DeadLetterChoice
from receiver.models.sinks import RETRIES, SINKS, DeadLetterRead
from receiver.providers import states
from receiver.sinks.base import Sink, SinkSettings
from receiver.sinks.registry import ConfiguredSink, configure
from receiver.storage import dead_letters, event_log
from receiver.storage.database import Database
from tests.factories import make_event

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

    def attempt_ended(self, sink: str, outcome: str) -> None: ...
    def batch_ended(self, sink: str, seconds: float) -> None: ...
    def event_published(self, sink: str, seconds: float) -> None: ...
    def events_superseded(self, sink: str, events: int) -> None: ...
    def unexpected_duplicate(self, sink: str) -> None: ...
    def backlog_measured(
        self, sink: str, events: int, oldest_seconds: float, retries: Mapping[str, int], dead_letters: Mapping[str, int]
    ) -> None: ...
    def breaker_moved(self, sink: str, state: str) -> None: ...
    def lease_lost(self, sink: str) -> None: ...
    def sink_left(self, sink: str) -> None: ...


@dataclass
class Observed:
    """Records what the dispatchers report to the metrics."""

    outcomes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    breaker: list[str] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    backlogs: list[tuple[int, float, dict[str, int], dict[str, int]]] = field(default_factory=list)
    superseded: int = 0
    duplicates: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def attempt_ended(self, sink: str, outcome: str) -> None:
        self.outcomes[sink].append(outcome)

    def batch_ended(self, sink: str, seconds: float) -> None:
        self.batches.append(seconds)

    def event_published(self, sink: str, seconds: float) -> None:
        self.waited.append(seconds)

    def events_superseded(self, sink: str, events: int) -> None:
        self.superseded += events

    def unexpected_duplicate(self, sink: str) -> None:
        self.duplicates.append(sink)

    def backlog_measured(
        self,
        sink: str,
        events: int,
        oldest_seconds: float,
        retries: Mapping[str, int],
        dead_letters: Mapping[str, int],
    ) -> None:
        self.backlogs.append((events, oldest_seconds, dict(retries), dict(dead_letters)))

    def breaker_moved(self, sink: str, state: str) -> None:
        self.breaker.append(state)

    def lease_lost(self, sink: str) -> None:
        self.lost.append(sink)

    def sink_left(self, sink: str) -> None:
        self.left.append(sink)


class Clock:
    """The clocks of a machine on which `ahead` has passed besides, and whose wall clock was set by `step`."""

    def __init__(self, ahead: timedelta) -> None:
        self.ahead = ahead
        self.step = timedelta(0)

    def __call__(self) -> datetime:
        return now() + self.ahead + self.step

    def schedule_seconds(self) -> float:
        return time.monotonic() + self.ahead.total_seconds()

    async def reference(self, _: Any) -> datetime:
        return self()


@dataclass
class Running:
    dispatchers: Dispatchers
    wakeup: Wakeup
    observed: Observed
    clock: Clock


@asynccontextmanager
async def running(
    database: Database, *configured: ConfiguredSink, ahead: timedelta = timedelta(0), **options: Any
) -> AsyncIterator[Running]:
    wakeup, observed, clock = Wakeup(), Observed(), Clock(ahead)
    clocks = {"clock": clock, "schedule_seconds": clock.schedule_seconds, "reference": clock.reference}
    chosen = {"random_fraction": lambda: 0.0, "poll_seconds": 0.05, **clocks, **options}
    dispatchers = Dispatchers(database, configured, wakeup=wakeup, observer=observed, **chosen)
    one = Running(dispatchers, wakeup, observed, clock)
    await one.dispatchers.start()
    try:
        yield one
    finally:
        await one.dispatchers.stop()


def memory(configured: ConfiguredSink) -> Any:
    return configured.sink


def private(sink: Sink, **fields: Any) -> ConfiguredSink:
    """A sink object as if the settings named it."""
    return ConfiguredSink(SinkSettings(name="crm", type="test", start="beginning", **fields), sink)


def ids(published: Iterable[Publication]) -> list[str]:
    return [one.id for one in published]


def in_order(published: Iterable[Publication]) -> bool:
    """Whether the first copies of the events of each ordering key arrived in the order of the log."""
    ordering_keys: dict[str, list[int]] = defaultdict(list)
    for one in published:
        if one.position not in ordering_keys[one.ordering_key]:
            ordering_keys[one.ordering_key].append(one.position)
    return all(positions == sorted(positions) for positions in ordering_keys.values())


async def rows(database: Database, table: Any = RETRIES) -> list[Any]:
    async with database.reading() as connection:
        return list((await connection.execute(select(table).order_by(*table.primary_key.columns))).all())


async def sink_row(database: Database, name: str = "crm") -> Any:
    async with database.reading() as connection:
        return (await connection.execute(select(SINKS).where(SINKS.c.name == name))).one()


async def letters(database: Database) -> list[DeadLetterRead]:
    return (await dead_letters.find(database)).items


async def requeue(database: Database, sink: str = "crm") -> int:
    return sum([number async for number in dead_letters.requeue(database, DeadLetterChoice(sink=sink), now=now())])


def messages(count: int) -> list[Any]:
    """The events of several messages, interleaved."""
    lives = [life(f"m{number}") for number in range(count)]
    return [event for together in zip(*lives, strict=True) for event in together]


class Outcomes(Nobody):
    """An observer that counts how the attempts at each sink ended."""

    def __init__(self) -> None:
        self.of: dict[str, Counter[str]] = defaultdict(Counter)

    def attempt_ended(self, sink: str, outcome: str) -> None:
        self.of[sink][str(outcome)] += 1


@asynccontextmanager
async def dispatching(database: Database, *configured: ConfiguredSink, **options: Any) -> AsyncIterator[Outcomes]:
    """Runs dispatchers for these sinks, with frequent polls and no jitter."""
    outcomes = Outcomes()
    chosen = {"random_fraction": lambda: 0.0, "poll_seconds": 0.05, **options}
    dispatchers = Dispatchers(database, configured, clock=now, wakeup=Wakeup(), observer=outcomes, **chosen)
    await dispatchers.start()
    try:
        yield outcomes
    finally:
        await dispatchers.stop()


async def whole_log(database: Database) -> list[LogEntry]:
    """The entries of the log, but those of alerts."""
    async with database.reading() as connection:
        entries = await event_log.read_after(connection, 0, 1_000_000)
    return [entry for entry in entries if isinstance(entry, LogEntry)]


def audit(log: Sequence[LogEntry], arrived: Iterable[str]) -> int:
    """Checks that everything of a log arrived, and that the first copies of each message's events came in its order.

    `arrived` are the ids of events, those of one message in the order of their arrival. Returns the surplus copies.
    """
    copies = list(arrived)
    assert set(copies) == {entry.event.id for entry in log}
    position = {entry.event.id: entry.position for entry in log}
    message = {entry.event.id: entry.event.message_id for entry in log}
    firsts: dict[str, list[int]] = defaultdict(list)
    for one in dict.fromkeys(copies):
        firsts[message[one]].append(position[one])
    assert all(positions == sorted(positions) for positions in firsts.values())
    return len(copies) - len(log)
