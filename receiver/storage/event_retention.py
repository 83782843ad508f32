"""Removes old events from the log, except those that a sink, replay, retry or dead letter needs.

A batch of any kind of old rows is described here too, because pruning of other kinds is built on this module.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Row,
    and_,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.models.events import EVENTS
from receiver.models.messages import MESSAGES
from receiver.models.sinks import DEAD_LETTERS, REPLAYS, RETRIES, SINKS
from receiver.storage import event_log
from receiver.storage.database import Database
from receiver.storage.replays import IS_OPEN
from receiver.storage.retries import promote

# A sink that is not in the settings no longer holds back retention once it was not seen for this long.
SINK_LAPSES: Final = timedelta(days=7)


class Kind(StrEnum):
    """The kinds of rows with an age, by the names of the settings, in the order of pruning."""

    TEXT = "text"
    ATTEMPTS = "attempts"
    CALLBACKS = "callbacks"
    EVENTS = "events"
    MESSAGES = "messages"
    ALERTS = "alerts"
    """Resolved alerts, which have the age of the events."""


class LogAges:
    """The receipt of the oldest event of each complete block of the event log, in which it cannot change any more.

    Imported events may be older than those before them, and no index has the time of receipt, so the whole log is
    scanned. With this cache a pruner that runs every hour reads a block again only when an event in it is old.
    """

    def __init__(self) -> None:
        self.oldest: dict[int, datetime | None] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneTask:
    """The rows to prune: of one kind, older than `before`, at most `limit` rows in a batch.

    `now` decides which sinks have lapsed; the configured ones, in `sinks`, never lapse. `ages` caches the ages of the
    blocks of the event log.
    """

    kind: Kind
    before: datetime
    now: datetime
    sinks: Collection[str] = ()
    limit: int = 500
    ages: LogAges = field(default_factory=LogAges)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """How many rows one batch removed, and where the next one begins; None: nothing is left.

    `retries` counts the retries of lapsed sinks that were removed with their events.
    """

    removed: int
    next: int | None
    retries: int = 0


@asynccontextmanager
async def holding_log(database: Database) -> AsyncIterator[AsyncConnection]:
    """A transaction that holds the lock of the event log."""
    async with database.writing() as connection:
        await database.lock_log(connection)
        yield connection


async def count_events(database: Database, task: PruneTask) -> int:
    """How many events are to be removed, counted block by block so that no statement takes long."""
    number, place = 0, 0
    while (block := await _next_old_block(database, task, place)) is not None:
        place = block.end
        if block.has_old:
            wanted = select(func.count()).select_from(EVENTS).where(event_log.within(block.after, block.end))
            async with database.reading() as connection:
                number += await connection.scalar(wanted.where(_old_event(task))) or 0
    return number


def _old_event(task: PruneTask) -> ColumnElement[bool]:
    """Whether an event is old, passed by every sink and replay, and without a retry or dead letter."""
    return and_(
        EVENTS.c.received_at < task.before,
        EVENTS.c.position <= _passed_by_all(task),
        ~exists().where(RETRIES.c.position == EVENTS.c.position, _holds(task)),
        ~exists().where(DEAD_LETTERS.c.position == EVENTS.c.position),
    )


def _lapsed(task: PruneTask) -> ColumnElement[bool]:
    return and_(SINKS.c.seen_at < task.now - SINK_LAPSES, SINKS.c.name.not_in(list(task.sinks)))


def _passed_by_all(task: PruneTask) -> ColumnElement[int]:
    cursors = select(SINKS.c.cursor.label("place")).where(~_lapsed(task))
    replays = select(REPLAYS.c.position).join(SINKS, SINKS.c.name == REPLAYS.c.sink).where(IS_OPEN, ~_lapsed(task))
    places = union_all(cursors, replays).subquery()
    return func.coalesce(select(func.min(places.c.place)).scalar_subquery(), _NO_SINK)


_NO_SINK: Final = 2**63 - 1


def _holds(task: PruneTask) -> ColumnElement[bool]:
    """Whether a retry holds back its event: always, unless it is due or parked at a lapsed sink."""
    lapsed = select(SINKS.c.name).where(_lapsed(task))
    return or_(RETRIES.c.state == "held", RETRIES.c.sink.not_in(lapsed))


MESSAGE_KEY: Final = (MESSAGES.c.api, MESSAGES.c.direction, MESSAGES.c.id)


def bound(api: str, direction: str, id_: str) -> dict[str, str]:
    return {"of_api": api, "of_direction": direction, "of_id": id_}


def is_bound(api: Any, direction: Any, id_: Any) -> ColumnElement[bool]:
    return and_(api == bindparam("of_api"), direction == bindparam("of_direction"), id_ == bindparam("of_id"))


# A batch reads at most one whole block of the log, which takes some tens of milliseconds.
_BLOCK: Final = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """The part of the log after one position, up to and including another, and whether an event in it is old."""

    after: int
    end: int
    has_old: bool


async def _next_old_block(database: Database, task: PruneTask, place: int) -> _Block | None:
    """The rest of the block at a place, or the next block that is not known to be young; None at the end of the log.

    A complete block that was never read is read and returned whatever its age, so that one call reads one block.
    """
    async with database.reading() as connection:
        oldest, newest = await event_log.bounds(connection)
        place = max(place, oldest - 1)
        while place < newest:
            number = place // _BLOCK
            block = _Block(after=place, end=(number + 1) * _BLOCK, has_old=True)
            if block.end > newest:
                return block
            if number not in task.ages.oldest:
                task.ages.oldest[number] = await _oldest_of(connection, number)
                return replace(block, has_old=_is_old(task.ages.oldest[number], task))
            if _is_old(task.ages.oldest[number], task):
                return block
            place = block.end
    return None


def _is_old(oldest: datetime | None, task: PruneTask) -> bool:
    return oldest is not None and oldest < task.before


async def _oldest_of(connection: AsyncConnection, number: int) -> datetime | None:
    """When the oldest event of a complete block was received; no event is added to a block that the log has passed."""
    whole = event_log.within(number * _BLOCK, (number + 1) * _BLOCK)
    oldest: datetime | None = await connection.scalar(select(func.min(EVENTS.c.received_at)).where(whole))
    return oldest


async def prune_events(database: Database, task: PruneTask, place: int) -> Batch:
    """Removes old events of one block, except those that a sink, replay, retry or dead letter needs."""
    block = await _next_old_block(database, task, place)
    if block is None:
        return Batch(removed=0, next=None)
    if not block.has_old:
        return Batch(removed=0, next=block.end)
    window = (
        select(EVENTS.c.position, EVENTS.c.api, EVENTS.c.direction, EVENTS.c.message_id)
        .where(event_log.within(block.after, block.end), EVENTS.c.position <= _passed_by_all(task))
        .where(EVENTS.c.received_at < task.before)
        .order_by(EVENTS.c.position)
        .limit(task.limit)
    )
    # Read before taking the lock: the query may scan a whole block of young events.
    async with database.reading() as connection:
        old = (await connection.execute(window)).all()
    removed, retries = await _remove_events(database, task, old) if old else (0, 0)
    if len(old) == task.limit:
        return Batch(removed=removed, next=old[-1].position, retries=retries)
    # The block has become younger; old events that are left are held back by a sink.
    task.ages.oldest.pop(block.after // _BLOCK, None)
    return Batch(removed=removed, next=block.end, retries=retries)


async def _remove_events(database: Database, task: PruneTask, old: Sequence[Row[Any]]) -> tuple[int, int]:
    """Removes the old events that are not needed; returns how many, and how many retries of lapsed sinks with them."""
    async with holding_log(database) as connection:
        passed = await connection.scalar(select(_passed_by_all(task)))
        old = [row for row in old if row.position <= passed]
        needed = await _needed(connection, task, [row.position for row in old])
        retries, still_needed = await _drop_lapsed_retries(database, connection, task, old, needed)
        removable = [row for row in old if row.position not in needed | still_needed]
        end = await _end_lapsed_replays(connection, task, removable)
        removable = [row for row in removable if row.position <= end]
        await _delete_events(connection, removable)
    return len(removable), retries


async def _needed(connection: AsyncConnection, task: PruneTask, positions: Sequence[int]) -> set[int]:
    """The events with a retry or a dead letter. A single statement, because a requeue moves rows between the two."""
    if not positions:
        return set()
    retries = select(RETRIES.c.position).where(RETRIES.c.position.in_(positions), _holds(task))
    dead_letters = select(DEAD_LETTERS.c.position).where(DEAD_LETTERS.c.position.in_(positions))
    return set(await connection.scalars(retries.union(dead_letters)))


async def _drop_lapsed_retries(
    database: Database, connection: AsyncConnection, task: PruneTask, old: Sequence[Row[Any]], needed: Collection[int]
) -> tuple[int, set[int]]:
    """Removes the retries of lapsed sinks for these events.

    Returns how many were removed, and the positions of those that stay because their sink has just come back.
    """
    positions = [row.position for row in old if row.position not in needed]
    found = select(RETRIES.c.sink, RETRIES.c.ordering_key, RETRIES.c.position).where(RETRIES.c.position.in_(positions))
    retries = (await connection.execute(found)).all() if positions else []
    ordering_keys: dict[str, set[str]] = {}
    for retry in retries:
        ordering_keys.setdefault(retry.sink, set()).add(retry.ordering_key)
    locked = {sink for sink in sorted(ordering_keys) if await _lock_lapsed(connection, task, sink)}
    for sink in locked:
        await connection.execute(delete(RETRIES).where(RETRIES.c.sink == sink, RETRIES.c.position.in_(positions)))
        await promote(database, connection, sink, ordering_keys[sink], task.now)
    dropped = sum(retry.sink in locked for retry in retries)
    return dropped, {retry.position for retry in retries if retry.sink not in locked}


async def _end_lapsed_replays(connection: AsyncConnection, task: PruneTask, forgotten: Sequence[Row[Any]]) -> int:
    """Expires the replays to lapsed sinks that still need these events; other replays hold their events back.

    Returns the position up to which events may be removed: a sink that has just come back keeps those of its replay.
    """
    end = max((row.position for row in forgotten), default=0)
    found = select(REPLAYS.c.id, REPLAYS.c.sink, REPLAYS.c.position).where(IS_OPEN, REPLAYS.c.position < end)
    for replay in (await connection.execute(found.order_by(REPLAYS.c.position))).all():
        if replay.position >= end:
            break
        if await _lock_lapsed(connection, task, replay.sink):
            ended = {"state": "expired", "ended_at": task.now}
            await connection.execute(update(REPLAYS).where(REPLAYS.c.id == replay.id, IS_OPEN).values(**ended))
        else:
            end = replay.position
    return end


async def _lock_lapsed(connection: AsyncConnection, task: PruneTask, sink: str) -> bool:
    """Locks a sink's row, as every writer of its retries or replays does; False if it is no longer lapsed."""
    raised = update(SINKS).where(SINKS.c.name == sink, _lapsed(task)).values(revision=SINKS.c.revision + 1)
    return bool((await connection.execute(raised)).rowcount)


async def _delete_events(connection: AsyncConnection, events: Sequence[Row[Any]]) -> None:
    if events:
        keys = sorted({(row.api, row.direction, row.message_id) for row in events})
        await connection.execute(_MARK, [bound(*key) for key in keys])
        positions = [row.position for row in events]
        await connection.execute(delete(EVENTS).where(EVENTS.c.position.in_(positions)))


_MARK: Final = update(MESSAGES).where(is_bound(*MESSAGE_KEY)).values(events_forgotten=True)
