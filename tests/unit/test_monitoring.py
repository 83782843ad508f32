"""The delay of the event loop, and the line of a minute."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from receiver import monitoring
from receiver.monitoring import Monitor
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


class Delays:
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def loop_delayed(self, seconds: float) -> None:
        self.seconds.append(seconds)


@asynccontextmanager
async def monitored(delays: Delays, totals: Counter[str], minute: float = 60) -> AsyncIterator[None]:
    monitor = Monitor(delays, message="callbacks came in", totals=lambda: totals, minute_seconds=minute)
    await monitor.start()
    try:
        yield
    finally:
        await monitor.stop()


async def test_line_of_a_minute_has_what_rose_and_is_left_out_when_nothing_did() -> None:
    totals = Counter(accepted=7)
    with capture_logs() as lines:
        async with monitored(Delays(), totals, minute=0.02):
            await eventually(lambda: not lines)
            totals.update({"accepted": 3, "full": 2})
            await eventually(lambda: lines)
            totals["accepted"] += 1
            await eventually(lambda: len(lines) == 2)
    assert [(line["event"], line.get("accepted"), line.get("full")) for line in lines] == [
        ("callbacks came in", 3, 2),
        ("callbacks came in", 1, None),
    ]


async def test_rest_of_a_minute_is_logged_at_the_stop() -> None:
    totals: Counter[str] = Counter()
    with capture_logs() as lines:
        async with monitored(Delays(), totals):
            totals["accepted"] += 1
    assert [line["accepted"] for line in lines] == [1]


async def test_event_loop_that_is_held_up_is_measured_and_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(monitoring, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(monitoring, "_LOOP_SECONDS", 0.01)
    delays = Delays()
    with capture_logs() as lines:
        async with monitored(delays, Counter()):
            await eventually(lambda: delays.seconds)
            assert max(delays.seconds) == 0
            # The timer that is running now is late by this.
            clock.now += 3.0
            await eventually(lambda: max(delays.seconds) >= 2.0)
    assert [line["event"] for line in lines] == ["the event loop was held up; nothing was answered meanwhile"]


async def test_check_that_fails_is_logged_and_called_again() -> None:
    calls = 0

    async def check() -> None:
        nonlocal calls
        calls += 1
        raise ValueError("broken")

    monitor = Monitor(Delays(), message="callbacks came in", totals=Counter, check=check, minute_seconds=0.01)
    with capture_logs() as lines:
        await monitor.start()
        await eventually(lambda: calls == 2)
        await monitor.stop()
    assert {line["event"] for line in lines} == {"a check of this process failed"}
