"""Runs the client of a broker on an event loop of its own, in a thread, so that it can be ended at once.

A client that is closed delivers what it holds first, and waits for that as long as it takes. What is delivered so late
would come after its retry. The client's public names have no other way, but its event loop knows every task and every
connection of it.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, TypeVar
from weakref import WeakSet

T = TypeVar("T")

_CLOSE_SECONDS: Final = 1.0


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that knows its connections."""

    def __init__(self) -> None:
        super().__init__()
        self.transports: WeakSet[asyncio.WriteTransport] = WeakSet()

    async def create_connection(self, *arguments: Any, **options: Any) -> Any:
        transport, protocol = await super().create_connection(*arguments, **options)
        self.transports.add(transport)
        return transport, protocol


class ClientLoop:
    """An event loop in a thread of its own. `close`, if set, closes the client once it can deliver nothing more."""

    def __init__(self, name: str) -> None:
        self.close: Callable[[], Awaitable[object]] | None = None
        self._loop = _Loop()
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on this loop. Cancelled, it does not wait until the coroutine has ended."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def end(self) -> None:
        """Aborts all connections, with what they have not sent, and cancels all tasks; then the thread ends."""
        if not self._ended.done():
            with suppress(RuntimeError):
                # The loop may have been closed meanwhile.
                self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.shield(asyncio.wrap_future(self._ended))
        # It has nothing left to do.
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._abort()
            self._loop.run_until_complete(self._close())
        finally:
            self._loop.close()
            self._ended.set_result(None)

    def _abort(self) -> None:
        for transport in self._loop.transports:
            transport.abort()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    async def _close(self) -> None:
        await _ended(asyncio.all_tasks() - {asyncio.current_task()})
        if self.close is not None:
            with suppress(Exception):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self.close()
        self._abort_rest()
        await _ended(asyncio.all_tasks() - {asyncio.current_task()})

    def _abort_rest(self) -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()


async def _ended(tasks: set[Any]) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=_CLOSE_SECONDS)
