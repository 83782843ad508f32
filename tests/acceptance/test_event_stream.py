"""The event log as server-sent events, from a real server: clients come again, read slowly, lose their token."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from receiver.api import events as events_api
from receiver.api import streams
from receiver.api.auth import Tokens
from receiver.api.streams import Streams
from receiver.domain.events import REGISTERED, Status
from receiver.models.events import EVENTS
from receiver.storage.database import Database
from tests import event_schema, processes
from tests.dispatching import append, life
from tests.factories import make_event, v2_event
from tests.waiting import eventually
from tests.web import ADMIN, AUTHORIZED, READER, application, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
async def sqlite_database(sqlite_url: str) -> AsyncIterator[Database]:
    database = Database(sqlite_url)
    yield database
    await database.close()


PATH = "/api/events/stream"


@dataclass
class Reader:
    """A client of a stream: the blocks that it has got, and their fields."""

    response: httpx2.Response
    blocks: list[dict[str, str]] = field(default_factory=list)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(block["data"]) for block in self.blocks if "data" in block and "event" not in block]

    async def read(self) -> None:
        block: dict[str, str] = {}
        async for line in self.response.aiter_lines():
            name, _, value = line.partition(": ")
            if line:
                block[name or "comment"] = value
            else:
                self.blocks.append(block)
                block = {}


@asynccontextmanager
async def reading(base: str, headers: dict[str, str] | None = None, **parameters: str) -> AsyncIterator[Reader]:
    async with (
        httpx2.AsyncClient(base_url=base, headers={**AUTHORIZED, **(headers or {})}, **processes.PATIENT) as api,
        api.stream("GET", PATH, params=parameters) as response,
    ):
        if response.status_code != 200:
            await response.aread()
            yield Reader(response)
            return
        reader = Reader(response)
        task = asyncio.create_task(reader.read())
        try:
            await eventually(lambda: reader.blocks)
            yield reader
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_new_events_come_at_once_in_order_and_as_sinks_get_them(database: Database) -> None:
    await append(database, life("before"))
    app = application(database, source="/test", public_url="https://sms.example.com")
    async with serving(app) as base, reading(base) as reader:
        assert reader.response.headers["content-type"].startswith("text/event-stream")
        assert reader.response.headers["x-accel-buffering"] == "no"
        appended = await append(database, life("m1"))
        await eventually(lambda: len(reader.events) == len(appended))
        assert [event["id"] for event in reader.events] == [entry.event.id for entry in appended]
        assert {event["source"] for event in reader.events} == {"/test/v2"}
        for event in reader.events:
            event_schema.check(event)
        ids = [block["id"] for block in reader.blocks if "data" in block]
        assert ids == [str(entry.position) for entry in appended]


async def test_client_that_comes_again_with_its_last_event_id_misses_nothing(database: Database) -> None:
    async with serving(application(database)) as base:
        async with reading(base) as reader:
            # nothing was read yet: the first block has the place already
            place = reader.blocks[0]["id"]
        appended = await append(database, [make_event(message_id=f"m{number}") for number in range(120)])
        async with reading(base, headers={"Last-Event-ID": place}) as reader:
            await eventually(lambda: len(reader.events) == 120)
            assert [event["id"] for event in reader.events] == [entry.event.id for entry in appended]
        # the header of a browser wins over the address, which it cannot change
        last = {"Last-Event-ID": str(appended[-3].position)}
        async with reading(base, headers=last, after="0") as reader:
            await eventually(lambda: len(reader.events) == 2)


async def test_parameters_of_the_beginning(database: Database) -> None:
    appended = await append(database, [make_event(message_id=f"m{number}", received=number) for number in range(4)])
    async with serving(application(database)) as base:
        async with reading(base, after="0") as reader:
            await eventually(lambda: len(reader.events) == 4)
        async with reading(base, after=str(appended[1].position)) as reader:
            await eventually(lambda: len(reader.events) == 2)
        since = appended[3].event.received_at.isoformat().replace("+00:00", "Z")
        async with reading(base, fromDateTime=since) as reader:
            await eventually(lambda: len(reader.events) == 1)


@pytest.mark.parametrize(
    ("parameters", "ids"),
    [
        ({"type": "message.failed,message.sent"}, ["m2", "m3"]),
        ({"direction": "in"}, ["m4"]),
        ({"applicationId": "shop"}, ["m3"]),
        ({"numberPrefix": "+1444"}, ["m2"]),
        ({"numberPrefix": " 1444"}, ["m2"]),
        ({"tagPrefix": "order-"}, ["m3"]),
        ({}, ["m1", "m2", "m3", "m4"]),
    ],
)
async def test_filters_are_those_of_sinks(
    sqlite_database: Database, parameters: dict[str, str], ids: list[str]
) -> None:
    await append(
        sqlite_database,
        [
            make_event(Status.DELIVERED, message_id="m1"),
            make_event(Status.FAILED, message_id="m2", recipient="+14445550000"),
            make_event(Status.SENT, message_id="m3", fields={"application_id": "shop", "tag": "order-1"}),
            make_event(Status.RECEIVED, message_id="m4"),
        ],
    )
    async with serving(application(sqlite_database)) as base, reading(base, after="0", **parameters) as reader:
        await eventually(lambda: len(reader.events) >= len(ids))
        assert [event["subject"] for event in reader.events] == ids


async def test_heartbeats_move_the_place_beyond_what_the_filter_leaves_out(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_api, "HEARTBEAT_SECONDS", 0.3)
    async with serving(application(sqlite_database)) as base, reading(base, type="message.read") as reader:
        [last] = (await append(sqlite_database, [make_event()]))[-1:]
        await eventually(lambda: reader.blocks[-1] == {"comment": "heartbeat", "id": str(last.position)})
        assert reader.events == []


async def test_heartbeats_move_the_place_beyond_registrations(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_api, "HEARTBEAT_SECONDS", 0.3)
    registrations = [make_event(Status.UNKNOWN, message_id=f"m{number}", route=REGISTERED) for number in range(60)]
    async with serving(application(database)) as base:
        async with reading(base) as reader:
            place = str((await append(database, registrations))[-1].position)
            await eventually(lambda: reader.blocks[-1] == {"comment": "heartbeat", "id": place})
        # Retention removes the registrations: the client comes again and missed nothing.
        [last] = await append(database, [make_event(message_id="new")])
        async with database.writing() as connection:
            await connection.execute(EVENTS.delete().where(EVENTS.c.position < last.position))
        async with reading(base, {"Last-Event-ID": place}) as reader:
            await eventually(lambda: [event["subject"] for event in reader.events] == ["new"])


@pytest.mark.parametrize(
    ("headers", "parameters", "status"),
    [
        ({"Authorization": "Bearer wrong"}, {}, 401),
        ({"Last-Event-ID": "m1"}, {}, 400),
        ({"Last-Event-ID": "-1"}, {}, 400),
        ({"Last-Event-ID": "9" * 30}, {}, 400),
        ({"Last-Event-ID": "7"}, {}, 409),
        ({}, {"type": "alert.firing"}, 400),
        ({}, {"numberPrefix": "abc"}, 400),
        ({}, {"limit": "1"}, 400),
    ],
)
async def test_wrong_requests_are_refused_before_the_stream(
    sqlite_database: Database, headers: dict[str, str], parameters: dict[str, str], status: int
) -> None:
    async with serving(application(sqlite_database)) as base, reading(base, headers, **parameters) as reader:
        assert reader.response.status_code == status
        assert reader.response.headers["content-type"] == "application/problem+json"


async def test_cursor_before_the_oldest_event_is_410_and_a_gap_ends_a_stream(database: Database) -> None:
    appended = await append(database, [make_event(message_id=f"m{number}") for number in range(4)])
    async with database.writing() as connection:
        await connection.execute(EVENTS.delete().where(EVENTS.c.position <= appended[2].position))
    last = {"Last-Event-ID": str(appended[0].position)}
    async with serving(application(database)) as base, reading(base, last) as reader:
        assert reader.response.status_code == 410


async def test_head_answers_and_ends(sqlite_database: Database) -> None:
    async with serving(application(sqlite_database)) as base, httpx2.AsyncClient(**processes.PATIENT) as api:
        answer = await api.head(f"{base}{PATH}", headers=AUTHORIZED)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


async def test_streams_are_bounded_and_free_when_clients_go(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_STREAMS_OF_A_TOKEN", 2)
    monkeypatch.setattr(streams, "MAX_STREAMS", 3)
    other = {"Authorization": f"Bearer {READER}"}
    async with serving(application(sqlite_database)) as base:
        async with reading(base), reading(base):
            async with reading(base) as third:
                assert third.response.status_code == 503
                assert third.response.headers["retry-after"]
                assert "this token has 2 streams" in third.response.json()["detail"].lower()
            async with reading(base, other), reading(base, other) as fifth:
                assert "there are 3 streams" in fifth.response.json()["detail"].lower()

        async def is_free() -> bool:
            async with reading(base), reading(base) as second:
                return second.response.status_code == 200

        await eventually(is_free)


async def test_slow_reader_costs_no_memory_and_is_behind_nobody(sqlite_database: Database) -> None:
    text = "x" * 20_000
    app = application(sqlite_database)
    async with serving(app) as base:
        host, port = base.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(f"GET {PATH}?after=0 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADMIN}\r\n\r\n".encode())
        await reader.readuntil(b"retry: ")
        pulled = 0
        pull = events_api.event_log.pull

        async def counted(database: Any, after: int, limit: int) -> Any:
            nonlocal pulled
            read = await pull(database, after, limit)
            pulled += len(read.entries)
            return read

        events_api.event_log.pull = counted  # type: ignore[assignment]
        try:
            made = [make_event(message_id=f"m{number}", fields={"tag": text[:900]}) for number in range(12_000)]
            await append(sqlite_database, made)

            async def stands() -> bool:
                before = pulled
                await asyncio.sleep(0.5)
                return 0 < before == pulled

            await eventually(stands, seconds=30)
            assert pulled < 12_000
            async with reading(base) as other:
                await append(sqlite_database, [make_event(message_id="new")])
                await eventually(lambda: other.events)
        finally:
            events_api.event_log.pull = pull  # type: ignore[assignment]
        writer.close()


@contextmanager
def serve(folder: Path, tokens: list[str]) -> Iterator[processes.Server]:
    (folder / "receiver.toml").write_text(f"api_tokens = {json.dumps(tokens)}\ncallback_auth = 'none'\n", "utf-8")
    with processes.serving(folder) as server:
        yield server


def post(server: processes.Server, message_id: str) -> None:
    url, body = f"{server.url}/callbacks/bandwidth/v2", json.dumps([v2_event(message_id)])
    assert httpx2.post(url, content=body, **processes.PATIENT).status_code == 200


KEPT, REMOVED = "kept-token-of-this-test", "removed-token-of-this-test"


async def test_token_that_a_reload_removes_ends_its_streams_and_a_stop_ends_all(tmp_path: Path) -> None:
    with serve(tmp_path, [KEPT, REMOVED]) as server:
        kept, removed = ({"Authorization": f"Bearer {token}"} for token in (KEPT, REMOVED))
        async with reading(server.url, kept) as one, reading(server.url, removed) as other:
            page = await asyncio.to_thread(httpx2.get, f"{server.url}/metrics", headers=kept, **processes.PATIENT)
            assert "receiver_event_streams 2.0" in page.text
            await asyncio.to_thread(post, server, "m1")
            await eventually(lambda: one.events and other.events, seconds=60)
            event_schema.check(one.events[0])
            (tmp_path / "receiver.toml").write_text(
                f"api_tokens = {json.dumps([KEPT])}\ncallback_auth = 'none'\n", "utf-8"
            )
            server.process.send_signal(signal.SIGHUP)
            await eventually(lambda: other.response.is_closed or other.response.is_stream_consumed, seconds=60)
            await asyncio.to_thread(post, server, "m2")
            await eventually(lambda: len(one.events) == 2, seconds=60)
            assert len(other.events) == 1
            assert await asyncio.to_thread(server.stop) == 0
    # Nor did the stop have to cancel the streams.
    assert "ERROR" not in server.errors.read_text("utf-8").upper().replace("ERRORS", "")


async def test_token_that_is_revoked_while_its_stream_is_opened_gets_no_stream(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Streams()
    log_bounds, kept = events_api.event_log.log_bounds, Tokens([READER])

    async def revoked_meanwhile(database: Database) -> Any:
        opened.revoke(lambda digest: digest is not None and kept.has(digest))
        return await log_bounds(database)

    monkeypatch.setattr(events_api.event_log, "log_bounds", revoked_meanwhile)
    async with serving(application(sqlite_database, streams=opened)) as base:
        async with reading(base) as revoked:
            assert (revoked.response.status_code, "www-authenticate" in revoked.response.headers) == (401, True)
        async with reading(base, {"Authorization": f"Bearer {READER}"}) as reader:
            assert reader.response.status_code == 200


async def test_client_that_does_not_read_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    with serve(tmp_path, [KEPT]) as server:
        host, port = server.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(f"GET {PATH}?after=0 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEPT}\r\n\r\n".encode())
        await reader.readuntil(b"retry: ")
        for number in range(8):
            events = [v2_event(f"m{number}-{one}", description="x" * 800) for one in range(700)]
            url = f"{server.url}/callbacks/bandwidth/v2"
            answer = await asyncio.to_thread(httpx2.post, url, json=events, **processes.PATIENT)
            assert answer.status_code == 200
        assert await asyncio.to_thread(server.stop) == 0
        writer.close()
    assert "graceful shutdown exceeded" not in server.errors.read_text("utf-8")
