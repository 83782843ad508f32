"""An HTTP server that misbehaves as the path says, and a TCP proxy that fails on request."""

import asyncio
import gzip
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

from tests.brokers.own import HOST, free_port

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BOMB = gzip.compress(b"x" * 1_000_000)


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class FaultServer:
    """Answers by path: `/500` with that status, `/reset` with half an answer, and so on; see `_FAULTS`."""

    host: str = "127.0.0.1"
    port: int = 0
    scheme: str = "http"
    requests: list[Request] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    connections: int = 0
    closed: int = 0
    retry_after: str = "7"
    location: str = "/200"
    answer: bytes = OK
    closes: bool = False
    under_way: int = 0
    held: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, path: str) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while (request := await _read(reader)) is not None:
                self.requests.append(request)
                self.under_way += 1
                try:
                    await _FAULTS.get(request.path, _status)(self, request, writer)
                finally:
                    self.under_way -= 1
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.closed += 1
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return Request(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))


async def _send(writer: asyncio.StreamWriter, content: bytes) -> None:
    writer.write(content)
    await writer.drain()


async def _status(server: FaultServer, request: Request, writer: asyncio.StreamWriter) -> None:
    code = "422" if request.headers.get("webhook-id") in server.refused else request.path.strip("/")
    extra = b""
    if code in ("429", "503"):
        extra = f"retry-after: {server.retry_after}\r\n".encode()
    if code in ("301", "302", "303", "307", "308"):
        extra = f"location: {server.location}\r\n".encode()
    body = b"" if code in ("101", "204") else b"content-length: 4\r\n\r\nbody"
    await _send(writer, b"HTTP/1.1 %b X\r\n%b%b" % (code.encode(), extra, body or b"\r\n"))


async def _reset(server: FaultServer, request: Request, writer: asyncio.StreamWriter) -> None:
    await _send(writer, b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf")
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _half(server: FaultServer, request: Request, writer: asyncio.StreamWriter) -> None:
    await _send(writer, b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf")
    writer.close()


async def _hang_up(server: FaultServer, request: Request, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _slow_headers(server: FaultServer, request: Request, writer: asyncio.StreamWriter) -> None:
    await _send(writer, b"HTTP/1.1 200 OK\r\n")
    while True:
        await _send(writer, b"x-slow: yes\r\n")
        await asyncio.sleep(0.02)


async def _slow_endless_body(server: FaultServer, request: Request, writer: asyncio.StreamWriter) -> None:
    await _send(writer, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        await _send(writer, b"1\r\nx\r\n")
        await asyncio.sleep(0.02)


async def _long(server: FaultServer, request: Request, writer: asyncio.StreamWriter) -> None:
    await _send(writer, b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n" + b"x" * 60000)


async def _huge_body(server: FaultServer, request: Request, writer: asyncio.StreamWriter) -> None:
    await _send(writer, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        await _send(writer, b"4000\r\n" + b"x" * 0x4000 + b"\r\n")


async def _short_chunks(server: FaultServer, request: Request, writer: asyncio.StreamWriter) -> None:
    await _send(writer, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        await _send(writer, b"1;padding=pad\r\nx\r\n" * 1000)


async def _interim_answers(server: FaultServer, request: Request, writer: asyncio.StreamWriter) -> None:
    while True:
        await _send(writer, b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


async def _many_headers(server: FaultServer, request: Request, writer: asyncio.StreamWriter) -> None:
    await _send(writer, b"HTTP/1.1 200 OK\r\n")
    while True:
        await _send(writer, b"x-more: yes\r\n" * 1000)


async def _idle(server: FaultServer, request: Request, writer: asyncio.StreamWriter) -> None:
    """Answers, and closes the connection a moment later without having said so."""
    await _send(writer, OK)
    await asyncio.sleep(0.05)
    raise ConnectionError


async def _packed(server: FaultServer, request: Request, writer: asyncio.StreamWriter) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n"
    await _send(writer, head % len(BOMB) + BOMB)


async def _cookie(server: FaultServer, request: Request, writer: asyncio.StreamWriter) -> None:
    await _send(writer, b"HTTP/1.1 200 OK\r\nset-cookie: a=b\r\ncontent-length: 0\r\n\r\n")


async def _answer(server: FaultServer, request: Request, writer: asyncio.StreamWriter) -> None:
    await _send(writer, server.answer)
    if server.closes:
        writer.close()


async def _mute(server: FaultServer, request: Request, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def _hold(server: FaultServer, request: Request, writer: asyncio.StreamWriter) -> None:
    await server.held.wait()
    await _send(writer, OK)


_FAULTS: dict[str, Callable[[FaultServer, Request, asyncio.StreamWriter], Awaitable[None]]] = {
    "/reset": _reset,
    "/half": _half,
    "/hang-up": _hang_up,
    "/slow-headers": _slow_headers,
    "/slow-endless-body": _slow_endless_body,
    "/long": _long,
    "/huge-body": _huge_body,
    "/short-chunks": _short_chunks,
    "/interim-answers": _interim_answers,
    "/many-headers": _many_headers,
    "/idle": _idle,
    "/packed": _packed,
    "/cookie": _cookie,
    "/answer": _answer,
    "/mute": _mute,
    "/hold": _hold,
}


@asynccontextmanager
async def fault_server(
    host: str = "127.0.0.1", port: int = 0, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[FaultServer]:
    served = FaultServer(host, scheme="https" if tls else "http")
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(served.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, host, port, ssl=tls)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards what it is sent until a test changes that; its port stays the same."""

    def __init__(self, host: str, port: int) -> None:
        self.port = free_port()
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

    def lead_to(self, host: str, port: int) -> None:
        """Leads new connections to another server; old ones stay where they are."""
        self._target = (host, port)

    def cut(self) -> None:
        """Resets all connections; new ones are taken as before."""
        for writer in self._writers:
            _reset_client(writer)

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._connected, HOST, self.port)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == "refuse":
            _reset_client(writer)
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
            _reset_client(writer)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connects a client to the server until both have sent everything, or one is lost."""
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


def _reset_client(writer: asyncio.StreamWriter) -> None:
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
