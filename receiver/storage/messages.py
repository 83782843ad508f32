"""The status table: messages and deliveries, written by the processor as rows, read as pages of messages.

A page takes two statements, and an index serves every filter.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter, itemgetter
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, Row, Select, and_, exists, func, literal_column, select, tuple_, union
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.events import (
    PLAIN_FIELDS,
    REGISTERED_FIELDS,
    Api,
    Direction,
    Event,
    MessageFields,
    MessageKey,
    number_key,
)
from receiver.domain.message import Message, Recipient, roll_up
from receiver.models.columns import json_text
from receiver.models.message_queries import TAG_START_CHARACTERS, Alternative, MessageQuery
from receiver.models.messages import DELIVERIES, MESSAGES, MessageRead, RecipientRead
from receiver.models.queries import Page, SortOrder
from receiver.providers import states
from receiver.storage import event_log
from receiver.storage.bulk import ExecuteMany, InsertMany, Spelling, Step, Transaction, upsert
from receiver.storage.database import Database

# The log does not hold these, so they are null in a message folded from stored events; the stored values then stay.
_NOT_IN_THE_LOG: Final = ("text", "media")


# The columns whose value is a field of the events as it is; those below them are computed.
_FROM_FIELDS: Final = tuple(name for name in (*PLAIN_FIELDS, *REGISTERED_FIELDS, "text") if name in MESSAGES.c)
_field_values: Final = attrgetter(*_FROM_FIELDS)
MESSAGE_COLUMNS: Final = (
    *_FROM_FIELDS,
    "api",
    "direction",
    "id",
    "sender_key",
    "recipients",
    "media",
    "tag_verdict",
    "created_at",
    "listed_at",
    "status",
    "state",
    "delivery_state",
    "delivery_code",
    "delivery_description",
    "contradicted",
    "awaiting_receipt",
    "first_received_at",
    "registered_at",
    "updated_at",
)
# In the order of the values that `_delivery_row` makes: a value too few or too many fails every write.
DELIVERY_COLUMNS: Final = tuple(DELIVERIES.c.keys())
_final_values: Final = itemgetter(*map(DELIVERY_COLUMNS.index, ("status", "contradicted")))
_DELIVERY_KEY: Final = itemgetter(*map(DELIVERY_COLUMNS.index, ("api", "direction", "message_id", "recipient_key")))

_RowValues = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one message: its own, and one for each recipient, by the recipient's key."""

    message: _RowValues
    deliveries: dict[str, _RowValues]


def rows_of(message: Message, spelling: Spelling) -> Rows:
    """The rows of a message; they depend on the set of its events alone."""
    recipients, fields = message.recipients(), message.fields()
    listed_at = spelling.time(fields.created_at or message.first_received_at)
    deliveries = {}
    for place, recipient in enumerate(recipients):
        key = number_key(recipient.number)
        deliveries[key] = _delivery_row(message, recipient, key, place, listed_at, spelling)
    return Rows(_message_row(message, fields, recipients, listed_at, spelling), deliveries)


def depends_on_conflict(rows: Rows) -> bool:
    """Whether `RECEIVER_FINAL_CONFLICT` may decide these rows: a failure was reported, whatever came with it."""
    return any(
        status == "failed" or contradicted for status, contradicted in map(_final_values, rows.deliveries.values())
    )


def _message_row(
    message: Message, fields: MessageFields, recipients: Sequence[Recipient], listed_at: Any, spelling: Spelling
) -> _RowValues:
    time, flag = spelling.time, spelling.flag
    summary = roll_up([recipient.delivery for recipient in recipients], message.direction, states)
    sender, media = fields.sender, fields.media
    return (
        *_field_values(fields),
        message.api.value,
        message.direction.value,
        message.id,
        number_key(sender) if sender else None,
        json_text([recipient.number for recipient in recipients if recipient.number is not None]),
        json_text(media) if media else None,
        message.tag_verdict.value,
        time(fields.created_at),
        listed_at,
        str(summary.status),
        summary.state,
        summary.delivery_state,
        summary.code,
        summary.description,
        flag(summary.contradicted),
        flag(summary.awaiting_receipt),
        time(message.first_received_at),
        time(message.registered_at),
        time(message.updated_at),
    )


def _delivery_row(
    message: Message, recipient: Recipient, key: str, place: int, listed_at: Any, spelling: Spelling
) -> _RowValues:
    time, delivery = spelling.time, recipient.delivery
    state, delivery_state = states.of_delivery(delivery)
    return (
        recipient.number,
        delivery.status.value,
        state,
        delivery_state,
        delivery.code,
        delivery.description,
        time(delivery.sent_at),
        time(delivery.delivered_at),
        time(delivery.failed_at),
        time(delivery.read_at),
        spelling.flag(delivery.contradicted),
        time(delivery.updated_at),
        message.api.value,
        message.direction.value,
        message.id,
        key,
        place,
        listed_at,
        time(delivery.delivered_received_at),
    )


_KEEP_MESSAGE: Final = upsert(MESSAGES, keep_if_null=_NOT_IN_THE_LOG, untouched=("events_forgotten",))
_KEEP_DELIVERY: Final = upsert(DELIVERIES)
_REMOVE: Final = "DELETE FROM deliveries WHERE api = ? AND direction = ? AND message_id = ? AND recipient_key = ?"


async def existing_rows(transaction: Transaction, message_ids: Iterable[str]) -> dict[MessageKey, bool]:
    """The messages with these ids that have a row, and whether retention has removed events of them.

    A message that has lost events must not be folded again.
    """
    columns = [MESSAGES.c.api, MESSAGES.c.direction, MESSAGES.c.id, MESSAGES.c.events_forgotten]
    found = await transaction.select(columns, "id {among}", message_ids)
    return {(Api(row[0]), Direction(row[1]), row[2]): bool(row[3]) for row in found}


def write_rows(changes: Iterable[tuple[bool, Rows | None, Rows]]) -> list[Step]:
    """The steps that write messages. A change is: whether the message has a row, its rows before, its rows after.

    The rows before are None if they are unknown or there are none. Rows that did not change are not written.
    """
    new: list[_RowValues] = []
    new_deliveries: list[_RowValues] = []
    messages: list[_RowValues] = []
    deliveries: list[_RowValues] = []
    gone: list[_RowValues] = []
    for is_stored, before, after in changes:
        old = before.deliveries if before else {}
        gone.extend(_DELIVERY_KEY(row) for key, row in old.items() if key not in after.deliveries)
        if not is_stored:
            new.append(after.message)
            # A message without a row may still have deliveries: a rebuild may meet such a state.
            (new_deliveries if before is None else deliveries).extend(after.deliveries.values())
            continue
        if before is None or before.message != after.message:
            messages.append(after.message)
        deliveries.extend(row for key, row in after.deliveries.items() if old.get(key) != row)
    return [
        InsertMany(MESSAGES, MESSAGE_COLUMNS, new),
        InsertMany(MESSAGES, MESSAGE_COLUMNS, messages, _KEEP_MESSAGE),
        ExecuteMany(_REMOVE, gone),
        InsertMany(DELIVERIES, DELIVERY_COLUMNS, new_deliveries),
        InsertMany(DELIVERIES, DELIVERY_COLUMNS, deliveries, _KEEP_DELIVERY),
    ]


# --- reading ---

# The filters that compare one column of `messages` with one value.
_COLUMNS: Final = {
    "message_id": MESSAGES.c.id,
    "sender": MESSAGES.c.sender_key,
    "direction": MESSAGES.c.direction,
    "status": MESSAGES.c.status,
    "state": MESSAGES.c.state,
    "delivery_state": MESSAGES.c.delivery_state,
    "tag_verdict": MESSAGES.c.tag_verdict,
}
# The values of these columns that a partial index leaves out, and its condition: SQLite uses such an index only if the
# statement has the same condition, word for word.
_PARTIAL: Final = {
    "status": (("delivered", "received"), "messages.status NOT IN ('delivered', 'received')"),
    "state": (("sent", "received"), "messages.state IN ('queued', 'sending', 'error')"),
    "delivery_state": (("delivered",), "messages.delivery_state IN ('waiting', 'not-delivered')"),
    "tag_verdict": (
        ("unchecked", "not-applicable"),
        "messages.tag_verdict NOT IN ('unchecked', 'not-applicable')",
    ),
}
# Values that all inbound messages have, and no others. The index of the list's order has the direction.
_INBOUND: Final = frozenset({("status", "received"), ("state", "received"), ("tag_verdict", "not-applicable")})
# The index has only the start of a tag. The whole tag is compared as `IS TRUE`: SQLite would substitute the value of a
# plain equality for the column, and then not recognise the expression of the index.
_TAG_START: Final[ColumnElement[str]] = literal_column(f"substr(messages.tag, 1, {TAG_START_CHARACTERS})")
# Spelled as in the partial indexes; SQLAlchemy would write `= 1` for SQLite.
_FLAGS: Final = {"contradicted": "messages.contradicted", "awaiting_receipt": "messages.awaiting_receipt"}


async def find(database: Database, query: MessageQuery, seconds: float | None = None) -> Page[MessageRead]:
    """A page of the messages that match a query, with their recipients. Raises TooSlow as `Database.searching` does."""
    if not query.alternatives():
        return Page(items=[], more=False)
    async with database.searching(seconds) as connection:
        rows = (await connection.execute(await statement(connection, query))).all()
        found = await _with_recipients(database, connection, rows[: query.size])
    return Page(items=found, more=len(rows) > query.size)


async def ends(database: Database) -> tuple[datetime, datetime] | None:
    """The times at which the list of all messages ends: its oldest and its newest. None if there are no messages."""
    oldest, newest = (select(end(MESSAGES.c.listed_at)).scalar_subquery() for end in (func.min, func.max))
    async with database.searching() as connection:
        found = (await connection.execute(select(oldest, newest))).one()
    return None if found[0] is None else (found[0], found[1])


async def with_id(
    database: Database, message_id: str, api: Api | None = None, direction: Direction | None = None
) -> list[MessageRead]:
    """The messages with an id, optionally of one version or direction; ordered v1 first, then inbound first."""
    found = select(*_MESSAGE).where(MESSAGES.c.id == message_id).order_by(MESSAGES.c.api, MESSAGES.c.direction)
    if api is not None:
        found = found.where(MESSAGES.c.api == api)
    if direction is not None:
        found = found.where(MESSAGES.c.direction == direction)
    async with database.reading() as connection:
        return await _with_recipients(database, connection, (await connection.execute(found)).all())


async def events(database: Database, key: MessageKey) -> list[Event]:
    """The events of a message in the order of the log, without those that retention has removed."""
    async with database.reading() as connection:
        return await event_log.of_message(connection, key)


async def statement(connection: AsyncConnection, query: MessageQuery) -> Select[Any]:
    """The SELECT for a page of messages and one row more, which tells whether the list goes on.

    An inner SELECT finds the keys of the page, from an index alone if it has all columns, and an outer one their rows:
    a page that skips half a million messages reads none of their rows.
    """
    of_prefix = await _of_prefix(connection, query.tag_prefix) if query.tag_prefix is not None else _OfPrefix()
    keys = _keys(query, of_prefix).subquery("page")
    same = and_(MESSAGES.c.api == keys.c.api, MESSAGES.c.direction == keys.c.direction, MESSAGES.c.id == keys.c.id)
    return select(*_MESSAGE).join_from(keys, MESSAGES, same).order_by(*_in_order(query, tuple(keys.c)))


@dataclass(frozen=True, slots=True)
class _OfPrefix:
    """The conditions that a tag has a prefix, and whether few messages meet them."""

    conditions: Sequence[ColumnElement[bool]] = ()
    is_rare: bool = False


async def _of_prefix(connection: AsyncConnection, prefix: str) -> _OfPrefix:
    """The condition that a tag has a prefix, in the form that reads few rows.

    The index of the tags finds the matches in the order of their tags. If there are many, sorting them takes longer
    than reading the list of messages in its order until a page is full.
    """
    has_prefix = func.substr(MESSAGES.c.tag, 1, len(prefix)) == prefix
    at_least, less = ("~>=~", "~<~") if connection.dialect.name == "postgresql" else (">=", "<")
    in_index = [_TAG_START.op(at_least)(prefix)]
    if (end := _after_prefix(prefix)) is not None:
        in_index.append(_TAG_START.op(less)(end))
    some: Select[Any] = select(literal_column("1")).select_from(MESSAGES).where(*in_index).limit(_MANY_MATCHES)
    if connection.dialect.name == "postgresql":
        # Without an order PostgreSQL chose a bitmap of all matches: 0.9 s where three million tags have the prefix.
        some = some.order_by(_TAG_START.op("USING")(literal_column("~<~")))
    matches = await connection.scalar(select(func.count()).select_from(some.subquery()))
    if matches == _MANY_MATCHES:
        return _OfPrefix([has_prefix])
    return _OfPrefix([has_prefix.is_(True), *in_index], is_rare=True)


_MANY_MATCHES: Final = 10_000


def _after_prefix(prefix: str) -> str | None:
    """The smallest text that is larger than every text with this prefix, None if there is none."""
    for place in range(len(prefix) - 1, -1, -1):
        following = ord(prefix[place]) + 1
        # UTF-8 cannot encode surrogates.
        following = 0xE000 if 0xD800 <= following < 0xE000 else following
        if following <= sys.maxunicode:
            return prefix[:place] + chr(following)
    return None


def _keys(query: MessageQuery, of_prefix: _OfPrefix) -> Select[Any]:
    """The SELECT for the places in the list, which contain the keys, of a page of messages."""
    alternatives = query.alternatives()
    if len(alternatives) == 1:
        return _keys_of(query, alternatives[0], of_prefix).limit(query.size + 1).offset(query.skip)
    # Every alternative gives its first matches in the order of its index; the page is among them.
    firsts = (_keys_of(query, each, of_prefix).limit(query.skip + query.size + 1) for each in alternatives)
    found = union(*(select(first.subquery()) for first in firsts)).subquery("found")
    return select(found).order_by(*_in_order(query, tuple(found.c))).limit(query.size + 1).offset(query.skip)


def _keys_of(query: MessageQuery, alternative: Alternative, of_prefix: _OfPrefix) -> Select[Any]:
    of_message, of_delivery = [*_of_message(query, alternative), *of_prefix.conditions], _of_delivery(alternative)
    place = _DELIVERY_PLACE if of_delivery else _MESSAGE_PLACE
    names = (column.label(name) for column, name in zip(place, _PLACE_NAMES, strict=True))
    page = select(*names).where(*of_message, *of_delivery, *_of_place(query, place))
    if of_delivery and of_message:
        page = page.join_from(DELIVERIES, MESSAGES, _SAME_MESSAGE)
    if of_prefix.is_rare:
        # OFFSET separates finding from sorting. PostgreSQL takes every prefix for that of one message in 200; among ten
        # million it read the list in its order for a match, and did not find one within its time.
        found = page.offset(0).subquery("of_prefix")
        return select(found).order_by(*_in_order(query, tuple(found.c)))
    return page.order_by(*_in_order(query, place))


Place = Sequence[ColumnElement[Any]]

_PLACE_NAMES: Final = ("listed_at", "api", "direction", "id")
_MESSAGE_PLACE: Final[Place] = (MESSAGES.c.listed_at, MESSAGES.c.api, MESSAGES.c.direction, MESSAGES.c.id)
# The same values, from the table whose indexes then give the order.
_DELIVERY_PLACE: Final[Place] = (
    DELIVERIES.c.listed_at,
    DELIVERIES.c.api,
    DELIVERIES.c.direction,
    DELIVERIES.c.message_id,
)
_SAME_MESSAGE: Final = and_(
    MESSAGES.c.api == DELIVERIES.c.api,
    MESSAGES.c.direction == DELIVERIES.c.direction,
    MESSAGES.c.id == DELIVERIES.c.message_id,
)


def _in_order(query: MessageQuery, place: Place) -> list[ColumnElement[Any]]:
    return [column.asc() if query.order is SortOrder.ASC else column.desc() for column in place]


def _of_message(query: MessageQuery, alternative: Alternative) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    for name, column in _COLUMNS.items():
        value = getattr(alternative, name)
        if value is not None:
            conditions += _with_value(name, column, str(value))
    for name in ("status", "tag_verdict"):
        if among := getattr(alternative, f"{name}_among"):
            conditions.append(_COLUMNS[name].in_(map(str, among)))
    if query.application_id is not None:
        conditions.append(MESSAGES.c.application_id == query.application_id)
    if (tag := alternative.tag) is not None:
        conditions += [_TAG_START.op("=")(tag[:TAG_START_CHARACTERS]), (MESSAGES.c.tag == tag).is_(True)]
    for name, flag in _FLAGS.items():
        wanted = getattr(query, name)
        if wanted is not None:
            conditions.append(literal_column(flag if wanted else f"NOT {flag}"))
    return conditions


def _with_value(name: str, column: ColumnElement[Any], value: str) -> list[ColumnElement[bool]]:
    """The condition that a column has a value, in the form for which there is an index."""
    if (name, value) in _INBOUND:
        # This replaces the condition on the value: with both, PostgreSQL assumes independence and expects no rows.
        return [MESSAGES.c.direction == Direction.IN]
    left_out, condition = _PARTIAL.get(name, ((value,), ""))
    return [column == value] if value in left_out else [column == value, literal_column(condition)]


def _of_delivery(alternative: Alternative) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if alternative.recipient is not None:
        conditions.append(DELIVERIES.c.recipient_key == alternative.recipient)
    if alternative.delivery_code is not None:
        conditions.append(DELIVERIES.c.delivery_code == alternative.delivery_code)
        if alternative.recipient is None:
            conditions.append(~_earlier_with_code(alternative.delivery_code))
    return conditions


def _earlier_with_code(code: int) -> ColumnElement[bool]:
    """Whether an earlier recipient of the same message has the code too: a group message must be listed once only."""
    other = DELIVERIES.alias("other")
    same_message = and_(
        other.c.api == DELIVERIES.c.api,
        other.c.direction == DELIVERIES.c.direction,
        other.c.message_id == DELIVERIES.c.message_id,
    )
    earlier: ColumnElement[bool] = other.c.recipient_key < DELIVERIES.c.recipient_key
    return exists().where(same_message, other.c.delivery_code == code, earlier)


def _of_place(query: MessageQuery, place: Place) -> list[ColumnElement[bool]]:
    listed_at = place[0]
    conditions: list[ColumnElement[bool]] = []
    if query.since is not None:
        conditions.append(listed_at >= query.since)
    for until in filter(None, (query.until, query.older_than)):
        conditions.append(listed_at < until)
    if (after := query.after) is not None:
        types = [column.type for column in place]
        there = tuple_(after.listed_at, after.api, after.direction, after.id, types=types)
        here = tuple_(*place)
        conditions.append(here > there if query.order is SortOrder.ASC else here < there)
    return conditions


# The columns of what is read; `recipients` of a message are the rows of its deliveries.
_MESSAGE: Final = [
    MESSAGES.c["recipients" if name == "numbers" else name].label(name)
    for name in MessageRead.model_fields
    if name != "recipients"
]
_KEY: Final = (DELIVERIES.c.api, DELIVERIES.c.direction, DELIVERIES.c.message_id)
_RECIPIENT: Final = [DELIVERIES.c[name] for name in RecipientRead.model_fields]
_MESSAGES_READ: Final = TypeAdapter(list[MessageRead])


async def _with_recipients(
    database: Database, connection: AsyncConnection, rows: Sequence[Row[Any]]
) -> list[MessageRead]:
    """The messages of these rows, with their recipients in their order."""
    if not rows:
        return []
    recipients: dict[tuple[str, str, str], list[Mapping[str, Any]]] = defaultdict(list)
    of_page = database.one_of(DELIVERIES.c.message_id, {row.id for row in rows})
    statement = select(*_KEY, *_RECIPIENT).where(of_page).order_by(DELIVERIES.c.place)
    for api, direction, message_id, *values in await connection.execute(statement):
        recipients[api, direction, message_id].append(dict(zip(RecipientRead.model_fields, values, strict=True)))
    return _MESSAGES_READ.validate_python(
        [{**row._mapping, "recipients": recipients[row.api, row.direction, row.id]} for row in rows]
    )
