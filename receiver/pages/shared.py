"""What many visitors look at at the same time is read from the database once, and not for each of them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from anyio import CapacityLimiter, to_thread

Value = TypeVar("Value")

_MAX_RESULTS: Final = 100


class SharedResults:
    """Results that all visitors of a web process share for some seconds, by name."""

    def __init__(self) -> None:
        self._results: dict[str, tuple[float, asyncio.Task[Any]]] = {}
        self._thread = CapacityLimiter(1)

    async def in_thread(self, work: Callable[[], Value]) -> Value:
        """The result of work that takes long, done in a thread: one at a time, for all threads share the processor."""
        return await to_thread.run_sync(work, limiter=self._thread)

    async def get(self, name: str, seconds: float, read: Callable[[], Awaitable[Value]]) -> Value:
        """The result of `read`, at most so many seconds old; visitors who come meanwhile wait for the same result."""
        now = asyncio.get_running_loop().time()
        began, task = self._results.get(name, (0.0, None))
        if task is None or now - began > seconds or _failed(task):
            if len(self._results) >= _MAX_RESULTS:
                self._results.clear()
            task = asyncio.create_task(_awaited(read))
            # Who waits sees the error; without anybody who waits it would be logged as never retrieved.
            task.add_done_callback(_failed)
            self._results[name] = (now, task)
        # A visitor who leaves must not cancel what others wait for.
        result: Value = await asyncio.shield(task)
        return result


async def _awaited(read: Callable[[], Awaitable[Value]]) -> Value:
    return await read()


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
