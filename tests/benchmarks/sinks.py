"""Events per second from the log to each sink, and the delay of a callback: `python -m tests.benchmarks.sinks`.

Each sink publishes to a real server on this machine. Its rate is measured over the first events of a log that already
exists: steady, with backlogs of several sizes, and beside 10,000 ordering keys that wait for a retry. The delay
is that of a `receiver serve` under low load, from the moment a callback is posted until its event is at a webhook or in
a file.
Prints the tables of `receiver/docs/speed.md`.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aio_pika
import httpx2
import nats
import uvloop
from sqlalchemy import update

from receiver.dispatch.dispatcher import Dispatchers
from receiver.dispatch.reader import Wakeup
from receiver.models.sinks import SINKS as SINK_ROWS
from receiver.sinks.registry import configure
from receiver.storage import schema, sinks
from receiver.storage.database import Database
from tests.benchmarks.filled_log import event_rows, message_rows, retry_rows, write
from tests.brokers.kafka import KafkaCluster
from tests.brokers.nats import nats_server
from tests.brokers.rabbitmq import rabbitmq_server
from tests.brokers.redis import redis_server
from tests.dispatching import Nobody, now
from tests.factories import v2_event
from tests.processes import serving
from tests.servers import named_database, on_postgres, postgres_server, random_name

SINKS = ("memory", "jsonl", "webhook", "nats", "kafka", "rabbitmq", "redis")
BLOCKED_ORDERING_KEYS = 10_000
MEASURED = 20_000
# The position in the log after all events of the blocked ordering keys
_FIRST = (BLOCKED_ORDERING_KEYS + 64) * 4
DEADLINE_SECONDS = 240.0
LOCAL = ["127.0.0.0/8"]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


class Hook(asyncio.Protocol):
    """A webhook that takes everything at once: it reads heads and lengths, and nothing else."""

    def __init__(self, arrived: Callable[[bytes], None]) -> None:
        self._arrived = arrived
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            if len(self._buffer) < end + 4 + length:
                return
            self._arrived(self._buffer[end + 4 : end + 4 + length])
            self._buffer = self._buffer[end + 4 + length :]
            self._transport.write(OK)


@asynccontextmanager
async def hook(arrived: Callable[[bytes], None] = lambda _: None) -> AsyncIterator[str]:
    server = await asyncio.get_running_loop().create_server(lambda: Hook(arrived), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()


@asynccontextmanager
async def table(kind: str, folder: Path) -> AsyncIterator[dict[str, Any]]:
    """The settings of a sink whose server is there, with a stream of its own that is removed afterwards."""
    name = random_name("bench")
    async with AsyncExitStack() as stack:
        match kind:
            case "memory":
                yield {}
            case "jsonl":
                yield {"path": str(folder / f"{name}.jsonl")}
            case "webhook":
                yield {"url": await stack.enter_async_context(hook()), "egress_allow": LOCAL}
            case "nats":
                url = await asyncio.to_thread(stack.enter_context, nats_server())
                client = await nats.connect(url)
                stack.push_async_callback(client.close)
                await client.jetstream().add_stream(name=name, subjects=[f"{name}.>"])
                stack.push_async_callback(client.jetstream().delete_stream, name)
                yield {"servers": [url], "stream": name, "subject": f"{name}.{{direction}}.{{type}}"}
            case "kafka":
                cluster = stack.enter_context(KafkaCluster())
                cluster.create_topic(name, partitions=4)
                yield {"bootstrap": [cluster.bootstrap], "topic": name}
            case "rabbitmq":
                url = await asyncio.to_thread(stack.enter_context, rabbitmq_server())
                connection = await aio_pika.connect(url)
                stack.push_async_callback(connection.close)
                channel = await connection.channel()
                queue = await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
                stack.push_async_callback(queue.delete, if_unused=False, if_empty=False)
                yield {"url": url, "exchange": "", "routing_key": name}
            case "redis":
                import redis.asyncio

                url = await asyncio.to_thread(stack.enter_context, redis_server())
                server = redis.asyncio.from_url(url)
                stack.push_async_callback(server.aclose)
                stack.push_async_callback(server.delete, name)
                yield {"url": url, "stream": name}


class Counted(Nobody):
    """Counts what was published."""

    published = 0

    def event_published(self, sink: str, seconds: float) -> None:
        self.published += 1


@contextmanager
def migrated(engine: str) -> Iterator[str]:
    """An empty database."""
    with ExitStack() as stack:
        if engine == "sqlite":
            url = f"sqlite:///{stack.enter_context(tempfile.TemporaryDirectory())}/receiver.db"
        else:
            server, name = stack.enter_context(postgres_server()), random_name()
            on_postgres(server, f"CREATE DATABASE {name}")
            stack.callback(on_postgres, server, f"DROP DATABASE {name} WITH (FORCE)")
            url = named_database(server, name)

        async def migrate() -> None:
            database = Database(url)
            await schema.migrate(database)
            await database.close()

        asyncio.run(migrate())
        yield url


async def rate(url: str, kind: str, fields: dict[str, Any], count: int, *, name: str | None = None) -> float:
    """Events per second of the first so many, the start of the sink included."""
    one = {"name": name or random_name("sink"), "type": kind, "start": "beginning"}
    database, counted = Database(url), Counted()
    dispatchers = Dispatchers(database, configure([{**one, **fields}]), clock=now, wakeup=Wakeup(), observer=counted)
    begun = time.perf_counter()
    await dispatchers.start()
    try:
        while counted.published < count:
            if time.perf_counter() - begun > DEADLINE_SECONDS:
                raise TimeoutError(f"{kind}: {counted.published} of {count} events")
            await asyncio.sleep(0.005)
        return counted.published / (time.perf_counter() - begun)
    finally:
        await dispatchers.stop()
        await database.close()


def rates(url: str, kinds: list[str], count: int, rounds: int) -> dict[str, float]:
    """The median rate of each sink, in turns."""

    async def measure(kind: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            async with table(kind, Path(folder)) as fields:
                return await rate(url, kind, fields, count)

    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind in kinds:
            found[kind].append(uvloop.run(measure(kind)))
    return {kind: statistics.median(values) for kind, values in found.items()}


def fill(url: str, count: int) -> None:
    write(url, "events", event_rows(count))
    write(url, "messages", message_rows(count))


def block(url: str, sink: str, ordering_keys: int) -> None:
    """A sink of which the first so many messages wait for a retry, and that goes on after them."""

    async def register() -> None:
        database = Database(url)
        await sinks.register(database, sink, start="beginning", fingerprint="")
        async with database.writing() as connection:
            await connection.execute(update(SINK_ROWS).values(cursor=_FIRST))
        await database.close()

    asyncio.run(register())
    write(url, "retries", retry_rows(sink, ordering_keys))


def backlogs(engine: str, sizes: list[int], rounds: int) -> Iterator[tuple[str, float]]:
    """The rate of the memory sink over the first events of backlogs of different sizes."""
    for size in sizes:
        with migrated(engine) as url:
            fill(url, size)
            yield f"{size:,} events", rates(url, ["memory"], min(size, MEASURED), rounds)["memory"]
    with migrated(engine) as url:
        fill(url, _FIRST + MEASURED)
        found = []
        for _ in range(rounds):
            name = random_name("sink")
            block(url, name, BLOCKED_ORDERING_KEYS)
            found.append(uvloop.run(rate(url, "memory", {}, MEASURED, name=name)))
        yield f"{BLOCKED_ORDERING_KEYS:,} blocked ordering keys", statistics.median(found)


def delays(posts: int, apart: float) -> dict[str, list[float]]:
    """Seconds from posting a callback until its event is at a webhook, and in a file."""

    async def measure(folder: Path) -> dict[str, list[float]]:
        arrived: dict[str, float] = {}
        path = folder / "events.jsonl"

        def note(body: bytes) -> None:
            arrived[json.loads(body)["subject"]] = time.perf_counter()

        async with hook(note) as url:
            (folder / "receiver.toml").write_text(
                'callback_credentials = ["a:b"]\napi_tokens = ["token"]\n'
                f'[[sinks]]\nname = "hook"\ntype = "webhook"\nurl = "{url}"\negress_allow = ["127.0.0.0/8"]\n'
                f'[[sinks]]\nname = "file"\ntype = "jsonl"\npath = "{path}"\n'
            )
            with serving(folder) as server:
                async with httpx2.AsyncClient(auth=("a", "b"), trust_env=False) as client:
                    return await _posted(client, f"{server.url}/callbacks/bandwidth/v2", path, arrived, posts, apart)

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "events.jsonl").touch()
        return uvloop.run(measure(Path(folder)))


async def _posted(
    client: httpx2.AsyncClient, url: str, path: Path, arrived: dict[str, float], posts: int, apart: float
) -> dict[str, list[float]]:
    sent: dict[str, float] = {}
    written: dict[str, float] = {}
    watching = asyncio.create_task(_watch(path, written))
    for number in range(posts):
        sent[f"m{number}"] = time.perf_counter()
        (await client.post(url, json=[v2_event(message_id=f"m{number}")])).raise_for_status()
        await asyncio.sleep(apart)
    deadline = time.perf_counter() + 10
    while len(arrived) < posts or len(written) < posts:
        if time.perf_counter() > deadline:
            raise TimeoutError("not every event arrived")
        await asyncio.sleep(0.01)
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    # the first ones meet connections and caches that are not there yet
    warm = list(sent)[posts // 10 :]
    return {
        "webhook": [arrived[one] - sent[one] for one in warm],
        "jsonl": [written[one] - sent[one] for one in warm],
    }


async def _watch(path: Path, written: dict[str, float]) -> None:
    """Looks into a file every millisecond."""
    rest = b""
    with path.open("rb") as file:
        while True:
            *lines, rest = (rest + file.read()).split(b"\n")
            for line in lines:
                written.setdefault(json.loads(line)["subject"], time.perf_counter())
            await asyncio.sleep(0.001)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sinks", nargs="*", default=list(SINKS), choices=SINKS)
    parser.add_argument("--engines", nargs="*", default=["sqlite", "postgresql"], choices=["sqlite", "postgresql"])
    parser.add_argument("--backlogs", nargs="*", type=int, default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--posts", type=int, default=300, help="callbacks for the delay")
    chosen = parser.parse_args()
    for engine in chosen.engines:
        if chosen.sinks:
            with migrated(engine) as url:
                fill(url, MEASURED)
                for kind, found in rates(url, chosen.sinks, MEASURED, chosen.rounds).items():
                    print(f"| {kind} | {engine} | {found:,.0f} |", flush=True)
        for what, found in backlogs(engine, chosen.backlogs, chosen.rounds) if chosen.backlogs else ():
            print(f"| {what} | {engine} | {found:,.0f} |", flush=True)
    if chosen.posts:
        for kind, seconds in delays(chosen.posts, apart=0.05).items():
            parts = statistics.quantiles(seconds, n=100)
            print(f"| callback to {kind} | p50 {parts[49] * 1000:.1f} ms | p99 {parts[98] * 1000:.1f} ms |")


if __name__ == "__main__":
    main()
