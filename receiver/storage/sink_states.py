"""How the sinks are doing: each with what it still has before it, and the replay that it is given."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.queries import Page, SinkView, SortOrder
from receiver.storage import operating, replays, sinks
from receiver.storage.database import Database
from receiver.storage.sink_tables import SINKS


async def find(
    database: Database, types: Mapping[str, str], *, now: datetime, order: SortOrder, skip: int, size: int
) -> Page[SinkView]:
    """A page of all sinks that were ever registered, by name; `types` are those of the settings by their names."""
    by_name = SINKS.c.name.asc() if order is SortOrder.ASC else SINKS.c.name.desc()
    async with database.reading() as connection:
        rows = (await connection.execute(select(SINKS).order_by(by_name).limit(size + 1).offset(skip))).all()
        return Page(items=[await _view(connection, row, types, now) for row in rows[:size]], more=len(rows) > size)


async def one(database: Database, sink: str, types: Mapping[str, str], *, now: datetime) -> SinkView:
    """One sink; raises UnknownSink."""
    async with database.reading() as connection:
        return await _view(connection, await operating.row_of(connection, sink), types, now)


async def _view(connection: AsyncConnection, row: Row[Any], types: Mapping[str, str], now: datetime) -> SinkView:
    backlog = await sinks.backlog(connection, row.name)
    return SinkView(
        name=row.name,
        type=types.get(row.name),
        paused=row.paused,
        cursor=row.cursor,
        lag=backlog.events,
        oldest_at=backlog.oldest_at,
        oldest_seconds=max(0.0, (now - backlog.oldest_at).total_seconds()) if backlog.oldest_at else None,
        retries=backlog.retries,
        dead_letters=backlog.dead_letters,
        failures=row.failures,
        down_since_at=row.down_since_at,
        last_success_at=row.last_success_at,
        last_error=row.last_error,
        lease_until=row.lease_until,
        is_attended=row.lease_until is not None and row.lease_until > now,
        replay=await replays.open_of(connection, row.name),
    )
