"""An HTTP server that misbehaves on request: the path says how."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class FaultServer:
    """Answers by path: `/500` with that status, `/reset` with half an answer, and so on; see `_FAULTS`."""

    port: int = 0
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    retry_after: str = "7"
    under_way: int = 0
    held: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

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
    code = request.path.strip("/")
    extra = b""
    if code in ("429", "503"):
        extra = f"retry-after: {server.retry_after}\r\n".encode()
    if code == "301":
        extra = f"location: {server.url('/200')}\r\n".encode()
    body = b"" if code == "204" else b"content-length: 4\r\n\r\nbody"
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


async def _huge_body(server: FaultServer, request: Request, writer: asyncio.StreamWriter) -> None:
    await _send(writer, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        await _send(writer, b"4000\r\n" + b"x" * 0x4000 + b"\r\n")


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
    "/huge-body": _huge_body,
    "/mute": _mute,
    "/hold": _hold,
}


@asynccontextmanager
async def fault_server() -> AsyncIterator[FaultServer]:
    served = FaultServer()
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(served.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
