"""The RabbitMQ sink against real brokers: a shared one, and nodes of one test for faults."""

import asyncio
import logging
import ssl
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import orjson
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from msgspec import structs
from yarl import URL

from receiver.domain.publication import Publication, Published, Refused, Retry, SinkDown
from receiver.errors import SettingsError
from receiver.sinks.registry import ConfiguredSink, configure
from receiver.storage import dead_letters
from receiver.storage.database import Database
from receiver.testing.dispatch import publication_of_size, publications
from tests.brokers.own import free_port
from tests.brokers.rabbitmq import OwnRabbitmq
from tests.dispatching import Outcomes, append, audit, dispatching, life, memory_sink, whole_log
from tests.factories import TRACEPARENT
from tests.fault_servers import Proxy, proxy
from tests.servers import Authority, random_name
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

CANARY = "canary-4f1c"
QUORUM = {"x-queue-type": "quorum"}


def configured(url: str, exchange: str, **fields: Any) -> ConfiguredSink:
    table = {"name": "ops", "type": "rabbitmq", "url": url, "exchange": exchange, "start": "beginning"}
    [one] = configure([{**table, "timeout": "10s", **fields}])
    return one


@asynccontextmanager
async def rabbitmq_sink(url: str, exchange: str, **fields: Any) -> AsyncIterator[Any]:
    """A started sink. Checks at the end that none of its tasks is still running."""
    sink, before = configured(url, exchange, **fields).sink, of_the_client()
    await sink.start()
    try:
        yield sink
    finally:
        await sink.stop()
        await eventually(lambda: of_the_client() <= before)


def of_the_client() -> set[asyncio.Task[Any]]:
    """The running tasks of the RabbitMQ client."""
    return {task for task in asyncio.all_tasks() if "/aiormq/" in repr(task) or "/aio_pika/" in repr(task)}


@dataclass
class Exchange:
    """An exchange with a queue of the same name that is bound to all keys, and a channel to look at them."""

    url: str
    name: str
    channel: AbstractChannel

    async def taken(self) -> list[AbstractIncomingMessage]:
        return await emptied(self.channel, self.name)


@asynccontextmanager
async def a_channel(url: str) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        yield channel


async def laid_out(channel: AbstractChannel, name: str, arguments: dict[str, Any] | None = None) -> None:
    """Declares a durable exchange and a durable queue bound to all routing keys."""
    exchange = await channel.declare_exchange(name, "topic", durable=True)
    queue = await channel.declare_queue(name, durable=True, arguments=arguments)
    await queue.bind(exchange, "#")


async def emptied(channel: AbstractChannel, name: str) -> list[AbstractIncomingMessage]:
    """Takes all messages out of a queue."""
    queue = await channel.get_queue(name, ensure=False)
    found = []
    while (message := await queue.get(no_ack=True, fail=False)) is not None:
        found.append(message)
    return found


@asynccontextmanager
async def an_exchange(url: str, arguments: dict[str, Any] | None = None) -> AsyncIterator[Exchange]:
    name = random_name()
    async with a_channel(url) as channel:
        await laid_out(channel, name, arguments)
        try:
            yield Exchange(url, name, channel)
        finally:
            await channel.queue_delete(name)
            await channel.exchange_delete(name)


@pytest.fixture
async def exchange(rabbitmq_url: str) -> AsyncIterator[Exchange]:
    async with an_exchange(rabbitmq_url) as made:
        yield made


def event_ids(messages: Sequence[AbstractIncomingMessage]) -> list[str]:
    return [message.message_id or "" for message in messages]


async def recovers(sink: Any, batch: Sequence[Publication]) -> None:
    """Publishes until every result is Published: a broker that has just come back may take its time."""
    for _ in range(20):
        if await sink.publish(batch) == [Published()] * len(batch):
            return
        await asyncio.sleep(0.1)  # a broker that starts refuses at once
    pytest.fail("it does not recover")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"url": f"http://user:{CANARY}@host/"}, "url: must begin with amqp:// or amqps://"),
        ({"url": f"amqp://user:{CANARY}@/"}, "url: "),
        ({"url": f"amqp://user:{CANARY}@host:port/"}, "url: is not a URL"),
        ({"url": f"amqp://user:{CANARY}@host/ x"}, "url: must be without spaces"),
        ({"url": f"amqp://user:{CANARY}@host/?no_verify_ssl=1"}, "url: no_verify_ssl is not a parameter of it"),
        ({"url": "env:THERE_IS_NONE"}, "url: there is no environment variable"),
        ({"exchange": None}, "exchange: "),
        ({"exchange": "x" * 256}, "exchange: must not be longer than 255 bytes"),
        ({"routing_key": "ü" * 128}, "routing_key: must not be longer than 255 bytes"),
        ({"routing_key": "{colour}"}, "routing_key: {colour} is not a field"),
        ({"binding": "batch"}, "binding: "),
        ({"colour": "red"}, "colour is not a field of this sink"),
    ],
)
def test_invalid_settings_are_reported_in_one_line(fields: dict[str, Any], error: str) -> None:
    table = {"name": "ops", "type": "rabbitmq", "url": f"amqp://user:{CANARY}@host/", "exchange": "sms"}
    with pytest.raises(SettingsError) as raised:
        configure([{**table, **fields}])
    line = str(raised.value)
    assert line.startswith(f"RECEIVER_SINKS: ops: {error}")
    assert "\n" not in line
    assert CANARY not in line


def test_the_exchange_must_be_named() -> None:
    with pytest.raises(SettingsError, match="exchange: Field required"):
        configure([{"name": "ops", "type": "rabbitmq", "url": "amqp://host/"}])


async def test_a_message_holds_the_event_and_says_whose_it_is(exchange: Exchange) -> None:
    [one] = publications()
    async with rabbitmq_sink(exchange.url, exchange.name) as sink:
        assert await sink.publish([one]) == [Published()]
    [message] = await exchange.taken()
    assert (message.message_id, message.body, message.routing_key) == (one.id, one.body, one.type)
    assert message.content_type == "application/cloudevents+json; charset=utf-8"
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert message.headers == {"receiver-message-id": one.event["subject"]}
    assert message.timestamp is not None
    assert message.timestamp.astimezone(UTC) == one.received_at.replace(microsecond=0)


@pytest.mark.parametrize("path", ["", "/", "/%2F", "//"])
async def test_default_virtual_host_is_found_however_it_is_written(exchange: Exchange, path: str) -> None:
    address = urlsplit(exchange.url)
    assert address.path in {"", "/", "/%2F"}
    [one] = publications()
    async with rabbitmq_sink(f"{address.scheme}://{address.netloc}{path}", exchange.name) as sink:
        assert await sink.publish([one]) == [Published()]
    assert event_ids(await exchange.taken()) == [one.id]


async def test_in_binary_mode_the_attributes_are_headers(exchange: Exchange) -> None:
    [one] = publications()
    event = {**one.event, "subject": 'Ü "100 %"'}
    async with rabbitmq_sink(exchange.url, exchange.name, binding="binary") as sink:
        assert await sink.publish([replace(one, event=event)]) == [Published()]
    [message] = await exchange.taken()
    assert message.content_type == "application/json"
    assert orjson.loads(message.body) == event["data"]
    attributes = ("specversion", "id", "source", "type", "subject", "time", "dataschema")
    assert message.headers == {
        "receiver-message-id": event["subject"],
        **{f"ce-{name}": event[name] for name in attributes},
    }


@pytest.mark.parametrize("binding", ["structured", "binary"])
async def test_replayed_event_is_marked(exchange: Exchange, binding: str) -> None:
    [one] = publications()
    async with rabbitmq_sink(exchange.url, exchange.name, binding=binding) as sink:
        await sink.publish([replace(one, replayed=True)])
        await sink.publish([one])
    replayed, live = await exchange.taken()
    assert replayed.headers["receiver-replayed"] == "true"
    assert "receiver-replayed" not in live.headers


async def test_a_traced_event_names_the_span_of_its_attempt(exchange: Exchange) -> None:
    [one] = publications()
    async with rabbitmq_sink(exchange.url, exchange.name) as sink:
        await sink.publish([replace(one, traceparent=TRACEPARENT)])
        await sink.publish([one])
    traced, plain = await exchange.taken()
    assert traced.headers["traceparent"] == TRACEPARENT
    assert "traceparent" not in plain.headers


async def test_through_the_default_exchange_it_reaches_a_queue_by_name(exchange: Exchange) -> None:
    batch = publications(3)
    async with rabbitmq_sink(exchange.url, "", routing_key=exchange.name) as sink:
        assert await sink.check() is None
        assert await sink.publish(batch) == [Published()] * 3
    assert event_ids(await exchange.taken()) == [one.id for one in batch]


async def test_a_quorum_queue_confirms_too(rabbitmq_url: str) -> None:
    batch = publications(50)
    async with an_exchange(rabbitmq_url, QUORUM) as exchange, rabbitmq_sink(rabbitmq_url, exchange.name) as sink:
        assert await sink.publish(batch) == [Published()] * 50
        assert sorted(event_ids(await exchange.taken())) == sorted(one.id for one in batch)


async def test_text_from_outside_adds_no_word_to_a_routing_key(exchange: Exchange) -> None:
    [one] = publications()
    event = {**one.event, "data": {**one.event["data"], "tag": "a.#.*\n"}}
    async with rabbitmq_sink(exchange.url, exchange.name, routing_key="sms.{type}.{tag}") as sink:
        assert await sink.publish([replace(one, event=event)]) == [Published()]
    [message] = await exchange.taken()
    assert message.routing_key == f"sms.{one.type}.a_____"


async def test_an_event_whose_routing_key_would_be_too_long_is_refused(exchange: Exchange) -> None:
    [one] = publications()
    event = {**one.event, "data": {**one.event["data"], "tag": "t" * 64}}
    async with rabbitmq_sink(exchange.url, exchange.name, routing_key="{tag}" * 4) as sink:
        assert await sink.publish([replace(one, event=event)]) == [
            Refused(reason="its routing key is longer than 255 bytes")
        ]


async def test_an_unroutable_event_is_a_failure(exchange: Exchange) -> None:
    batch = publications(3)
    keyed = [replace(one, type=word) for one, word in zip(batch, ("a", "b", "a"), strict=True)]
    name = random_name()
    made = await exchange.channel.declare_exchange(name, "topic", auto_delete=True)
    queue = await exchange.channel.get_queue(exchange.name)
    await queue.bind(made, "a")
    async with rabbitmq_sink(exchange.url, name) as sink:
        assert await sink.publish(keyed) == [Published(), Retry(reason="unroutable"), Published()]
        # The same connection is used on.
        assert await sink.publish(keyed[:1]) == [Published()]
    assert event_ids(await exchange.taken()) == [batch[0].id, batch[2].id, batch[0].id]
    await queue.unbind(made, "a")


async def test_an_event_for_a_queue_that_is_full_is_a_failure(rabbitmq_url: str) -> None:
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    async with an_exchange(rabbitmq_url, full) as exchange, rabbitmq_sink(rabbitmq_url, exchange.name) as sink:
        [first] = publications()
        assert await sink.publish([first]) == [Published()]
        assert await sink.publish(publications(2)) == [Retry(reason="not confirmed")] * 2
        assert event_ids(await exchange.taken()) == [first.id]
        assert await sink.publish(publications()) == [Published()]


async def test_missing_exchange_is_not_declared(exchange: Exchange) -> None:
    name = random_name()
    down = f"there is no exchange {name}"
    async with rabbitmq_sink(exchange.url, name) as sink:
        for _ in range(2):
            assert await sink.check() == down
            assert await sink.publish(publications(2)) == [SinkDown(reason=down)] * 2
        made = await exchange.channel.declare_exchange(name, "fanout", auto_delete=True)
        await (await exchange.channel.get_queue(exchange.name)).bind(made)
        assert await sink.check() is None
        assert await sink.publish(publications(2)) == [Published()] * 2


async def test_deleted_exchange_means_sink_down(exchange: Exchange) -> None:
    async with rabbitmq_sink(exchange.url, exchange.name) as sink:
        await sink.publish(publications())
        await exchange.channel.exchange_delete(exchange.name)
        down = [SinkDown(reason=f"there is no exchange {exchange.name}")]
        assert await sink.publish(publications(20)) == down * 20
        made = await exchange.channel.declare_exchange(exchange.name, "topic", durable=True)
        await (await exchange.channel.get_queue(exchange.name)).bind(made, "#")
        assert await sink.publish(publications(2)) == [Published()] * 2


async def test_forbidden_exchange_means_sink_down(exchange: Exchange) -> None:
    name = random_name()
    await exchange.channel.declare_exchange(name, "fanout", internal=True)
    async with rabbitmq_sink(exchange.url, name) as sink:
        down = [SinkDown(reason=f"not allowed to publish to exchange {name}")]
        assert await sink.publish(publications(20)) == down * 20
    await exchange.channel.exchange_delete(name)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"amqp://user:{CANARY}@127.0.0.1:{free_port()}/", "AMQPConnectionError: [Errno 111] Connect call failed"),
        (f"amqp://user:{CANARY}@nowhere.invalid/", "AMQPConnectionError: [Errno -"),
        ("{url}nowhere", "there is no such virtual host, or no access to it"),
        ("{wrong}", "ProbableAuthenticationError: ACCESS_REFUSED"),
        ("{tls}", "AMQPConnectionError: [Errno 1] [SSL"),
    ],
    ids=["refused", "unknown host", "virtual host", "password", "TLS"],
)
async def test_failed_authentication_means_sink_down(
    rabbitmq_url: str, caplog: pytest.LogCaptureFixture, url: str, reason: str
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = str(URL(rabbitmq_url).with_password(CANARY))
    address = url.format(url=rabbitmq_url, wrong=wrong, tls=wrong.replace("amqp://", "amqps://"))
    async with rabbitmq_sink(address, "sms") as sink:
        results = await sink.publish(publications(3))
        down = await sink.check()
    assert down is not None
    assert down.startswith(reason)
    assert results == [SinkDown(reason=down)] * 3
    assert CANARY not in caplog.text + down


@asynccontextmanager
async def behind_tls(exchange: Exchange, context: ssl.SSLContext) -> AsyncIterator[int]:
    """A port that speaks TLS, and forwards to the broker."""
    url, serving = URL(exchange.url), set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection(url.host, url.port)
        with suppress(OSError):
            await asyncio.gather(pump(reader, to_there), pump(there, writer))

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.ensure_future(serve(reader, writer)))

    async with await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*serving)


async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while chunk := await source.read(65536):
        target.write(chunk)
        await target.drain()
    target.close()


async def test_certificates_are_verified(exchange: Exchange, tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    async with behind_tls(exchange, authority.server("localhost")) as port:
        url = str(URL(exchange.url).with_scheme("amqps").with_host("localhost").with_port(port))
        async with rabbitmq_sink(f"{url}?cafile={authority.file}", exchange.name) as sink:
            assert await sink.publish(publications(3)) == [Published()] * 3
        async with rabbitmq_sink(f"{url}?cafile={stranger.file}", exchange.name) as sink:
            [result] = await sink.publish(publications())
    assert isinstance(result, SinkDown)
    assert "CERTIFICATE_VERIFY_FAILED" in result.reason


async def test_message_text_is_not_logged(exchange: Exchange, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with rabbitmq_sink(exchange.url, exchange.name) as sink:
        assert await sink.publish(publications(text=CANARY)) == [Published()]
    assert CANARY not in caplog.text


async def test_it_can_be_stopped_and_started_again(exchange: Exchange) -> None:
    events = publications(2)
    async with rabbitmq_sink(exchange.url, exchange.name) as sink:
        for event in events:
            await sink.stop()
            await sink.stop()
            await sink.start()
            assert await sink.publish([event]) == [Published()]
    assert event_ids(await exchange.taken()) == [event.id for event in events]


@asynccontextmanager
async def behind_a_proxy(exchange: Exchange, **fields: Any) -> AsyncIterator[tuple[Any, Proxy]]:
    url = URL(exchange.url)
    async with (
        proxy(url.host or "", url.port or 5672) as between,
        rabbitmq_sink(between_url(exchange, between), exchange.name, **fields) as sink,
    ):
        yield sink, between


def between_url(exchange: Exchange, between: Proxy) -> str:
    return str(URL(exchange.url).with_host("127.0.0.1").with_port(between.port))


async def test_broken_connection_is_reopened(exchange: Exchange) -> None:
    before = of_the_client()
    async with behind_a_proxy(exchange) as (sink, between):
        await sink.publish(publications())
        between.cut()
        await eventually(lambda: of_the_client() <= before)
        assert await sink.publish(publications(3)) == [Published()] * 3


async def test_a_broker_that_left_is_found_again(exchange: Exchange) -> None:
    async with behind_a_proxy(exchange) as (sink, between):
        await sink.publish(publications())
        await between.refuse()
        [result] = await sink.publish(publications())
        assert isinstance(result, SinkDown)
        await between.forward()
        await recovers(sink, publications(3))


async def test_broker_without_an_answer_means_sink_down_in_time(exchange: Exchange) -> None:
    before = of_the_client()
    async with behind_a_proxy(exchange, timeout="0.5s") as (sink, between):
        await sink.publish(publications())
        await between.blackhole()
        for _ in range(2):
            results = await asyncio.wait_for(sink.publish(publications(10)), 0.5 + 15)
            assert results == [SinkDown(reason="timeout")] * 10
        await eventually(lambda: of_the_client() <= before)
        await between.forward()
        await recovers(sink, publications())


async def test_cancelled_publish_leaves_nothing_behind(exchange: Exchange) -> None:
    before = of_the_client()
    async with behind_a_proxy(exchange) as (sink, between):
        await sink.publish(publications())
        await between.blackhole()
        given_up = [publication_of_size(1_000_000) for _ in range(40)]
        publishing = asyncio.create_task(sink.publish(given_up))
        await asyncio.sleep(0.2)  # for it to be under way
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(publishing, 30)
        await eventually(lambda: of_the_client() <= before)
        await between.forward()
        await recovers(sink, publications())


@on_sqlite
async def test_everything_arrives_in_the_order_of_each_message(exchange: Exchange, database: Database) -> None:
    log = await append(database, messages(100))
    async with dispatching(database, configured(exchange.url, exchange.name)) as outcomes:
        await eventually(lambda: outcomes.of["ops"]["published"] == len(log))
    assert audit(log, event_ids(await exchange.taken())) == 0


async def it_fails(outcomes: Outcomes) -> None:
    """Waits until an attempt has just failed: then nothing is under way that a returning broker could still answer."""
    failed = outcomes.of["ops"]["sink_down"]
    await eventually(lambda: outcomes.of["ops"]["sink_down"] > failed)


@on_sqlite
async def test_a_broker_that_is_down_at_the_start_is_waited_for(exchange: Exchange, database: Database) -> None:
    log = await append(database, messages(20))
    async with behind_a_proxy(exchange) as (_, between):
        await between.refuse()
        sink = configured(between_url(exchange, between), exchange.name)
        async with dispatching(database, sink) as outcomes:
            await it_fails(outcomes)
            await between.forward()
            await eventually(lambda: outcomes.of["ops"]["published"] == len(log))
    assert set(outcomes.of["ops"]) == {"sink_down", "published"}
    assert audit(log, event_ids(await exchange.taken())) == 0


@pytest.mark.faults
@on_sqlite
@pytest.mark.parametrize("leave", ["refuse", "blackhole"])
async def test_a_broker_that_leaves_under_load_costs_no_event_and_no_order(
    exchange: Exchange, database: Database, leave: str
) -> None:
    neighbour = memory_sink("neighbour")
    taken: Any = neighbour.sink
    await append(database, messages(100))
    async with behind_a_proxy(exchange) as (_, between):
        sink = configured(between_url(exchange, between), exchange.name, timeout="3s")
        async with dispatching(database, sink, neighbour) as outcomes:
            await eventually(lambda: outcomes.of["ops"]["published"] > 100)
            await getattr(between, leave)()
            await append(database, messages(100, prefix="new"))
            log = await whole_log(database)
            await eventually(lambda: len(taken.published) == len(log))
            await it_fails(outcomes)
            await between.forward()
            await eventually(lambda: outcomes.of["ops"]["published"] == len(log))
    assert set(outcomes.of["ops"]) == {"sink_down", "published"}
    # Events under way at the outage may arrive twice; events that were retried since must not.
    assert audit(log, event_ids(await exchange.taken())) <= sink.sink.max_batch


@on_sqlite
async def test_a_connection_that_breaks_again_and_again_costs_no_event_and_no_order(
    exchange: Exchange, database: Database
) -> None:
    log = await append(database, messages(100))
    async with behind_a_proxy(exchange) as (_, between):
        sink = configured(between_url(exchange, between), exchange.name, schedule=["1s"])
        async with dispatching(database, sink) as outcomes:
            for part in (1, 2, 3):
                await eventually(lambda: outcomes.of["ops"]["published"] >= part * len(log) // 4)  # noqa: B023
                between.cut()
            await eventually(lambda: outcomes.of["ops"]["published"] == len(log))
    audit(log, event_ids(await exchange.taken()))


@pytest.mark.faults
@on_sqlite
@pytest.mark.parametrize(("leave", "return_"), [("kill", "start"), ("freeze", "thaw")])
async def test_a_node_that_dies_or_freezes_under_load_costs_no_event_and_no_order(
    database: Database, tmp_path: Path, leave: str, return_: str
) -> None:
    await append(database, messages(100))
    with OwnRabbitmq(tmp_path) as server:
        async with a_channel(server.url) as channel:
            await laid_out(channel, "sms", QUORUM)
        # A node stores a queue some seconds after its declaration, or when it stops.
        server.stop()
        server.start()
        sink = configured(server.url, "sms", schedule=["1s"], timeout="5s")
        async with dispatching(database, sink) as outcomes:
            await eventually(lambda: outcomes.of["ops"]["published"] > 100)
            getattr(server, leave)()
            await append(database, messages(50, prefix="new"))
            await eventually(lambda: outcomes.of["ops"]["sink_down"] > 0)
            await asyncio.to_thread(getattr(server, return_))
            log = await whole_log(database)
            await eventually(lambda: outcomes.of["ops"]["published"] == len(log), seconds=180)
        async with a_channel(server.url) as channel:
            audit(log, event_ids(await emptied(channel, "sms")))


@pytest.mark.faults
async def test_what_was_written_but_not_sent_is_discarded(tmp_path: Path) -> None:
    before = of_the_client()
    # More than all buffers on the way hold.
    given_up = [publication_of_size(1_000_000) for _ in range(64)]
    with OwnRabbitmq(tmp_path) as server:
        async with a_channel(server.url) as channel:
            await laid_out(channel, "sms")
        async with rabbitmq_sink(server.url, "sms", timeout="1s") as sink:
            await sink.publish(publications())
            server.freeze()
            results = await asyncio.wait_for(sink.publish(given_up), 1 + 15)
            assert results == [SinkDown(reason="timeout")] * len(given_up)
            await eventually(lambda: of_the_client() <= before)
            server.thaw()
            await recovers(sink, publications())
        async with a_channel(server.url) as channel:
            assert given_up[-1].id not in event_ids(await emptied(channel, "sms"))


@pytest.mark.faults
@on_sqlite
async def test_what_is_too_large_for_the_broker_is_a_dead_letter_and_its_message_goes_on(
    database: Database, tmp_path: Path
) -> None:
    [small], large = publications(), publication_of_size(30_000)
    with OwnRabbitmq(tmp_path, "max_message_size = 20000\n") as server:
        async with an_exchange(server.url) as exchange:
            async with rabbitmq_sink(server.url, exchange.name) as sink:
                results = await sink.publish([small, large])
                assert results[1] == Retry(reason="ChannelPreconditionFailed")
                assert await sink.publish([large]) == [Refused(reason="too large for the broker")]
                assert await sink.publish([small]) == [Published()]
            await exchange.taken()
            events = [
                structs.replace(one, description="x" * 30_000 * (number == 1)) for number, one in enumerate(life("m"))
            ]
            log = await append(database, events)
            async with dispatching(database, configured(server.url, exchange.name)) as outcomes:
                await eventually(lambda: outcomes.of["ops"]["published"] == len(log) - 1)
            assert audit([log[0], *log[2:]], event_ids(await exchange.taken())) == 0
    [letter] = (await dead_letters.find(database)).items
    assert (letter.event_id, letter.reason) == (log[1].event.id, "refused")
    assert letter.detail == "too large for the broker"


@pytest.mark.faults
async def test_a_broker_that_is_short_of_memory_is_down_until_it_is_not(tmp_path: Path) -> None:
    given_up = publications(3)
    with OwnRabbitmq(tmp_path) as server:
        async with an_exchange(server.url) as exchange, rabbitmq_sink(server.url, exchange.name, timeout="10s") as sink:
            await sink.publish(publications())
            await asyncio.to_thread(control, server, "set_vm_memory_high_watermark", "0.0000001")
            down = [SinkDown(reason="the broker blocks those who publish")]
            assert await sink.publish(given_up) == down * 3
            # Nothing more is written to the connection.
            assert await asyncio.wait_for(sink.publish(publications()), 5) == down
            await asyncio.to_thread(control, server, "set_vm_memory_high_watermark", "0.4")
            await recovers(sink, given_up)
            assert len(await exchange.taken()) <= 1 + 2 * len(given_up)


@pytest.mark.faults
async def test_it_can_be_stopped_while_it_is_blocked(tmp_path: Path) -> None:
    before = of_the_client()
    # More than all buffers on the way hold.
    given_up = [publication_of_size(1_000_000) for _ in range(64)]
    with OwnRabbitmq(tmp_path, "vm_memory_high_watermark.absolute = 1\n") as server:
        async with a_channel(server.url) as channel:
            await laid_out(channel, "sms")
        async with rabbitmq_sink(server.url, "sms", timeout="1s") as sink:
            down = [SinkDown(reason="the broker blocks those who publish")]
            assert await sink.publish(given_up) == down * len(given_up)
            await asyncio.wait_for(sink.stop(), 1 + 15)
            await eventually(lambda: of_the_client() <= before)


def control(server: OwnRabbitmq, *words: str) -> None:
    """Runs the command-line tool of the node."""
    environment = {name: value for name, value in (server._environment or {}).items() if name != "ERL_AFLAGS"}
    subprocess.run(["/usr/lib/rabbitmq/bin/rabbitmqctl", *words], env=environment, check=True, capture_output=True)


def messages(count: int, prefix: str = "m") -> list[Any]:
    """The events of several messages, interleaved."""
    lives = [life(f"{prefix}{number}") for number in range(count)]
    return [event for together in zip(*lives, strict=True) for event in together]
