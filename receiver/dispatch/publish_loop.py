"""The work for one sink, from taking its lease to giving it up: read on, publish, settle."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import structlog

from receiver.dispatch.publish import log_failure, longest_publish, publish, record
from receiver.dispatch.reader import WINDOW, LogReader, Replaying, Resources
from receiver.dispatch.sink_health import SinkHealth
from receiver.domain.publication import (
    DeadLettered,
    DeadLetterReason,
    Decision,
    Done,
    Outcome,
    PendingPublication,
    Published,
    Refused,
    Result,
    Retry,
    decide,
)
from receiver.domain.queries import ReplayView
from receiver.domain.retry import BreakerState
from receiver.domain.window import Window
from receiver.errors import ReceiverError, StorageUnavailable
from receiver.sinks.registry import ConfiguredSink
from receiver.storage import replays, retries, sinks
from receiver.storage.sinks import Lease, LeaseLost, SinkControl

_MEASURE_SECONDS: Final = 10.0
_SECONDS_TO_OBEY: Final = 1.0
# settling later costs more repetitions after a crash, settling at once a transaction for each event
_SETTLE_SECONDS: Final = 0.1

log = structlog.get_logger("receiver.dispatcher")


class PublishStuck(ReceiverError):
    """A sink does not end what it was told to end."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """What is given to the sink at once: new events and retries, or a part of a replay."""

    candidates: Sequence[PendingPublication]
    replay: Replaying | None = None
    begun: float = 0.0


@dataclass(frozen=True, slots=True)
class _Tried:
    """A batch and what the sink said to it."""

    batch: _Batch
    results: Sequence[Result]
    started_at: datetime
    seconds: float


class PublishLoop:
    """One holder's work for one sink. A single task moves everything; only the publishing itself runs beside it."""

    def __init__(self, configured: ConfiguredSink, resources: Resources, lease: Lease, deadline: float) -> None:
        self._configured = configured
        self._name, self._settings, self._sink = configured.name, configured.settings, configured.sink
        self._resources, self._monotonic = resources, resources.monotonic
        self._lease, self._deadline = lease, deadline
        self._slots = 1 if self._sink.keeps_order else self._sink.concurrency
        self._window = Window(
            lease.cursor,
            slots=self._slots,
            keeps_order=self._sink.keeps_order,
            latest_only=self._settings.coalesce == "latest",
        )
        self._feed = LogReader(resources.database, configured, self._window)
        self._condition = SinkHealth(
            self._name, lease.health, observer=resources.observer, clock=resources.clock, monotonic=resources.monotonic
        )
        self._settled_health = lease.health
        self._tasks: dict[asyncio.Task[_Tried], _Batch] = {}
        self._replay: Replaying | None = None
        self._replays_turn = False
        # unknown until asked for the first time
        self._paused = True
        self._revision = -1
        self._is_gone = False
        self._signal = asyncio.Event()
        self._overdue: asyncio.TimerHandle | None = None
        self._polled_at = self._settled_at = self._measured_at = float("-inf")

    def wake(self) -> None:
        """Says that the log has grown."""
        self._feed.log_grew = True
        self._signal.set()

    def hurry(self) -> None:
        """Says that there is something to look at, perhaps the end."""
        self._signal.set()

    async def run(self, ending: asyncio.Event) -> None:
        """Works until told to end, then finishes what is under way.

        Raises LeaseLost when another took over, and Deaf when a publish holds its place for ever.
        """
        self._guard()
        try:
            while not ending.is_set():
                await self._turn()
            await self._finish()
        finally:
            if self._overdue is not None:
                self._overdue.cancel()
            await self._abandon()

    async def _abandon(self) -> None:
        """Cancels what is under way; what does not hear it is left behind."""
        for task in self._tasks:
            task.cancel()
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        if self._tasks:
            _, deaf = await asyncio.wait(self._tasks, timeout=_SECONDS_TO_OBEY)
            if deaf:
                log.error("publish cannot be cancelled", sink=self._name, calls=len(deaf))

    async def _turn(self) -> None:
        try:
            self._notice_deaf()
            await self._keep_lease()
            await self._poll()
            await self._read_on()
            self._give_up_expired()
            self._begin()
            await self._pause()
            self._collect()
            if self._is_ripe:
                await self._settle()
            await self._measure()
        except StorageUnavailable as error:
            log.warning("the database is unavailable", sink=self._name, error=str(error))
            await asyncio.sleep(self._resources.poll_seconds)

    def _notice_deaf(self) -> None:
        """Raises Deaf where a call of the sink has long outlived its time-out: it did not heed its cancellation."""
        longest = longest_publish(self._settings.timeout.total_seconds()) + self._resources.lease_seconds
        if any(self._monotonic() - batch.begun > longest for batch in self._tasks.values()):
            raise PublishStuck("publish does not end")

    async def _finish(self) -> None:
        """Waits for what is under way, no longer than a publish may take or the lease lasts, and settles it."""
        until = self._monotonic() + longest_publish(self._settings.timeout.total_seconds())
        while any(not task.done() for task in self._tasks) and self._monotonic() < min(until, self._deadline):
            await asyncio.wait(
                self._tasks, timeout=max(_SETTLE_SECONDS, min(until, self._renew_at) - self._monotonic())
            )
            with suppress(StorageUnavailable):
                await self._keep_lease()
        self._collect()
        await self._settle()

    async def _keep_lease(self) -> None:
        """Renews the lease after a fifth of it. The deadline counts from before the renewal was sent."""
        now, seconds = self._monotonic(), self._resources.lease_seconds
        if now >= self._deadline:
            raise LeaseLost(f"the lease of sink {self._name} ran out")
        if now >= self._renew_at:
            await sinks.renew_lease(self._resources.database, self._lease, seconds=seconds)
            self._deadline = now + seconds
            self._guard()

    def _guard(self) -> None:
        """Cancels what is under way when the lease ends, even while the database lets this shift wait."""
        if self._overdue is not None:
            self._overdue.cancel()
        seconds = max(0.0, self._deadline - self._monotonic())
        self._overdue = asyncio.get_running_loop().call_later(seconds, self._cancel_all)

    def _cancel_all(self) -> None:
        for task in self._tasks:
            task.cancel()

    @property
    def _renew_at(self) -> float:
        return self._deadline - self._resources.lease_seconds * 4 / 5

    async def _poll(self) -> None:
        """Looks now and then for what other processes and operators have done."""
        if self._monotonic() - self._polled_at < self._resources.poll_seconds:
            return
        async with self._resources.database.reading() as connection:
            orders = await sinks.orders(connection, self._name)
            asked = await replays.open_of(connection, self._name)
        self._see_orders(orders)
        self._see_replay(asked if asked is not None and asked.state == "running" else None)
        self._polled_at = self._monotonic()
        self._feed.log_grew = self._feed.retries_moved = True

    def _see_orders(self, orders: SinkControl) -> None:
        self._paused = orders.paused or self._is_gone
        if orders.revision != self._revision:
            self._revision = orders.revision
            self._window.forget_retries()

    def _see_replay(self, asked: ReplayView | None) -> None:
        """Begins a replay, goes on with it, or leaves it when what is under way of it is done."""
        if self._replay is None and asked is not None:
            self._replay = Replaying(self._resources.database, self._configured, asked, slots=self._slots)
        elif self._replay is not None:
            self._replay.is_left = asked is None or asked.id != self._replay.id
            self._leave_replay()

    def _leave_replay(self) -> None:
        replay = self._replay
        if replay is None or not (replay.is_left or replay.has_ended):
            return
        if not replay.window.moved and all(batch.replay is None for batch in self._tasks.values()):
            self._replay = None

    async def _read_on(self) -> None:
        if self._condition.state is not BreakerState.OPEN or self._expires:
            await self._feed.read(self._resources.clock())
        if self._replay is not None and self._condition.state is not BreakerState.OPEN:
            await self._replay.read()

    @property
    def _expires(self) -> bool:
        """Whether the sink is down for so long that events are given up."""
        down_since, age = self._condition.health.down_since_at, self._settings.max_age
        is_long = down_since is not None and self._resources.clock() - down_since >= age
        return is_long and self._settings.on_expire == "dead_letter" and not self._paused

    def _give_up_expired(self) -> None:
        if not self._expires:
            return
        before = self._resources.clock() - self._settings.max_age
        reason = self._condition.health.last_error or "the sink is down"
        dead = DeadLettered(death=DeadLetterReason.EXPIRED, reason=reason, holds=self._settings.policy.holds)
        for candidate in self._window.waiting_since(before):
            self._window.drop(candidate, dead)

    def _begin(self) -> None:
        """Publishes as much as may be under way at once, one event where that is to be a probe."""
        state = self._condition.state
        # what is begun late could outlive the lease
        safe = self._monotonic() < self._deadline - self._resources.lease_seconds / 2
        if state is BreakerState.OPEN or self._paused or not safe:
            return
        slots, limit = (1, 1) if state is BreakerState.HALF_OPEN else (self._slots, self._sink.max_batch)
        while len(self._tasks) < slots and self._begin_next(limit):
            pass

    def _begin_next(self, limit: int) -> bool:
        """Begins one batch, new events and a replay in turns; returns whether there was one."""
        order = (self._take_replayed, self._take_new) if self._replays_turn else (self._take_new, self._take_replayed)
        batch = next((taken for take in order if (taken := take(limit)).candidates), None)
        if batch is None:
            return False
        self._replays_turn = batch.replay is None
        task = asyncio.create_task(self._publish(batch))
        task.add_done_callback(lambda _: self._signal.set())
        self._tasks[task] = replace(batch, begun=self._monotonic())
        return True

    def _take_new(self, limit: int) -> _Batch:
        replayed = [batch for batch in self._tasks.values() if batch.replay is not None]
        return _Batch(self._window.take(limit, _ordering_keys(replayed)))

    def _take_replayed(self, limit: int) -> _Batch:
        """A replay never holds more than half of the slots, nor half of a batch."""
        replay, batches = self._replay, self._tasks.values()
        if replay is None or replay.is_left or replay.rests(self._monotonic()):
            return _Batch(())
        if sum(batch.replay is not None for batch in batches) >= max(1, self._slots // 2):
            return _Batch(())
        new = [batch for batch in batches if batch.replay is None]
        return _Batch(replay.window.take(max(1, limit // 2), _ordering_keys(new)), replay)

    async def _publish(self, batch: _Batch) -> _Tried:
        started, started_at = self._monotonic(), self._resources.clock()
        publications = [candidate.publication for candidate in batch.candidates]
        results = await publish(self._sink, publications, self._settings.timeout.total_seconds())
        return _Tried(batch, results, started_at, self._monotonic() - started)

    async def _pause(self) -> None:
        """Waits until something has ended, the log has grown, or it is time for something."""
        if not self._has_more:
            try:
                async with asyncio.timeout(self._seconds_to_wait()):
                    await self._signal.wait()
            except TimeoutError:
                pass
        self._signal.clear()

    @property
    def _has_more(self) -> bool:
        """Whether reading on would give more at once."""
        if self._condition.state is BreakerState.OPEN:
            return self._expires and self._feed.has_more
        return self._feed.has_more or (self._replay is not None and self._replay.has_more)

    def _seconds_to_wait(self) -> float:
        times = [self._polled_at + self._resources.poll_seconds, self._renew_at]
        if self._has_news:
            times.append(self._settled_at + _SETTLE_SECONDS)
        if self._condition.probe_at is not None:
            times.append(self._condition.probe_at)
        return max(0.0, min(times) - self._monotonic())

    def _collect(self) -> None:
        ended = [task for task in self._tasks if task.done()]
        if any(task.cancelled() for task in ended):
            raise LeaseLost(f"the lease of sink {self._name} ran out")
        for task in ended:
            del self._tasks[task]
            self._judge_all(task.result())
        self._condition.tell()

    def _judge_all(self, tried: _Tried) -> None:
        """After a failure, what the sink said to later events of its lane does not count: they must come after it."""
        replay = tried.batch.replay
        window = self._window if replay is None else replay.window
        stopped: set[str] = set()
        for candidate, result in zip(tried.batch.candidates, tried.results, strict=True):
            if candidate.ordering_key in stopped:
                window.put_back(candidate)
                continue
            decision = self._judge(candidate, result, tried)
            attempt = record(
                candidate,
                result,
                decision,
                started_at=tried.started_at,
                seconds=tried.seconds,
                keep=self._sink.keep_attempts,
            )
            if decision is None:
                window.put_back(candidate, attempt)
            else:
                window.decide(candidate, decision, attempt)
            if not isinstance(decision, Done | DeadLettered) or (isinstance(decision, DeadLettered) and decision.holds):
                stopped.add(candidate.ordering_key)

    def _judge(self, candidate: PendingPublication, result: Result, tried: _Tried) -> Decision | None:
        """What becomes of an event, told to everyone who listens; None: it is tried again as if it had not been."""
        now, replay, fraction = self._resources.clock(), tried.batch.replay, self._resources.random_fraction()
        self._condition.take(result)
        self._resources.observer.attempt_ended(self._name, Outcome.of(result), tried.seconds)
        if replay is not None:
            decision = replay.decide(candidate, result, self._monotonic(), fraction)
        else:
            decision = decide(candidate, result, self._settings.policy, now=now, fraction=fraction)
        if isinstance(result, Published) and replay is None:
            waited = (now - candidate.publication.received_at).total_seconds()
            self._resources.observer.event_published(self._name, max(0.0, waited))
        if isinstance(result, Refused | Retry):
            log_failure(self._name, candidate, result, decision)
        if isinstance(result, Refused) and result.gone:
            self._see_gone(result)
        return decision

    def _see_gone(self, result: Refused) -> None:
        log.error("sink is gone, paused until it is resumed", sink=self._name, reason=result.reason)
        self._paused = self._is_gone = True

    @property
    def _has_news(self) -> bool:
        moved = self._window.moved or (self._replay is not None and self._replay.window.moved)
        return moved or self._is_gone or self._condition.health != self._settled_health

    @property
    def _is_ripe(self) -> bool:
        is_time = self._monotonic() - self._settled_at >= _SETTLE_SECONDS
        return self._has_news and (is_time or self._window.unsettled >= WINDOW // 2)

    async def _settle(self) -> None:
        settlement, health = self._window.settlement(), self._condition.health
        replay, progress = self._replay, self._replay.progress() if self._replay is not None else None
        await retries.settle(
            self._resources.database,
            self._lease,
            settlement,
            health,
            now=self._resources.clock(),
            progress=progress,
            pause=self._is_gone,
        )
        self._window.settled(settlement)
        if replay is not None and progress is not None:
            replay.settled(progress)
            self._leave_replay()
        # paused in writing from here on, so that an operator can resume it
        self._is_gone = False
        self._settled_health, self._settled_at = health, self._monotonic()
        self._feed.retries_moved = self._feed.retries_moved or settlement.touches_retries
        if settlement.superseded:
            self._resources.observer.events_superseded(self._name, settlement.superseded)

    async def _measure(self) -> None:
        if self._monotonic() - self._measured_at < _MEASURE_SECONDS:
            return
        self._measured_at = self._monotonic()
        async with self._resources.database.reading() as connection:
            backlog = await sinks.backlog(connection, self._name)
        age = self._resources.clock() - backlog.oldest_at if backlog.oldest_at else timedelta(0)
        if age > self._settings.max_age and self._condition.health.down_since_at is not None:
            log.error("sink is down, events wait for longer than max_age", sink=self._name, oldest=str(age))
        self._resources.observer.backlog_measured(
            self._name, backlog.events, max(0.0, age.total_seconds()), backlog.retries, backlog.dead_letters
        )


def _ordering_keys(batches: Sequence[_Batch]) -> frozenset[str]:
    return frozenset(candidate.ordering_key for batch in batches for candidate in batch.candidates)
