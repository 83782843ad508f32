"""Reprocessing callbacks of the journal, by id or by query, a page at a time."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from receiver.domain.callbacks import Callback
from receiver.domain.delivery import FinalConflict
from receiver.intake.fold import Folder, Parsed, parse
from receiver.intake.tag_checker import TagChecker
from receiver.models.queries import CallbackQuery
from receiver.storage import callbacks, processor
from receiver.storage.bulk import Transaction
from receiver.storage.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Reprocessed:
    """The result of reprocessing: callbacks processed, new events, and callbacks that stay in quarantine."""

    callbacks: int = 0
    events: int = 0
    quarantined: int = 0

    def __add__(self, other: "Reprocessed") -> "Reprocessed":
        return Reprocessed(
            callbacks=self.callbacks + other.callbacks,
            events=self.events + other.events,
            quarantined=self.quarantined + other.quarantined,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reprocessing:
    """Processes callbacks of the journal again with today's code and keys; a worker may run at the same time."""

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
            total += await self._page(page)
        return total

    async def _page(self, page: Sequence[Callback]) -> Reprocessed:
        folder, total = Folder(self.database, self.conflict), Reprocessed()
        batch = [await parse(callback, self.checker) for callback in page]

        async def finish(transaction: Transaction, folded: Sequence[Parsed]) -> None:
            now = transaction.spelling.time(self.clock())
            rows = [row for parsed in folded for row in parsed.quarantine_rows(now)]
            ids = [parsed.callback.id for parsed in folded]
            await transaction.run([processor.take_from_quarantine(ids), processor.add_to_quarantine(rows)])

        while batch:
            folded = await folder.fold(batch, finish)
            total += Reprocessed(
                callbacks=len(folded),
                events=sum(len(parsed.new) for parsed in folded),
                quarantined=sum(parsed.is_quarantined for parsed in folded),
            )
            batch = batch[len(folded) :]
        return total
