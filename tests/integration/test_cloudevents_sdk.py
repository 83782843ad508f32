"""The CloudEvents SDK for Python reads every binding of every sink: what consumers will use."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import aio_pika
import nats
import orjson
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event
from cloudevents.core.bindings.rabbitmq import RabbitMQMessage, from_rabbitmq_event
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from redis.asyncio import Redis

from receiver.domain.publication import Publication, Published
from receiver.sinks.registry import configure
from tests.brokers.kafka import KafkaCluster
from tests.factories import make_publication
from tests.fault_servers import fault_server
from tests.servers import random_name

Publish = Callable[..., Awaitable[None]]

pytestmark = pytest.mark.anyio

EVENT = make_publication(messageId='Ü "100 %"', text="two\nlines Ü \u2028 🚀", tag="€")


@pytest.fixture(params=["structured", "binary"])
def binding(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=[False, True], ids=["new", "replayed"])
def publication(request: pytest.FixtureRequest) -> Publication:
    return replace(EVENT, replayed=request.param)


@pytest.fixture
def publish(binding: str, publication: Publication) -> Publish:
    async def publish(**table: Any) -> None:
        [configured] = configure([{"name": "tested", "timeout": "15s", "binding": binding, **table}])
        await configured.sink.start()
        try:
            [result] = await configured.sink.publish([publication])
            assert isinstance(result, Published)
        finally:
            await configured.sink.stop()

    return publish


def is_published(read: Any) -> None:
    """Fails unless the SDK has read the event as it was published."""
    expected = dict(EVENT.event)
    data = expected.pop("data")
    attributes = read.get_attributes()
    # the SDK's name for the key of a Kafka record
    attributes.pop("partitionkey", None)
    # the SDK takes the content type of the message for it
    assert attributes.pop("datacontenttype") == expected.pop("datacontenttype")
    assert attributes.pop("time") == datetime.fromisoformat(expected.pop("time"))
    assert attributes == expected
    assert read.get_data() == data


async def test_webhook(publish: Publish) -> None:
    async with fault_server() as server:
        await publish(type="webhook", url=server.url("/200"), egress_allow=["127.0.0.0/8"])
        [request] = server.requests
    is_published(from_http_event(HTTPMessage(headers=request.headers, body=request.body)))


async def test_nats(publish: Publish, nats_url: str) -> None:
    """NATS has the names of headers that HTTP has."""
    name, client = random_name(), await nats.connect(nats_url)
    try:
        streams = client.jetstream(timeout=30)
        await streams.add_stream(name=name, subjects=[f"{name}.>"])
        await publish(type="nats", servers=[nats_url], subject=f"{name}.{{type}}")
        message = await streams.get_msg(name, 1)
        await streams.delete_stream(name)
    finally:
        await client.close()
    is_published(from_http_event(HTTPMessage(headers=message.headers or {}, body=message.data or b"")))


async def test_kafka(publish: Publish, kafka: KafkaCluster) -> None:
    topic = random_name()
    kafka.create_topic(topic)
    await publish(type="kafka", bootstrap=[kafka.bootstrap], topic=topic)
    [record] = kafka.records(topic)
    headers = {name: value or b"" for name, value in record.headers.items()}
    is_published(from_kafka_event(KafkaMessage(headers=headers, key=record.key, value=record.value or b"")))


async def test_rabbitmq(publish: Publish, rabbitmq_url: str) -> None:
    async with await aio_pika.connect(rabbitmq_url) as connection, connection.channel() as channel:
        queue = await channel.declare_queue(exclusive=True)
        await publish(type="rabbitmq", url=rabbitmq_url, exchange="", routing_key=queue.name)
        message = await queue.get(no_ack=True)
    headers = {name: str(value) for name, value in message.headers.items()}
    read = RabbitMQMessage(headers=headers, content_type=message.content_type, body=message.body)
    is_published(from_rabbitmq_event(read))


async def test_redis(publish: Publish, redis_url: str, binding: str) -> None:
    """There is no binding for Redis: the SDK reads the field `event`, or is given the fields."""
    stream, client = random_name(), Redis.from_url(redis_url)
    try:
        await publish(type="redis", url=redis_url, stream=stream)
        [(_, fields)] = await client.xrange(stream)
        await client.delete(stream)
    finally:
        await client.aclose()
    if binding == "structured":
        is_published(JSONFormat().read(None, fields[b"event"]))
        return
    values = {name.decode(): value.decode() for name, value in fields.items()}
    values.pop("receiver-replayed", None)
    data = orjson.loads(values.pop("data"))
    is_published(CloudEvent({**values, "time": datetime.fromisoformat(values["time"])}, data))


async def test_jsonl(publication: Publication, tmp_path: Path) -> None:
    [configured] = configure([{"name": "file", "type": "jsonl", "path": str(tmp_path / "events.jsonl")}])
    await configured.sink.start()
    await configured.sink.publish([publication])
    await configured.sink.stop()
    is_published(JSONFormat().read(None, (tmp_path / "events.jsonl").read_bytes()))
