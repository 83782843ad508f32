"""Results that visitors share: one read for all, an error for those who wait, and nobody cancels it for others."""

import asyncio

import pytest

from receiver.pages.shared import SharedResults

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


async def test_a_visitor_who_leaves_cancels_nothing_for_others() -> None:
    shared, reading = SharedResults(), Reading()
    leaving = asyncio.create_task(shared.get("numbers", 60, reading))
    staying = asyncio.create_task(shared.get("numbers", 60, reading))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    reading.may_end.set()
    assert await staying == 1
