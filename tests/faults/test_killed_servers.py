"""Web process, worker or both killed at any moment under load: every callback answered 200 is processed once."""

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import text

from receiver.storage.database import Database
from tests.faults.audit import arrive, audit, audit_sink, drained
from tests.faults.load import Load, children, is_gone, let_the_lease_lapse, published, worker_of
from tests.processes import Server, receiver, serving, until
from tests.servers import random_name

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

ROUNDS = int(os.environ.get("RECEIVER_TEST_KILLS", "8"))
GIVEN = {"CALLBACK_CREDENTIALS": '["u:p"]', "API_TOKENS": '["token"]'}
FILE = {"name": "file", "type": "jsonl", "path": "events.jsonl", "start": "beginning"}
SETTINGS = {**GIVEN, "SINKS": json.dumps([FILE])}


class Hook:
    """A webhook that keeps what is posted to it."""

    def __init__(self) -> None:
        self.arrived: list[dict[str, Any]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.arrived.append(json.loads(await reader.readexactly(length)))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def webhook() -> AsyncIterator[tuple[Hook, str]]:
    hook = Hook()
    server = await asyncio.start_server(hook.serve, "127.0.0.1", 0)
    try:
        yield hook, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()


class Stream:
    """A stream of the machine's Redis, by a name of its own."""

    def __init__(self, url: str) -> None:
        self.name = f"receiver-{random_name()}"
        self._client = redis.Redis.from_url(url)

    def arrived(self) -> list[dict[str, Any]]:
        return [json.loads(fields[b"event"]) for _, fields in self._client.xrange(self.name)]

    def close(self) -> None:
        self._client.delete(self.name)
        self._client.close()


@pytest.fixture
def stream(redis_url: str) -> Iterator[Stream]:
    stream = Stream(redis_url)
    yield stream
    stream.close()


async def any_moment(url: str) -> None:
    """Waits until the worker is at work, and a little more; now and then only for an instant, while it starts."""
    if random.random() < 0.8:
        before, deadline = await processed(url), time.monotonic() + 60
        while await processed(url) == before:
            assert time.monotonic() < deadline, "the worker processes nothing"
            await asyncio.sleep(0.05)
    await asyncio.sleep(random.uniform(0, 0.5))


async def processed(url: str) -> int:
    database = Database(url)
    async with database.reading() as connection:
        callbacks: int = (await connection.execute(text("SELECT callbacks FROM processor"))).scalar_one()
    await database.close()
    return callbacks


async def kill(server: Server, victim: str, database_url: str) -> None:
    """Kills one of the two processes or both, in any order."""
    worker = next(iter(children(server.process.pid)), None)
    victims = {"web": [server.process.pid], "worker": [worker], "both": [server.process.pid, worker]}[victim]
    random.shuffle(victims)
    for pid in victims:
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
    if victim != "worker":
        await asyncio.to_thread(server.process.wait)
    if victim != "web" and worker is not None:
        await asyncio.to_thread(until, lambda: is_gone(worker))
        if not database_url.startswith("sqlite"):
            await let_the_lease_lapse(database_url)


async def test_kill_9_at_any_moment_loses_nothing_and_repeats_nothing(
    database_url: str, redis_url: str, stream: Stream, tmp_path: Path
) -> None:
    load, kills, began = Load(), Counter[str](), time.monotonic()
    async with webhook() as (hook, url):
        settings = {**GIVEN, "DATABASE_URL": database_url, "SINKS": json.dumps(sinks(url, redis_url, stream.name))}
        while kills.total() < ROUNDS:
            with serving(tmp_path, settings=settings) as server:
                async with load.on(server.url, f"r{kills.total()}", connections=12, pause=0.02):
                    victim = "worker"
                    while victim == "worker" and kills.total() < ROUNDS:
                        await any_moment(database_url)
                        victim = random.choice(("web", "worker", "both"))
                        await kill(server, victim, database_url)
                        kills[victim] += 1
        assert load.acknowledged
        assert set(load.answers) <= {200, 503}
        with serving(tmp_path, settings=settings) as server:
            seconds = time.monotonic() - began
            await drained(database_url)
            events = await audit(database_url, load)
            arrived = {
                "file": lambda: published(tmp_path / "events.jsonl"),
                "hook": lambda: hook.arrived,
                "stream": stream.arrived,
            }
            for of_one in arrived.values():
                await arrive(of_one, events)
            assert await asyncio.to_thread(server.stop) == 0
        surplus = {name: audit_sink(of_one(), events) for name, of_one in arrived.items()}
    rebuilt = receiver(tmp_path, "rebuild", "--dry-run", "--json", **settings)
    assert json.loads(rebuilt.stdout)["differing"] == 0
    print(
        f"{dict(kills)} killed within {seconds:.0f} s; {load.answers[200]} callbacks answered 200, "
        f"{load.answers[503]} 503; {len(events)} events; copies beside the first: {surplus}"
    )


def sinks(hook: str, redis_url: str, stream: str) -> list[dict[str, Any]]:
    shared = {"start": "beginning", "timeout": "5s"}
    return [
        FILE,
        {"name": "hook", "type": "webhook", "url": hook, "egress_allow": ["127.0.0.0/8"], **shared},
        {"name": "stream", "type": "redis", "url": redis_url, "stream": stream, **shared},
    ]


@pytest.mark.parametrize(
    ("target", "number"),
    # Ctrl-C in a terminal reaches the web process alone, systemd's signal both.
    [("web process", signal.SIGINT), ("both processes", signal.SIGTERM)],
    ids=["SIGINT", "SIGTERM"],
)
async def test_sigterm_and_sigint_under_load_drop_nothing_that_was_accepted(
    database_url: str, tmp_path: Path, target: str, number: signal.Signals
) -> None:
    load = Load()
    with serving(tmp_path, settings={**SETTINGS, "DATABASE_URL": database_url}) as server:
        worker = worker_of(server)
        async with load.on(server.url, "term", connections=12):
            await asyncio.to_thread(until, lambda: (tmp_path / "events.jsonl").exists())  # in the middle of it
            for pid in (server.process.pid, worker) if target == "both processes" else (server.process.pid,):
                os.kill(pid, number)
            assert await asyncio.to_thread(server.process.wait, 60) == 0
        await asyncio.to_thread(until, lambda: is_gone(worker))
        assert_json_lines(server)
    assert load.acknowledged
    assert set(load.answers) <= {200, 503}
    # A worker that stops finishes its batch; how much is left for the next start depends on the load of the machine.
    with serving(tmp_path, settings={**SETTINGS, "DATABASE_URL": database_url}):
        events = await audit(database_url, load)
        await arrive(lambda: published(tmp_path / "events.jsonl"), events)


def assert_json_lines(server: Server) -> list[dict[str, Any]]:
    """Every line of the log is a whole object, and none is a traceback or says that something failed."""
    lines = [json.loads(line) for line in server.errors.read_text("utf-8").splitlines()]
    assert not [line for line in lines if line["level"] == "error" or "exception" in line]
    return lines
