"""Runs dispatchers on an event log of their own, with a clock that runs fast."""

import asyncio
import shutil
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from receiver.dispatch.dispatcher import Dispatchers
from receiver.dispatch.publish import publication
from receiver.dispatch.reader import Wakeup
from receiver.domain.events import Event
from receiver.domain.publication import Publication
from receiver.models.sinks import DeadLetterRead
from receiver.sinks.registry import ConfiguredSink
from receiver.storage import dead_letters, event_log, schema, sinks
from receiver.storage.database import Database
from receiver.storage.sinks import Backlog
from receiver.testing.events import appended
from receiver.testing.waiting import end, quell, within

# A backoff of 30 seconds passes in 0.3. The timeout of a publish is not shortened.
_SPEED: Final = 100
_ALL: Final = 1_000_000


def migrated(path: Path) -> Path:
    """Makes a SQLite database with the current schema at the path, and returns the path."""

    async def migrate() -> None:
        database = Database(f"sqlite:///{path}")
        await schema.migrate(database)
        await database.close()

    asyncio.run(migrate())
    return path


class Observed:
    """Records the measurements of the dispatchers: outcomes of attempts and the state of the breaker, by sink."""

    def __init__(self) -> None:
        self.outcomes: dict[str, list[str]] = defaultdict(list)
        self.breakers: dict[str, str] = {}

    def attempt_ended(self, sink: str, outcome: str, seconds: float) -> None:
        self.outcomes[sink].append(outcome)

    def breaker_moved(self, sink: str, state: str) -> None:
        self.breakers[sink] = state

    def event_published(self, sink: str, seconds: float) -> None: ...
    def events_superseded(self, sink: str, count: int) -> None: ...
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
    database = Database(f"sqlite:///{path}")
    try:
        yield DispatchHarness(database)
    finally:
        await database.close()
