"""The processor: reads the journal from its cursor, and writes the events of the callbacks into status table and log.

It reads the journal as a sink reads the event log. The cursor moves in the transaction that writes status, events and
quarantine, so each callback is processed exactly once. One worker processes a database; another worker takes over when
the lease has lapsed.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, Protocol

import structlog

from receiver import failpoints
from receiver.domain.arrival import ImportDetector
from receiver.domain.delivery import FinalConflict
from receiver.domain.events import RECONCILED, REGISTERED, Event, Quarantine, Status
from receiver.errors import StorageUnavailable
from receiver.intake.fold import YIELD_EVERY, Folder, Parsed, TagChecker, parse
from receiver.logs import Sampled
from receiver.metrics import Processed
from receiver.monitoring import Failures
from receiver.providers import registry
from receiver.providers.fields import moment_text
from receiver.storage import journal, processor
from receiver.storage.bulk import Transaction
from receiver.storage.database import Database
from receiver.storage.journal import Entry, JournalReader
from receiver.storage.leases import Held, Leasing
from receiver.storage.processor import ProcessorLease, ProcessorLeaseLost, Progress
from receiver.tracing.recorder import Tracing
from receiver.waiting import wait_for

# The lease of a frozen worker lapses, and another worker notices, within 10 s.
LEASE_SECONDS: Final = 8.0
POLL_SECONDS: Final = 0.05
_STANDBY_SECONDS: Final = 1.0
_BATCH_CALLBACKS: Final = 1000
_BATCH_BYTES: Final = 4 * 1024 * 1024
_BATCH_EVENTS: Final = 2000
# Under load batches begin at least this far apart: many small ones slow down accepting more than they help readers. A
# few callbacks do not wait, and neither does a backlog.
_PACE_SECONDS: Final = 0.03
_FEW_CALLBACKS: Final = 16
_FIRST_BACKOFF_SECONDS: Final = 0.1
_MAX_BACKOFF_SECONDS: Final = 5.0
# Dropping repeats writes to the journal, and callbacks wait for that: it is done rarely, and few at a time.
_DROP_EVERY_SECONDS: Final = 5.0
_DROP_AT_ONCE: Final = 500

log = structlog.get_logger("receiver.processor")
_levels: Final = logging.getLogger("receiver.processor")


class ProcessorObserver(Protocol):
    """Receives the measurements of the processor."""

    def processed(self, batch: Processed) -> None: ...

    def stuck(self, is_stuck: bool) -> None: ...


class ProcessorStatus(StrEnum):
    """The state of a worker's processor: not started, waiting for another worker's lease, working, or failing."""

    STARTING = "starting"
    STANDBY = "standby"
    WORKING = "working"
    STUCK = "stuck"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorHealth:
    """The health of this worker's processor; if it is stuck, since when and why."""

    status: ProcessorStatus
    failing_since_at: datetime | None = None
    error: str | None = None


class Processor:
    """Processes the journal while this worker holds the lease of its database."""

    def __init__(
        self,
        database: Database,
        *,
        checker: TagChecker,
        conflict: FinalConflict,
        observer: ProcessorObserver,
        clock: Callable[[], datetime],
        on_commit: Callable[[], None] = lambda: None,
        lease_seconds: float = LEASE_SECONDS,
        poll_seconds: float = POLL_SECONDS,
        holder: str | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.checker = checker
        self.health = ProcessorHealth(status=ProcessorStatus.STARTING)
        self._database = database
        self._folder = Folder(database, conflict)
        self._observer = observer
        self._tracing = tracing
        self._clock = clock
        self._on_commit = on_commit
        self._poll_seconds = poll_seconds
        self._leasing = Leasing(
            database, processor.acquire, processor.renew, processor.release, seconds=lease_seconds, holder=holder
        )
        self._reader: JournalReader = journal.journal_reader(database)
        self._session_is_noted = False
        self._arrived = asyncio.Event()
        self._stopping = asyncio.Event()
        self._repeats: list[str] = []
        self._dropped_at = time.monotonic()
        self._failures = Failures(clock, first_seconds=_FIRST_BACKOFF_SECONDS, most_seconds=_MAX_BACKOFF_SECONDS)
        self._imports = ImportDetector()
        self._quarantined = Sampled(log, "callbacks are quarantined")
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Finishes the current batch and releases the lease."""
        self._stopping.set()
        self._arrived.set()
        if self._task is not None:
            await self._task
        await self._reader.close()

    def wake(self) -> None:
        """Wakes the processor because the journal has grown."""
        self._arrived.set()

    async def drain(self) -> bool:
        """Processes all pending callbacks; False if another worker has the lease."""
        async with self._leasing.hold() as held:
            if held is None:
                return False
            while (moved := await self.process_next(held.lease)) is not None:
                held.lease = moved
            await self._drop_repeats()
        return True

    # --- the lease ---

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                async with self._leasing.hold() as held:
                    if held is not None:
                        await self._work(held)
                    else:
                        self._set(ProcessorStatus.STANDBY)
                        await wait_for(self._stopping, _STANDBY_SECONDS)
            except ProcessorLeaseLost as error:
                log.warning("processor lease lost", error=str(error))
            except Exception as error:
                await self._failed(error, None)

    async def _work(self, held: Held[ProcessorLease]) -> None:
        """Processes batch after batch while the lease is ours."""
        self._session_is_noted = False
        while not self._stopping.is_set():
            held.check()
            started = time.monotonic()
            try:
                moved = await self.process_next(held.lease)
            except ProcessorLeaseLost:
                raise
            except Exception as error:
                await self._failed(error, held.lease)
                continue
            await self._recovered(held.lease)
            if moved is not None:
                callbacks = moved.cursor - held.lease.cursor
                held.lease = moved
                if _FEW_CALLBACKS < callbacks < _BATCH_CALLBACKS:
                    await wait_for(self._stopping, started + _PACE_SECONDS - time.monotonic())
                continue
            await self._drop_repeats_now_and_then()
            await self._wait_for_more()
        await self._drop_repeats()

    async def _wait_for_more(self) -> None:
        await wait_for(self._arrived, self._poll_seconds)
        self._arrived.clear()

    # --- batches ---

    async def process_next(self, lease: ProcessorLease) -> ProcessorLease | None:
        """Processes the next batch; returns the lease with its new cursor, or None if nothing is pending.

        Raises ProcessorLeaseLost, StorageUnavailable, or any other error that prevents the write; then nothing of the
        batch is written.
        """
        began_at = self._clock()
        entries = await self._reader.after(lease.cursor, limit=_BATCH_CALLBACKS, max_bytes=_BATCH_BYTES)
        if not entries:
            self._imports.caught_up(began_at)
            return None
        failpoints.reach("read")
        started = time.monotonic()
        await self._note_session(lease)
        batch = await self._parse(entries)
        sequences = [entry.sequence for entry in entries]

        async def finish(transaction: Transaction, folded: Sequence[Parsed]) -> None:
            rows = [row for parsed in folded for row in parsed.quarantine_rows()]
            await transaction.run([processor.add_to_quarantine(rows)])
            callbacks = [parsed.callback for parsed in folded if self._tells_of_the_provider(parsed)]
            progress = Progress(
                sequences=sequences[: len(folded)],
                repeats=sum(parsed.is_repeat for parsed in folded),
                last_callbacks={f"{one.api}/{one.route}": moment_text(one.received_at) for one in callbacks},
            )
            await processor.advance(self._database, transaction, lease, progress)

        folded = await self._folder.fold(batch, finish)
        self._repeats += [parsed.callback.id for parsed in folded if parsed.is_repeat]
        self._report(folded, time.monotonic() - started)
        if self._tracing is not None:
            await self._tracing.processed(folded, time.monotonic() - started)
        await self._drop_repeats_now_and_then()
        return ProcessorLease(epoch=lease.epoch, cursor=max(lease.cursor, sequences[len(folded) - 1]))

    async def _parse(self, entries: Sequence[Entry]) -> list[Parsed]:
        """Parses the first callbacks: as many as hold about `_BATCH_EVENTS` events, but at least one."""
        batch: list[Parsed] = []
        events = 0
        for place, entry in enumerate(entries, start=1):
            parsed = await parse(entry.callback, self.checker)
            batch.append(parsed)
            if place % YIELD_EVERY == 0:
                await asyncio.sleep(0)
            events += len(parsed.events) + parsed.reasons.total()
            if events >= _BATCH_EVENTS:
                break
        return batch

    def _report(self, folded: Sequence[Parsed], seconds: float) -> None:
        """Reports a committed batch. A listener or observer that raises must not make the batch look failed."""
        try:
            self._on_commit()
            counted = _counted(folded, seconds, self._clock(), self._is_import)
            self._observer.processed(counted)
            if _levels.isEnabledFor(logging.DEBUG):
                log.debug(
                    "a batch was processed",
                    callbacks=len(folded),
                    first=folded[0].callback.id,
                    last=folded[-1].callback.id,
                    events=counted.events.total(),
                    known_events=counted.duplicates,
                    results=dict(counted.results),
                    seconds=round(seconds, 4),
                )
            for parsed in folded:
                if parsed.is_quarantined:
                    reason = next(iter(parsed.reasons), Quarantine.TOO_LARGE)
                    self._quarantined.add(callback=parsed.callback.id, reason=str(reason))
        except Exception:
            log.exception("the processor's measurements were lost")

    def _tells_of_the_provider(self, parsed: Parsed) -> bool:
        """Whether a callback shows that the provider reaches this receiver now."""
        return parsed.callback.route not in (REGISTERED, RECONCILED) and not self._is_import(parsed)

    def _is_import(self, parsed: Parsed) -> bool:
        return self._imports.is_import(parsed.callback.received_at, self._clock())

    async def _note_session(self, lease: ProcessorLease) -> None:
        """Notes the session in a transaction of its own: a worker may freeze in the transaction of its first batch."""
        if not self._session_is_noted and not self._database.is_sqlite:
            async with self._database.appending() as transaction:
                await processor.note_session(transaction, lease)
            self._session_is_noted = True

    # --- repeats ---

    async def _drop_repeats_now_and_then(self) -> None:
        is_due = time.monotonic() - self._dropped_at >= _DROP_EVERY_SECONDS
        if self._repeats and (is_due or len(self._repeats) >= _DROP_AT_ONCE):
            await self._drop_repeats()

    async def _drop_repeats(self) -> None:
        """Removes callbacks without a new event from the journal; after a crash they stay until retention."""
        self._dropped_at = time.monotonic()
        while self._repeats:
            ids, self._repeats = self._repeats[:_DROP_AT_ONCE], self._repeats[_DROP_AT_ONCE:]
            try:
                await journal.remove(self._database, ids)
            except StorageUnavailable as error:
                log.warning("repeated callbacks stay in the journal", callbacks=len(ids), error=str(error))

    # --- health ---

    async def _failed(self, error: Exception, lease: ProcessorLease | None) -> None:
        """Records that the processor is stuck, and waits before the next try."""
        known = self._failures.error
        seconds = self._failures.add(error)
        if self._failures.line_is_due:
            log.error("callbacks cannot be processed", error=self._failures.error, tries=self._failures.number)
        # After an error the connection may be a new one, with another session.
        self._session_is_noted = False
        self._set(ProcessorStatus.STUCK, since=self._failures.since, error=self._failures.error)
        if lease is not None and self._failures.error != known:
            with suppress(Exception):  # the failure may be the database itself
                await processor.record_failure(self._database, lease, self._failures.since, self._failures.error)
        await wait_for(self._stopping, seconds)

    async def _recovered(self, lease: ProcessorLease) -> None:
        if self.health.status is ProcessorStatus.WORKING:
            return
        if self._failures.since is not None:
            with suppress(StorageUnavailable):
                await processor.record_failure(self._database, lease, None, None)
            log.info("callbacks are processed again", tries=self._failures.number)
            self._failures.end()
        self._set(ProcessorStatus.WORKING)

    def _set(self, status: ProcessorStatus, since: datetime | None = None, error: str | None = None) -> None:
        self.health = ProcessorHealth(status=status, failing_since_at=since, error=error)
        self._observer.stuck(status is ProcessorStatus.STUCK)


def _counted(batch: Sequence[Parsed], seconds: float, now: datetime, is_import: Callable[[Parsed], bool]) -> Processed:
    results: Counter[str] = Counter()
    events: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    failures: Counter[tuple[str, str]] = Counter()
    deliveries: Counter[str] = Counter()
    categories: Counter[tuple[str, str]] = Counter()
    lags: list[float] = []
    duplicates = 0
    for parsed in batch:
        results["quarantined" if parsed.is_quarantined else "duplicate" if parsed.is_repeat else "accepted"] += 1
        for event in parsed.new:
            if event.is_registration:
                continue
            events[event.status] += 1
            verdicts[event.tag_verdict] += 1
            if event.status is Status.FAILED:
                failures[event.api, _code_label(event)] += 1
        if not is_import(parsed):
            lags.append((now - parsed.callback.received_at).total_seconds())
        deliveries.update(parsed.reached)
        categories.update(parsed.categories)
        reasons.update(parsed.reasons)
        for rejected in parsed.too_large:
            reasons[rejected.reason] += 1
        duplicates += len(parsed.known)
    return Processed(
        results=results,
        events=events,
        verdicts=verdicts,
        duplicates=duplicates,
        reasons=reasons,
        seconds=seconds,
        lag_seconds=lags,
        failures=failures,
        deliveries=deliveries,
        categories=categories,
    )


def _code_label(event: Event) -> str:
    """The delivery code as a label, whose values are bounded: an unlisted code is `other`."""
    if event.code is None:
        return "none"
    return str(event.code) if registry.entry(event.api, event.code) is not None else "other"
