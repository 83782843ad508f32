"""A column or a filter that is declared is everywhere: table, JSON, CSV, CloudEvent, view, option, statement."""

from datetime import UTC, datetime
from typing import Any

import pytest
import typer
from msgspec import convert, structs
from orjson import loads
from sqlmodel import SQLModel

from receiver.api.messages import COLUMNS as CSV
from receiver.cli.program import app
from receiver.domain.cloudevents import cloud_event
from receiver.domain.events import (
    PLAIN_FIELDS,
    REGISTERED,
    REGISTERED_FIELDS,
    Api,
    Direction,
    MessageFields,
    Status,
    TagVerdict,
)
from receiver.domain.message import fold
from receiver.models.columns import shown_names
from receiver.models.message_queries import MessageQuery
from receiver.models.messages import (
    DELIVERIES,
    MESSAGES,
    DeliveryBase,
    DeliveryRow,
    MessageBase,
    MessageRead,
    MessageRow,
    RecipientRead,
)
from receiver.models.parameters import MessagePlace
from receiver.models.queries import SortOrder
from receiver.storage import event_log
from receiver.storage.bulk import Spelling
from receiver.storage.database import Database
from receiver.storage.messages import DELIVERY_COLUMNS, MESSAGE_COLUMNS, rows_of, statement
from tests.factories import callback, make_event, v2_event
from tests.processing import process, select

pytestmark = pytest.mark.anyio

AS_THEY_ARE = Spelling(time=lambda time: time, flag=lambda flag: flag)

# The view and the event show these under another name, or not at all, and why.
VIEW_NAMES = {"id": "message_id", "status": "message_status"}
NOT_IN_VIEW = {
    "numbers": "it has a row for each of them",
    "media": "a list",
    "updated_at": "that of the delivery is there",
}
EVENT_NAMES = {"id": "messageId", "from": "from", "deliveryCode": "deliveryCode"}
NOT_IN_EVENT = {
    "owner": "of a v1 callback alone",
    "priority": "of a callback alone",
    "time": "the CloudEvent has the time of the event",
    "firstReceivedTime": "the event has its own",
    "registeredTime": "of the sender, while events are the provider's",
    "updatedTime": "the event has its own",
    "awaitingReceipt": "of the message, while events are of a delivery",
    "sentTime": "the time of an earlier event",
    "deliveredTime": "the time of an earlier event",
    "failedTime": "the time of an earlier event",
    "readTime": "the time of an earlier event",
}
JSON_NAMES = {"sender": "from", "numbers": "to", "recipient": "to", "created_at": "time"}


def json_name(model: type[SQLModel], field: str) -> str:
    return model.model_fields[field].serialization_alias or field


@pytest.mark.parametrize("field", MessageBase.model_fields)
def test_message_field_is_column_json_and_csv(field: str) -> None:
    assert ("recipients" if field == "numbers" else field) in MESSAGES.c
    shown = json_name(MessageRead, field)
    assert shown in shown_names(MessageRead)
    assert shown in CSV


@pytest.mark.parametrize("field", DeliveryBase.model_fields)
def test_delivery_field_is_column_json_and_csv(field: str) -> None:
    assert field in DELIVERIES.c
    shown = json_name(RecipientRead, field)
    assert shown in shown_names(RecipientRead)
    assert shown in CSV


def test_every_column_is_written() -> None:
    assert set(MESSAGE_COLUMNS) == set(MESSAGES.c.keys()) - {"events_forgotten"}


def test_fields_of_a_row_alone_are_not_shown() -> None:
    own = set(MessageRow.model_fields) - set(MessageBase.model_fields)
    assert own == {"sender_key", "listed_at", "events_forgotten", *REGISTERED_FIELDS}
    assert not own & set(shown_names(MessageRead))
    assert not {"recipient_key", "place"} & set(shown_names(RecipientRead))
    assert set(DeliveryRow.model_fields) >= set(DeliveryBase.model_fields)


async def test_every_field_is_in_the_view(database: Database) -> None:
    await process(database, callback([v2_event("m1")]))
    [row] = await select(database, "SELECT * FROM message_status")
    names = set(row._mapping)
    expected = {VIEW_NAMES.get(name, name) for name in MessageBase.model_fields if name not in NOT_IN_VIEW}
    assert expected | set(DeliveryBase.model_fields) <= names


async def test_every_field_is_in_the_cloud_event(database: Database) -> None:
    await process(database, callback([v2_event("m1")]))
    [entry] = (await event_log.pull(database, 0, 10)).entries
    names = set(cloud_event(entry, "/test", None, "urn:test")["data"])
    shown = [*shown_names(MessageRead), *shown_names(RecipientRead)]
    missing = {name for name in shown if EVENT_NAMES.get(name, name) not in names} - {"recipients"}
    assert missing == set(NOT_IN_EVENT)


VALUES: dict[str, Any] = {
    "sender": "1",
    "recipient": "2",
    "since": datetime(2026, 1, 1, tzinfo=UTC),
    "until": datetime(2026, 1, 2, tzinfo=UTC),
    "direction": Direction.OUT,
    "state": "sent",
    "delivery_state": "delivered",
    "order": SortOrder.ASC,
    "after": MessagePlace(datetime(2026, 1, 1, tzinfo=UTC), Api.V2, Direction.OUT, "m"),
    "number": "3",
    "q": "4",
    "status": "failed",
    "delivery_code": 4720,
    "tag": "a",
    "tag_prefix": "b",
    "tag_verdict": TagVerdict.FORGED,
    "application_id": "a-1",
    "contradicted": True,
    "awaiting_receipt": False,
    "older_than": datetime(2026, 1, 3, tzinfo=UTC),
    "page": 3,
    "size": 7,
}


async def sql(database: Database, query: MessageQuery) -> str:
    async with database.reading() as connection:
        made = await statement(connection, query)
        return str(made.compile(connection.engine, compile_kwargs={"literal_binds": True}))


@pytest.mark.parametrize("field", MessageQuery.model_fields)
async def test_every_filter_of_messages_changes_the_statement(database: Database, field: str) -> None:
    query = MessageQuery(**{field: VALUES[field]})
    assert await sql(database, query) != await sql(database, MessageQuery())


def test_every_filter_of_messages_is_an_option() -> None:
    groups: Any = typer.main.get_command(app)
    options = {parameter.name for parameter in groups.commands["messages"].commands["list"].params}
    assert set(MessageQuery.model_fields) - options == {"after"}


def test_values_of_a_row_stand_under_their_columns() -> None:
    event = make_event(
        Status.FAILED,
        code=4720,
        description="why",
        fields={"tag": "a tag", "owner": "+15559998", "priority": "high"},
    )
    sender = event.fields.sender or ""
    rows = rows_of(fold([event]), AS_THEY_ARE)
    message = dict(zip(MESSAGE_COLUMNS, rows.message, strict=True))
    assert (message["id"], message["sender"], message["sender_key"]) == (
        event.message_id,
        sender,
        sender.removeprefix("+"),
    )
    assert (message["owner"], message["tag"], message["priority"]) == ("+15559998", "a tag", "high")
    assert (message["status"], message["delivery_code"], message["delivery_description"]) == ("failed", 4720, "why")
    assert (message["first_received_at"], message["updated_at"]) == (event.received_at, event.received_at)
    [values] = rows.deliveries.values()
    delivery = dict(zip(DELIVERY_COLUMNS, values, strict=True))
    assert (delivery["message_id"], delivery["status"], delivery["delivery_code"]) == (event.message_id, "failed", 4720)
    assert (delivery["recipient_key"], delivery["place"]) == ((event.recipient or "").removeprefix("+"), 0)


@pytest.mark.parametrize("times", [1, 2], ids=["one event", "two events"])
@pytest.mark.parametrize("field", [*PLAIN_FIELDS, *REGISTERED_FIELDS])
def test_field_of_an_event_reaches_the_row_and_survives_the_log(field: str, times: int) -> None:
    value = 3 if field in ("segment_count", "callback_timeout") else "a value"
    fields = MessageFields(**{"recipients": ("+15550001",), field: value})
    route = REGISTERED if field in REGISTERED_FIELDS else "primary"
    events = [structs.replace(make_event(time=time, route=route), fields=fields) for time in range(times)]
    row = dict(zip(MESSAGE_COLUMNS, rows_of(fold(events), AS_THEY_ARE).message, strict=True))
    assert row[field] == value
    stored = convert(loads(event_log._stored(events[0])), event_log._Stored)
    assert getattr(event_log._fields(stored), field) == value
