"""What a sink is to be given next, read from the log and from its retries into its window."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from receiver.dispatch.publish import ordering_key, publication
from receiver.dispatch.sink_health import DispatchObserver
from receiver.domain.publication import (
    Decision,
    Done,
    LogEntry,
    PendingPublication,
    Result,
    Retry,
    Superseded,
    decide_replayed,
)
from receiver.domain.queries import ReplayView
from receiver.domain.window import Window
from receiver.sinks.registry import ConfiguredSink
from receiver.storage import event_log, retries
from receiver.storage.database import Database
from receiver.storage.retries import Progress, WaitingRetry


class Wakeup:
    """Calls everyone who listens when `set` is called, which intake does after each commit."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def set(self) -> None:
        for listener in self._listeners:
            listener()


WINDOW: Final = 256
# so many may be published beyond one that hangs; after a crash all of them come again
_MOST_DECIDED: Final = 16 * WINDOW
_MOST_RETRIES: Final = WINDOW // 2
_MOST_READ: Final = 1000


class LogReader:
    """Fills a window. `log_grew` and `retries_moved` say that it is worth looking."""

    def __init__(self, database: Database, configured: ConfiguredSink, window: Window) -> None:
        self._database = database
        self._sink = configured.name
        self._filter = configured.settings.filter
        self._latest_only = configured.settings.coalesce == "latest"
        self._window = window
        self.log_grew = True
        self.retries_moved = True

    async def read(self, now: datetime) -> None:
        """Reads on as far as there is room, and takes the retries whose time has come."""
        if self.has_more:
            # before it is read: what is appended meanwhile says so again
            self.log_grew = False
            goes_on = await self._read_log(WINDOW - len(self._window))
            self.log_grew = self.log_grew or goes_on
        if self.retries_moved:
            self.retries_moved = False
            await self._read_retries(now)

    @property
    def has_more(self) -> bool:
        """Whether reading again would give more at once."""
        return self.log_grew and has_room(self._window)

    async def _read_log(self, room: int) -> bool:
        """Returns whether the log goes on."""
        async with self._database.reading() as connection:
            entries = await event_log.read_after(connection, self._window.read_to, room)
            goes_on = len(entries) == room
            wanted = [entry for entry in entries if self._filter.passes(entry)]
            ordering_keys = {ordering_key(entry): entry.event.message_id for entry in wanted}
            blocked = (
                await retries.blocked_keys(self._database, connection, self._sink, ordering_keys)
                if ordering_keys
                else frozenset()
            )
            later = (
                await event_log.later_of_messages(
                    self._database, connection, ordering_keys.values(), entries[-1].position
                )
                if self._latest_only and goes_on
                else ()
            )
        old_news = _old_news(wanted, filter(self._filter.passes, later))
        passing = {entry.position for entry in wanted}
        for entry in entries:
            if entry.position in passing:
                self._queue(entry, is_blocked=ordering_key(entry) in blocked, is_old_news=entry.position in old_news)
            else:
                self._window.pass_over(entry.position)
        return goes_on

    def _queue(self, entry: LogEntry, *, is_blocked: bool, is_old_news: bool) -> None:
        candidate = PendingPublication(publication=publication(entry))
        if is_old_news:
            self._window.supersede(candidate)
        elif is_blocked:
            self._window.park(candidate)
        else:
            self._window.queue(candidate)

    async def _read_retries(self, now: datetime) -> None:
        async with self._database.reading() as connection:
            due = await retries.due(connection, self._sink, now=now, limit=_MOST_RETRIES)
            found = due
            if self._latest_only and due:
                ordering_keys = {retry.ordering_key for retry in due}
                found = await retries.waiting_in(
                    self._database, connection, self._sink, ordering_keys, limit=_MOST_READ
                )
            new = {retry.position: retry for retry in found if not self._window.holds_retry(retry.position)}
            entries = await event_log.read_at(connection, list(new)) if new else []
        candidates = {entry.position: _retry(entry, new[entry.position]) for entry in entries}
        self._queue_retries([candidates[one.position] for one in due if one.position in candidates])
        if self._latest_only:
            self._drop_old_news(candidates.values())

    def _queue_retries(self, due: Iterable[PendingPublication]) -> None:
        for candidate in due:
            self._window.queue_retry(candidate)

    def _drop_old_news(self, candidates: Collection[PendingPublication]) -> None:
        """Where only the newest counts, what waits gives way to what waits behind it."""
        newest = {one.delivery: one.position for one in candidates}
        for candidate in candidates:
            if candidate.position < newest[candidate.delivery]:
                self._window.drop(candidate, Superseded())


def has_room(window: Window) -> bool:
    """Whether it is worth reading on: not for a few events."""
    return len(window) <= WINDOW // 2 and window.decided < _MOST_DECIDED


def _old_news(wanted: Iterable[LogEntry], later: Iterable[LogEntry]) -> frozenset[int]:
    """The positions of entries of whose delivery something newer is among those that come later."""
    newer = {_delivery(entry) for entry in later}
    return frozenset(entry.position for entry in wanted if _delivery(entry) in newer)


def _retry(entry: LogEntry, retry: WaitingRetry) -> PendingPublication:
    return PendingPublication(publication=publication(entry), attempts=retry.attempts, since=retry.first_at)


def _delivery(entry: LogEntry) -> tuple[str, str | None]:
    return ordering_key(entry), entry.event.recipient


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What every dispatcher works with. `chance` gives a random fraction, `steady` is a clock that never jumps.

    `holder` names the worker in its leases; None: each dispatcher has a name of its own.
    """

    database: Database
    observer: DispatchObserver
    clock: Callable[[], datetime]
    monotonic: Callable[[], float]
    random_fraction: Callable[[], float]
    lease_seconds: float
    poll_seconds: float
    holder: str | None = None


# a replay keeps no retries: what fails is tried so often, while the replay as a whole waits, and is then a dead letter
_TRIES: Final = 3


class Replaying:
    """Reads from a replay's position to its end, and keeps count. What the sink has yet to be given is left out."""

    def __init__(self, database: Database, configured: ConfiguredSink, asked: ReplayView, *, slots: int) -> None:
        self.id = asked.id
        self.window = Window(asked.position, slots=slots, keeps_order=configured.sink.keeps_order)
        self._database = database
        self._settings = configured.settings
        self._filter = configured.settings.filter
        self._end = asked.to_position
        self._tries: Counter[int] = Counter()
        self.is_left = False
        self._rests_until = float("-inf")

    async def read(self) -> None:
        """Reads on while there is room."""
        if not self.has_more:
            return
        room = WINDOW - len(self.window)
        async with self._database.reading() as connection:
            entries = await event_log.read_after(connection, self.window.read_to, room)
            read_to = min(entries[-1].position, self._end) if len(entries) == room else self._end
            awaited = await retries.awaited(connection, self._settings.name, self.window.read_to, read_to)
        for entry in entries:
            if entry.position <= self._end and entry.position not in awaited and self._filter.passes(entry):
                self.window.queue(PendingPublication(publication=replace(publication(entry), replayed=True)))
        self.window.pass_over(read_to)

    def rests(self, now: float) -> bool:
        """Whether it waits because the sink did not take an event; times are seconds of a steady clock."""
        return now < self._rests_until

    @property
    def has_more(self) -> bool:
        """Whether reading again would give more at once."""
        return self.window.read_to < self._end and has_room(self.window)

    @property
    def has_ended(self) -> bool:
        """Whether all of it is done, and written."""
        return self.window.cursor >= self._end

    def decide(self, candidate: PendingPublication, result: Result, now: float, fraction: float) -> Decision | None:
        """What becomes of an event after an attempt; None: it is tried again, when the replay has rested."""
        if isinstance(result, Retry):
            self._tries[candidate.position] += 1
            self._rest(result, self._tries[candidate.position], now, fraction)
        decision = decide_replayed(result, tries_left=_TRIES - self._tries[candidate.position])
        if decision is not None:
            self._tries.pop(candidate.position, None)
        return decision

    def progress(self) -> Progress:
        """What can be written now."""
        settlement = self.window.settlement()
        finished = settlement.cursor >= self._end
        published = sum(isinstance(verdict.decision, Done) for verdict in settlement.firsts)
        return Progress(replay_id=self.id, settlement=settlement, published=published, finished=finished)

    def settled(self, progress: Progress) -> None:
        """Forgets what was written."""
        self.window.settled(progress.settlement)

    def _rest(self, result: Retry, tries: int, now: float, fraction: float) -> None:
        pause: timedelta = self._settings.policy.pause(
            tries, fraction, asked=result.after, overloaded=result.overloaded
        )
        self._rests_until = max(self._rests_until, now + pause.total_seconds())
