"""Waiting for the processor to pass what was accepted: a reader then sees what Bandwidth was answered 200 for."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Select, func, literal, select

from receiver.storage import journal
from receiver.storage.database import Database
from receiver.storage.journal import CALLBACKS, PENDING, PROCESSOR

_POLL_SECONDS: Final = 0.015
# PostgreSQL commits a larger sequence first, now and then: by as much as is appended in the seconds that an append may
# take. Further back nothing is pending, and beside a long transaction elsewhere in the cluster the entries that were
# removed are many and still to be read over.
_LATE_SEQUENCES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Backlog:
    """The pending callbacks at one moment: the first and the last sequence (0: nothing is pending).

    `processed` is how many callbacks were processed ever; while it rises, the processor works.
    """

    first: int
    last: int
    processed: int

    def holds(self, end: int) -> bool:
        """Whether anything up to a sequence is pending."""
        return 0 < self.first <= end


async def backlog(database: Database) -> Backlog:
    """What is pending now, by one query of which every part is the search for one row."""
    async with database.reading() as connection:
        row = (await connection.execute(_BACKLOG_OF_FILE if database.is_sqlite else _BACKLOG_OF_TABLE)).one()
    return Backlog(first=row[0], last=row[1], processed=row[2])


def _bounds_of_file() -> Select[Any]:
    last = select(func.max(CALLBACKS.c.sequence)).scalar_subquery()
    is_left = last > PROCESSOR.c.cursor
    # the first one need not be there: what matters is that it is behind the cursor
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
    """Waits until all is processed that was accepted before; many may wait at the same time, and share the polling.

    After a wait in vain, during which nothing was processed at all, it waits no more until something is: a processor
    that is stuck must not cost every reader a second.
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

    async def wait(self) -> int:
        """Waits until what is pending now is processed, or the time is over; returns how many callbacks are left.

        Raises StorageUnavailable.
        """
        before = now = await self._look()
        end, deadline = before.last, self._monotonic() + self._seconds
        while now.holds(end):
            if now.processed == self._stuck_at or self._monotonic() >= deadline:
                self._stuck_at = now.processed if now.processed in (before.processed, self._stuck_at) else None
                return await self._left(end)
            await asyncio.sleep(_POLL_SECONDS)
            now = await self._look()
        return 0

    async def _look(self) -> Backlog:
        """The backlog, read after this was called. Of all who call it meanwhile only one asks the database."""
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
    """Waits once, as `Settling` does, for what is pending now; returns how many callbacks are left."""
    return await Settling(database, seconds=seconds, monotonic=monotonic).wait()
