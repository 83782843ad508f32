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


class NotEncrypted(ConnectionError):
    """Something was to be sent without TLS."""


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that knows its connections. With `tls_only` they send nothing before TLS has begun."""

    def __init__(self, *, tls_only: bool) -> None:
        super().__init__()
        self.transports: WeakSet[asyncio.WriteTransport] = WeakSet()
        self.on_lost: Callable[[], None] | None = None
        self._tls_only = tls_only

    async def create_connection(self, protocol_factory: Any, *arguments: Any, **options: Any) -> Any:
        def watched() -> Any:
            return self._watched(protocol_factory())

        transport, protocol = await super().create_connection(watched, *arguments, **options)
        self.transports.add(transport)
        is_plain = transport.get_extra_info("ssl_object") is None
        return _Mute(transport) if is_plain and self._tls_only else transport, protocol

    async def start_tls(self, transport: Any, protocol: Any, *arguments: Any, **options: Any) -> Any:
        plain = transport.transport if isinstance(transport, _Mute) else transport
        encrypted = await super().start_tls(plain, self._watched(protocol), *arguments, **options)
        if encrypted is not None:
            self.transports.add(encrypted)
        return encrypted

    def _watched(self, protocol: Any) -> Any:
        """The protocol, which also calls `on_lost` when its connection is lost."""
        lose = protocol.connection_lost

        def connection_lost(error: Exception | None) -> None:
            lose(error)
            if self.on_lost is not None:
                self.on_lost()

        protocol.connection_lost = connection_lost
        return protocol


class _Mute(asyncio.Transport):
    """A connection that sends nothing."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self.transport = transport

    def write(self, data: object) -> None:
        raise NotEncrypted

    def writelines(self, list_of_data: object) -> None:
        raise NotEncrypted

    def close(self) -> None:
        self.transport.close()

    def abort(self) -> None:
        self.transport.abort()

    def is_closing(self) -> bool:
        return self.transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.transport.get_extra_info(name, default)


class ClientLoop:
    """An event loop in a thread of its own.

    `close`, if set, closes the client once it can deliver nothing more. `on_lost` is called on the loop when one of its
    connections is lost: a client may fail to say so.
    """

    def __init__(self, name: str, *, tls_only: bool = False, on_lost: Callable[[], None] | None = None) -> None:
        self.close: Callable[[], Awaitable[object]] | None = None
        self._is_ending = False
        self._loop = _Loop(tls_only=tls_only)
        self._loop.on_lost = on_lost
        # What a client does not handle is in the results already.
        self._loop.set_exception_handler(lambda *_: None)
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on this loop. Cancelled, it does not wait until the coroutine has ended.

        Raises ConnectionResetError if this loop ends before.
        """
        if self._is_ending:
            work.close()
            raise ConnectionResetError
        try:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._is_ending and task is not None and not task.cancelling():
                raise ConnectionResetError from None
            raise

    async def end(self) -> None:
        """Aborts all connections, with what they have not sent, and cancels all tasks; then the thread ends."""
        if not self._is_ending:
            self._is_ending = True
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
