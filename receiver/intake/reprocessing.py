"""Reprocessing callbacks of the journal, by id or by query, a page at a time."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from receiver.domain.callbacks import Callback
from receiver.domain.delivery import FinalConflict
from receiver.intake import processor
from receiver.intake.processor import Reprocessed
from receiver.intake.tag_checker import TagChecker
from receiver.models.queries import CallbackQuery
from receiver.storage import callbacks
from receiver.storage.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Reprocessing:
    """Reprocesses callbacks with today's code and keys; a worker may run at the same time."""

    database: Database
    checker: TagChecker
    conflict: FinalConflict
    clock: Callable[[], datetime]

    async def ids(self, ids: Sequence[str]) -> Reprocessed:
        """Reprocesses the callbacks with these ids, oldest first; an id that the journal does not have is skipped."""
        return await self._all(callbacks.pages_with_ids(self.database, ids))

    async def query(self, query: CallbackQuery) -> Reprocessed:
        """Reprocesses all callbacks that match a query, oldest first."""
        return await self._all(callbacks.pages(self.database, query))

    async def _all(self, pages: AsyncIterator[list[Callback]]) -> Reprocessed:
        total = Reprocessed()
        async for page in pages:
            total += await processor.reprocess(
                self.database, page, checker=self.checker, conflict=self.conflict, clock=self.clock
            )
        return total
