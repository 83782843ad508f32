"""The load: callbacks over keep-alive connections, one request in flight on each, from a process of its own.

The client shares the cores with what it measures, so it is light: it looks for answers every half millisecond, which
took 24 us per request where waking up for each took 40. Latencies are too long by up to that half millisecond.
"""

import json
import math
import select
import socket
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.bodies import Bodies

ROOT: Final = Path(__file__).resolve().parents[2]
USER: Final = "bandwidth:secret"
LOOK_SECONDS: Final = 0.003
_ANSWER_SECONDS: Final = 30.0
_PAUSE_SECONDS: Final = 0.0005


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to post: `events` messages per request, numbered from `first`.

    `rate` is in requests per second; 0: the next request follows each answer. The time of the answer is noted for every
    `probe_every`-th request (0: for none).
    """

    port: int
    path: str
    connections: int
    seconds: float
    first: int
    events: int = 1
    rate: float = 0.0
    probe_every: int = 0


@dataclass(slots=True, kw_only=True)
class LoadResult:
    """What a load gave. Times are those of the monotonic clock, which all processes share; latencies in seconds."""

    statuses: dict[int, int] = field(default_factory=dict)
    sent: int = 0
    started: float = 0.0
    ended: float = 0.0
    cpu_seconds: float = 0.0
    latencies: dict[str, float] = field(default_factory=dict)
    answered: dict[int, float] = field(default_factory=dict)

    @property
    def accepted(self) -> int:
        return self.statuses.get(200, 0)

    @property
    def rate(self) -> float:
        return self.accepted / (self.ended - self.started)


def percentile(values: Sequence[float], percent: float) -> float:
    """A percentile of values; nan if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else math.nan


def run(load: Load, look: Callable[[], None]) -> LoadResult:
    """Posts a load from a process of its own; `look` is called every few milliseconds meanwhile."""
    command = [sys.executable, "-m", "tests.benchmarks.load", json.dumps(asdict(load))]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output)
        try:
            while process.poll() is None:
                look()
                time.sleep(LOOK_SECONDS)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            raise RuntimeError(f"the load ended with exit code {process.returncode}")
        output.seek(0)
        found: dict[str, Any] = json.load(output)
    for name in ("statuses", "answered"):
        found[name] = {int(key): value for key, value in found[name].items()}
    return LoadResult(**found)


class _Connection:
    """A connection, and what is in flight on it."""

    __slots__ = ("buffer", "number", "sent_at", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.number = 0
        self.sent_at = 0.0


class Client:
    """Posts one load."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._bodies = Bodies(load.events)
        self._head = (
            f"POST {load.path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json; charset=utf-8\r\n"
            f"User-Agent: BandwidthAPI/v2\r\nAuthorization: Basic {b64encode(USER.encode()).decode()}\r\n"
            f"Content-Length: {self._bodies.length}\r\n\r\n"
        ).encode()
        self._result = LoadResult()
        self._latencies: list[float] = []
        self._number = load.first

    def run(self) -> LoadResult:
        opened = [_Connection(self._load.port) for _ in range(self._load.connections)]
        connections = {one.socket.fileno(): one for one in opened}
        waiting = select.epoll()
        for number in connections:
            waiting.register(number, select.EPOLLIN)
        cpu, result = time.process_time(), self._result
        result.started = time.monotonic()
        (self._paced if self._load.rate else self._full)(connections, waiting)
        result.ended = time.monotonic()
        result.cpu_seconds = time.process_time() - cpu
        result.latencies = {str(percent): percentile(self._latencies, percent) for percent in (50, 99, 99.9)}
        return result

    def _full(self, connections: dict[int, _Connection], waiting: select.epoll) -> None:
        deadline = self._result.started + self._load.seconds
        in_flight = len(connections)
        for connection in connections.values():
            self._post(connection)
        while in_flight:
            time.sleep(_PAUSE_SECONDS)
            for number, _ in self._answers(waiting):
                connection = connections[number]
                if self._receive(connection):
                    # time was read when the answer came
                    if connection.sent_at < deadline:
                        self._post(connection)
                    else:
                        in_flight -= 1

    def _paced(self, connections: dict[int, _Connection], waiting: select.epoll) -> None:
        started, rate = self._result.started, self._load.rate
        total, idle = int(rate * self._load.seconds), list(connections.values())
        while self._result.sent < total or len(idle) < len(connections):
            due = min(total, int((time.monotonic() - started) * rate)) - self._result.sent
            while due > 0 and idle:
                # In turn: a connection without a request for ten seconds is closed.
                self._post(idle.pop(0))
                due -= 1
            time.sleep(_PAUSE_SECONDS)
            for number, _ in waiting.poll(0) if idle else self._answers(waiting):
                if self._receive(connections[number]):
                    idle.append(connections[number])

    @staticmethod
    def _answers(waiting: select.epoll) -> list[tuple[int, int]]:
        found = waiting.poll(_ANSWER_SECONDS)
        if not found:
            raise TimeoutError(f"no answer within {_ANSWER_SECONDS:.0f} s")
        return found

    def _post(self, connection: _Connection) -> None:
        connection.number = number = self._number
        self._number = number + self._load.events
        self._result.sent += 1
        request = self._head + self._bodies.body(number)
        connection.sent_at = time.monotonic()
        # a request is smaller than the buffer of its socket, and the one before it has been answered
        connection.socket.sendall(request)

    def _receive(self, connection: _Connection) -> bool:
        """Reads what came; returns whether the answer is complete. `sent_at` is then the time it came."""
        data = connection.socket.recv(65536)
        if connection.buffer or not (data.endswith(b"\r\n\r\n") and b"content-length: 0\r\n" in data):
            if not data:
                raise ConnectionError(f"the server closed a connection after {connection.buffer!r}")
            connection.buffer += data
            if not _is_complete(connection.buffer):
                return False
            data, connection.buffer = connection.buffer, b""
        now, result = time.monotonic(), self._result
        status = int(data[9:12])
        result.statuses[status] = result.statuses.get(status, 0) + 1
        if status == 200:
            self._latencies.append(now - connection.sent_at)
            every = self._load.probe_every * self._load.events
            if every and (connection.number - self._load.first) % every == 0:
                result.answered[connection.number] = now
        connection.sent_at = now
        return True


def _is_complete(answer: bytes) -> bool:
    head, end, content = answer.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
    return bool(end) and len(content) >= int(length or 0)


if __name__ == "__main__":
    print(json.dumps(asdict(Client(Load(**json.loads(sys.argv[1]))).run())))
