"""Brings events from the log to the sinks: one dispatcher for each, and at any time one process that works for it."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Final
from uuid import uuid4

import structlog

from receiver.dispatch.publish_loop import PublishLoop, PublishStuck
from receiver.dispatch.reader import Resources, Wakeup
from receiver.dispatch.sink_health import DispatchObserver
from receiver.domain.retry import BreakerState
from receiver.domain.window import Settlement
from receiver.errors import ReceiverError, StorageUnavailable
from receiver.sinks.base import Sink
from receiver.sinks.concurrency import contained, named
from receiver.sinks.registry import ConfiguredSink
from receiver.storage import retries, sinks
from receiver.storage.database import Database
from receiver.storage.sinks import Lease, LeaseLost

# A sink whose holder died is silent for so long; a fifth of it is between two renewals.
LEASE_SECONDS: Final = 15.0
POLL_SECONDS: Final = 1.0
_LONGEST_REST_SECONDS: Final = 60.0
_START_SECONDS: Final = 15.0

log = structlog.get_logger("receiver.dispatcher")


class _NotStarted(ReceiverError):
    """The sink could not get ready."""


class Dispatchers:
    """The dispatchers of all sinks of this process."""

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
    ) -> None:
        self._resources = Resources(
            database=database,
            observer=observer,
            clock=clock,
            monotonic=time.monotonic,
            random_fraction=random_fraction,
            lease_seconds=lease_seconds,
            poll_seconds=poll_seconds,
            holder=holder,
        )
        self._configured = {one.name: one for one in configured}
        self._dispatchers: dict[str, Dispatcher] = {}
        wakeup.listen(self._wake)

    async def start(self) -> None:
        """Makes the sinks known, so that a new one misses nothing from here on, and begins to work."""
        for one in self._configured.values():
            await self._register(one)
            self._dispatchers[one.name] = Dispatcher(one, self._resources)

    async def reload(self, configured: Sequence[ConfiguredSink]) -> None:
        """Works for other sinks, or with other settings, from now on; a sink that stays as it was is started anew.

        Raises StorageUnavailable, and changes nothing, where the sinks cannot be made known.
        """
        wanted = {one.name: one for one in configured}
        kept = {name for name, one in wanted.items() if self._is_as_before(one)}
        others = wanted.keys() - kept
        for name in others:
            await self._register(wanted[name])
        for name in kept:
            self._dispatchers[name].refresh(wanted[name])
        left = [self._dispatchers.pop(name) for name in set(self._dispatchers) - kept]
        self._configured = wanted
        await asyncio.gather(*(dispatcher.stop() for dispatcher in left))
        for name in others:
            self._dispatchers[name] = Dispatcher(wanted[name], self._resources)

    async def stop(self) -> None:
        """Finishes what is under way, settles it and gives the leases back."""
        await asyncio.gather(*(dispatcher.stop() for dispatcher in self._dispatchers.values()))
        self._dispatchers = {}

    async def _register(self, one: ConfiguredSink) -> None:
        database = self._resources.database
        await sinks.register(database, one.name, start=one.settings.start, fingerprint=one.fingerprint)

    def _is_as_before(self, one: ConfiguredSink) -> bool:
        before = self._configured.get(one.name)
        return before is not None and before.settings == one.settings and one.name in self._dispatchers

    def _wake(self) -> None:
        for dispatcher in self._dispatchers.values():
            dispatcher.wake()


class Dispatcher:
    """Works for one sink whenever this process holds its lease."""

    def __init__(self, configured: ConfiguredSink, resources: Resources) -> None:
        self._name, self._resources = configured.name, resources
        self._configured = self._fresh = configured
        self._holder = resources.holder or uuid4().hex
        # the embedded database has one process, so a lease found at the start is that of a dead one
        self._take_over = resources.database.is_sqlite
        self._deadline = float("-inf")
        self._shift: PublishLoop | None = None
        self._stopped = False
        self._ending = asyncio.Event()
        self._mishaps = 0
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """Says that the log has grown."""
        if self._shift is not None:
            self._shift.wake()

    def refresh(self, configured: ConfiguredSink) -> None:
        """Lets go of the sink and takes it up as it is made now: files that its settings name may have changed."""
        self._fresh = configured
        self._end_shift()

    def _end_shift(self) -> None:
        self._ending.set()
        if self._shift is not None:
            self._shift.hurry()

    async def stop(self) -> None:
        """Finishes what is under way."""
        self._stopped = True
        self._end_shift()
        await self._task

    async def _run(self) -> None:
        """Takes the lease whenever it is free and works under it, whatever happens, until told to stop."""
        while not self._stopped:
            self._ending.clear()
            self._configured = self._fresh
            try:
                await self._work()
                self._mishaps = 0
            except LeaseLost as error:
                log.warning("lease lost", sink=self._name, error=str(error))
                self._resources.observer.lease_lost(self._name)
            except StorageUnavailable as error:
                log.warning("the database is unavailable", sink=self._name, error=str(error))
            except PublishStuck as error:
                self._mishaps += 1
                log.error("sink is taken up anew", sink=self._name, error=str(error))
            except _NotStarted as error:
                self._mishaps += 1
                log.warning("sink did not start", sink=self._name, error=str(error))
            except Exception:
                self._mishaps += 1
                log.exception("dispatcher failed", sink=self._name)
            await self._rest()
        self._resources.observer.sink_left(self._name)

    async def _work(self) -> None:
        asked_at, seconds = self._resources.monotonic(), self._resources.lease_seconds
        lease = await sinks.acquire_lease(
            self._resources.database,
            self._name,
            holder=self._holder,
            fingerprint=self._configured.fingerprint,
            seconds=seconds,
            take_over=self._take_over,
        )
        if lease is None:
            # what was told of a sink that did not start, or until the lease was lost, is now for another to tell
            self._resources.observer.sink_left(self._name)
            return
        self._take_over = False
        self._deadline = asked_at + seconds
        try:
            # A sink may take as long to start as the lease lasts.
            renewing = asyncio.create_task(self._renew(lease))
            try:
                await self._start_sink(lease)
            finally:
                renewing.cancel()
                await asyncio.gather(renewing, return_exceptions=True)
            await self._hold(PublishLoop(self._configured, self._resources, lease, self._deadline), lease)
        finally:
            await self._let_go(lease)

    async def _renew(self, lease: Lease) -> None:
        """Renews the lease until it is lost. The deadline counts from before the renewal was sent."""
        seconds = self._resources.lease_seconds
        while True:
            await asyncio.sleep(seconds / 5)
            sent_at = self._resources.monotonic()
            with suppress(StorageUnavailable):
                await sinks.renew_lease(self._resources.database, lease, seconds=seconds)
                self._deadline = sent_at + seconds

    @property
    def _sink(self) -> Sink:
        return self._configured.sink

    async def _start_sink(self, lease: Lease) -> None:
        try:
            async with asyncio.timeout(_START_SECONDS):
                await contained(self._sink.start())
        except Exception as error:
            self._resources.observer.breaker_moved(self._name, BreakerState.OPEN)
            await self._record(lease, f"did not start: {named(error)}")
            await self._measure()
            raise _NotStarted(named(error)) from None

    async def _record(self, lease: Lease, complaint: str) -> None:
        """Writes down why nothing is published."""
        now = self._resources.clock()
        health = replace(lease.health, down_since_at=lease.health.down_since_at or now, last_error=complaint)
        await retries.settle(self._resources.database, lease, Settlement(cursor=lease.cursor), health, now=now)

    async def _measure(self) -> None:
        """Tells what waits although no shift has begun."""
        view = await sinks.one(self._resources.database, self._name, {}, now=self._resources.clock())
        self._resources.observer.backlog_measured(
            self._name, view.lag, view.oldest_seconds or 0.0, view.retries, view.dead_letters
        )

    async def _hold(self, shift: PublishLoop, lease: Lease) -> None:
        self._shift = shift
        try:
            await shift.run(self._ending)
        except PublishStuck as error:
            await self._record(lease, str(error))
            raise
        finally:
            self._shift = None

    async def _let_go(self, lease: Lease) -> None:
        """Stops the sink and gives the lease back, so that the next holder need not wait for its end."""
        try:
            async with asyncio.timeout(_START_SECONDS):
                await contained(self._sink.stop())
        except Exception as error:
            log.warning("sink did not stop", sink=self._name, error=named(error))
        with suppress(StorageUnavailable):
            await sinks.release_lease(self._resources.database, lease)

    async def _rest(self) -> None:
        """Waits a while before the next try, longer after each mishap."""
        seconds = min(self._resources.poll_seconds * 2 ** max(0, self._mishaps - 1), _LONGEST_REST_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()
