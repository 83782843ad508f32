"""A server killed at any moment under load: every callback answered 200 is kept, once, and reaches the sink."""

import asyncio
import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.load import Load, audit, let_the_lease_lapse, published
from tests.running import serving

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

ROUNDS = 18
SETTINGS = {
    "CALLBACK_CREDENTIALS": '["u:p"]',
    "API_TOKENS": '["token"]',
    "SINKS": json.dumps([{"name": "file", "type": "jsonl", "path": "events.jsonl", "start": "beginning"}]),
}


async def test_every_callback_answered_200_survives_kill_9(database_url: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, "DATABASE_URL": database_url}
    load = Load()
    for round_ in range(ROUNDS):
        with serving(tmp_path, settings=settings) as server:
            async with load.on(server.url, f"r{round_}"):
                await asyncio.sleep(random.uniform(0.05, 0.5))  # any moment
                server.process.kill()
    assert load.acknowledged
    await let_the_lease_lapse(database_url)
    with serving(tmp_path, settings=settings) as server:
        events = await audit(database_url, load)
        deadline = time.monotonic() + 300
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
        async with load.on(server.url, "term"):
            await asyncio.sleep(0.5)  # in the middle
            server.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.process.wait, 60) == 0
    assert load.acknowledged
    assert set(load.answers) <= {200, 503}
    await audit(database_url, load)
