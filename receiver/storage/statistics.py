"""Statistics: deliveries counted in cells, per hour and per day, in the transactions that change the deliveries.

A cell is a function of the rows of a message: a change of the rows subtracts the cells before and adds those after it.
The processor appends such changes to a table of their own, and adds them to the cells once there are many. A question
sums both. In PostgreSQL each change of a cell would leave a version behind that the next one has to pass, for as long
as any transaction of the cluster lasts. All these transactions hold the lock of the event log.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import sqrt
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, bindparam, delete, func, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.events import Api, Status
from receiver.errors import TooMuch
from receiver.models.messages import DELIVERIES, MESSAGES
from receiver.models.queries import DIMENSIONS, StatisticsQuery
from receiver.models.statistics import CHANGES, STATISTICS, StatisticRead, StatisticsRead
from receiver.providers import registry
from receiver.storage.bulk import InsertMany, Step, Transaction
from receiver.storage.database import Database
from receiver.storage.messages import DELIVERY_COLUMNS, MESSAGE_COLUMNS, Rows

# The grains of cells. Only those of one sender have senders, which are many: all else is read from the others.
HOUR: Final = 0
DAY: Final = 1
SENDER_HOUR: Final = 2
SENDER_DAY: Final = 3
_GRAINS: Final = (HOUR, DAY, SENDER_HOUR, SENDER_DAY)
_DAY_HOURS: Final = 24

# An index entry of PostgreSQL has room for some 2700 bytes: longer texts are counted by their beginning.
TEXT_CHARACTERS: Final = 100
# Bandwidth's numbers have up to 18 digits.
NO_CODE: Final = -(2**63)
NO_BUCKET: Final = -1
# The upper bounds of the buckets of the time to delivery, in microseconds: from 1/8 s to 3 days, two for each doubling.
BUCKET_BOUNDS: Final = tuple(round(125_000 * 2 ** (step / 2)) for step in range(43))

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_HOUR: Final = timedelta(hours=1)
_MICROSECOND: Final = timedelta(microseconds=1)
_FINAL: Final = (Status.UNCONFIRMED, Status.DELIVERED, Status.FAILED, Status.READ, Status.RECEIVED)
_ARRIVED: Final = (Status.DELIVERED, Status.READ)
_IS_FINAL: Final = frozenset(map(str, _FINAL))
_HAS_ARRIVED: Final = frozenset(map(str, _ARRIVED))

Key = tuple[Any, ...]
"""A cell: the values of the columns of the primary key, in their order."""

_KEY_COLUMNS: Final = tuple(column.name for column in STATISTICS.primary_key.columns)
_COLUMNS: Final = (*_KEY_COLUMNS, "deliveries", "awaiting")
_ADD: Final = (
    f"ON CONFLICT ({', '.join(_KEY_COLUMNS)}) DO UPDATE SET deliveries = statistics.deliveries + excluded.deliveries, "
    "awaiting = statistics.awaiting + excluded.awaiting"
)

_OF_MESSAGE: Final = (
    "listed_at",
    "created_at",
    "api",
    "direction",
    "sender",
    "application_id",
    "carrier_name",
    "awaiting_receipt",
)
_OF_DELIVERY: Final = ("status", "delivery_code", "delivered_at", "delivered_received_at")
_message_values: Final = itemgetter(*map(MESSAGE_COLUMNS.index, _OF_MESSAGE))
_delivery_values: Final = itemgetter(*map(DELIVERY_COLUMNS.index, _OF_DELIVERY))


class Counts:
    """Changes of the counts: what rows that are added and taken away change in the cells."""

    def __init__(self) -> None:
        # Cells of one hour and one sender; the other grains follow from them.
        self._cells: defaultdict[Key, list[int]] = defaultdict(lambda: [0, 0])

    def add(self, rows: Rows, sign: int = 1) -> None:
        """Adds the deliveries of a message; with `sign` -1 it takes them away."""
        if not rows.message:
            return
        message = _message_values(rows.message)
        for row in rows.deliveries.values():
            self.add_delivery(message, _delivery_values(row), sign)

    def add_delivery(self, message: Sequence[Any], delivery: Sequence[Any], sign: int = 1) -> None:
        """Adds one delivery: the values of `_OF_MESSAGE` and of `_OF_DELIVERY`."""
        listed_at, created_at, api, direction, sender, application_id, carrier_name, awaiting = message
        status, code, delivered_at, delivered_received_at = delivery
        is_outbound = direction == "out"
        key = (
            SENDER_HOUR,
            hour_of(listed_at),
            api,
            direction,
            status,
            NO_CODE if code is None else code,
            application_id[:TEXT_CHARACTERS] if application_id else "",
            carrier_name[:TEXT_CHARACTERS] if carrier_name else "",
            # The sender of an inbound message is a customer: there are as many as messages.
            sender[:TEXT_CHARACTERS] if sender and is_outbound else "",
            _bucket(status, created_at, delivered_at, delivered_received_at),
        )
        cell = self._cells[key]
        cell[0] += sign
        if awaiting and status not in _IS_FINAL:
            cell[1] += sign

    def add_cell(self, key: Key, deliveries: int, awaiting: int) -> None:
        """Adds to a cell of one hour and one sender."""
        cell = self._cells[key]
        cell[0] += deliveries
        cell[1] += awaiting

    def rows(self, grains: Iterable[int] = _GRAINS) -> list[tuple[Any, ...]]:
        """The rows to add to the table, in the order of its key."""
        changed: defaultdict[Key, list[int]] = defaultdict(lambda: [0, 0])
        for (_, hour, *values, sender, bucket), (deliveries, awaiting) in self._cells.items():
            if not deliveries and not awaiting:
                continue
            for grain in grains:
                start = hour if grain in (HOUR, SENDER_HOUR) else hour - hour % _DAY_HOURS
                of_sender = sender if grain in (SENDER_HOUR, SENDER_DAY) else ""
                cell = changed[grain, start, *values, of_sender, bucket]
                cell[0] += deliveries
                cell[1] += awaiting
        return sorted((*key, *counts) for key, counts in changed.items() if counts != [0, 0])

    def cells(self) -> Step:
        """The step that adds to the cells."""
        return InsertMany(STATISTICS, _COLUMNS, self.rows(), _ADD)

    def step(self) -> InsertMany:
        """The step that appends the changes."""
        rows = [(*key[1:], *counts) for key, counts in self._cells.items() if counts != [0, 0]]
        return InsertMany(CHANGES, _COLUMNS[1:], rows)


def count(changes: Iterable[tuple[bool, Rows | None, Rows]]) -> InsertMany:
    """The step that counts changes as `messages.write_rows` writes them; the rows before must be those stored."""
    counts = Counts()
    for is_stored, before, after in changes:
        # Retention may have removed the row of a message whose events are still in the log.
        if is_stored and before is not None:
            counts.add(before, -1)
        counts.add(after)
    return counts.step()


# So many changes are added in one transaction: all of its statements then take less than the time they are allowed.
# Adding costs a row of each cell four updates, whatever its number of changes; a question reads so many rows more.
MOST_CHANGES: Final = 20_000
_OLDEST_CHANGES: Final = (
    f"SELECT id, {', '.join(_COLUMNS[1:])} FROM statistics_changes WHERE id > ? ORDER BY id LIMIT {MOST_CHANGES}"  # noqa: S608
)


async def add_changes(transaction: Transaction, after: int = 0) -> tuple[int, int]:
    """Adds the oldest changes to the cells; returns how many they are, and the id of the last one.

    Only changes with ids above `after` are looked for: PostgreSQL then passes none of those that it has removed before.
    """
    counts = Counts()
    rows = await transaction.fetch(_OLDEST_CHANGES, (after,))
    if not rows:
        return 0, after
    for _, *key, deliveries, awaiting in rows:
        counts.add_cell((SENDER_HOUR, *key), deliveries, awaiting)
    last = rows[-1][0]
    await transaction.run([counts.cells()])
    await transaction.execute("DELETE FROM statistics_changes WHERE id > ? AND id <= ?", (after, last))
    return len(rows), last


async def add_all_changes(transaction: Transaction) -> None:
    """Adds all changes to the cells."""
    added, last = await add_changes(transaction)
    while added == MOST_CHANGES:
        added, last = await add_changes(transaction, last)


def hour_of(moment: Any) -> int:
    """The hour of a time, or of SQLite's text for it, counted from 1970 in UTC."""
    if isinstance(moment, str):
        return _hour_of_text(moment[:13])
    hours: int = (moment - _EPOCH) // _HOUR
    return hours


@lru_cache(maxsize=4096)
def _hour_of_text(hour: str) -> int:
    return hour_of(datetime.fromisoformat(f"{hour}:00:00+00:00"))


def _bucket(status: str, created_at: Any, delivered_at: Any, delivered_received_at: Any) -> int:
    """The bucket of the time from the creation of a message by Bandwidth's clock until it was delivered.

    The end is by Bandwidth's clock too, else (v1) it is when we received the first callback that proves the delivery.
    """
    if status not in _HAS_ARRIVED or created_at is None:
        return NO_BUCKET
    end = delivered_at if delivered_at is not None else delivered_received_at if status == "delivered" else None
    if end is None:
        return NO_BUCKET
    return bisect_right(BUCKET_BOUNDS, (_moment(end) - _moment(created_at)) // _MICROSECOND)


def _moment(value: Any) -> datetime:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


# --- retention ---


async def forget(database: Database, connection: AsyncConnection, keys: Collection[tuple[str, str, str]]) -> None:
    """Takes the messages with these keys (api, direction, id), which are about to be removed, out of the statistics."""
    counts, width = Counts(), len(_OF_MESSAGE)
    statement = select(
        *(MESSAGES.c[name] for name in _OF_MESSAGE), *(DELIVERIES.c[name] for name in _OF_DELIVERY), MESSAGES.c.id
    ).join_from(MESSAGES, DELIVERIES, _SAME_MESSAGE)
    ids = {"ids": database.texts({id_ for _, _, id_ in keys})}
    for row in await connection.execute(statement.where(database.among(MESSAGES.c.id, "ids")), ids):
        if (row.api, row.direction, row.id) in keys:
            counts.add_delivery(row[:width], row[width:-1], -1)
    rows = counts.rows()
    if not rows:
        return
    insert = database.insert(STATISTICS)
    added = {name: STATISTICS.c[name] + insert.excluded[name] for name in ("deliveries", "awaiting")}
    statement = insert.on_conflict_do_update(index_elements=_KEY_COLUMNS, set_=added)
    await connection.execute(statement, [dict(zip(_COLUMNS, row, strict=True)) for row in rows])
    emptied = delete(STATISTICS).where(
        _IS_EMPTY, *(STATISTICS.c[name] == bindparam(f"key_{name}") for name in _KEY_COLUMNS)
    )
    await connection.execute(emptied, [dict(zip(_KEY_PARAMETERS, row, strict=False)) for row in rows])


_KEY_PARAMETERS: Final = tuple(f"key_{name}" for name in _KEY_COLUMNS)
_IS_EMPTY: Final = and_(STATISTICS.c.deliveries == 0, STATISTICS.c.awaiting == 0)
_SAME_MESSAGE: Final = and_(
    MESSAGES.c.api == DELIVERIES.c.api,
    MESSAGES.c.direction == DELIVERIES.c.direction,
    MESSAGES.c.id == DELIVERIES.c.message_id,
)
# Most deliveries reach their final status within this time, and leave cells behind that count nothing.
_SWEPT_HOURS: Final = 72


async def sweep(connection: AsyncConnection, now: datetime) -> None:
    """Removes cells of the last days that count nothing. The connection holds the lock of the event log."""
    for grain in _GRAINS:
        is_recent = and_(STATISTICS.c.grain == grain, STATISTICS.c.hour >= hour_of(now) - _SWEPT_HOURS)
        await connection.execute(delete(STATISTICS).where(is_recent, _IS_EMPTY))


# --- rebuilding ---


class Recount:
    """Counts all rows again, hour by hour, and corrects the cells. With `writes` False it only counts the wrong cells.

    Each hour is one transaction, which holds the lock of the event log; after the hours of a day its cells follow.
    """

    def __init__(self, database: Database, *, writes: bool = True) -> None:
        self._database = database
        self._writes = writes

    async def run(self) -> int:
        """Corrects all cells; returns how many were wrong."""
        added, last = MOST_CHANGES, 0
        while added == MOST_CHANGES:
            async with self._database.appending() as transaction:
                added, last = await add_changes(transaction, last)
        wrong, hour = 0, await self._next_hour(None)
        while hour is not None:
            wrong += await self._correct_hour(hour)
            following = await self._next_hour(hour)
            day = hour - hour % _DAY_HOURS
            if following is None or following >= day + _DAY_HOURS:
                wrong += await self._correct_day(day)
            hour = following
        return wrong

    async def _next_hour(self, hour: int | None) -> int | None:
        """The first hour after `hour` that has messages or cells."""
        firsts = [_first_cell(grain, hour) for grain in _GRAINS]
        listed = select(func.min(MESSAGES.c.listed_at))
        if hour is not None:
            listed = listed.where(MESSAGES.c.listed_at >= _start(hour + 1))
        async with self._database.reading() as connection:
            found = [row[0] for row in await connection.execute(union_all(*firsts))]
            listed_at = await connection.scalar(listed)
        found.append(hour_of(listed_at) if listed_at is not None else None)
        return min((first for first in found if first is not None), default=None)

    async def _correct_hour(self, hour: int) -> int:
        async with self._database.appending() as transaction:
            await add_all_changes(transaction)
            right = Counts()
            for key, *counts in await _counted(self._database, transaction, hour):
                right.add_cell(key, *counts)
            return await self._correct(transaction, hour, right.rows((HOUR, SENDER_HOUR)), (HOUR, SENDER_HOUR))

    async def _correct_day(self, day: int) -> int:
        async with self._database.appending() as transaction:
            await add_all_changes(transaction)
            right = Counts()
            for row in await transaction.fetch(_HOURS_OF_DAY, (SENDER_HOUR, day, day + _DAY_HOURS)):
                right.add_cell(tuple(row[:-2]), *row[-2:])
            return await self._correct(transaction, day, right.rows((DAY, SENDER_DAY)), (DAY, SENDER_DAY))

    async def _correct(
        self, transaction: Transaction, hour: int, right: Sequence[tuple[Any, ...]], grains: Iterable[int]
    ) -> int:
        stored: dict[Key, tuple[int, int]] = {}
        for grain in grains:
            found = await transaction.fetch(_CELLS, (grain, hour))
            stored |= {row[:-2]: row[-2:] for row in found}
        wanted = {row[:-2]: row[-2:] for row in right}
        changes = []
        for key in stored.keys() | wanted.keys():
            old, new = stored.get(key, (0, 0)), wanted.get(key, (0, 0))
            if old != new:
                changes.append((*key, new[0] - old[0], new[1] - old[1]))
        if self._writes:
            await transaction.run([InsertMany(STATISTICS, _COLUMNS, sorted(changes), _ADD)])
            for grain in grains:
                await transaction.execute(_DROP_EMPTY, (grain, hour))
        return len(changes)


def _first_cell(grain: int, hour: int | None) -> Select[Any]:
    of_grain = select(func.min(STATISTICS.c.hour)).where(STATISTICS.c.grain == grain)
    return of_grain if hour is None else of_grain.where(STATISTICS.c.hour > hour)


_LISTED: Final = ", ".join(_COLUMNS)
_CELLS: Final = f"SELECT {_LISTED} FROM statistics WHERE grain = ? AND hour = ?"  # noqa: S608
_HOURS_OF_DAY: Final = f"SELECT {_LISTED} FROM statistics WHERE grain = ? AND hour >= ? AND hour < ?"  # noqa: S608
_DROP_EMPTY: Final = "DELETE FROM statistics WHERE grain = ? AND hour = ? AND deliveries = 0 AND awaiting = 0"


def _start(hour: int) -> datetime:
    """The beginning of an hour; the end of time for an hour that begins later."""
    try:
        return _EPOCH + hour * _HOUR
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


async def _counted(database: Database, transaction: Transaction, hour: int) -> list[tuple[Any, ...]]:
    """The cells of one hour and all senders, counted from the rows of its messages."""
    time = transaction.spelling.time
    statement = _COUNTED[database.is_sqlite].format(hour="?", condition="m.listed_at >= ? AND m.listed_at < ?")
    parameters = (hour, time(_start(hour)), time(_start(hour + 1)))
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
        f"SELECT {SENDER_HOUR}, CAST({{hour}} AS integer) AS hour, api, direction, status, delivery_code, "  # noqa: S608
        f"application_id, carrier_name, sender, CASE WHEN micros IS NULL THEN {NO_BUCKET} ELSE {bucket} END AS bucket, "
        f"count(*) AS deliveries, CAST(sum(CASE WHEN awaiting_receipt AND status NOT IN ({_texts(_FINAL)}) THEN 1 "
        "ELSE 0 END) AS bigint) AS awaiting "
        "FROM (SELECT m.listed_at, m.api, m.direction, d.status, m.awaiting_receipt, "
        f"coalesce(d.delivery_code, {NO_CODE}) AS delivery_code, "
        f"substr(coalesce(m.application_id, ''), 1, {TEXT_CHARACTERS}) AS application_id, "
        f"substr(coalesce(m.carrier_name, ''), 1, {TEXT_CHARACTERS}) AS carrier_name, "
        f"CASE WHEN m.direction = 'out' THEN substr(coalesce(m.sender, ''), 1, {TEXT_CHARACTERS}) ELSE '' END "
        "AS sender, "
        f"CASE WHEN d.status IN ({_texts(_ARRIVED)}) THEN {micros} END AS micros "
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


# --- reading ---

# What a request may read into memory, and what it may answer.
_MOST_GROUPS: Final = 200_000
_MOST_ROWS: Final = 10_000
_DEFAULT_RANGE: Final = timedelta(days=30)


@dataclass(slots=True)
class _Group:
    """The deliveries of a row of statistics by status, and those by bucket of the time to delivery."""

    statuses: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    awaiting: int = 0
    buckets: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, status: str, bucket: int, deliveries: int, awaiting: int) -> None:
        self.statuses[status] += deliveries
        self.awaiting += awaiting
        if bucket != NO_BUCKET:
            self.buckets[bucket] += deliveries

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


def _middle(bucket: int) -> float:
    """The geometric middle of a bucket in seconds. The first and the last one are open: their bound."""
    lower, upper = BUCKET_BOUNDS[max(bucket - 1, 0)], BUCKET_BOUNDS[min(bucket, len(BUCKET_BOUNDS) - 1)]
    return round(sqrt(lower * upper) / 1_000_000, 3)


async def find(database: Database, query: StatisticsQuery, now: datetime) -> StatisticsRead:
    """The statistics of a range of whole hours. Raises TooMuch if they have very many rows."""
    first, end = _range(query, now)
    groups: defaultdict[Key, _Group] = defaultdict(_Group)
    names = [DIMENSIONS[dimension] for dimension in dict.fromkeys(query.by)]
    grouped = _grouped_by(names)
    async with database.reading() as connection:
        if not database.is_sqlite:
            # One snapshot: between two statements, changes could be added to the cells. A single statement with UNION
            # ALL was planned badly, and took three times as long.
            await connection.execution_options(isolation_level="REPEATABLE READ")
        for statement in _statements(query, grouped, first, end):
            found = (await connection.execute(statement.limit(_MOST_GROUPS + 1))).all()
            if len(found) > _MOST_GROUPS:
                raise _too_many()
            for row in found:
                key = _values(names, dict(zip(grouped, row, strict=False)))
                groups[key].add(*row[len(grouped) : -2], *map(int, row[-2:]))
    if len(groups) > _MOST_ROWS:
        raise _too_many()
    rows = [_row(names, key, groups[key]) for key in sorted(groups, key=_in_order) if groups[key].number(*Status) > 0]
    return StatisticsRead(since=_start(first), until=_start(end), rows=rows)


def _too_many() -> TooMuch:
    return TooMuch(
        f"the statistics have more than {_MOST_ROWS:,} rows: give fewer dimensions, a shorter time, or filters"
    )


def _range(query: StatisticsQuery, now: datetime) -> tuple[int, int]:
    """The first hour, and the hour after the last one."""
    until = query.until if query.until is not None else now
    end = hour_of(until) + (_start(hour_of(until)) < until)
    if query.since is not None:
        return hour_of(query.since), end
    return max(end - _DEFAULT_RANGE // _HOUR, hour_of(datetime.min.replace(tzinfo=UTC))), end


def _grouped_by(names: Sequence[str]) -> list[str]:
    """The columns that the dimensions are made of."""
    columns: dict[str, None] = {}
    for name in names:
        columns |= dict.fromkeys({"category": ("api", "delivery_code"), "day": ("hour",)}.get(name, (name,)))
    return list(columns)


def _statements(query: StatisticsQuery, grouped: Sequence[str], first: int, end: int) -> Iterator[Select[Any]]:
    """A SELECT for each grain: whole days from the cells of days, the rest from those of hours."""
    has_sender = query.sender is not None or "from" in query.by
    hour_grain, day_grain = (SENDER_HOUR, SENDER_DAY) if has_sender else (HOUR, DAY)
    for grain, start, stop in _parts(first, end, hours_only="hour" in query.by):
        if start < stop:
            of_grain = STATISTICS.c.grain == (day_grain if grain == DAY else hour_grain)
            yield _summed(STATISTICS, query, grouped, start, stop).where(of_grain)
    yield _summed(CHANGES, query, grouped, first, end)


def _summed(table: Any, query: StatisticsQuery, grouped: Sequence[str], start: int, stop: int) -> Select[Any]:
    """The SELECT for the sums of the cells, or of their changes, that begin within these hours."""
    keys = [*(table.c[name] for name in grouped), table.c.status.label("of_status"), table.c.bucket]
    sums = func.sum(table.c.deliveries), func.sum(table.c.awaiting)
    within = table.c.hour >= start, table.c.hour < stop
    return select(*keys, *sums).where(*within, *_conditions(table, query)).group_by(*keys)


def _parts(first: int, end: int, *, hours_only: bool) -> Iterator[tuple[int, int, int]]:
    """The grain, the first hour and the end of each part of a range."""
    day, last_day = -(-first // _DAY_HOURS) * _DAY_HOURS, end // _DAY_HOURS * _DAY_HOURS
    if hours_only or day >= last_day:
        yield HOUR, first, end
        return
    yield from ((HOUR, first, day), (DAY, day, last_day), (HOUR, last_day, end))


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
            return _start(columns["hour"]).date()
        case "hour":
            return _start(columns["hour"])
        case "delivery_code":
            return None if columns[name] == NO_CODE else columns[name]
    return columns[name] or None


def _in_order(key: Key) -> list[tuple[bool, Any]]:
    """Sorts rows by their dimensions; what is not known comes last."""
    return [(value is None, "" if value is None else value) for value in key]


def _row(names: Sequence[str], key: Key, group: _Group) -> StatisticRead:
    delivered, failed = group.number(*_ARRIVED), group.number(Status.FAILED)
    unconfirmed = group.number(Status.UNCONFIRMED)
    ended = delivered + failed + unconfirmed
    return StatisticRead(
        **dict(zip(names, key, strict=True)),
        deliveries=group.number(*Status),
        final=group.number(*_FINAL),
        delivered=delivered,
        failed=failed,
        unconfirmed=unconfirmed,
        awaiting_receipt=group.awaiting,
        success_rate=round(delivered / ended, 6) if ended > 0 else None,
        p50_seconds=group.percentile(50),
        p95_seconds=group.percentile(95),
    )
