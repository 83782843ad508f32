"""The pruner: once an hour it removes old rows in batches, each a short transaction, with a pause after each.

The processor therefore hardly waits. Every batch except those of the journal holds the lock of the event log: it
changes rows that the processor may be about to write, and without the lock the two could deadlock.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

import structlog
from sqlalchemy import (
    ColumnElement,
    and_,
    delete,
    exists,
    func,
    not_,
    null,
    or_,
    select,
    tuple_,
    update,
)

from receiver.errors import StorageUnavailable
from receiver.models.alerts import ALERTS
from receiver.models.callbacks import CALLBACKS, PENDING, QUARANTINE
from receiver.models.messages import DELIVERIES, MESSAGES
from receiver.models.sinks import ATTEMPTS
from receiver.storage import alerts, journal, statistics_retention
from receiver.storage.database import Database
from receiver.storage.event_retention import (
    MESSAGE_KEY,
    Batch,
    Kind,
    LogAges,
    PruneTask,
    bound,
    count_events,
    holding_log,
    is_bound,
    prune_events,
)
from receiver.storage.journal import first_id

_EVERY_SECONDS: Final = 3600.0
# About as long as a batch takes, which leaves at least half of the database's time to the processor.
_PAUSE_SECONDS: Final = 0.02

log = structlog.get_logger("receiver.pruner")


class PrunerObserver(Protocol):
    """Receives the measurements of the pruner."""

    def pruned(self, rows: Mapping[str, int] | None) -> None:
        """A run has ended: the rows it removed, by kind; None: it failed."""
        ...


class Pruner:
    """Removes rows that are older than the age of their kind; a kind without an age stays.

    `sinks` are the names of the configured sinks.
    """

    def __init__(
        self,
        database: Database,
        ages: Mapping[str, timedelta],
        *,
        clock: Callable[[], datetime],
        sinks: Collection[str] = (),
        observer: PrunerObserver | None = None,
        every: float = _EVERY_SECONDS,
        limit: int = 500,
    ) -> None:
        self._database = database
        self._ages = ages
        self._clock = clock
        self.sinks = frozenset(sinks)
        self._observer = observer
        self._every = every
        self._limit = limit
        self._log_ages = LogAges()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Stops; a running batch is committed as a whole or not at all."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def prune(self) -> dict[Kind, int]:
        """Removes all old rows, and returns how many of each kind were removed."""
        removed = {task.kind: await self._prune(task) for task in self._tasks()}
        await self._sweep()
        return removed

    async def count(self) -> dict[Kind, int]:
        """How many rows of each kind `prune` would remove."""
        return {task.kind: await count(self._database, task) for task in self._tasks()}

    def _tasks(self) -> list[PruneTask]:
        now = self._clock()
        return [
            PruneTask(
                kind=kind,
                before=now - self._ages[_AGES.get(kind, kind)],
                now=now,
                sinks=self.sinks,
                limit=self._limit,
                ages=self._log_ages,
            )
            for kind in Kind
            if _AGES.get(kind, kind) in self._ages
        ]

    async def _prune(self, task: PruneTask) -> int:
        removed, place = 0, 0
        while True:
            batch = await prune(self._database, task, place)
            removed += batch.removed
            if batch.retries:
                log.warning("removed retries of sinks that are no longer configured", retries=batch.retries)
            if batch.next is None:
                return removed
            place = batch.next
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _sweep(self) -> None:
        """Removes cells of the statistics that count nothing."""
        for cells in await statistics_retention.cells_to_sweep(self._database, self._clock()):
            while await statistics_retention.sweep(self._database, *cells, self._limit) == self._limit:
                await asyncio.sleep(_PAUSE_SECONDS)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _work(self) -> None:
        while True:
            await self._prune_and_log()
            await asyncio.sleep(self._every)

    async def _prune_and_log(self) -> None:
        removed: dict[Kind, int] | None = None
        try:
            removed = await self.prune()
        except StorageUnavailable as error:
            log.warning("old rows could not be removed, will try again", error=str(error))
        except Exception:  # the run of the next hour may succeed
            log.exception("old rows could not be removed")
        else:
            if any(removed.values()):
                log.info("removed old rows", **removed)
        if self._observer is not None:
            rows = {str(kind): number for kind, number in removed.items()} if removed is not None else None
            self._observer.pruned(rows)


# The kinds that have the age of another.
_AGES: Final = {Kind.ALERTS: Kind.EVENTS}


async def prune(database: Database, task: PruneTask, place: int = 0) -> Batch:
    """Removes one batch, beginning at `place`: 0, then the `next` of the batch before."""
    return await _BATCHES[task.kind](database, task, place)


async def count(database: Database, task: PruneTask) -> int:
    """How many rows are to be removed."""
    if task.kind is Kind.EVENTS:
        return await count_events(database, task)
    table, condition = _PRUNABLE[task.kind]
    wanted = select(func.count()).select_from(table).where(condition(task))
    if task.kind is Kind.CALLBACKS:
        wanted = wanted.where(_is_processed(database))
    async with database.reading() as connection:
        return await connection.scalar(wanted) or 0


def _old_text(task: PruneTask) -> ColumnElement[bool]:
    # Both clocks: a message with a wrong date from Bandwidth still stays for its full time.
    old = and_(MESSAGES.c.listed_at < task.before, MESSAGES.c.first_received_at < task.before)
    return and_(old, or_(MESSAGES.c.text.is_not(None), MESSAGES.c.media.is_not(None)))


def _old_message(task: PruneTask) -> ColumnElement[bool]:
    return and_(MESSAGES.c.listed_at < task.before, MESSAGES.c.updated_at < task.before)


def _old_callback(task: PruneTask) -> ColumnElement[bool]:
    old: ColumnElement[bool] = CALLBACKS.c.id < first_id(task.before)
    return old


def _old_attempt(task: PruneTask) -> ColumnElement[bool]:
    old: ColumnElement[bool] = ATTEMPTS.c.ended_at < task.before
    return old


_PRUNABLE: Final[Mapping[Kind, tuple[Any, Callable[[PruneTask], ColumnElement[bool]]]]] = {
    Kind.TEXT: (MESSAGES, _old_text),
    Kind.ATTEMPTS: (ATTEMPTS, _old_attempt),
    Kind.CALLBACKS: (CALLBACKS, _old_callback),
    Kind.MESSAGES: (MESSAGES, _old_message),
    Kind.ALERTS: (ALERTS, lambda task: alerts.is_old(task.before, task.now)),
}


# --- messages ---


async def _prune_text(database: Database, task: PruneTask, _: int) -> Batch:
    found = select(*MESSAGE_KEY).where(_old_text(task)).limit(task.limit)
    forget = update(MESSAGES).where(tuple_(*MESSAGE_KEY).in_(found)).values(text=null(), media=null())
    async with holding_log(database) as connection:
        return _all_of(task, (await connection.execute(forget)).rowcount)


async def _prune_messages(database: Database, task: PruneTask, _: int) -> Batch:
    wanted = select(*MESSAGE_KEY).where(_old_message(task)).limit(task.limit)
    async with holding_log(database) as connection:
        found = {tuple(row) for row in await connection.execute(wanted)}
        keys = [bound(*key) for key in found]
        if keys:
            await statistics_retention.forget(database, connection, found)
            await connection.execute(_DROP_DELIVERIES, keys)
            await connection.execute(_DROP_MESSAGE, keys)
    return _all_of(task, len(keys))


_DROP_DELIVERIES: Final = delete(DELIVERIES).where(
    is_bound(DELIVERIES.c.api, DELIVERIES.c.direction, DELIVERIES.c.message_id)
)
_DROP_MESSAGE: Final = delete(MESSAGES).where(is_bound(*MESSAGE_KEY))


def _all_of(task: PruneTask, removed: int) -> Batch:
    return Batch(removed=removed, next=0 if removed >= task.limit else None)


# --- callbacks ---

# On SQLite no callback is accepted while a batch is removed, and freeing a body reads its pages.
_BATCH_BODIES: Final = 4 * 1024 * 1024


async def _prune_callbacks(database: Database, task: PruneTask, _: int) -> Batch:
    """Removes processed callbacks from the journal, then their rows in the quarantine.

    If the process ends in between, the next batch finds the quarantine rows that have lost their callback.
    """
    found = (
        select(CALLBACKS.c.sequence, func.length(CALLBACKS.c.body).label("size"))
        .where(_old_callback(task), _is_processed(database))
        .order_by(CALLBACKS.c.id)
        .limit(task.limit)
    )
    async with database.reading() as connection:
        rows = (await connection.execute(found)).all()
    sequences, room = [], _BATCH_BODIES
    for row in rows:
        sequences.append(row.sequence)
        room -= row.size
        if room <= 0:
            break
    if sequences:
        async with database.writing_journal() as connection:
            # By sequence: a callback that was meanwhile removed and imported again has a new one, and may be pending.
            await connection.execute(delete(CALLBACKS).where(CALLBACKS.c.sequence.in_(sequences)))
    quarantined = await _prune_quarantine(database, task)
    goes_on = len(sequences) < len(rows) or len(rows) >= task.limit or quarantined >= task.limit
    return Batch(removed=len(sequences), next=0 if goes_on else None)


def _is_processed(database: Database) -> ColumnElement[bool]:
    if database.is_sqlite:
        return not_(journal.is_pending(database))
    pending = PENDING.c.sequence == CALLBACKS.c.sequence
    return ~exists().where(pending, journal.is_pending(database))


async def _prune_quarantine(database: Database, task: PruneTask) -> int:
    """Removes the quarantine rows of old callbacks that the journal no longer has."""
    key = (QUARANTINE.c.callback_id, QUARANTINE.c.element)
    is_old = QUARANTINE.c.callback_id < first_id(task.before)
    has_callback = exists().where(CALLBACKS.c.id == QUARANTINE.c.callback_id)
    found = select(*key).where(is_old, ~has_callback).order_by(*key).limit(task.limit)
    async with database.reading() as connection:
        rows = [tuple(row) for row in await connection.execute(found)]
    if rows:
        async with holding_log(database) as connection:
            await connection.execute(delete(QUARANTINE).where(tuple_(*key).in_(rows), ~has_callback))
    return len(rows)


# --- attempts ---


async def _prune_attempts(database: Database, task: PruneTask, place: int) -> Batch:
    """Removes old attempts. Ids rise with time, so the first batch without an old attempt is the last one."""
    window = select(ATTEMPTS.c.id, ATTEMPTS.c.ended_at).where(ATTEMPTS.c.id > place)
    async with holding_log(database) as connection:
        rows = (await connection.execute(window.order_by(ATTEMPTS.c.id).limit(task.limit))).all()
        old = [row.id for row in rows if row.ended_at < task.before]
        if old:
            await connection.execute(delete(ATTEMPTS).where(ATTEMPTS.c.id.in_(old)))
    return Batch(removed=len(old), next=rows[-1].id if old and len(rows) == task.limit else None)


# --- alerts ---


async def _prune_alerts(database: Database, task: PruneTask, _: int) -> Batch:
    async with holding_log(database) as connection:
        return _all_of(task, await alerts.prune(connection, task.before, task.now, task.limit))


# --- all kinds ---

_BATCHES: Final[Mapping[Kind, Callable[[Database, PruneTask, int], Awaitable[Batch]]]] = {
    Kind.TEXT: _prune_text,
    Kind.ATTEMPTS: _prune_attempts,
    Kind.CALLBACKS: _prune_callbacks,
    Kind.EVENTS: prune_events,
    Kind.MESSAGES: _prune_messages,
    Kind.ALERTS: _prune_alerts,
}
