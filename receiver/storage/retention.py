"""What is forgotten for its age: a bite at a time, each a short transaction, so that intake hardly waits.

Every bite holds the intake lock: it touches rows that intake may be about to write, and the two would otherwise each
wait for the other.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
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
    null,
    or_,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.storage.callbacks import CALLBACKS
from receiver.storage.database import Database
from receiver.storage.event_log import EVENTS, MESSAGES
from receiver.storage.kept import first_id
from receiver.storage.replays import IS_OPEN
from receiver.storage.retries import promote
from receiver.storage.sink_tables import ATTEMPTS, DEAD_LETTERS, REPLAYS, RETRIES, SINKS
from receiver.storage.status_table import DELIVERIES

# a sink that is not in the settings holds nothing back once it was not seen for so long
SINK_LAPSES: Final = timedelta(days=7)


class Kind(StrEnum):
    """What has an age of its own, by the names of the settings; in the order in which it is looked through."""

    TEXT = "text"
    ATTEMPTS = "attempts"
    CALLBACKS = "callbacks"
    EVENTS = "events"
    MESSAGES = "messages"


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """What is to be forgotten: of one kind, older than `before`, at most `limit` rows at a time.

    `now` decides which sinks have lapsed; those in `sinks`, the settings' own, never do.
    """

    kind: Kind
    before: datetime
    now: datetime
    sinks: Collection[str] = ()
    limit: int = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Bite:
    """What one bite forgot, and from where the next one looks on; None: nothing is left.

    `retries` are those of lapsed sinks, which went with their events.
    """

    forgotten: int
    next: int | None
    retries: int = 0


async def bite(database: Database, errand: Errand, place: int = 0) -> Bite:
    """Forgets one bite, beginning at a place: 0, then the `next` of the bite before."""
    async with database.writing() as connection:
        await database.lock_intake(connection)
        return await _BITES[errand.kind](database, connection, errand, place)


async def count(database: Database, errand: Errand) -> int:
    """How many rows there are to be forgotten."""
    table, condition = _FORGETTABLE[errand.kind]
    async with database.reading() as connection:
        return await connection.scalar(select(func.count()).select_from(table).where(condition(errand))) or 0


def _old_text(errand: Errand) -> ColumnElement[bool]:
    # both clocks: a message that Bandwidth dates wrongly has its time with us all the same
    old = and_(MESSAGES.c.listed_at < errand.before, MESSAGES.c.first_received_at < errand.before)
    return and_(old, or_(MESSAGES.c.text.is_not(None), MESSAGES.c.media.is_not(None)))


def _old_message(errand: Errand) -> ColumnElement[bool]:
    return and_(MESSAGES.c.listed_at < errand.before, MESSAGES.c.updated_at < errand.before)


def _old_callback(errand: Errand) -> ColumnElement[bool]:
    old: ColumnElement[bool] = CALLBACKS.c.id < first_id(errand.before)
    return old


def _old_attempt(errand: Errand) -> ColumnElement[bool]:
    old: ColumnElement[bool] = ATTEMPTS.c.ended_at < errand.before
    return old


def _old_event(errand: Errand) -> ColumnElement[bool]:
    """An event that is old, that every sink and every replay has passed, and that no retry or dead letter is about."""
    return and_(
        EVENTS.c.received_at < errand.before,
        EVENTS.c.position <= _passed_by_all(errand),
        ~exists().where(RETRIES.c.position == EVENTS.c.position, _holds(errand)),
        ~exists().where(DEAD_LETTERS.c.position == EVENTS.c.position),
    )


def _lapsed(errand: Errand) -> ColumnElement[bool]:
    return and_(SINKS.c.seen_at < errand.now - SINK_LAPSES, SINKS.c.name.not_in(list(errand.sinks)))


def _passed_by_all(errand: Errand) -> ColumnElement[int]:
    cursors = select(SINKS.c.cursor.label("place")).where(~_lapsed(errand))
    replays = select(REPLAYS.c.position).join(SINKS, SINKS.c.name == REPLAYS.c.sink).where(IS_OPEN, ~_lapsed(errand))
    places = union_all(cursors, replays).subquery()
    return func.coalesce(select(func.min(places.c.place)).scalar_subquery(), _NO_SINK)


_NO_SINK: Final = 2**63 - 1


def _holds(errand: Errand) -> ColumnElement[bool]:
    """Whether a retry keeps its event: always, but where a lapsed sink merely had yet to try."""
    lapsed = select(SINKS.c.name).where(_lapsed(errand))
    return or_(RETRIES.c.state == "held", RETRIES.c.sink.not_in(lapsed))


_FORGETTABLE: Final[Mapping[Kind, tuple[Any, Callable[[Errand], ColumnElement[bool]]]]] = {
    Kind.TEXT: (MESSAGES, _old_text),
    Kind.ATTEMPTS: (ATTEMPTS, _old_attempt),
    Kind.CALLBACKS: (CALLBACKS, _old_callback),
    Kind.EVENTS: (EVENTS, _old_event),
    Kind.MESSAGES: (MESSAGES, _old_message),
}


_MESSAGE_KEY: Final = tuple_(MESSAGES.c.api, MESSAGES.c.id)


async def _bite_text(database: Database, connection: AsyncConnection, errand: Errand, _: int) -> Bite:
    found = select(MESSAGES.c.api, MESSAGES.c.id).where(_old_text(errand)).limit(errand.limit)
    forget = update(MESSAGES).where(_MESSAGE_KEY.in_(found)).values(text=null(), media=null())
    return _all_of(errand, (await connection.execute(forget)).rowcount)


async def _bite_messages(database: Database, connection: AsyncConnection, errand: Errand, _: int) -> Bite:
    found = select(MESSAGES.c.api, MESSAGES.c.id).where(_old_message(errand)).limit(errand.limit)
    keys = [{"of_api": row.api, "of_id": row.id} for row in await connection.execute(found)]
    if keys:
        await connection.execute(_DROP_DELIVERIES, keys)
        await connection.execute(_DROP_MESSAGE, keys)
    return _all_of(errand, len(keys))


_DROP_DELIVERIES: Final = delete(DELIVERIES).where(
    DELIVERIES.c.api == bindparam("of_api"), DELIVERIES.c.message_id == bindparam("of_id")
)
_DROP_MESSAGE: Final = delete(MESSAGES).where(
    MESSAGES.c.api == bindparam("of_api"), MESSAGES.c.id == bindparam("of_id")
)


async def _bite_callbacks(database: Database, connection: AsyncConnection, errand: Errand, _: int) -> Bite:
    found = select(CALLBACKS.c.id).where(_old_callback(errand)).limit(errand.limit)
    return _all_of(errand, (await connection.execute(delete(CALLBACKS).where(CALLBACKS.c.id.in_(found)))).rowcount)


def _all_of(errand: Errand, forgotten: int) -> Bite:
    return Bite(forgotten=forgotten, next=0 if forgotten >= errand.limit else None)


async def _bite_attempts(database: Database, connection: AsyncConnection, errand: Errand, place: int) -> Bite:
    window = select(ATTEMPTS.c.id, ATTEMPTS.c.ended_at).where(ATTEMPTS.c.id > place)
    rows = (await connection.execute(window.order_by(ATTEMPTS.c.id).limit(errand.limit))).all()
    old = [row.id for row in rows if row.ended_at < errand.before]
    if old:
        await connection.execute(delete(ATTEMPTS).where(ATTEMPTS.c.id.in_(old)))
    return Bite(forgotten=len(old), next=_onward(errand, [row.id for row in rows], bool(old)))


async def _bite_events(database: Database, connection: AsyncConnection, errand: Errand, place: int) -> Bite:
    """Forgets events that nobody needs. Positions rise with time, but for what was imported: see `_onward`."""
    window = select(EVENTS.c.position, EVENTS.c.api, EVENTS.c.message_id, EVENTS.c.received_at)
    window = window.where(EVENTS.c.position > place, EVENTS.c.position <= _passed_by_all(errand))
    rows = (await connection.execute(window.order_by(EVENTS.c.position).limit(errand.limit))).all()
    old = [row for row in rows if row.received_at < errand.before]
    needed = await _needed(connection, errand, [row.position for row in old])
    retries, kept = await _drop_lapsed_retries(database, connection, errand, old, needed)
    forgotten = [row for row in old if row.position not in needed | kept]
    end = await _end_lapsed_replays(connection, errand, forgotten)
    forgotten = [row for row in forgotten if row.position <= end]
    await _forget_events(connection, forgotten)
    return Bite(
        forgotten=len(forgotten),
        next=_onward(errand, [row.position for row in rows], bool(old)),
        retries=retries,
    )


def _onward(errand: Errand, looked_at: Sequence[int], found_old: bool) -> int | None:
    """Where the next bite begins. A bite without anything old ends the search; a young row among old ones does not."""
    return looked_at[-1] if found_old and len(looked_at) == errand.limit else None


async def _needed(connection: AsyncConnection, errand: Errand, positions: Sequence[int]) -> set[int]:
    """Those of the events that a retry or a dead letter is about. One statement: a requeue moves rows between them."""
    if not positions:
        return set()
    retries = select(RETRIES.c.position).where(RETRIES.c.position.in_(positions), _holds(errand))
    dead_letters = select(DEAD_LETTERS.c.position).where(DEAD_LETTERS.c.position.in_(positions))
    return set(await connection.scalars(retries.union(dead_letters)))


async def _drop_lapsed_retries(
    database: Database, connection: AsyncConnection, errand: Errand, old: Sequence[Row[Any]], needed: Collection[int]
) -> tuple[int, set[int]]:
    """Removes what lapsed sinks still had to try of these events.

    Returns how many rows that were, and the events that a sink keeps after all because it came back this moment.
    """
    positions = [row.position for row in old if row.position not in needed]
    found = select(RETRIES.c.sink, RETRIES.c.lane, RETRIES.c.position).where(RETRIES.c.position.in_(positions))
    retries = (await connection.execute(found)).all() if positions else []
    lanes: dict[str, set[str]] = {}
    for retry in retries:
        lanes.setdefault(retry.sink, set()).add(retry.lane)
    locked = {sink for sink in sorted(lanes) if await _lock_lapsed(connection, errand, sink)}
    for sink in locked:
        await connection.execute(delete(RETRIES).where(RETRIES.c.sink == sink, RETRIES.c.position.in_(positions)))
        await promote(database, connection, sink, lanes[sink], errand.now)
    dropped = sum(retry.sink in locked for retry in retries)
    return dropped, {retry.position for retry in retries if retry.sink not in locked}


async def _end_lapsed_replays(connection: AsyncConnection, errand: Errand, forgotten: Sequence[Row[Any]]) -> int:
    """Ends the replays that would miss these events: those to lapsed sinks, for others hold theirs back.

    Returns up to where events may go: a sink may have come back this moment, and keeps what its replay is yet to give.
    """
    end = max((row.position for row in forgotten), default=0)
    found = select(REPLAYS.c.id, REPLAYS.c.sink, REPLAYS.c.position).where(IS_OPEN, REPLAYS.c.position < end)
    for replay in (await connection.execute(found.order_by(REPLAYS.c.position))).all():
        if replay.position >= end:
            break
        if await _lock_lapsed(connection, errand, replay.sink):
            ended = {"state": "expired", "ended_at": errand.now}
            await connection.execute(update(REPLAYS).where(REPLAYS.c.id == replay.id, IS_OPEN).values(**ended))
        else:
            end = replay.position
    return end


async def _lock_lapsed(connection: AsyncConnection, errand: Errand, sink: str) -> bool:
    """Takes a sink's row, as everyone does who writes its retries or replays, if it is still lapsed."""
    raised = update(SINKS).where(SINKS.c.name == sink, _lapsed(errand)).values(revision=SINKS.c.revision + 1)
    return bool((await connection.execute(raised)).rowcount)


async def _forget_events(connection: AsyncConnection, forgotten: Sequence[Row[Any]]) -> None:
    if forgotten:
        messages = sorted({(row.api, row.message_id) for row in forgotten})
        await connection.execute(_MARK, [{"of_api": api, "of_id": id_} for api, id_ in messages])
        positions = [row.position for row in forgotten]
        await connection.execute(delete(EVENTS).where(EVENTS.c.position.in_(positions)))


_MARK: Final = (
    update(MESSAGES)
    .where(MESSAGES.c.api == bindparam("of_api"), MESSAGES.c.id == bindparam("of_id"))
    .values(events_forgotten=True)
)

_BITES: Final[Mapping[Kind, Callable[[Database, AsyncConnection, Errand, int], Awaitable[Bite]]]] = {
    Kind.TEXT: _bite_text,
    Kind.ATTEMPTS: _bite_attempts,
    Kind.CALLBACKS: _bite_callbacks,
    Kind.EVENTS: _bite_events,
    Kind.MESSAGES: _bite_messages,
}
