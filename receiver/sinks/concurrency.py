"""Publishing the events of a batch all at once, each with a deadline and a result of its own."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from receiver.domain.publication import Publication, Result, Retry, SinkDown

T = TypeVar("T")

CHECK_SECONDS: Final = 2.5


async def publish_each(
    batch: Sequence[Publication],
    publish_one: Callable[[Publication], Awaitable[Result]],
    *,
    seconds: float,
    check: Callable[[], Awaitable[str | None]],
) -> list[Result]:
    """One result for each event, in their order.

    What `publish_one` raises, a time-out after so many seconds included, is the event's fault where `check` then finds
    the sink in order, else the sink's. The text of an exception is not told: it may hold what was published.
    """
    tried = await asyncio.gather(*(_tried(publish_one, one, seconds) for one in batch))
    if not any(isinstance(one, Exception) for one in tried):
        return [one for one in tried if not isinstance(one, Exception)]
    down = await complaint(check)
    return [judged(one, down) if isinstance(one, Exception) else one for one in tried]


async def complaint(check: Callable[[], Awaitable[str | None]]) -> str | None:
    """Why a sink cannot be reached, as far as its check finds out in time; None if it can."""
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await said(check)
    except Exception as error:
        return named(error)


async def said(check: Callable[[], Awaitable[str | None]]) -> str | None:
    """What a check returns, in words."""
    told = await contained(check())
    return told if told is None or isinstance(told, str) else f"check returned a {type(told).__name__}"


class Escaped(Exception):
    """What a sink raised that is no Exception, such as SystemExit, or a cancellation that was not meant."""


async def contained(asked: Awaitable[T]) -> T:
    """What a sink gives. What it raises is an Exception, so that it ends nobody else's work."""
    try:
        return await asked
    except asyncio.CancelledError:
        if _is_cancelled():
            raise
        raise Escaped("CancelledError") from None
    except (Exception, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise Escaped(type(error).__name__) from None


def _is_cancelled() -> bool:
    """Whether it is us who are to stop, or the sink cancelled something of its own."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def judged(error: Exception, down: str | None) -> Result:
    """What an exception means, given what the sink's check said after it."""
    if down is not None:
        return SinkDown(reason=down)
    return Retry(reason=named(error), overloaded=isinstance(error, TimeoutError))


def named(error: Exception) -> str:
    if isinstance(error, Escaped):
        return str(error)
    return "timeout" if isinstance(error, TimeoutError) else type(error).__name__


async def _tried(
    publish_one: Callable[[Publication], Awaitable[Result]], publication: Publication, seconds: float
) -> Result | Exception:
    try:
        async with asyncio.timeout(seconds):
            return await publish_one(publication)
    except Exception as error:
        return error
