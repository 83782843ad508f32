"""The sinks that were ever registered: lease, cursor, health, and what operators have decided."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Row, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.counts import COUNTED
from receiver.errors import ReceiverError, Unknown
from receiver.models.events import EVENTS
from receiver.models.queries import Page, SinkQuery, SortOrder
from receiver.models.sinks import DEAD_LETTERS, RETRIES, SINKS, SinkBase, SinkRead
from receiver.storage import event_log, leases, replays
from receiver.storage.database import Database


class LeaseLost(ReceiverError):
    """Another process publishes to this sink; nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The health of a sink: failures in a row, since when it is down, its last success and its last error."""

    failures: int = 0
    down_since_at: datetime | None = None
    last_success_at: datetime | None = None
    last_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to publish to a sink; `epoch` fences off the previous holder.

    `previous_seen_at` is when a holder last renewed its lease before, or the sink was registered.
    """

    sink: str
    epoch: int
    cursor: int
    health: Health
    previous_seen_at: datetime | None = None


async def acquire_lease(
    database: Database, name: str, *, holder: str, fingerprint: str, seconds: float, take_over: bool = False
) -> Lease | None:
    """Takes the lease of a sink if no other worker holds it, by the database's clock, or with `take_over` in any case.

    A lease of the same `holder` belongs to its dead predecessor.
    """
    of_sink = SINKS.c.name == name
    statement = (
        leases.taken(database, SINKS, of_sink, holder=holder, seconds=seconds, take_over=take_over)
        .values(fingerprint=fingerprint, seen_at=database.clock())
        .returning(*SINKS.c)
    )
    async with database.writing() as connection:
        seen_at = await connection.scalar(select(SINKS.c.seen_at).where(SINKS.c.name == name))
        row = (await connection.execute(statement)).one_or_none()
    return replace(_lease(row), previous_seen_at=seen_at) if row is not None else None


async def renew_lease(database: Database, lease: Lease, *, seconds: float) -> None:
    """Extends a lease; raises LeaseLost if another process has it."""
    values = {"lease_until": database.clock(seconds), "seen_at": database.clock()}
    async with database.writing() as connection:
        await hold_lease(connection, lease, values)


async def release_lease(database: Database, lease: Lease) -> None:
    """Releases a lease; does nothing if it is lost already."""
    await leases.release(database, SINKS, SINKS.c.name == lease.sink, epoch=lease.epoch)


async def hold_lease(connection: AsyncConnection, lease: Lease, values: dict[str, Any]) -> None:
    """Updates the sink's row, which also locks it; raises LeaseLost if another process has the lease."""
    if not await leases.hold(connection, SINKS, SINKS.c.name == lease.sink, epoch=lease.epoch, **values):
        raise LeaseLost(f"another process works for sink {lease.sink}")


def _lease(row: Row[Any]) -> Lease:
    health = Health(
        failures=row.failures,
        down_since_at=row.down_since_at,
        last_success_at=row.last_success_at,
        last_error=row.last_error,
    )
    return Lease(sink=row.name, epoch=row.epoch, cursor=row.cursor, health=health)


Start = Literal["end", "beginning"] | datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkControl:
    """What operators have decided about a sink; `revision` rises with each of their actions.

    A sink that reports that it is gone is paused as well.
    """

    revision: int
    paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The backlog of a sink: the events after its cursor (before its filter), and its retries by state.

    `oldest_at` is when the oldest of them was received. `dead_letters` are counted by reason. Of either, no more than
    the newest `COUNTED` are counted.
    """

    events: int
    oldest_at: datetime | None
    retries: dict[str, int]
    dead_letters: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A sink of the settings: a new sink begins at `start`, a known one continues at its cursor."""

    name: str
    start: Start
    fingerprint: str


async def register(database: Database, name: str, *, start: Start, fingerprint: str) -> None:
    """Registers one sink; see `register_all`."""
    await register_all(database, [Registration(name=name, start=start, fingerprint=fingerprint)])


async def register_all(database: Database, registrations: Sequence[Registration]) -> None:
    """Registers sinks in one transaction: all of them, or none if it raises.

    It does not write the rows of known sinks: their lease holders may have locked them, and may be frozen.
    """
    names = [one.name for one in registrations]
    async with database.reading() as connection:
        known = set((await connection.scalars(select(SINKS.c.name).where(SINKS.c.name.in_(names)))).all())
    rows = [
        {
            "name": one.name,
            "cursor": await _cursor_at(database, one.start),
            "epoch": 0,
            "revision": 0,
            "paused": False,
            "fingerprint": one.fingerprint,
            "failures": 0,
        }
        for one in registrations
        if one.name not in known
    ]
    if not rows:
        return
    async with database.writing() as connection:
        for row in rows:
            insert = database.insert(SINKS).values(**row, seen_at=database.clock())
            await connection.execute(insert.on_conflict_do_nothing(index_elements=["name"]))


async def control(connection: AsyncConnection, sink: str) -> SinkControl:
    """What operators have decided about a sink."""
    row = (await connection.execute(select(SINKS.c.revision, SINKS.c.paused).where(SINKS.c.name == sink))).one()
    return SinkControl(revision=row.revision, paused=row.paused)


async def backlog(connection: AsyncConnection, sink: str) -> Backlog:
    """The backlog of a sink."""
    cursor = await connection.scalar(select(SINKS.c.cursor).where(SINKS.c.name == sink)) or 0
    events, oldest_at = await _ahead(connection, sink, cursor)
    return Backlog(
        events=events,
        oldest_at=oldest_at,
        retries=await _counts(connection, sink, RETRIES.c.state, newest=RETRIES.c.position.desc()),
        dead_letters=await _counts(connection, sink, DEAD_LETTERS.c.reason, newest=DEAD_LETTERS.c.id.desc()),
    )


async def _ahead(connection: AsyncConnection, sink: str, cursor: int) -> tuple[int, datetime | None]:
    """How many events are after the cursor, and when the oldest that waits, also for a retry, was received."""
    _, end = await event_log.bounds(connection)
    next_position = select(func.min(EVENTS.c.position)).where(EVENTS.c.position > cursor).scalar_subquery()
    oldest_retry = select(func.min(RETRIES.c.position)).where(RETRIES.c.sink == sink).scalar_subquery()
    oldest = (await connection.execute(select(next_position, oldest_retry))).one()
    positions = [position for position in oldest if position is not None]
    return max(0, end - cursor), await _received_at(connection, min(positions)) if positions else None


async def _cursor_at(database: Database, start: Start) -> int:
    if start == "beginning":
        return 0
    if start != "end":
        return await event_log.position_before(database, start)
    async with database.reading() as connection:
        _, end = await event_log.bounds(connection)
        return end


async def _received_at(connection: AsyncConnection, position: int) -> datetime | None:
    found: datetime | None = await connection.scalar(select(EVENTS.c.received_at).where(EVENTS.c.position == position))
    return found


async def _counts(connection: AsyncConnection, sink: str, column: Any, *, newest: Any) -> dict[str, int]:
    """How many rows of a sink have each value of the column; to count 3 million took SQLite ten seconds."""
    counted = (
        select(column.label("value")).where(column.table.c.sink == sink).order_by(newest).limit(COUNTED).subquery()
    )
    rows = await connection.execute(select(counted.c.value, func.count()).group_by(counted.c.value))
    return {row[0]: row[1] for row in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """The health of a sink and what waits for it; `retries` are counted no further than `COUNTED`."""

    name: str
    paused: bool
    down_since_at: datetime | None
    last_error: str | None
    events: int
    retries: int
    oldest_at: datetime | None


async def waiting(database: Database, names: Collection[str]) -> list[Waiting]:
    """What waits for those of these sinks that were ever registered, from indexes alone."""
    found = []
    async with database.reading() as connection:
        statement = select(SINKS).where(SINKS.c.name.in_(names)).order_by(SINKS.c.name)
        for row in (await connection.execute(statement)).all():
            events, oldest_at = await _ahead(connection, row.name, row.cursor)
            retries = select(RETRIES.c.position).where(RETRIES.c.sink == row.name).limit(COUNTED).subquery()
            found.append(
                Waiting(
                    name=row.name,
                    paused=row.paused,
                    down_since_at=row.down_since_at,
                    last_error=row.last_error,
                    events=events,
                    retries=await connection.scalar(select(func.count()).select_from(retries)) or 0,
                    oldest_at=oldest_at,
                )
            )
    return found


async def find(database: Database, query: SinkQuery, types: Mapping[str, str], *, now: datetime) -> Page[SinkRead]:
    """A page of all sinks that were ever registered, by name; `types` are the types of the configured ones, by name."""
    by_name = SINKS.c.name.asc() if query.order is SortOrder.ASC else SINKS.c.name.desc()
    async with database.reading() as connection:
        rows = (
            await connection.execute(select(SINKS).order_by(by_name).limit(query.size + 1).offset(query.skip))
        ).all()
        sinks = [await _read(connection, row, types, now) for row in rows[: query.size]]
    return Page(items=sinks, more=len(rows) > query.size)


async def with_name(database: Database, sink: str, types: Mapping[str, str], *, now: datetime) -> SinkRead:
    """A single sink; raises UnknownSink."""
    async with database.reading() as connection:
        return await _read(connection, await row_of(connection, sink), types, now)


async def _read(connection: AsyncConnection, row: Row[Any], types: Mapping[str, str], now: datetime) -> SinkRead:
    waiting = await backlog(connection, row.name)
    return SinkRead(
        **{name: row._mapping[name] for name in SinkBase.model_fields},
        type=types.get(row.name),
        lag=waiting.events,
        oldest_at=waiting.oldest_at,
        oldest_seconds=max(0.0, (now - waiting.oldest_at).total_seconds()) if waiting.oldest_at else None,
        retries=waiting.retries,
        dead_letters=waiting.dead_letters,
        is_attended=row.lease_until is not None and row.lease_until > now,
        replay=await replays.open_of(connection, row.name),
    )


class UnknownSink(Unknown):
    """No sink of this name was ever registered in this database."""


async def lock_row(connection: AsyncConnection, sink: str, **changes: Any) -> Row[Any]:
    """Locks the sink's row until the transaction ends, raises its revision, and returns it.

    Every writer of the sink's retries, dead letters or replays takes this lock; the revision counts operators' actions.
    """
    raised = update(SINKS).where(SINKS.c.name == sink).values(revision=SINKS.c.revision + 1, **changes)
    return _known(sink, (await connection.execute(raised.returning(*SINKS.c))).one_or_none())


async def row_of(connection: AsyncConnection, sink: str) -> Row[Any]:
    """The sink's row, without a lock; raises UnknownSink."""
    return _known(sink, (await connection.execute(select(SINKS).where(SINKS.c.name == sink))).one_or_none())


async def pause(database: Database, sink: str, *, paused: bool) -> None:
    """Pauses or resumes a sink; events wait in the log meanwhile. Raises UnknownSink."""
    async with database.writing() as connection:
        await lock_row(connection, sink, paused=paused)


def _known(sink: str, row: Row[Any] | None) -> Row[Any]:
    if row is None:
        raise UnknownSink(f"there is no sink {sink}")
    return row
