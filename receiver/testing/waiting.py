"""Waiting for what a sink does, never for ever."""

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
_SECONDS_TO_OBEY: Final = 3.0
_SECONDS_TO_QUELL: Final = 1.0
_BEAT_SECONDS: Final = 0.05
_LOOK_SECONDS: Final = 0.3
# how often in a row the loop is found standing before that counts, and before what blocks it is interrupted
_LOOKS_TO_FAIL: Final = 2
_LOOKS_TO_INTERRUPT: Final = 10
_BLOCKS: Final = "it blocks the event loop, where everything else runs: await, or use a thread"


async def eventually(condition: Callable[[], Any], *, seconds: float, what: str) -> None:
    """Waits until a condition, which may be async, holds; fails the test with `what` did not happen."""
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
    """What something gives that must end by itself in time."""
    task = asyncio.ensure_future(awaitable)
    await asyncio.wait({task}, timeout=seconds)
    if not task.done():
        await end(task, what)
        pytest.fail(f"{what} took longer than {seconds:g} s")
    return task.result()


async def given_time(awaitable: Awaitable[T], *, seconds: float, what: str) -> T | Exception:
    """What something gives or raises that may take so long and is then cancelled, as the dispatcher does it."""
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
    """Cancels a task; fails the test if it goes on."""
    task.cancel()
    await asyncio.wait({task}, timeout=_SECONDS_TO_OBEY)
    if not task.done():
        await quell({task})
        pytest.fail(f"{what} goes on after it was cancelled")


async def quell(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Ends tasks, even those that ignore it: left alone, they would hang pytest at the end of the test."""
    for _ in range(2):
        for task in tasks:
            task.cancel()
        if tasks:
            _, tasks = await asyncio.wait(tasks, timeout=_SECONDS_TO_QUELL)
        for task in tasks:
            if isinstance(task, asyncio.Task) and (coroutine := task.get_coro()) is not None:
                with suppress(RuntimeError):
                    coroutine.close()


@asynccontextmanager
async def responsive() -> AsyncIterator[None]:
    """Fails the test if something blocks the event loop, on which intake and all other sinks run too.

    A signal looks whether the loop has had a turn since it last looked; a process that merely waits for its CPU does
    not look either. Where signals cannot be had, nobody looks.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGALRM) is not _UNUSED:
        yield
        return
    watch = _Watch()
    signal.signal(signal.SIGALRM, watch.look)
    signal.setitimer(signal.ITIMER_REAL, _LOOK_SECONDS, _LOOK_SECONDS)
    beating = asyncio.create_task(watch.beat())
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, _UNUSED)
        beating.cancel()
    if watch.worst >= _LOOKS_TO_FAIL:
        pytest.fail(
            f"it blocks the event loop for {watch.worst * _LOOK_SECONDS:.1f} s and more; await, or use a thread"
        )


_UNUSED: Final = signal.SIG_DFL


class _Watch:
    """Counts how often the loop was found standing."""

    def __init__(self) -> None:
        self.worst = 0
        self._standing = 0

    async def beat(self) -> None:
        while True:
            self._standing = 0
            await asyncio.sleep(_BEAT_SECONDS)

    def look(self, *_: object) -> None:
        self._standing += 1
        # found standing once says that there was no beat before this look, twice that there was none since the last
        self.worst = max(self.worst, self._standing - 1)
        if self._standing > _LOOKS_TO_INTERRUPT:
            pytest.fail(_BLOCKS)
