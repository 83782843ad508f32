"""Waits for a sink with a timeout, and detects a blocked event loop."""

import asyncio
import inspect
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

import pytest

T = TypeVar("T")

_POLL_SECONDS: Final = 0.02
_CANCEL_SECONDS: Final = 3.0
_QUELL_SECONDS: Final = 1.0
_BEAT_SECONDS: Final = 0.05
_CHECK_SECONDS: Final = 0.3
# After how many checks in a row that find the loop blocked the test fails, and the blocking call is interrupted.
_CHECKS_TO_FAIL: Final = 2
_CHECKS_TO_INTERRUPT: Final = 10
_BLOCKS: Final = "the sink blocks the event loop, on which everything else runs: await, or use a thread"


async def eventually(condition: Callable[[], Any], *, seconds: float, what: str) -> None:
    """Waits until a condition holds, which may be async; fails the test with `what` after `seconds`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        holds = condition()
        if await holds if inspect.isawaitable(holds) else holds:
            return
        if loop.time() > deadline:
            pytest.fail(f"within {seconds:g} s it did not happen that {what}")
        await asyncio.sleep(_POLL_SECONDS)


async def within(awaitable: Awaitable[T], *, seconds: float, what: str) -> T:
    """Awaits a call and returns its result; fails the test if it does not end by itself within `seconds`."""
    task = asyncio.ensure_future(awaitable)
    await asyncio.wait({task}, timeout=seconds)
    if not task.done():
        await end(task, what)
        pytest.fail(f"{what} took longer than {seconds:g} s")
    return task.result()


async def given_time(awaitable: Awaitable[T], *, seconds: float, what: str) -> T | Exception:
    """Awaits a call and returns its result or exception; after `seconds` it is cancelled, as the dispatcher does."""
    task = asyncio.ensure_future(awaitable)
    await asyncio.wait({task}, timeout=seconds)
    if not task.done():
        await end(task, what)
        return TimeoutError()
    try:
        return task.result()
    except Exception as error:
        return error


async def end(task: asyncio.Future[Any], what: str) -> None:
    """Cancels a task; fails the test if it does not end."""
    task.cancel()
    await asyncio.wait({task}, timeout=_CANCEL_SECONDS)
    if not task.done():
        await quell({task})
        pytest.fail(f"{what} goes on after it was cancelled")


async def quell(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Ends tasks, also those that ignore their cancellation: they would hang pytest at the end of the test."""
    for _ in range(2):
        for task in tasks:
            task.cancel()
        if tasks:
            _, tasks = await asyncio.wait(tasks, timeout=_QUELL_SECONDS)
        for task in tasks:
            if isinstance(task, asyncio.Task) and (coroutine := task.get_coro()) is not None:
                with suppress(RuntimeError):
                    coroutine.close()


@asynccontextmanager
async def responsive() -> AsyncIterator[None]:
    """Fails the test if the sink blocks the event loop, on which intake and all other sinks run too.

    The handler of a timer signal checks whether the loop has run since the last check. A process that merely waits for
    its CPU does not run the handler either. Outside of the main thread, or when SIGALRM is in use, nothing is checked.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGALRM) is not _UNUSED:
        yield
        return
    watch = _Watch()
    signal.signal(signal.SIGALRM, watch.check)
    signal.setitimer(signal.ITIMER_REAL, _CHECK_SECONDS, _CHECK_SECONDS)
    beating = asyncio.create_task(watch.beat())
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, _UNUSED)
        beating.cancel()
    if watch.worst >= _CHECKS_TO_FAIL:
        pytest.fail(
            f"the sink blocks the event loop for {watch.worst * _CHECK_SECONDS:.1f} s and more; await, or use a thread"
        )


_UNUSED: Final = signal.SIG_DFL


class _Watch:
    """Counts how many checks in a row found the event loop blocked."""

    def __init__(self) -> None:
        self.worst = 0
        self._blocked = 0

    async def beat(self) -> None:
        while True:
            self._blocked = 0
            await asyncio.sleep(_BEAT_SECONDS)

    def check(self, *_: object) -> None:
        self._blocked += 1
        # One says that there was no beat before this check; two say that there was none since the last check.
        self.worst = max(self.worst, self._blocked - 1)
        if self._blocked > _CHECKS_TO_INTERRUPT:
            pytest.fail(_BLOCKS)
