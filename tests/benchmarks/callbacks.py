"""Callbacks accepted per second, side by side in one run: `python -m tests.benchmarks.callbacks`.

Each contestant runs alone, a process of its own, in turns; each callback has its own message id, only a 200 counts, and
what each database holds at the end is compared with what was answered. Prints a table for the README.
"""

import argparse
import asyncio
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import httpx2
import uvloop

from tests.benchmarks.load import Outcome, load
from tests.running import environment
from tests.running import receiver as command
from tests.running import serving as receiver_serving
from tests.servers import free_port, named_database, on_postgres, postgres_server, random_name

ROOT = Path(__file__).resolve().parents[2]
CONTESTANTS = Path(__file__).with_name("contestants.py")
USER = "bandwidth:secret"
ROUTE = "/callbacks/bandwidth/v2"


def body(number: int) -> bytes:
    """A delivery receipt as captures show them, of message `number`."""
    return (
        b'[{"type":"message-delivered","time":"2026-01-01T00:00:05.123Z","to":"+1555%07d",'
        b'"description":"Message delivered to carrier","message":{"id":"1661365814859lo%015d","owner":"+15559999999",'
        b'"applicationId":"93de2206-9669-4e07-948d-329f4b722ee2","time":"2026-01-01T00:00:00.000Z","segmentCount":1,'
        b'"direction":"out","to":["+1555%07d"],"from":"+15559999999","text":"","tag":"order %d"}}]'
        % (number % 10_000_000, number, number % 10_000_000, number)
    )


@dataclass
class Contestant:
    """A running server: where it listens, its process, and how to count what it keeps (None: it keeps nothing)."""

    port: int
    path: str
    pid: int
    count: Callable[[], int] | None


@dataclass
class Result:
    name: str
    runs: list[Outcome] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return statistics.median(run.rate for run in self.runs)

    def percentile(self, percent: float) -> float:
        return statistics.median(run.percentile(percent) for run in self.runs) * 1000


@contextmanager
def plain_server(folder: Path, name: str) -> Iterator[Contestant]:
    port, file = free_port(), folder / f"{random_name(name)}.db"
    process = subprocess.Popen([sys.executable, CONTESTANTS, name, str(port), str(file)], cwd=ROOT, env=environment())
    try:
        _wait_for(port)
        yield Contestant(port, "/callbacks", process.pid, (lambda: _count(file)) if name == "plain" else None)
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def receiver(folder: Path, url: str, count: Callable[[], int]) -> Iterator[Contestant]:
    settings = {"CALLBACK_CREDENTIALS": f'["{USER}"]', "API_TOKENS": '["t"]', "DATABASE_URL": url}
    with receiver_serving(folder, settings=settings) as server:
        yield Contestant(httpx2.URL(server.url).port or 0, ROUTE, server.process.pid, count)
        server.stop()


@contextmanager
def on_sqlite(folder: Path) -> Iterator[Contestant]:
    file = folder / f"{random_name()}.db"
    with receiver(folder, f"sqlite:///{file}", lambda: _count(file, "messages")) as contestant:
        yield contestant


@contextmanager
def on_postgresql(folder: Path, server: str) -> Iterator[Contestant]:
    name = random_name("receiver_bench")
    url = named_database(server, name)
    on_postgres(server, f"CREATE DATABASE {name}")
    try:
        command(folder, "migrate", DATABASE_URL=url)
        with receiver(folder, url, lambda: _count_postgres(url)) as contestant:
            yield contestant
    finally:
        on_postgres(server, f"DROP DATABASE {name} WITH (FORCE)")


def _count(file: Path, table: str = "messagestatus") -> int:
    with sqlite3.connect(file) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def _count_postgres(url: str) -> int:
    async def count() -> int:
        connection = await asyncpg.connect(url)
        try:
            return int(await connection.fetchval("SELECT count(*) FROM messages"))
        finally:
            await connection.close()

    return asyncio.run(count())


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            httpx2.get(f"http://127.0.0.1:{port}/", trust_env=False)
        except httpx2.TransportError:
            time.sleep(0.05)  # between two looks at another process
        else:
            return
    raise TimeoutError("the server did not start")


def _memory(pid: int) -> int:
    """Resident memory of a process, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


def measure(contestant: Contestant, result: Result, *, connections: int, seconds: float) -> None:
    """One run. Raises AssertionError if what is kept is not what was answered."""

    async def run(first: int, seconds: float) -> Outcome:
        return await load(
            contestant.port, contestant.path, body, connections=connections, seconds=seconds, first=first, user=USER
        )

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        warm = runner.run(run(0, 1.0))
        result.memory.append(_memory(contestant.pid))
        outcome = runner.run(run(10_000_000, seconds))
        result.memory.append(_memory(contestant.pid))
    assert set(outcome.statuses) == {200}, outcome.statuses
    if contestant.count is not None:
        assert contestant.count() == warm.accepted + outcome.accepted
    result.runs.append(outcome)


def table(results: list[Result]) -> str:
    nothing, plain = results[0].rate, results[1].rate
    lines = [
        "| | callbacks/s | to the no-op | to the plain handler | p50 | p99 | memory before, after |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.name} | {one.rate:,.0f} | {one.rate / nothing:.2f} | {one.rate / plain:.1f} | "
        f"{one.percentile(50):.1f} ms | {one.percentile(99):.1f} ms | {one.memory[0]}, {one.memory[-1]} MiB |"
        for one in results
    ]
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=8.0)
    arguments.add_argument("--connections", type=int, default=64)
    given = arguments.parse_args()
    results = [
        Result(name)
        for name in ("no-op Starlette", "plain handler, SQLite", "receiver, SQLite", "receiver, PostgreSQL")
    ]
    with tempfile.TemporaryDirectory(prefix="receiver-bench-") as place, ExitStack() as stack:
        folder = Path(place)
        postgres = stack.enter_context(postgres_server())
        starters: list[Callable[[], AbstractContextManager[Contestant]]] = [
            lambda: plain_server(folder, "noop"),
            lambda: plain_server(folder, "plain"),
            lambda: on_sqlite(folder),
            lambda: on_postgresql(folder, postgres),
        ]
        for _ in range(given.rounds):
            for result, start in zip(results, starters, strict=True):
                with start() as contestant:
                    measure(contestant, result, connections=given.connections, seconds=given.seconds)
    conditions = f"{given.connections} connections, median of {given.rounds} rounds of {given.seconds:.0f} s"
    print(f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {os.cpu_count()} cores shared by server,")
    print(f"load and database; {conditions}\n")
    print(table(results))


if __name__ == "__main__":
    main()
