"""Registered sends on both databases: over the API, and in everything that reads the log."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from httpx2 import AsyncClient

from receiver.domain.delivery import FinalConflict
from receiver.domain.events import Api
from receiver.intake.fold import TagChecker
from receiver.intake.transfer import Importing, Reprocessing, exported, import_lines
from receiver.models.events import EVENTS
from receiver.models.queries import CallbackQuery
from receiver.providers import registry
from receiver.storage import event_log, journal, processor, schema
from receiver.storage.database import Database
from receiver.storage.rebuild import Rebuild
from tests.dispatching import dispatching, memory, memory_sink
from tests.factories import callback, v1_event, v2_accepted, v2_event
from tests.processing import append, drain, now, select
from tests.waiting import eventually
from tests.web import READER, application, basic, client

pytestmark = pytest.mark.anyio

LOCATION = "https://api.catapult.inetwork.com/v1/users/u-1/messages/m-1"
V1 = {
    "from": "+15559999",
    "to": "+15550001",
    "text": "hello",
    "receiptRequested": "all",
    "callbackUrl": "https://user:secret@example.com/v1",
    "callbackTimeout": 2000,
    "fallbackUrl": "https://example.com/fallback",
}


@pytest.fixture
async def api(database: Database) -> AsyncIterator[AsyncClient]:
    """The API, which processes what is pending before it answers a read."""

    async def settle(_: float | None) -> int:
        await drain(database)
        return 0

    async with client(application(database, settle=settle)) as opened:
        yield opened


async def registered(api: AsyncClient, body: Any) -> Any:
    answer = await api.post("/api/messages", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def listed(api: AsyncClient, **parameters: str) -> list[str]:
    answer = await api.get("/api/messages", params=parameters)
    assert answer.status_code == 200, answer.text
    return [message["id"] for message in answer.json()]


async def shown(api: AsyncClient, id_: str = "m1") -> dict[str, Any]:
    answer = await api.get(f"/api/messages/{id_}")
    assert answer.status_code == 200, answer.text
    message: dict[str, Any] = answer.json()
    return message


async def test_row_exists_before_the_first_callback(api: AsyncClient) -> None:
    assert await registered(api, v2_accepted()) == {
        "index": 0,
        "id": "m1",
        "api": "v2",
        "result": "registered",
        "parameter": None,
        "detail": None,
    }
    message = await shown(api)
    assert (message["status"], message["state"], message["awaitingReceipt"]) == ("unknown", None, True)
    assert (message["from"], message["to"], message["text"], message["tag"]) == (
        "+15559999",
        ["+15550001"],
        "hello",
        "order 4711",
    )
    assert message["registeredTime"] == message["firstReceivedTime"]
    assert [recipient["status"] for recipient in message["recipients"]] == ["unknown"]


@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_registration_and_callbacks_merge_in_every_order(
    api: AsyncClient, database: Database, order: tuple[int, ...]
) -> None:
    async def step(number: int) -> None:
        if number == 0:
            await registered(api, v2_accepted(tag="mine", priority="high"))
        else:
            kinds = {1: "message-sending", 2: "message-delivered"}
            event = v2_event("m1", kinds[number], time=f"2026-01-01T00:00:0{number}Z", message={"tag": "order"})
            await append(database, callback([event], received=number))
        await drain(database)

    for number in order:
        await step(number)
    message = await shown(api)
    assert (message["status"], message["tag"], message["priority"]) == ("delivered", "order", "high")
    assert (message["awaitingReceipt"], message["registeredTime"] is not None) == (False, True)
    assert (await Rebuild(database, FinalConflict.FAILED_WINS).run()).differing == 0
    assert (await shown(api))["text"] == "hello"


async def test_registering_again_changes_nothing(api: AsyncClient, database: Database) -> None:
    await registered(api, v2_accepted())
    before = await shown(api)
    for _ in range(3):
        await registered(api, [v2_accepted(), v2_accepted()])
    assert await shown(api) == before
    events = (await api.get("/api/messages/m1/events")).json()
    assert [(event["type"], event["status"], event["route"]) for event in events] == [
        ("message-registered", "unknown", "registered")
    ]
    # A repeat is dropped from the journal, as a repeated callback is.
    assert len((await api.get("/api/callbacks")).json()) == 1


async def test_every_send_of_a_list_is_answered_for_itself(api: AsyncClient) -> None:
    results = await registered(
        api, [v2_accepted("a"), {"to": "+1"}, v2_accepted("b", direction="in"), {"location": LOCATION}]
    )
    assert [(one["index"], one["id"], one["result"], one["parameter"]) for one in results] == [
        (0, "a", "registered", None),
        (1, None, "refused", "id"),
        (2, "b", "refused", "direction"),
        (3, "m-1", "registered", None),
    ]
    assert sorted(await listed(api)) == ["a", "m-1"]


async def test_answer_of_v1_to_an_array_is_registered(api: AsyncClient) -> None:
    results = [
        {"result": "accepted", "location": LOCATION},
        {"result": "error", "error": {"category": "bad-request", "message": "'to' is blank"}},
    ]
    answers = await registered(api, {"request": [V1, {**V1, "to": ""}], "results": results})
    assert [(one["id"], one["result"], one["parameter"]) for one in answers] == [
        ("m-1", "registered", None),
        (None, "refused", "result"),
    ]


async def test_single_wrong_send_is_400_with_its_field(api: AsyncClient) -> None:
    answer = await api.post("/api/messages", json=v2_accepted(time="soon"))
    assert answer.json()["errors"] == [
        {"parameter": "time", "detail": "must be a time of RFC 3339: 2026-01-31T12:00:00Z"}
    ]
    assert answer.status_code == 400
    assert await listed(api) == []


async def test_too_many_sends_are_400(api: AsyncClient) -> None:
    answer = await api.post("/api/messages", json=[{"id": str(number)} for number in range(1001)])
    assert (answer.status_code, "at most 1000" in answer.text) == (400, True)


async def test_token_that_may_read_must_not_register(api: AsyncClient) -> None:
    headers = {"Authorization": f"Bearer {READER}"}
    assert (await api.post("/api/messages", json=v2_accepted(), headers=headers)).status_code == 403
    assert (await api.post("/api/messages", json=v2_accepted(), headers={"Authorization": ""})).status_code == 401
    assert await listed(api) == []


async def test_messages_of_which_nothing_was_heard_are_found_by_their_age(api: AsyncClient, database: Database) -> None:
    def created(minutes: int) -> str:
        return (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()

    sends = [v2_accepted(f"m{minutes}", time=created(minutes)) for minutes in (1, 14, 16, 60, 90)]
    await registered(api, [*sends, v2_accepted("asked-for-nothing", time=created(60), receiptExpected=False)])
    await append(database, callback([v2_event("m60", "message-delivered")]))
    assert await listed(api, awaitingReceipt="true", olderThan="15m") == ["m16", "m90"]
    assert await listed(api, awaitingReceipt="true", olderThan="15m", toDateTime=created(60)) == ["m90"]
    answer = await api.get("/api/messages", params={"olderThan": "a while"})
    assert (answer.status_code, answer.json()["errors"][0]["parameter"]) == (400, "olderThan")


async def test_pages_of_old_messages_follow_their_links(api: AsyncClient) -> None:
    await registered(api, [v2_accepted(f"m{number}", time=f"2026-01-01T00:00:0{number}Z") for number in range(5)])
    address, found = "/api/messages?awaitingReceipt=true&olderThan=15m&size=2", []
    while address:
        answer = await api.get(address)
        found += [message["id"] for message in answer.json()]
        address = answer.links.get("next", {}).get("url", "")
    assert found == ["m4", "m3", "m2", "m1", "m0"]


async def test_catapult_api_shows_the_parameters_of_the_send(api: AsyncClient) -> None:
    await registered(api, {**V1, "location": LOCATION})
    answer = await api.get("/v1/users/u-1/messages/m-1", headers={"Authorization": basic(READER)})
    message = answer.json()
    assert {name: message.get(name) for name in (*V1, "state")} == {
        **V1,
        "callbackUrl": "https://example.com/v1",
        "state": None,
    }
    # They are of the send alone, and not among the fields of our own API.
    assert not {"callbackUrl", "receiptRequested"} & set(await shown(api, "m-1"))


async def test_password_of_the_callback_url_is_stored_nowhere(api: AsyncClient, database: Database) -> None:
    await registered(api, {**V1, "location": LOCATION})
    await shown(api, "m-1")
    [entry] = (await api.get("/api/callbacks")).json()
    assert "secret" not in (await api.get(f"/api/callbacks/{entry['id']}")).text
    for table in ("messages", "events"):
        assert "secret" not in str(await select(database, f"SELECT * FROM {table}"))


async def test_v1_message_without_receipts_waits_for_its_first_event_alone(
    api: AsyncClient, database: Database
) -> None:
    await registered(api, {**V1, "receiptRequested": "none", "location": LOCATION})
    assert (await shown(api, "m-1"))["awaitingReceipt"] is True
    await append(database, callback(v1_event("m-1", state="sent"), api=Api.V1))
    message = await shown(api, "m-1")
    assert (message["status"], message["awaitingReceipt"]) == ("sent", False)


async def test_registration_is_published_nowhere(api: AsyncClient, database: Database) -> None:
    await registered(api, [v2_accepted(f"m{number}") for number in range(3)])
    await drain(database)
    await append(database, callback([v2_event("m1", "message-delivered")]))
    await registered(api, v2_accepted("last"))
    await drain(database)
    pulled = await api.get("/api/events", params={"limit": "1"})
    assert [event["subject"] for event in pulled.json()] == ["m1"]
    sink = memory_sink()
    async with dispatching(database, sink):
        await eventually(lambda: memory(sink).published)
        async with database.reading() as connection:
            _, end = await event_log.bounds(connection)

        async def is_past() -> bool:
            [row] = await select(database, "SELECT cursor FROM sinks")
            return bool(row.cursor >= end)

        # The registrations before and after it are passed over: they are no backlog.
        await eventually(is_past)
    assert [one.event["subject"] for one in memory(sink).published] == ["m1"]


async def test_cursor_of_pulled_events_passes_registrations(api: AsyncClient, database: Database) -> None:
    await append(database, callback([v2_event("m1", "message-delivered")]))
    await drain(database)
    await registered(api, [v2_accepted(f"m{number}") for number in range(2, 6)])
    await drain(database)
    first = await api.get("/api/events", params={"limit": "1"})
    assert "after=1" in first.links["next"]["url"]
    second = await api.get(first.links["next"]["url"])
    assert (second.json(), "after=5" in second.links["next"]["url"]) == ([], True)
    # Retention removes the registrations, which the consumer never missed, before the next event comes.
    async with database.writing() as connection:
        await connection.execute(EVENTS.delete().where(EVENTS.c.position <= 5))
    await append(database, callback([v2_event("m6", "message-delivered")]))
    await drain(database)
    third = await api.get(second.links["next"]["url"])
    assert third.status_code == 200, third.text
    assert [event["subject"] for event in third.json()] == ["m6"]


async def test_pull_reads_up_to_what_its_limit_or_the_log_leaves(database: Database) -> None:
    sends = [v2_accepted(f"r{number}") for number in range(3)]
    async with client(application(database)) as api:
        await append(database, callback([v2_event("m1", "message-delivered"), v2_event("m2", "message-delivered")]))
        await drain(database)
        await registered(api, sends)
        await drain(database)
    read = [await event_log.pull(database, after, limit) for after, limit in ((0, 1), (0, 2), (0, 3), (2, 1), (5, 1))]
    assert [(len(one.entries), one.read_to) for one in read] == [(1, 1), (2, 2), (2, 5), (0, 5), (0, 5)]


async def test_registration_is_not_a_sign_of_life_of_bandwidth(api: AsyncClient, database: Database) -> None:
    await registered(api, v2_accepted())
    await drain(database)
    assert (await processor.state(database)).last_callbacks == {}


async def test_registration_that_an_older_worker_quarantined_is_taken_in_by_reprocessing(
    api: AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        # An older worker knows no such route: it takes the body for a callback of the provider.
        older.setattr(registry, "REGISTERED", "no route")
        await registered(api, v2_accepted())
        await drain(database)
    assert await listed(api) == []
    [entry] = (await api.get("/api/callbacks", params={"outcome": "quarantined"})).json()
    assert (await api.post(f"/api/callbacks/{entry['id']}/reprocess")).status_code == 200
    assert (await shown(api))["registeredTime"] is not None


async def test_registration_is_reprocessed_exported_and_imported(
    api: AsyncClient, database: Database, tmp_path: Path
) -> None:
    await registered(api, v2_accepted())
    before = await shown(api)
    [entry] = (await api.get("/api/callbacks")).json()
    how = Reprocessing(database=database, checker=TagChecker(), conflict=FinalConflict.FAILED_WINS, clock=now)
    done = await how.ids([entry["id"]])
    assert (done.callbacks, done.events, done.quarantined) == (1, 0, 0)
    lines = [line async for part in exported(database, CallbackQuery()) for line in part.splitlines()]
    writer = journal.journal_writer(database)
    try:
        imported = await import_lines(writer, lines, Importing(clock=now, sleep=_at_once))
    finally:
        await writer.close()
    assert (imported.known, imported.broken) == (1, 0)
    assert await shown(api) == before
    elsewhere = Database(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    await schema.migrate(elsewhere)
    writer = journal.journal_writer(elsewhere)
    try:
        assert (await import_lines(writer, lines, Importing(clock=now, sleep=_at_once))).callbacks == 1
        await drain(elsewhere)
        [row] = await select(elsewhere, "SELECT message_id, status, registered_at IS NOT NULL FROM message_status")
        assert (row[0], row[1], bool(row[2])) == ("m1", "unknown", True)
    finally:
        await writer.close()
        await elsewhere.close()


async def _at_once(_: float) -> None:
    await asyncio.sleep(0)
