"""Waiting for an event, but not for ever."""

import asyncio

import pytest

from receiver.waiting import wait_for

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("seconds", [0.01, 0, -1, float("-inf")])
async def test_wait_ends_after_its_time(seconds: float) -> None:
    event = asyncio.Event()
    async with asyncio.timeout(45):
        await wait_for(event, seconds)
    assert not event.is_set()


@pytest.mark.parametrize("seconds", [600, None])
async def test_wait_ends_with_the_event(seconds: float | None) -> None:
    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)
    async with asyncio.timeout(45):
        await wait_for(event, seconds)
    assert event.is_set()


async def test_timeout_around_a_wait_is_not_swallowed() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await wait_for(asyncio.Event(), 600)
