"""The event log: one row per event, in one total order."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.events import PLAIN_FACTS, Api, Direction, Event, Facts, Failure, Status, TagVerdict
from receiver.domain.log import Appended, LogEntry, Snapshot
from receiver.storage.appending import Insert, Transaction
from receiver.storage.database import Database
from receiver.storage.tables import EventRow, MessageRow

EVENTS: Final[Any] = EventRow.__table__  # type: ignore[attr-defined]
MESSAGES: Final[Any] = MessageRow.__table__  # type: ignore[attr-defined]

# no index knows when events were received: the log is searched in parts, each of them quick
_SEARCHED_AT_ONCE: Final = 50_000

_OF_MESSAGE: Final = (*PLAIN_FACTS, "recipients", "text", "media")


def append(entries: Sequence[Appended]) -> Insert:
    """The step that appends entries to the log."""
    return Insert(EVENTS, [_row(entry) for entry in entries])


async def of_messages(transaction: Transaction, message_ids: Iterable[str]) -> dict[tuple[Api, str], list[Event]]:
    """The events of messages, by generation and message id, in the order of the log."""
    found: dict[tuple[Api, str], list[Event]] = {}
    for row in await transaction.select(list(EVENTS.columns), "message_id {among} ORDER BY position", message_ids):
        event = event_of(row)
        found.setdefault((event.api, event.message_id), []).append(event)
    return found


async def of_message(connection: AsyncConnection, api: Api, message_id: str) -> list[Event]:
    """The events of one message, in the order of the log."""
    of_it = and_(EVENTS.c.message_id == message_id, EVENTS.c.api == api)
    return [event_of(row) for row in await connection.execute(select(EVENTS).where(of_it).order_by(EVENTS.c.position))]


_ENTRIES: Final = select(EVENTS, *(MESSAGES.c[name].label(f"message_{name}") for name in _OF_MESSAGE)).outerjoin(
    MESSAGES, and_(MESSAGES.c.api == EVENTS.c.api, MESSAGES.c.id == EVENTS.c.message_id)
)


async def read_after(connection: AsyncConnection, position: int, limit: int) -> list[LogEntry]:
    """The next entries after a position, with their messages' facts."""
    statement = _ENTRIES.where(EVENTS.c.position > position).order_by(EVENTS.c.position).limit(limit)
    return [_entry(row) for row in await connection.execute(statement)]


async def read_at(connection: AsyncConnection, positions: Sequence[int]) -> list[LogEntry]:
    """The entries at given positions, in rising order; those that are pruned are left out."""
    statement = _ENTRIES.where(EVENTS.c.position.in_(positions)).order_by(EVENTS.c.position)
    return [_entry(row) for row in await connection.execute(statement)]


async def later_of_messages(
    database: Database, connection: AsyncConnection, message_ids: Iterable[str], after: int
) -> list[LogEntry]:
    """The entries of messages after a position, in rising order; a message id may be that of two generations."""
    found = database.for_each("message_ids", lambda message_id: _positions_of(message_id, after))
    texts = database.texts(sorted(set(message_ids)))
    positions = (await connection.scalars(select(found.c.position), {"message_ids": texts})).all()
    return await read_at(connection, positions) if positions else []


def _positions_of(message_id: ColumnElement[str], after: int) -> Select[Any]:
    # by the message: what comes after a position may be most of the log
    return select(EVENTS.c.position).where(EVENTS.c.message_id == message_id, EVENTS.c.position + 0 > after)


async def bounds(connection: AsyncConnection) -> tuple[int, int]:
    """The smallest and the largest position in the log; (0, 0) for an empty one."""
    row = (await connection.execute(_BOUNDS)).one()
    return (row[0] or 0, row[1] or 0)


async def first(connection: AsyncConnection, which: ColumnElement[bool]) -> Row[Any] | None:
    """Position and time of receipt of the first such event that is kept."""
    found = select(EVENTS.c.position, EVENTS.c.received_at).where(which).order_by(EVENTS.c.position).limit(1)
    return (await connection.execute(found)).one_or_none()


def within(after: int, until: int) -> ColumnElement[bool]:
    """The part of the log after one position, up to and with another."""
    return and_(EVENTS.c.position > after, EVENTS.c.position <= until)


async def position_before(database: Database, moment: datetime) -> int:
    """The position before the first event that was received at a moment or later; the log's end if there is none."""
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
    """How many events are kept in a part of the log, counted piece by piece: no statement may take long."""
    number, place = 0, after
    while place < until:
        async with database.reading() as connection:
            oldest = await first(connection, within(place, until))
            if oldest is None:
                return number
            end = min(oldest.position - 1 + _SEARCHED_AT_ONCE, until)
            piece = select(func.count()).select_from(EVENTS).where(within(place, end))
            number += await connection.scalar(piece) or 0
        place = end
    return number


# asked for both at once, SQLite goes through the whole log
_BOUNDS: Final = select(
    select(func.min(EVENTS.c.position)).scalar_subquery(), select(func.max(EVENTS.c.position)).scalar_subquery()
)


def event_of(row: Row[Any]) -> Event:
    """The event a row of the log holds; its text and media are with the message."""
    told = row.facts
    return Event(
        id=row.id,
        api=Api(row.api),
        message_id=row.message_id,
        direction=Direction(row.direction),
        type=row.type,
        status=Status(row.status),
        recipient=row.recipient,
        occurred_at=row.occurred_at,
        read_at=_time(told.get("read_at")),
        code=row.code,
        description=row.description,
        failure=Failure(told["failure"]) if "failure" in told else None,
        state=told.get("state"),
        delivery_state=told.get("delivery_state"),
        contradicted=told.get("contradicted", False),
        tag_verdict=TagVerdict(row.tag_verdict),
        facts=_facts(told),
        received_at=row.received_at,
        route=row.route,
        callback_id=row.callback_id,
    )


def _facts(told: dict[str, Any]) -> Facts:
    return Facts(
        **{name: told[name] for name in PLAIN_FACTS if name in told},
        recipients=tuple(told.get("recipients", ())),
        has_text=told.get("has_text", False),
        has_media=told.get("has_media", False),
        created_at=_time(told.get("created_at")),
    )


def _told(event: Event) -> dict[str, Any]:
    """The JSON of an event's facts: what is absent stays out."""
    facts = event.facts
    told: dict[str, Any] = {name: value for name in PLAIN_FACTS if (value := getattr(facts, name)) is not None}
    if facts.recipients:
        told["recipients"] = list(facts.recipients)
    for name in ("has_text", "has_media"):
        if getattr(facts, name):
            told[name] = True
    for name, time in (("created_at", facts.created_at), ("read_at", event.read_at)):
        if time is not None:
            told[name] = time.astimezone(UTC).isoformat()
    for name in ("failure", "state", "delivery_state"):
        if (value := getattr(event, name)) is not None:
            told[name] = value
    if event.contradicted:
        told["contradicted"] = True
    return told


def _row(entry: Appended) -> dict[str, Any]:
    event = entry.event
    return {
        "id": event.id,
        "api": event.api,
        "message_id": event.message_id,
        "recipient": event.recipient,
        "direction": event.direction,
        "type": event.type,
        "status": event.status,
        "occurred_at": event.occurred_at,
        "received_at": event.received_at,
        "code": event.code,
        "description": event.description,
        "tag_verdict": event.tag_verdict,
        "route": event.route,
        "callback_id": event.callback_id,
        "previous_status": entry.previous_status,
        "changed": entry.changed,
        "facts": _told(event),
        "delivery": {name: getattr(entry.delivery, name) for name in _SNAPSHOT},
    }


_SNAPSHOT: Final = tuple(field.name for field in fields(Snapshot))


def _entry(row: Row[Any]) -> LogEntry:
    columns = row._mapping
    return LogEntry(
        position=row.position,
        event=event_of(row),
        previous_status=row.previous_status,
        changed=row.changed,
        delivery=Snapshot(**row.delivery),
        message={name: columns[f"message_{name}"] for name in _OF_MESSAGE},
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
