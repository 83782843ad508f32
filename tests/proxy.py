"""A TCP proxy on loopback, between a client and a server, that fails on request."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

from tests.brokers.own import HOST, lasting_port

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards what it is sent until told otherwise; its port stays the same."""

    def __init__(self, host: str, port: int) -> None:
        self.port = lasting_port()
        self._target = (host, port)
        self._mode: Literal["forward", "blackhole", "refuse"] = "refuse"
        self._listener: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def forward(self) -> None:
        """Hands bytes on both ways; resets the connections whose bytes a blackhole has swallowed."""
        if self._mode == "blackhole":
            self.cut()
        self._mode = "forward"
        await self._listen()

    async def blackhole(self) -> None:
        """Takes connections and what is sent on them, old ones too, and never answers."""
        self._mode = "blackhole"
        await self._listen()

    async def refuse(self) -> None:
        """Resets all connections and refuses new ones."""
        self._mode = "refuse"
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        self.cut()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def cut(self) -> None:
        """Resets all connections; new ones are taken as before."""
        for writer in self._writers:
            _reset(writer)

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._connected, HOST, self.port)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == "refuse":
            _reset(writer)
            return
        self._writers.add(writer)
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._mode == "blackhole":
                await self._pump(reader, writer)
            else:
                await self._join(reader, writer)
        except* OSError:
            _reset(writer)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connects a client to the server until both have said all, or one is lost."""
        from_server, to_server = await asyncio.open_connection(*self._target)
        self._writers.add(to_server)
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._pump(reader, to_server))
                ways.create_task(self._pump(from_server, writer))
        finally:
            self._writers.discard(to_server)
            to_server.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while chunk := await source.read(65536):
            if self._mode == "forward":
                sink.write(chunk)
                await sink.drain()
        if self._mode == "forward":
            sink.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()


@asynccontextmanager
async def proxy(host: str, port: int) -> AsyncIterator[Proxy]:
    """A proxy in front of a server; forwards at first."""
    between = Proxy(host, port)
    await between.forward()
    try:
        yield between
    finally:
        await between.refuse()
