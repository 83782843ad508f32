"""What many visitors look at at the same time is read from the database once, and not for each of them."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from anyio import CapacityLimiter, to_thread

Value = TypeVar("Value")

_MAX_RESULTS: Final = 100


@dataclass(frozen=True, slots=True)
class _Result:
    """A result that is read since `began`, and the one before it, if that may be shown meanwhile."""

    began: float
    task: asyncio.Task[Any]
    before: asyncio.Task[Any] | None


class SharedResults:
    """Results that all visitors of a web process share for some seconds, by name."""

    def __init__(self) -> None:
        self._results: dict[str, _Result] = {}
        self._thread = CapacityLimiter(1)

    async def in_thread(self, work: Callable[[], Value]) -> Value:
        """The result of work that takes long, done in a thread: one at a time, for all threads share the processor."""
        return await to_thread.run_sync(work, limiter=self._thread)

    async def get(
        self, name: str, seconds: float, read: Callable[[], Awaitable[Value]], *, stale_seconds: float = 0
    ) -> Value:
        """The result of `read`, begun at most so many seconds ago; visitors who come meanwhile wait for the same one.

        While a result is read again, visitors get the one before it if that is at most `stale_seconds` old.
        """
        now = asyncio.get_running_loop().time()
        result = self._results.get(name)
        if result is None or (result.task.done() and now - result.began > seconds) or _failed(result.task):
            if len(self._results) >= _MAX_RESULTS:
                self._results.clear()
            task = asyncio.create_task(_awaited(read))
            # Who waits sees the error; without anybody who waits it would be logged as never retrieved.
            task.add_done_callback(_failed)
            is_good = result is not None and result.task.done() and not _failed(result.task)
            before = result.task if result is not None and is_good and now - result.began <= stale_seconds else None
            result = self._results[name] = _Result(now, task, before)
        if result.before is not None and not result.task.done():
            earlier: Value = result.before.result()
            return earlier
        # A visitor who leaves must not cancel what others wait for.
        value: Value = await asyncio.shield(result.task)
        return value


async def _awaited(read: Callable[[], Awaitable[Value]]) -> Value:
    return await read()


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
