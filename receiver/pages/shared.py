"""What many visitors look at at the same time is read from the database once, and not for each of them."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from anyio import CapacityLimiter, to_thread

Value = TypeVar("Value")

_MAX_RESULTS: Final = 100
# A visitor who does not wait comes back for the result, or for the error, within this time.
_UNSEEN_SECONDS: Final = 5.0


@dataclass(slots=True, kw_only=True)
class _Result:
    """A result that is read since `began`. `waiting` visitors wait for it; `is_seen`: a visitor got it.

    `earlier` is the value before it, and when its reading began.
    """

    began: float
    task: asyncio.Task[Any]
    earlier: tuple[float, Any] | None
    waiting: int = 0
    left_at: float = 0.0
    ended: float = 0.0
    is_seen: bool = False

    @property
    def is_good(self) -> bool:
        return self.task.done() and not _failed(self.task)

    def is_usable(self, now: float, seconds: float) -> bool:
        """Whether visitors may wait for this result, or get it: a value for so many seconds, what nobody saw once."""
        if self.task.cancelling() or self.task.cancelled():
            return False
        if not self.task.done() or (self.is_good and now - self.began <= seconds):
            return True
        return not self.is_seen and now - self.ended <= _UNSEEN_SECONDS


class SharedResults:
    """Results that all visitors of a web process share for some seconds, by name.

    `few` limits how many readings that take long run at once: callbacks need connections to the database, too.
    """

    def __init__(self) -> None:
        self._results: dict[str, _Result] = {}
        self._thread = CapacityLimiter(1)
        self.few = asyncio.Semaphore(2)

    async def in_thread(self, work: Callable[[], Value]) -> Value:
        """The result of work that takes long, done in a thread: one at a time, for all threads share the processor."""
        return await to_thread.run_sync(work, limiter=self._thread)

    async def get(
        self, name: str, seconds: float, read: Callable[[], Awaitable[Value]], *, stale_seconds: float = 0
    ) -> Value:
        """The result of `read`, begun at most so many seconds ago; visitors who come meanwhile wait for the same one.

        While a result is read again, visitors get the value before it if that is at most `stale_seconds` old. A visitor
        who stops waiting may come back for the result; if nobody does, the reading is cancelled.
        """
        now = asyncio.get_running_loop().time()
        result = self._results.get(name)
        if result is None or not result.is_usable(now, seconds):
            result = self._begin(name, now, read, result if stale_seconds else None)
        if result.earlier is not None and not result.task.done() and now - result.earlier[0] <= stale_seconds:
            earlier: Value = result.earlier[1]
            return earlier
        value: Value = await self._wait(result)
        return value

    async def close(self) -> None:
        """Cancels what is still read, before the database is closed."""
        tasks = [result.task for result in self._results.values()]
        self._results.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, name: str, now: float, read: Callable[[], Awaitable[Any]], before: _Result | None) -> _Result:
        earlier = before.earlier if before is not None else None
        if before is not None and before.is_good:
            earlier = before.began, before.task.result()
        if len(self._results) >= _MAX_RESULTS:
            self._results = {name: each for name, each in self._results.items() if not each.task.done()}
        result = _Result(began=now, task=asyncio.create_task(_awaited(read)), earlier=earlier)

        def end(task: asyncio.Task[Any]) -> None:
            result.ended = asyncio.get_running_loop().time()
            # Without anybody who waits the error would be logged as never retrieved.
            _failed(task)

        result.task.add_done_callback(end)
        self._results[name] = result
        return result

    async def _wait(self, result: _Result) -> Any:
        loop = asyncio.get_running_loop()
        result.waiting += 1
        try:
            # A visitor who leaves must not cancel what others wait for.
            value = await asyncio.shield(result.task)
        except Exception:
            result.is_seen = True
            raise
        finally:
            result.waiting -= 1
            result.left_at = loop.time()
            if not result.task.done():
                loop.call_later(_UNSEEN_SECONDS, _give_up, result)
        result.is_seen = True
        return value


async def _awaited(read: Callable[[], Awaitable[Value]]) -> Value:
    return await read()


def _give_up(result: _Result) -> None:
    """Cancels a reading for which nobody has waited for some time."""
    now = asyncio.get_running_loop().time()
    # The loop rounds times up to its resolution.
    if not result.waiting and now - result.left_at > _UNSEEN_SECONDS - 0.1:
        result.task.cancel()


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
