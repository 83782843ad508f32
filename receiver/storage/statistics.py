"""Statistics as they are read: sums of cells and of the changes that are not added to them yet."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from heapq import nsmallest
from math import sqrt
from typing import Any, Final, TypeVar

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Row,
    Select,
    Table,
    Text,
    and_,
    case,
    cast,
    false,
    func,
    or_,
    select,
    text,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection

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
    PLAIN_DAY,
    PLAIN_WEEK,
    SENDER_DAY,
    SENDER_HOUR,
    TEXT_CHARACTERS,
    TOTALS_DAY,
    TOTALS_WEEK,
    WEEK,
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
    hours = _Hours(first, end, hour_of(now))
    async with database.searching() as connection:
        if not database.is_sqlite:
            # One snapshot: between two statements, changes could be added to the cells. A single statement with UNION
            # ALL was planned badly, and took three times as long.
            await connection.execution_options(isolation_level="REPEATABLE READ")
            # With 4 MB, the default of PostgreSQL, the sums of thousands of senders were sorted on disk: a third more.
            await connection.execute(text("SET LOCAL work_mem = '64MB'"))
        senders = _senders_of(query)
        only_adds = not hours.later(_grains(query))
        if senders is None and "sender" in names and "category" not in names:
            counted = _united(list(_statements(database, query, hours, grouped, plain=True)))
            senders, groups.existing = await _largest_senders(database, connection, query, counted, names)
        statements: list[tuple[Table | None, Select[Any]]] = [
            *_statements(database, query, hours, grouped, senders=senders)
        ]
        if query.limit is not None and names == grouped and names and senders is None:
            statements = [(None, _of_largest(statements, names, query.limit, database))]
        for table, statement in statements:
            result = await connection.execute(statement.limit(_MOST_GROUPS + 1))
            read = 0
            while found := result.fetchmany(_ROWS_AT_ONCE):
                read += len(found)
                await _in_thread(len(found), groups.add, found)
                # Cells only add to what the changes, which are read first, have left, unless later ones are subtracted.
                is_large = table is STATISTICS and only_adds and query.limit is None and groups.counted > _MOST_ROWS
                if read > _MOST_GROUPS or is_large:
                    raise _too_many()
    rows = await _in_thread(len(groups.by_key), _rows, names, groups, query.limit)
    left_out = max(groups.counted, groups.existing) - len(rows)
    return StatisticsRead(since=start_of(first), until=start_of(end), rows=rows, left_out=left_out)


async def _largest_senders(
    database: Database, connection: AsyncConnection, query: StatisticsQuery, counted: CTE, names: Sequence[str]
) -> tuple[Collection[str] | None, int]:
    """The senders of the rows with most deliveries, as many as the limit, and the number of all rows.

    Thousands of senders have very many sums by status and time to delivery: only those of the largest are read. Without
    a limit all senders are; raises TooMuch if few cells show that there are too many rows.
    """
    if query.limit is not None:
        found = (await connection.execute(_largest(counted, names, query.limit, database))).all()
        return {row.sender for row in found}, found[0].existing if found else 0
    if not _has_details(query) and await _has_too_many(connection, counted, names):
        raise _too_many()
    return None, 0


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


@dataclass(frozen=True, slots=True)
class _Hours:
    """The first hour of a range, the hour after its last one, and the present hour."""

    first: int
    end: int
    now: int

    def added(self, grains: Mapping[int, int]) -> list[tuple[int, int, int]]:
        """The grain, the first hour and the end of cells that have the range, and perhaps some hours after it."""
        return list(_parts(grains, self.first, self._covered(grains)))

    def later(self, grains: Mapping[int, int]) -> list[tuple[int, int, int]]:
        """The cells to subtract from those, all of which begin at the end of the range or later."""
        return list(_parts(grains, self.end, self._covered(grains)))

    def _covered(self, grains: Mapping[int, int]) -> int:
        """The end of the longest cell that the range ends in, if it ends now or later.

        After the present next to nothing is counted: a whole day or week costs less than the hours and days of it.
        """
        covered = self.end
        for hours in grains.values():
            if self.end > self.now and self.end // hours * hours >= self.first:
                covered = -(-self.end // hours) * hours
        return covered


def _statements(
    database: Database,
    query: StatisticsQuery,
    hours: _Hours,
    grouped: Sequence[str],
    *,
    plain: bool = False,
    senders: Collection[str] | None = None,
) -> Iterator[tuple[Table, Select[Any]]]:
    """A SELECT of the changes that are not added to the cells yet, and one of the cells, with their tables.

    With `plain` there are no sums by status and time to delivery, and with `senders` only those of some senders.
    """
    conditions = [CHANGES.c.hour >= hours.first, CHANGES.c.hour < hours.end]
    if senders is not None:
        conditions.append(database.one_of(CHANGES.c.sender, senders))
    yield CHANGES, _summed(CHANGES, query, grouped, plain=plain).where(*conditions)
    grains = _grains(query, plain=plain)
    added, later = hours.added(grains), hours.later(grains)
    cells = [
        _cells(database, grain, range(start, stop, grains[grain]), senders) for grain, start, stop in [*added, *later]
    ]
    summed = _summed(STATISTICS, query, grouped, plain=plain, end=hours.end if later else None)
    yield STATISTICS, summed.where(or_(false(), *cells))


# So many cells, or beginnings of them, are looked up one by one.
_MOST_LOOK_UPS: Final = 20_000


def _cells(database: Database, grain: int, hours: range, senders: Collection[str] | None) -> ColumnElement[bool]:
    """The cells of a grain that begin at these hours, of all senders or of some."""
    of_grain = STATISTICS.c.grain == grain
    if senders is not None and len(hours) * len(senders) <= _MOST_LOOK_UPS:
        of_senders = database.one_of(STATISTICS.c.sender, senders)
        return and_(of_grain, database.one_of(STATISTICS.c.hour, hours), of_senders)
    of_hours = and_(STATISTICS.c.hour >= hours.start, STATISTICS.c.hour < hours.stop)
    if senders is None:
        return and_(of_grain, of_hours)
    # PostgreSQL would look through all hours in its index for each of thousands of senders.
    return and_(of_grain, of_hours, database.one_of(STATISTICS.c.sender + "", senders))


def _summed(
    table: Any, query: StatisticsQuery, grouped: Sequence[str], *, plain: bool, end: int | None = None
) -> Select[Any]:
    """The SELECT for the sums of cells, or of their changes; the cells from the hour `end` on are subtracted."""
    keys = [table.c[name] for name in grouped]
    if not plain:
        keys += [table.c.status.label("of_status"), table.c.bucket]
    counts = {name: table.c[name] for name in ("deliveries", "awaiting")}
    if end is not None:
        counts = {name: case((table.c.hour >= end, -count), else_=count) for name, count in counts.items()}
    # PostgreSQL's sum is a decimal number, which takes long to read.
    sums = (cast(func.sum(count), BigInteger).label(name) for name, count in counts.items())
    return select(*keys, *sums).where(*_conditions(table, query)).group_by(*keys)


# The values of a row after its dimensions: status, bucket and the two sums.
_SUMMED: Final = 4


def _of_largest(
    statements: Sequence[tuple[Table | None, Select[Any]]], names: Sequence[str], limit: int, database: Database
) -> Select[Any]:
    """The SELECT for the sums of the rows with most deliveries alone, and for the number of all rows."""
    found = _united(statements)
    largest = _largest(found, names, limit, database).subquery("largest")
    same = and_(*(found.c[name] == largest.c[name] for name in names))
    return select(*found.c, largest.c.existing).join_from(found, largest, same)


def _united(statements: Sequence[tuple[Table | None, Select[Any]]]) -> CTE:
    return union_all(*(statement for _, statement in statements)).cte("found")


def _largest(found: CTE, names: Sequence[str], limit: int, database: Database) -> Select[Any]:
    """The SELECT for the dimensions of the rows with most deliveries, and for the number of all rows."""
    keys = [_dimension(found, name) for name in names]
    deliveries = func.sum(found.c.deliveries)
    in_order: list[ColumnElement[Any]] = []
    for key in keys:
        # In the order of `_rows`, for rows with as many deliveries: what is not known comes last.
        if isinstance(key.type, Text):
            in_order += [key == "", key if database.is_sqlite else key.collate("C")]
        else:
            in_order += [key == NO_CODE, key] if key.name == "delivery_code" else [key]
    return (
        select(*keys, func.count().over().label("existing"))
        .group_by(*keys)
        .having(deliveries > 0)
        .order_by(deliveries.desc(), *in_order)
        .limit(limit)
    )


async def _has_too_many(connection: AsyncConnection, found: CTE, names: Sequence[str]) -> bool:
    """Whether there are more rows than may be answered."""
    keys = [_dimension(found, name) for name in names]
    rows = select(*keys).group_by(*keys).having(func.sum(found.c.deliveries) > 0).limit(_MOST_ROWS + 1).subquery()
    return int(await connection.scalar(select(func.count()).select_from(rows)) or 0) > _MOST_ROWS


# Hours before 1970 are negative, and division rounds towards nothing. So many whole weeks begin before all times.
_EARLIER: Final = 110_000 * WEEK_HOURS
# The hours from the Monday before 1970 until it began.
_MONDAY: Final = 3 * DAY_HOURS


def _dimension(found: CTE, name: str) -> ColumnElement[Any]:
    """The column of a dimension; days and weeks are numbered."""
    match name:
        case "day":
            return ((found.c.hour + _EARLIER) // DAY_HOURS).label(name)
        case "week":
            return ((found.c.hour + _EARLIER + _MONDAY) // WEEK_HOURS).label(name)
    return found.c[name]


_DETAILS: Final = frozenset({"deliveryCode", "category", "carrierName"})


def _has_details(query: StatisticsQuery) -> bool:
    """Whether a query needs delivery codes or carriers."""
    return bool(query.delivery_code) or query.carrier_name is not None or not _DETAILS.isdisjoint(query.by)


def _senders_of(query: StatisticsQuery) -> Collection[str] | None:
    """The senders that the filter means: a number is written with and without its plus; None without a filter."""
    return (query.sender, f"+{query.sender}") if query.sender is not None else None


def _grains(query: StatisticsQuery, *, plain: bool = False) -> dict[int, int]:
    """The grains that answer a query, with the hours of their cells; the shortest first.

    With `plain` those that need not have the time to delivery.
    """
    has_details = _has_details(query)
    if query.sender is not None or "from" in query.by:
        day, week = (PLAIN_DAY, PLAIN_WEEK) if plain else (TOTALS_DAY, TOTALS_WEEK)
        totals = {day: DAY_HOURS, week: WEEK_HOURS}
        grains = {SENDER_HOUR: 1, **({SENDER_DAY: DAY_HOURS} if has_details else totals)}
    elif has_details or query.application_id is not None or "applicationId" in query.by:
        grains = {HOUR: 1, DAY: DAY_HOURS, WEEK: WEEK_HOURS}
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
