"""Rereading: kept callbacks are taken in once more, with today's code and keys."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from receiver.domain.callbacks import Callback
from receiver.intake import Intake, Receipt
from receiver.storage import kept
from receiver.storage.database import Database
from receiver.storage.kept import Selection

_BITE: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Reread:
    """What rereading gave: callbacks read, new events among them, and callbacks in which something is still unread."""

    callbacks: int = 0
    events: int = 0
    quarantined: int = 0

    def __add__(self, other: "Reread") -> "Reread":
        return Reread(
            callbacks=self.callbacks + other.callbacks,
            events=self.events + other.events,
            quarantined=self.quarantined + other.quarantined,
        )


async def reread_ids(database: Database, intake: Intake, ids: Sequence[str]) -> Reread:
    """Reads the callbacks with these ids again, oldest first; one that is not kept is passed over."""
    total = Reread()
    for start in range(0, len(ids), _BITE):
        total += await _reread(intake, await kept.with_ids(database, ids[start : start + _BITE]))
    return total


async def reread_selected(database: Database, intake: Intake, selection: Selection) -> Reread:
    """Reads all callbacks of a selection again, oldest first."""
    total = Reread()
    async for page in kept.pages(database, selection, size=_BITE):
        total += await _reread(intake, page)
    return total


async def _reread(intake: Intake, callbacks: Iterable[Callback]) -> Reread:
    receipts = await asyncio.gather(*(intake.accept(callback, reread=True) for callback in callbacks))
    return _summed(receipts)


def _summed(receipts: Sequence[Receipt]) -> Reread:
    return Reread(
        callbacks=len(receipts),
        events=sum(receipt.events for receipt in receipts),
        quarantined=sum(bool(receipt.unread) for receipt in receipts),
    )
