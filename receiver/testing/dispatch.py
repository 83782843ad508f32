"""Makes events as complete as real ones, and runs dispatchers on an event log of their own, with a fast clock."""

import asyncio
import shutil
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

import pytest

from receiver.dispatch.dispatcher import Dispatchers
from receiver.dispatch.publish import publication
from receiver.dispatch.reader import Wakeup
from receiver.domain.delivery import EMPTY_DELIVERY, Change, merge
from receiver.domain.events import Api, Direction, Event, MessageFields, Status, event_id
from receiver.domain.publication import Appended, LogEntry, Publication
from receiver.models.sinks import DeadLetterRead
from receiver.providers import states
from receiver.sinks.registry import ConfiguredSink
from receiver.storage import dead_letters, event_log, schema, sinks
from receiver.storage.database import Database
from receiver.storage.sinks import Backlog
from receiver.testing.waiting import end, quell, within

TEXT: Final = "Your code is 4711. Tell nobody."

_STATUSES: Final = (Status.QUEUED, Status.SENDING, Status.SENT, Status.DELIVERED)
_RECIPIENT: Final = "+15550100"
_positions: Final = count(1)


def publications(count: int = 1, *, messages: int | None = None, text: str = TEXT) -> list[Publication]:
    """Makes new events as a sink gets them, of `messages` messages in turn; None: each event has its own message."""
    return [_published(event, next(_positions), text) for event in events(count, messages=messages)]


def publication_of_size(size: int) -> Publication:
    """Makes an event whose body has `size` bytes."""
    [event], position = events(1), next(_positions)
    room = size - len(_published(event, position, "").body)
    return _published(event, position, "x" * room)


def events(count: int = 1, *, messages: int | None = None, description: str | None = None) -> list[Event]:
    """Makes new events for the log, of `messages` messages in turn; None: each event has its own message."""
    ids = [uuid4().hex for _ in range(messages or count)]
    return [_event(ids[index % len(ids)], index // len(ids), description) for index in range(count)]


def appended(events: Iterable[Event]) -> list[Appended]:
    """The rows of the events for the log, each as the first event of its delivery."""
    return [Appended.of(event, Change(None, merge(EMPTY_DELIVERY, event), True), states) for event in events]


def _event(message_id: str, number: int, description: str | None) -> Event:
    status = _STATUSES[number % len(_STATUSES)]
    received_at = datetime.now(UTC)
    occurred_at = received_at + timedelta(microseconds=number)
    return Event(
        id=event_id(
            api=Api.V2,
            message_id=message_id,
            recipient=_RECIPIENT,
            type=f"message-{status}",
            time=occurred_at.isoformat(),
            code=None,
        ),
        api=Api.V2,
        message_id=message_id,
        direction=Direction.OUT,
        type=f"message-{status}",
        status=status,
        recipient=_RECIPIENT,
        occurred_at=occurred_at,
        description=description,
        fields=MessageFields(
            sender="+15550199", recipients=(_RECIPIENT,), application_id="receiver.testing", tag="test"
        ),
        received_at=received_at,
        route="primary",
        callback_id=uuid4().hex,
    )


def _published(event: Event, position: int, text: str) -> Publication:
    [row] = appended([event])
    entry = LogEntry(
        position=position,
        event=event,
        previous_status=row.previous_status,
        changed=row.changed,
        delivery=row.delivery,
        message={"text": text},
    )
    return publication(entry)


# A backoff of 30 seconds passes in 0.3. The timeout of a publish is not shortened.
_SPEED: Final = 100
_ALL: Final = 1_000_000


def migrated(path: Path) -> Path:
    """Makes a SQLite database with the current schema at the path, and returns the path."""

    async def migrate() -> None:
        database = Database(f"sqlite:///{quote(str(path))}")
        await schema.migrate(database)
        await database.close()

    asyncio.run(migrate())
    return path


class Observed:
    """Records the measurements of the dispatchers: outcomes of attempts and the state of the breaker, by sink."""

    def __init__(self) -> None:
        self.outcomes: dict[str, list[str]] = defaultdict(list)
        self.breakers: dict[str, str] = {}

    def attempt_ended(self, sink: str, outcome: str) -> None:
        self.outcomes[sink].append(outcome)

    def breaker_moved(self, sink: str, state: str) -> None:
        self.breakers[sink] = state

    def batch_ended(self, sink: str, seconds: float) -> None: ...
    def event_published(self, sink: str, seconds: float) -> None: ...
    def events_superseded(self, sink: str, count: int) -> None: ...
    def unexpected_duplicate(self, sink: str) -> None: ...
    def backlog_measured(
        self, sink: str, events: int, oldest_seconds: float, retries: Mapping[str, int], dead_letters: Mapping[str, int]
    ) -> None: ...
    def lease_lost(self, sink: str) -> None: ...
    def sink_left(self, sink: str) -> None: ...


class Dispatching:
    """Running dispatchers, to be stopped or killed."""

    def __init__(self, dispatchers: Dispatchers, observed: Observed, others: set[asyncio.Task[Any]]) -> None:
        self.observed = observed
        self._dispatchers = dispatchers
        self._others = others
        self._tasks = asyncio.all_tasks() - others

    async def stop(self, *, seconds: float) -> None:
        """Stops as `receiver serve` does on SIGTERM."""
        tasks, self._tasks = self._tasks, set()
        if not tasks:
            return
        try:
            await within(self._dispatchers.stop(), seconds=seconds, what="stopping")
        except pytest.fail.Exception:
            # First the tasks of the sink that the dispatchers wait for in vain.
            await quell(asyncio.all_tasks() - self._others - tasks)
            await quell(tasks)
            raise

    async def kill(self) -> None:
        """Cancels everything at once and settles nothing, as a crash does."""
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            await end(task, "publishing")


class DispatchHarness:
    """An event log, and dispatchers that read it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wakeup = Wakeup()
        self._started = (datetime.now(UTC), time.monotonic())

    async def append(self, events: Sequence[Event]) -> list[Publication]:
        """Appends events to the log and returns their publications, as a sink gets them."""
        async with self._database.reading() as connection:
            _, last = await event_log.bounds(connection)
        async with self._database.appending() as transaction:
            await transaction.run([event_log.append(appended(events), transaction.spelling)])
        async with self._database.reading() as connection:
            entries = await event_log.read_after(connection, last, _ALL)
        self._wakeup.set()
        return [publication(entry) for entry in entries]

    @asynccontextmanager
    async def dispatching(self, *configured: ConfiguredSink, seconds_to_stop: float) -> AsyncIterator[Dispatching]:
        """Running dispatchers for these sinks. Each call stands for another process."""
        observed, others = Observed(), asyncio.all_tasks()
        dispatchers = Dispatchers(
            self._database,
            configured,
            clock=self._now,
            wakeup=self._wakeup,
            observer=observed,
            schedule_seconds=lambda: _SPEED * time.monotonic(),
            random_fraction=lambda: 0.0,
            poll_seconds=0.05,
        )
        await dispatchers.start()
        run = Dispatching(dispatchers, observed, others)
        try:
            yield run
        finally:
            await run.stop(seconds=seconds_to_stop)

    async def backlog(self, sink: str) -> Backlog:
        async with self._database.reading() as connection:
            return await sinks.backlog(connection, sink)

    async def dead_letters(self, sink: str) -> list[DeadLetterRead]:
        return [letter for letter in (await dead_letters.find(self._database)).items if letter.sink == sink]

    def _now(self) -> datetime:
        started_at, started = self._started
        return started_at + timedelta(seconds=_SPEED * (time.monotonic() - started))


@asynccontextmanager
async def dispatch_harness(empty: Path, path: Path) -> AsyncIterator[DispatchHarness]:
    """A DispatchHarness whose database at `path` is a copy of the migrated, empty database at `empty`."""
    shutil.copy(empty, path)
    database = Database(f"sqlite:///{quote(str(path))}")
    try:
        yield DispatchHarness(database)
    finally:
        await database.close()
