"""Takes removed messages out of the statistics, and removes cells that count nothing."""

from collections.abc import Collection
from datetime import datetime
from typing import Final

from sqlalchemy import and_, bindparam, delete, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.models.messages import DELIVERIES, MESSAGES
from receiver.models.statistics import STATISTICS
from receiver.storage.database import Database
from receiver.storage.event_retention import holding_log
from receiver.storage.statistics_cells import (
    CELL_COLUMNS,
    COUNTED_OF_DELIVERY,
    COUNTED_OF_MESSAGE,
    KEY_COLUMNS,
    SHAPES,
    Counts,
    hour_of,
)


async def forget(database: Database, connection: AsyncConnection, keys: Collection[tuple[str, str, str]]) -> None:
    """Takes the messages with these keys (api, direction, id), which are about to be removed, out of the statistics."""
    counts, width = Counts(), len(COUNTED_OF_MESSAGE)
    statement = select(
        *(MESSAGES.c[name] for name in COUNTED_OF_MESSAGE),
        *(DELIVERIES.c[name] for name in COUNTED_OF_DELIVERY),
        MESSAGES.c.id,
    ).join_from(MESSAGES, DELIVERIES, _SAME_MESSAGE)
    of_keys = database.one_of(MESSAGES.c.id, {id_ for _, _, id_ in keys})
    for row in await connection.execute(statement.where(of_keys)):
        if (row.api, row.direction, row.id) in keys:
            counts.add_delivery(row[:width], row[width:-1], -1)
    rows = counts.rows()
    if not rows:
        return
    insert = database.insert(STATISTICS)
    added = {name: STATISTICS.c[name] + insert.excluded[name] for name in ("deliveries", "awaiting")}
    statement = insert.on_conflict_do_update(index_elements=KEY_COLUMNS, set_=added)
    await connection.execute(statement, [dict(zip(CELL_COLUMNS, row, strict=True)) for row in rows])
    emptied = delete(STATISTICS).where(
        _IS_EMPTY, *(STATISTICS.c[name] == bindparam(f"key_{name}") for name in KEY_COLUMNS)
    )
    await connection.execute(emptied, [dict(zip(_KEY_PARAMETERS, row, strict=False)) for row in rows])


_KEY_PARAMETERS: Final = tuple(f"key_{name}" for name in KEY_COLUMNS)
_IS_EMPTY: Final = and_(STATISTICS.c.deliveries == 0, STATISTICS.c.awaiting == 0)
_SAME_MESSAGE: Final = and_(
    MESSAGES.c.api == DELIVERIES.c.api,
    MESSAGES.c.direction == DELIVERIES.c.direction,
    MESSAGES.c.id == DELIVERIES.c.message_id,
)
# Most deliveries reach their final status within this time, and leave cells behind that count nothing.
_SWEPT_HOURS: Final = 72


async def cells_to_sweep(database: Database, now: datetime) -> list[tuple[int, int]]:
    """The grains and beginnings of cells of the last days of which some count nothing, read without a lock."""
    found: list[tuple[int, int]] = []
    async with database.reading() as connection:
        for grain, shape in SHAPES.items():
            first = hour_of(now) - _SWEPT_HOURS - shape.hours
            is_recent = and_(STATISTICS.c.grain == grain, STATISTICS.c.hour > first)
            statement = select(STATISTICS.c.hour).where(is_recent, _IS_EMPTY).distinct().order_by(STATISTICS.c.hour)
            found += [(grain, hour) for hour in await connection.scalars(statement)]
    return found


async def sweep(database: Database, grain: int, hour: int, limit: int) -> int:
    """Removes cells of one beginning that count nothing, at most so many; returns how many were removed."""
    cells = and_(STATISTICS.c.grain == grain, STATISTICS.c.hour == hour, _IS_EMPTY)
    key = [STATISTICS.c[name] for name in KEY_COLUMNS]
    found = select(*key).where(cells).limit(limit)
    async with holding_log(database) as connection:
        return (await connection.execute(delete(STATISTICS).where(tuple_(*key).in_(found)))).rowcount
