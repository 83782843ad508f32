"""The status table, read: messages with their recipients, one page in two statements, every filter by an index."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, and_, exists, literal_column, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.events import Api, Direction, Event, TagVerdict
from receiver.domain.queries import MessageQuery, MessageView, Page, RecipientView, SortOrder
from receiver.storage import event_log
from receiver.storage.database import Database
from receiver.storage.status_table import DELIVERIES, MESSAGES
from receiver.storage.tables import TAG_START_CHARACTERS

# the fields of a query that ask for one value of one column of `messages`
_COLUMNS: Final = {
    "sender": MESSAGES.c.sender_key,
    "direction": MESSAGES.c.direction,
    "status": MESSAGES.c.status,
    "state": MESSAGES.c.state,
    "delivery_state": MESSAGES.c.delivery_state,
    "tag_verdict": MESSAGES.c.tag_verdict,
    "application_id": MESSAGES.c.application_id,
}
# What is also true of such messages, in the words of the index that finds them: SQLite takes a partial index only where
# its condition stands in the statement. Inbound messages, and no others, have the status `received`.
_INBOUND: Final = "messages.status = 'received'"
_UNUSUAL_STATE: Final = "messages.state IN ('queued', 'sending', 'error')"
_UNDELIVERED: Final = "messages.delivery_state IN ('waiting', 'not-delivered')"
_DISTRUSTED: Final = "messages.tag_verdict IN ('forged', 'unsigned', 'missing')"
_IMPLIED: Final = {
    ("direction", "in"): _INBOUND,
    ("state", "received"): _INBOUND,
    ("state", "queued"): _UNUSUAL_STATE,
    ("state", "sending"): _UNUSUAL_STATE,
    ("state", "error"): _UNUSUAL_STATE,
    ("delivery_state", "waiting"): _UNDELIVERED,
    ("delivery_state", "not-delivered"): _UNDELIVERED,
    ("tag_verdict", "forged"): _DISTRUSTED,
    ("tag_verdict", "unsigned"): _DISTRUSTED,
    ("tag_verdict", "missing"): _DISTRUSTED,
}
# The index has the start of a tag alone. The whole of it is compared as `IS TRUE`, for SQLite would put a plain
# equality's value in place of the column, and then not know the index's expression again.
_TAG_START: Final[ColumnElement[str]] = literal_column(f"substr(messages.tag, 1, {TAG_START_CHARACTERS})")
# as the partial indexes spell it; SQLAlchemy would write `= 1` for SQLite
_FLAGS: Final = {"contradicted": "messages.contradicted", "awaiting_receipt": "messages.awaiting_receipt"}


async def find(database: Database, query: MessageQuery) -> Page[MessageView]:
    """The messages a query asks for, with their recipients."""
    async with database.reading() as connection:
        rows = list(await connection.execute(statement(query)))
        shown = rows[: query.size]
        recipients = await _recipients(database, connection, shown)
    return Page(items=[_message(row, recipients[row.api, row.id]) for row in shown], more=len(rows) > query.size)


async def with_id(database: Database, message_id: str, api: Api | None = None) -> list[MessageView]:
    """The messages with an id: none, one, or one of each generation, v1 first."""
    apis = [api] if api else list(Api)
    found = select(MESSAGES).where(MESSAGES.c.api.in_(apis), MESSAGES.c.id == message_id).order_by(MESSAGES.c.api)
    async with database.reading() as connection:
        rows = list(await connection.execute(found))
        recipients = await _recipients(database, connection, rows)
    return [_message(row, recipients[row.api, row.id]) for row in rows]


async def events(database: Database, api: Api, message_id: str) -> list[Event]:
    """The events of a message in order of arrival; those that retention has removed are missing."""
    async with database.reading() as connection:
        return await event_log.of_message(connection, api, message_id)


def statement(query: MessageQuery) -> Select[Any]:
    """The SELECT for a page of messages and one row more, which tells whether the list goes on."""
    through_deliveries = query.recipient is not None or query.delivery_code is not None
    place = _DELIVERY_PLACE if through_deliveries else _MESSAGE_PLACE
    source = MESSAGES.join(DELIVERIES, _SAME_MESSAGE) if through_deliveries else MESSAGES
    conditions = [*_of_message(query), *_of_delivery(query), *_of_place(query, place)]
    ascending = query.order is SortOrder.ASC
    order = [column.asc() if ascending else column.desc() for column in place]
    page = select(MESSAGES).select_from(source).where(*conditions).order_by(*order)
    return page.limit(query.size + 1).offset(query.skip)


Place = Sequence[ColumnElement[Any]]

_MESSAGE_PLACE: Final[Place] = (MESSAGES.c.listed_at, MESSAGES.c.api, MESSAGES.c.id)
# the same values, from the table whose indexes then give the order
_DELIVERY_PLACE: Final[Place] = (DELIVERIES.c.listed_at, DELIVERIES.c.api, DELIVERIES.c.message_id)
_SAME_MESSAGE: Final = and_(MESSAGES.c.api == DELIVERIES.c.api, MESSAGES.c.id == DELIVERIES.c.message_id)


def _of_message(query: MessageQuery) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    for name, column in _COLUMNS.items():
        value = getattr(query, name)
        if value is None:
            continue
        conditions.append(column == value)
        if implied := _IMPLIED.get((name, str(value))):
            conditions.append(literal_column(implied))
    if query.tag is not None:
        conditions += [_TAG_START.op("=")(query.tag[:TAG_START_CHARACTERS]), (MESSAGES.c.tag == query.tag).is_(True)]
    for name, flag in _FLAGS.items():
        wanted = getattr(query, name)
        if wanted is not None:
            conditions.append(literal_column(flag if wanted else f"NOT {flag}"))
    return conditions


def _of_delivery(query: MessageQuery) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if query.recipient is not None:
        conditions.append(DELIVERIES.c.recipient_key == query.recipient)
    if query.delivery_code is not None:
        conditions.append(DELIVERIES.c.delivery_code == query.delivery_code)
        if query.recipient is None:
            conditions.append(~_earlier_with_code(query.delivery_code))
    return conditions


def _earlier_with_code(code: int) -> ColumnElement[bool]:
    """Another recipient of the same message has the code too; without this, a group message would be listed twice."""
    other = DELIVERIES.alias("other")
    same_message = and_(other.c.api == DELIVERIES.c.api, other.c.message_id == DELIVERIES.c.message_id)
    earlier: ColumnElement[bool] = other.c.recipient_key < DELIVERIES.c.recipient_key
    return exists().where(same_message, other.c.delivery_code == code, earlier)


def _of_place(query: MessageQuery, place: Place) -> list[ColumnElement[bool]]:
    listed_at = place[0]
    conditions: list[ColumnElement[bool]] = []
    if query.since is not None:
        conditions.append(listed_at >= query.since)
    if query.until is not None:
        conditions.append(listed_at < query.until)
    if query.after is not None:
        after = tuple_(query.after.listed_at, query.after.api, query.after.id, types=[column.type for column in place])
        here = tuple_(*place)
        conditions.append(here > after if query.order is SortOrder.ASC else here < after)
    return conditions


async def _recipients(
    database: Database, connection: AsyncConnection, messages: Sequence[Row[Any]]
) -> dict[tuple[str, str], list[RecipientView]]:
    """The recipients of messages, by generation and message id, in their order."""
    found: dict[tuple[str, str], list[RecipientView]] = defaultdict(list)
    if messages:
        ids = {"ids": database.texts({row.id for row in messages})}
        for row in await connection.execute(_recipients_statement(database), ids):
            found[row.api, row.message_id].append(_recipient(row))
    return found


def _recipients_statement(database: Database) -> Select[Any]:
    # both generations by name: then the primary key finds the rows
    of_page = and_(DELIVERIES.c.api.in_(list(Api)), database.among(DELIVERIES.c.message_id, "ids"))
    return select(DELIVERIES).where(of_page).order_by(DELIVERIES.c.place)


def _message(row: Row[Any], recipients: list[RecipientView]) -> MessageView:
    return MessageView(
        api=Api(row.api),
        id=row.id,
        direction=Direction(row.direction),
        sender=row.sender,
        numbers=row.recipients,
        owner=row.owner,
        application_id=row.application_id,
        text=row.text,
        media=row.media or [],
        tag=row.tag,
        tag_verdict=TagVerdict(row.tag_verdict),
        segment_count=row.segment_count,
        channel=row.channel,
        carrier_name=row.carrier_name,
        priority=row.priority,
        created_at=row.created_at,
        listed_at=row.listed_at,
        status=row.status,
        state=row.state,
        delivery_state=row.delivery_state,
        delivery_code=row.delivery_code,
        delivery_description=row.delivery_description,
        contradicted=row.contradicted,
        awaiting_receipt=row.awaiting_receipt,
        first_received_at=row.first_received_at,
        updated_at=row.updated_at,
        recipients=recipients,
    )


def _recipient(row: Row[Any]) -> RecipientView:
    return RecipientView(
        api=Api(row.api),
        number=row.recipient,
        status=row.status,
        state=row.state,
        delivery_state=row.delivery_state,
        delivery_code=row.delivery_code,
        delivery_description=row.delivery_description,
        sent_at=row.sent_at,
        delivered_at=row.delivered_at,
        failed_at=row.failed_at,
        read_at=row.read_at,
        contradicted=row.contradicted,
        updated_at=row.updated_at,
    )
