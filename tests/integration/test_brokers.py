"""Tests the brokers and the proxy that the sink tests rely on."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aio_pika
import nats
import pytest
import redis
from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError, UnknownTopicOrPartitionError
from confluent_kafka import KafkaError

from tests.brokers.kafka import PRODUCE, KafkaCluster, Record
from tests.brokers.nats import OwnNats, nats_server
from tests.brokers.own import OwnServer, free_port
from tests.brokers.rabbitmq import OwnRabbitmq, rabbitmq_server
from tests.brokers.redis import OwnRedis, redis_server
from tests.fault_servers import Proxy, proxy
from tests.servers import random_name

pytestmark = pytest.mark.anyio


async def _put_nats(url: str) -> None:
    client = await nats.connect(url)
    await client.jetstream().add_stream(name="stored", subjects=["stored"])
    await client.jetstream().publish("stored", b"stored")
    await client.close()


async def _kept_by_nats(url: str) -> int:
    client = await nats.connect(url)
    found = await client.jetstream().stream_info("stored")
    await client.close()
    return found.state.messages


async def _put_redis(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.xadd("stored", {"stored": "stored"})


async def _kept_by_redis(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.xlen("stored"))


async def _put_rabbitmq(url: str) -> None:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        await channel.declare_queue("stored", durable=True)
        message = aio_pika.Message(b"stored", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, "stored")


async def _kept_by_rabbitmq(url: str) -> int:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        queue = await channel.declare_queue("stored", passive=True)
        return queue.declaration_result.message_count or 0


@dataclass(frozen=True)
class Kind:
    """A kind of broker: how to publish one message to it, and how to count the messages it has."""

    own: Callable[[Path], OwnServer]
    hello: bytes
    put: Callable[[str], Awaitable[None]]
    stored: Callable[[str], Awaitable[int]]


KINDS = [
    pytest.param(Kind(OwnNats, b"", _put_nats, _kept_by_nats), id="nats"),
    pytest.param(Kind(OwnRedis, b"PING\r\n", _put_redis, _kept_by_redis), id="redis"),
    pytest.param(
        Kind(OwnRabbitmq, b"AMQP\x00\x00\x09\x01", _put_rabbitmq, _kept_by_rabbitmq),
        id="rabbitmq",
        marks=pytest.mark.faults,
    ),
]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_killed_server_starts_again_on_its_port_with_its_data(kind: Kind, tmp_path: Path) -> None:
    with kind.own(tmp_path) as server:
        url = server.url
        await kind.put(url)
        server.kill()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((server.host, server.port), timeout=2)
        server.start()
        assert (server.url, await kind.stored(url)) == (url, 1)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_frozen_server_takes_connections_and_answers_once_it_thaws(kind: Kind, tmp_path: Path) -> None:
    with kind.own(tmp_path) as server:
        server.freeze()
        with socket.create_connection((server.host, server.port), timeout=2) as connection:
            connection.sendall(kind.hello)
            connection.settimeout(0.1)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.settimeout(45)
            server.thaw()
            assert connection.recv(1)
        server.freeze()
        server.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((server.host, server.port), timeout=2)


async def test_a_redis_that_appends_nothing_loses_its_data_when_killed(tmp_path: Path) -> None:
    with OwnRedis(tmp_path, appendonly=False) as server:
        await _put_redis(server.url)
        server.kill()
        server.start()
        assert await _kept_by_redis(server.url) == 0


async def test_failed_server_start_reports_why(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="nonsense"), OwnNats(tmp_path, config="nonsense: true"):
        pass


SHARED = [
    pytest.param("nats", nats_server, id="nats"),
    pytest.param("redis", redis_server, id="redis"),
    pytest.param("rabbitmq", rabbitmq_server, id="rabbitmq", marks=pytest.mark.faults),
]
Shared = Callable[[], AbstractContextManager[str]]


@pytest.mark.parametrize(("name", "shared"), SHARED)
def test_missing_server_is_started(name: str, shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(f"RECEIVER_TEST_{name.upper()}_URL", raising=False)
    monkeypatch.setattr(f"tests.brokers.{name}._STANDARD", f"{name}://127.0.0.1:{free_port()}")
    with shared() as url:
        port = int(url.rpartition(":")[2].partition("/")[0])
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=2)


@pytest.mark.parametrize(("name", "shared"), SHARED)
def test_a_named_server_that_is_not_there_skips_the_test(
    name: str, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = "amqp" if name == "rabbitmq" else name
    variable = f"RECEIVER_TEST_{name.upper()}_URL"
    monkeypatch.setenv(variable, f"{scheme}://127.0.0.1:{free_port()}")
    with pytest.raises(pytest.skip.Exception, match=variable), shared():
        pass


async def test_the_shared_servers_let_us_in(nats_url: str, redis_url: str, rabbitmq_url: str) -> None:
    client = await nats.connect(nats_url)
    await client.jetstream().account_info()
    await client.close()
    with redis.Redis.from_url(redis_url) as connection:
        assert connection.ping()
    await (await aio_pika.connect(rabbitmq_url)).close()


@asynccontextmanager
async def producer(bootstrap: str, seconds: float = 45) -> AsyncIterator[AIOKafkaProducer]:
    given = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        enable_idempotence=True,
        request_timeout_ms=int(seconds * 1000),
        retry_backoff_ms=20,
    )
    await given.start()
    try:
        yield given
    finally:
        await given.stop()


async def test_an_idempotent_producers_records_are_read_back(kafka: KafkaCluster) -> None:
    topic = random_name()
    kafka.create_topic(topic, partitions=2)
    async with producer(kafka.bootstrap) as given:
        await given.send_and_wait(topic, b"one", key=b"k", headers=[("ce_id", b"1")], partition=1)
        await given.send_and_wait(topic, b"two", partition=1)
        await given.send_and_wait(topic, b"three", partition=0)
    assert kafka.records(topic) == [
        Record(None, b"three", {}, partition=0, offset=0),
        Record(b"k", b"one", {"ce_id": b"1"}, partition=1, offset=0),
        Record(None, b"two", {}, partition=1, offset=1),
    ]


async def test_a_cluster_answers_with_the_errors_it_is_given() -> None:
    with KafkaCluster() as cluster:
        cluster.create_topic("answers")
        async with producer(cluster.bootstrap) as given:
            cluster.push_errors(PRODUCE, [KafkaError.NOT_ENOUGH_REPLICAS] * 2 + [KafkaError.MSG_SIZE_TOO_LARGE])
            with pytest.raises(MessageSizeTooLargeError):
                await given.send_and_wait("answers", b"refused")
            cluster.push_errors(PRODUCE, [KafkaError.NOT_ENOUGH_REPLICAS] * 1000)
            cluster.clear_errors(PRODUCE)
            await given.send_and_wait("answers", b"stored")
        cluster.set_topic_error("missing", KafkaError.UNKNOWN_TOPIC_OR_PART)
        async with producer(cluster.bootstrap, seconds=2) as given:
            with pytest.raises(UnknownTopicOrPartitionError):
                await given.send_and_wait("missing", b"refused")
        assert [record.value for record in cluster.records("answers")] == [b"stored"]


async def test_a_cluster_that_was_down_or_frozen_takes_up_where_it_was() -> None:
    with KafkaCluster() as cluster:
        host, _, port = cluster.bootstrap.partition(":")
        cluster.create_topic("stored")
        async with producer(cluster.bootstrap) as given:
            await given.send_and_wait("stored", b"before")
            cluster.down()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, int(port)), timeout=2)
            sent = await given.send("stored", b"while down")
            cluster.up()
            await sent
            cluster.freeze()
            sent = await given.send("stored", b"while frozen")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(sent), 0.1)
            cluster.thaw()
            await sent
        assert {record.value for record in cluster.records("stored")} == {b"before", b"while down", b"while frozen"}
        cluster.kill()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=2)


async def test_a_producer_reaches_a_cluster_through_the_proxy_it_advertises() -> None:
    with KafkaCluster() as cluster:
        async with proxy("127.0.0.1", int(cluster.bootstrap.partition(":")[2])) as between:
            cluster.create_topic("proxied")
            cluster.advertise(between.port)
            async with producer(f"127.0.0.1:{between.port}") as given:
                await given.send_and_wait("proxied", b"before")
                await between.refuse()
                sent = await given.send("proxied", b"while refused")
                await between.forward()
                await sent
            records = await asyncio.to_thread(cluster.records, "proxied")  # the proxy serves it meanwhile
        assert {record.value for record in records} == {b"before", b"while refused"}


@asynccontextmanager
async def echo_behind_proxy() -> AsyncIterator[Proxy]:
    """A proxy in front of an echo server."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1024):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    try:
        async with proxy("127.0.0.1", server.sockets[0].getsockname()[1]) as between:
            yield between
    finally:
        server.close()


@asynccontextmanager
async def connected(between: Proxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", between.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def _echoed(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes = b"data", seconds: float = 45
) -> bytes:
    writer.write(data)
    return await asyncio.wait_for(reader.readexactly(len(data)), seconds)


async def test_a_proxy_forwards_all_and_the_end_of_it() -> None:
    async with echo_behind_proxy() as between, connected(between) as (reader, writer):
        data = b"data" * 100_000
        assert await _echoed(reader, writer, data) == data
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 45) == b""


async def test_a_proxy_that_refuses_resets_what_is_connected_and_takes_no_more() -> None:
    async with echo_behind_proxy() as between:
        async with connected(between) as (reader, writer):
            await _echoed(reader, writer)
            await between.refuse()
            with pytest.raises(ConnectionResetError):
                await _echoed(reader, writer)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", between.port)
        await between.forward()
        async with connected(between) as (reader, writer):
            assert await _echoed(reader, writer) == b"data"


async def test_a_proxy_that_is_a_blackhole_never_answers_old_or_new_connections() -> None:
    async with echo_behind_proxy() as between, connected(between) as old:
        await _echoed(*old)
        await between.blackhole()
        async with connected(between) as new:
            for connection in (old, new):
                with pytest.raises(TimeoutError):
                    await _echoed(*connection, seconds=0.1)
            await between.forward()
            for reader, _ in (old, new):
                with pytest.raises(ConnectionResetError):
                    await reader.read(1)


async def test_a_proxy_that_cuts_takes_new_connections_at_once() -> None:
    async with echo_behind_proxy() as between, connected(between) as (reader, writer):
        await _echoed(reader, writer)
        between.cut()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        async with connected(between) as (reader, writer):
            assert await _echoed(reader, writer) == b"data"


async def test_a_proxy_resets_connections_when_its_server_is_gone() -> None:
    async with proxy("127.0.0.1", free_port()) as between, connected(between) as (reader, _):
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
