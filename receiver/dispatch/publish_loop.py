"""The publish loop of one sink, while this process holds its lease: read the log, publish, settle."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import structlog

from receiver.dispatch.publish import log_attempt, longest_publish, publish, record
from receiver.dispatch.reader import WINDOW, Batch, BatchResult, LogReader, ReplayReader, Resources, ordering_keys
from receiver.dispatch.schedule_clock import ScheduleClock, step_between
from receiver.dispatch.sink_health import SinkHealth, UnexpectedDuplicates
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
    decide,
)
from receiver.domain.retry import BreakerState
from receiver.domain.window import Window
from receiver.errors import ReceiverError, StorageUnavailable
from receiver.logs import Sampled
from receiver.models.sinks import ReplayRead
from receiver.sinks.concurrency import check_error, probe_of
from receiver.sinks.registry import ConfiguredSink
from receiver.storage import replays, retries, sinks
from receiver.storage.sinks import Lease, LeaseLost, SinkControl
from receiver.waiting import wait_for

_CANCEL_SECONDS: Final = 1.0
# Settling later repeats more events after a crash; settling at once costs a transaction per event.
_SETTLE_SECONDS: Final = 0.1
_REFERENCE_SECONDS: Final = 1.0
# An idle sink is checked this often: a stream that was deleted would show only when the next event comes.
IDLE_CHECK_SECONDS: Final = 60.0

log = structlog.get_logger("receiver.dispatcher")


class PublishStuck(ReceiverError):
    """A call of `publish` did not end although it was cancelled."""


class PublishLoop:
    """Reads, publishes and settles for one sink under one lease.

    A single task changes all state; only the calls of `publish` run beside it. `deadline` is when the lease ends, in
    monotonic seconds.
    """

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
        self._reader = LogReader(resources.database, configured, self._window)
        self._clock = ScheduleClock(resources.clock(), resources.schedule_seconds)
        self._is_clock_anchored = False
        self._health = SinkHealth(
            self._name, lease.health, observer=resources.observer, clock=self._clock.now, monotonic=resources.monotonic
        )
        self._duplicates = UnexpectedDuplicates(self._name, resources.observer, resources.monotonic)
        self._settled_health = lease.health
        self._tasks: dict[asyncio.Task[BatchResult], Batch] = {}
        self._check: asyncio.Task[str | None] | None = None
        # The sink has been checked at its start.
        self._active_at = self._monotonic()
        self._replay: ReplayReader | None = None
        self._replays_turn = False
        # Unknown until the first poll.
        self._paused = True
        self._revision = -1
        self._is_gone = False
        self._signal = asyncio.Event()
        self._lease_timer: asyncio.TimerHandle | None = None
        self._polled_at = self._settled_at = float("-inf")
        # An outage fails each round of the loop.
        self._outages = Sampled(log, "the database is unavailable")

    def wake(self) -> None:
        """Reports that the log has grown."""
        self._reader.log_grew = True
        self._signal.set()

    def interrupt(self) -> None:
        """Ends the current wait, so that the loop sees that it is to end."""
        self._signal.set()

    async def run(self, ending: asyncio.Event) -> None:
        """Publishes until `ending` is set, then finishes the publishes under way and settles them.

        Raises LeaseLost when the lease expired or another process took it over, PublishStuck when a publish never ends.
        """
        self._arm_lease_timer()
        try:
            while not ending.is_set():
                await self._run_once()
            await self._finish()
        finally:
            if self._lease_timer is not None:
                self._lease_timer.cancel()
            await self._cancel_publishes()

    async def _cancel_publishes(self) -> None:
        """Cancels the publishes under way and abandons those that do not heed it."""
        tasks: list[asyncio.Task[Any]] = [*self._tasks, *([self._check] if self._check is not None else ())]
        for task in tasks:
            task.cancel()
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)
            if stuck:
                log.error("publish cannot be cancelled", sink=self._name, calls=len(stuck))

    async def _run_once(self) -> None:
        try:
            self._raise_if_stuck()
            await self._keep_lease()
            await self._poll()
            await self._read()
            self._drop_expired()
            self._begin()
            self._check_if_idle()
            await self._wait()
            self._collect()
            if self._should_settle:
                await self._settle()
            await self._health.measure(self._resources.database, self._settings.max_age)
        except StorageUnavailable as error:
            self._outages.add(sink=self._name, error=str(error))
            await asyncio.sleep(self._resources.poll_seconds)

    def _raise_if_stuck(self) -> None:
        """Raises PublishStuck when a `publish` runs far beyond its timeout: it did not heed its cancellation."""
        longest = longest_publish(self._settings.timeout.total_seconds()) + self._resources.lease_seconds
        if any(self._monotonic() - batch.begun > longest for batch in self._tasks.values()):
            raise PublishStuck("publish does not end")

    async def _finish(self) -> None:
        """Waits for the publishes under way, at most as long as a publish or the lease lasts, and settles them."""
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
        """Renews the lease after a fifth of it. The deadline is counted from before the renewal was sent."""
        now, seconds = self._monotonic(), self._resources.lease_seconds
        if now >= self._deadline:
            raise LeaseLost(f"the lease of sink {self._name} ran out")
        if now >= self._renew_at:
            await sinks.renew_lease(self._resources.database, self._lease, seconds=seconds)
            self._deadline = now + seconds
            self._arm_lease_timer()

    def _arm_lease_timer(self) -> None:
        """Sets the timer that cancels publishes when the lease ends, even while this loop waits for the database."""
        if self._lease_timer is not None:
            self._lease_timer.cancel()
        seconds = max(0.0, self._deadline - self._monotonic())
        self._lease_timer = asyncio.get_running_loop().call_later(seconds, self._cancel_all)

    def _cancel_all(self) -> None:
        for task in self._tasks:
            task.cancel()

    @property
    def _renew_at(self) -> float:
        return self._deadline - self._resources.lease_seconds * 4 / 5

    async def _poll(self) -> None:
        """Reads at every poll interval what other processes and operators have changed."""
        if self._monotonic() - self._polled_at < self._resources.poll_seconds:
            return
        async with self._resources.database.reading() as connection:
            control = await sinks.control(connection, self._name)
            replay = await replays.open_of(connection, self._name)
            queried_at = self._monotonic()
            reference = await self._resources.reference(connection)
            # At once: giving the connection back may take seconds, which would look like a step of the clock.
            read_at = self._resources.schedule_seconds()
            is_fresh = self._monotonic() - queried_at < _REFERENCE_SECONDS
        # A late answer would look like a clock that was set back.
        if is_fresh or not self._is_clock_anchored:
            await self._follow_clock(reference, read_at)
        self._apply_control(control)
        self._apply_replay(replay if replay is not None and replay.state == "running" else None)
        self._polled_at = self._monotonic()
        self._reader.log_grew = self._reader.retries_moved = True

    async def _follow_clock(self, reference: datetime, read_at: float) -> None:
        """Keeps the pauses of retries when the reference clock was set, by hand or by its time server."""
        if self._is_clock_anchored:
            step = self._clock.step(reference, read_at)
        else:
            # Set forward while nobody held the lease: that looks like time that has passed.
            seen_at = self._lease.previous_seen_at
            step = step_between(seen_at, reference) if seen_at is not None and reference < seen_at else None
        if step is not None:
            log.warning("the clock was set, retries keep their pauses", sink=self._name, seconds=step.total_seconds())
            health = self._health.moved(step)
            await retries.move_schedule(self._resources.database, self._lease, health, step)
            self._window.move_schedule(step)
            self._health.health = health
        self._clock.anchor(reference, read_at)
        self._is_clock_anchored = True

    def _apply_control(self, control: SinkControl) -> None:
        self._paused = control.paused or self._is_gone
        if control.revision != self._revision:
            self._revision = control.revision
            self._window.forget_retries()

    def _apply_replay(self, view: ReplayRead | None) -> None:
        """Starts the running replay, or leaves one that is paused, cancelled or finished.

        A replay is left only when none of its events is under way or unsettled.
        """
        if self._replay is None and view is not None:
            self._replay = ReplayReader(self._resources.database, self._configured, view, slots=self._slots)
        elif self._replay is not None:
            self._replay.is_stopped = view is None or view.id != self._replay.id
            self._leave_replay()

    def _leave_replay(self) -> None:
        replay = self._replay
        if replay is None or not (replay.is_stopped or replay.has_ended):
            return
        if not replay.window.moved and all(batch.replay is None for batch in self._tasks.values()):
            self._replay = None

    async def _read(self) -> None:
        if self._health.state is not BreakerState.OPEN or self._gives_up:
            # The poll finds pauses, too, but up to a poll interval later.
            self._paused = await self._reader.read(self._clock.now()) or self._paused
        if self._replay is not None and self._health.state is not BreakerState.OPEN:
            await self._replay.read()

    @property
    def _gives_up(self) -> bool:
        """Whether the sink has been down for longer than `max_age`, so that its old events become dead letters."""
        down_since, age = self._health.health.down_since_at, self._settings.max_age
        # A check of the idle sink alone gives up no event: the next one is tried.
        if down_since is None or self._health.state is BreakerState.CLOSED:
            return False
        is_long = self._clock.now() - down_since >= age
        return is_long and self._settings.on_expire == "dead_letter" and not self._paused

    def _drop_expired(self) -> None:
        if not self._gives_up:
            return
        before = self._clock.now() - self._settings.max_age
        reason = self._health.health.last_error or "the sink is down"
        dead = DeadLettered(cause=DeadLetterReason.EXPIRED, reason=reason, holds=self._settings.policy.holds)
        for pending in self._window.waiting_since(before):
            self._window.drop(pending, dead)

    def _begin(self) -> None:
        """Starts as many publishes as there are free slots; while the breaker is half open, one event as a probe."""
        state = self._health.state
        # A publish that starts late in the lease could outlive it.
        safe = self._monotonic() < self._deadline - self._resources.lease_seconds / 2
        if state is BreakerState.OPEN or self._paused or not safe:
            return
        if state is BreakerState.HALF_OPEN:
            # Before the probe: a fast one would close the breaker before anybody sees it half open.
            self._health.report()
        slots, limit = (1, 1) if state is BreakerState.HALF_OPEN else (self._slots, self._sink.max_batch)
        while len(self._tasks) < slots and self._begin_next(limit):
            pass

    def _check_if_idle(self) -> None:
        """Checks, as at the start of the sink, whether it can be reached when nothing has been published for a while.

        The check runs beside the loop. While the breaker is open, events probe the sink.
        """
        if self._check is not None and self._check.done():
            self._health.checked(self._check.result())
            self._check, self._active_at = None, self._monotonic()
            self._health.report()
        if self._tasks:
            self._active_at = self._monotonic()
        is_idle = self._monotonic() - self._active_at >= IDLE_CHECK_SECONDS
        if is_idle and self._check is None and self._health.state is BreakerState.CLOSED and not self._paused:
            self._check = asyncio.create_task(check_error(probe_of(self._sink)))
            self._check.add_done_callback(lambda _: self._signal.set())

    def _begin_next(self, limit: int) -> bool:
        """Starts one batch and returns whether there was one. New events and replayed events take turns."""
        order = (self._take_replayed, self._take_new) if self._replays_turn else (self._take_new, self._take_replayed)
        batch = next((taken for take in order if (taken := take(limit)).pending), None)
        if batch is None:
            return False
        self._replays_turn = batch.replay is None
        task = asyncio.create_task(self._publish(batch))
        task.add_done_callback(lambda _: self._signal.set())
        self._tasks[task] = replace(batch, begun=self._monotonic())
        return True

    def _take_new(self, limit: int) -> Batch:
        replayed = [batch for batch in self._tasks.values() if batch.replay is not None]
        return Batch(self._window.take(limit, ordering_keys(replayed)))

    def _take_replayed(self, limit: int) -> Batch:
        """The next batch of the replay, which never gets more than half of the slots, nor more than half of a batch."""
        replay, batches = self._replay, self._tasks.values()
        if replay is None or replay.is_stopped or replay.is_backing_off(self._monotonic()):
            return Batch(())
        if sum(batch.replay is not None for batch in batches) >= max(1, self._slots // 2):
            return Batch(())
        new = [batch for batch in batches if batch.replay is None]
        return Batch(replay.window.take(max(1, limit // 2), ordering_keys(new)), replay)

    async def _publish(self, batch: Batch) -> BatchResult:
        started, started_at = self._monotonic(), self._clock.now()
        tracing, attempts = self._resources.tracing, None
        if tracing is not None:
            attempts = await tracing.attempts(self._name, self._settings.type, batch.pending)
        publications = attempts.publications if attempts else [pending.publication for pending in batch.pending]
        results = await publish(self._sink, publications, self._settings.timeout.total_seconds())
        seconds = self._monotonic() - started
        if tracing is not None and attempts is not None:
            tracing.attempted(attempts, results, seconds)
        return BatchResult(batch, results, started_at, seconds)

    async def _wait(self) -> None:
        """Waits until a publish has ended, the log has grown, or the next poll, renewal, settlement or probe is due."""
        if not self._has_more:
            await wait_for(self._signal, self._seconds_to_wait())
        self._signal.clear()

    @property
    def _has_more(self) -> bool:
        """Whether reading again would return more events now."""
        if self._health.state is BreakerState.OPEN:
            return self._gives_up and self._reader.has_more
        return self._reader.has_more or (self._replay is not None and self._replay.has_more)

    def _seconds_to_wait(self) -> float:
        times = [self._polled_at + self._resources.poll_seconds, self._renew_at]
        if self._has_unsettled:
            times.append(self._settled_at + _SETTLE_SECONDS)
        if self._health.probe_at is not None:
            times.append(self._health.probe_at)
        return max(0.0, min(times) - self._monotonic())

    def _collect(self) -> None:
        ended = [task for task in self._tasks if task.done()]
        if any(task.cancelled() for task in ended):
            raise LeaseLost(f"the lease of sink {self._name} ran out")
        for task in ended:
            del self._tasks[task]
            self._decide_all(task.result())
        self._health.report()
        self._duplicates.log()

    def _decide_all(self, ended: BatchResult) -> None:
        """Decides about every event of a batch.

        After a failed event, the results of later events of its ordering key do not count: they must come after it.
        """
        self._resources.observer.batch_ended(self._name, ended.seconds)
        replay = ended.batch.replay
        window = self._window if replay is None else replay.window
        stopped: set[str] = set()
        for pending, result in zip(ended.batch.pending, ended.results, strict=True):
            if pending.ordering_key in stopped:
                window.put_back(pending)
                log_attempt(self._name, pending, result, None, seconds=ended.seconds, counts=False)
                self._note_duplicate(pending, result)
                continue
            decision = self._decide(pending, result, ended)
            attempt = record(
                pending,
                result,
                decision,
                started_at=ended.started_at,
                seconds=ended.seconds,
                keep=self._sink.keep_attempts,
            )
            if decision is None:
                window.put_back(pending, attempt)
            else:
                window.decide(pending, decision, attempt)
            if not isinstance(decision, Done | DeadLettered) or (isinstance(decision, DeadLettered) and decision.holds):
                stopped.add(pending.ordering_key)

    def _decide(self, pending: PendingPublication, result: Result, ended: BatchResult) -> Decision | None:
        """Decides what follows from one attempt and reports it to health, metrics and log.

        None: the attempt does not count.
        """
        now, replay, fraction = self._clock.now(), ended.batch.replay, self._resources.random_fraction()
        self._health.record(result)
        self._resources.observer.attempt_ended(self._name, Outcome.of(result))
        if replay is not None:
            decision = replay.decide(pending, result, self._monotonic(), fraction)
        else:
            decision = decide(pending, result, self._settings.policy, now=now, fraction=fraction)
        if isinstance(result, Published) and replay is None and not pending.is_import:
            seconds = (now - pending.publication.received_at).total_seconds()
            self._resources.observer.event_published(self._name, max(0.0, seconds))
        self._note_duplicate(pending, result)
        log_attempt(self._name, pending, result, decision, seconds=ended.seconds)
        if isinstance(result, Refused) and result.gone:
            self._pause_gone(result)
        return decision

    def _note_duplicate(self, pending: PendingPublication, result: Result) -> None:
        is_first = not (pending.publication.replayed or pending.is_retry or pending.was_put_back)
        if isinstance(result, Published) and result.duplicate and is_first:
            self._duplicates.add(pending.publication.id)

    def _pause_gone(self, result: Refused) -> None:
        log.error("sink is gone, paused until it is resumed", sink=self._name, reason=result.reason)
        self._paused = self._is_gone = True

    @property
    def _has_unsettled(self) -> bool:
        has_moved = self._window.moved or (self._replay is not None and self._replay.window.moved)
        return has_moved or self._is_gone or self._health.health != self._settled_health

    @property
    def _should_settle(self) -> bool:
        is_time = self._monotonic() - self._settled_at >= _SETTLE_SECONDS
        return self._has_unsettled and (is_time or self._window.unsettled >= WINDOW // 2)

    async def _settle(self) -> None:
        settlement, health = self._window.settlement(), self._health.health
        replay, progress = self._replay, self._replay.progress() if self._replay is not None else None
        await retries.settle(
            self._resources.database,
            self._lease,
            settlement,
            health,
            now=self._clock.now(),
            progress=progress,
            pause=self._is_gone,
        )
        self._window.settled(settlement)
        if replay is not None and progress is not None:
            replay.settled(progress)
            self._leave_replay()
        # The pause is stored from here on, so that an operator can resume the sink.
        self._is_gone = False
        self._settled_health, self._settled_at = health, self._monotonic()
        self._reader.retries_moved = self._reader.retries_moved or settlement.touches_retries
        if settlement.superseded:
            self._resources.observer.events_superseded(self._name, settlement.superseded)
