"""Gathers what the rules of alerts are evaluated on, in few and quick queries, and finds the messages of a finding."""

import shutil
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, func, literal_column, select
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.alert_cells import concerns
from receiver.domain.alert_facts import (
    BEFORE,
    FINAL_MEASURES,
    Cell,
    Facts,
    ProcessorFacts,
    Receipts,
    SinkFacts,
    Span,
    StorageFacts,
    Waiting,
    hour_of,
    reference_hours,
    span_of,
    window_hours,
)
from receiver.domain.alert_rules import are_refused_tags_counted, offending_measures
from receiver.domain.alerts import MAX_MESSAGES, Rule, RuleType
from receiver.domain.counts import COUNTED
from receiver.domain.events import ALERT, Api
from receiver.models.alerts import ALERTING, EVENT_COUNTS, REFUSALS
from receiver.models.callbacks import QUARANTINE
from receiver.models.events import EVENTS
from receiver.models.messages import MESSAGES
from receiver.models.sinks import DEAD_LETTERS
from receiver.providers import registry
from receiver.storage import event_counts, event_log
from receiver.storage.database import Database
from receiver.storage.event_counts import BEHIND_EVENTS, HISTORY, HOUR, MINUTE, MINUTES_KEPT, SENDER_HOUR, SENDER_MINUTE
from receiver.storage.refusals import minute_of
from receiver.storage.status import StatusReader, Watched

# What is read of a table that may have very many rows; a rule's numbers end there.
_MOST_ROWS: Final = 20_000
_MOST_DEAD_LETTERS: Final = 1_000
# How long a round searches for the messages of the alerts that fire.
_SEARCH_SECONDS: Final = 1.0


async def gather(reader: StatusReader, rules: Sequence[Rule], now: datetime, *, sinks: Collection[str]) -> Facts:
    """Everything that the rules look at; `sinks` are the names of the configured sinks.

    The state of processor, sinks and space is left out where it cannot be read within a bounded time. `reader` is the
    same in every round: a read that takes longer is waited for by the next round, in place of one more of them.
    """
    database = reader.database
    spans = sorted({span for rule in rules if (span := span_of(rule)) is not None})
    silent = [rule for rule in rules if rule.type is RuleType.RECEIPTS_STOPPED]
    found = await reader.watched(sinks)
    async with database.reading() as connection:
        watching_since, is_counted = await _watching(connection)
        history, history_since = await _history(connection, silent, now)
        return Facts(
            watching_since=watching_since if is_counted else None,
            cells={span: await _cells(connection, _window(span, now)) for span in spans},
            before=await _of_hours(connection, spans, lambda span: _day_before(now, span.window)),
            around=await _of_hours(
                connection,
                {span for rule in rules if rule.by is not None and (span := span_of(rule)) is not None},
                lambda span: window_hours(now, span.window),
            ),
            partial=await _partial(connection, rules, now),
            history=history,
            history_since=history_since,
            waiting={
                rule.name: await _waiting(connection, rule, now)
                for rule in rules
                if rule.type is RuleType.AWAITING_RECEIPT
            },
            quarantined={
                window: await _quarantined(connection, now - window, now)
                for window in _windows(rules, RuleType.QUARANTINE, RuleType.FORGED_TAGS)
            },
            refused={
                window: await _refused(connection, now - window, now)
                for window in _windows(rules, RuleType.WRONG_CREDENTIALS)
            },
            dead_letters={
                window: await _dead_letters(connection, sinks, now - window, now, most)
                for window, most in _dead_letters_read(rules).items()
            },
            last_callbacks={
                name: datetime.fromisoformat(moment)
                for name, moment in (found.processor.last_callbacks if found.processor is not None else {}).items()
            },
            processor=_processor(found, now),
            sinks=_sinks(found, now),
            storage=_storage(database, found),
            unreadable=found.unreadable,
            code_name=lambda api, code: registry.reason(Api(api), code).name,
            category=lambda api, code: registry.reason(Api(api), code).category,
        )


def _windows(rules: Iterable[Rule], *types: RuleType) -> set[timedelta]:
    return {rule.window for rule in rules if rule.type in types}


async def _watching(connection: AsyncConnection) -> tuple[datetime | None, bool]:
    """Since when no evaluation was left out, and whether nearly all of the log is counted."""
    row = (await connection.execute(select(ALERTING.c.watching_since_at, ALERTING.c.cursor))).one()
    _, end = await event_log.bounds(connection)
    return row.watching_since_at, end - row.cursor <= BEHIND_EVENTS


# --- counts ---


def _window(span: Span, now: datetime) -> Select[Any]:
    """The cells of the window that ends now, by its minutes, or by its hours if those are no longer stored."""
    if span.window < MINUTES_KEPT:
        first, last = (int(moment.timestamp() // 60) for moment in (now - span.window, now))
        return _summed(SENDER_MINUTE if span.by_sender else MINUTE, first, last + 1)
    return _summed(SENDER_HOUR if span.by_sender else HOUR, hour_of(now - span.window), hour_of(now) + 1)


def _day_before(now: datetime, window: timedelta) -> range:
    """The 24 hours before a window."""
    end = window_hours(now, window)[0]
    return range(end - BEFORE // timedelta(hours=1), end)


async def _of_hours(
    connection: AsyncConnection, spans: Iterable[Span], hours_of: Callable[[Span], range]
) -> dict[Span, list[Cell]]:
    """The cells of some hours for each window; windows with the same hours share them."""
    read: dict[tuple[str, range], list[Cell]] = {}
    found: dict[Span, list[Cell]] = {}
    for span in spans:
        key = grain, hours = SENDER_HOUR if span.by_sender else HOUR, hours_of(span)
        if key not in read:
            read[key] = await _cells(connection, _summed(grain, hours.start, hours.stop))
        found[span] = read[key]
    return found


async def _partial(connection: AsyncConnection, rules: Sequence[Rule], now: datetime) -> frozenset[Span]:
    """The windows whose cells of senders leave out final events, of those that messages are compared with."""
    wanted = {span_of(rule) for rule in rules if rule.type is RuleType.AWAITING_RECEIPT}
    partial = set()
    for span in wanted:
        if span is None or not span.by_sender:
            continue
        if event_counts.senders_of(rules) is None:
            numbers = [await _finals(connection, span._replace(by_sender=by), now) for by in (True, False)]
            is_partial = numbers[0] < numbers[1]
        else:
            # Only named senders are counted; nobody knows of which time they are missing.
            oldest = select(func.min(EVENT_COUNTS.c.start)).where(EVENT_COUNTS.c.grain == SENDER_HOUR)
            first = await connection.scalar(oldest)
            is_partial = first is None or first > hour_of(now - span.window)
        if is_partial:
            partial.add(span)
    return frozenset(partial)


async def _finals(connection: AsyncConnection, span: Span, now: datetime) -> int:
    cells = _window(span, now).where(EVENT_COUNTS.c.measure.in_(FINAL_MEASURES)).subquery()
    return int(await connection.scalar(select(func.sum(cells.c.number))) or 0)


_DIMENSIONS: Final = [
    EVENT_COUNTS.c[name]
    for name in (
        "measure",
        "api",
        "direction",
        "application_id",
        "carrier_name",
        "sender",
        "delivery_code",
        "bucket",
    )
]


def _summed(grain: str, first: int, end: int) -> Select[Any]:
    within = EVENT_COUNTS.c.start >= first, EVENT_COUNTS.c.start < end
    number = func.sum(EVENT_COUNTS.c.events).label("number")
    found = select(*_DIMENSIONS, number).where(EVENT_COUNTS.c.grain == grain, *within)
    # Below zero are outcomes that were replaced and had not been counted, as before the first round.
    return found.group_by(*_DIMENSIONS).having(func.sum(EVENT_COUNTS.c.events) > 0)


async def _cells(connection: AsyncConnection, statement: Select[Any]) -> list[Cell]:
    return [event_counts.cell_of(row[:-1], int(row[-1])) for row in await connection.execute(statement)]


async def _history(
    connection: AsyncConnection, rules: Sequence[Rule], now: datetime
) -> tuple[dict[Receipts, dict[int, int]], int | None]:
    """The receipts of the hours that tell how many to expect, and the first hour counted as a whole."""
    since: datetime | None = await connection.scalar(select(ALERTING.c.counting_since_at))
    # The hour in which counting began is not counted as a whole.
    first = hour_of(since) + 1 if since is not None else None
    history: dict[Receipts, dict[int, int]] = {}
    hours = {hour for rule in rules for hour in reference_hours(now, rule.window)}
    if hours:
        of_hours = EVENT_COUNTS.c.grain == HISTORY, EVENT_COUNTS.c.start.in_(sorted(hours))
        wanted = [*_DIMENSIONS[:4], EVENT_COUNTS.c.start, EVENT_COUNTS.c.events]
        for row in await connection.execute(select(*wanted).where(*of_hours)):
            key = Receipts(row.measure, row.api, row.direction, row.application_id)
            history.setdefault(key, {})[row.start] = row.events
    return history, first


# --- rows of other tables ---


async def _waiting(connection: AsyncConnection, rule: Rule, now: datetime) -> list[Waiting]:
    """How many messages wait for longer than the rule allows; those of the newest ones if they are very many."""
    columns = [MESSAGES.c.api, MESSAGES.c.application_id, MESSAGES.c.sender]
    found = _overdue(rule, now, columns).limit(_MOST_ROWS).subquery()
    counted: Select[Any] = select(*found.c, func.count()).group_by(*found.c)
    return [Waiting(row[0], row[1] or "", row[2] or "", int(row[3])) for row in await connection.execute(counted)]


def _overdue(rule: Rule, now: datetime, columns: Iterable[Any]) -> Select[Any]:
    limit = rule.longer_than or timedelta(0)
    listed_at = MESSAGES.c.listed_at
    return (
        select(*columns)
        .where(_AWAITING, listed_at >= now - limit - rule.window, listed_at < now - limit)
        .order_by(listed_at.desc())
    )


# Spelled as in the partial index; SQLAlchemy would write `= 1` for SQLite.
_AWAITING: Final[ColumnElement[bool]] = literal_column("messages.awaiting_receipt")


async def _quarantined(connection: AsyncConnection, since: datetime, until: datetime) -> dict[str, int]:
    columns = QUARANTINE.c.reason, QUARANTINE.c.elements
    found = select(*columns).where(_received(since, until)).limit(_MOST_ROWS).subquery()
    return await _counts(connection, select(found.c.reason, func.sum(found.c.elements)).group_by(found.c.reason))


# Windows end now: what a clock that was ahead has stored would stay in them for as long.


def _received(since: datetime, until: datetime) -> ColumnElement[bool]:
    """Whether a quarantined element came in a time: the ids of callbacks begin with the time, in microseconds."""
    first, last = (f"{round(moment.timestamp() * 1_000_000):014x}" for moment in (since, until))
    return and_(QUARANTINE.c.callback_id >= first, QUARANTINE.c.callback_id <= f"{last}~")


async def _refused(connection: AsyncConnection, since: datetime, until: datetime) -> dict[str, int]:
    requests = select(REFUSALS.c.reason, func.sum(REFUSALS.c.requests))
    within = REFUSALS.c.minute.between(minute_of(since), minute_of(until))
    return await _counts(connection, requests.where(within).group_by(REFUSALS.c.reason))


def _dead_letters_read(rules: Iterable[Rule]) -> dict[timedelta, int]:
    """How many dead letters of a sink are read by window: enough to be above the threshold of each rule."""
    most: dict[timedelta, int] = {}
    for rule in rules:
        if rule.type is RuleType.DEAD_LETTERS:
            most[rule.window] = max(most.get(rule.window, _MOST_DEAD_LETTERS), int(rule.above) + 1)
    return most


async def _dead_letters(
    connection: AsyncConnection, sinks: Iterable[str], since: datetime, until: datetime, most: int
) -> dict[str, int]:
    """How many of the newest dead letters of each sink are new."""
    counts: dict[str, int] = {}
    for sink in sinks:
        # No index has their time, but their ids rise with it.
        newest = select(DEAD_LETTERS.c.died_at).where(DEAD_LETTERS.c.sink == sink, _IS_NO_ALERT)
        found = newest.order_by(DEAD_LETTERS.c.id.desc()).limit(most).subquery()
        counted = select(func.count()).select_from(found).where(found.c.died_at.between(since, until))
        counts[sink] = await connection.scalar(counted) or 0
    return counts


# The alert about an alert's dead letter would be the next dead letter, for ever.
_IS_NO_ALERT: Final = DEAD_LETTERS.c.ordering_key.not_like(f"{ALERT}:%")


async def _counts(connection: AsyncConnection, statement: Select[Any]) -> dict[str, int]:
    return {row[0]: int(row[1]) for row in await connection.execute(statement)}


# --- the state of the installation ---


def _processor(found: Watched, now: datetime) -> ProcessorFacts | None:
    if found.processor is None or found.backlog is None:
        return None
    return ProcessorFacts(
        pending=found.backlog.pending,
        oldest_seconds=found.backlog.oldest_seconds(now),
        failing_since=found.processor.failing_since_at,
        error=found.processor.last_error,
        is_held=found.processor.lease_is_held,
    )


def _sinks(found: Watched, now: datetime) -> list[SinkFacts] | None:
    if found.sinks is None:
        return None
    return [
        SinkFacts(
            name=sink.name,
            paused=sink.paused,
            down_since=sink.down_since_at,
            last_error=sink.last_error,
            oldest_seconds=max(0.0, (now - sink.oldest_at).total_seconds()) if sink.oldest_at is not None else None,
            # The events that wait for a retry are behind the cursor.
            waiting=sink.events + sink.retries,
            waiting_at_least=sink.retries >= COUNTED,
        )
        for sink in found.sinks
    ]


def _storage(database: Database, found: Watched) -> StorageFacts | None:
    size = found.database
    if size is None or database.file is None or size.disk_free_bytes is None:
        return None
    disk = shutil.disk_usage(database.file.parent)
    return StorageFacts(disk_bytes=disk.total, free_bytes=size.disk_free_bytes, wal_bytes=size.wal_bytes or 0)


# --- the messages of a finding ---


async def offending(
    database: Database,
    sought: Sequence[tuple[Rule, str | None]],
    facts: Facts,
    now: datetime,
    *,
    most: int = MAX_MESSAGES,
    seconds: float = _SEARCH_SECONDS,
    is_stopping: Callable[[], bool] = lambda: False,
) -> list[list[str]]:
    """For each rule and group the ids of messages that its finding is about, newest first.

    None where it is about no messages. All are searched together, for about `seconds`: what is not found by then is
    not named.
    """
    ends = time.monotonic() + seconds

    def is_over() -> bool:
        return is_stopping() or time.monotonic() >= ends

    found: list[dict[str, None]] = [{} for _ in sought]
    overdue: dict[str, list[tuple[str, Cell]]] = {}
    in_log: list[_Sought] = []
    for (rule, group), ids in zip(sought, found, strict=True):
        if is_over():
            break
        match rule.type:
            case RuleType.AWAITING_RECEIPT | RuleType.RECEIPTS_STOPPED:
                if rule.name not in overdue:
                    overdue[rule.name] = await _overdue_messages(database, rule, now)
                ids.update((id_, None) for id_, cell in overdue[rule.name] if concerns(rule, group, cell, facts))
            case RuleType.QUARANTINE:
                ids.update(dict.fromkeys(await _offending_quarantined(database, rule, now, _IS_NO_TAG)))
            case RuleType.DEAD_LETTERS:
                ids.update(dict.fromkeys(await _offending_dead_letters(database, group, now - rule.window)))
            case _ if measures := offending_measures(rule, group, facts):
                if rule.type is RuleType.FORGED_TAGS and are_refused_tags_counted(rule):
                    ids.update(dict.fromkeys(await _offending_quarantined(database, rule, now, _IS_TAG)))
                in_log.append(_Sought(rule, group, measures, now - rule.window, ids))
    if in_log and not is_stopping():
        await _search_log(database, in_log, facts, most, is_over)
    return [list(ids)[:most] for ids in found]


class _Sought(NamedTuple):
    """Whose messages are searched in the log, received since a time."""

    rule: Rule
    group: str | None
    measures: frozenset[str]
    since: datetime
    ids: dict[str, None]


async def _search_log(
    database: Database, sought: Iterable[_Sought], facts: Facts, most: int, is_over: Callable[[], bool]
) -> None:
    """Searches the log once, from its end, for the messages of several findings."""
    open_: dict[str, list[_Sought]] = {}
    for one in sought:
        for measure in one.measures:
            open_.setdefault(measure, []).append(one)
    async for batch in event_counts.newest(database, min(one.since for one in sought)):
        for received_at, message_id, cell in batch:
            for one in open_.get(cell.measure, ()):
                if received_at >= one.since and concerns(one.rule, one.group, cell, facts):
                    one.ids[message_id] = None
        open_ = {measure: [one for one in of if len(one.ids) < most] for measure, of in open_.items()}
        if is_over() or not any(open_.values()):
            return


async def _overdue_messages(database: Database, rule: Rule, now: datetime) -> list[tuple[str, Cell]]:
    columns = [MESSAGES.c.id, MESSAGES.c.api, MESSAGES.c.direction, MESSAGES.c.application_id, MESSAGES.c.sender]
    async with database.reading() as connection:
        rows = (await connection.execute(_overdue(rule, now, columns).limit(_MOST_ROWS // 10))).all()
    return [
        (row.id, Cell("", row.api, row.direction, row.application_id or "", "", row.sender or "", None, None, 1))
        for row in rows
    ]


async def _offending_quarantined(
    database: Database, rule: Rule, now: datetime, reason: ColumnElement[bool]
) -> list[str]:
    named = _received(now - rule.window, now), QUARANTINE.c.message_id.is_not(None), reason
    found = select(QUARANTINE.c.message_id).where(*named).order_by(QUARANTINE.c.callback_id.desc())
    async with database.reading() as connection:
        return list((await connection.scalars(found.limit(_MOST_ROWS // 100))).all())


_IS_TAG: Final = QUARANTINE.c.reason.like("tag-%")
_IS_NO_TAG: Final = QUARANTINE.c.reason.not_like("tag-%")


async def _offending_dead_letters(database: Database, sink: str | None, since: datetime) -> list[str]:
    # Without a limit of its own, a few new ones would be searched for among all dead letters of the sink.
    newest = (
        select(DEAD_LETTERS.c.id, DEAD_LETTERS.c.position, DEAD_LETTERS.c.died_at)
        .where(DEAD_LETTERS.c.sink == sink, _IS_NO_ALERT)
        .order_by(DEAD_LETTERS.c.id.desc())
        .limit(_MOST_ROWS // 100)
        .subquery()
    )
    found = (
        select(EVENTS.c.message_id)
        .join_from(newest, EVENTS, newest.c.position == EVENTS.c.position)
        .where(newest.c.died_at >= since)
        .order_by(newest.c.id.desc())
    )
    async with database.reading() as connection:
        return list((await connection.scalars(found)).all())
