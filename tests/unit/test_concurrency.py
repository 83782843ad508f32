"""Tests publish_each: every event has its own timeout and its own result."""

import asyncio

import pytest

from receiver.domain.publication import Publication, Published, Refused, Result, Retry, SinkDown
from receiver.sinks.concurrency import publish_each
from tests.factories import make_publication

pytestmark = pytest.mark.anyio

BATCH = [make_publication(number) for number in range(1, 5)]


async def fine() -> str | None:
    return None


async def broken() -> str | None:
    return "connection refused"


async def failing() -> str | None:
    raise OSError("canary")


async def publish_one(publication: Publication) -> Result:
    match publication.id:
        case "e1":
            return Published()
        case "e2":
            raise ValueError("canary")
        case "e3":
            await asyncio.sleep(60)
    return Refused(reason="too large")


async def test_exception_with_a_passing_check_is_a_retry() -> None:
    assert await publish_each(BATCH, publish_one, seconds=0.05, check=fine) == [
        Published(),
        Retry(reason="ValueError"),
        Retry(reason="timeout", overloaded=True),
        Refused(reason="too large"),
    ]


@pytest.mark.parametrize(("check", "reason"), [(broken, "connection refused"), (failing, "OSError")])
async def test_exception_with_a_failing_check_means_sink_down(check: object, reason: str) -> None:
    down = SinkDown(reason=reason)
    results = await publish_each(BATCH, publish_one, seconds=0.05, check=check)  # type: ignore[arg-type]
    assert results == [Published(), down, down, Refused(reason="too large")]


async def test_check_is_not_called_without_an_exception() -> None:
    assert await publish_each(BATCH[:1], publish_one, seconds=1, check=failing) == [Published()]


async def test_cancellation_is_not_a_result() -> None:
    task = asyncio.create_task(publish_each(BATCH, publish_one, seconds=60, check=fine))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
