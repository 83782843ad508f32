"""Statistics as they are read: sums of cells and of the changes that are not added to them yet."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from heapq import nsmallest
from math import sqrt
from typing import Any, Final, TypeVar

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Row,
    Select,
    Table,
    Text,
    and_,
    cast,
    false,
    func,
    or_,
    select,
    text,
    union_all,
)

from receiver.domain.events import Api, Status
from receiver.errors import TooMuch
from receiver.models.statistics import CHANGES, STATISTICS, StatisticRead, StatisticsRead
from receiver.models.statistics_query import DIMENSIONS, StatisticsQuery
from receiver.providers import registry
from receiver.storage.database import Database
from receiver.storage.statistics_cells import (
    ALL_DAY,
    ALL_HOUR,
    ARRIVED_STATUSES,
    BUCKET_BOUNDS,
    DAY,
    DAY_HOURS,
    FINAL_STATUSES,
    HOUR,
    NO_BUCKET,
    NO_CODE,
    ONE_HOUR,
    SENDER_DAY,
    SENDER_HOUR,
    TEXT_CHARACTERS,
    TOTALS_DAY,
    TOTALS_WEEK,
    WEEK_HOURS,
    Key,
    hour_of,
    start_of,
)

# What a request may read into memory, and what it may answer.
_MOST_GROUPS: Final = 200_000
_MOST_ROWS: Final = 10_000
# Callbacks share the event loop: 1,000 rows are read in 1 to 2 ms. What takes longer is done in a thread.
_ROWS_AT_ONCE: Final = 1000
_ROWS_WITHOUT_THREAD: Final = 200
_DEFAULT_RANGE: Final = timedelta(days=30)

_T = TypeVar("_T")


@dataclass(slots=True)
class _Group:
    """The deliveries of a row of statistics by status, and those by bucket of the time to delivery."""

    # The garbage collector, which stops all threads, does not visit a plain dictionary of numbers.
    statuses: dict[str, int] = field(default_factory=dict)
    deliveries: int = 0
    awaiting: int = 0
    buckets: dict[int, int] = field(default_factory=dict)

    def add(self, status: str, bucket: int, deliveries: int, awaiting: int) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + deliveries
        self.deliveries += deliveries
        self.awaiting += awaiting
        if bucket != NO_BUCKET:
            self.buckets[bucket] = self.buckets.get(bucket, 0) + deliveries

    def number(self, *statuses: Status) -> int:
        """The deliveries with one of these statuses."""
        return sum(self.statuses.get(status, 0) for status in statuses)

    def percentile(self, percent: int) -> float | None:
        """The time in seconds within which this part of the deliveries were delivered: the middle of its bucket."""
        deliveries = sum(self.buckets.values())
        if not deliveries:
            # Buckets are left whose changes add up to nothing.
            return None
        # The rank is rounded up, in whole numbers.
        rank = -(-deliveries * percent // 100)
        for bucket in sorted(self.buckets):
            rank -= self.buckets[bucket]
            if rank <= 0:
                return _middle(bucket)
        return None


class _Groups:
    """Adds up what the statements find, by the dimensions with these names, made from these columns.

    `counted` is the number of groups with deliveries, `existing` that of all of them where only the largest are read.
    """

    def __init__(self, names: Sequence[str], grouped: Sequence[str]) -> None:
        self.by_key: defaultdict[Key, _Group] = defaultdict(_Group)
        self.counted = 0
        self.existing = 0
        self._names = names
        self._grouped = grouped
        self._by_columns: dict[Key, _Group] = {}

    def add(self, found: Iterable[Row[Any]]) -> None:
        number = len(self._grouped)
        for row in found:
            columns = row[:number]
            group = self._by_columns.get(columns)
            if group is None:
                key = _values(self._names, dict(zip(self._grouped, columns, strict=True)))
                group = self._by_columns[columns] = self.by_key[key]
            before = group.deliveries > 0
            group.add(*row[number : number + _SUMMED])
            self.counted += (group.deliveries > 0) - before
            if len(row) > number + _SUMMED:
                self.existing = row[-1]


def _middle(bucket: int) -> float:
    """The geometric middle of a bucket in seconds. The first and the last one are open: their bound."""
    lower, upper = BUCKET_BOUNDS[max(bucket - 1, 0)], BUCKET_BOUNDS[min(bucket, len(BUCKET_BOUNDS) - 1)]
    return round(sqrt(lower * upper) / 1_000_000, 3)


async def find(database: Database, query: StatisticsQuery, now: datetime) -> StatisticsRead:
    """The statistics of a range of whole hours. Raises TooMuch if they have very many rows."""
    first, end = _range(query, now)
    names = [DIMENSIONS[dimension] for dimension in dict.fromkeys(query.by)]
    grouped = _grouped_by(names)
    groups = _Groups(names, grouped)
    async with database.reading() as connection:
        if not database.is_sqlite:
            # One snapshot: between two statements, changes could be added to the cells. A single statement with UNION
            # ALL was planned badly, and took three times as long.
            await connection.execution_options(isolation_level="REPEATABLE READ")
            # With 4 MB, the default of PostgreSQL, the sums of thousands of senders were sorted on disk: a third more.
            await connection.execute(text("SET LOCAL work_mem = '64MB'"))
        statements: list[tuple[Table | None, Select[Any]]] = list(_statements(query, grouped, first, end))
        if query.limit is not None and names == grouped and names:
            statements = [(None, _of_largest(statements, grouped, query.limit, not database.is_sqlite))]
        for table, statement in statements:
            result = await connection.execute(statement.limit(_MOST_GROUPS + 1))
            read = 0
            while found := result.fetchmany(_ROWS_AT_ONCE):
                read += len(found)
                await _in_thread(len(found), groups.add, found)
                # Cells only add to what the changes, which are read first, have left.
                is_large = table is STATISTICS and query.limit is None and groups.counted > _MOST_ROWS
                if read > _MOST_GROUPS or is_large:
                    raise _too_many()
    rows = await _in_thread(len(groups.by_key), _rows, names, groups, query.limit)
    left_out = max(groups.counted, groups.existing) - len(rows)
    return StatisticsRead(since=start_of(first), until=start_of(end), rows=rows, left_out=left_out)


async def _in_thread(number: int, work: Callable[..., _T], *args: Any) -> _T:
    """The result of some work on this number of rows, done in a thread if they are many."""
    if number <= _ROWS_WITHOUT_THREAD:
        return work(*args)
    return await asyncio.to_thread(work, *args)


def _rows(names: Sequence[str], groups: _Groups, limit: int | None) -> list[StatisticRead]:
    """The rows in their order. Raises TooMuch before they are sorted."""
    if limit is None and groups.counted > _MOST_ROWS:
        raise _too_many()
    counted = {key: group for key, group in groups.by_key.items() if group.deliveries > 0}
    if limit is None:
        keys = sorted(counted, key=_in_order)
    else:
        # Sorting all of them would hold the interpreter's lock for its whole time, also in a thread.
        keys = nsmallest(limit, counted, key=lambda key: (-counted[key].deliveries, _in_order(key)))
    return [_row(names, key, counted[key]) for key in keys]


def _too_many() -> TooMuch:
    return TooMuch(
        f"the statistics have more than {_MOST_ROWS:,} rows: give fewer dimensions, a shorter time, filters, or a limit"
    )


def _range(query: StatisticsQuery, now: datetime) -> tuple[int, int]:
    """The first hour, and the hour after the last one."""
    until = query.until if query.until is not None else now
    end = hour_of(until) + (start_of(hour_of(until)) < until)
    if query.since is not None:
        return hour_of(query.since), end
    return max(end - _DEFAULT_RANGE // ONE_HOUR, hour_of(datetime.min.replace(tzinfo=UTC))), end


def _grouped_by(names: Sequence[str]) -> list[str]:
    """The columns that the dimensions are made of."""
    columns: dict[str, None] = {}
    for name in names:
        columns |= dict.fromkeys(_MADE_OF.get(name, (name,)))
    return list(columns)


_MADE_OF: Final = {"category": ("api", "delivery_code"), "day": ("hour",), "week": ("hour",)}


def _statements(
    query: StatisticsQuery, grouped: Sequence[str], first: int, end: int
) -> Iterator[tuple[Table, Select[Any]]]:
    """A SELECT of the changes that are not added to the cells yet, and one of the cells, with their tables."""
    parts = [
        and_(STATISTICS.c.grain == grain, STATISTICS.c.hour >= start, STATISTICS.c.hour < stop)
        for grain, start, stop in _parts(_grains(query), first, end)
    ]
    yield CHANGES, _summed(CHANGES, query, grouped).where(CHANGES.c.hour >= first, CHANGES.c.hour < end)
    yield STATISTICS, _summed(STATISTICS, query, grouped).where(or_(false(), *parts))


def _summed(table: Any, query: StatisticsQuery, grouped: Sequence[str]) -> Select[Any]:
    """The SELECT for the sums of cells, or of their changes."""
    keys = [*(table.c[name] for name in grouped), table.c.status.label("of_status"), table.c.bucket]
    # PostgreSQL's sum is a decimal number, which takes long to read.
    sums = (cast(func.sum(table.c[name]), BigInteger).label(name) for name in ("deliveries", "awaiting"))
    return select(*keys, *sums).where(*_conditions(table, query)).group_by(*keys)


# The values of a row after its dimensions: status, bucket and the two sums.
_SUMMED: Final = 4


def _of_largest(
    statements: Sequence[tuple[Table | None, Select[Any]]], grouped: Sequence[str], limit: int, is_postgresql: bool
) -> Select[Any]:
    """The SELECT for the sums of the groups with most deliveries alone, and for the number of all groups.

    Thousands of senders have tens of thousands of sums by status and bucket, which took longer to read than to find.
    """
    found = union_all(*(statement for _, statement in statements)).cte("found")
    keys = [found.c[name] for name in grouped]
    deliveries = func.sum(found.c.deliveries)
    in_order: list[ColumnElement[Any]] = []
    for key in keys:
        # In the order of `_rows`, for groups with as many deliveries: what is not known comes last.
        if isinstance(key.type, Text):
            in_order += [key == "", key.collate("C") if is_postgresql else key]
        else:
            in_order += [key == NO_CODE, key] if key.name == "delivery_code" else [key]
    largest = (
        select(*keys, func.count().over().label("existing"))
        .group_by(*keys)
        .having(deliveries > 0)
        .order_by(deliveries.desc(), *in_order)
        .limit(limit)
        .subquery("largest")
    )
    same = and_(*(key == largest.c[key.name] for key in keys))
    return select(*found.c, largest.c.existing).join_from(found, largest, same)


_DETAILS: Final = frozenset({"deliveryCode", "category", "carrierName"})


def _grains(query: StatisticsQuery) -> dict[int, int]:
    """The grains that answer a query, with the hours of their cells; the shortest first."""
    has_details = query.delivery_code or query.carrier_name is not None or not _DETAILS.isdisjoint(query.by)
    if query.sender is not None or "from" in query.by:
        totals = {TOTALS_DAY: DAY_HOURS, TOTALS_WEEK: WEEK_HOURS}
        grains = {SENDER_HOUR: 1, **({SENDER_DAY: DAY_HOURS} if has_details else totals)}
    elif has_details or query.application_id is not None or "applicationId" in query.by:
        grains = {HOUR: 1, DAY: DAY_HOURS}
    else:
        grains = {ALL_HOUR: 1, ALL_DAY: DAY_HOURS}
    # The cells of a week begin on a Thursday, the weeks of people on a Monday: they are made of days.
    longest = 1 if "hour" in query.by else WEEK_HOURS if {"day", "week"}.isdisjoint(query.by) else DAY_HOURS
    return {grain: hours for grain, hours in grains.items() if hours <= longest}


def _parts(grains: Mapping[int, int], first: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The grain, the first hour and the end of each part of a range: the longest cells in its middle."""
    # What longer cells cover already; nothing at first.
    covered, covered_end = end, end
    for grain, hours in reversed(list(grains.items())):
        start, stop = -(-first // hours) * hours, end // hours * hours
        if start < stop:
            before, after = (grain, start, min(covered, stop)), (grain, covered_end, stop)
            yield from (part for part in (before, after) if part[1] < part[2])
            covered, covered_end = start, stop


def _conditions(table: Any, query: StatisticsQuery) -> Iterator[ColumnElement[bool]]:
    if query.status:
        yield table.c.status.in_(query.status)
    if query.delivery_code:
        yield table.c.delivery_code.in_(query.delivery_code)
    if query.sender is not None:
        yield table.c.sender.in_((query.sender, f"+{query.sender}"))
    if query.application_id is not None:
        yield table.c.application_id == query.application_id[:TEXT_CHARACTERS]
    if query.carrier_name is not None:
        yield table.c.carrier_name == query.carrier_name[:TEXT_CHARACTERS]
    for name in ("direction", "api"):
        if (value := getattr(query, name)) is not None:
            yield table.c[name] == value


def _values(names: Sequence[str], columns: Mapping[str, Any]) -> Key:
    """The values of the dimensions, from those of the columns."""
    return tuple(_value(name, columns) for name in names)


def _value(name: str, columns: Mapping[str, Any]) -> Any:
    match name:
        case "category":
            code = columns["delivery_code"]
            entry = registry.entry(Api(columns["api"]), code)
            return entry.category if entry is not None else None
        case "day":
            return start_of(columns["hour"]).date()
        case "week":
            day = start_of(columns["hour"]).date()
            return day - timedelta(days=day.weekday())
        case "hour":
            return start_of(columns["hour"])
        case "delivery_code":
            return None if columns[name] == NO_CODE else columns[name]
    return columns[name] or None


def _in_order(key: Key) -> list[tuple[bool, Any]]:
    """Sorts rows by their dimensions; what is not known comes last."""
    return [(value is None, "" if value is None else value) for value in key]


def _row(names: Sequence[str], key: Key, group: _Group) -> StatisticRead:
    delivered, failed = group.number(*ARRIVED_STATUSES), group.number(Status.FAILED)
    unconfirmed = group.number(Status.UNCONFIRMED)
    ended = delivered + failed + unconfirmed
    return StatisticRead(
        **dict(zip(names, key, strict=True)),
        deliveries=group.number(*Status),
        final=group.number(*FINAL_STATUSES),
        delivered=delivered,
        failed=failed,
        unconfirmed=unconfirmed,
        awaiting_receipt=group.awaiting,
        success_rate=round(delivered / ended, 6) if ended > 0 else None,
        p50_seconds=group.percentile(50),
        p95_seconds=group.percentile(95),
    )
