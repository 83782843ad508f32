"""`receiver serve` with brokers that are down, killed, frozen and restarted, and `receiver serve` killed itself."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import nats
import orjson
import pytest
import redis

from receiver.models.sinks import ATTEMPTS, DEAD_LETTERS
from receiver.storage.database import Database
from tests import dispatching
from tests.brokers.nats import OwnNats
from tests.brokers.redis import OwnRedis
from tests.dispatching import rows, whole_log
from tests.factories import v2_event
from tests.faults.audit import audit
from tests.faults.load import Load, let_the_lease_lapse, published
from tests.processes import PATIENT, Server, serving
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

STREAM = "events"
CONNECTIONS = 8
CLOSED, OPEN = 0, 2
HANGING_SECONDS = 3
_BREAKER = re.compile(r'^receiver_breaker_state\{sink="(\w+)"\} (\S+)$', re.MULTILINE)


class Destinations:
    """Two brokers and a file that events are published to."""

    def __init__(self, folder: Path, bus: OwnNats, cache: OwnRedis) -> None:
        self.bus, self.cache = bus, cache
        self.timeout_seconds = 10
        self.brokers = (bus, cache)
        self.file = folder / "events.jsonl"

    @property
    def sinks(self) -> list[dict[str, Any]]:
        shared = {"start": "beginning", "timeout": f"{self.timeout_seconds}s"}
        return [
            {"name": "bus", "type": "nats", "servers": [self.bus.url], **shared},
            {"name": "cache", "type": "redis", "url": self.cache.url, "stream": STREAM, **shared},
            {"name": "file", "type": "jsonl", "path": str(self.file), **shared},
        ]

    async def create_stream(self) -> None:
        async with self._jetstream() as server:
            await server.add_stream(name=STREAM, subjects=["sms.>"])

    async def arrived(self) -> dict[str, list[str]]:
        """The ids of the events in each destination, in its order."""
        return {"bus": await self._in_bus(), "cache": self._in_cache(), "file": self.in_file()}

    def in_file(self) -> list[str]:
        return [event["id"] for event in published(self.file)]

    async def _in_bus(self) -> list[str]:
        async with self._jetstream() as server:
            count = (await server.stream_info(STREAM)).state.messages
            messages = await server.subscribe("sms.>", ordered_consumer=True)
            return [orjson.loads((await messages.next_msg(timeout=45)).data)["id"] for _ in range(count)]

    def _in_cache(self) -> list[str]:
        with redis.Redis.from_url(self.cache.url, retry=None) as server:
            return [fields[b"id"].decode() for _, fields in server.xrange(STREAM)]

    @asynccontextmanager
    async def _jetstream(self) -> AsyncIterator[Any]:
        client = await nats.connect(self.bus.url, allow_reconnect=False)
        try:
            yield client.jetstream()
        finally:
            await client.close()


@pytest.fixture
async def destinations(tmp_path: Path) -> AsyncIterator[Destinations]:
    with OwnNats(tmp_path) as bus, OwnRedis(tmp_path) as cache:
        destinations = Destinations(tmp_path, bus, cache)
        await destinations.create_stream()
        yield destinations


@contextmanager
def publishing(folder: Path, url: str, destinations: Destinations) -> Iterator[Server]:
    settings = {
        "CALLBACK_CREDENTIALS": '["u:p"]',
        "API_TOKENS": '["token"]',
        "METRICS_AUTH": "none",
        "ALERTS_EVERY": "1s",
        "DATABASE_URL": url,
        "SINKS": json.dumps(destinations.sinks),
    }
    with serving(folder, settings=settings) as server:
        yield server


@asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=server.url, auth=("u", "p"), **PATIENT) as client:
        yield client


def breakers(server: Server, states: set[int], *names: str) -> Callable[[], Awaitable[bool]]:
    """Whether the breakers of these sinks are in one of these states."""

    async def are() -> bool:
        async with client_of(server) as client:
            breakers = {
                name: int(float(state)) for name, state in _BREAKER.findall((await client.get("/metrics")).text)
            }
        return all(breakers.get(name) in states for name in names)

    return are


async def everything_arrives(url: str, load: Load, destinations: Destinations) -> dict[str, int]:
    """Waits until every event of an accepted callback is in each destination, audits it, returns the surplus copies."""
    events = await audit(url, load)

    async def there() -> bool:
        return all(events == set(ids) for ids in (await destinations.arrived()).values())

    await eventually(there, seconds=180)
    database = Database(url)
    log, dead = await whole_log(database), await rows(database, DEAD_LETTERS)
    await database.close()
    assert dead == []
    return {name: dispatching.audit(log, ids) for name, ids in (await destinations.arrived()).items()}


async def attempts(url: str) -> list[Any]:
    """The failed attempts that were recorded."""
    database = Database(url)
    found = await rows(database, ATTEMPTS)
    await database.close()
    return found


@on_sqlite
async def test_brokers_that_are_down_at_the_start_stop_nothing(
    database_url: str, tmp_path: Path, destinations: Destinations
) -> None:
    for broker in destinations.brokers:
        broker.kill()
    load = Load()
    with publishing(tmp_path, database_url, destinations) as server:
        async with client_of(server) as client:
            async with load.on(server.url, "down", connections=CONNECTIONS):
                await eventually(breakers(server, {OPEN}, "bus", "cache"))
                assert (await client.get("/readyz")).status_code == 200
                await eventually(lambda: len(load.acknowledged) > 400)
            assert set(load.answers) == {200}
            assert (await client.get("/readyz")).status_code == 200
        for broker in destinations.brokers:
            broker.start()
        surplus = await everything_arrives(database_url, load, destinations)
        await eventually(breakers(server, {CLOSED}, "bus", "cache", "file"))
        assert server.stop() == 0
    print(f"{len(load.acknowledged)} events, surplus copies {surplus}")
    assert await attempts(database_url) == []


async def test_brokers_that_die_under_load_get_everything_when_they_are_back(
    database_url: str, tmp_path: Path, destinations: Destinations
) -> None:
    load = Load()
    with publishing(tmp_path, database_url, destinations) as server:
        async with load.on(server.url, "outage", connections=CONNECTIONS):
            await eventually(in_all(destinations, 50))
            for broker in destinations.brokers:
                broker.kill()
            await eventually(breakers(server, {OPEN}, "bus", "cache"))
            await asyncio.sleep(1)  # a backlog gathers
            for broker in destinations.brokers:
                broker.start()
            await eventually(breakers(server, {CLOSED}, "bus", "cache"))
        assert set(load.answers) == {200}
        surplus = await everything_arrives(database_url, load, destinations)
        await eventually(breakers(server, {CLOSED}, "bus", "cache", "file"))
        assert server.stop() == 0
    print(f"{len(load.acknowledged)} events, surplus copies {surplus}")
    assert await attempts(database_url) == []


def in_all(destinations: Destinations, count: int) -> Callable[[], Awaitable[bool]]:
    async def there() -> bool:
        return all(len(ids) >= count for ids in (await destinations.arrived()).values())

    return there


async def test_a_server_killed_under_load_goes_on_where_it_was(
    database_url: str, tmp_path: Path, destinations: Destinations
) -> None:
    load = Load()
    for round_ in range(2):
        await let_the_lease_lapse(database_url)
        with publishing(tmp_path, database_url, destinations) as server:
            async with load.on(server.url, f"round-{round_}", connections=CONNECTIONS):
                await eventually(in_all(destinations, 100 * (round_ + 1)))
                server.process.kill()
    await let_the_lease_lapse(database_url)
    with publishing(tmp_path, database_url, destinations) as server:
        surplus = await everything_arrives(database_url, load, destinations)
        assert server.stop() == 0
    print(f"{len(load.acknowledged)} events, 2 kills, surplus copies {surplus}")
    assert await attempts(database_url) == []


@on_sqlite
async def test_frozen_brokers_delay_no_other_sink(
    database_url: str, tmp_path: Path, destinations: Destinations
) -> None:
    load, delays = Load(), []
    destinations.timeout_seconds = HANGING_SECONDS
    with publishing(tmp_path, database_url, destinations) as server:
        async with client_of(server) as client:
            await taken(client, destinations, "warm")
            for broker in destinations.brokers:
                broker.freeze()
            began = time.monotonic()
            # Longer than an attempt may take, so that it includes timeouts and probes.
            while time.monotonic() < began + 2 * HANGING_SECONDS:
                delays.append(await taken(client, destinations, f"m{len(delays)}"))
            for name, broker in zip(("bus", "cache"), destinations.brokers, strict=True):
                # nothing is on its way then that would be answered after all, as an event that nobody else is like
                await eventually(breakers(server, {OPEN}, name))
                broker.thaw()
        await everything_arrives(database_url, load, destinations)
        assert server.stop() == 0
    print(f"{len(delays)} events beside frozen brokers, the slowest after {max(delays):.3f} s")
    assert max(delays) < HANGING_SECONDS
    assert await attempts(database_url) == []


async def taken(client: httpx2.AsyncClient, destinations: Destinations, message_id: str) -> float:
    """Posts a callback, waits for its event in the file, and returns the seconds between the two."""
    before, posted = destinations.file.stat().st_size if destinations.file.exists() else 0, time.monotonic()
    answer = await client.post("/callbacks/bandwidth/v2", json=[v2_event(message_id)])
    assert answer.status_code == 200
    while not destinations.file.exists() or destinations.file.stat().st_size == before:
        assert time.monotonic() < posted + 60
        await asyncio.sleep(0.002)
    return time.monotonic() - posted
