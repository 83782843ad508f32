"""The event log: one row per event of a message, or change of an alert, in one total order.

Entries are appended to it and read on from a position; the events of a message are read together.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Row, Select, and_, func, or_, select
from sqlalchemy import text as sql
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.events import (
    ALERT,
    MAX_EVENTS,
    PLAIN_FIELDS,
    REGISTERED,
    Direction,
    Event,
    Failure,
    MessageFields,
    MessageKey,
    Status,
    TagVerdict,
)
from receiver.domain.publication import AlertEntry, AlertEvent, Appended, Entry, LogEntry, Snapshot
from receiver.models.columns import json_text
from receiver.models.events import EVENTS
from receiver.models.messages import MESSAGES
from receiver.providers import PROVIDERS
from receiver.storage.bulk import InsertMany, Spelling, Transaction
from receiver.storage.database import Database

# --- appending ---


def append(entries: Sequence[Appended], spelling: Spelling) -> InsertMany:
    """The step that appends entries to the log."""
    return InsertMany(EVENTS, _WRITTEN, [_row(entry, spelling) for entry in entries])


_WRITTEN: Final = (
    "id",
    "api",
    "message_id",
    "recipient",
    "direction",
    "type",
    "status",
    "occurred_at",
    "received_at",
    "code",
    "description",
    "tag_verdict",
    "route",
    "callback_id",
    "previous_status",
    "changed",
    "facts",
    "delivery",
)
# The fields of a message that the log stores as they are; text and media are stored with the message alone.
_SHARED: Final = tuple(
    field for field in msgspec.structs.fields(MessageFields) if field.name not in ("text", "media", "created_at")
)
_SHARED_NAMES: Final = tuple(field.name for field in _SHARED)
_shared_values: Final = attrgetter(*_SHARED_NAMES)
# The column `facts`: the fields of an event that have no column of their own; absent fields are omitted.
_Stored: Final[Any] = msgspec.defstruct(
    "_Stored",
    [
        *((field.name, field.type, field.default) for field in _SHARED),
        ("created_at", str | None, None),
        ("read_at", str | None, None),
        ("failure", str | None, None),
        ("state", str | None, None),
        ("delivery_state", str | None, None),
        ("contradicted", bool, False),
        # Of a registration alone; for an event the rule of its provider decides.
        ("receipt_expected", bool | None, None),
        ("callback_expected", bool, False),
    ],
    omit_defaults=True,
    gc=False,
)
_encode: Final = msgspec.json.Encoder().encode


def _row(entry: Appended, spelling: Spelling) -> tuple[Any, ...]:
    event, previous = entry.event, entry.previous_status
    return (
        event.id,
        event.api.value,
        event.message_id,
        event.recipient,
        event.direction.value,
        event.type,
        event.status.value,
        spelling.time(event.occurred_at),
        spelling.time(event.received_at),
        event.code,
        event.description,
        event.tag_verdict.value,
        event.route,
        event.callback_id,
        previous and str(previous),
        spelling.flag(entry.changed),
        _stored(event),
        _encode(entry.delivery).decode(),
    )


def _stored(event: Event) -> str:
    """The JSON for the column `facts`."""
    return _encode(
        _Stored(
            *_shared_values(event.fields),
            created_at=_time_text(event.fields.created_at),
            read_at=_time_text(event.read_at),
            failure=event.failure,
            state=event.state,
            delivery_state=event.delivery_state,
            contradicted=event.contradicted,
            receipt_expected=event.receipt_expected if event.is_registration else None,
            callback_expected=event.callback_expected,
        )
    ).decode()


def append_alerts(events: Sequence[AlertEvent], spelling: Spelling) -> InsertMany:
    """The step that appends changes of alerts to the log.

    The columns that are about messages have fixed values: on SQLite, making them nullable would copy the whole log.
    """
    return InsertMany(EVENTS, _WRITTEN, [_alert_row(event, spelling) for event in events])


def _alert_row(event: AlertEvent, spelling: Spelling) -> tuple[Any, ...]:
    sinks = sorted(event.sinks) if event.sinks is not None else None
    values = {
        "id": event.id,
        "api": ALERT,
        "message_id": event.alert_id,
        "recipient": None,
        "direction": "",
        "type": ALERT,
        "status": event.transition,
        "occurred_at": spelling.time(event.occurred_at),
        "received_at": spelling.time(event.received_at),
        "code": None,
        "description": event.alert["summary"],
        "tag_verdict": TagVerdict.NOT_APPLICABLE.value,
        "route": ALERT,
        "callback_id": "",
        "previous_status": None,
        "changed": spelling.flag(True),
        "facts": json_text({"alert": event.alert, "sinks": sinks}),
        "delivery": "{}",
    }
    return tuple(values[name] for name in _WRITTEN)


def _time_text(time: datetime | None) -> str | None:
    return time.isoformat() if time is not None else None


# --- the events of messages ---


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsOfMessages:
    """The stored events of messages, in the order of the log.

    `full` are messages that have `MAX_EVENTS` events, which were not read; for each, it maps the wanted event ids that
    are in the log to their callbacks. `left_out` are messages that did not fit into the limit.
    """

    events: Mapping[MessageKey, Sequence[Event]]
    full: Mapping[MessageKey, Mapping[str, str]] = field(default_factory=dict)
    left_out: frozenset[MessageKey] = frozenset()


async def of_messages(
    transaction: Transaction,
    wanted: Mapping[MessageKey, Sequence[str]],
    *,
    limit: int,
    needed: Collection[MessageKey],
) -> EventsOfMessages:
    """The stored events of messages; `wanted` has for each message the ids of the events to be folded into it.

    Reads at most about `limit` events, in addition to those of the messages in `needed`, which it always reads.
    """
    ids = {key[2] for key in wanted}
    rows = await transaction.select(_EVENT_COLUMNS, _OF_MESSAGES, ids, limit=limit + 1)
    if len(rows) <= limit:
        return EventsOfMessages(events=_by_message(rows))
    return await _of_large_messages(transaction, wanted, limit, needed)


async def _of_large_messages(
    transaction: Transaction,
    wanted: Mapping[MessageKey, Sequence[str]],
    room: int,
    needed: Collection[MessageKey],
) -> EventsOfMessages:
    """As `of_messages`, but counts the events of each message first and reads them only if they fit."""
    events: dict[MessageKey, Sequence[Event]] = {}
    full: dict[MessageKey, Mapping[str, str]] = {}
    left_out: set[MessageKey] = set()
    for key, event_ids in wanted.items():
        [[number]] = await transaction.fetch(f"SELECT count(*) FROM events WHERE {_OF_MESSAGE_KEY}", _sql_key(key))  # noqa: S608
        if number >= MAX_EVENTS:
            full[key] = await _known_ids(transaction, key, event_ids)
        elif number <= room or key in needed:
            room -= number
            found = await transaction.select(_EVENT_COLUMNS, _OF_MESSAGES, [key[2]])
            events[key] = _by_message(found).get(key, [])
        else:
            left_out.add(key)
    return EventsOfMessages(events=events, full=full, left_out=frozenset(left_out))


async def _known_ids(transaction: Transaction, key: MessageKey, event_ids: Sequence[str]) -> dict[str, str]:
    """The ids of one message's events that the log has, with their callbacks."""
    found = await transaction.select(_IDS, f"id {{among}} AND {_OF_MESSAGE_KEY}", set(event_ids), *_sql_key(key))
    return {row.id: row.callback_id for row in found}


_IDS: Final = [EVENTS.c.id, EVENTS.c.callback_id]
_EVENT_COLUMNS: Final = list(EVENTS.columns)
_OF_MESSAGES: Final = "message_id {among} ORDER BY position"
_OF_MESSAGE_KEY: Final = "message_id = ? AND api = ? AND direction = ?"


def _sql_key(key: MessageKey) -> tuple[str, str, str]:
    api, direction, message_id = key
    return message_id, api, direction


def _by_message(rows: Iterable[Any]) -> dict[MessageKey, list[Event]]:
    found: dict[MessageKey, list[Event]] = {}
    for row in rows:
        if row.route == ALERT:
            # An alert may have the id of a message.
            continue
        event = event_of(row)
        found.setdefault(event.key, []).append(event)
    return found


async def of_message(connection: AsyncConnection, key: MessageKey) -> list[Event]:
    """The events of one message, in the order of the log."""
    api, direction, message_id = key
    of_it = and_(EVENTS.c.message_id == message_id, EVENTS.c.api == api, EVENTS.c.direction == direction)
    return [event_of(row) for row in await connection.execute(select(EVENTS).where(of_it).order_by(EVENTS.c.position))]


def event_of(row: Row[Any]) -> Event:
    """The event of a row of the log; its text and media are stored with the message."""
    stored, provider = msgspec.convert(row.facts, _Stored), PROVIDERS[row.api]
    expects_receipt = provider.expects_receipt
    receipt_expected = stored.receipt_expected
    if receipt_expected is None:
        receipt_expected = expects_receipt is None or expects_receipt(stored.delivery_state)
    return Event(
        id=row.id,
        api=provider.api,
        message_id=row.message_id,
        direction=Direction(row.direction),
        type=row.type,
        status=Status(row.status),
        recipient=row.recipient,
        occurred_at=row.occurred_at,
        read_at=_time(stored.read_at),
        code=row.code,
        description=row.description,
        failure=Failure(stored.failure) if stored.failure is not None else None,
        state=stored.state,
        delivery_state=stored.delivery_state,
        receipt_expected=receipt_expected,
        callback_expected=stored.callback_expected,
        contradicted=stored.contradicted,
        tag_verdict=TagVerdict(row.tag_verdict),
        fields=_fields(stored),
        received_at=row.received_at,
        route=row.route,
        callback_id=row.callback_id,
    )


def _fields(stored: Any) -> MessageFields:
    shared = dict(zip(_SHARED_NAMES, _shared_values(stored), strict=True))
    return MessageFields(**shared, created_at=_time(stored.created_at))


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


# --- reading on ---

# Registrations have positions in the log, but are published nowhere.
IS_PUBLISHED: Final = EVENTS.c.route != REGISTERED
_IS_OF_MESSAGE: Final = EVENTS.c.route.not_in((REGISTERED, ALERT))

# The fields of its message that an entry is read with.
_JOINED: Final = (*PLAIN_FIELDS, "recipients", "text", "media")
_ENTRIES: Final = select(EVENTS, *(MESSAGES.c[name].label(f"message_{name}") for name in _JOINED)).outerjoin(
    MESSAGES,
    and_(
        MESSAGES.c.api == EVENTS.c.api,
        MESSAGES.c.direction == EVENTS.c.direction,
        MESSAGES.c.id == EVENTS.c.message_id,
    ),
)


async def read_after(
    connection: AsyncConnection,
    position: int,
    limit: int,
    *,
    until: int | None = None,
    only: ColumnElement[bool] | None = None,
) -> list[Entry]:
    """The next entries after a position that meet a condition, with the fields of their messages."""
    statement = _ENTRIES.where(EVENTS.c.position > position).order_by(EVENTS.c.position).limit(limit)
    if until is not None:
        statement = statement.where(EVENTS.c.position <= until)
    if only is not None:
        statement = statement.where(only)
    return [_entry(row) for row in await connection.execute(statement)]


async def read_at(connection: AsyncConnection, positions: Sequence[int]) -> list[Entry]:
    """The entries at given positions, in rising order, without those that are pruned."""
    statement = _ENTRIES.where(EVENTS.c.position.in_(positions)).order_by(EVENTS.c.position)
    return [_entry(row) for row in await connection.execute(statement)]


async def positions_of_messages(
    connection: AsyncConnection, message_ids: Iterable[str], after: int, until: int
) -> list[tuple[int, str]]:
    """Position and message id of the events of messages with these ids in a part of the log, in rising order.

    Registrations are left out.
    """
    statement = select(EVENTS.c.position, EVENTS.c.message_id).where(
        EVENTS.c.message_id.in_(sorted(set(message_ids))),
        IS_PUBLISHED,
        # `+ 0` makes the planner use the index on the message; so does sorting here.
        EVENTS.c.position + 0 > after,
        EVENTS.c.position + 0 <= until,
    )
    return sorted((row.position, row.message_id) for row in await connection.execute(statement))


async def read_messages(
    connection: AsyncConnection, message_ids: Iterable[str], after: int, until: int, limit: int
) -> list[Entry]:
    """The next entries of messages, or of alerts, with these ids in a part of the log."""
    found = await positions_of_messages(connection, message_ids, after, until)
    return await read_at(connection, [position for position, _ in found[:limit]]) if found else []


async def later_of_messages(
    database: Database, connection: AsyncConnection, message_ids: Iterable[str], after: int
) -> list[Entry]:
    """The entries after a position of all messages with these ids, in rising order; messages may share an id."""
    found = database.for_each("message_ids", lambda message_id: _positions_of(message_id, after))
    texts = database.texts(sorted(set(message_ids)))
    positions = (await connection.scalars(select(found.c.position), {"message_ids": texts})).all()
    return await read_at(connection, positions) if positions else []


def _positions_of(message_id: ColumnElement[str], after: int) -> Select[Any]:
    # `+ 0` makes the planner use the index on the message: the part after a position may be most of the log.
    return select(EVENTS.c.position).where(EVENTS.c.message_id == message_id, EVENTS.c.position + 0 > after)


def _entry(row: Row[Any]) -> Entry:
    if row.route == ALERT:
        return AlertEntry(position=row.position, event=_alert_event(row))
    columns = row._mapping
    return LogEntry(
        position=row.position,
        event=event_of(row),
        previous_status=row.previous_status,
        changed=row.changed,
        delivery=Snapshot(**row.delivery),
        message={name: columns[f"message_{name}"] for name in _JOINED},
    )


def _alert_event(row: Row[Any]) -> AlertEvent:
    sinks = row.facts["sinks"]
    return AlertEvent(
        id=row.id,
        alert_id=row.message_id,
        transition=row.status,
        occurred_at=row.occurred_at,
        received_at=row.received_at,
        alert=row.facts["alert"],
        sinks=frozenset(sinks) if sinks is not None else None,
    )


@dataclass(frozen=True, slots=True)
class LogBounds:
    """The oldest stored position (None: the log is empty) and the last one ever assigned (0: none was)."""

    oldest: int | None
    last: int


@dataclass(frozen=True, slots=True)
class Pulled:
    """Entries after a position, how far the log was read for them, and the bounds of the log after that.

    `read_to` lies behind what was left out, so that it is read once, and so that a consumer that goes on from there
    misses nothing when retention removes it.
    """

    entries: list[Entry]
    read_to: int
    log: LogBounds


async def pull(database: Database, after: int, limit: int) -> Pulled:
    """The next entries after a position without registrations, and then the bounds of the log.

    The order matters: what is appended while this reads lies behind `read_to`, and events that retention removes in
    between show as missing instead of being skipped silently.
    """
    async with database.reading() as connection:
        _, newest = await bounds(connection)
        entries = await read_after(connection, after, limit, until=newest, only=IS_PUBLISHED)
        read_to = entries[-1].position if len(entries) == limit else max(after, newest)
        return Pulled(entries, read_to, await _log_bounds(database, connection))


async def log_bounds(database: Database) -> LogBounds:
    """The bounds of the log."""
    async with database.reading() as connection:
        return await _log_bounds(database, connection)


async def pull_types(database: Database, after: int, limit: int, types: Collection[str]) -> Pulled:
    """The next entries of these CloudEvents types; of all events of messages where no type is named.

    The log is searched in parts, and no further than `_SEARCHED_BY_A_PULL` positions: the types may be rare.
    """
    only = _is_of_types(types) if types else _IS_OF_MESSAGE
    found: list[Entry] = []
    async with database.reading() as connection:
        # Read before the entries: what is appended meanwhile is not passed over.
        oldest, end = await bounds(connection)
    place = max(after, oldest - 1)
    last = min(end, place + _SEARCHED_BY_A_PULL)
    while place < last and len(found) < limit:
        until = min(place + _SEARCHED_AT_ONCE, last)
        async with database.reading() as connection:
            found += await read_after(connection, place, limit - len(found), until=until, only=only)
        place = until
    read_to = found[-1].position if len(found) == limit else place
    async with database.reading() as connection:
        return Pulled(found, read_to, await _log_bounds(database, connection))


def _is_of_types(types: Collection[str]) -> ColumnElement[bool]:
    kinds = {kind: [name.partition(".")[2] for name in types if name.startswith(f"{kind}.")] for kind in _ROUTES}
    return or_(*(and_(_ROUTES[kind], EVENTS.c.status.in_(statuses)) for kind, statuses in kinds.items()))


_ROUTES: Final = {"message": _IS_OF_MESSAGE, ALERT: EVENTS.c.route == ALERT}
_SEARCHED_BY_A_PULL: Final = 1_000_000


async def _log_bounds(database: Database, connection: AsyncConnection) -> LogBounds:
    oldest, newest = await bounds(connection)
    if oldest:
        return LogBounds(oldest, newest)
    last = await connection.scalar(_SQLITE_LAST if database.is_sqlite else _POSTGRESQL_LAST)
    return LogBounds(None, last or 0)


# The last assigned position is known also after retention has emptied the log.
_SQLITE_LAST: Final = sql("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
_POSTGRESQL_LAST: Final = sql(
    "SELECT pg_sequence_last_value(CAST(pg_get_serial_sequence('events', 'position') AS regclass))"
)


# --- positions ---


async def bounds(connection: AsyncConnection) -> tuple[int, int]:
    """The smallest and the largest position in the log; (0, 0) for an empty one."""
    row = (await connection.execute(_BOUNDS)).one()
    return (row[0] or 0, row[1] or 0)


def within(after: int, until: int) -> ColumnElement[bool]:
    """The condition for the part of the log after one position, up to and including another."""
    return and_(EVENTS.c.position > after, EVENTS.c.position <= until)


# Two subqueries: SQLite scans the whole log for min and max in a single SELECT.
_BOUNDS: Final = select(
    select(func.min(EVENTS.c.position)).scalar_subquery(), select(func.max(EVENTS.c.position)).scalar_subquery()
)
# No index has the time of receipt, so the log is searched in parts, each of which is quick.
_SEARCHED_AT_ONCE: Final = 50_000


async def first(connection: AsyncConnection, which: ColumnElement[bool]) -> Row[Any] | None:
    """Position and time of receipt of the first stored event that meets a condition."""
    found = select(EVENTS.c.position, EVENTS.c.received_at).where(which).order_by(EVENTS.c.position).limit(1)
    return (await connection.execute(found)).one_or_none()


async def position_before(database: Database, moment: datetime) -> int:
    """The position before the first event received at a time or later; the end of the log if there is none."""
    place, end = 0, 1
    while place < end:
        async with database.reading() as connection:
            oldest = await first(connection, EVENTS.c.position > place)
            if oldest is None:
                return place
            _, end = await bounds(connection)
            place = oldest.position - 1
            part = within(place, place + _SEARCHED_AT_ONCE)
            if (found := await first(connection, and_(part, EVENTS.c.received_at >= moment))) is not None:
                return int(found.position) - 1
        place += _SEARCHED_AT_ONCE
    return min(place, end)


async def count(database: Database, after: int, until: int) -> int:
    """How many events without registrations a part of the log has, in pieces so that no statement takes long."""
    number, place = 0, after
    while place < until:
        async with database.reading() as connection:
            oldest = await first(connection, within(place, until))
            if oldest is None:
                return number
            end = min(oldest.position - 1 + _SEARCHED_AT_ONCE, until)
            piece = select(func.count()).select_from(EVENTS).where(within(place, end), IS_PUBLISHED)
            number += await connection.scalar(piece) or 0
        place = end
    return number
