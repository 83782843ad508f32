"""The query API as its users meet it: over HTTP, on both databases."""

import base64
import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from httpx2 import AsyncClient

from receiver import clock, tags
from receiver.domain.events import Api, Status, TagVerdict
from receiver.models.events import EVENTS
from receiver.storage.database import Database
from receiver.storage.processor import Settling
from tests.dispatching import append
from tests.factories import callback as raw_callback
from tests.factories import make_event, v2_event
from tests.processing import drain, process
from tests.rows import MessageRows, callback, inbound, insert, insert_callbacks, message, minutes, problem
from tests.web import ADMIN, AUTHORIZED, READER, TAG_KEY, application, basic, client

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(database: Database) -> AsyncIterator[AsyncClient]:
    async with client(application(database)) as opened:
        yield opened


async def listed(api: AsyncClient, **parameters: Any) -> list[str]:
    answer = await api.get("/api/messages", params=parameters)
    assert answer.status_code == 200, answer.text
    return [one["id"] for one in answer.json()]


async def walked(api: AsyncClient, address: str) -> list[str]:
    """The ids of all pages, following the links."""
    return [one["id"] for one in await pages(api, address)]


async def pages(api: AsyncClient, address: str) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    for _ in range(20):
        answer = await api.get(address)
        assert answer.status_code == 200, answer.text
        shown += answer.json()
        if "next" not in answer.links:
            break
        address = answer.links["next"]["url"]
    return shown


def group() -> MessageRows:
    return message(
        "group-1",
        to=("+15550201", "+15550202"),
        status="partial",
        delivery_state=None,
        owner="+19195550001",
        application_id="93de2206-9669-4e07-948d-329f4b722ee2",
        text="hello",
        media=["https://example.com/a.jpg"],
        tag="order 7",
        tag_verdict="valid",
        segment_count=1,
        channel="MMS",
        carrier_name="A Carrier",
        priority="high",
        at=minutes(0).replace(microsecond=48_000),
        deliveries=(
            {
                "status": "failed",
                "delivery_state": "not-delivered",
                "delivery_code": 4720,
                "delivery_description": "invalid-destination-address",
                "failed_at": minutes(1),
            },
            {"status": "delivered", "delivery_state": "delivered", "delivered_at": minutes(2)},
        ),
    )


async def test_a_message_has_the_documented_shape(api: AsyncClient, database: Database) -> None:
    await insert(database, group())
    [shown] = (await api.get("/api/messages")).json()
    first, second = shown.pop("recipients")
    assert shown == {
        "id": "group-1",
        "api": "v2",
        "direction": "out",
        "from": "+19195550001",
        "to": ["+15550201", "+15550202"],
        "owner": "+19195550001",
        "applicationId": "93de2206-9669-4e07-948d-329f4b722ee2",
        "text": "hello",
        "media": ["https://example.com/a.jpg"],
        "tag": "order 7",
        "tagVerdict": "valid",
        "segmentCount": 1,
        "channel": "MMS",
        "carrierName": "A Carrier",
        "priority": "high",
        "time": "2024-06-12T12:00:00.048000Z",
        "status": "partial",
        "state": "sent",
        "deliveryState": None,
        "deliveryCode": None,
        "deliveryDescription": None,
        "contradicted": False,
        "awaitingReceipt": False,
        "registeredTime": None,
        "firstReceivedTime": "2024-06-12T12:00:00.048000Z",
        "updatedTime": "2024-06-12T12:00:00.048000Z",
    }
    reason = first.pop("reason")
    assert first == {
        "to": "+15550201",
        "status": "failed",
        "state": "sent",
        "deliveryState": "not-delivered",
        "deliveryCode": 4720,
        "deliveryDescription": "invalid-destination-address",
        "sentTime": None,
        "deliveredTime": None,
        "failedTime": "2024-06-12T12:01:00Z",
        "readTime": None,
        "contradicted": False,
        "updatedTime": "2024-06-12T12:00:00.048000Z",
    }
    assert reason.keys() == {"name", "description", "category", "retryable", "billable"}
    assert reason["category"] == "carrier-client"
    assert (second["status"], second["reason"]) == ("delivered", None)


async def test_unknown_values_are_null_and_lists_are_never_null(api: AsyncClient, database: Database) -> None:
    await insert(database, inbound("m", to=(None,), sender=None, created_at=None))
    shown = (await api.get("/api/messages/m")).json()
    assert (shown["from"], shown["time"], shown["text"]) == (None, None, None)
    assert (shown["to"], shown["media"]) == ([], [])
    assert [one["to"] for one in shown["recipients"]] == [None]


async def test_v1_zero_is_explained_and_v2_zero_means_nothing(api: AsyncClient, database: Database) -> None:
    await insert(database, message("one", api="v1", delivery_code=0), message("two", delivery_code=0))
    reasons = {one["api"]: one["recipients"][0]["reason"] for one in (await api.get("/api/messages")).json()}
    assert reasons["v1"]["category"] == "success"
    assert reasons["v2"] is None


async def test_filters_work_over_http(api: AsyncClient, database: Database) -> None:
    await insert(
        database,
        message("out", at=minutes(0), tag="a+b & c"),
        inbound("in", at=minutes(1), sender="+15550100"),
        message("failed", at=minutes(2), status="failed", delivery_code=4720, contradicted=True),
    )
    assert await listed(api) == ["failed", "in", "out"]
    assert await listed(api, sortOrder="asc") == ["out", "in", "failed"]
    assert await listed(api, **{"from": "+15550100"}) == ["in"]
    assert await listed(api, **{"from": "15550100"}) == ["in"]
    assert await listed(api, to="19195550002", direction="out") == ["failed", "out"]
    assert await listed(api, tag="a+b & c") == ["out"]
    assert await listed(api, deliveryCode=4720) == ["failed"]
    assert await listed(api, contradicted="true", status="failed") == ["failed"]
    assert await listed(api, fromDateTime="2024-06-12 12:01", toDateTime="2024-06-12T12:02:00Z") == ["in"]
    assert [one["id"] for one in (await api.get("/api/messages?from=+15550100")).json()] == ["in"]
    assert [one["id"] for one in (await api.get("/api/messages?number=1%20555%200100")).json()] == ["in"]
    assert (await api.get("/api/messages?to=nobody%20at%20home")).json()["errors"] == [
        {"parameter": "to", "detail": "must be a telephone number, a short code or an alphanumeric sender"}
    ]


async def test_link_next_leads_through_all_pages(api: AsyncClient, database: Database) -> None:
    await insert(database, *(message(f"m{number}", at=minutes(number // 2), tag="a&b=c") for number in range(7)))
    everything = [f"m{number}" for number in range(6, -1, -1)]
    assert await walked(api, "/api/messages?size=2&tag=a%26b%3Dc") == everything
    assert await walked(api, "/api/messages?size=3&sortOrder=asc&to=%2B19195550002") == everything[::-1]
    first = await api.get("/api/messages?size=2&page=0")
    assert first.links["next"]["url"].startswith("http://receiver.example/api/messages?size=2&cursor=")
    assert "next" not in (await api.get("/api/messages?size=7")).links
    assert await listed(api, size=3, page=2) == ["m0"]


async def test_links_begin_with_public_url(database: Database) -> None:
    await insert(database, message("a"), message("b"))
    async with client(application(database, public_url="https://sms.example/receiver")) as api:
        link = (await api.get("/api/messages?size=1")).links["next"]["url"]
    assert link.startswith("https://sms.example/receiver/api/messages?size=1&cursor=")


async def test_cursor_is_stable_when_messages_arrive_between_pages(api: AsyncClient, database: Database) -> None:
    await insert(database, *(message(f"m{number}", at=minutes(number)) for number in range(4)))
    first = await api.get("/api/messages?size=2")
    await insert(database, message("newest", at=minutes(9)))
    second = await api.get(first.links["next"]["url"])
    assert [one["id"] for one in first.json() + second.json()] == ["m3", "m2", "m1", "m0"]


async def test_message_id_is_percent_decoded(api: AsyncClient, database: Database) -> None:
    ids = [
        "plain",
        "a/b",
        "a/b/events",
        "..",
        "a?b#c",
        "100%",
        "%2F",
        "ü ñ",
        "+1",
        "a;b",
        "x\\y",
        "a\nb",
        "a\u2028b",
        "'; DROP TABLE messages;--",
    ]
    await insert(database, *(message(one) for one in ids))
    for one in ids:
        path = f"/api/messages/{quote(one, safe='').replace('.', '%2E')}"
        answer = await api.get(path)
        assert (answer.status_code, answer.json().get("id")) == (200, one)
        assert (await api.get(f"{path}/events")).json() == []


async def test_id_of_v1_and_v2_is_409_without_api(api: AsyncClient, database: Database) -> None:
    await insert(database, message("same", api="v1", text="old"), message("same", api="v2", text="new"))
    refused = await api.get("/api/messages/same")
    assert (refused.status_code, "?api=" in refused.json()["detail"]) == (409, True)
    assert (await api.get("/api/messages/same?api=v1")).json()["text"] == "old"
    assert (await api.get("/api/messages/same?api=v2")).json()["text"] == "new"
    assert (await api.get("/api/messages/same/events")).status_code == 409


async def test_id_of_both_directions_is_409_without_direction(api: AsyncClient, database: Database) -> None:
    await insert(database, message("same", text="sent"), inbound("same", text="got"))
    refused = await api.get("/api/messages/same")
    assert (refused.status_code, refused.json()["detail"]) == (
        409,
        "2 messages have this id: add ?direction=in or ?direction=out.",
    )
    assert (await api.get("/api/messages/same?direction=in")).json()["text"] == "got"
    assert (await api.get("/api/messages/same?direction=out")).json()["text"] == "sent"
    for path in ("events", "attempts"):
        assert (await api.get(f"/api/messages/same/{path}")).status_code == 409
        assert (await api.get(f"/api/messages/same/{path}?direction=out")).json() == []
    assert [one["text"] for one in (await api.get("/api/messages?direction=in")).json()] == ["got"]


async def test_catapult_routes_prefer_the_outbound_message(database: Database) -> None:
    await insert(database, inbound("same", api="v1", text="got"), message("same", text="sent"))
    async with client(application(database), CATAPULT) as api:
        shown = await api.get("/v1/users/u-1/messages/same")
    assert shown.json()["text"] == "sent"


async def test_the_events_of_a_message_come_in_order_of_arrival(api: AsyncClient, database: Database) -> None:
    await insert(database, message("m-1"), message("m-1", api="v1"))
    late = make_event(Status.DELIVERED, message_id="m-1", time=60, received=1, code=0, tag_verdict=TagVerdict.VALID)
    early = make_event(Status.SENDING, message_id="m-1", time=0, received=2, description="sending")
    await append(database, [late, early, make_event(message_id="another")])
    shown = (await api.get("/api/messages/m-1/events?api=v2")).json()
    assert [one["type"] for one in shown] == ["message-delivered", "message-sending"]
    assert shown[0] == {
        "id": late.id,
        "type": "message-delivered",
        "time": "2026-01-01T00:01:00Z",
        "receivedTime": "2026-01-01T00:00:01Z",
        "recipient": "+15550001",
        "code": 0,
        "description": None,
        "tagVerdict": "valid",
        "route": "primary",
        "callbackId": "callback-1",
        "status": "delivered",
    }
    assert (await api.get("/api/messages/m-1/events?api=v1")).json() == []
    assert (await api.get("/api/messages/another/events")).status_code == 404


async def test_csv_has_a_row_per_recipient_and_no_formulas(api: AsyncClient, database: Database) -> None:
    await insert(
        database, group(), message("evil", at=minutes(-1), text='=HYPERLINK("https://evil")\r\n"x",y', tag="-1")
    )
    answer = await api.get("/api/messages?size=2", headers={"Accept": "text/csv"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert answer.headers["content-disposition"] == 'attachment; filename="messages.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert [(row["id"], row["to"], row["status"]) for row in rows] == [
        ("group-1", "+15550201", "failed"),
        ("group-1", "+15550202", "delivered"),
        ("evil", "+19195550002", "delivered"),
    ]
    assert (rows[2]["text"], rows[2]["tag"]) == ('\'=HYPERLINK("https://evil") "x",y', "'-1")
    assert "next" in (await api.get("/api/messages?size=1", headers={"Accept": "text/csv"})).links


async def test_callbacks_are_listed_and_filtered(api: AsyncClient, database: Database) -> None:
    reprocessed = problem("tag-forged", message_id="m1", reprocessed_at=minutes(5))
    await insert_callbacks(
        database,
        callback("01"),
        callback("02", problems=[problem("unreadable")]),
        callback("03", problems=[reprocessed]),
        callback("04", is_pending=True),
    )
    shown = (await api.get("/api/callbacks")).json()
    assert [(one["id"], one["outcome"]) for one in shown] == [
        ("04", "pending"),
        ("03", "quarantined"),
        ("02", "quarantined"),
        ("01", "accepted"),
    ]
    assert shown[1] == {
        "id": "03",
        "receivedTime": "2024-06-12T12:00:00Z",
        "api": "v2",
        "route": "primary",
        "method": "POST",
        "remote": "192.0.2.1",
        "outcome": "quarantined",
        "reason": "tag-forged",
        "reprocessedTime": "2024-06-12T12:05:00Z",
    }
    assert await walked(api, "/api/callbacks?outcome=quarantined&size=1&sortOrder=asc") == ["02", "03"]
    assert await walked(api, "/api/callbacks?outcome=pending") == ["04"]
    assert await walked(api, "/api/callbacks?reason=unreadable") == ["02"]
    assert await walked(api, "/api/callbacks?messageId=m1") == ["03"]


async def test_callback_is_shown_byte_for_byte_without_secrets(api: AsyncClient, database: Database) -> None:
    text = '[{"text": "héllo\\u0000"}]\n'.encode()
    unknown = problem("unknown-type", 1, detail="no such type", message_id="m1")
    await insert_callbacks(
        database,
        callback("01", body=text, query="a=%2B1&b=", problems=[unknown]),
        callback("02", body=b"\xff\xfe\x00{"),
    )
    shown = (await api.get("/api/callbacks/01")).json()
    assert (shown["bodyEncoding"], shown["body"].encode()) == ("utf-8", text)
    assert (shown["query"], shown["headers"]) == ("a=%2B1&b=", {"content-type": "application/json"})
    assert shown["problems"] == [{"index": 1, "reason": "unknown-type", "detail": "no such type", "messageId": "m1"}]
    binary = (await api.get("/api/callbacks/02")).json()
    assert (binary["bodyEncoding"], base64.b64decode(binary["body"])) == ("base64", b"\xff\xfe\x00{")
    assert binary["problems"] == []
    assert (await api.get("/api/callbacks/03")).status_code == 404


READABLE = json.dumps([v2_event("m1")]).encode()


async def test_reprocess_stores_events_that_can_be_parsed_now(api: AsyncClient, database: Database) -> None:
    await insert_callbacks(
        database,
        callback("01", body=READABLE, problems=[problem("unreadable")]),
        callback("02", body=b"{", problems=[problem("unreadable")]),
    )
    answer = await api.post("/api/callbacks/01/reprocess")
    assert answer.status_code == 200
    assert (answer.json()["outcome"], answer.json()["reason"]) == ("accepted", None)
    assert await listed(api) == ["m1"]
    again = (await api.post("/api/callbacks/02/reprocess")).json()
    assert (again["outcome"], again["reason"]) == ("quarantined", "unreadable")
    assert again["reprocessedTime"] is not None
    assert (await api.post("/api/callbacks/09/reprocess")).status_code == 404


async def test_message_that_only_a_quarantined_callback_names_is_404_with_the_callback(
    api: AsyncClient, database: Database
) -> None:
    await insert_callbacks(database, callback("07", problems=(problem(message_id="m-7"),)))
    answers = [await api.get(f"/api/messages/{id_}") for id_ in ("m-7", "m-8")]
    assert [(answer.status_code, answer.json()["detail"]) for answer in answers] == [
        (404, "There is no message m-7, but the quarantined callback 07 names it."),
        (404, "There is no message m-8: no callback about it came, or retention removed it."),
    ]


async def test_quarantined_callbacks_are_reprocessed_page_by_page_oldest_first(
    api: AsyncClient, database: Database
) -> None:
    forged = [problem("tag-forged")]
    quarantined = [callback(f"0{number}", body=READABLE, problems=forged) for number in range(1, 5)]
    await insert_callbacks(database, callback("00"), *quarantined)
    first = await api.post("/api/callbacks/reprocess?reason=tag-forged&size=3")
    assert [(one["id"], one["outcome"]) for one in first.json()] == [(f"0{n}", "accepted") for n in (1, 2, 3)]
    second = await api.post(first.links["next"]["url"])
    assert [one["id"] for one in second.json()] == ["04"]
    assert "next" not in second.links
    assert (await api.post("/api/callbacks/reprocess")).json() == []


async def test_receiver_pending_header(database: Database) -> None:
    await insert_callbacks(database, callback("01"), callback("02", is_pending=True), callback("03", is_pending=True))
    settling = Settling(database, seconds=0.05)
    async with client(application(database, settle=settling.wait)) as api:
        for address, status in (("/api/callbacks", 200), ("/api/callbacks/01", 200), ("/api/callbacks/09", 404)):
            answer = await api.get(address)
            assert (answer.status_code, answer.headers.get("receiver-pending")) == (status, "2")
        assert "receiver-pending" not in (await api.get("/api/codes")).headers
        await drain(database)
        assert "receiver-pending" not in (await api.get("/api/callbacks")).headers


async def test_codes_are_listed_and_explained(api: AsyncClient) -> None:
    codes = [(one["api"], one["code"]) for one in await pages(api, "/api/codes?size=30")]
    assert len(codes) == len(set(codes)) > 50
    assert codes == sorted(codes)
    code = (await api.get("/api/codes/4720")).json()
    assert (code["api"], code["code"], code["category"]) == ("v2", 4720, "carrier-client")
    assert code.keys() >= {"name", "description", "retryable", "billable", "outcome", "retryLimit", "v2Analogue"}
    assert (await api.get("/api/codes/720?api=v2")).status_code == 404
    assert (await api.get("/api/codes/720")).json()["api"] == "v1"
    assert (await api.get("/api/codes/04720")).status_code == 404
    [found] = (await api.get("/api/codes", params={"q": "message not acknowledge", "api": "v1"})).json()
    assert (found["code"], found["name"], found["earlierName"]) == (630, "NACK", "Message not acknowledge")
    assert await pages(api, "/api/codes?q=message+expired&size=1") != []
    descending = (await api.get("/api/codes?sortOrder=desc&size=1&api=v1")).json()
    assert [(one["api"], one["code"]) for one in descending] == [max(code for code in codes if code[0] == "v1")]


async def test_a_signed_tag_verifies(api: AsyncClient) -> None:
    answer = await api.post("/api/tags", json={"value": "order 7", "from": "+1555", "to": ["+1666", "+1777"]})
    tag = answer.json()["tag"]
    kid, secret = TAG_KEY
    check = tags.verify(tag, {kid: secret}, sender="1555", recipients=["+1777", "1666"])
    assert (check.verdict, check.value) == (TagVerdict.VALID, "order 7")
    assert (await api.post("/api/tags", json={"value": "v", "to": "+1666"})).status_code == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param({"json": {}}, 400, id="no value"),
        pytest.param({"json": {"value": "v", "form": "+1"}}, 400, id="unknown field"),
        pytest.param({"json": {"value": "v" * 1020}}, 400, id="too long with the signature"),
        pytest.param({"json": {"value": "v~r1.k.-.x"}}, 400, id="looks signed already"),
        pytest.param({"json": {"value": "v", "to": []}}, 400, id="no recipients"),
        pytest.param({"json": [1]}, 400, id="no object"),
        pytest.param({"content": b"{", "headers": {"content-type": "application/json"}}, 400, id="no JSON"),
        pytest.param(
            {"content": b'{"value": "\\ud800"}', "headers": {"content-type": "application/json"}}, 400, id="half a pair"
        ),
        pytest.param({"data": {"value": "v"}}, 415, id="a form"),
        pytest.param({"json": {"value": "v" * 70_000}}, 413, id="endless"),
    ],
)
async def test_tag_that_cannot_be_signed_is_400(sqlite_url: str, sent: dict[str, Any], status: int) -> None:
    database = Database(sqlite_url)
    async with client(application(database)) as api:
        answer = await api.post("/api/tags", **sent)
    await database.close()
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_signing_without_tag_keys_is_409(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    async with client(application(database, tag_key=None)) as api:
        answer = await api.post("/api/tags", json={"value": "v"})
    await database.close()
    assert (answer.status_code, "RECEIVER_TAG_KEYS" in answer.text) == (409, True)


async def test_event_log_is_pulled_by_cursor(api: AsyncClient, database: Database) -> None:
    fresh = await api.get("/api/events")
    assert (fresh.status_code, fresh.json()) == (200, [])
    await insert(database, message("m-1", text="hello"))
    events = [make_event(message_id="m-1", recipient=f"+1555000{number}", code=4720) for number in range(5)]
    await append(database, events)
    pulled: list[dict[str, Any]] = []
    address = fresh.links["next"]["url"] + "&limit=2"
    for _ in range(4):
        answer = await api.get(address)
        assert answer.headers["content-type"] == "application/cloudevents-batch+json"
        pulled += answer.json()
        address = answer.links["next"]["url"]
    assert [one["id"] for one in pulled] == [event.id for event in events]
    sequences = [one["data"]["sequence"] for one in pulled]
    assert sequences == sorted(sequences)
    assert pulled[0]["type"] == "message.delivered"
    assert pulled[0]["data"]["text"] == "hello"
    assert pulled[0]["data"]["reason"]["category"] == "carrier-client"
    assert f"after={sequences[-1]}" in address


async def test_events_have_the_source_of_the_settings(database: Database) -> None:
    await append(database, [make_event(), make_event(api=Api.V1)])
    public_url = "https://sms.example.com/receiver"
    async with client(application(database, source="https://sms.example.com", public_url=public_url)) as api:
        pulled = (await api.get("/api/events")).json()
        assert {one["dataschema"] for one in pulled} == {f"{public_url}/schemas/message-event/1"}
    assert [one["source"] for one in pulled] == ["https://sms.example.com/v2", "https://sms.example.com/v1"]


async def test_cursor_before_the_oldest_event_is_410(api: AsyncClient, database: Database) -> None:
    await append(database, [make_event(message_id=f"m{number}") for number in range(4)])
    positions = [one["data"]["sequence"] for one in (await api.get("/api/events")).json()]
    async with database.writing() as connection:
        await connection.execute(EVENTS.delete().where(EVENTS.c.position <= positions[2]))
    assert (await api.get(f"/api/events?after={positions[1]}")).status_code == 410
    assert len((await api.get(f"/api/events?after={positions[2]}")).json()) == 1
    assert len((await api.get("/api/events?after=0")).json()) == 1
    async with database.writing() as connection:
        await connection.execute(EVENTS.delete())
    assert (await api.get(f"/api/events?after={positions[3]}")).json() == []


async def test_cursor_beyond_the_event_log_is_409(api: AsyncClient, database: Database) -> None:
    assert (await api.get("/api/events?after=1")).status_code == 409
    await append(database, [make_event()])
    end = (await api.get("/api/events")).json()[-1]["data"]["sequence"]
    assert (await api.get(f"/api/events?after={end}")).status_code == 200
    assert (await api.get(f"/api/events?after={end + 1}")).status_code == 409


CATAPULT = {"Authorization": basic(READER)}


async def test_catapult_client_lists_and_gets_messages(database: Database) -> None:
    await insert(
        database,
        message(
            "m-1",
            api="v1",
            at=minutes(0).replace(microsecond=48_999),
            text="Good morning",
            delivery_code=0,
            delivery_description="Message delivered to carrier",
        ),
        inbound("m-2", api="v1", at=minutes(1), media=["https://example.com/image.jpg"]),
        message("v2", at=minutes(2), to=("+15550201", "+15550202"), status="sending", state="sending"),
    )
    async with client(application(database), CATAPULT) as api:
        answer = await api.get("/v1/users/u-dkjf/messages")
        first, second, third = answer.json()
        assert first == {
            "id": "m-1",
            "messageId": "m-1",
            "from": "+19195550001",
            "to": "+19195550002",
            "text": "Good morning",
            "time": "2024-06-12T12:00:00.048Z",
            "direction": "out",
            "state": "sent",
            "media": [],
            "deliveryState": "delivered",
            "deliveryCode": 0,
            "deliveryDescription": "Message delivered to carrier",
        }
        assert (second["direction"], second["state"], second["media"]) == (
            "in",
            "received",
            ["https://example.com/image.jpg"],
        )
        assert "text" not in second
        assert third["to"] == "+15550201,+15550202"
        assert (await api.get("/v1/users/u-dkjf/messages/m-1")).json() == first
        assert await walked(api, "/v1/users/u/messages?size=1") == ["m-1", "m-2", "v2"]
        assert await walked(api, "/v1/users/u/messages?size=2&sortOrder=desc") == ["v2", "m-2", "m-1"]
        assert await walked(
            api, "/v1/users/u/messages?from=%2b19195550001&direction=out&toDateTime=2024-06-12%2012:02"
        ) == ["m-1"]


async def test_catapult_link_with_a_sort_key_leads_to_older_messages(database: Database) -> None:
    await insert(database, *(message(f"m-{number}", api="v1", at=minutes(number)) for number in range(5)))
    key = int(minutes(3).timestamp()) * 10**9
    async with client(application(database), CATAPULT) as api:
        assert await walked(api, f"/v1/users/u/messages?sortKeyLT={key}&size=1") == ["m-2", "m-1", "m-0"]
        assert await walked(api, f"/v1/users/u/messages?sortKeyLT={key + 989}&size=2") == ["m-3", "m-2", "m-1", "m-0"]
        assert await walked(api, f"/v1/users/u/messages?sortKeyGT={key}&size=1") == ["m-4"]
        assert await walked(api, "/v1/users/u/messages?from=&to=&sortOrder=DESC&size=3") == [
            "m-4",
            "m-3",
            "m-2",
            "m-1",
            "m-0",
        ]


async def test_catapult_message_has_a_description_only_with_a_code(database: Database) -> None:
    await insert(
        database,
        message("v2", delivery_description="Message delivered to carrier."),
        inbound("in", delivery_description="Incoming message received"),
        message("v1", api="v1", delivery_code=720, delivery_description="Invalid destination number"),
    )
    async with client(application(database), CATAPULT) as api:
        shown = {one["id"]: one for one in (await api.get("/v1/users/u/messages")).json()}
    assert shown["v1"]["deliveryDescription"] == "Invalid destination number"
    assert "deliveryDescription" not in shown["v2"]
    assert "deliveryDescription" not in shown["in"]


async def test_link_of_a_relative_time_has_an_absolute_one(database: Database) -> None:
    await insert(database, *(message(f"m-{number}", at=clock.now() - timedelta(minutes=number)) for number in range(5)))
    async with client(application(database), AUTHORIZED) as api:
        answer = await api.get("/api/messages?fromDateTime=1h&size=2")
        assert "fromDateTime=1h" not in answer.headers["link"]
        assert f"fromDateTime={clock.now().year}" in answer.headers["link"]
        assert len(await walked(api, "/api/messages?fromDateTime=1h&size=2")) == 5
        assert await walked(api, "/api/messages?toDateTime=yesterday") == []


@pytest.mark.parametrize(
    ("path", "headers", "status", "category", "code"),
    [
        ("/v1/users/u/messages", {}, 401, "authorization", "user-access-denied"),
        ("/v1/users/u/messages", AUTHORIZED, 401, "authorization", "user-access-denied"),
        ("/v1/users/u/messages/nobody", CATAPULT, 404, "not-found", "message-not-found"),
        ("/v1/users/u/messages?sizes=1", CATAPULT, 400, "bad-request", "validation-error"),
        ("/v1/users/u/messages?status=failed", CATAPULT, 400, "bad-request", "validation-error"),
        ("/v1/elsewhere", CATAPULT, 404, "not-found", "message-not-found"),
    ],
)
async def test_errors_of_catapult_routes_have_the_catapult_form(
    sqlite_url: str, path: str, headers: dict[str, str], status: int, category: str, code: str
) -> None:
    database = Database(sqlite_url)
    async with client(application(database), headers) as api:
        answer = await api.get(path)
    await database.close()
    assert answer.status_code == status
    body = answer.json()
    assert (body["category"], body["code"]) == (category, code)
    assert body["message"]
    assert isinstance(body["details"], list)
    if status == 401:
        assert answer.headers["www-authenticate"].startswith("Basic ")


@pytest.mark.parametrize(
    "path",
    [
        "/api/messages",
        "/api/codes/4720",
        "/api/messages/nobody",
        "/api/nowhere",
        "/openapi.json",
        "/v1/users/u/messages",
    ],
)
async def test_json_ends_with_the_end_of_a_line(api: AsyncClient, path: str) -> None:
    """The prompt after `curl` begins a line, and the next answer on a connection does too."""
    answer = await api.get(path)
    assert answer.content.endswith(b"\n")
    assert answer.json() is not None


async def test_schema_of_events_needs_no_token(database: Database) -> None:
    async with client(application(database), headers={}) as anyone:
        answer = await anyone.get("/schemas/message-event/1")
        document = (await anyone.get("/openapi.json")).json()
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/schema+json")
    schema = answer.json()
    assert set(schema["required"]) == set(schema["properties"]) >= {"messageId", "previousStatus", "sequence"}
    assert document["components"]["schemas"]["MessageEventData"]["properties"].keys() == schema["properties"].keys()
    assert document["webhooks"].keys() == {"messageEvent", "alertEvent"}


async def test_openapi_json_needs_no_token(api: AsyncClient) -> None:
    answer = await api.get("/openapi.json", headers={"Authorization": ""})
    assert answer.status_code == 200
    assert json.loads(answer.content)["openapi"].startswith("3.1")
    assert ADMIN not in answer.text


# --- statistics


async def test_statistics_have_the_dimensions_that_were_asked_for(database: Database, api: AsyncClient) -> None:
    failed = v2_event("m1", "message-failed", errorCode=4720, message={"from": "+15551111"})
    await process(database, raw_callback([failed, v2_event("m2")]))
    answer = await api.get("/api/stats", params={"by": "status,category,from", "fromDateTime": "2025"})
    assert answer.status_code == 200, answer.text
    assert (list(answer.json()), answer.json()["from"]) == (["from", "to", "rows"], "2025-01-01T00:00:00Z")
    counts = ("deliveries", "final", "delivered", "failed", "unconfirmed", "awaitingReceipt")
    names = ["status", "category", "from", *counts, "successRate", "p50Seconds", "p95Seconds"]
    assert [list(row) for row in answer.json()["rows"]] == [names, names]
    found = [tuple(row.values())[:6] for row in answer.json()["rows"]]
    assert found == [("delivered", None, "+15559999", 1, 1, 1), ("failed", "carrier-client", "+15551111", 1, 1, 0)]


async def test_csv_of_statistics_has_a_row_for_each_and_no_formulas(database: Database, api: AsyncClient) -> None:
    failed = v2_event("m1", "message-failed", errorCode=4720, carrierName="=1+1", message={"from": "+15551111"})
    await process(database, raw_callback([failed, v2_event("m2")]))
    answer = await api.get(
        "/api/stats", params={"by": "from,carrierName,day", "fromDateTime": "2025"}, headers={"Accept": "text/csv"}
    )
    assert answer.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert answer.headers["content-disposition"] == 'attachment; filename="stats.csv"'
    heading, *rows = csv.reader(io.StringIO(answer.text, newline=""))
    assert heading == [
        *("from", "carrierName", "day", "deliveries", "final", "delivered", "failed", "unconfirmed"),
        *("awaitingReceipt", "successRate", "p50Seconds", "p95Seconds"),
    ]
    assert sorted(row[:7] for row in rows) == [
        ["+15551111", "'=1+1", "2026-01-01", "1", "1", "0", "1"],
        ["+15559999", "", "2026-01-01", "1", "1", "1", "0"],
    ]
    empty = await api.get("/api/stats?by=api&toDateTime=2001", headers={"Accept": "text/csv"})
    assert empty.text.startswith('"api","deliveries",')
    assert empty.text.count("\n") == 1


async def test_limit_of_statistics_gives_the_rows_with_the_most_deliveries(
    database: Database, api: AsyncClient
) -> None:
    senders = ("+15551", "+15552", "+15552", "+15552", "+15553", "+15553", "+15554", "+15554")
    events = [v2_event(f"m{number}", message={"from": sender}) for number, sender in enumerate(senders)]
    await process(database, raw_callback(events))
    answer = await api.get("/api/stats", params={"by": "from", "fromDateTime": "2025", "limit": 2})
    assert [(row["from"], row["deliveries"]) for row in answer.json()["rows"]] == [("+15552", 3), ("+15553", 2)]
    for limit in ("0", "10001", "x"):
        answer = await api.get("/api/stats", params={"by": "from", "limit": limit})
        assert (answer.status_code, answer.json()["errors"][0]["parameter"]) == (400, "limit")


async def test_limit_keeps_statistics_with_very_many_rows_from_being_refused(
    database: Database, api: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiver.storage.statistics._MOST_ROWS", 1)
    await process(database, raw_callback([v2_event("m1"), v2_event("m2", "message-failed")]))
    answer = await api.get("/api/stats", params={"by": "status", "fromDateTime": "2025", "limit": 1})
    assert [row["status"] for row in answer.json()["rows"]] == ["delivered"]


async def test_wrong_parameters_of_statistics_are_named(api: AsyncClient) -> None:
    for name, value in (("by", "carrier"), ("by", "status,api,day,hour"), ("by", ""), ("status", "partial")):
        answer = await api.get("/api/stats", params={name: value})
        assert answer.status_code == 400, (name, value)
        assert answer.json()["errors"][0]["parameter"] == name


@pytest.mark.parametrize("path", ["stats", "messages", "callbacks", "dead-letters", "alerts"])
async def test_range_that_ends_before_it_begins_is_400(api: AsyncClient, path: str) -> None:
    answer = await api.get(f"/api/{path}", params={"fromDateTime": "2026-02-01", "toDateTime": "2026-01-31"})
    assert answer.status_code == 400
    expected = {"parameter": "toDateTime", "detail": "must not be before the beginning of the range"}
    assert answer.json()["errors"] == [expected]


async def test_statistics_with_very_many_rows_are_refused(
    database: Database, api: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiver.storage.statistics._MOST_ROWS", 1)
    await process(database, raw_callback([v2_event("m1"), v2_event("m2", "message-failed")]))
    answer = await api.get("/api/stats", params={"by": "status", "fromDateTime": "2025"})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("The statistics have more than 1 rows: give fewer dimensions")
