"""Counts the events of the log by minute, hour and values, for the rules of alerts.

The evaluation counts what was appended since its last round: `alerting.cursor` says how far it has got, and moves in
the transaction that writes the counts. The time is that of receipt, by our clock. A cell has the values of `Cell`;
cells of one sender are in grains of their own, without times to delivery, because senders may be many.
"""

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import chain
from math import sqrt
from typing import Any, Final, NamedTuple

from sqlalchemy import bindparam, select, update
from sqlalchemy import text as sql
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.alert_facts import BEFORE, HISTORY_HOURS, Cell, Measure, span_of
from receiver.domain.alerts import Rule
from receiver.domain.events import RECONCILED, REGISTERED
from receiver.domain.vocabulary import number_key
from receiver.models.alerts import ALERTING, EVENT_COUNTS
from receiver.providers import PROVIDERS
from receiver.storage import event_log
from receiver.storage.alerts import AlertingLeaseLost
from receiver.storage.database import Database
from receiver.storage.postgresql import insert_arrays
from receiver.storage.statistics_cells import BUCKET_BOUNDS, NO_BUCKET, NO_CODE, TEXT_CHARACTERS

MINUTE: Final = "minute"
HOUR: Final = "hour"
SENDER_MINUTE: Final = "sender-minute"
SENDER_HOUR: Final = "sender-hour"
HISTORY: Final = "history"

MINUTES_KEPT: Final = timedelta(hours=2)
LONGEST_WINDOW: Final = timedelta(hours=24)
HOURS_KEPT: Final = LONGEST_WINDOW + BEFORE + timedelta(hours=2)
HISTORY_KEPT: Final = timedelta(hours=HISTORY_HOURS)
_KEPT: Final = {
    MINUTE: (timedelta(minutes=1), MINUTES_KEPT),
    SENDER_MINUTE: (timedelta(minutes=1), MINUTES_KEPT),
    HOUR: (timedelta(hours=1), HOURS_KEPT),
    SENDER_HOUR: (timedelta(hours=1), HOURS_KEPT),
    HISTORY: (timedelta(hours=1), HISTORY_KEPT),
}

# A batch is one transaction; on SQLite others wait for it.
BATCH: Final = 500
# How long a round counts at most; the next one begins at once if something is left.
MOST_SECONDS: Final = 2.0
BEHIND_EVENTS: Final = 10_000
"""With more uncounted events than this, the counts say nothing about silence."""
# Counting more than these would take longer than half an hour; of what lies before them, nothing is counted.
MOST_BEHIND: Final = 5_000_000
# Senders of an hour that are counted one by one; an installation may have a number for each of its customers. With ten
# thousand of them reading the cells of a day took 12 s.
MOST_SENDERS: Final = 500
_MISSED_ROUNDS: Final = 3

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FINAL: Final[Mapping[str, Measure]] = {
    "delivered": Measure.DELIVERED,
    "read": Measure.DELIVERED,
    "failed": Measure.FAILED,
    "unconfirmed": Measure.UNCONFIRMED,
}
_REACHED: Final = ("delivered", "read")
_VERDICTS: Final[Mapping[str, Measure]] = {
    "forged": Measure.FORGED,
    "missing": Measure.MISSING,
    "unsigned": Measure.UNSIGNED,
}
_OF_CARRIERS: Final = frozenset(_FINAL.values())
_IN_HISTORY: Final = frozenset({Measure.RECEIPT, Measure.INBOUND})

_KEY: Final = tuple(column.name for column in EVENT_COUNTS.primary_key.columns)
_COLUMNS: Final = (*_KEY, "events")
_ADD: Final = f"ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET events = event_counts.events + excluded.events"
_PLACES: Final = ", ".join("?" * len(_COLUMNS))
_INSERT_SQLITE: Final = f"INSERT INTO event_counts ({', '.join(_COLUMNS)}) VALUES ({_PLACES}) {_ADD}"  # noqa: S608


@dataclass(frozen=True, slots=True)
class Counted:
    """How many events a round has counted, and how many are left for the next."""

    events: int
    left: int


# --- counting ---


async def count(
    database: Database,
    epoch: int,
    now: datetime,
    *,
    senders: frozenset[str] | None = frozenset(),
    most_seconds: float = MOST_SECONDS,
) -> Counted:
    """Counts the events that were appended since, in batches of a transaction each, and removes counts that are old.

    `senders` are those of `senders_of`. Raises AlertingLeaseLost if the epoch is no longer that of the lease.
    """
    started = time.monotonic()
    cursor, end, since = await _bounds(database, epoch, now)
    if end - cursor > MOST_BEHIND:
        # Times of receipt do not rise with the positions: imports and reprocessed callbacks append old ones. No event
        # is left out because of its time; the cells leave out what is too old for them.
        since = now
        await _write(database, epoch, cursor, end - MOST_BEHIND, {}, counting_since_at=since)
        cursor = end - MOST_BEHIND
    first = {**_first(now), HISTORY: _first_hour(since)}
    chosen = _Senders(database, senders)
    counted = 0
    while cursor < end:
        async with database.reading() as connection:
            rows = (await connection.execute(_READ[database.is_sqlite], {"after": cursor, "most": BATCH})).all()
            replaced = await _replaced(connection, database.is_sqlite, rows)
        if not rows:
            break
        found = _found(rows, replaced, now, min(first[HOUR], first[HISTORY]), by_sender=senders != frozenset())
        await chosen.choose(found, first[SENDER_HOUR])
        await _write(database, epoch, cursor, rows[-1][0], _cells(found, first, chosen))
        cursor, counted = rows[-1][0], counted + len(rows)
        if time.monotonic() - started >= most_seconds:
            break
    await _prune(database, now)
    return Counted(counted, max(0, end - cursor))


async def _bounds(database: Database, epoch: int, now: datetime) -> tuple[int, int, datetime]:
    """How far the log is counted, where it ends, and since when no event was left out."""
    async with database.reading() as connection:
        counting = select(ALERTING.c.cursor, ALERTING.c.counting_since_at).where(ALERTING.c.epoch == epoch)
        row = (await connection.execute(counting)).one_or_none()
        if row is None:
            raise AlertingLeaseLost("another worker evaluates the rules of alerts")
        _, end = await event_log.bounds(connection)
    return row.cursor, end, row.counting_since_at or now


def _first(now: datetime) -> dict[str, int]:
    """The first minute or hour that is stored of each grain."""
    return {grain: _start(now - kept, size) for grain, (size, kept) in _KEPT.items()}


def _first_hour(since: datetime) -> int:
    """The first hour that begins after a time."""
    return _start(since, timedelta(hours=1)) + 1


async def _write(
    database: Database, epoch: int, cursor: int, place: int, cells: Mapping[tuple[Any, ...], int], **values: Any
) -> None:
    """Adds cells and moves the cursor, without the lock of the event log: epoch and cursor fence off other writers."""
    moved = update(ALERTING).where(ALERTING.c.epoch == epoch, ALERTING.c.cursor == cursor)
    # In order, so that two writers of the same cells cannot wait for each other.
    rows = sorted((*key, events) for key, events in cells.items())
    async with database.writing() as connection:
        if not (await connection.execute(moved.values(cursor=place, **values))).rowcount:
            raise AlertingLeaseLost("another worker evaluates the rules of alerts")
        if not rows:
            return
        # Core would compile and convert each row: that took three times as long.
        if database.is_sqlite:
            await connection.exec_driver_sql(_INSERT_SQLITE, rows)
        else:
            arrays = tuple(list(values) for values in zip(*rows, strict=True))
            await connection.exec_driver_sql(insert_arrays(EVENT_COUNTS, _COLUMNS, _ADD), arrays)


# Only what is counted: to decode whole entries took several times as long.
_FIELDS: Final = ("application_id", "carrier_name", "sender", "created_at", "contradicted")


def _select(rest: str) -> dict[bool, Any]:
    """The statement that reads what is counted of entries, by whether it is for SQLite."""
    return {
        is_sqlite: sql(
            "SELECT position, received_at, api, direction, route, tag_verdict, code, previous_status, "
            f"CASE WHEN changed THEN {field.format('delivery', 'status')} END AS after_status, status, "
            f"{field.format('delivery', 'contradicted')} AS is_contradicted, occurred_at, "
            + ", ".join(f"{field.format('facts', name)} AS {name}" for name in _FIELDS)
            + f", message_id, recipient "
            f"FROM events WHERE {rest}"
        )
        for is_sqlite, field in ((True, "json_extract({}, '$.{}')"), (False, "{}->>'{}'"))
    }


_READ: Final = _select("position > :after ORDER BY position LIMIT :most")
_READ_BACK: Final = _select("position <= :until AND position > :after ORDER BY position DESC")
_READ_EARLIER: Final = {
    is_sqlite: statement.bindparams(bindparam("message_ids", expanding=True))
    for is_sqlite, statement in _select(
        "message_id IN :message_ids AND direction = 'out' AND changed AND position < :before ORDER BY position DESC"
    ).items()
}


_Found = Counter[tuple[int, Measure, str, str, str, str, str, int, int]]
"""Events by minute and the values of the table's key from `measure` on."""


def _found(
    rows: Iterable[Any], replaced: Iterable[tuple[Any, Measure]], now: datetime, oldest: int, *, by_sender: bool
) -> _Found:
    """What rows of the log count as, without what is replaced, and without those before the hour `oldest`."""
    latest = _start(now, timedelta(minutes=1))
    # Most events of a batch are alike but for their senders.
    alike: Counter[tuple[int, _Counted, Measure | None]] = Counter()
    for row, measure in chain(((row, None) for row in rows), replaced):
        minute = min(_minute(row.received_at), latest)
        if minute // 60 >= oldest:
            alike[minute, _counted(row, by_sender=by_sender), measure] += 1
    found: _Found = Counter()
    for (minute, event, measure), events in alike.items():
        for key in _keys(event):
            if measure is None:
                found[minute, *key] += events
            elif key[0] is measure:
                found[minute, *key] -= events
    return found


async def _replaced(connection: AsyncConnection, is_sqlite: bool, rows: Sequence[Any]) -> list[tuple[Any, Measure]]:
    """The events whose outcome rows of the log replace by another one, and what they counted as.

    They are taken off in the minute in which they were counted: so each delivery counts once, with its last outcome.
    """
    outcomes = ((row, _outcome_before(row)) for row in rows)
    replacing = [(row, before) for row, before in outcomes if before is not None and before is not _outcome(row)]
    if not replacing:
        return []
    last, _ = replacing[-1]
    ids = {"message_ids": sorted({row.message_id for row, _ in replacing}), "before": last.position}
    earlier: dict[tuple[str, str, str], list[Any]] = {}
    for row in await connection.execute(_READ_EARLIER[is_sqlite], ids):
        earlier.setdefault(_delivery(row), []).append(row)
    replaced = []
    for row, before in replacing:
        of_delivery = (one for one in earlier.get(_delivery(row), ()) if one.position < row.position)
        # A receipt that a message was read, after that of its delivery, counts as nothing.
        counted = next((one for one in of_delivery if any(key[0] is before for key in _keys(_counted(one)))), None)
        if counted is not None:
            replaced.append((counted, before))
    return replaced


def _delivery(row: Any) -> tuple[str, str, str]:
    return row.api, row.message_id, row.recipient


def _outcome(row: Any) -> Measure | None:
    """The outcome that an event brings about, None if it changes nothing or is not final."""
    return _FINAL.get(row.after_status) if row.direction == "out" and row.after_status is not None else None


def _outcome_before(row: Any) -> Measure | None:
    """The outcome that an event replaces by itself or another one."""
    return _FINAL.get(row.previous_status) if _outcome(row) is not None else None


def _cells(found: _Found, first: Mapping[str, int], senders: "_Senders") -> Counter[tuple[Any, ...]]:
    """The cells of all grains, as the key of the table; `first` is that of `_first`."""
    cells: Counter[tuple[Any, ...]] = Counter()
    for (minute, measure, api, direction, *values, sender, code, bucket), events in found.items():
        hour, key = minute // 60, (measure.value, api, direction, *values)
        for grain, start in ((MINUTE, minute), (HOUR, hour)):
            if start >= first[grain]:
                cells[grain, start, *key, "", code, bucket] += events
        if direction == "out" and senders.are_counted(hour, sender):
            for grain, start in ((SENDER_MINUTE, minute), (SENDER_HOUR, hour)):
                if start >= first[grain]:
                    cells[grain, start, *key, sender, code, NO_BUCKET] += events
        if measure in _IN_HISTORY and hour >= first[HISTORY]:
            cells[HISTORY, hour, *key, "", NO_CODE, NO_BUCKET] += events
    return cells


def senders_of(rules: Iterable[Rule]) -> frozenset[str] | None:
    """The senders that rules name; None: rules are about all senders."""
    spans = ((rule, span_of(rule)) for rule in rules)
    named = [rule.where.get("from") for rule, span in spans if span is not None and span.by_sender]
    if any(senders is None for senders in named):
        return None
    return frozenset[str]().union(*(senders for senders in named if senders is not None))


class _Senders:
    """Which senders are counted one by one: those that rules name, or a bounded number in each hour.

    A sender that is counted in an hour is counted in all of it, unless it was not there while there was room.
    """

    def __init__(self, database: Database, named: frozenset[str] | None) -> None:
        self._database = database
        self._named = named
        self._of_hour: dict[int, set[str]] = {}

    async def choose(self, found: _Found, first_hour: int) -> None:
        """Adds the most frequent senders of a batch to those of their hours, as far as there is room."""
        if self._named is not None:
            return
        frequent: dict[int, Counter[str]] = {}
        for (minute, *_, sender, _code, _bucket), events in found.items():
            if sender and minute // 60 >= first_hour:
                frequent.setdefault(minute // 60, Counter())[sender] += events
        for hour, senders in frequent.items():
            if hour not in self._of_hour:
                self._of_hour[hour] = await self._stored(hour)
            chosen = self._of_hour[hour]
            new = [sender for sender, _ in senders.most_common() if sender not in chosen]
            chosen.update(new[: max(0, MOST_SENDERS - len(chosen))])

    async def _stored(self, hour: int) -> set[str]:
        of_hour = EVENT_COUNTS.c.grain == SENDER_HOUR, EVENT_COUNTS.c.start == hour
        async with self._database.reading() as connection:
            return set(await connection.scalars(select(EVENT_COUNTS.c.sender).where(*of_hour).distinct())) - {""}

    def are_counted(self, hour: int, sender: str) -> bool:
        if self._named is not None:
            return bool(self._named) and number_key(sender) in self._named
        return not sender or sender in self._of_hour.get(hour, ())


class _Counted(NamedTuple):
    """What is counted of an event."""

    api: str
    direction: str
    route: str
    tag_verdict: str
    code: int | None
    previous_status: str | None
    after_status: str | None
    is_contradicted: bool
    application_id: str
    carrier_name: str
    sender: str
    bucket: int


def _counted(row: Any, *, by_sender: bool = True) -> _Counted:
    """What is counted of a row of the log."""
    is_outbound = row.direction == "out"
    bucket = NO_BUCKET
    if is_outbound and row.after_status in _REACHED:
        # What our own look-ups find was not received when it happened.
        ended_at = row.received_at if row.occurred_at is None and row.route != RECONCILED else row.occurred_at
        bucket = _bucket(row.created_at, ended_at)
    return _Counted(
        row.api,
        row.direction,
        row.route,
        row.tag_verdict,
        row.code,
        row.previous_status,
        row.after_status,
        _is_true(row.contradicted) or (_is_true(row.is_contradicted) and row.status in _FINAL),
        _text(row.application_id),
        _text(row.carrier_name),
        # The sender of an inbound message is a customer: there are as many as messages.
        _text(row.sender) if by_sender and is_outbound else "",
        bucket,
    )


def _keys(event: _Counted) -> Iterator[tuple[Measure, str, str, str, str, str, int, int]]:
    """What an event counts as: the values of the table's key from `measure` on, for each of its measures."""
    if event.route == REGISTERED or event.api not in PROVIDERS:
        return
    for measure, code, bucket in _measures(event):
        of_carrier = event.carrier_name if measure in _OF_CARRIERS else ""
        yield measure, event.api, event.direction, event.application_id, of_carrier, event.sender, code, bucket


def _measures(event: _Counted) -> Iterator[tuple[Measure, int, int]]:
    """What an event counts as, with its code and the bucket of its time to delivery where these matter."""
    is_outbound = event.direction == "out"
    # What our own look-ups report is no sign that the provider reaches us.
    if event.route != RECONCILED:
        yield Measure.RECEIPT if is_outbound else Measure.INBOUND, NO_CODE, NO_BUCKET
    if event.route == "fallback":
        yield Measure.FALLBACK, NO_CODE, NO_BUCKET
    if not is_outbound:
        return
    measure = _outcome(event)
    if measure is Measure.DELIVERED and _outcome_before(event) is not measure:
        yield measure, NO_CODE, event.bucket
    elif measure in (Measure.FAILED, Measure.UNCONFIRMED):
        yield measure, NO_CODE if event.code is None else event.code, NO_BUCKET
    if event.tag_verdict in _VERDICTS:
        yield _VERDICTS[event.tag_verdict], NO_CODE, NO_BUCKET
    if event.is_contradicted:
        yield Measure.CONTRADICTED, NO_CODE, NO_BUCKET


def _is_true(value: Any) -> bool:
    """Whether a value of JSON, as a database gives it, is true."""
    return value in (True, "true")


def _text(value: str | None) -> str:
    return value[:TEXT_CHARACTERS] if value else ""


def _bucket(created_at: str | None, delivered_at: Any) -> int:
    if created_at is None or delivered_at is None:
        return NO_BUCKET
    span = _moment(delivered_at) - datetime.fromisoformat(created_at)
    return bisect_right(BUCKET_BOUNDS, span // timedelta(microseconds=1))


def _moment(value: Any) -> datetime:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def _minute(moment: Any) -> int:
    if isinstance(moment, str):
        return _minute_of_text(moment[:16])
    return _start(moment, timedelta(minutes=1))


@lru_cache(maxsize=1024)
def _minute_of_text(minute: str) -> int:
    return _start(datetime.fromisoformat(f"{minute}:00+00:00"), timedelta(minutes=1))


def _start(moment: datetime, size: timedelta) -> int:
    started: int = (moment - _EPOCH) // size
    return started


def seconds_of(bucket: int) -> float | None:
    """The geometric middle of a bucket of the time to delivery, in seconds."""
    if bucket == NO_BUCKET:
        return None
    lower, upper = BUCKET_BOUNDS[max(bucket - 1, 0)], BUCKET_BOUNDS[min(bucket, len(BUCKET_BOUNDS) - 1)]
    return sqrt(lower * upper) / 1_000_000


def cell_of(values: Iterable[Any], events: int) -> Cell:
    """A cell from the values of the table's key from `measure` on."""
    measure, api, direction, application, carrier, sender, code, bucket = values
    return Cell(
        measure,
        api,
        direction,
        application,
        carrier,
        sender,
        None if code == NO_CODE else code,
        seconds_of(bucket),
        events,
    )


async def newest(database: Database, since: datetime) -> AsyncIterator[list[tuple[datetime, str, Cell]]]:
    """The newest events, in batches, with the time of receipt and the id of the message; a bounded part of the log.

    It ends after a batch without an event since a time.
    """
    async with database.reading() as connection:
        _, end = await event_log.bounds(connection)
    for until in range(end, max(0, end - _SEARCHED), -BATCH):
        async with database.reading() as connection:
            place = {"until": until, "after": until - BATCH}
            rows = (await connection.execute(_READ_BACK[database.is_sqlite], place)).all()
        of_time = [(received_at, row) for row in rows if (received_at := _moment(row.received_at)) >= since]
        if rows and not of_time:
            return
        yield [
            (received_at, row.message_id, cell_of(key, 1))
            for received_at, row in of_time
            for key in _keys(_counted(row))
        ]


_SEARCHED: Final = 50_000


async def _prune(database: Database, now: datetime) -> None:
    """Removes the counts of times that no rule looks at any more."""
    start = EVENT_COUNTS.c.start
    async with database.writing() as connection:
        for grain, first in _first(now).items():
            # Of a clock that was ahead: once it is that time, they would count a second time.
            latest = _start(now + _CLOCKS_DIFFER, _KEPT[grain][0])
            # Two statements: for one with OR, SQLite scans all cells of the grain.
            for outside in (start < first, start > latest):
                await connection.execute(EVENT_COUNTS.delete().where(EVENT_COUNTS.c.grain == grain, outside))


_CLOCKS_DIFFER: Final = timedelta(minutes=5)
"""The clocks of two workers differ by less."""


# --- watching ---


async def note_round(database: Database, epoch: int, now: datetime, every: timedelta) -> datetime:
    """Records that a round of evaluation begins; returns since when no more than a few rounds were left out.

    What happened before that is no evidence of silence. Raises AlertingLeaseLost.
    """
    async with database.writing() as connection:
        found = await connection.execute(select(ALERTING).where(ALERTING.c.epoch == epoch))
        row = found.one_or_none()
        if row is None:
            raise AlertingLeaseLost("another worker evaluates the rules of alerts")
        since: datetime | None = row.watching_since_at
        if since is None or row.evaluated_at is None or now - row.evaluated_at > (_MISSED_ROUNDS + 1) * every:
            since = now
        # A clock that was set back.
        since = min(since, now)
        counting = min(row.counting_since_at or now, now)
        changed = ALERTING.update().where(ALERTING.c.epoch == epoch)
        values = {"evaluated_at": now, "watching_since_at": since, "counting_since_at": counting}
        await connection.execute(changed.values(values))
    return since


async def note_end(database: Database, epoch: int, now: datetime) -> None:
    """Records that a round has ended: a slow round is not one that was left out. Raises AlertingLeaseLost."""
    async with database.writing() as connection:
        changed = ALERTING.update().where(ALERTING.c.epoch == epoch).values(evaluated_at=now)
        if not (await connection.execute(changed)).rowcount:
            raise AlertingLeaseLost("another worker evaluates the rules of alerts")
