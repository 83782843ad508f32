"""The work for one sink, from taking its lease to giving it up: read on, publish, settle."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog

from receiver.domain.breaker import BreakerState
from receiver.domain.publication import (
    Again,
    Candidate,
    Decision,
    Outcome,
    Published,
    Refused,
    Result,
    Retry,
    SinkDown,
    decide,
)
from receiver.domain.window import Attempt, Window
from receiver.errors import StorageUnavailable
from receiver.sinks.registry import ConfiguredSink
from receiver.storage import sinks
from receiver.storage.database import Database
from receiver.storage.sinks import Lease, LeaseLost
from receiver.workers.condition import Condition
from receiver.workers.feed import WINDOW, Feed
from receiver.workers.observer import DispatchObserver
from receiver.workers.publishing import publish

_MEASURE_SECONDS: Final = 10.0
# settling later costs more repetitions after a crash, settling at once a transaction for each event
_SETTLE_SECONDS: Final = 0.1

log = structlog.get_logger("receiver.dispatcher")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What every dispatcher works with. `chance` gives a random fraction, `steady` is a clock that never jumps."""

    database: Database
    observer: DispatchObserver
    clock: Callable[[], datetime]
    steady: Callable[[], float]
    chance: Callable[[], float]
    lease_seconds: float
    poll_seconds: float


@dataclass(frozen=True, slots=True)
class _Tried:
    """A batch and what the sink said to it."""

    batch: Sequence[Candidate]
    results: Sequence[Result]
    started_at: datetime
    seconds: float


class Shift:
    """One holder's work for one sink. A single task moves everything; only the publishing itself runs beside it."""

    def __init__(self, configured: ConfiguredSink, resources: Resources, lease: Lease, deadline: float) -> None:
        self._name, self._settings, self._sink = configured.name, configured.settings, configured.sink
        self._resources, self._steady = resources, resources.steady
        self._lease, self._deadline, self._revision = lease, deadline, lease.revision
        self._slots = 1 if self._sink.keeps_order else self._sink.concurrency
        self._window = Window(lease.cursor, slots=self._slots, keeps_order=self._sink.keeps_order)
        self._feed = Feed(resources.database, configured, self._window)
        self._condition = Condition(
            self._name, lease.health, observer=resources.observer, clock=resources.clock, steady=resources.steady
        )
        self._settled_health = lease.health
        self._tasks: set[asyncio.Task[_Tried]] = set()
        self._signal = asyncio.Event()
        self._polled_at = self._settled_at = self._measured_at = float("-inf")

    def wake(self) -> None:
        """Says that the log has grown."""
        self._feed.log_grew = True
        self._signal.set()

    def hurry(self) -> None:
        """Says that there is something to look at, perhaps the end."""
        self._signal.set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Works until told to stop, then finishes what is under way. Raises LeaseLost when another took over."""
        try:
            while not stopping.is_set():
                await self._turn()
            await self._finish()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _turn(self) -> None:
        try:
            await self._keep_lease()
            await self._read_on()
            self._begin()
            await self._pause()
            self._collect()
            if self._is_ripe:
                await self._settle()
            await self._measure()
        except StorageUnavailable as error:
            log.warning("the database is unavailable", sink=self._name, error=str(error))
            await asyncio.sleep(self._resources.poll_seconds)

    async def _finish(self) -> None:
        """Waits for what is under way, no longer than the lease lasts, and settles it."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=max(0.0, self._deadline - self._steady()))
        self._collect()
        await self._settle()

    async def _keep_lease(self) -> None:
        """Prolongs the lease after a third of it. What counts is when that was asked, not when it was answered."""
        now, seconds = self._steady(), self._resources.lease_seconds
        if now >= self._deadline:
            raise LeaseLost(f"the lease of sink {self._name} ran out")
        if now >= self._renew_at:
            self._see(await sinks.renew(self._resources.database, self._lease, seconds=seconds))
            self._deadline = now + seconds

    @property
    def _renew_at(self) -> float:
        return self._deadline - self._resources.lease_seconds * 2 / 3

    def _see(self, revision: int) -> None:
        """Notices that an operator has moved retries."""
        if revision != self._revision:
            self._revision = revision
            self._feed.retries_moved = True

    async def _read_on(self) -> None:
        if self._steady() - self._polled_at >= self._resources.poll_seconds:
            self._polled_at = self._steady()
            self._feed.log_grew = self._feed.retries_moved = True
        if self._condition.state is not BreakerState.OPEN:
            await self._feed.read(self._resources.clock())

    def _begin(self) -> None:
        """Publishes as much as may be under way at once, one event where that is to be a probe."""
        state = self._condition.state
        # what is begun late could outlive the lease
        safe = self._steady() < self._deadline - self._resources.lease_seconds / 2
        if state is BreakerState.OPEN or not safe:
            return
        slots, limit = (1, 1) if state is BreakerState.HALF_OPEN else (self._slots, self._sink.max_batch)
        while len(self._tasks) < slots and (batch := self._window.take(limit)):
            task = asyncio.create_task(self._publish(batch))
            task.add_done_callback(lambda _: self._signal.set())
            self._tasks.add(task)

    async def _publish(self, batch: Sequence[Candidate]) -> _Tried:
        started, started_at = self._steady(), self._resources.clock()
        publications = [candidate.publication for candidate in batch]
        results = await publish(self._sink, publications, self._settings.timeout.total_seconds())
        return _Tried(batch, results, started_at, self._steady() - started)

    async def _pause(self) -> None:
        """Waits until something has ended, the log has grown, or it is time for something."""
        if not self._feed.has_more or self._condition.state is BreakerState.OPEN:
            try:
                async with asyncio.timeout(self._seconds_to_wait()):
                    await self._signal.wait()
            except TimeoutError:
                pass
        self._signal.clear()

    def _seconds_to_wait(self) -> float:
        times = [self._polled_at + self._resources.poll_seconds, self._renew_at]
        if self._has_news:
            times.append(self._settled_at + _SETTLE_SECONDS)
        if self._condition.probe_at is not None:
            times.append(self._condition.probe_at)
        return max(0.0, min(times) - self._steady())

    def _collect(self) -> None:
        ended = {task for task in self._tasks if task.done()}
        self._tasks -= ended
        for task in ended:
            self._judge_all(task.result())
        self._condition.tell()

    def _judge_all(self, tried: _Tried) -> None:
        """After a failure, what the sink said to later events of its lane does not count: they must come after it."""
        stopped: set[str] = set()
        for candidate, result in zip(tried.batch, tried.results, strict=True):
            if candidate.lane in stopped:
                self._window.put_back(candidate)
                continue
            self._judge(candidate, result, tried)
            if not isinstance(result, Published | Refused):
                stopped.add(candidate.lane)

    def _judge(self, candidate: Candidate, result: Result, tried: _Tried) -> None:
        now, name = self._resources.clock(), self._name
        self._condition.take(result)
        self._resources.observer.attempt_ended(name, Outcome.of(result), tried.seconds)
        decision = decide(candidate, result, self._settings.policy, now=now, fraction=self._resources.chance())
        if isinstance(result, SinkDown) or decision is None:
            self._window.put_back(candidate)
            return
        if isinstance(result, Published):
            waited = (now - candidate.publication.received_at).total_seconds()
            self._resources.observer.event_published(name, max(0.0, waited))
        else:
            _log_failure(name, candidate, result, decision)
        keep = self._sink.keep_attempts == "all" or not isinstance(result, Published)
        self._window.decide(candidate, decision, _attempt(candidate, result, decision, tried) if keep else None)

    @property
    def _has_news(self) -> bool:
        return self._window.moved or self._condition.health != self._settled_health

    @property
    def _is_ripe(self) -> bool:
        is_time = self._steady() - self._settled_at >= _SETTLE_SECONDS
        return self._has_news and (is_time or self._window.unsettled >= WINDOW // 2)

    async def _settle(self) -> None:
        settlement, health = self._window.settlement(), self._condition.health
        now = self._resources.clock()
        self._see(await sinks.settle(self._resources.database, self._lease, settlement, health, now=now))
        self._window.settled(settlement)
        self._settled_health, self._settled_at = health, self._steady()
        self._feed.retries_moved = self._feed.retries_moved or settlement.touches_retries

    async def _measure(self) -> None:
        if self._steady() - self._measured_at < _MEASURE_SECONDS:
            return
        self._measured_at = self._steady()
        async with self._resources.database.reading() as connection:
            backlog = await sinks.backlog(connection, self._name)
        age = self._resources.clock() - backlog.oldest_at if backlog.oldest_at else timedelta(0)
        self._resources.observer.backlog_measured(
            self._name, backlog.events, max(0.0, age.total_seconds()), backlog.retries, backlog.dead_letters
        )


def _attempt(candidate: Candidate, result: Published | Refused | Retry, decision: Decision, tried: _Tried) -> Attempt:
    return Attempt(
        position=candidate.position,
        event_id=candidate.publication.id,
        started_at=tried.started_at,
        ended_at=tried.started_at + timedelta(seconds=tried.seconds),
        outcome=Outcome.of(result),
        decision=type(decision).__name__.lower(),
        reason=None if isinstance(result, Published) else result.reason,
        response_code=result.response_code,
        response=result.response,
    )


def _log_failure(sink: str, candidate: Candidate, result: Refused | Retry, decision: Decision) -> None:
    publication = candidate.publication
    log.warning(
        "attempt failed",
        sink=sink,
        event_id=publication.id,
        message_id=publication.event["subject"],
        position=publication.position,
        attempt=candidate.attempts + 1,
        outcome=Outcome.of(result),
        reason=result.reason,
        decision=type(decision).__name__.lower(),
        due_at=decision.due_at.isoformat() if isinstance(decision, Again) else None,
    )
