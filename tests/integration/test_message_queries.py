"""Messages read from the status table, on both databases: every filter finds, and finds by an index."""

import re
from typing import Any

import pytest
from sqlalchemy import text as sql

from receiver.domain.events import Api, Direction, TagVerdict
from receiver.models.message_queries import MessageQuery
from receiver.models.messages import MessageRead
from receiver.models.parameters import MessagePlace
from receiver.models.queries import SortOrder
from receiver.storage import messages
from receiver.storage.database import Database
from tests.databases import Explained, plan
from tests.factories import callback, v1_event, v2_event
from tests.processing import process
from tests.rows import inbound, insert, message, minutes

pytestmark = pytest.mark.anyio


async def ids(database: Database, query: MessageQuery) -> list[str]:
    return [view.id for view in (await messages.find(database, query)).items]


@pytest.fixture
async def stocked(database: Database) -> Database:
    """Messages of which every filter finds some and leaves out others; the newest are named first."""
    await insert(
        database,
        message("plain", at=minutes(1)),
        inbound("inbound", at=minutes(2), sender="+15550100"),
        message("v1", api="v1", at=minutes(3), sender="BRAND", delivery_code=0),
        message("refused", at=minutes(4), status="failed", state="error", delivery_state="not-delivered"),
        message("waiting", at=minutes(5), status="sent", delivery_state="waiting", awaiting_receipt=True),
        message("sending", at=minutes(6), status="sending", state="sending", tag="order 7", tag_verdict="valid"),
        message("forged", at=minutes(7), tag="order 8", tag_verdict="forged", application_id="a-1"),
        message("both", at=minutes(8), status="failed", delivery_state="not-delivered", contradicted=True),
        message(
            "group",
            at=minutes(9),
            to=("+15550201", "+15550202", "+15550203"),
            status="partial",
            delivery_state=None,
            deliveries=(
                {"status": "failed", "delivery_code": 4720},
                {"status": "failed", "delivery_code": 4720},
                {"status": "delivered"},
            ),
        ),
    )
    return database


EVERYTHING = ["group", "both", "forged", "sending", "waiting", "refused", "v1", "inbound", "plain"]

FILTERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, EVERYTHING),
    "sender": ({"sender": "15550100"}, ["inbound"]),
    "alphanumeric sender": ({"sender": "BRAND"}, ["v1"]),
    "recipient": ({"recipient": "15550203"}, ["group"]),
    "since": ({"since": minutes(8)}, ["group", "both"]),
    "until": ({"until": minutes(2)}, ["plain"]),
    "since and until": ({"since": minutes(2), "until": minutes(3)}, ["inbound"]),
    "recipient and since": ({"recipient": "19195550002", "since": minutes(8)}, ["both"]),
    "inbound": ({"direction": Direction.IN}, ["inbound"]),
    "outbound": ({"direction": Direction.OUT}, [id_ for id_ in EVERYTHING if id_ != "inbound"]),
    "status": ({"status": "sent"}, ["waiting"]),
    "status of a group": ({"status": "partial"}, ["group"]),
    "state received": ({"state": "received"}, ["inbound"]),
    "state sending": ({"state": "sending"}, ["sending"]),
    "state error": ({"state": "error"}, ["refused"]),
    "state sent": ({"state": "sent"}, ["group", "both", "forged", "waiting", "v1", "plain"]),
    "delivery state waiting": ({"delivery_state": "waiting"}, ["waiting"]),
    "delivery state not-delivered": ({"delivery_state": "not-delivered"}, ["both", "refused"]),
    "delivery state delivered": ({"delivery_state": "delivered"}, ["forged", "v1", "plain"]),
    "code": ({"delivery_code": 0}, ["v1"]),
    "code of two recipients": ({"delivery_code": 4720}, ["group"]),
    "code of this recipient": ({"delivery_code": 4720, "recipient": "15550202"}, ["group"]),
    "code of another recipient": ({"delivery_code": 4720, "recipient": "15550203"}, []),
    "tag": ({"tag": "order 7"}, ["sending"]),
    "part of a tag": ({"tag": "order"}, []),
    "verdict forged": ({"tag_verdict": TagVerdict.FORGED}, ["forged"]),
    "verdict valid": ({"tag_verdict": TagVerdict.VALID}, ["sending"]),
    "application": ({"application_id": "a-1"}, ["forged"]),
    "contradicted": ({"contradicted": True}, ["both"]),
    "not contradicted": ({"contradicted": False}, [id_ for id_ in EVERYTHING if id_ != "both"]),
    "awaiting a receipt": ({"awaiting_receipt": True}, ["waiting"]),
    "not awaiting a receipt": ({"awaiting_receipt": False}, [id_ for id_ in EVERYTHING if id_ != "waiting"]),
    "number of a sender": ({"number": "15550100"}, ["inbound"]),
    "number of a recipient": ({"number": "+1 555-0203"}, ["group"]),
    "number and sender": ({"number": "15550203", "sender": "15550100"}, []),
    "number at the other end": ({"number": "15550203", "sender": "19195550001"}, ["group"]),
    "q, an id": ({"q": "forged"}, ["forged"]),
    "q, a tag": ({"q": "order 7"}, ["sending"]),
    "q, a number": ({"q": "15550202"}, ["group"]),
    "q, an alphanumeric sender": ({"q": "BRAND"}, ["v1"]),
    "q, none of them": ({"q": "what is this, then?"}, []),
    "q and status": ({"q": "order 8", "status": "delivered"}, ["forged"]),
    "tag prefix": ({"tag_prefix": "order "}, ["forged", "sending"]),
    "tag prefix, whole tag": ({"tag_prefix": "order 8"}, ["forged"]),
    "tag prefix, case matters": ({"tag_prefix": "Order"}, []),
    "tag prefix and verdict": ({"tag_prefix": "o", "tag_verdict": "valid"}, ["sending"]),
    "two statuses": ({"status": "partial,sent"}, ["group", "waiting"]),
    "two codes": ({"delivery_code": "0,4720"}, ["group", "v1"]),
    "two verdicts": ({"tag_verdict": "valid,forged"}, ["forged", "sending"]),
    "statuses and codes": ({"status": "partial,delivered", "delivery_code": "0,4720"}, ["group", "v1"]),
    "more combinations than alternatives": (
        {
            "status": "partial,failed,sent,sending,queued,unknown,pending,read,unconfirmed,received,partial",
            "delivery_code": "0,4720,1,2,3,4,5,6",
            "tag_verdict": "unchecked,valid",
        },
        ["group"],
    ),
    "statuses of both directions": ({"status": "received,failed"}, ["both", "refused", "inbound"]),
    "several": ({"status": "failed", "contradicted": False, "direction": Direction.OUT}, ["refused"]),
}


@pytest.mark.parametrize(("fields", "expected"), FILTERS.values(), ids=FILTERS)
async def test_a_filter_finds_what_it_says(stocked: Database, fields: dict[str, Any], expected: list[str]) -> None:
    assert await ids(stocked, MessageQuery(**fields)) == expected
    assert await ids(stocked, MessageQuery(**fields, order=SortOrder.ASC)) == expected[::-1]


@pytest.mark.parametrize(("fields", "expected"), FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("order", SortOrder)
async def test_pages_by_cursor_show_every_message_once(
    stocked: Database, fields: dict[str, Any], expected: list[str], order: SortOrder
) -> None:
    query = MessageQuery(**fields, order=order, size=1)
    seen: list[str] = []
    for _ in EVERYTHING:
        page = await messages.find(stocked, query)
        seen += [view.id for view in page.items]
        if not page.more:
            break
        query = query.model_copy(update={"after": page.items[-1].place})
    assert seen == (expected if order is SortOrder.DESC else expected[::-1])


async def test_messages_of_the_same_moment_are_paged_without_loss(database: Database) -> None:
    await insert(
        database,
        *(make(f"m{number}", api=api) for number in range(5) for api in ("v1", "v2") for make in (message, inbound)),
    )
    query = MessageQuery(size=3, recipient="19195550002")
    seen: list[tuple[str, str, str]] = []
    for _ in range(7):
        page = await messages.find(database, query)
        seen += [view.key for view in page.items]
        query = query.model_copy(update={"after": page.items[-1].place})
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) == 20


async def test_a_page_number_counts_from_zero(stocked: Database) -> None:
    assert await ids(stocked, MessageQuery(size=4, page=2)) == ["plain"]


async def test_page_says_more_only_if_there_is_more(stocked: Database) -> None:
    assert (await messages.find(stocked, MessageQuery(size=8))).more
    assert not (await messages.find(stocked, MessageQuery(size=9))).more


async def test_the_recipients_of_a_page_come_in_their_order(stocked: Database) -> None:
    [group] = (await messages.find(stocked, MessageQuery(status="partial"))).items
    assert [(one.recipient, one.status, one.delivery_code) for one in group.recipients] == [
        ("+15550201", "failed", 4720),
        ("+15550202", "failed", 4720),
        ("+15550203", "delivered", None),
    ]
    assert group.numbers == ["+15550201", "+15550202", "+15550203"]


async def test_a_message_without_known_recipient_has_one_row_without_number(database: Database) -> None:
    await insert(database, message("nobody", to=(None,)))
    [nobody] = (await messages.find(database, MessageQuery())).items
    assert nobody.numbers == []
    assert [one.recipient for one in nobody.recipients] == [None]


async def test_same_id_in_v1_and_v2_is_two_messages(database: Database) -> None:
    await insert(database, message("same", api="v2"), message("same", api="v1", to=("+15550009",)))
    found = await messages.with_id(database, "same")
    assert [(view.api, view.recipients[0].recipient) for view in found] == [("v1", "+15550009"), ("v2", "+19195550002")]
    [chosen] = await messages.with_id(database, "same", Api.V2)
    assert chosen.api is Api.V2
    assert await messages.with_id(database, "other") == []


async def test_one_id_of_two_directions_is_two_messages(database: Database) -> None:
    await insert(database, message("same", to=("+15550001",)), inbound("same", to=("+15550002",)))
    found = await messages.with_id(database, "same")
    assert [(view.direction, [one.recipient for one in view.recipients]) for view in found] == [
        ("in", ["+15550002"]),
        ("out", ["+15550001"]),
    ]
    [chosen] = await messages.with_id(database, "same", direction=Direction.OUT)
    assert chosen.direction is Direction.OUT
    listed = (await messages.find(database, MessageQuery(direction=Direction.IN))).items
    assert [(view.direction, view.recipients[0].recipient) for view in listed] == [("in", "+15550002")]


async def test_an_inbound_event_never_changes_an_outbound_message_nor_the_reverse(database: Database) -> None:
    sent = v2_event("same", "message-failed", errorCode=4720, message={"text": "sent"})
    got = v2_event("same", "message-received", message={"direction": "in", "text": "got", "to": ["+15550009"]})
    delivered = v2_event("same", time="2026-01-02T00:00:00Z", message={"carrierName": "C"})
    bodies = ([sent], [got], [delivered], [v1_event("same", direction="in", state="received")])
    callbacks = [callback(body) for body in bodies]
    for received in callbacks:
        await process(database, received)
    for again in ([], callbacks):
        await process(database, *again)
        views = {view.key: view for view in await messages.with_id(database, "same")}
        outbound, inward = views[Api.V2, Direction.OUT, "same"], views[Api.V2, Direction.IN, "same"]
        assert (outbound.status, outbound.text, outbound.contradicted) == ("failed", "sent", True)
        assert [one.recipient for one in outbound.recipients] == ["+15550001"]
        assert (inward.status, inward.text, inward.carrier_name, inward.contradicted) == (
            "received",
            "got",
            None,
            False,
        )
        assert [one.recipient for one in inward.recipients] == ["+15550009"]
        assert views[Api.V1, Direction.IN, "same"].text == "hello"
        assert len(await messages.events(database, outbound.key)) == 2
        assert len(await messages.events(database, inward.key)) == 1
    assert await ids(database, MessageQuery(direction=Direction.OUT)) == ["same"]
    assert await ids(database, MessageQuery(direction=Direction.IN)) == ["same", "same"]


async def test_times_come_back_aware_and_to_the_microsecond(database: Database) -> None:
    at = minutes(0).replace(microsecond=48_001)
    await insert(database, message("exact", at=at, deliveries=({"delivered_at": at},)))
    view: MessageRead = (await messages.find(database, MessageQuery())).items[0]
    assert view.created_at == at
    assert view.recipients[0].delivered_at == at
    assert view.listed_at.utcoffset() is not None


# What finds the rows: the index of the filter, or the order itself where a value is too frequent for its own index.
INDEXES: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "ix_messages_listed"),
    "page": ({"page": 120}, "ix_messages_listed"),
    "since and until": ({"since": minutes(-9), "until": minutes(1)}, "ix_messages_listed"),
    "since": ({"since": minutes(1)}, "ix_messages_listed"),
    "until": ({"until": minutes(1)}, "ix_messages_listed"),
    "sender": ({"sender": "BRAND"}, "ix_messages_sender"),
    "recipient": ({"recipient": "15550201"}, "ix_deliveries_recipient"),
    "inbound": ({"direction": Direction.IN}, "ix_messages_listed"),
    "outbound": ({"direction": Direction.OUT}, "ix_messages_listed"),
    "status": ({"status": "failed"}, "ix_messages_status"),
    "status delivered": ({"status": "delivered"}, "ix_messages_listed"),
    "status received": ({"status": "received"}, "ix_messages_listed"),
    "status pending": ({"status": "pending"}, "ix_messages_status"),
    "state received": ({"state": "received"}, "ix_messages_listed"),
    "state queued": ({"state": "queued"}, "ix_messages_state"),
    "state sending": ({"state": "sending"}, "ix_messages_state"),
    "state error": ({"state": "error"}, "ix_messages_state"),
    "state sent": ({"state": "sent"}, "ix_messages_listed"),
    "delivery state waiting": ({"delivery_state": "waiting"}, "ix_messages_delivery_state"),
    "delivery state not-delivered": ({"delivery_state": "not-delivered"}, "ix_messages_delivery_state"),
    "delivery state delivered": ({"delivery_state": "delivered"}, "ix_messages_listed"),
    "code": ({"delivery_code": 4720}, "ix_deliveries_code"),
    "tag": ({"tag": "order 7"}, "ix_messages_tag"),
    "tag prefix": ({"tag_prefix": "order 7"}, "ix_messages_tag"),
    "number, sent": ({"number": "15550201"}, "ix_messages_sender"),
    "number, got": ({"number": "15550201"}, "ix_deliveries_recipient"),
    "q, a tag": ({"q": "15550201"}, "ix_messages_tag"),
    "q, a number": ({"q": "15550201"}, "ix_deliveries_recipient"),
    "two statuses": ({"status": "failed,delivered"}, "ix_messages_status"),
    "two codes": ({"delivery_code": "1,4720"}, "ix_deliveries_code"),
    "verdict forged": ({"tag_verdict": TagVerdict.FORGED}, "ix_messages_tag_verdict"),
    "verdict missing": ({"tag_verdict": TagVerdict.MISSING}, "ix_messages_tag_verdict"),
    "verdict valid": ({"tag_verdict": TagVerdict.VALID}, "ix_messages_tag_verdict"),
    "verdict unsigned": ({"tag_verdict": TagVerdict.UNSIGNED}, "ix_messages_tag_verdict"),
    "verdict unchecked": ({"tag_verdict": TagVerdict.UNCHECKED}, "ix_messages_listed"),
    "verdict not-applicable": ({"tag_verdict": TagVerdict.NOT_APPLICABLE}, "ix_messages_listed"),
    "application": ({"application_id": "a-1"}, "ix_messages_application"),
    "contradicted": ({"contradicted": True}, "ix_messages_contradicted"),
    "awaiting a receipt": ({"awaiting_receipt": True}, "ix_messages_awaiting"),
    "awaiting a receipt for long": ({"awaiting_receipt": True, "older_than": "15m"}, "ix_messages_awaiting"),
    "old": ({"older_than": "15m"}, "ix_messages_listed"),
}


async def fill(database: Database) -> None:
    """Enough ordinary messages for the planner to prefer an index where there is one."""
    await insert(
        database,
        *(
            message(
                f"m{number}",
                at=minutes(-number),
                sender=f"+1919555{number % 500:04}",
                to=(f"+1555{number:07}",),
                tag=f"order {number}",
                application_id=f"a-{number % 500}",
                delivery_code=4000 + number % 500 if number % 10 == 0 else None,
            )
            for number in range(5000)
        ),
        *(inbound(f"i{number}", at=minutes(-20 * number), to=(f"+1666{number:07}",)) for number in range(250)),
    )
    if not database.is_sqlite:
        async with database.writing() as connection:
            await connection.execute(sql("ANALYZE"))


async def test_every_filter_is_answered_by_an_index(database: Database) -> None:
    await fill(database)
    plans = {name: await plan(database, MessageQuery(**fields)) for name, (fields, _) in INDEXES.items()}
    missed = {name: plans[name] for name, (_, index) in INDEXES.items() if index not in plans[name]}
    assert not missed


async def test_a_deep_page_begins_at_its_place_in_the_index(database: Database) -> None:
    await fill(database)
    for name, (fields, index) in INDEXES.items():
        if name == "tag prefix":
            continue  # The matches are few, and sorted.
        query = MessageQuery(**fields, after=MessagePlace(minutes(-4000), Api.V2, Direction.OUT, "m4000"))
        deep = await plan(database, query)
        assert index in deep
        # a bound of the index, not a filter on its rows; SQLite: (listed_at<?) or ((listed_at,api,id)<(?,?,?))
        bound = (
            r"SEARCH \w+ USING (COVERING )?INDEX \w+ \(.*listed_at\S*<"
            if database.is_sqlite
            else r"Index Cond: .*listed_at.*<"
        )
        assert re.search(bound, deep), deep


async def test_a_rare_prefix_is_never_looked_for_in_the_whole_list(database: Database) -> None:
    """Even if sorting seems to cost more than reading the list in its order, as it does among ten million messages."""
    if database.is_sqlite:
        pytest.skip("SQLite has no such estimates")
    async with database.reading() as connection:
        await connection.execute(sql("SET LOCAL enable_sort = off"))
        statement = await messages.statement(connection, MessageQuery(tag_prefix="order 1"))
        made = "\n".join(str(row) for row in await connection.execute(Explained(statement)))
    assert "ix_messages_listed" not in made
