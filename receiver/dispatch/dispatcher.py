"""Runs one dispatcher per sink. A lease makes sure that only one process at a time publishes to a sink."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Final

import structlog

from receiver.dispatch.publish_loop import PublishLoop, PublishStuck
from receiver.dispatch.reader import Resources, Wakeup
from receiver.dispatch.sink_health import DispatchObserver
from receiver.domain.retry import BreakerState
from receiver.domain.window import Settlement
from receiver.errors import ReceiverError, StorageUnavailable
from receiver.logs import Sampled
from receiver.sinks.base import Sink
from receiver.sinks.concurrency import call_sink, check_error, error_name, probe_of
from receiver.sinks.registry import ConfiguredSink
from receiver.storage import retries, sinks
from receiver.storage.database import Database
from receiver.storage.leases import Leasing
from receiver.storage.sinks import Lease, LeaseLost, Registration
from receiver.tracing.recorder import Tracing
from receiver.waiting import wait_for

# After its holder died, a sink gets nothing until the lease expires. While it publishes, the lease is renewed every
# fifth of this time.
LEASE_SECONDS: Final = 15.0
POLL_SECONDS: Final = 1.0
_MAX_BACKOFF_SECONDS: Final = 60.0
_START_SECONDS: Final = 15.0

log = structlog.get_logger("receiver.dispatcher")


class _NotStarted(ReceiverError):
    """The `start` of a sink failed."""


class Dispatchers:
    """The dispatchers of all configured sinks in this process.

    `clock` returns aware UTC time, `random_fraction` a number from 0 to 1 for the jitter of retries. `holder` names
    this worker in its leases; None: each dispatcher has a name of its own. Retries are scheduled by a clock that takes
    its time from `reference` (None: the database's clock) and passes at the pace of `schedule_seconds`, so that a clock
    that is set moves no retry.
    """

    def __init__(
        self,
        database: Database,
        configured: Sequence[ConfiguredSink],
        *,
        clock: Callable[[], datetime],
        wakeup: Wakeup,
        observer: DispatchObserver,
        random_fraction: Callable[[], float] = random.random,
        lease_seconds: float = LEASE_SECONDS,
        poll_seconds: float = POLL_SECONDS,
        holder: str | None = None,
        schedule_seconds: Callable[[], float] = time.monotonic,
        reference: Callable[[Any], Awaitable[datetime]] | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._resources = Resources(
            database=database,
            observer=observer,
            clock=clock,
            monotonic=time.monotonic,
            schedule_seconds=schedule_seconds,
            reference=reference or partial(database.reference_time, clock=clock),
            random_fraction=random_fraction,
            lease_seconds=lease_seconds,
            poll_seconds=poll_seconds,
            holder=holder,
            tracing=tracing,
        )
        self._configured = {sink.name: sink for sink in configured}
        self._dispatchers: dict[str, Dispatcher] = {}
        wakeup.listen(self._wake)

    async def start(self) -> None:
        """Registers the sinks, so that a new sink misses no event from here on, and starts their dispatchers."""
        await self.prepare(tuple(self._configured.values()))
        for configured in self._configured.values():
            self._dispatchers[configured.name] = Dispatcher(configured, self._resources)

    async def reload(self, configured: Sequence[ConfiguredSink]) -> None:
        """Prepares and applies a new list of sinks. Raises as `prepare` does; then nothing has changed."""
        await self.prepare(configured)
        await self.apply(configured)

    async def prepare(self, configured: Sequence[ConfiguredSink]) -> None:
        """Registers the sinks that are new. Raises StorageUnavailable, and changes nothing, if that fails."""
        registrations = [
            Registration(name=sink.name, start=sink.settings.start, fingerprint=sink.fingerprint) for sink in configured
        ]
        await sinks.register_all(self._resources.database, registrations)

    async def apply(self, configured: Sequence[ConfiguredSink]) -> None:
        """Applies a new list of sinks that is prepared. Unchanged sinks are restarted. Does not raise.

        A changed sink starts once it has stopped with its old settings.
        """
        wanted = {sink.name: sink for sink in configured}
        unchanged = {name for name, sink in wanted.items() if self._is_unchanged(sink)}
        for name in unchanged:
            self._dispatchers[name].restart(wanted[name])
        removed = {name: self._dispatchers.pop(name) for name in set(self._dispatchers) - unchanged}
        self._configured = wanted
        stopped = await asyncio.gather(*(one.stop() for one in removed.values()), return_exceptions=True)
        for name, error in zip(removed, stopped, strict=True):
            if error is not None:
                log.error("dispatcher failed", sink=name, error=type(error).__name__)
        for name in wanted.keys() - unchanged:
            self._dispatchers[name] = Dispatcher(wanted[name], self._resources)

    async def stop(self) -> None:
        """Finishes the publishes under way, settles them and releases the leases."""
        await asyncio.gather(*(dispatcher.stop() for dispatcher in self._dispatchers.values()))
        self._dispatchers = {}

    def _is_unchanged(self, configured: ConfiguredSink) -> bool:
        before = self._configured.get(configured.name)
        return before is not None and before.settings == configured.settings and configured.name in self._dispatchers

    def _wake(self) -> None:
        for dispatcher in self._dispatchers.values():
            dispatcher.wake()


class Dispatcher:
    """Publishes to one sink whenever this process holds the sink's lease."""

    def __init__(self, configured: ConfiguredSink, resources: Resources) -> None:
        self._name, self._resources = configured.name, resources
        self._configured = self._next = configured
        self._leasing = Leasing(
            resources.database,
            sinks.acquire_lease,
            sinks.renew_lease,
            sinks.release_lease,
            seconds=resources.lease_seconds,
            holder=resources.holder,
        )
        self._loop: PublishLoop | None = None
        self._stopped = False
        self._ending = asyncio.Event()
        self._failures = 0
        self._outages = Sampled(log, "the database is unavailable")
        self._is_probed = False
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """Reports that the log has grown."""
        if self._loop is not None:
            self._loop.wake()

    def restart(self, configured: ConfiguredSink) -> None:
        """Stops the sink and starts `configured` in its place: files that its settings name may have changed."""
        self._next = configured
        self._end_loop()

    def _end_loop(self) -> None:
        self._ending.set()
        if self._loop is not None:
            self._loop.interrupt()

    async def stop(self) -> None:
        """Finishes the publishes under way and releases the lease."""
        self._stopped = True
        self._end_loop()
        await self._task

    async def _run(self) -> None:
        """Acquires the lease whenever it is free and publishes under it, whatever fails, until `stop` is called."""
        while not self._stopped:
            self._ending.clear()
            self._configured = self._next
            try:
                await self._work()
                self._failures = 0
            except LeaseLost as error:
                log.warning("lease lost", sink=self._name, error=str(error))
                self._resources.observer.lease_lost(self._name)
            except StorageUnavailable as error:
                self._outages.add(sink=self._name, error=str(error))
            except PublishStuck as error:
                self._failures += 1
                log.error("restarting sink", sink=self._name, error=str(error))
            except _NotStarted as error:
                self._failures += 1
                log.warning("sink did not start", sink=self._name, error=str(error))
            except Exception:
                self._failures += 1
                log.exception("dispatcher failed", sink=self._name)
            await self._backoff()
        self._resources.observer.sink_left(self._name)

    async def _work(self) -> None:
        held = await self._leasing.acquire(name=self._name, fingerprint=self._configured.fingerprint)
        if held is None:
            # Another process reports the metrics of this sink now, also after a failed start or a lost lease here.
            self._resources.observer.sink_left(self._name)
            return
        try:
            # A sink may take as long to start as the lease lasts, so the lease is renewed meanwhile.
            async with self._leasing.renewed(held):
                await self._start_sink(held.lease)
                await self._probe()
            await self._run_loop(PublishLoop(self._configured, self._resources, held.lease, held.until), held.lease)
        finally:
            await self._release(held.lease)

    @property
    def _sink(self) -> Sink:
        return self._configured.sink

    async def _start_sink(self, lease: Lease) -> None:
        try:
            async with asyncio.timeout(_START_SECONDS):
                await call_sink(self._sink.start())
        except Exception as error:
            self._resources.observer.breaker_moved(self._name, BreakerState.OPEN)
            await self._store_error(lease, f"did not start: {error_name(error)}")
            await self._measure()
            raise _NotStarted(error_name(error)) from None

    async def _probe(self) -> None:
        """Logs at the first start of the sink that it cannot be reached: the first event may come much later."""
        if self._is_probed:
            return
        self._is_probed = True
        if (reason := await check_error(probe_of(self._sink))) is not None:
            log.warning("sink cannot be reached", sink=self._name, reason=reason)

    async def _store_error(self, lease: Lease, error: str) -> None:
        """Stores why nothing is published, for `receiver sinks list`."""
        now = self._resources.clock()
        health = replace(lease.health, down_since_at=lease.health.down_since_at or now, last_error=error)
        await retries.settle(self._resources.database, lease, Settlement(cursor=lease.cursor), health, now=now)

    async def _measure(self) -> None:
        """Reports the backlog of a sink whose publish loop has not begun."""
        view = await sinks.with_name(self._resources.database, self._name, {}, now=self._resources.clock())
        self._resources.observer.backlog_measured(
            self._name, view.lag, view.oldest_seconds or 0.0, view.retries, view.dead_letters
        )

    async def _run_loop(self, loop: PublishLoop, lease: Lease) -> None:
        self._loop = loop
        try:
            await loop.run(self._ending)
        except PublishStuck as error:
            await self._store_error(lease, str(error))
            raise
        finally:
            self._loop = None

    async def _release(self, lease: Lease) -> None:
        """Stops the sink and releases the lease, so that the next holder need not wait until it expires."""
        try:
            async with asyncio.timeout(_START_SECONDS):
                await call_sink(self._sink.stop())
        except Exception as error:
            log.warning("sink did not stop", sink=self._name, error=error_name(error))
        await self._leasing.release(lease)

    async def _backoff(self) -> None:
        """Waits before the next attempt: the poll interval, doubled after each failure in a row, up to a minute."""
        seconds = min(self._resources.poll_seconds * 2 ** max(0, self._failures - 1), _MAX_BACKOFF_SECONDS)
        await wait_for(self._ending, seconds)
