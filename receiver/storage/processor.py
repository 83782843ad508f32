"""The state of the processor: its lease and cursor, its backlog, and the quarantine.

One worker at a time processes a database. Its lease has an epoch that each of its transactions checks: a worker that
was suspended beyond its lease can no longer change anything.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Select, and_, func, literal, literal_column, select
from sqlalchemy import text as sql

from receiver.domain.events import Quarantine, Rejected
from receiver.errors import ReceiverError
from receiver.explanation.installation import ProcessorRecord
from receiver.models.callbacks import CALLBACKS, PENDING, PROCESSOR, QUARANTINE
from receiver.models.columns import json_text
from receiver.storage import journal, leases
from receiver.storage.bulk import ExecuteMany, InsertMany, Step, Transaction
from receiver.storage.database import Database

# The quarantine lists at most this many rejected elements of a callback.
MAX_LISTED: Final = 100


class ProcessorLeaseLost(ReceiverError):
    """Another worker processes this database; nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorLease:
    """The right to process the journal; `epoch` fences off the previous holder."""

    epoch: int
    cursor: int


async def acquire(database: Database, *, holder: str, seconds: float, take_over: bool = False) -> ProcessorLease | None:
    """Takes the lease if no other worker holds it, by the database's clock; with `take_over` even if one does.

    On PostgreSQL it terminates the session of the holder whose lease lapsed: if that process is frozen in a
    transaction, it would hold the lock of the event log for ever.
    """
    statement = leases.taken(database, PROCESSOR, holder=holder, seconds=seconds, take_over=take_over)
    async with database.writing() as connection:
        if not database.is_sqlite:
            free = leases.is_free(database, PROCESSOR, holder, take_over=take_over)
            await connection.execute(_END_SESSION.where(free))
        row = (await connection.execute(statement.returning(PROCESSOR.c.epoch, PROCESSOR.c.cursor))).one_or_none()
    return ProcessorLease(epoch=row.epoch, cursor=row.cursor) if row is not None else None


# A session that began after the lease ended is another one that reuses the process number, and a transaction that began
# after it is one of somebody else to whom a connection pooler gave the session.
_END_SESSION: Final = select(func.pg_terminate_backend(literal_column("a.pid"))).select_from(
    PROCESSOR.join(
        sql("pg_stat_activity AS a"),
        sql(
            "a.pid = processor.backend AND a.usename = current_user AND a.backend_start < processor.lease_until "
            "AND a.xact_start < processor.lease_until"
        ),
    )
)


async def note_session(transaction: Transaction, lease: ProcessorLease) -> None:
    """Records the PostgreSQL session of this transaction, which a successor terminates if this worker freezes."""
    await transaction.execute("UPDATE processor SET backend = pg_backend_pid() WHERE epoch = ?", (lease.epoch,))


async def renew(database: Database, lease: ProcessorLease, *, seconds: float) -> None:
    """Extends the lease; raises ProcessorLeaseLost if another worker has it."""
    await _update(database, lease, lease_until=database.clock(seconds))


async def release(database: Database, lease: ProcessorLease) -> None:
    """Releases the lease; does nothing if it is lost already."""
    await leases.release(database, PROCESSOR, epoch=lease.epoch, backend=None)


async def record_failure(database: Database, lease: ProcessorLease, since: datetime | None, error: str | None) -> None:
    """Records since when the processor is stuck and why; None: it is not stuck."""
    await _update(database, lease, failing_since_at=since, last_error=error)


async def _update(database: Database, lease: ProcessorLease, **values: Any) -> None:
    async with database.writing() as connection:
        if not await leases.hold(connection, PROCESSOR, epoch=lease.epoch, **values):
            raise ProcessorLeaseLost("another worker processes this database")


async def state(database: Database) -> ProcessorRecord:
    """The state of the processor in the database."""
    held = and_(PROCESSOR.c.lease_until.is_not(None), PROCESSOR.c.lease_until > database.clock())
    async with database.reading() as connection:
        row = (await connection.execute(select(PROCESSOR, held.label("is_held")))).one()
    return ProcessorRecord(
        lease_is_held=bool(row.is_held),
        failing_since_at=row.failing_since_at,
        last_error=row.last_error,
        callbacks=row.callbacks,
        repeats=row.repeats,
        last_callbacks=row.last_callbacks,
    )


# --- inside the appending transaction ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress by one batch: the processed sequences in rising order, the number of repeats, the last callbacks.

    `last_callbacks` are times of receipt by version and route.
    """

    sequences: Sequence[int]
    repeats: int
    last_callbacks: Mapping[str, str]


async def advance(database: Database, transaction: Transaction, lease: ProcessorLease, progress: Progress) -> None:
    """Moves the cursor, in the transaction that writes the events of the callbacks.

    Raises ProcessorLeaseLost if another worker has the lease; the transaction must then be rolled back.
    """
    times = json_text(dict(progress.last_callbacks))
    values = (progress.sequences[-1], len(progress.sequences), progress.repeats, times, lease.epoch)
    if not await transaction.execute(_ADVANCE[database.is_sqlite], values):
        raise ProcessorLeaseLost("another worker processes this database")
    if not database.is_sqlite:
        await transaction.execute(
            "DELETE FROM pending_callbacks WHERE sequence = ANY(?::bigint[])", (list(progress.sequences),)
        )


_ADVANCE: Final = {
    True: "UPDATE processor SET cursor = max(cursor, ?), callbacks = callbacks + ?, repeats = repeats + ?, "
    "last_callbacks = json_patch(last_callbacks, ?), failing_since_at = NULL, last_error = NULL WHERE epoch = ?",
    False: "UPDATE processor SET cursor = greatest(cursor, ?), callbacks = callbacks + ?, repeats = repeats + ?, "
    "last_callbacks = last_callbacks || (?::text)::jsonb, failing_since_at = NULL, last_error = NULL WHERE epoch = ?",
}


def quarantine(
    callback_id: str, rejected: Sequence[Rejected], reasons: Mapping[Quarantine, int], reprocessed_at: Any = None
) -> list[tuple[Any, ...]]:
    """The quarantine rows of a callback: the first of its rejected elements; `reasons` counts all of them.

    The last row of each reason stands for the elements of that reason that are not listed, the last row of all for
    those whose reason is not listed, and it says how many elements follow.
    """
    listed = rejected[:MAX_LISTED]
    if not listed:
        return []
    elements = [1] * len(listed)
    last_of = {element.reason: place for place, element in enumerate(listed)}
    listed_reasons = Counter(element.reason for element in listed)
    for reason, number in reasons.items():
        elements[last_of.get(reason, len(listed) - 1)] += number - listed_reasons[reason]
    details = [element.detail for element in listed]
    more = sum(reasons.values()) - len(listed)
    if more:
        details[-1] += f"; {more:,} further elements could not be used either"
    return [
        (callback_id, element.index, element.reason, detail, element.message_id, reprocessed_at, number)
        for element, detail, number in zip(listed, details, elements, strict=True)
    ]


_QUARANTINE: Final = ("callback_id", "element", "reason", "detail", "message_id", "reprocessed_at", "elements")


def add_to_quarantine(rows: Sequence[tuple[Any, ...]]) -> Step:
    # A callback may have its rows already: it may be processed after it was reprocessed.
    return InsertMany(QUARANTINE, _QUARANTINE, rows, "ON CONFLICT (callback_id, element) DO NOTHING")


def take_from_quarantine(callback_ids: Sequence[str]) -> Step:
    return ExecuteMany("DELETE FROM quarantine WHERE callback_id = ?", [(id_,) for id_ in callback_ids])


_POLL_SECONDS: Final = 0.015
# PostgreSQL may commit a larger sequence first: larger by as much as is appended during the seconds that an append may
# take. Further back nothing is pending, and during a long transaction elsewhere in the cluster an index scan would have
# to pass the many removed entries there.
_LATE_SEQUENCES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Backlog:
    """The pending callbacks at one moment: the first and the last sequence (0: nothing is pending).

    `processed` is the number of callbacks processed ever; while it rises, the processor works.
    """

    first: int
    last: int
    processed: int

    def holds(self, end: int) -> bool:
        """Whether anything up to a sequence is pending."""
        return 0 < self.first <= end


async def backlog(database: Database) -> Backlog:
    """The backlog now, from one query whose parts each search for a single row."""
    async with database.reading() as connection:
        row = (await connection.execute(_BACKLOG_OF_FILE if database.is_sqlite else _BACKLOG_OF_TABLE)).one()
    return Backlog(first=row[0], last=row[1], processed=row[2])


def _bounds_of_file() -> Select[Any]:
    last = select(func.max(CALLBACKS.c.sequence)).scalar_subquery()
    is_left = last > PROCESSOR.c.cursor
    # No row needs to have this first sequence: it only has to be after the cursor.
    first = func.iif(is_left, PROCESSOR.c.cursor + 1, 0)
    return select(first, func.iif(is_left, last, 0), PROCESSOR.c.callbacks)


def _bounds_of_table() -> Select[Any]:
    sequence = PENDING.c.sequence
    near = select(sequence).where(sequence > PROCESSOR.c.cursor - _LATE_SEQUENCES).limit(1).correlate(PROCESSOR)
    first = near.order_by(sequence).scalar_subquery()
    last = near.order_by(sequence.desc()).scalar_subquery()
    return select(func.coalesce(first, literal(0)), func.coalesce(last, literal(0)), PROCESSOR.c.callbacks)


_BACKLOG_OF_FILE: Final = _bounds_of_file()
_BACKLOG_OF_TABLE: Final = _bounds_of_table()


class Settling:
    """Waits until the callbacks accepted before are processed; concurrent waits share the polling.

    After a wait during which nothing was processed, it does not wait again until something is: a stuck processor must
    not delay every reader by a second.
    """

    def __init__(
        self, database: Database, *, seconds: float = 1.0, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._seconds = seconds
        self._monotonic = monotonic
        self._stuck_at: int | None = None
        self._turn = asyncio.Lock()
        self._seen: Backlog | None = None
        self._seen_at = float("-inf")

    async def wait(self, seconds: float | None = None) -> int:
        """Waits until the pending callbacks are processed or the time is over; returns how many are left.

        Without `seconds` it is the time of the constructor. Raises StorageUnavailable.
        """
        before = now = await self._look()
        seconds = self._seconds if seconds is None else seconds
        end, deadline = before.last, self._monotonic() + seconds
        while now.holds(end):
            if now.processed == self._stuck_at or self._monotonic() >= deadline:
                # In a shorter time a processor need not have ended a batch.
                is_stuck = seconds >= self._seconds and now.processed == before.processed
                self._stuck_at = now.processed if is_stuck or now.processed == self._stuck_at else None
                return await self._left(end)
            await asyncio.sleep(_POLL_SECONDS)
            now = await self._look()
        return 0

    async def _look(self) -> Backlog:
        """The backlog, read after this call began. Of concurrent callers, one queries the database for all."""
        called_at = self._monotonic()
        async with self._turn:
            if self._seen is None or self._seen_at <= called_at:
                began_at = self._monotonic()
                self._seen = await backlog(self._database)
                self._seen_at = began_at
            return self._seen

    async def _left(self, end: int) -> int:
        async with self._database.reading() as connection:
            return await journal.pending(self._database, connection, until=end)


async def settle(database: Database, *, seconds: float = 1.0, monotonic: Callable[[], float] = time.monotonic) -> int:
    """Waits once, as `Settling` does, for the pending callbacks; returns how many are left."""
    return await Settling(database, seconds=seconds, monotonic=monotonic).wait()
