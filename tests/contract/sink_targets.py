"""The targets of the built-in sinks in the conformance tests: real servers behind a proxy that cuts or freezes them."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, TextIO
from urllib.parse import urlsplit, urlunsplit

import aio_pika
import orjson
import pytest
from aio_pika.abc import AbstractIncomingMessage
from nats import connect
from nats.aio.msg import Msg
from redis.asyncio import Redis

from receiver.domain.publication import Publication, Published, Refused, Result
from receiver.sinks.base import SinkSettings
from receiver.sinks.memory import MemorySink
from receiver.testing import SinkTarget
from tests.brokers.kafka import KafkaCluster
from tests.fault_servers import Proxy, fault_server, proxy
from tests.servers import random_name

STANDARD_PORTS = {"amqp": 5672, "nats": 4222, "redis": 6379}


class SharedMemorySink(MemorySink):
    """A memory sink whose events outlive the object."""

    stored: ClassVar[list[Publication]] = []
    refused: ClassVar[set[str]] = set()

    def __init__(self, settings: SinkSettings) -> None:
        super().__init__(settings)
        self.published = self.stored
        self.answer = lambda event: Refused(reason="refused by the test") if event.id in self.refused else Published()


@contextmanager
def memory() -> Iterator[SinkTarget]:
    yield SinkTarget(
        settings={"type": f"{__name__}:SharedMemorySink"},
        arrived=lambda: [event.id for event in SharedMemorySink.stored],
        refuse=lambda event: SharedMemorySink.refused.add(event.id),
    )
    SharedMemorySink.stored.clear()
    SharedMemorySink.refused.clear()


class Functions:
    """Functions that keep the events of the sink `python`."""

    stored: ClassVar[list[str]] = []
    refused: ClassVar[set[str]] = set()
    open_: ClassVar[threading.Event] = threading.Event()

    @classmethod
    def plain(cls, event: dict[str, Any]) -> Result:
        cls.open_.wait()
        return cls._take(event)

    @classmethod
    async def asynchronous(cls, event: dict[str, Any]) -> Result:
        while not cls.open_.is_set():
            await asyncio.sleep(0.01)
        return cls._take(event)

    @classmethod
    def _take(cls, event: dict[str, Any]) -> Result:
        if event["id"] in cls.refused:
            return Refused(reason="refused by the test")
        cls.stored.append(event["id"])
        return Published()


@contextmanager
def python(function: str) -> Iterator[SinkTarget]:
    Functions.open_.set()
    yield SinkTarget(
        settings={"type": "python", "target": f"{__name__}:Functions.{function}", "concurrency": 4},
        arrived=lambda: Functions.stored,
        freeze=Functions.open_.clear,
        thaw=Functions.open_.set,
        refuse=lambda event: Functions.refused.add(event.id),
    )
    Functions.open_.set()
    Functions.stored.clear()
    Functions.refused.clear()


@contextmanager
def jsonl(directory: Path) -> Iterator[SinkTarget]:
    """A file in a directory that is renamed to take the target down."""
    current, away = directory / "current", directory / "away"
    current.mkdir()
    path = current / "events.jsonl"
    yield SinkTarget(
        settings={"type": "jsonl", "path": str(path)},
        arrived=lambda: ids(path.read_bytes()) if path.exists() else [],
        down=lambda: current.rename(away),
        up=lambda: away.rename(current),
    )


class Output:
    """Standard output for a sink, read through a pipe; pytest captures the real one."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.read = bytearray()
        self._patch = patch
        self._loop = asyncio.get_running_loop()
        self._reader, self._writer = pipe()
        unread, self._broken = pipe()
        os.close(unread)
        self.mend()
        self.thaw()

    def cut(self) -> None:
        """From now on, prints go to a pipe without a reader; what was printed before is still read."""
        self._print_to(self._broken)

    def mend(self) -> None:
        self._print_to(self._writer)

    def freeze(self) -> None:
        self._loop.remove_reader(self._reader)

    def thaw(self) -> None:
        self._loop.add_reader(self._reader, self._more)

    def close(self) -> None:
        self.freeze()
        os.close(self._reader)
        self._writer.close()
        self._broken.close()

    def _print_to(self, writer: TextIO) -> None:
        self._patch.setattr("receiver.sinks.file.sys", SimpleNamespace(stdout=writer))

    def _more(self) -> None:
        self.read += os.read(self._reader, 1 << 20)


def pipe() -> tuple[int, TextIO]:
    reader, writer = os.pipe()
    return reader, os.fdopen(writer, "w")


@asynccontextmanager
async def stdout(patch: pytest.MonkeyPatch) -> AsyncIterator[SinkTarget]:
    output = Output(patch)
    yield SinkTarget(
        settings={"type": "stdout"},
        arrived=lambda: ids(output.read),
        down=output.cut,
        up=output.mend,
        freeze=output.freeze,
        thaw=output.thaw,
    )
    output.close()


@asynccontextmanager
async def webhook() -> AsyncIterator[SinkTarget]:
    async with fault_server() as server, proxy("127.0.0.1", server.port) as between:
        yield SinkTarget(
            settings={
                "type": "webhook",
                "url": f"http://127.0.0.1:{between.port}/200",
                "egress_allow": ["127.0.0.0/8"],
            },
            arrived=lambda: [
                id_
                for request in server.requests
                if (id_ := request.headers.get("webhook-id")) and id_ not in server.refused
            ],
            **faults(between),
            refuse=lambda event: server.refused.add(event.id),
        )


@asynccontextmanager
async def nats(url: str) -> AsyncIterator[SinkTarget]:
    """A stream of this test on the shared server."""
    name, arrived = random_name(), []

    async def take(message: Msg) -> None:
        arrived.append(orjson.loads(message.data)["id"])

    client = await connect(url)
    try:
        streams = client.jetstream(timeout=30)
        await streams.add_stream(name=name, subjects=[f"{name}.>"])
        await streams.subscribe(f"{name}.>", ordered_consumer=True, cb=take)
        async with in_front_of(url) as between:
            yield SinkTarget(
                settings={
                    "type": "nats",
                    "servers": [by_way_of(between, url)],
                    "subject": f"{name}.{{type}}",
                },
                arrived=lambda: arrived,
                **faults(between),
            )
        await streams.delete_stream(name)
    finally:
        await client.close()


@asynccontextmanager
async def redis(url: str) -> AsyncIterator[SinkTarget]:
    """A stream of this test on the shared server."""
    name, client = random_name(), Redis.from_url(url)

    async def arrived() -> list[str]:
        return [fields[b"id"].decode() for _, fields in await client.xrange(name)]

    try:
        async with in_front_of(url) as between:
            yield SinkTarget(
                settings={"type": "redis", "url": by_way_of(between, url), "stream": name},
                arrived=arrived,
                **faults(between),
            )
        await client.delete(name)
    finally:
        await client.aclose()


@asynccontextmanager
async def rabbitmq(url: str) -> AsyncIterator[SinkTarget]:
    """An exchange and a queue of this test on the shared server."""
    name, arrived = random_name(), []

    async def take(message: AbstractIncomingMessage) -> None:
        arrived.append(message.message_id or "")

    client = await aio_pika.connect(url)
    try:
        channel = await client.channel()
        exchange = await channel.declare_exchange(name, aio_pika.ExchangeType.TOPIC, auto_delete=True)
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(exchange, "#")
        await queue.consume(take, no_ack=True)
        async with in_front_of(url) as between:
            yield SinkTarget(
                settings={"type": "rabbitmq", "url": by_way_of(between, url), "exchange": name},
                arrived=lambda: arrived,
                **faults(between),
            )
    finally:
        await client.close()


@asynccontextmanager
async def kafka() -> AsyncIterator[SinkTarget]:
    """A cluster of this test: clients connect to the addresses it advertises, so a proxy would be bypassed."""
    with KafkaCluster() as cluster:
        cluster.create_topic("events")

        async def arrived() -> list[str]:
            records = await asyncio.to_thread(cluster.records, "events")
            return [(record.headers["receiver-event-id"] or b"").decode() for record in records]

        yield SinkTarget(
            settings={"type": "kafka", "bootstrap": [cluster.bootstrap], "topic": "events"},
            arrived=arrived,
            down=cluster.down,
            up=cluster.up,
            freeze=cluster.freeze,
            thaw=cluster.thaw,
        )


def in_front_of(url: str) -> AbstractAsyncContextManager[Proxy]:
    """A proxy to the server of a URL."""
    parts = urlsplit(url)
    return proxy(parts.hostname or "", parts.port or STANDARD_PORTS[parts.scheme])


def by_way_of(between: Proxy, url: str) -> str:
    """The URL of the same server, reached through a proxy."""
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{between.port}"))


def faults(between: Proxy) -> dict[str, Any]:
    """The faults that a proxy can cause for a target."""
    return {"down": between.refuse, "up": between.forward, "freeze": between.blackhole, "thaw": between.forward}


def ids(lines: bytes | bytearray) -> list[str]:
    """The ids in lines of JSON, without an incomplete last line."""
    return [orjson.loads(line)["id"] for line in bytes(lines).splitlines(keepends=True) if line.endswith(b"\n")]
