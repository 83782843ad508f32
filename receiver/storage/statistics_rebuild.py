"""Counts the statistics again from the stored messages, hour by hour, and corrects the cells."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Select, func, select, union_all

from receiver.domain.events import Status
from receiver.models.messages import MESSAGES
from receiver.models.statistics import CHANGES, STATISTICS
from receiver.storage.bulk import InsertMany, Transaction
from receiver.storage.database import Database
from receiver.storage.statistics_cells import (
    ADD_TO_CELLS,
    ALL_DAY,
    ALL_HOUR,
    ARRIVED_STATUSES,
    BUCKET_BOUNDS,
    CELL_COLUMNS,
    DAY,
    DAY_HOURS,
    FINAL_STATUSES,
    GRAINS,
    HOUR,
    MOST_CHANGES,
    NO_BUCKET,
    NO_CODE,
    PLAIN_DAY,
    PLAIN_WEEK,
    SENDER_DAY,
    SENDER_HOUR,
    TEXT_CHARACTERS,
    TOTALS_DAY,
    TOTALS_WEEK,
    WEEK,
    WEEK_HOURS,
    Counts,
    Key,
    add_all_changes,
    add_changes,
    hour_of,
    start_of,
)


class Recount:
    """Counts all rows again, hour by hour, and corrects the cells. With `writes` False it only counts the wrong cells.

    Each hour is one transaction, which holds the lock of the event log; after the hours of a day the cells of the day
    follow, after those of a week the cells of the week.
    """

    def __init__(self, database: Database, *, writes: bool = True) -> None:
        self._database = database
        self._writes = writes

    async def run(self) -> int:
        """Corrects all cells; returns how many were wrong."""
        if self._writes:
            await self._add_changes()
        wrong, hour = 0, await self._next_hour(None)
        while hour is not None:
            wrong += await self._correct_hour(hour)
            following = await self._next_hour(hour)
            for source, grains, hours in _LONGER:
                start = hour - hour % hours
                if following is None or following >= start + hours:
                    wrong += await self._correct_longer(source, grains, start, hours)
            hour = following
        return wrong

    async def _add_changes(self) -> None:
        added, last = MOST_CHANGES, 0
        while added == MOST_CHANGES:
            async with self._database.appending() as transaction:
                added, last = await add_changes(transaction, last)

    async def _next_hour(self, hour: int | None) -> int | None:
        """The first hour after `hour` that has messages, cells or changes."""
        firsts = [_first(STATISTICS, hour).where(STATISTICS.c.grain == grain) for grain in GRAINS]
        firsts.append(_first(CHANGES, hour))
        listed = select(func.min(MESSAGES.c.listed_at))
        if hour is not None:
            listed = listed.where(MESSAGES.c.listed_at >= start_of(hour + 1))
        async with self._database.reading() as connection:
            found = [row[0] for row in await connection.execute(union_all(*firsts))]
            listed_at = await connection.scalar(listed)
        found.append(hour_of(listed_at) if listed_at is not None else None)
        return min((first for first in found if first is not None), default=None)

    async def _correct_hour(self, hour: int) -> int:
        async with self._database.appending() as transaction:
            right = Counts()
            for key, *counts in await _counted(self._database, transaction, hour):
                right.add_cell(key, *counts)
            if self._writes:
                await add_all_changes(transaction)
            else:
                # The cells must differ from the rows by the changes that are not added to them yet.
                for *key, deliveries, awaiting in await transaction.fetch(_CHANGES, (hour,)):
                    right.add_cell((SENDER_HOUR, *key), -deliveries, -awaiting)
            return await self._correct(transaction, hour, right, (HOUR, SENDER_HOUR, ALL_HOUR))

    async def _correct_longer(self, source: int, grains: Sequence[int], start: int, hours: int) -> int:
        """Corrects the cells of one day or week, from those of the hours or days in it."""
        async with self._database.appending() as transaction:
            if self._writes:
                await add_all_changes(transaction)
            # Without writing, the same changes are missing in the cells on both sides.
            right = Counts()
            for row in await transaction.fetch(_CELLS_WITHIN, (source, start, start + hours)):
                right.add_cell(tuple(row[:-2]), *row[-2:])
            return await self._correct(transaction, start, right, grains)

    async def _correct(self, transaction: Transaction, hour: int, right: Counts, grains: Sequence[int]) -> int:
        stored: dict[Key, tuple[int, int]] = {}
        for grain in grains:
            found = await transaction.fetch(_CELLS, (grain, hour))
            stored |= {row[:-2]: row[-2:] for row in found}
        wanted = {row[:-2]: row[-2:] for row in right.rows(grains)}
        changes = []
        for key in stored.keys() | wanted.keys():
            old, new = stored.get(key, (0, 0)), wanted.get(key, (0, 0))
            if old != new:
                changes.append((*key, new[0] - old[0], new[1] - old[1]))
        if self._writes:
            await transaction.run([InsertMany(STATISTICS, CELL_COLUMNS, sorted(changes), ADD_TO_CELLS)])
            for grain in grains:
                await transaction.execute(_DROP_EMPTY, (grain, hour))
        return len(changes)


# The grains whose cells are made from others, the shortest first: the grain of those, and the hours of a cell.
_LONGER: Final = (
    (SENDER_HOUR, (DAY, SENDER_DAY, TOTALS_DAY, ALL_DAY, PLAIN_DAY), DAY_HOURS),
    (TOTALS_DAY, (TOTALS_WEEK, PLAIN_WEEK), WEEK_HOURS),
    (DAY, (WEEK,), WEEK_HOURS),
)


def _first(table: Any, hour: int | None) -> Select[Any]:
    first = select(func.min(table.c.hour))
    return first if hour is None else first.where(table.c.hour > hour)


_LISTED: Final = ", ".join(CELL_COLUMNS)
_CELLS: Final = f"SELECT {_LISTED} FROM statistics WHERE grain = ? AND hour = ?"  # noqa: S608
_CELLS_WITHIN: Final = f"SELECT {_LISTED} FROM statistics WHERE grain = ? AND hour >= ? AND hour < ?"  # noqa: S608
_CHANGES: Final = f"SELECT {', '.join(CELL_COLUMNS[1:])} FROM statistics_changes WHERE hour = ?"  # noqa: S608
_DROP_EMPTY: Final = "DELETE FROM statistics WHERE grain = ? AND hour = ? AND deliveries = 0 AND awaiting = 0"


async def _counted(database: Database, transaction: Transaction, hour: int) -> list[tuple[Any, ...]]:
    """The cells of one hour and all senders, counted from the rows of its messages."""
    time = transaction.spelling.time
    statement = _COUNTED[database.is_sqlite].format(hour="?", condition="m.listed_at >= ? AND m.listed_at < ?")
    parameters = (hour, time(start_of(hour)), time(start_of(hour + 1)))
    return [(row[:-2], *row[-2:]) for row in await transaction.fetch(statement, parameters)]


def _tree(value: str, bounds: Sequence[int], first: int = 0) -> str:
    """The SQL for the place of a value among bounds, in few comparisons: SQLite has no function for it."""
    if not bounds:
        return str(first)
    middle = len(bounds) // 2
    below = _tree(value, bounds[:middle], first)
    above = _tree(value, bounds[middle + 1 :], first + middle + 1)
    return f"CASE WHEN {value} < {bounds[middle]} THEN {below} ELSE {above} END"


def _texts(*statuses: Iterable[Status]) -> str:
    return ", ".join(f"'{status}'" for some in statuses for status in some)


def _micros(end: str, beginning: str) -> str:
    """The SQL of SQLite for the microseconds between two times. Its own functions know milliseconds and round them."""
    seconds = (f"CAST(strftime('%s', substr({time}, 1, 19)) AS INTEGER)" for time in (end, beginning))
    fractions = (f"CAST(substr({time}, 21, 6) AS INTEGER)" for time in (end, beginning))
    return f"({' - '.join(seconds)}) * 1000000 + {' - '.join(fractions)}"


_END: Final = "coalesce(d.delivered_at, CASE WHEN d.status = 'delivered' THEN d.delivered_received_at END)"
# By whether it is for SQLite. `hour` and `condition` are filled in.
_COUNTED: Final = {
    is_sqlite: (
        f"SELECT {SENDER_HOUR}, CAST({{hour}} AS integer) AS hour, sender, api, direction, status, delivery_code, "  # noqa: S608
        f"application_id, carrier_name, CASE WHEN micros IS NULL THEN {NO_BUCKET} ELSE {bucket} END AS bucket, "
        "count(*) AS deliveries, CAST(sum(CASE WHEN awaiting_receipt "
        f"AND status NOT IN ({_texts(FINAL_STATUSES)}) THEN 1 ELSE 0 END) AS bigint) AS awaiting "
        "FROM (SELECT m.listed_at, m.api, m.direction, d.status, m.awaiting_receipt, "
        f"coalesce(d.delivery_code, {NO_CODE}) AS delivery_code, "
        f"substr(coalesce(m.application_id, ''), 1, {TEXT_CHARACTERS}) AS application_id, "
        f"substr(coalesce(m.carrier_name, ''), 1, {TEXT_CHARACTERS}) AS carrier_name, "
        f"CASE WHEN m.direction = 'out' THEN substr(coalesce(m.sender, ''), 1, {TEXT_CHARACTERS}) ELSE '' END "
        "AS sender, "
        f"CASE WHEN d.status IN ({_texts(ARRIVED_STATUSES)}) THEN {micros} END AS micros "
        "FROM messages AS m "
        "JOIN deliveries AS d ON d.api = m.api AND d.direction = m.direction AND d.message_id = m.id "
        "WHERE {condition}) AS counted GROUP BY 2, 3, 4, 5, 6, 7, 8, 9, 10"
    )
    for is_sqlite, bucket, micros in (
        (True, _tree("micros", BUCKET_BOUNDS), _micros(_END, "m.created_at")),
        (
            False,
            f"width_bucket(micros, ARRAY[{', '.join(map(str, BUCKET_BOUNDS))}]::bigint[])",
            f"CAST(extract(epoch FROM {_END} - m.created_at) * 1000000 AS bigint)",
        ),
    )
}
