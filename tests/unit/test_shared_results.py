"""Results that visitors share: one read for all, an error for those who wait, and nobody cancels it for others."""

import asyncio

import pytest

from receiver.pages import shared as module
from receiver.pages.shared import SharedResults
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


class Reading:
    """Counts how often it was read; waits until it may end."""

    def __init__(self) -> None:
        self.times = 0
        self.may_end = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.times += 1
        await self.may_end.wait()
        if self.error is not None:
            raise self.error
        return self.times


async def test_visitors_at_the_same_time_share_one_result() -> None:
    shared, reading = SharedResults(), Reading()
    waiting = [asyncio.create_task(shared.get("numbers", 60, reading)) for _ in range(10)]
    await asyncio.sleep(0)
    reading.may_end.set()
    assert await asyncio.gather(*waiting) == [1] * 10
    assert await shared.get("numbers", 60, reading) == 1
    assert await shared.get("others", 60, reading) == 2


async def test_an_old_result_is_read_again() -> None:
    shared, reading = SharedResults(), Reading()
    reading.may_end.set()
    assert await shared.get("numbers", 60, reading) == 1
    await asyncio.sleep(0.01)
    assert await shared.get("numbers", 0.001, reading) == 2


async def test_an_error_is_not_shared_with_those_who_come_later() -> None:
    shared, reading = SharedResults(), Reading()
    reading.may_end.set()
    reading.error = ConnectionError("down")
    with pytest.raises(ConnectionError):
        await shared.get("numbers", 60, reading)
    reading.error = None
    assert await shared.get("numbers", 60, reading) == 2


async def test_an_error_that_nobody_saw_is_shown_once() -> None:
    shared, reading = SharedResults(), Reading()
    reading.error = ConnectionError("down")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await shared.get("numbers", 0, reading)
    reading.may_end.set()
    await asyncio.sleep(0.01)
    with pytest.raises(ConnectionError):
        await shared.get("numbers", 0, reading)
    assert reading.times == 1
    reading.error = None
    assert await shared.get("numbers", 0, reading) == 2


async def test_who_did_not_wait_comes_back_for_the_result() -> None:
    shared, reading = SharedResults(), Reading()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await shared.get("numbers", 0, reading)
    coming_back = asyncio.create_task(shared.get("numbers", 0, reading))
    await asyncio.sleep(0.01)
    reading.may_end.set()
    assert await coming_back == 1
    # A result is not shared any longer than it may be.
    assert await shared.get("numbers", 0, reading) == 2
    # The result that nobody has seen is not read a second time, and not for others long after.
    reading.may_end.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await shared.get("others", 0, reading)
    reading.may_end.set()
    await asyncio.sleep(0.01)
    assert await shared.get("others", 0, reading) == 3
    assert await shared.get("others", 0, reading) == 4


async def test_an_earlier_value_is_shown_while_a_result_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, reading = SharedResults(), Reading()
    reading.may_end.set()
    assert await shared.get("numbers", 0, reading, stale_seconds=60) == 1
    reading.may_end.clear()
    for _ in range(3):
        assert await shared.get("numbers", 0, reading, stale_seconds=60) == 1
        await asyncio.sleep(0)
    assert reading.times == 2
    # What was read meanwhile is as fresh as if somebody had waited for it.
    monkeypatch.setattr(module, "_UNSEEN_SECONDS", 0.0)
    reading.may_end.set()
    await asyncio.sleep(0.01)
    assert await shared.get("numbers", 60, reading, stale_seconds=60) == 2
    assert reading.times == 2
    monkeypatch.undo()
    reading.may_end.clear()
    assert await shared.get("numbers", 0, reading, stale_seconds=60) == 2
    # An older one is not.
    await asyncio.sleep(0.01)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await shared.get("numbers", 0, reading, stale_seconds=0.001)
    reading.may_end.set()
    await asyncio.sleep(0.01)
    assert await shared.get("numbers", 60, reading, stale_seconds=60) == 3
    # A reading that fails is no value, and the one before it still is.
    reading.error = ConnectionError("down")
    with pytest.raises(ConnectionError):
        await shared.get("numbers", 0, reading)
    reading.error = None
    assert await shared.get("others", 0, reading, stale_seconds=60) == 5


async def test_what_nobody_waits_for_any_more_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_UNSEEN_SECONDS", 0.2)
    shared, reading, cancelled = SharedResults(), Reading(), []

    async def read() -> int:
        try:
            return await reading()
        except asyncio.CancelledError:
            cancelled.append(reading.times)
            raise

    async def look() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await shared.get("numbers", 0, read)

    for _ in range(4):
        # Who comes back in time finds the same reading.
        await look()
        await asyncio.sleep(0.1)
    assert (reading.times, cancelled) == (1, [])
    await eventually(lambda: cancelled == [1])
    reading.may_end.set()
    assert await shared.get("numbers", 0, read) == 2
    reading.may_end.clear()
    await look()
    await shared.close()
    assert cancelled == [1, 3]


async def test_a_visitor_who_leaves_cancels_nothing_for_others() -> None:
    shared, reading = SharedResults(), Reading()
    leaving = asyncio.create_task(shared.get("numbers", 60, reading))
    staying = asyncio.create_task(shared.get("numbers", 60, reading))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    reading.may_end.set()
    assert await staying == 1
