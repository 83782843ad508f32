"""The event loop of a client: it ends at once, whatever the client holds and the server does."""

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from receiver.sinks.client_loop import ClientLoop, NotEncrypted

pytestmark = pytest.mark.anyio


@pytest.fixture
def deaf() -> Iterator[socket.socket]:
    """A listener that accepts connections and reads nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield listener


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "tested"]


async def test_end_discards_what_is_not_sent_and_ends_everything(deaf: socket.socket) -> None:
    loop = ClientLoop("tested")
    closed: list[str] = []

    async def hold() -> None:
        _, writer = await asyncio.open_connection(*deaf.getsockname())
        writer.write(b"x" * 50_000_000)
        await writer.drain()

    async def close() -> None:
        closed.append("closed")

    loop.close = close
    holding = asyncio.create_task(loop.call(hold()))
    await asyncio.sleep(0.1)  # until the buffers of the connection are full
    started = time.monotonic()
    await loop.end()
    assert time.monotonic() - started < 5
    with pytest.raises(ConnectionResetError):
        await holding
    assert (closed, threads()) == (["closed"], [])
    connection, _ = deaf.accept()
    with closing(connection):
        connection.settimeout(5)
        taken = 0
        # A reset may follow what had been sent.
        try:
            while received := connection.recv(1 << 20):
                taken += len(received)
        except ConnectionResetError:
            pass
        assert taken < 50_000_000


async def test_call_after_the_end_is_a_lost_connection_and_end_may_be_called_twice() -> None:
    loop = ClientLoop("tested")
    assert await loop.call(asyncio.sleep(0, result=1)) == 1
    await asyncio.gather(loop.end(), loop.end())
    with pytest.raises(ConnectionResetError):
        await loop.call(asyncio.sleep(0))
    assert threads() == []


async def test_cancelled_call_is_cancelled_on_the_loop() -> None:
    loop, ended = ClientLoop("tested"), asyncio.Event()
    here = asyncio.get_running_loop()

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            here.call_soon_threadsafe(ended.set)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await loop.call(work())
    async with asyncio.timeout(10):
        await ended.wait()
    await loop.end()


async def test_lost_connection_is_reported(deaf: socket.socket) -> None:
    lost = threading.Event()
    loop = ClientLoop("tested", on_lost=lost.set)
    held = await loop.call(asyncio.open_connection(*deaf.getsockname()))
    connection, _ = deaf.accept()
    # A reset, as from a server that was killed.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    assert await asyncio.to_thread(lost.wait, 10)
    await loop.end()
    assert held[1].is_closing()


async def test_tls_only_sends_nothing_in_plain_text(deaf: socket.socket) -> None:
    loop = ClientLoop("tested", tls_only=True)

    async def speak() -> None:
        _, writer = await asyncio.open_connection(*deaf.getsockname())
        with pytest.raises(NotEncrypted):
            writer.write(b"secret")
        with pytest.raises(NotEncrypted):
            writer.writelines([b"secret"])
        writer.close()

    await loop.call(speak())
    await loop.end()
    connection, _ = deaf.accept()
    with closing(connection):
        connection.settimeout(5)
        with suppress(ConnectionResetError):
            assert connection.recv(100) == b""
