"""The NATS sink against real servers: sound, misconfigured and unreachable."""

import asyncio
import base64
import hashlib
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nats
import nkeys
import orjson
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy

from receiver.dispatch import publish_loop
from receiver.domain.events import Status
from receiver.domain.publication import Published, Refused, Retry, SinkDown
from receiver.errors import SettingsError
from receiver.sinks.registry import ConfiguredSink, configure
from receiver.storage.database import Database
from tests.brokers import outages
from tests.brokers.nats import OwnNats
from tests.brokers.own import free_port
from tests.dispatching import append, audit, letters, life, messages, rows, running, sink_row
from tests.factories import TRACEPARENT, batch, make_publication
from tests.fault_servers import proxy
from tests.servers import Authority, random_name
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[Client]:
    client = await nats.connect(url, allow_reconnect=False, connect_timeout=30, **options)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def jetstream(url: str, **options: Any) -> AsyncIterator[JetStreamContext]:
    async with connected(url, **options) as client:
        yield client.jetstream(timeout=30)


@dataclass
class Message:
    """Reads the content of a stream."""

    subject: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Stream:
    """A stream for one test, which takes the subjects below its name."""

    url: str
    name: str

    async def create(self, **config: Any) -> None:
        async with jetstream(self.url) as server:
            await server.add_stream(name=self.name, subjects=[f"{self.name}.>"], **config)

    async def delete(self) -> None:
        async with jetstream(self.url) as server:
            await server.delete_stream(self.name)

    async def messages(self) -> list[Message]:
        async with jetstream(self.url) as server:
            count = (await server.stream_info(self.name)).state.messages
            raw = [await server.get_msg(self.name, number) for number in range(1, count + 1)]
        return [Message(one.subject or "", one.headers or {}, one.data or b"") for one in raw]

    async def ids(self) -> list[str]:
        return [orjson.loads(one.body)["id"] for one in await self.messages()]

    def holds(self, count: int) -> Callable[[], Any]:
        """Whether the stream has at least `count` events."""

        async def arrived() -> bool:
            async with jetstream(self.url) as server:
                return (await server.stream_info(self.name)).state.messages >= count

        return arrived


@asynccontextmanager
async def created(url: str, **config: Any) -> AsyncIterator[Stream]:
    stream = Stream(url, random_name())
    await stream.create(**config)
    try:
        yield stream
    finally:
        await stream.delete()


@pytest.fixture
async def stream(nats_url: str) -> AsyncIterator[Stream]:
    async with created(nats_url) as stream:
        yield stream


def configured(url: str, subject: str, **fields: Any) -> ConfiguredSink:
    table = {"name": "bus", "type": "nats", "servers": [url], "subject": subject, "start": "beginning", "timeout": "5s"}
    [one] = configure([{**table, **fields}])
    return one


@asynccontextmanager
async def sink(url: str, subject: str, **fields: Any) -> AsyncIterator[Any]:
    one = configured(url, subject, **fields).sink
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


def creds(jwt: str = "x", seed: str = "y") -> str:
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"servers": []}, "servers: "),
    ({"servers": "nats://a:4222"}, "servers: "),
    ({"servers": ["http://a:4222"]}, "servers.0: must be nats:// or tls://"),
    ({"servers": ["nats://"]}, "servers.0: must be nats:// or tls://"),
    ({"servers": ["nats://a:port"]}, "servers.0: must be nats:// or tls://"),
    ({"servers": ["nats://a\n"]}, "servers.0: must be nats:// or tls://"),
    ({"servers": ["nats://canary:canary@a"]}, "servers.0: must be without user and password"),
    ({"subject": "sms.{sort}"}, "subject: {sort} is not a field"),
    ({"subject": "sms.{type"}, "subject: has a brace too many or too few"),
    ({"subject": "sms.*"}, "subject: must be tokens"),
    ({"subject": "sms.>"}, "subject: must be tokens"),
    ({"subject": "sms out"}, "subject: must be tokens"),
    ({"subject": "sms..{type}"}, "subject: must be tokens"),
    ({"subject": ".{type}"}, "subject: must be tokens"),
    ({"subject": ""}, "subject: must be tokens"),
    ({"subject": "$JS.API.STREAM.DELETE.{tag}"}, "subject: must be tokens"),
    ({"stream": "a.b"}, "stream: "),
    ({"binding": "batched"}, "binding: "),
    ({"user": "canary"}, "user and password belong together"),
    ({"user": "a", "password": "canary", "token": "canary"}, "user, token and credentials exclude each other"),
    ({"credentials": "/run/canary.creds"}, "credentials: must be what a .creds file holds"),
    ({"credentials": "file:/nonexistent.creds"}, "credentials: cannot read /nonexistent.creds"),
    ({"token": "env:RECEIVER_TEST_ABSENT"}, "token: there is no environment variable"),
    ({"tls_ca": "/nonexistent.pem"}, "tls_ca: "),
    ({"tls_ca": __file__}, "tls: the files cannot be used"),
    ({"tls_key": __file__}, "tls_key needs tls_certificate"),
    ({"max_batch": 0}, "max_batch: "),
    ({"subjects": "a"}, "subjects is not a field of this sink"),
]


@pytest.mark.parametrize(("fields", "line"), WRONG)
def test_invalid_settings_are_reported_in_one_line(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError) as raised:
        configure([{"name": "bus", "type": "nats", "servers": ["nats://127.0.0.1"], **fields}])
    message = str(raised.value)
    assert message.startswith(f"RECEIVER_SINKS: bus: {line}")
    assert "\n" not in message
    assert "canary" not in message.removeprefix("RECEIVER_SINKS: bus: credentials: cannot read")


def test_key_with_a_passphrase_is_rejected(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    key = tmp_path / "locked.key"
    lock = ["openssl", "ec", "-in", tmp_path / "authority.key", "-aes256", "-passout", "pass:secret", "-out", key]
    subprocess.run(lock, check=True, capture_output=True)
    with pytest.raises(SettingsError, match="bus: tls: the files cannot be used"):
        configured("tls://127.0.0.1", "a", tls_certificate=str(authority.file), tls_key=str(key))


async def test_a_structured_event_arrives_whole(stream: Stream) -> None:
    async with sink(stream.url, stream.name + ".{direction}.{type}", stream=stream.name) as bus:
        assert await bus.check() is None
        assert await bus.publish([make_publication()]) == [Published()]
    [message] = await stream.messages()
    assert message.subject == f"{stream.name}.out.message.delivered"
    assert message.body == make_publication().body
    assert message.headers["Nats-Msg-Id"] == "bus:e1"
    assert message.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert not any(name.startswith("ce-") for name in message.headers)


async def test_two_sinks_of_one_stream_store_an_event_each(stream: Stream) -> None:
    for name in ("bus", "lake"):
        async with sink(stream.url, f"{stream.name}.{name}", name=name) as published:
            # The second copy of a sink is a repetition.
            [first], [second] = [await published.publish([make_publication()]) for _ in range(2)]
            assert (first.duplicate, second.duplicate) == (False, True)
    assert [message.subject for message in await stream.messages()] == [f"{stream.name}.bus", f"{stream.name}.lake"]


async def test_a_binary_event_has_its_attributes_in_headers(stream: Stream) -> None:
    async with sink(stream.url, stream.name + ".{type}", binding="binary") as bus:
        await bus.publish([make_publication()])
    [message] = await stream.messages()
    event = make_publication().event
    assert orjson.loads(message.body) == event["data"]
    assert message.headers == {
        "Nats-Msg-Id": "bus:e1",
        "content-type": "application/json",
        **{f"ce-{name}": value for name, value in event.items() if name != "data"},
    }


async def test_each_event_of_a_batch_has_its_own_result_at_its_place(stream: Stream) -> None:
    large = make_publication(2, text="x" * 1024 * 1024)
    async with sink(stream.url, stream.name + ".{type}") as bus:
        results = await bus.publish([make_publication(1), large, make_publication(3)])
        assert [type(one) for one in results] == [Published, Refused, Published]
        assert "1048576 bytes" in results[1].reason
    assert await stream.ids() == ["e1", "e3"]


async def test_the_largest_event_it_may_be_given_arrives(stream: Stream) -> None:
    async with sink(stream.url, stream.name + ".{type}", binding="binary") as bus:
        room = bus.max_event_bytes - len(make_publication(text="").body)
        [result] = await bus.publish([make_publication(text="x" * room)])
    assert result == Published()


async def test_a_batch_is_stored_in_its_order(stream: Stream) -> None:
    async with sink(stream.url, stream.name + ".{type}") as bus:
        assert await bus.publish(batch(200)) == [Published()] * 200
    assert await stream.ids() == [f"e{number}" for number in range(1, 201)]


async def test_the_same_event_again_is_published_but_stored_once(stream: Stream) -> None:
    async with sink(stream.url, stream.name + ".{type}") as bus:
        for _ in range(2):
            assert await bus.publish([make_publication()]) == [Published()]
    assert len(await stream.messages()) == 1


async def test_a_replay_is_stored_again_and_says_so(stream: Stream) -> None:
    async with sink(stream.url, stream.name + ".{type}") as bus:
        await bus.publish([make_publication()])
        await bus.publish([make_publication(replayed=True)])
    first, again = await stream.messages()
    assert "receiver-replayed" not in first.headers
    assert again.headers["receiver-replayed"] == "true"
    assert again.body == first.body


async def test_a_traced_event_names_the_span_of_its_attempt(stream: Stream) -> None:
    async with sink(stream.url, stream.name + ".{type}") as bus:
        await bus.publish([replace(make_publication(1), traceparent=TRACEPARENT)])
        await bus.publish([make_publication(2)])
    traced, plain = await stream.messages()
    assert traced.headers["traceparent"] == TRACEPARENT
    assert "traceparent" not in plain.headers


@pytest.mark.parametrize("tag", ["a.b", "a.>", ">", "*", "a b", "a\r\nPUB x 0\r\n", "", "ä", "x" * 300])
async def test_what_came_from_outside_cannot_break_the_subject(stream: Stream, tag: str) -> None:
    async with sink(stream.url, stream.name + ".{tag}.end") as bus:
        assert await bus.publish([make_publication(tag=tag)]) == [Published()]
    [message] = await stream.messages()
    name, token, end = message.subject.split(".")
    assert (name, end) == (stream.name, "end")
    assert token.replace("_", "").replace("-", "").isalnum() or set(token) <= set("_-")


async def test_no_stream_for_the_subject_means_that_the_sink_is_down(nats_url: str) -> None:
    async with sink(nats_url, random_name() + ".{type}") as bus:
        assert await bus.publish(batch(2)) == [SinkDown(reason="no stream takes the subject")] * 2


async def test_another_stream_than_the_expected_means_that_the_sink_is_down(stream: Stream) -> None:
    async with sink(stream.url, stream.name + ".{type}", stream="OTHER_" + stream.name) as bus:
        [result] = await bus.publish([make_publication()])
        assert isinstance(result, SinkDown)
        assert await bus.check() == "stream not found"
    assert await stream.messages() == []


async def test_what_the_stream_finds_too_large_is_refused(nats_url: str) -> None:
    async with created(nats_url, max_msg_size=1000) as stream, sink(nats_url, stream.name + ".{type}") as bus:
        results = await bus.publish([make_publication(1, text="x" * 1000), make_publication(2)])
        assert [type(one) for one in results] == [Refused, Published]


async def test_what_the_server_finds_too_large_is_refused_and_harms_no_other(tmp_path: Path) -> None:
    # Each event is a byte larger than the one before.
    growing = [make_publication(number, text="x" * (1000 + number)) for number in range(400, 700)]
    with OwnNats(tmp_path, "max_payload: 2000") as server:
        stream = Stream(server.url, random_name())
        await stream.create()
        async with sink(server.url, stream.name + ".{type}") as bus:
            results = await bus.publish(growing)
        kinds = [type(one) for one in results]
        assert {Published, Refused} == set(kinds)
        assert kinds == sorted(kinds, key=[Published, Refused].index)
        assert len(await stream.ids()) == kinds.count(Published)


@pytest.mark.parametrize(("answer", "reason"), [(b"{}", "not the answer of a stream"), (b"ok", "JSONDecodeError")])
async def test_answer_that_is_not_from_a_stream_is_a_retry(nats_url: str, answer: bytes, reason: str) -> None:
    subject = random_name()
    async with connected(nats_url) as other:

        async def respond(message: Any) -> None:
            await message.respond(answer)

        await other.subscribe(subject, cb=respond)
        await other.flush()
        async with sink(nats_url, subject) as bus:
            assert await bus.publish([make_publication()]) == [Retry(reason=reason)]


async def test_a_full_stream_means_that_the_sink_is_down(nats_url: str) -> None:
    async with (
        created(nats_url, max_msgs=1, discard=DiscardPolicy.NEW) as stream,
        sink(nats_url, stream.name + ".{type}") as bus,
    ):
        results = await bus.publish(batch(2))
        assert results == [Published(), SinkDown(reason="maximum messages exceeded")]


async def test_a_stream_that_is_full_of_one_subject_takes_others(nats_url: str) -> None:
    limits = {"max_msgs_per_subject": 1, "max_msgs": 100, "discard_new_per_subject": True}
    tagged = [make_publication(number, tag=tag) for number, tag in enumerate("aab")]
    async with (
        created(nats_url, discard=DiscardPolicy.NEW, **limits) as stream,
        sink(nats_url, stream.name + ".{tag}") as bus,
    ):
        assert [type(one) for one in await bus.publish(tagged)] == [Published, Retry, Published]


async def test_a_stream_that_acknowledges_nothing_means_that_the_sink_is_down(nats_url: str) -> None:
    async with (
        created(nats_url, no_ack=True) as stream,
        sink(nats_url, stream.name + ".{type}", stream=stream.name, timeout="0.3s") as bus,
    ):
        assert await bus.publish([make_publication()]) == [SinkDown(reason="the stream acknowledges nothing")]


async def test_connection_refused_means_sink_down() -> None:
    async with sink(f"nats://127.0.0.1:{free_port()}", "a.{type}") as bus:
        assert await bus.publish([make_publication()]) == [SinkDown(reason="ConnectionRefusedError")]
        assert await bus.check() == "ConnectionRefusedError"


async def test_unknown_host_means_sink_down() -> None:
    async with sink("nats://nowhere.invalid", "a.{type}") as bus:
        assert await bus.publish([make_publication()]) == [SinkDown(reason="gaierror")]


async def test_any_server_of_several_will_do(stream: Stream) -> None:
    gone = [f"nats://127.0.0.1:{free_port()}" for _ in range(3)]
    async with sink(stream.url, stream.name + ".{type}", servers=[*gone, stream.url]) as bus:
        assert await bus.publish([make_publication()]) == [Published()]


async def test_it_can_be_stopped_and_started_again_and_leaves_nothing_behind(stream: Stream) -> None:
    before = asyncio.all_tasks()
    async with sink(stream.url, stream.name + ".{type}") as bus:
        await asyncio.gather(bus.publish([make_publication(1)]), bus.check())
        await bus.stop()
        assert asyncio.all_tasks() == before
        await bus.start()
        assert await bus.publish([make_publication(2)]) == [Published()]
    assert asyncio.all_tasks() == before
    assert len(await stream.messages()) == 2


# through dispatchers


@on_sqlite
async def test_each_message_keeps_its_order(database: Database, stream: Stream) -> None:
    entries = await append(database, messages(150))
    async with running(database, configured(stream.url, stream.name + ".{type}")):
        await eventually(stream.holds(len(entries)))
    assert audit(entries, await stream.ids()) == 0


@on_sqlite
async def test_idle_sink_whose_stream_is_deleted_is_down_until_there_is_one(
    database: Database, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_loop, "IDLE_CHECK_SECONDS", 0.3)
    bus = configured(stream.url, stream.name + ".{type}", stream=stream.name, max_age="1s", on_expire="dead_letter")

    async def state() -> tuple[bool, str | None]:
        row = await sink_row(database, bus.name)
        return row.down_since_at is not None, row.last_error

    async def is_back() -> bool:
        return not (await state())[0]

    async with running(database, bus) as run:
        await append(database, life("first", (Status.SENT,)))
        run.wakeup.set()
        await eventually(stream.holds(1))
        await stream.delete()

        async def is_down() -> bool:
            return (await state())[0]

        await eventually(is_down, seconds=20)
        assert "stream not found" in ((await state())[1] or "")
        assert run.observed.breaker[-1] == "closed"
        await stream.create()
        await eventually(is_back, seconds=20)
        # Down for longer than max_age without an event: the next one is tried, not given up.
        await stream.delete()
        await eventually(is_down, seconds=20)
        monkeypatch.setattr(publish_loop, "IDLE_CHECK_SECONDS", 60)
        await asyncio.sleep(1.2)
        await stream.create()
        await append(database, life("second", (Status.SENT,)))
        run.wakeup.set()
        await eventually(stream.holds(1), seconds=20)
        await eventually(is_back, seconds=20)
    assert await letters(database) == []


@on_sqlite
async def test_without_a_stream_nothing_is_lost_until_there_is_one(database: Database, nats_url: str) -> None:
    stream = Stream(nats_url, random_name())
    entries = await append(database, messages(5))
    bus = configured(nats_url, stream.name + ".{type}", stream=stream.name)
    async with running(database, bus):
        await eventually(outages.reports_error(database, bus, "no stream takes the subject"))
        assert await rows(database) == []
        await stream.create()
        try:
            await eventually(stream.holds(len(entries)))
            assert audit(entries, await stream.ids()) == 0
        finally:
            await stream.delete()


@on_sqlite
async def test_a_server_that_is_away_at_the_start_is_waited_for(database: Database, tmp_path: Path) -> None:
    with OwnNats(tmp_path) as server:
        stream = Stream(server.url, random_name())
        await stream.create()
        await outages.away_at_the_start(database, server, configured(server.url, stream.name + ".{type}"), stream)


@pytest.mark.faults
@on_sqlite
async def test_a_server_killed_under_load_loses_nothing(database: Database, tmp_path: Path) -> None:
    with OwnNats(tmp_path) as server:
        stream = Stream(server.url, random_name())
        await stream.create()
        bus = configured(server.url, stream.name + ".{type}", max_batch=8)
        await outages.killed_under_load(database, server, bus, stream)


@pytest.mark.faults
@on_sqlite
async def test_a_frozen_server_holds_up_no_other_sink(database: Database, tmp_path: Path) -> None:
    with OwnNats(tmp_path) as server:
        stream = Stream(server.url, random_name())
        await stream.create()
        bus = configured(server.url, stream.name + ".{type}", timeout="1s")
        await outages.frozen(database, server, bus, stream)


# a connection that fails


@asynccontextmanager
async def behind_a_proxy(stream: Stream, **fields: Any) -> AsyncIterator[tuple[Any, Any]]:
    host, port = stream.url.removeprefix("nats://").split(":")
    async with (
        proxy(host, int(port)) as between,
        sink(f"nats://127.0.0.1:{between.port}", stream.name + ".{type}", **fields) as bus,
    ):
        yield between, bus


async def test_a_connection_that_is_cut_fails_at_once_what_was_under_way(stream: Stream) -> None:
    async with behind_a_proxy(stream, timeout="15s") as (between, bus):
        await bus.publish([make_publication()])
        await between.blackhole()
        publishing = asyncio.create_task(bus.publish(batch(200)))
        await asyncio.sleep(0.05)  # what was sent is swallowed
        started = time.monotonic()
        await between.forward()
        assert await publishing == [Retry(reason="ConnectionResetError")] * 200
        assert time.monotonic() - started < 12
        assert await bus.publish(batch(200)) == [Published()] * 200


async def test_lost_server_means_sink_down(stream: Stream) -> None:
    async with behind_a_proxy(stream) as (between, bus):
        await outages.refused(between, bus)


async def test_server_without_an_answer_is_down_and_checked_on_a_new_connection(stream: Stream) -> None:
    async with behind_a_proxy(stream, timeout="0.3s") as (between, bus):
        await outages.unanswered(between, bus)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


on_either_loop = pytest.mark.parametrize(
    "anyio_backend", ["asyncio", pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop")]
)


@pytest.mark.faults
@on_either_loop
async def test_connection_to_a_server_that_reads_nothing_closes_at_once(tmp_path: Path) -> None:
    large = [make_publication(number, text="x" * 900_000) for number in range(20)]
    with OwnNats(tmp_path) as server:
        async with sink(server.url, "a.{type}", timeout="0.2s") as bus:
            await bus.check()
            await bus.stop()
            before, open_before = asyncio.all_tasks(), open_files()
            await bus.check()
            server.freeze()
            # More than the buffers of the connection hold.
            assert await bus.publish(large) == [SinkDown(reason="timeout")] * 20
            assert await bus.check() == "timeout"
            started = time.monotonic()
        assert time.monotonic() - started < 5
        assert asyncio.all_tasks() == before
        assert open_files() <= open_before


@on_either_loop
async def test_a_server_that_dies_while_it_reads_nothing_fails_all_at_once(tmp_path: Path) -> None:
    with OwnNats(tmp_path) as server:
        before = asyncio.all_tasks()
        async with sink(server.url, "a.{type}", timeout="15s") as bus:
            await bus.check()
            server.freeze()
            batches = [[make_publication(number, text="x" * 900_000) for number in range(20)], batch(20)]
            publishing = [asyncio.create_task(bus.publish(one)) for one in batches]
            await asyncio.sleep(0.2)  # what can be sent is sent, the rest waits
            started = time.monotonic()
            server.kill()
            for results in await asyncio.gather(*publishing):
                assert set(results) == {SinkDown(reason="ConnectionRefusedError")}
            assert time.monotonic() - started < 12
        assert asyncio.all_tasks() == before


# authentication and permissions

USERS = """
authorization {
    users = [
        { user: all, password: "all-canary" }
        { user: few, password: "few-canary", permissions: { publish: ["few.out"], subscribe: ["_INBOX.>"] } }
        { user: deaf, password: "deaf-canary", permissions: { publish: [">"], subscribe: ["nothing"] } }
    ]
}
"""


def login(user: str) -> dict[str, str]:
    return {"user": user, "password": f"{user}-canary"}


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[str]:
    with OwnNats(tmp_path, USERS) as server:
        async with jetstream(server.url, **login("all")) as admin:
            await admin.add_stream(name="few", subjects=["few.*"])
        yield server.url


async def test_user_and_password_authenticate(guarded: str) -> None:
    async with sink(guarded, "few.{direction}", **login("all")) as bus:
        assert await bus.publish([make_publication()]) == [Published()]
        assert await bus.check() is None


@pytest.mark.parametrize("fields", [{}, {"user": "all", "password": "wrong-canary"}, {"token": "wrong-canary"}])
async def test_failed_authentication_means_sink_down(guarded: str, fields: dict[str, str]) -> None:
    async with sink(guarded, "few.{direction}", **fields) as bus:
        assert await bus.publish([make_publication()]) == [SinkDown(reason="authorization violation")]
        assert await bus.check() == "authorization violation"


async def test_a_user_who_may_do_no_more_than_publish_can(guarded: str) -> None:
    async with sink(guarded, "few.{direction}", **login("few")) as bus:
        assert await bus.publish([make_publication()]) == [Published()]
        assert await bus.check() is None


async def test_forbidden_subject_means_sink_down_at_once(guarded: str) -> None:
    async with sink(guarded, "few.{direction}", **login("few"), timeout="15s") as bus:
        started = time.monotonic()
        results = await bus.publish([make_publication(1), make_publication(2, direction="IN"), make_publication(3)])
        assert time.monotonic() - started < 12
    assert results == [Published(), SinkDown(reason="permissions violation"), Published()]


async def test_user_without_subscribe_permission_means_sink_down_at_once(guarded: str) -> None:
    async with sink(guarded, "few.{direction}", **login("deaf"), timeout="15s") as bus:
        assert await bus.publish(batch(2)) == [SinkDown(reason="permissions violation")] * 2


async def test_token_authenticates(tmp_path: Path) -> None:
    with OwnNats(tmp_path, "authorization { token: canary }") as server:
        async with jetstream(server.url, token="canary") as admin:
            await admin.add_stream(name="a", subjects=["a.*"])
        async with sink(server.url, "a.{direction}", token="canary") as bus:
            assert await bus.publish([make_publication()]) == [Published()]


def _key(kind: int) -> nkeys.KeyPair:
    return nkeys.from_seed(bytearray(nkeys.encode_seed(os.urandom(32), kind)))


def _jwt(subject: nkeys.KeyPair, issuer: nkeys.KeyPair, **claims: Any) -> str:
    def part(content: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    body = {"iss": issuer.public_key.decode(), "sub": subject.public_key.decode(), "iat": 1, "name": "test"}
    body |= {"nats": {"version": 2, **claims}}
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
    signed = f"{part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{part(body)}"
    return f"{signed}.{base64.urlsafe_b64encode(issuer.sign(signed.encode())).decode().rstrip('=')}"


async def test_creds_file_authenticates(tmp_path: Path) -> None:
    operator, user = _key(nkeys.PREFIX_BYTE_OPERATOR), _key(nkeys.PREFIX_BYTE_USER)
    account, system = _key(nkeys.PREFIX_BYTE_ACCOUNT), _key(nkeys.PREFIX_BYTE_ACCOUNT)
    unlimited = dict.fromkeys(("subs", "data", "payload"), -1)
    storage = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
    connections = {"imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
    limits = {**unlimited, **storage, **connections}
    accounts = {
        account.public_key.decode(): _jwt(account, operator, type="account", limits=limits),
        system.public_key.decode(): _jwt(system, operator, type="account", limits={**unlimited, **connections}),
    }
    user_jwt = _jwt(user, account, type="user", pub={}, sub={}, **unlimited)
    config = (
        f"operator: {_jwt(operator, operator, type='operator')}\nsystem_account: {system.public_key.decode()}\n"
        f"resolver: MEMORY\nresolver_preload: {json.dumps(accounts)}\n"
    )
    path = tmp_path / "user.creds"
    path.write_text(creds(user_jwt, user.seed.decode()))
    with OwnNats(tmp_path, config) as server:
        async with jetstream(server.url, user_credentials=str(path)) as admin:
            await admin.add_stream(name="a", subjects=["a.*"])
        async with sink(server.url, "a.{direction}", credentials=f"file:{path}") as bus:
            assert await bus.publish([make_publication()]) == [Published()]
        async with sink(server.url, "a.{direction}") as bus:
            assert await bus.publish([make_publication()]) == [SinkDown(reason="authorization violation")]


@on_sqlite
async def test_credentials_are_never_disclosed(
    database: Database, guarded: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    wrong = configured(guarded, "few.{direction}", user="all-canary", password="canary", token=None)
    await append(database, life("m", (Status.SENT,)))
    async with running(database, wrong):
        await eventually(outages.reports_error(database, wrong, "authorization violation"))
    assert "canary" not in repr(wrong) + wrong.settings.model_dump_json()
    output = capfd.readouterr()
    assert "canary" not in output.out + output.err + caplog.text
    assert "sink is down" in output.out


# TLS


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority = Authority(tmp_path)
    authority.server("localhost")
    return authority


@pytest.fixture
async def encrypted(tmp_path: Path, authority: Authority) -> AsyncIterator[OwnNats]:
    tls = f"tls {{ cert_file: '{tmp_path / 'localhost1.pem'}', key_file: '{tmp_path / 'localhost1.key'}' }}"
    with OwnNats(tmp_path, tls) as server:
        yield server


async def test_known_certificate_is_accepted(encrypted: OwnNats, authority: Authority) -> None:
    url = f"tls://localhost:{encrypted.port}"
    async with sink(url, "a.{type}", tls_ca=str(authority.file)) as bus:
        assert await bus.check() is None
        assert await bus.publish([make_publication()]) == [SinkDown(reason="no stream takes the subject")]


@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_unknown_certificate_means_sink_down(encrypted: OwnNats, scheme: str) -> None:
    async with sink(f"{scheme}://localhost:{encrypted.port}", "a.{type}") as bus:
        assert await bus.publish([make_publication()]) == [SinkDown(reason="SSLCertVerificationError")]


@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_server_without_tls_gets_nothing_when_tls_is_required(scheme: str, authority: Authority) -> None:
    heard = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.10.0","headers":true,"max_payload":1048576}\r\n')
        heard.extend(await reader.read())
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    address = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, sink(address, "a.{type}", **login("all"), tls_ca=str(authority.file)) as bus:
        assert await bus.publish([make_publication()]) == [SinkDown(reason="NotEncrypted")]
    assert heard == b""
