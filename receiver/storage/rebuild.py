"""Recomputes the status table from the event log, message by message, also while a processor runs."""

import asyncio
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import func, select

from receiver.domain.delivery import FinalConflict
from receiver.domain.events import Api, Direction, MessageKey
from receiver.domain.message import fold
from receiver.models.columns import Json, UTCDateTime, json_text
from receiver.models.events import EVENTS
from receiver.models.messages import DELIVERIES, MESSAGES
from receiver.storage import event_log, messages, statistics_cells
from receiver.storage.bulk import Transaction
from receiver.storage.database import Database
from receiver.storage.messages import DELIVERY_COLUMNS, MESSAGE_COLUMNS, Rows, _RowValues, rows_of
from receiver.storage.statistics_rebuild import Recount

# A batch holds the lock of the event log. It has at most this many message ids, and events unless one id has more.
_BATCH_IDS: Final = 100
_BATCH_EVENTS: Final = 10_000
# The log does not hold these columns: the values of the table stay.
_NOT_IN_THE_LOG: Final = tuple(MESSAGE_COLUMNS.index(name) for name in ("text", "media"))
_MESSAGE_KEY: Final = itemgetter(*map(MESSAGE_COLUMNS.index, ("api", "direction", "id")))
_DELIVERY_KEY: Final = itemgetter(*map(DELIVERY_COLUMNS.index, ("api", "direction", "message_id")))
_RECIPIENT_KEY: Final = DELIVERY_COLUMNS.index("recipient_key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """The result of a rebuild: messages read, messages skipped because retention removed events, and wrong rows.

    `statistics` are the cells of the statistics that did not count the rows.
    """

    messages: int = 0
    forgotten: int = 0
    differing: int = 0
    statistics: int = 0

    def __add__(self, other: "Rebuilt") -> "Rebuilt":
        return Rebuilt(
            messages=self.messages + other.messages,
            forgotten=self.forgotten + other.forgotten,
            differing=self.differing + other.differing,
            statistics=self.statistics + other.statistics,
        )


class Rebuild:
    """Recomputes messages and deliveries from their events. With `writes` False it only counts the wrong rows.

    A message that the first version merged from inbound and outbound events is split: its row becomes that of the
    inbound message, and the outbound message gets a row. No message row is removed: a message without events in the log
    may have lost them to retention, and both parts of a split message have events of their own.
    """

    def __init__(self, database: Database, conflict: FinalConflict, *, writes: bool = True) -> None:
        self._database = database
        self._conflict = conflict
        self._writes = writes

    async def run(self) -> Rebuilt:
        """Rebuilds all messages in batches, then the statistics; the processor runs in between."""
        total, ids = Rebuilt(), await self._ids_after("")
        while ids:
            total += await self._rebuild(ids)
            await asyncio.sleep(0)
            ids = await self._ids_after(ids[-1])
        return total + Rebuilt(statistics=await Recount(self._database, writes=self._writes).run())

    async def _ids_after(self, message_id: str) -> Sequence[str]:
        """The next message ids: as many as have about `_BATCH_EVENTS` events, but at least one."""
        statement = (
            select(EVENTS.c.message_id, func.count())
            .where(EVENTS.c.message_id > message_id)
            .group_by(EVENTS.c.message_id)
            .order_by(EVENTS.c.message_id)
            .limit(_BATCH_IDS)
        )
        async with self._database.reading() as connection:
            found = (await connection.execute(statement)).all()
        ids: list[str] = []
        events = 0
        for id_, number in found:
            events += number
            if ids and events > _BATCH_EVENTS:
                break
            ids.append(id_)
        return ids

    async def _rebuild(self, ids: Sequence[str]) -> Rebuilt:
        """Rebuilds one batch. It holds the lock of the event log from reading the events to writing the rows."""
        wanted: dict[MessageKey, Sequence[str]] = {
            (api, direction, id_): () for id_ in ids for api in Api for direction in Direction
        }
        async with self._database.appending() as transaction:
            # Without a limit, because `_ids_after` bounds the events.
            known = await event_log.of_messages(transaction, wanted, limit=sys.maxsize - 1, needed=())
            existing = await messages.existing_rows(transaction, ids)
            forgotten = {key for key, events_forgotten in existing.items() if events_forgotten}
            stored = await stored_rows(transaction, ids)
            rebuilt = {
                key: rows_of(fold(events, self._conflict), transaction.spelling)
                for key, events in known.events.items()
                if key not in forgotten
            }
            changes = {
                key: (key in existing, _comparable(stored.get(key), rows), rows) for key, rows in rebuilt.items()
            }
            differing = sum(_differing(before, after) for _, before, after in changes.values())
            if differing and self._writes:
                counted = [(is_stored, stored.get(key), rows) for key, (is_stored, _, rows) in changes.items()]
                await transaction.run([*messages.write_rows(changes.values()), statistics_cells.count(counted)])
        return Rebuilt(messages=len(rebuilt), forgotten=len(forgotten & known.events.keys()), differing=differing)


async def stored_rows(transaction: Transaction, ids: Collection[str]) -> Mapping[MessageKey, Rows]:
    """The stored rows of the messages with these ids; `message` is empty if there are only deliveries."""
    messages: dict[MessageKey, _RowValues] = {}
    deliveries: dict[MessageKey, dict[str, _RowValues]] = {}
    for row in await _select(transaction, MESSAGES, MESSAGE_COLUMNS, "id", ids):
        messages[_key(_MESSAGE_KEY(row))] = row
    for row in await _select(transaction, DELIVERIES, DELIVERY_COLUMNS, "message_id", ids):
        deliveries.setdefault(_key(_DELIVERY_KEY(row)), {})[row[_RECIPIENT_KEY]] = row
    return {key: Rows(messages.get(key, ()), deliveries.get(key, {})) for key in messages.keys() | deliveries.keys()}


async def _select(
    transaction: Transaction, table: Any, names: Sequence[str], id_name: str, ids: Collection[str]
) -> list[_RowValues]:
    """Rows of a table in the form of `rows_of`: times as the driver takes them, JSON as text."""
    columns = [table.c[name] for name in names]
    found = await transaction.select(columns, f"{id_name} {{among}}", ids)
    encoders = [_encoder(column, transaction) for column in columns]
    return [
        tuple(
            value if encode is None or value is None else encode(value)
            for value, encode in zip(row, encoders, strict=True)
        )
        for row in found
    ]


def _encoder(column: Any, transaction: Transaction) -> Callable[[Any], Any] | None:
    if isinstance(column.type, Json):
        return json_text
    return transaction.spelling.time if isinstance(column.type, UTCDateTime) else None


def _key(values: tuple[str, ...]) -> MessageKey:
    api, direction, id_ = values
    return Api(api), Direction(direction), id_


def _comparable(stored: Rows | None, rows: Rows) -> Rows | None:
    """Stored rows, with the columns that the log does not hold taken from the recomputed rows."""
    if stored is None or not stored.message:
        return stored
    message = list(stored.message)
    for place in _NOT_IN_THE_LOG:
        message[place] = rows.message[place]
    return replace(stored, message=tuple(message))


def _differing(before: Rows | None, after: Rows) -> int:
    """How many rows are missing, superfluous or wrong."""
    old = before.deliveries if before else {}
    keys = old.keys() | after.deliveries.keys()
    deliveries = sum(old.get(key) != after.deliveries.get(key) for key in keys)
    return deliveries + (before is None or before.message != after.message)
