"""The status table made anew from the event log, message by message, beside a running intake."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import select

from receiver.domain.delivery import FinalConflict, fold
from receiver.domain.events import Api
from receiver.storage import event_log, status_table
from receiver.storage.appending import Transaction
from receiver.storage.database import Database
from receiver.storage.event_log import EVENTS
from receiver.storage.status_table import DELIVERIES, MESSAGES, OF_EITHER_API, Rows, rows_of

_BITE: Final = 100
# the log does not hold them: what the table has stays
_NOT_IN_THE_LOG: Final = ("text", "media")
_NOT_FOLDED: Final = "events_forgotten"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What a rebuild found: messages read, those left alone for want of events, and rows that were not right."""

    messages: int = 0
    forgotten: int = 0
    differing: int = 0

    def __add__(self, other: "Rebuilt") -> "Rebuilt":
        return Rebuilt(
            messages=self.messages + other.messages,
            forgotten=self.forgotten + other.forgotten,
            differing=self.differing + other.differing,
        )


class Rebuild:
    """Recomputes messages and deliveries from their events. `writes` False only tells what differs."""

    def __init__(self, database: Database, conflict: FinalConflict, *, writes: bool = True) -> None:
        self._database = database
        self._conflict = conflict
        self._writes = writes

    async def run(self) -> Rebuilt:
        """Goes through the whole log, so many messages at a time; intake goes on in between."""
        total, ids = Rebuilt(), await self._ids_after("")
        while ids:
            total += await self._rebuild(ids)
            await asyncio.sleep(0)
            ids = await self._ids_after(ids[-1])
        return total

    async def _ids_after(self, message_id: str) -> Sequence[str]:
        statement = select(EVENTS.c.message_id).where(EVENTS.c.message_id > message_id)
        async with self._database.reading() as connection:
            found = await connection.scalars(statement.distinct().order_by(EVENTS.c.message_id).limit(_BITE))
            return found.all()

    async def _rebuild(self, ids: Sequence[str]) -> Rebuilt:
        """One bite. The intake lock is held from the reading of the events to the writing of their rows."""
        async with self._database.appending() as transaction:
            known = await event_log.of_messages(transaction, ids)
            existing = await status_table.existing(transaction, ids)
            forgotten = {key for key, events_forgotten in existing.items() if events_forgotten}
            stored = await _stored(transaction, ids)
            wanted = {
                key: rows_of(fold(events, self._conflict)) for key, events in known.items() if key not in forgotten
            }
            changes = [(_comparable(stored.get(key), rows), rows) for key, rows in wanted.items()]
            differing = sum(_differing(before, after) for before, after in changes)
            if differing and self._writes:
                await transaction.run(status_table.write(changes))
        return Rebuilt(messages=len(wanted), forgotten=len(forgotten & known.keys()), differing=differing)


async def _stored(transaction: Transaction, ids: Sequence[str]) -> dict[tuple[Api, str], Rows]:
    """The rows that messages with these ids have now; a message that is missing has an empty one."""
    found: dict[tuple[Api, str], Rows] = defaultdict(lambda: Rows({}, {}))
    folded = [column for column in MESSAGES.columns if column.name != _NOT_FOLDED]
    for row in await transaction.select(folded, f"{OF_EITHER_API} AND id {{among}}", ids):
        found[Api(row.api), row.id].message.update(row._asdict())
    for row in await transaction.select(list(DELIVERIES.columns), f"{OF_EITHER_API} AND message_id {{among}}", ids):
        found[Api(row.api), row.message_id].deliveries[row.recipient_key] = row._asdict()
    return found


def _comparable(stored: Rows | None, rows: Rows) -> Rows | None:
    """Stored rows with what the log does not hold taken from the rows made of it."""
    if stored is None:
        return None
    absent: dict[str, Any] = {name: rows.message[name] for name in _NOT_IN_THE_LOG}
    return replace(stored, message={**stored.message, **absent})


def _differing(before: Rows | None, after: Rows) -> int:
    """How many rows are missing, too many, or other than they should be."""
    old = before.deliveries if before else {}
    keys = old.keys() | after.deliveries.keys()
    deliveries = sum(old.get(key) != after.deliveries.get(key) for key in keys)
    return deliveries + (before is None or before.message != after.message)
