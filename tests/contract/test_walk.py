"""How many modules of the package a v2 callback crosses: to its 200, and to a sink. The map of the code says so too."""

import asyncio
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx2
import pytest

from receiver.app import Receiver
from receiver.settings import Settings
from tests.factories import v2_event
from tests.pages import page
from tests.processes import PATIENT
from tests.web import serving

pytestmark = pytest.mark.anyio

PACKAGE = str(Path(__file__).resolve().parents[2] / "receiver")
MOST_TO_THE_ANSWER, MOST_TO_A_SINK = 10, 45
# What a worker does about once a second: on a busy machine beside each callback.
BESIDE = {
    *("alerts.evaluator", "alerts.notifier", "monitoring", "sinks.base", "storage.alerts", "storage.leases"),
    *("storage.notifications", "storage.replays", "storage.sinks"),
}


@contextmanager
def tracing() -> Iterator[set[str]]:
    """The modules whose functions are called, in this thread and in those that start in the block."""
    crossed: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE):
            crossed.add(file.removeprefix(f"{PACKAGE}/").removesuffix(".py").replace("/", "."))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield crossed
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


async def crossed(folder: Path, *, to_a_sink: bool) -> set[str]:
    file = folder / "events.jsonl"
    settings = Settings(
        database_url=f"sqlite:///{folder / 'receiver.db'}",
        callback_credentials=["u:p"],
        api_auth="none",
        metrics_auth="none",
        worker="inline" if to_a_sink else "none",
        sinks=[{"name": "file", "type": "jsonl", "path": str(file)}],
    )
    with tracing() as modules:
        async with (
            serving(Receiver(settings).app) as base,
            httpx2.AsyncClient(base_url=base, auth=("u", "p"), **PATIENT) as client,
        ):
            each: list[set[str]] = []
            for number in range(6):
                modules.clear()
                body = json.dumps([v2_event(f"m{number}")])
                assert (await client.post("/callbacks/bandwidth/v2", content=body)).status_code == 200
                async with asyncio.timeout(45):
                    while to_a_sink and (not file.exists() or len(file.read_bytes().splitlines()) <= number):
                        await asyncio.sleep(0.01)
                each.append(set(modules))
            # What runs beside some of them, such as retention, is no part of the way.
            # The first one makes what is made once: statements, connections.
            return set.intersection(*each[1:]) - BESIDE


async def test_callback_crosses_few_modules_to_its_answer_and_to_a_sink(tmp_path: Path) -> None:
    counts = []
    for to_a_sink, most in ((False, MOST_TO_THE_ANSWER), (True, MOST_TO_A_SINK)):
        folder = tmp_path / str(to_a_sink)
        folder.mkdir()
        modules = await crossed(folder, to_a_sink=to_a_sink)
        assert len(modules) <= most, sorted(modules)
        counts.append(len(modules))
    documented = re.search(r"crosses (\d+) modules to its 200 and about (\d+) to a sink", page("code"))
    assert documented
    assert int(documented[1]) == counts[0]
    assert abs(int(documented[2]) - counts[1]) <= 3
