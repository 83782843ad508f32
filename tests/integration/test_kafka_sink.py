"""The Kafka sink against a cluster that speaks Kafka's protocol and fails on request."""

import asyncio
import logging
import ssl
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import KafkaError

from receiver.domain.publication import Publication, Published, Refused, Retry, SinkDown
from receiver.errors import SettingsError
from receiver.sinks.registry import ConfiguredSink, configure
from receiver.storage import dead_letters
from receiver.storage.database import Database
from receiver.testing.dispatch import publication_of_size, publications
from tests.brokers.kafka import INIT_PRODUCER_ID, PRODUCE, KafkaCluster, Record
from tests.brokers.own import free_port
from tests.dispatching import Outcomes, append, audit, dispatching, life, memory_sink, whole_log
from tests.factories import TRACEPARENT
from tests.servers import Authority, random_name
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

CANARY = "canary-4f1c"


def configured(cluster: KafkaCluster | str, topic: str = "events", **fields: Any) -> ConfiguredSink:
    bootstrap = cluster if isinstance(cluster, str) else cluster.bootstrap
    table = {"name": "lake", "type": "kafka", "bootstrap": [bootstrap], "topic": topic, "start": "beginning"}
    [one] = configure([{**table, "timeout": "10s", **fields}])
    return one


@asynccontextmanager
async def kafka_sink(cluster: KafkaCluster | str, topic: str = "events", **fields: Any) -> AsyncIterator[Any]:
    """A started sink. Checks at the end that none of its tasks is still running."""
    sink = configured(cluster, topic, **fields).sink
    await sink.start()
    try:
        yield sink
    finally:
        await sink.stop()
        assert of_the_client() == []


def of_the_client() -> list[object]:
    """The running tasks of the Kafka client, and the threads of its event loops."""
    tasks = [task for task in asyncio.all_tasks() if "/aiokafka/" in repr(task)]
    return [*tasks, *(thread for thread in threading.enumerate() if thread.name == "receiver-kafka")]


async def recovers(sink: Any, batch: Sequence[Publication]) -> None:
    """Publishes until every result is Published: a cluster that has just come back may take its time."""
    for _ in range(20):
        if await sink.publish(batch) == [Published()] * len(batch):
            return
    pytest.fail("it does not recover")


@pytest.fixture
def own() -> Iterator[KafkaCluster]:
    """A cluster with a topic for this test only, for faults."""
    with KafkaCluster() as cluster:
        cluster.create_topic("events")
        yield cluster


@pytest.fixture
def topic(kafka: KafkaCluster) -> str:
    name = random_name()
    kafka.create_topic(name)
    return name


def event_ids(records: list[Record]) -> list[str]:
    return [(record.headers["receiver-event-id"] or b"").decode() for record in records]


def port_of(cluster: KafkaCluster) -> int:
    return int(cluster.bootstrap.rpartition(":")[2])


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"bootstrap": []}, "bootstrap: "),
        ({"bootstrap": ["k1:9092", "kafka://k2"]}, 'bootstrap.1: must be "host:port"'),
        ({"bootstrap": ["k1:0"]}, 'bootstrap.0: must be "host:port"'),
        ({"bootstrap": [f"user:{CANARY}@k1:9092"]}, 'bootstrap.0: must be "host:port"'),
        ({"topic": "sms events"}, "topic: must be made of letters"),
        ({"topic": ""}, "topic: must be made of letters"),
        ({"topic": ".."}, "topic: must be made of letters"),
        ({"topic": "sms.{colour}"}, "topic: {colour} is not a field"),
        ({"topic": "sms.{type"}, "topic: has a brace"),
        ({"compression": "best"}, "compression: "),
        ({"max_request_size": 10}, "max_request_size: "),
        ({"binding": "batch"}, "binding: "),
        ({"colour": "red"}, "colour is not a field of this sink"),
        ({"security": {"protocol": "TLS"}}, "security.protocol: "),
        ({"security": {"protocol": "SASL_SSL"}}, "security: SASL_SSL needs mechanism, username and password"),
        ({"security": {"password": CANARY}}, "security: PLAINTEXT has no use for mechanism, username and password"),
        ({"security": {"ca_file": __file__}}, "security: PLAINTEXT has no use for ca_file"),
        ({"security": {"protocol": "SSL", "ca_file": "/nonexistent"}}, "security.ca_file: "),
        ({"security": {"protocol": "SSL", "ca_file": __file__}}, "security: the certificates cannot be used"),
        ({"security": {"protocol": "SSL", "key_file": __file__}}, "security: key_file needs cert_file"),
        ({"security": {"password": "env:THERE_IS_NONE"}}, "security.password: there is no environment variable"),
    ],
)
def test_invalid_settings_are_reported_in_one_line(fields: dict[str, Any], error: str) -> None:
    with pytest.raises(SettingsError) as raised:
        configure([{"name": "lake", "type": "kafka", "bootstrap": ["k1:9092"], **fields}])
    line = str(raised.value)
    assert line.startswith(f"RECEIVER_SINKS: lake: {error}")
    assert "\n" not in line
    assert CANARY not in line


@pytest.mark.parametrize("bootstrap", [["k1"], ["k1.example.com:9092", "10.0.0.1:9093"], ["[::1]:9092"]])
def test_brokers_are_named_in_any_usual_way(bootstrap: list[str]) -> None:
    [one] = configure([{"name": "lake", "type": "kafka", "bootstrap": bootstrap}])
    assert one.settings.model_dump()["topic"] == "sms-events"


async def test_a_record_is_keyed_by_its_message_and_holds_the_event(kafka: KafkaCluster, topic: str) -> None:
    batch = publications(20, messages=5)
    async with kafka_sink(kafka, topic) as sink:
        for one in batch:
            assert await sink.publish([one]) == [Published()]
    records = kafka.records(topic)
    assert sorted(event_ids(records)) == sorted(one.id for one in batch)
    by_id = {event.id: event for event in batch}
    for record in records:
        one = by_id[(record.headers["receiver-event-id"] or b"").decode()]
        assert (record.key, record.value) == (one.event["subject"].encode(), one.body)
        assert record.headers == {
            "content-type": b"application/cloudevents+json; charset=utf-8",
            "receiver-event-id": one.id.encode(),
        }
    assert len({(record.key, record.partition) for record in records}) == 5


async def test_in_binary_mode_the_attributes_are_headers(kafka: KafkaCluster, topic: str) -> None:
    [one] = publications()
    event = {**one.event, "subject": 'Ü "100 %"'}
    async with kafka_sink(kafka, topic, binding="binary") as sink:
        assert await sink.publish([replace(one, event=event)]) == [Published()]
    [record] = kafka.records(topic)
    assert orjson.loads(record.value or b"") == event["data"]
    attributes = ("specversion", "id", "source", "type", "subject", "time", "dataschema")
    assert record.headers == {
        "content-type": b"application/json",
        "receiver-event-id": one.id.encode(),
        **{f"ce_{name}": event[name].encode() for name in attributes},
    }


@pytest.mark.parametrize("binding", ["structured", "binary"])
async def test_replayed_event_is_marked(kafka: KafkaCluster, topic: str, binding: str) -> None:
    [one] = publications()
    async with kafka_sink(kafka, topic, binding=binding) as sink:
        await sink.publish([replace(one, replayed=True)])
        await sink.publish([one])
    replayed, live = kafka.records(topic)
    assert replayed.headers["receiver-replayed"] == b"true"
    assert "receiver-replayed" not in live.headers


async def test_a_traced_event_names_the_span_of_its_attempt(kafka: KafkaCluster, topic: str) -> None:
    [one] = publications()
    async with kafka_sink(kafka, topic) as sink:
        await sink.publish([replace(one, traceparent=TRACEPARENT, tracestate="vendor=1")])
        await sink.publish([one])
    traced, plain = kafka.records(topic)
    assert (traced.headers["traceparent"], traced.headers["tracestate"]) == (TRACEPARENT.encode(), b"vendor=1")
    assert "traceparent" not in plain.headers


async def test_compressed_records_arrive(kafka: KafkaCluster, topic: str) -> None:
    batch = publications(50)
    async with kafka_sink(kafka, topic, compression="gzip") as sink:
        assert await sink.publish(batch) == [Published()] * 50
    assert {record.value for record in kafka.records(topic)} == {one.body for one in batch}


async def test_text_from_outside_cannot_choose_another_topic(kafka: KafkaCluster) -> None:
    prefix = random_name()
    [one] = publications()
    event = {**one.event, "data": {**one.event["data"], "tag": "../x.*>\n"}}
    kafka.create_topic(f"{prefix}.{one.type}.___x____")
    async with kafka_sink(kafka, f"{prefix}.{{type}}.{{tag}}") as sink:
        assert await sink.publish([replace(one, event=event)]) == [Published()]
    assert event_ids(kafka.records(f"{prefix}.{one.type}.___x____")) == [one.id]


async def test_an_event_whose_topic_would_be_too_long_is_refused(kafka: KafkaCluster, topic: str) -> None:
    [one] = publications()
    event = {**one.event, "data": {**one.event["data"], "tag": "t" * 250}}
    async with kafka_sink(kafka, "{tag}" * 4) as sink:
        assert await sink.publish([replace(one, event=event)]) == [
            Refused(reason="the name of its topic is longer than 249 characters")
        ]


async def test_each_event_of_a_batch_has_its_own_result(kafka: KafkaCluster, topic: str) -> None:
    first, last = publications(2)
    large = publication_of_size(2 * 1024 * 1024)
    async with kafka_sink(kafka, topic) as sink:
        results = await sink.publish([first, large, last])
    assert results == [Published(), Refused(reason="too large for the topic or for max_request_size"), Published()]
    assert sorted(event_ids(kafka.records(topic))) == sorted([first.id, last.id])


async def test_the_largest_event_it_takes_fits_into_a_request(kafka: KafkaCluster, topic: str) -> None:
    async with kafka_sink(kafka, topic, max_request_size=100_000) as sink:
        largest = publication_of_size(sink.max_event_bytes)
        assert await sink.publish([largest]) == [Published()]


async def test_record_too_large_for_the_topic_is_refused_when_sent_alone(own: KafkaCluster) -> None:
    batch = publications(2)
    async with kafka_sink(own) as sink:
        await sink.publish(publications())
        own.push_errors(PRODUCE, [KafkaError.MSG_SIZE_TOO_LARGE])
        assert await sink.publish(batch[:1]) == [Refused(reason="too large for the topic or for max_request_size")]
        own.push_errors(PRODUCE, [KafkaError.MSG_SIZE_TOO_LARGE])
        # All with one key, so that they are sent as one record batch.
        together = [batch[0], replace(batch[1], event=batch[0].event)]
        assert await sink.publish(together) == [Retry(reason="too large together with others")] * 2
        assert await sink.publish(batch) == [Published()] * 2


@on_sqlite
async def test_an_event_too_large_is_a_dead_letter_and_its_message_goes_on(
    own: KafkaCluster, database: Database
) -> None:
    log = await append(database, life("m"))
    sink = configured(own)
    own.push_errors(PRODUCE, [KafkaError.MSG_SIZE_TOO_LARGE])
    async with dispatching(database, sink) as outcomes:
        await eventually(lambda: outcomes.of["lake"]["published"] == len(log) - 1)
    [letter] = (await dead_letters.find(database)).items
    assert (letter.event_id, letter.reason) == (log[0].event.id, "refused")
    assert letter.detail == "too large for the topic or for max_request_size"
    assert audit(log[1:], event_ids(own.records("events"))) == 0


async def test_too_few_replicas_are_waited_for(own: KafkaCluster) -> None:
    async with kafka_sink(own) as sink:
        await sink.publish(publications())
        own.push_errors(PRODUCE, [KafkaError.NOT_ENOUGH_REPLICAS, KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND])
        assert await sink.publish(publications()) == [Published()]


async def test_too_few_replicas_for_too_long_cost_an_attempt(own: KafkaCluster) -> None:
    # All with one key, and more than its partition is sent at once.
    batch = [replace(publication_of_size(40_000), event=event) for event in [publications()[0].event] * 3]
    async with kafka_sink(own, timeout="1s") as sink:
        await sink.publish(publications())
        own.push_errors(PRODUCE, [KafkaError.NOT_ENOUGH_REPLICAS] * 1000)
        assert await sink.publish(batch) == [Retry(reason="timeout", overloaded=True)] * 3
        own.clear_errors(PRODUCE)
        await recovers(sink, batch)


@pytest.mark.parametrize(
    "code", [KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.UNKNOWN_PRODUCER_ID]
)
async def test_a_producer_that_failed_a_record_is_replaced(own: KafkaCluster, code: int) -> None:
    async with kafka_sink(own) as sink:
        await sink.publish(publications())
        own.push_errors(PRODUCE, [code])
        [result] = await sink.publish(publications())
        assert isinstance(result, Retry)
        # Only a new producer requests an id.
        own.push_errors(INIT_PRODUCER_ID, [KafkaError.CLUSTER_AUTHORIZATION_FAILED])
        assert await sink.publish(publications()) == [SinkDown(reason="ClusterAuthorizationFailedError")]
        assert await sink.publish(publications()) == [Published()]
        own.push_errors(INIT_PRODUCER_ID, [KafkaError.CLUSTER_AUTHORIZATION_FAILED])
        assert await sink.publish(publications()) == [Published()]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (KafkaError.UNKNOWN_TOPIC_OR_PART, "there is no topic events"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "not authorized for topic events"),
    ],
)
@pytest.mark.parametrize("topic", ["events", "even{type}"])
async def test_missing_topic_means_sink_down(own: KafkaCluster, code: int, reason: str, topic: str) -> None:
    [one] = publications()
    one = replace(one, type="ts")
    own.set_topic_error("events", code)
    async with kafka_sink(own, topic, timeout="1s") as sink:
        assert await sink.check() == (reason if topic == "events" else None)
        assert await sink.publish([one]) == [SinkDown(reason=reason)]
        own.set_topic_error("events", 0)
        assert await sink.check() is None
        await recovers(sink, [one])


async def test_check_creates_no_topic(kafka: KafkaCluster) -> None:
    topic = random_name()
    async with kafka_sink(kafka, topic) as sink:
        for _ in range(2):
            assert await sink.check() == f"there is no topic {topic}"


@pytest.mark.parametrize(
    ("address", "reason"),
    [(f"127.0.0.1:{free_port()}", "ConnectionRefusedError"), ("nowhere.invalid:9092", "gaierror")],
    ids=["a port where nobody listens", "a name that is none"],
)
async def test_unreachable_broker_means_sink_down(address: str, reason: str) -> None:
    async with kafka_sink(address) as sink:
        results = await sink.publish(publications(3))
        down = await sink.check()
    assert down is not None
    assert down.startswith(reason)
    assert results == [SinkDown(reason=down)] * 3


async def test_one_broker_that_answers_is_enough(own: KafkaCluster) -> None:
    async with kafka_sink(own, bootstrap=[f"127.0.0.1:{free_port()}", own.bootstrap]) as sink:
        assert await sink.check() is None
        assert await sink.publish(publications()) == [Published()]


async def test_check_goes_on_after_one_broker_fails() -> None:
    with KafkaCluster(brokers=2) as cluster:
        cluster.create_topic("events", partitions=8)
        bootstrap = cluster.bootstrap.split(",")
        batch = publications(40)
        async with kafka_sink("", bootstrap=bootstrap, timeout="2s") as sink:
            await sink.publish(publications(40))
            cluster.down(2)
            results = await sink.publish(batch)
            cluster.up(2)
            await recovers(sink, publications(40))
        arrived = set(event_ids(cluster.records("events")))
    assert {type(result) for result in results} == {Published, Retry}
    assert all((one.id in arrived) == (result == Published()) for one, result in zip(batch, results, strict=True))


async def test_record_after_a_timeout_is_not_delivered_later(own: KafkaCluster) -> None:
    async with kafka_sink(own, timeout="1s") as sink:
        await sink.publish(publications(10))
        own.down()
        given_up = publications(10)
        results = await sink.publish(given_up)
        assert all(isinstance(result, SinkDown) for result in results)
        # The producer is closed, so nothing can deliver the record any more.
        assert of_the_client() == []
        own.up()
        await recovers(sink, publications())
    assert not {one.id for one in given_up} & set(event_ids(own.records("events")))


async def test_cancelled_publish_leaves_nothing_behind(own: KafkaCluster) -> None:
    own.create_topic("wide", partitions=32)
    # One request that is larger than all buffers on the way.
    given_up = [publication_of_size(1_000_000) for _ in range(48)]
    async with kafka_sink(own, "wide") as sink:
        await sink.publish(publications())
        own.freeze()
        publishing = asyncio.create_task(sink.publish(given_up))
        await asyncio.sleep(0.5)  # for it to be under way
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(publishing, 30)
        assert of_the_client() == []
        own.thaw()
        await recovers(sink, publications())
    assert not {one.id for one in given_up} & set(event_ids(own.records("wide")))


async def test_broker_without_an_answer_means_sink_down_in_time(own: KafkaCluster) -> None:
    async with kafka_sink(own, timeout="0.5s") as sink:
        await sink.publish(publications())
        own.freeze()
        for _ in range(2):
            results = await asyncio.wait_for(sink.publish(publications(10)), 0.5 + 10)
            assert results == [SinkDown(reason="timeout")] * 10
            assert of_the_client() == []
        own.thaw()
        await recovers(sink, publications())


async def test_cluster_without_a_producer_id_means_sink_down_in_time(own: KafkaCluster) -> None:
    async with kafka_sink(own, timeout="0.5s") as sink:
        own.push_errors(INIT_PRODUCER_ID, [KafkaError.COORDINATOR_LOAD_IN_PROGRESS] * 1000)
        results = await asyncio.wait_for(sink.publish(publications()), 0.5 + 10)
        assert results == [SinkDown(reason="timeout")]
        own.clear_errors(INIT_PRODUCER_ID)
        await recovers(sink, publications())


@on_sqlite
async def test_everything_arrives_in_the_order_of_each_message(
    kafka: KafkaCluster, topic: str, database: Database
) -> None:
    log = await append(database, messages(100))
    async with dispatching(database, configured(kafka, topic)) as outcomes:
        await eventually(lambda: outcomes.of["lake"]["published"] == len(log))
    assert audit(log, event_ids(kafka.records(topic))) == 0


async def it_fails(outcomes: Outcomes) -> None:
    """Waits until an attempt has just failed: then nothing is under way that a returning broker could still answer."""
    failed = outcomes.of["lake"]["sink_down"]
    await eventually(lambda: outcomes.of["lake"]["sink_down"] > failed)


@on_sqlite
async def test_a_cluster_that_is_down_at_the_start_is_waited_for(own: KafkaCluster, database: Database) -> None:
    own.down()
    log = await append(database, messages(20))
    async with dispatching(database, configured(own)) as outcomes:
        await it_fails(outcomes)
        own.up()
        await eventually(lambda: outcomes.of["lake"]["published"] == len(log))
    assert set(outcomes.of["lake"]) == {"sink_down", "published"}
    assert audit(log, event_ids(own.records("events"))) == 0


@pytest.mark.faults
@on_sqlite
@pytest.mark.parametrize(("leave", "return_"), [("down", "up"), ("freeze", "thaw")])
async def test_a_cluster_that_leaves_under_load_costs_no_event_and_no_order(
    own: KafkaCluster, database: Database, leave: str, return_: str
) -> None:
    neighbour = memory_sink("neighbour")
    taken: Any = neighbour.sink
    await append(database, messages(100))
    async with dispatching(database, configured(own, timeout="3s"), neighbour) as outcomes:
        await eventually(lambda: outcomes.of["lake"]["published"] > 100)
        getattr(own, leave)()
        await append(database, messages(100, prefix="new"))
        log = await whole_log(database)
        await eventually(lambda: len(taken.published) == len(log))
        await it_fails(outcomes)
        getattr(own, return_)()
        await eventually(lambda: outcomes.of["lake"]["published"] == len(log))
    assert set(outcomes.of["lake"]) == {"sink_down", "published"}
    # Events under way at the outage may arrive twice; events that were retried since must not.
    assert audit(log, event_ids(own.records("events"))) <= configured(own).sink.max_batch


class Gate:
    """A proxy in front of a cluster that requires TLS and SASL PLAIN with a user and password."""

    def __init__(self, cluster: KafkaCluster, context: ssl.SSLContext) -> None:
        self._cluster, self._context = cluster, context

    async def __aenter__(self) -> "Gate":
        self._serving: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        self._behind = port_of(self._cluster)
        self._cluster.advertise(self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.add(task := asyncio.ensure_future(self._serve(reader, writer)))
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection("127.0.0.1", self._behind)
        try:
            if await self._lets_in(reader, writer, there, to_there):
                await asyncio.gather(pump(reader, to_there), pump(there, writer))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            for one in (writer, to_there):
                one.close()

    async def _lets_in(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        there: asyncio.StreamReader,
        to_there: asyncio.StreamWriter,
    ) -> bool:
        to_there.write(sized(await frame(reader)))
        versions = await frame(there)
        count = int.from_bytes(versions[6:10]) + 2
        writer.write(sized(versions[:6] + count.to_bytes(4) + SASL_VERSIONS + versions[10:]))
        handshake = await frame(reader)
        writer.write(sized(handshake[4:8] + b"\0\0" + b"\0\0\0\1\0\5PLAIN"))
        attempt = await frame(reader)
        is_right = attempt.endswith(f"\0user\0{CANARY}".encode())
        writer.write(sized(attempt[4:8] + (b"\0\0" if is_right else b"\0\x3a") + b"\xff\xff" + b"\0\0\0\0"))
        return is_right


# the requests 17 and 36 in versions 0 to 1 and 0 to 0
SASL_VERSIONS = bytes([0, 17, 0, 0, 0, 1, 0, 36, 0, 0, 0, 0])


async def frame(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(4)))


def sized(content: bytes) -> bytes:
    return len(content).to_bytes(4) + content


async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while chunk := await source.read(65536):
        target.write(chunk)
        await target.drain()
    target.close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def security(authority: Authority, **fields: Any) -> dict[str, Any]:
    sasl = {"protocol": "SASL_SSL", "mechanism": "PLAIN", "username": "user", "password": CANARY}
    return {**sasl, "ca_file": str(authority.file), **fields}


async def test_tls_and_password_authenticate(own: KafkaCluster, authority: Authority) -> None:
    async with (
        Gate(own, authority.server("localhost,IP:127.0.0.1")) as gate,
        kafka_sink(f"localhost:{gate.port}", security=security(authority)) as sink,
    ):
        assert await sink.check() is None
        assert await sink.publish(publications()) == [Published()]
    own.advertise(gate._behind)
    assert len(own.records("events")) == 1


async def test_wrong_password_is_not_disclosed(
    own: KafkaCluster, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = f"wrong-{CANARY}"
    async with (
        Gate(own, authority.server("localhost")) as gate,
        kafka_sink(f"localhost:{gate.port}", security=security(authority, password=wrong)) as sink,
    ):
        results = await sink.publish(publications())
        assert results == [SinkDown(reason="SaslAuthenticationFailed")]
        assert await sink.check() == "SaslAuthenticationFailed"
    assert CANARY not in caplog.text + repr(results)


async def test_unknown_certificate_means_sink_down(own: KafkaCluster, authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    async with (
        Gate(own, authority.server("localhost")) as gate,
        kafka_sink(f"localhost:{gate.port}", security=security(stranger)) as sink,
    ):
        [result] = await sink.publish(publications())
    assert isinstance(result, SinkDown)
    assert "CERTIFICATE_VERIFY_FAILED" in result.reason


async def test_message_text_is_not_logged(kafka: KafkaCluster, topic: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with kafka_sink(kafka, topic) as sink:
        assert await sink.publish(publications(text=CANARY)) == [Published()]
    assert CANARY not in caplog.text


def messages(count: int, prefix: str = "m") -> list[Any]:
    """The events of several messages, interleaved."""
    lives = [life(f"{prefix}{number}") for number in range(count)]
    return [event for together in zip(*lives, strict=True) for event in together]
