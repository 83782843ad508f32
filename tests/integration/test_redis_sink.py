"""The Redis sink against real servers: sound, misconfigured and unreachable."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis

from receiver.domain.events import Status
from receiver.domain.publication import Published, Retry, SinkDown
from receiver.errors import SettingsError
from receiver.sinks.registry import ConfiguredSink, configure
from receiver.storage.database import Database
from tests.brokers import outages
from tests.brokers.own import free_port
from tests.brokers.redis import OwnRedis
from tests.dispatching import append, audit, life, messages, rows, running
from tests.factories import TRACEPARENT, batch, make_publication
from tests.fault_servers import proxy
from tests.servers import Authority, random_name
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@contextmanager
def client(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url, retry=None) as one:
        yield one


@dataclass
class Stream:
    """A stream for one test. Other keys of the test begin with its name."""

    url: str
    name: str

    def entries(self, name: str | None = None) -> list[dict[str, str]]:
        with client(self.url) as server:
            return [
                {field.decode(): value.decode() for field, value in fields.items()}
                for _, fields in server.xrange(name or self.name)
            ]

    async def ids(self) -> list[str]:
        return [fields["id"] for fields in self.entries()]

    def keys(self) -> list[str]:
        with client(self.url) as server:
            return sorted(key.decode() for key in server.keys(f"{self.name}*"))

    def holds(self, count: int) -> Callable[[], Any]:
        """Whether the stream has at least `count` events."""

        async def arrived() -> bool:
            with client(self.url) as server:
                return int(server.xlen(self.name)) >= count

        return arrived


@pytest.fixture
def stream(redis_url: str) -> Iterator[Stream]:
    stream = Stream(redis_url, random_name())
    yield stream
    with client(redis_url) as server:
        server.delete(*stream.keys(), "")


def configured(url: str, stream: str, **fields: Any) -> ConfiguredSink:
    table = {"name": "cache", "type": "redis", "url": url, "stream": stream, "start": "beginning", "timeout": "5s"}
    [one] = configure([{**table, **fields}])
    return one


@asynccontextmanager
async def sink(url: str, stream: str, **fields: Any) -> AsyncIterator[Any]:
    one = configured(url, stream, **fields).sink
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"url": "http://a"}, "url: must be redis://"),
    ({"url": "redis://"}, "url: must be redis://"),
    ({"url": "redis:///0"}, "url: must be redis://"),
    ({"url": "redis://a:port"}, "url: must be redis://"),
    ({"url": "redis://user:can/ary@a"}, "url: must be redis://"),
    ({"url": "redis://a b"}, "url: must be redis://"),
    ({"url": "redis://a\n"}, "url: must be redis://"),
    ({"url": "unix://"}, "url: must be redis://"),
    ({"url": "redis://:canary@a/first"}, "url: must have a number for its database"),
    ({"url": "redis://:canary@a/?db=first"}, "url: must have a number for its database"),
    ({"url": "rediss://:canary@a/?ssl_cert_reqs=none"}, "url: may have no options but db, ssl_ca_certs,"),
    ({"url": "redis://:canary@a/?retry_on_timeout=yes"}, "url: may have no options but"),
    ({"url": "rediss://:canary@a/?ssl_ca_certs=/nonexistent.pem"}, "url: the files cannot be used"),
    ({"url": "env:RECEIVER_TEST_ABSENT"}, "url: there is no environment variable"),
    ({"stream": ""}, "stream: "),
    ({"stream": "sms:{sort}"}, "stream: {sort} is not a field"),
    ({"stream": "sms:{tag"}, "stream: has a brace too many or too few"),
    ({"maxlen": 0}, "maxlen: "),
    ({"binding": "batched"}, "binding: "),
    ({"max_batch": 0}, "max_batch: "),
    ({"streams": "a"}, "streams is not a field of this sink"),
]


@pytest.mark.parametrize(("fields", "line"), WRONG)
def test_invalid_settings_are_reported_in_one_line(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError) as raised:
        configure([{"name": "cache", "type": "redis", "url": "redis://127.0.0.1", **fields}])
    message = str(raised.value)
    assert message.startswith(f"RECEIVER_SINKS: cache: {line}")
    assert "\n" not in message
    assert "can" not in message.replace("cannot", "")


async def test_a_structured_event_is_an_entry_with_the_whole_of_it(stream: Stream) -> None:
    one = make_publication()
    async with sink(stream.url, stream.name) as cache:
        assert await cache.check() is None
        assert await cache.publish([one]) == [Published()]
    [entry] = stream.entries()
    assert entry == {"id": "e1", "type": "message.delivered", "message_id": "m1", "event": one.body.decode()}


async def test_a_binary_event_is_an_entry_with_a_field_for_each_attribute(stream: Stream) -> None:
    one = make_publication(messageId="mÜ 1")
    async with sink(stream.url, stream.name, binding="binary") as cache:
        await cache.publish([one])
    [entry] = stream.entries()
    assert orjson.loads(entry.pop("data")) == one.event["data"]
    assert entry == {name: value for name, value in one.event.items() if name != "data"}


@pytest.mark.parametrize("binding", ["structured", "binary"])
async def test_replayed_event_is_marked(stream: Stream, binding: str) -> None:
    async with sink(stream.url, stream.name, binding=binding) as cache:
        await cache.publish([make_publication(1), make_publication(1, replayed=True)])
    first, again = stream.entries()
    assert again == first | {"receiver-replayed": "true"}


@pytest.mark.parametrize("binding", ["structured", "binary"])
async def test_a_traced_event_names_the_span_of_its_attempt(stream: Stream, binding: str) -> None:
    async with sink(stream.url, stream.name, binding=binding) as cache:
        await cache.publish([make_publication(1), replace(make_publication(1), traceparent=TRACEPARENT)])
    plain, traced = stream.entries()
    assert traced == plain | {"traceparent": TRACEPARENT}


async def test_a_batch_is_added_in_its_order(stream: Stream) -> None:
    async with sink(stream.url, stream.name) as cache:
        assert await cache.publish(batch(200)) == [Published()] * 200
    assert await stream.ids() == [f"e{number}" for number in range(1, 201)]


async def test_a_batch_is_no_transaction(tmp_path: Path) -> None:
    with OwnRedis(tmp_path) as server, client(server.url) as admin:
        async with sink(server.url, "a") as cache:
            await cache.publish(batch(50))
        stats = admin.info("commandstats")
    assert stats["cmdstat_xadd"]["calls"] == 50
    assert "cmdstat_multi" not in stats


async def test_each_event_of_a_batch_has_its_own_result_at_its_place(stream: Stream) -> None:
    with client(stream.url) as server:
        server.set(f"{stream.name}:wrong", "a text")
    tagged = [make_publication(number, tag=tag) for number, tag in enumerate(["right", "wrong", "right"])]
    async with sink(stream.url, stream.name + ":{tag}") as cache:
        assert await cache.publish(tagged) == [Published(), SinkDown(reason="WRONGTYPE"), Published()]
    assert len(stream.entries(f"{stream.name}:right")) == 2


async def test_the_same_event_again_is_another_entry(stream: Stream) -> None:
    async with sink(stream.url, stream.name) as cache:
        for _ in range(2):
            assert await cache.publish([make_publication()]) == [Published()]
    assert await stream.ids() == ["e1", "e1"]


async def test_the_largest_event_it_may_be_given_arrives(stream: Stream) -> None:
    async with sink(stream.url, stream.name) as cache:
        room = cache.max_event_bytes - len(make_publication(text="").body)
        assert await cache.publish([make_publication(text="x" * room)]) == [Published()]
    assert await stream.ids() == ["e1"]


async def test_a_stream_with_a_length_is_trimmed_to_about_that(stream: Stream) -> None:
    async with sink(stream.url, stream.name, maxlen=100) as cache:
        for _ in range(10):
            await cache.publish(batch(100))
    assert 100 <= len(await stream.ids()) < 500


@pytest.mark.parametrize("tag", ["a:b", "a b", "a\r\nDEL x\r\n", "*", "{x}", "", "ä", "x" * 300])
async def test_what_came_from_outside_cannot_break_the_name_of_the_stream(stream: Stream, tag: str) -> None:
    async with sink(stream.url, stream.name + ":{tag}:end") as cache:
        assert await cache.publish([make_publication(tag=tag)]) == [Published()]
    [key] = stream.keys()
    name, value, end = key.split(":")
    assert (name, end) == (stream.name, "end")
    assert set(value.replace("_", "").replace("-", "")) <= set("DELabx")
    assert 0 < len(value) <= 64


async def test_connection_refused_means_sink_down() -> None:
    async with sink(f"redis://127.0.0.1:{free_port()}", "a") as cache:
        assert await cache.publish(batch(2)) == [SinkDown(reason="ConnectionRefusedError")] * 2
        assert await cache.check() == "ConnectionRefusedError"


async def test_unknown_host_means_sink_down() -> None:
    async with sink("redis://nowhere.invalid", "a") as cache:
        assert await cache.publish([make_publication()]) == [SinkDown(reason="gaierror")]


async def test_it_can_be_stopped_and_started_again_and_leaves_nothing_behind(stream: Stream) -> None:
    before = asyncio.all_tasks()
    async with sink(stream.url, stream.name) as cache:
        await cache.publish([make_publication(1)])
        await cache.stop()
        assert asyncio.all_tasks() == before
        await cache.start()
        assert await cache.publish([make_publication(2)]) == [Published()]
    assert asyncio.all_tasks() == before
    assert await stream.ids() == ["e1", "e2"]


async def test_a_socket_in_the_file_system_will_do(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with OwnRedis(tmp_path, "--unixsocket", str(path)) as server:
        async with sink(f"unix://{path}?db=1", "a") as cache:
            assert await cache.publish([make_publication()]) == [Published()]
        with client(f"redis://{server.host}:{server.port}/1") as one:
            assert one.xlen("a") == 1


# errors of the server


async def test_a_replica_means_that_the_sink_is_down(tmp_path: Path) -> None:
    with OwnRedis(tmp_path, "--replicaof", "127.0.0.1", str(free_port())) as server:
        async with sink(server.url, "a") as cache:
            assert await cache.publish(batch(2)) == [SinkDown(reason="READONLY")] * 2


async def test_a_server_that_is_no_master_any_more_is_left_for_whoever_has_its_name_then(tmp_path: Path) -> None:
    with OwnRedis(tmp_path) as server, client(server.url) as admin:
        async with sink(server.url, "a") as cache:
            assert await cache.publish([make_publication()]) == [Published()]
            await eventually(lambda: len(admin.client_list()) == 2)
            admin.replicaof("127.0.0.1", free_port())
            assert await cache.publish([make_publication()]) == [SinkDown(reason="READONLY")]
            await eventually(lambda: len(admin.client_list()) == 1)
            admin.replicaof("NO", "ONE")
            assert await cache.publish([make_publication()]) == [Published()]


async def test_a_server_without_memory_means_that_the_sink_is_down(tmp_path: Path) -> None:
    with OwnRedis(tmp_path, "--maxmemory", "1", "--maxmemory-policy", "noeviction") as server:
        async with sink(server.url, "a") as cache:
            assert await cache.publish(batch(2)) == [SinkDown(reason="OOM")] * 2


async def test_too_few_replicas_mean_that_the_sink_is_down(tmp_path: Path) -> None:
    with OwnRedis(tmp_path, "--min-replicas-to-write", "1") as server:
        async with sink(server.url, "a") as cache:
            assert await cache.publish(batch(2)) == [SinkDown(reason="NOREPLICAS")] * 2


async def test_a_stream_that_can_take_no_more_is_tried_again(stream: Stream) -> None:
    with client(stream.url) as server:
        server.xadd(stream.name, {"a": "b"}, id="18446744073709551615-18446744073709551615")
    async with sink(stream.url, stream.name) as cache:
        assert await cache.publish([make_publication()]) == [Retry(reason="ERR")]


async def test_a_server_that_loads_its_data_is_down_until_it_has(tmp_path: Path) -> None:
    # A fifth of a second per key until the test has seen the error; the server answers clients after each kilobyte.
    slow = ("--key-load-delay", "200000", "--loading-process-events-interval-bytes", "1024")
    with OwnRedis(tmp_path, *slow, appendonly=False) as server, client(server.url) as admin:
        admin.mset({f"key{number}": os.urandom(1024) for number in range(50)})
        admin.save()
        server.kill()
        starting = asyncio.create_task(asyncio.to_thread(server.start))
        seen: set[str] = set()
        async with sink(server.url, "a") as cache:
            while not starting.done():
                [result] = await cache.publish([make_publication()])
                seen.add(getattr(result, "reason", "published"))
                if "LOADING" in seen:
                    admin.config_set("key-load-delay", 0)
            await starting
            assert "LOADING" in seen
            assert seen <= {"ConnectionRefusedError", "LOADING", "published"}
            assert await cache.publish([make_publication()]) == [Published()]


async def test_what_is_to_be_on_disk_counts_when_it_is(tmp_path: Path) -> None:
    with OwnRedis(tmp_path, "--appendfsync", "always") as server:
        async with sink(server.url, "a", wait_aof=True) as cache:
            assert await cache.publish(batch(3)) == [Published()] * 3
        assert await Stream(server.url, "a").ids() == ["e1", "e2", "e3"]


async def test_a_server_that_keeps_nothing_on_disk_is_down_where_it_should(tmp_path: Path) -> None:
    with OwnRedis(tmp_path, appendonly=False) as server:
        async with sink(server.url, "a", wait_aof=True) as cache:
            assert await cache.publish(batch(2)) == [SinkDown(reason="the server cannot say what is on its disk")] * 2


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """The URL of a server whose user `few` has no permission but XADD."""
    with OwnRedis(tmp_path, "--user", "few", "on", ">few-canary", "~few:*", "+xadd") as server:
        yield f"{server.host}:{server.port}"


async def test_a_user_who_may_do_no_more_than_add_can(guarded: str) -> None:
    async with sink(f"redis://few:few-canary@{guarded}", "few:events") as cache:
        assert await cache.publish([make_publication()]) == [Published()]
        assert await cache.check() is None


async def test_a_stream_that_is_forbidden_means_that_the_sink_is_down(guarded: str) -> None:
    async with sink(f"redis://few:few-canary@{guarded}", "other:events") as cache:
        assert await cache.publish([make_publication()]) == [SinkDown(reason="NOPERM")]


async def test_a_wrong_password_means_that_the_sink_is_down(guarded: str) -> None:
    async with sink(f"redis://few:wrong-canary@{guarded}", "few:events") as cache:
        assert await cache.publish([make_publication()]) == [SinkDown(reason="WRONGPASS")]
        assert await cache.check() == "WRONGPASS"


@on_sqlite
async def test_credentials_are_never_disclosed(
    database: Database, guarded: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    wrong = configured(f"redis://few:wrong-canary@{guarded}", "few:events")
    await append(database, life("m", (Status.SENT,)))
    async with running(database, wrong):
        await eventually(outages.reports_error(database, wrong, "WRONGPASS"))
    assert "canary" not in repr(wrong) + wrong.settings.model_dump_json()
    output = capfd.readouterr()
    assert "canary" not in output.out + output.err + caplog.text
    assert "sink is down" in output.out


# TLS


@asynccontextmanager
async def encrypted(url: str, authority: Authority) -> AsyncIterator[str]:
    """The URL of a server behind TLS."""
    host, port = url.removeprefix("redis://").partition("/")[0].split(":")

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while chunk := await source.read(65536):
            target.write(chunk)
            await target.drain()
        target.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, to_there), pump(there, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=authority.server("localhost"))
    async with server:
        yield f"localhost:{server.sockets[0].getsockname()[1]}"


async def test_known_certificate_is_accepted(stream: Stream, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with (
        encrypted(stream.url, authority) as address,
        sink(f"rediss://{address}?ssl_ca_certs={authority.file}", stream.name) as cache,
    ):
        assert await cache.publish([make_publication()]) == [Published()]


async def test_unknown_certificate_means_sink_down(stream: Stream, tmp_path: Path) -> None:
    async with encrypted(stream.url, Authority(tmp_path)) as address, sink(f"rediss://{address}", "a") as cache:
        assert await cache.publish([make_publication()]) == [SinkDown(reason="SSLCertVerificationError")]


# through dispatchers


@on_sqlite
async def test_each_message_keeps_its_order(database: Database, stream: Stream) -> None:
    entries = await append(database, messages(150))
    async with running(database, configured(stream.url, stream.name)):
        await eventually(stream.holds(len(entries)))
    assert audit(entries, await stream.ids()) == 0


@on_sqlite
async def test_a_key_of_another_type_loses_nothing(database: Database, stream: Stream) -> None:
    with client(stream.url) as server:
        server.set(stream.name, "a text")
        entries = await append(database, messages(5))
        cache = configured(stream.url, stream.name)
        async with running(database, cache):
            await eventually(outages.reports_error(database, cache, "WRONGTYPE"))
            assert await rows(database) == []
            server.delete(stream.name)
            await eventually(stream.holds(len(entries)))
    assert audit(entries, await stream.ids()) == 0


@on_sqlite
async def test_a_server_that_is_away_at_the_start_is_waited_for(database: Database, tmp_path: Path) -> None:
    with OwnRedis(tmp_path) as server:
        cache = configured(server.url, "events")
        await outages.away_at_the_start(database, server, cache, Stream(server.url, "events"))


@pytest.mark.faults
@on_sqlite
async def test_a_server_killed_under_load_loses_nothing(database: Database, tmp_path: Path) -> None:
    with OwnRedis(tmp_path) as server:
        cache = configured(server.url, "events", max_batch=8)
        await outages.killed_under_load(database, server, cache, Stream(server.url, "events"))


@pytest.mark.faults
@on_sqlite
async def test_a_frozen_server_holds_up_no_other_sink(database: Database, tmp_path: Path) -> None:
    with OwnRedis(tmp_path) as server:
        cache = configured(server.url, "events", timeout="1s")
        await outages.frozen(database, server, cache, Stream(server.url, "events"))


# a connection that fails


@asynccontextmanager
async def behind_a_proxy(stream: Stream, **fields: Any) -> AsyncIterator[tuple[Any, Any]]:
    host, port = stream.url.removeprefix("redis://").partition("/")[0].split(":")
    async with (
        proxy(host, int(port)) as between,
        sink(f"redis://127.0.0.1:{between.port}", stream.name, **fields) as cache,
    ):
        yield between, cache


async def test_a_connection_that_is_cut_costs_an_attempt_at_once_and_no_more(stream: Stream) -> None:
    async with behind_a_proxy(stream, timeout="15s") as (between, cache):
        await cache.publish([make_publication()])
        await between.blackhole()
        publishing = asyncio.create_task(cache.publish(batch(200)))
        await asyncio.sleep(0.05)  # what was sent is swallowed
        started = time.monotonic()
        await between.forward()
        assert await publishing == [Retry(reason="ConnectionError")] * 200
        assert time.monotonic() - started < 12
        assert await cache.publish(batch(200)) == [Published()] * 200
    assert len(await stream.ids()) == 201


async def test_lost_server_means_sink_down(stream: Stream) -> None:
    async with behind_a_proxy(stream) as (between, cache):
        await outages.refused(between, cache)


async def test_server_without_an_answer_is_down_and_checked_on_a_new_connection(stream: Stream) -> None:
    async with behind_a_proxy(stream, timeout="0.3s") as (between, cache):
        await outages.unanswered(between, cache)
