"""A server killed at any moment under load: every callback answered 200 is kept, once, and reaches the sink."""

import asyncio
import json
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from receiver.domain.delivery import FinalConflict
from receiver.storage.database import Database
from receiver.storage.rebuild import Rebuild
from tests.posts import v2_event
from tests.running import serving

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

ROUNDS = 18
CONNECTIONS = 24
STORY = ("message-sending", "message-delivered", "message-failed", "message-delivered")
SETTINGS = {
    "CALLBACK_CREDENTIALS": '["u:p"]',
    "API_TOKENS": '["token"]',
    "SINKS": json.dumps([{"name": "file", "type": "jsonl", "path": "events.jsonl", "start": "beginning"}]),
}


def posts(message_id: str) -> list[list[dict[str, Any]]]:
    """The callbacks of a message's life, shuffled: one event each, one of them twice, one array of two."""
    group = {"to": ["+15550001", "+15550002"]}
    events = [
        v2_event(message_id, kind, time=f"2026-01-01T00:00:0{place}Z", message=group)
        for place, kind in enumerate(STORY)
    ]
    bodies = [[events[0]], [events[1]], events[2:4], [events[1]]]
    random.shuffle(bodies)
    return bodies


class Load:
    """Posts without pause and remembers which events were answered 200."""

    def __init__(self) -> None:
        self.acknowledged: set[tuple[str, str, str]] = set()
        self.answers: Counter[int] = Counter()

    async def post(self, client: httpx2.AsyncClient, name: str) -> None:
        for number in range(10_000):
            for body in posts(f"{name}-{number}"):
                try:
                    answer = await client.post("/callbacks/bandwidth/v2", json=body)
                except httpx2.TransportError:
                    return
                self.answers[answer.status_code] += 1
                if answer.status_code == 200:
                    self.acknowledged |= {(one["message"]["id"], one["type"], one["time"]) for one in body}


async def under_load(url: str, load: Load, name: str, seconds: float, kill: Any) -> None:
    limits = httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    async with httpx2.AsyncClient(base_url=url, auth=("u", "p"), limits=limits, trust_env=False) as client:
        loads = [asyncio.create_task(load.post(client, f"{name}-{n}")) for n in range(CONNECTIONS)]
        await asyncio.sleep(seconds)
        kill()
        await asyncio.gather(*loads)


async def audit(url: str, load: Load) -> set[str]:
    """Checks ledger and status table; returns the ids of all events in the log."""
    database = Database(url)
    async with database.reading() as connection:
        events = list(await connection.scalars(text("SELECT id FROM events")))
        bodies = list(await connection.scalars(text("SELECT body FROM callbacks")))
    rebuilt = await Rebuild(database, FinalConflict.FAILED_WINS, writes=False).run()
    await database.close()
    ledger = {(one["message"]["id"], one["type"], one["time"]) for body in bodies for one in json.loads(bytes(body))}
    assert load.acknowledged <= ledger
    assert len(events) == len(set(events)) == len(ledger)
    assert (rebuilt.differing, rebuilt.messages) == (0, len({message for message, _, _ in ledger}))
    return set(events)


async def let_the_lease_lapse(url: str) -> None:
    """Spares the test the minute after which another process may work for the sink of a killed one."""
    database = Database(url)
    async with database.writing() as connection:
        await connection.execute(text("UPDATE sinks SET lease_until = NULL"))
    await database.close()


def published(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


async def test_every_callback_answered_200_survives_kill_9(database_url: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, "DATABASE_URL": database_url}
    load = Load()
    for round_ in range(ROUNDS):
        with serving(tmp_path, settings=settings) as server:
            await under_load(server.url, load, f"r{round_}", random.uniform(0.05, 0.5), server.process.kill)
    assert load.acknowledged
    await let_the_lease_lapse(database_url)
    with serving(tmp_path, settings=settings) as server:
        events = await audit(database_url, load)
        deadline = time.monotonic() + 90
        while {one["id"] for one in published(tmp_path / "events.jsonl")} != events:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        assert server.stop() == 0
    assert_order(published(tmp_path / "events.jsonl"))


def assert_order(events: list[dict[str, Any]]) -> None:
    """First copies of a message's events come in the order of their sequence."""
    seen: set[str] = set()
    last: dict[str, int] = {}
    for event in events:
        if event["id"] not in seen:
            seen.add(event["id"])
            sequence = event["data"]["sequence"]
            assert sequence > last.get(event["subject"], 0)
            last[event["subject"]] = sequence


async def test_sigterm_under_load_drops_nothing_that_was_accepted(database_url: str, tmp_path: Path) -> None:
    load = Load()
    with serving(tmp_path, settings={**SETTINGS, "DATABASE_URL": database_url}) as server:
        await under_load(server.url, load, "term", 0.5, lambda: server.process.send_signal(signal.SIGTERM))
        assert server.process.wait(15) == 0
    assert load.acknowledged
    assert set(load.answers) <= {200, 503}
    await audit(database_url, load)
