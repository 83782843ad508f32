"""Hours of use under load and small faults leave memory, descriptors, threads and write-ahead logs as they were."""

import asyncio
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from receiver.storage.database import journal_file
from receiver.storage.sqlite_file import file_of
from tests.faults.audit import arrive, audit, audit_sink
from tests.faults.load import Load, published, worker_of
from tests.faults.test_killed_servers import SETTINGS
from tests.processes import PATIENT, Server, serving
from tests.servers import on_postgres

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

# Some seconds show that nothing grows with each request or each fault; hours show the rest.
SECONDS = float(os.environ.get("RECEIVER_TEST_SOAK_SECONDS", "30"))
ROUND_SECONDS = 3.0
MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Use:
    """What a process uses: bytes of memory, open descriptors, threads."""

    memory: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, process: int) -> "Use":
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        return cls(
            memory=int(fields["VmRSS"].split()[0]) * 1024,
            descriptors=sum(1 for _ in Path(f"/proc/{process}/fd").iterdir()),
            threads=int(fields["Threads"]),
        )


def files(database_url: str) -> tuple[Path, Path]:
    """The main file and the journal of an SQLite database."""
    file = file_of(database_url)
    return file, journal_file(file)


def write_ahead_logs(database_url: str) -> list[int]:
    if not database_url.startswith("sqlite"):
        return []
    return [file.with_name(f"{file.name}-wal").stat().st_size for file in files(database_url)]


@asynccontextmanager
async def small_fault(database_url: str) -> AsyncIterator[None]:
    """A second without the journal: its file is locked, or the connections to the server are cut."""
    if database_url.startswith("sqlite"):
        with closing(sqlite3.connect(files(database_url)[1], isolation_level=None, timeout=30)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")
    else:
        name = urlsplit(database_url).path.removeprefix("/")
        cut = (
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' "
            "AND pid <> pg_backend_pid()"
        )
        await asyncio.to_thread(on_postgres, database_url, cut)
        yield


async def one_round(server: Server, database_url: str) -> None:
    """What happens in hours of use: reads, a reload, a short fault, an aborted request."""
    server.process.send_signal(signal.SIGHUP)
    async with httpx2.AsyncClient(base_url=server.url, **PATIENT) as client:
        for address in ("/api/messages?size=100", "/api/callbacks", "/api/status", "/api/sinks"):
            await client.get(address, headers={"Authorization": "Bearer token"})
        await client.post("/callbacks/bandwidth/v2", content=b"[]", auth=("u", "wrong"))
    url = urlsplit(server.url)
    _, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(b"POST /callbacks/bandwidth/v2 HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\n[")
    writer.close()
    async with small_fault(database_url):
        await asyncio.sleep(0.5)


async def test_load_and_small_faults_leave_nothing_behind(database_url: str, tmp_path: Path) -> None:
    load = Load()
    uses: list[tuple[Use, ...]] = []
    with serving(tmp_path, settings={**SETTINGS, "DATABASE_URL": database_url}) as server:
        processes = (server.process.pid, worker_of(server))
        ends_at = time.monotonic() + SECONDS
        async with load.on(server.url, "soak", connections=8, pause=0.05):
            while time.monotonic() < ends_at:
                await one_round(server, database_url)
                await asyncio.sleep(ROUND_SECONDS - 0.5)
                uses.append(tuple(Use.of(process) for process in processes))
        events = await audit(database_url, load)
        await arrive(lambda: published(tmp_path / "events.jsonl"), events)
        logs = write_ahead_logs(database_url)
        assert server.stop() == 0
    audit_sink(published(tmp_path / "events.jsonl"), events)
    assert set(load.answers) <= {200, 503}
    # What is made once is made in the first third. SQLite's page cache grows with the journal, up to 32 MiB.
    early, late = uses[len(uses) // 3], uses[-1]
    for before, after in zip(early, late, strict=True):
        assert after.memory < before.memory * 1.25 + 16 * MEBIBYTE, (before, after)
        assert after.descriptors <= before.descriptors + 8, (before, after)
        assert after.threads <= before.threads + 4, (before, after)
    assert all(size < 64 * MEBIBYTE for size in logs)
