"""A load of callbacks over keep-alive connections: as many at once as asked for, one in flight on each."""

import asyncio
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Body = Callable[[int], bytes]


@dataclass
class Outcome:
    """What a run of requests gave: answers by status, and the seconds each 200 took."""

    statuses: dict[int, int] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def accepted(self) -> int:
        return self.statuses.get(200, 0)

    @property
    def rate(self) -> float:
        return self.accepted / self.seconds

    def percentile(self, percent: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class _Connection(asyncio.Protocol):
    """One connection: sends a request, waits for its answer, sends the next."""

    def __init__(self, requests: Iterator[bytes], outcome: Outcome, done: asyncio.Future[None]) -> None:
        self._requests, self._outcome, self._done = requests, outcome, done
        self._sent_at = 0.0
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if b"\r\n\r\n" not in self._buffer:
            return
        status, self._buffer = int(self._buffer[9:12]), b""
        self._outcome.statuses[status] = self._outcome.statuses.get(status, 0) + 1
        if status == 200:
            self._outcome.latencies.append(time.perf_counter() - self._sent_at)
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def _send(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self._transport.close()
            return
        self._sent_at = time.perf_counter()
        self._transport.write(request)


def requests(path: str, body: Body, *, first: int, seconds: float, user: str | None) -> Iterator[bytes]:
    """Requests with rising numbers, until the time is over."""
    authorization = f"Authorization: Basic {b64encode(user.encode()).decode()}\r\n" if user else ""
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n{authorization}Content-Length: "
    prefix, deadline, number = head.encode(), time.monotonic() + seconds, first
    while time.monotonic() < deadline:
        content = body(number)
        yield prefix + str(len(content)).encode() + b"\r\n\r\n" + content
        number += 1


async def load(
    port: int, path: str, body: Body, *, connections: int, seconds: float, first: int = 0, user: str | None = None
) -> Outcome:
    """Posts callbacks to 127.0.0.1 for so many seconds; every one has its own number."""
    outcome, loop = Outcome(), asyncio.get_running_loop()
    source = requests(path, body, first=first, seconds=seconds, user=user)
    started = time.perf_counter()
    finished = []
    for _ in range(connections):
        done: asyncio.Future[None] = loop.create_future()
        await loop.create_connection(lambda done=done: _Connection(source, outcome, done), "127.0.0.1", port)
        finished.append(done)
    await asyncio.gather(*finished)
    outcome.seconds = time.perf_counter() - started
    return outcome
