"""Replays: an operator has old events published to a sink again, in parallel with the new ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Row, and_, select, update
from sqlalchemy import text as sql
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.cloudevents import Filter, rfc3339
from receiver.errors import Conflict, Expired, Unknown
from receiver.models.events import EVENTS
from receiver.models.queries import Page, ReplayQuery, SortOrder
from receiver.models.sinks import REPLAYS, ReplayAction, ReplayRead, ReplayState
from receiver.storage import event_log, sinks
from receiver.storage.database import Database

Since = Literal["beginning"] | datetime

# Spelled as in the partial index; SQLite would not use the index otherwise.
IS_OPEN: Final = sql("replays.state IN ('running', 'paused')")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRange:
    """The log range of a replay, after one position up to and including another: its events and their first receipt.

    Registrations are no events of a replay: they are published nowhere. `events` are those that the filter of the sink
    accepts, or all where no filter is known. `at_least`: there may be more, the range is too long to look at each.
    """

    after_position: int
    to_position: int
    events: int
    first_at: datetime | None
    at_least: bool = False


async def open_of(connection: AsyncConnection, sink: str) -> ReplayRead | None:
    """The oldest replay of a sink that has not ended."""
    found = select(REPLAYS).where(REPLAYS.c.sink == sink, IS_OPEN).order_by(REPLAYS.c.id).limit(1)
    row = (await connection.execute(found)).one_or_none()
    return _replay(row) if row is not None else None


async def find(connection: AsyncConnection, sink: str, query: ReplayQuery) -> Page[ReplayRead]:
    """A page of the replays to a sink, by id."""
    of_sink: list[ColumnElement[bool]] = [REPLAYS.c.sink == sink]
    ascending = query.order is SortOrder.ASC
    if query.after is not None:
        of_sink.append(REPLAYS.c.id > query.after if ascending else REPLAYS.c.id < query.after)
    statement = select(REPLAYS).where(*of_sink).order_by(REPLAYS.c.id.asc() if ascending else REPLAYS.c.id.desc())
    rows = (await connection.execute(statement.limit(query.size + 1).offset(query.skip))).all()
    return Page(items=[_replay(row) for row in rows[: query.size]], more=len(rows) > query.size)


async def log_range(
    database: Database,
    sink: str,
    since: Since,
    *,
    until: datetime | None = None,
    message_ids: Sequence[str] = (),
    accepts: Filter | None = None,
) -> LogRange:
    """The log range of a replay if it began now; raises the same errors as `begin`."""
    after, end = await _limits(database, since, until)
    async with database.reading() as connection:
        row = await sinks.row_of(connection, sink)
        await _refuse(connection, sink, since)
        requested = await _requested(connection, message_ids, after, min(end, row.cursor))
    return await _log_range(database, requested, accepts)


async def begin(
    database: Database,
    sink: str,
    since: Since,
    *,
    now: datetime,
    until: datetime | None = None,
    message_ids: Sequence[str] = (),
    accepts: Filter | None = None,
) -> tuple[ReplayRead | None, LogRange]:
    """Begins a replay to a sink: the events before its cursor, from a time on or from the oldest stored event.

    `until` leaves out those that were received then or later, `message_ids` those of other messages. `accepts` is the
    filter of the sink, for the count alone: the sink has it too.

    Events after the cursor are published anyway. Without any event there is no replay. Raises UnknownSink, Conflict if
    another replay has not ended, Unknown if a message has no event, or Expired if retention may have removed events of
    that time.
    """
    after, end = await _limits(database, since, until)
    async with database.writing() as connection:
        # Retention takes this lock too: either it sees the replay and leaves its events, or we see the events it left.
        await database.lock_log(connection)
        row = await sinks.lock_row(connection, sink)
        await _refuse(connection, sink, since)
        requested = await _requested(connection, message_ids, after, min(end, row.cursor))
        is_empty = await _first(connection, requested) is None
        replay = None if is_empty else await _insert(connection, sink, requested, now)
    return replay, await _log_range(database, requested, accepts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Requested:
    """The part of the log that is requested, and of which messages (none: of all); `events` is their count."""

    after: int
    to: int
    message_ids: Sequence[str] = ()
    events: int | None = None


async def _limits(database: Database, since: Since, until: datetime | None) -> tuple[int, int]:
    end = _NO_END if until is None else await event_log.position_before(database, until)
    return await _before(database, since), end


_NO_END: Final = 2**63 - 1


async def _requested(connection: AsyncConnection, message_ids: Sequence[str], after: int, to: int) -> _Requested:
    if not message_ids:
        return _Requested(after=after, to=max(after, to))
    known = {message_id for _, message_id in await event_log.positions_of_messages(connection, message_ids, 0, _NO_END)}
    if unknown := [message_id for message_id in message_ids if message_id not in known]:
        raise Unknown(f"there is no event of a message {unknown[0]}")
    found = await event_log.positions_of_messages(connection, message_ids, after, to)
    if not found:
        return _Requested(after=after, to=after, events=0)
    # Retention leaves the events of an open replay, so it holds no more of the log than it needs.
    return _Requested(after=found[0][0] - 1, to=found[-1][0], message_ids=message_ids, events=len(found))


async def act(
    database: Database, sink: str, action: ReplayAction, *, now: datetime, replay_id: int | None = None
) -> ReplayRead:
    """Pauses, resumes or cancels a replay: the one with an id, else the one that has not ended. It is idempotent.

    Raises Unknown if there is no such sink or replay, and Conflict if the replay has ended.
    """
    async with database.writing() as connection:
        await sinks.lock_row(connection, sink)
        replay = await open_of(connection, sink) if replay_id is None else await _with_id(connection, sink, replay_id)
        if replay is None:
            raise Unknown(f"there is no {'open replay' if replay_id is None else 'such replay'} to {sink}")
        if replay.ended_at is not None:
            if replay.state == _STATES[action]:
                return replay
            raise Conflict(f"replay {replay.id} is {replay.state}")
        values = {"state": _STATES[action], "ended_at": now if action == "cancel" else None}
        changed = update(REPLAYS).where(REPLAYS.c.id == replay.id).values(**values).returning(*REPLAYS.c)
        return _replay((await connection.execute(changed)).one())


_STATES: Final[dict[ReplayAction, ReplayState]] = {"pause": "paused", "resume": "running", "cancel": "cancelled"}


async def _with_id(connection: AsyncConnection, sink: str, replay_id: int) -> ReplayRead | None:
    found = select(REPLAYS).where(REPLAYS.c.sink == sink, REPLAYS.c.id == replay_id)
    row = (await connection.execute(found)).one_or_none()
    return _replay(row) if row is not None else None


async def _insert(connection: AsyncConnection, sink: str, requested: _Requested, now: datetime) -> ReplayRead:
    part = {"after_position": requested.after, "to_position": requested.to, "position": requested.after}
    row = {"sink": sink, "state": "running", **part, "message_ids": sorted(set(requested.message_ids)) or None}
    counted = {"published": 0, "dead_letters": 0, "requested_at": now}
    insert = REPLAYS.insert().values(**row, **counted).returning(*REPLAYS.c)
    return _replay((await connection.execute(insert)).one())


async def _refuse(connection: AsyncConnection, sink: str, since: Since) -> None:
    if (other := await open_of(connection, sink)) is not None:
        raise Conflict(f"replay {other.id} to {sink} is {other.state}: let it finish, or cancel it")
    if since == "beginning":
        return
    oldest = await event_log.first(connection, EVENTS.c.position > 0)
    if oldest is not None and oldest.position > 1 and since < oldest.received_at:
        time = rfc3339(oldest.received_at)
        raise Expired(f"retention has removed events received before {time}: replay from then, or from the beginning")


async def _before(database: Database, since: Since) -> int:
    return 0 if since == "beginning" else await event_log.position_before(database, since)


async def _first(connection: AsyncConnection, requested: _Requested) -> Row[Any] | None:
    return await event_log.first(
        connection, and_(event_log.within(requested.after, requested.to), event_log.IS_PUBLISHED)
    )


async def _log_range(database: Database, requested: _Requested, accepts: Filter | None) -> LogRange:
    async with database.reading() as connection:
        first = await _first(connection, requested)
    at_least = False
    if accepts is not None:
        events, at_least = await _accepted(database, requested, accepts)
    elif requested.events is not None:
        events = requested.events
    else:
        events = await event_log.count(database, requested.after, requested.to)
    return LogRange(
        after_position=requested.after,
        to_position=requested.to,
        events=events,
        first_at=first.received_at if first is not None else None,
        at_least=at_least,
    )


# Some seconds: an event takes about 20 µs.
_MOST_READ: Final = 100_000
_READ_AT_ONCE: Final = 1000


async def _accepted(database: Database, requested: _Requested, accepts: Filter) -> tuple[int, bool]:
    """How many events the filter accepts, read as a replay reads them; and whether the count ended before the range."""
    number, read, place = 0, 0, requested.after
    while place < requested.to and read < _MOST_READ:
        async with database.reading() as connection:
            if requested.message_ids:
                ids = requested.message_ids
                entries = await event_log.read_messages(connection, ids, place, requested.to, _READ_AT_ONCE)
            else:
                entries = await event_log.read_after(connection, place, _READ_AT_ONCE, until=requested.to)
            read_to = entries[-1].position if len(entries) == _READ_AT_ONCE else requested.to
        number += sum(map(accepts.passes, entries))
        read, place = read + len(entries), read_to
    return number, place < requested.to


def _replay(row: Row[Any]) -> ReplayRead:
    return ReplayRead.model_validate(row)
