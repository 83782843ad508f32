"""Reads the event log, the due retries and replays into the window of a sink."""

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from receiver.dispatch.publish import publication
from receiver.dispatch.sink_health import DispatchObserver
from receiver.domain.arrival import ImportDetector
from receiver.domain.publication import (
    Decision,
    Done,
    Entry,
    PendingPublication,
    Publication,
    Result,
    Retry,
    Superseded,
    decide_replayed,
)
from receiver.domain.window import Window
from receiver.models.sinks import ReplayRead
from receiver.sinks.registry import ConfiguredSink
from receiver.storage import event_log, retries, sinks
from receiver.storage.database import Database
from receiver.storage.retries import Progress, WaitingRetry
from receiver.tracing.recorder import Tracing


class Wakeup:
    """Calls every listener when `set` is called. The processor calls it after each commit."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def set(self) -> None:
        for listener in self._listeners:
            listener()


WINDOW: Final = 256
# How many events may be published beyond one that hangs. After a crash all of them are published again.
_MAX_DECIDED: Final = 16 * WINDOW
_MAX_RETRIES: Final = WINDOW // 2
_MAX_READ: Final = 1000


class LogReader:
    """Fills a window. `log_grew` and `retries_moved` report that reading again is worth a query."""

    def __init__(self, database: Database, configured: ConfiguredSink, window: Window) -> None:
        self._database = database
        self._sink = configured.name
        self._configured = configured
        self._filter = configured.settings.filter
        self._latest_only = configured.settings.coalesce == "latest"
        self._window = window
        self._imports = ImportDetector()
        self.log_grew = True
        self.retries_moved = True

    async def read(self, now: datetime) -> bool:
        """Reads the next events of the log while the window has room, and the retries that are due at `now`.

        Returns whether the sink was paused when new events were read: they may have come after the pause.
        """
        is_paused = False
        if self.has_more:
            # Cleared before the read: an event that is appended meanwhile sets it again.
            self.log_grew = False
            has_more, is_paused = await self._read_log(WINDOW - len(self._window), now)
            self.log_grew = self.log_grew or has_more
        if self.retries_moved:
            self.retries_moved = False
            await self._read_retries(now)
        return is_paused

    @property
    def has_more(self) -> bool:
        """Whether reading again would return more events now."""
        return self.log_grew and has_room(self._window)

    async def _read_log(self, room: int, now: datetime) -> tuple[bool, bool]:
        """Reads at most `room` entries and returns whether the log has more, and whether the sink is paused."""
        async with self._database.reading() as connection:
            entries = await event_log.read_after(connection, self._window.read_to, room)
            has_more = len(entries) == room
            wanted = [entry for entry in entries if self._filter.passes(entry)]
            # After the entries, so that what came after a pause is never read without it.
            is_paused = bool(wanted) and (await sinks.control(connection, self._sink)).paused
            ordering_keys = {entry.ordering_key: entry.subject for entry in wanted}
            blocked = (
                await retries.blocked_keys(self._database, connection, self._sink, ordering_keys)
                if ordering_keys
                else frozenset()
            )
            later = (
                await event_log.later_of_messages(
                    self._database, connection, ordering_keys.values(), entries[-1].position
                )
                if self._latest_only and has_more
                else ()
            )
        superseded = _superseded(wanted, filter(self._filter.passes, later))
        passing = {entry.position for entry in wanted}
        for entry in entries:
            is_import = self._imports.is_import(entry.event.received_at, now)
            if entry.position in passing:
                pending = PendingPublication(publication=_publication(entry, self._configured), is_import=is_import)
                self._queue(
                    pending, is_blocked=entry.ordering_key in blocked, is_superseded=entry.position in superseded
                )
            else:
                self._window.pass_over(entry.position)
        return has_more, is_paused

    def _queue(self, pending: PendingPublication, *, is_blocked: bool, is_superseded: bool) -> None:
        if is_superseded:
            self._window.supersede(pending)
        elif is_blocked:
            self._window.park(pending)
        else:
            self._window.queue(pending)

    async def _read_retries(self, now: datetime) -> None:
        async with self._database.reading() as connection:
            due = await retries.due(connection, self._sink, now=now, limit=_MAX_RETRIES)
            found = due
            if self._latest_only and due:
                ordering_keys = {retry.ordering_key for retry in due}
                found = await retries.waiting_in(self._database, connection, self._sink, ordering_keys, limit=_MAX_READ)
            new = {retry.position: retry for retry in found if not self._window.holds_retry(retry.position)}
            entries = await event_log.read_at(connection, list(new)) if new else []
        waiting = {entry.position: self._retry(entry, new[entry.position]) for entry in entries}
        self._queue_retries([waiting[retry.position] for retry in due if retry.position in waiting])
        if self._latest_only:
            self._drop_superseded(waiting.values())

    def _retry(self, entry: Entry, retry: WaitingRetry) -> PendingPublication:
        made = _publication(entry, self._configured)
        return PendingPublication(publication=made, attempts=retry.attempts, since=retry.first_at)

    def _queue_retries(self, due: Iterable[PendingPublication]) -> None:
        for pending in due:
            self._window.queue_retry(pending)

    def _drop_superseded(self, waiting: Collection[PendingPublication]) -> None:
        """With `coalesce = "latest"`, a retry is superseded by a later retry of the same delivery."""
        newest = {pending.delivery: pending.position for pending in waiting}
        for pending in waiting:
            if pending.position < newest[pending.delivery]:
                self._window.drop(pending, Superseded())


def _publication(entry: Entry, configured: ConfiguredSink) -> Publication:
    return publication(entry, configured.source, configured.public_url)


def has_room(window: Window) -> bool:
    """Whether the window has room for a read. Reading only a few events is not worth the query."""
    return len(window) <= WINDOW // 2 and window.decided < _MAX_DECIDED


def _superseded(wanted: Iterable[Entry], later: Iterable[Entry]) -> frozenset[int]:
    """The positions of the entries whose delivery has a newer entry in `later`."""
    newer = {_delivery(entry) for entry in later}
    return frozenset(entry.position for entry in wanted if _delivery(entry) in newer)


def _delivery(entry: Entry) -> tuple[str, str | None]:
    return entry.ordering_key, entry.recipient


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What the dispatchers of one process share.

    `clock` returns aware UTC time. `monotonic` returns the seconds of leases, timeouts and polls, `schedule_seconds`
    those at whose pace the schedule of retries passes; neither ever jumps, and both are `time.monotonic` outside of
    tests. `random_fraction` returns a number from 0 to 1. `reference` reads the clock that all processes share.
    `holder` names the worker in its leases; None: each dispatcher has a name of its own. `tracing` is None unless
    traces are exported.
    """

    database: Database
    observer: DispatchObserver
    clock: Callable[[], datetime]
    monotonic: Callable[[], float]
    schedule_seconds: Callable[[], float]
    reference: Callable[[Any], Awaitable[datetime]]
    random_fraction: Callable[[], float]
    lease_seconds: float
    poll_seconds: float
    holder: str | None = None
    tracing: Tracing | None = None


# A replay stores no retries. A failed event is tried this often while the whole replay waits; then it is a dead letter.
_MAX_ATTEMPTS: Final = 3


class ReplayReader:
    """Reads the events of a replay and counts them. Events that the sink has yet to get as retries are left out."""

    def __init__(self, database: Database, configured: ConfiguredSink, replay: ReplayRead, *, slots: int) -> None:
        self.id = replay.id
        self.window = Window(replay.position, slots=slots, keeps_order=configured.sink.keeps_order)
        self._database = database
        self._settings = configured.settings
        self._configured = configured
        self._filter = configured.settings.filter
        self._end = replay.to_position
        self._message_ids = replay.message_ids or ()
        self._attempts: Counter[int] = Counter()
        self.is_stopped = False
        self._backoff_until = float("-inf")

    async def read(self) -> None:
        """Reads the next events of the replay while the window has room."""
        if not self.has_more:
            return
        room = WINDOW - len(self.window)
        async with self._database.reading() as connection:
            entries = await self._read_log(connection, room)
            read_to = min(entries[-1].position, self._end) if len(entries) == room else self._end
            awaited = await retries.awaited(connection, self._settings.name, self.window.read_to, read_to)
        for entry in entries:
            if entry.position <= self._end and entry.position not in awaited and self._filter.passes(entry):
                made = replace(_publication(entry, self._configured), replayed=True)
                self.window.queue(PendingPublication(publication=made))
        self.window.pass_over(read_to)

    async def _read_log(self, connection: Any, room: int) -> list[Entry]:
        after = self.window.read_to
        if self._message_ids:
            return await event_log.read_messages(connection, self._message_ids, after, self._end, room)
        return await event_log.read_after(connection, after, room)

    def is_backing_off(self, now: float) -> bool:
        """Whether the replay waits because an event failed. `now` is in monotonic seconds."""
        return now < self._backoff_until

    @property
    def has_more(self) -> bool:
        """Whether reading again would return more events now."""
        return self.window.read_to < self._end and has_room(self.window)

    @property
    def has_ended(self) -> bool:
        """Whether all events of the replay are done and settled."""
        return self.window.cursor >= self._end

    def decide(self, pending: PendingPublication, result: Result, now: float, fraction: float) -> Decision | None:
        """Decides what follows from one attempt; None: the event is tried again after the backoff of the replay.

        `now` is in monotonic seconds, `fraction` the random part of the backoff.
        """
        if isinstance(result, Retry):
            self._attempts[pending.position] += 1
            self._backoff(result, self._attempts[pending.position], now, fraction)
        decision = decide_replayed(result, tries_left=_MAX_ATTEMPTS - self._attempts[pending.position])
        if decision is not None:
            self._attempts.pop(pending.position, None)
        return decision

    def progress(self) -> Progress:
        """The progress that can be stored now."""
        settlement = self.window.settlement()
        finished = settlement.cursor >= self._end
        published = sum(isinstance(decided.decision, Done) for decided in settlement.firsts)
        return Progress(replay_id=self.id, settlement=settlement, published=published, finished=finished)

    def settled(self, progress: Progress) -> None:
        """Removes from the window what was stored."""
        self.window.settled(progress.settlement)

    def _backoff(self, result: Retry, attempts: int, now: float, fraction: float) -> None:
        pause: timedelta = self._settings.policy.pause(
            attempts, fraction, retry_after=result.after, overloaded=result.overloaded
        )
        self._backoff_until = max(self._backoff_until, now + pause.total_seconds())


@dataclass(frozen=True, slots=True)
class Batch:
    """The events of one call of `publish`: new events, one retry, or a part of a replay."""

    pending: Sequence[PendingPublication]
    replay: ReplayReader | None = None
    begun: float = 0.0


@dataclass(frozen=True, slots=True)
class BatchResult:
    """A batch and the results that the sink returned for it."""

    batch: Batch
    results: Sequence[Result]
    started_at: datetime
    seconds: float


def ordering_keys(batches: Sequence[Batch]) -> frozenset[str]:
    return frozenset(pending.ordering_key for batch in batches for pending in batch.pending)
