"""Statistics: deliveries counted in cells, per hour, day and week, in the transactions that change the deliveries.

A cell is a function of the rows of a message: a change of the rows subtracts the cells before and adds those after it.
The processor appends such changes to a table of their own, and adds them to the cells once there are many. A question
sums both. In PostgreSQL each change of a cell would leave a version behind that the next one has to pass, for as long
as any transaction of the cluster lasts. All these transactions hold the lock of the event log.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final, NamedTuple

from receiver.domain.events import Status
from receiver.models.statistics import CHANGES, STATISTICS
from receiver.storage.bulk import InsertMany, Step, Transaction
from receiver.storage.messages import DELIVERY_COLUMNS, MESSAGE_COLUMNS, Rows

# The grains of cells. Only those of one sender have senders, which are many: all else is read from the others. Totals
# are of one sender too, and leave out delivery code and carrier: few cells for questions about all senders. Plain
# totals leave out the time to delivery as well, and say which senders have most deliveries. Those of all messages leave
# out the application: the hours of 30 days are a million cells otherwise.
HOUR: Final = 0
DAY: Final = 1
SENDER_HOUR: Final = 2
SENDER_DAY: Final = 3
TOTALS_DAY: Final = 4
TOTALS_WEEK: Final = 5
ALL_HOUR: Final = 6
ALL_DAY: Final = 7
PLAIN_DAY: Final = 8
PLAIN_WEEK: Final = 9
WEEK: Final = 10
DAY_HOURS: Final = 24
# A week begins on a Thursday, as 1970 did.
WEEK_HOURS: Final = 168


class Shape(NamedTuple):
    """What the cells of a grain have."""

    hours: int
    has_sender: bool = False
    has_application: bool = True
    # Delivery code and carrier.
    has_details: bool = True
    has_bucket: bool = True


SHAPES: Final = {
    HOUR: Shape(1),
    DAY: Shape(DAY_HOURS),
    WEEK: Shape(WEEK_HOURS),
    SENDER_HOUR: Shape(1, has_sender=True),
    SENDER_DAY: Shape(DAY_HOURS, has_sender=True),
    TOTALS_DAY: Shape(DAY_HOURS, has_sender=True, has_details=False),
    TOTALS_WEEK: Shape(WEEK_HOURS, has_sender=True, has_details=False),
    PLAIN_DAY: Shape(DAY_HOURS, has_sender=True, has_details=False, has_bucket=False),
    PLAIN_WEEK: Shape(WEEK_HOURS, has_sender=True, has_details=False, has_bucket=False),
    ALL_HOUR: Shape(1, has_application=False, has_details=False),
    ALL_DAY: Shape(DAY_HOURS, has_application=False, has_details=False),
}
GRAINS: Final = tuple(SHAPES)

# An index entry of PostgreSQL has room for some 2700 bytes: longer texts are counted by their beginning.
TEXT_CHARACTERS: Final = 100
# Bandwidth's numbers have up to 18 digits.
NO_CODE: Final = -(2**63)
NO_BUCKET: Final = -1
# The upper bounds of the buckets of the time to delivery, in microseconds: from 1/8 s to 3 days, two for each doubling.
BUCKET_BOUNDS: Final = tuple(round(125_000 * 2 ** (step / 2)) for step in range(43))

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
ONE_HOUR: Final = timedelta(hours=1)
_MICROSECOND: Final = timedelta(microseconds=1)
FINAL_STATUSES: Final = (Status.UNCONFIRMED, Status.DELIVERED, Status.FAILED, Status.READ, Status.RECEIVED)
ARRIVED_STATUSES: Final = (Status.DELIVERED, Status.READ)
_IS_FINAL: Final = frozenset(map(str, FINAL_STATUSES))
_HAS_ARRIVED: Final = frozenset(map(str, ARRIVED_STATUSES))

Key = tuple[Any, ...]
"""A cell: the values of the columns of the primary key, in their order."""

KEY_COLUMNS: Final = tuple(column.name for column in STATISTICS.primary_key.columns)
CELL_COLUMNS: Final = (*KEY_COLUMNS, "deliveries", "awaiting")
ADD_TO_CELLS: Final = (
    f"ON CONFLICT ({', '.join(KEY_COLUMNS)}) DO UPDATE SET deliveries = statistics.deliveries + excluded.deliveries, "
    "awaiting = statistics.awaiting + excluded.awaiting"
)

COUNTED_OF_MESSAGE: Final = (
    "listed_at",
    "created_at",
    "api",
    "direction",
    "sender",
    "application_id",
    "carrier_name",
    "awaiting_receipt",
)
COUNTED_OF_DELIVERY: Final = ("status", "delivery_code", "delivered_at", "delivered_received_at")
_message_values: Final = itemgetter(*map(MESSAGE_COLUMNS.index, COUNTED_OF_MESSAGE))
_delivery_values: Final = itemgetter(*map(DELIVERY_COLUMNS.index, COUNTED_OF_DELIVERY))


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
        """Adds one delivery: the values of `COUNTED_OF_MESSAGE` and of `COUNTED_OF_DELIVERY`."""
        listed_at, created_at, api, direction, sender, application_id, carrier_name, awaiting = message
        status, code, delivered_at, delivered_received_at = delivery
        is_outbound = direction == "out"
        key = (
            SENDER_HOUR,
            hour_of(listed_at),
            # The sender of an inbound message is a customer: there are as many as messages.
            sender[:TEXT_CHARACTERS] if sender and is_outbound else "",
            api,
            direction,
            status,
            NO_CODE if code is None else code,
            application_id[:TEXT_CHARACTERS] if application_id else "",
            carrier_name[:TEXT_CHARACTERS] if carrier_name else "",
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

    def rows(self, grains: Iterable[int] = GRAINS) -> list[tuple[Any, ...]]:
        """The rows to add to the table, in the order of its key."""
        changed: defaultdict[Key, list[int]] = defaultdict(lambda: [0, 0])
        shapes = [(grain, *SHAPES[grain]) for grain in grains]
        for key, (deliveries, awaiting) in self._cells.items():
            if not deliveries and not awaiting:
                continue
            _, hour, sender, api, direction, status, code, application, carrier, bucket = key
            for grain, hours, has_sender, has_application, has_details, has_bucket in shapes:
                cell = changed[
                    grain,
                    hour - hour % hours,
                    sender if has_sender else "",
                    api,
                    direction,
                    status,
                    code if has_details else NO_CODE,
                    application if has_application else "",
                    carrier if has_details else "",
                    bucket if has_bucket else NO_BUCKET,
                ]
                cell[0] += deliveries
                cell[1] += awaiting
        return sorted((*key, *counts) for key, counts in changed.items() if counts != [0, 0])

    def cells(self) -> Step:
        """The step that adds to the cells."""
        return InsertMany(STATISTICS, CELL_COLUMNS, self.rows(), ADD_TO_CELLS)

    def step(self) -> InsertMany:
        """The step that appends the changes."""
        rows = [(*key[1:], *counts) for key, counts in self._cells.items() if counts != [0, 0]]
        return InsertMany(CHANGES, CELL_COLUMNS[1:], rows)


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
    f"SELECT id, {', '.join(CELL_COLUMNS[1:])} FROM statistics_changes WHERE id > ? ORDER BY id LIMIT {MOST_CHANGES}"  # noqa: S608
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
    hours: int = (moment - _EPOCH) // ONE_HOUR
    return hours


@lru_cache(maxsize=4096)
def _hour_of_text(hour: str) -> int:
    return hour_of(datetime.fromisoformat(f"{hour}:00:00+00:00"))


def start_of(hour: int) -> datetime:
    """The beginning of an hour; the end of time for an hour that begins later."""
    try:
        return _EPOCH + hour * ONE_HOUR
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


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
