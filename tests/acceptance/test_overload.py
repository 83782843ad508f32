"""More callbacks than can be committed: the sender of each has an answer within five seconds."""

import asyncio
import json
import resource
import sqlite3
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.factories import v2_event
from tests.processes import Server, serving

pytestmark = pytest.mark.anyio

SETTINGS = {"CALLBACK_CREDENTIALS": '["user:password"]', "API_TOKENS": '["token-of-a-test"]'}
HEAD = (
    "POST /callbacks/bandwidth/v2 HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nConnection: close\r\n"
    f"Authorization: Basic {b64encode(b'user:password').decode()}\r\nContent-Length: "
)
# The promise to Bandwidth, and the delay that a busy machine may add before the bytes reach the test. Without a
# deadline of the server, an answer would wait for the lock, which is held until all answers are there.
PROMISED_SECONDS = 5.0
BUSY_SECONDS = 10.0


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    with serving(tmp_path, settings=SETTINGS) as server:
        yield server


async def post(server: Server, message_id: str) -> tuple[int, bytes, float]:
    """Posts one callback over a connection of its own: the status, the head of the answer, the seconds it took."""
    url = urlsplit(server.url)
    body = json.dumps([v2_event(message_id)]).encode()
    started = time.monotonic()
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(f"{HEAD}{len(body)}\r\n\r\n".encode() + body)
    head = await reader.readuntil(b"\r\n\r\n")
    seconds = time.monotonic() - started
    writer.close()
    return int(head[9:12]), head, seconds


async def post_many(server: Server, count: int, prefix: str) -> list[tuple[int, bytes, float]]:
    return await asyncio.gather(*(post(server, f"{prefix}{number}") for number in range(count)))


@contextmanager
def held_lock(file: Path) -> Iterator[None]:
    """Holds the write lock of an SQLite file, as another program might."""
    with closing(sqlite3.connect(file, isolation_level=None, timeout=30)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


async def test_locked_journal_answers_a_burst_with_503_and_retry_after_within_five_seconds(
    server: Server, tmp_path: Path
) -> None:
    assert [status for status, _, _ in await post_many(server, 5, "before-")] == [200] * 5
    with held_lock(tmp_path / "receiver-data/callbacks.db"):
        answers = await post_many(server, 400, "during-")
    assert {status for status, _, _ in answers} == {503}
    assert all(b"retry-after: " in head.lower() for _, head, _ in answers)
    assert max(seconds for _, _, seconds in answers) < PROMISED_SECONDS + BUSY_SECONDS
    assert [status for status, _, _ in await post_many(server, 5, "after-")] == [200] * 5


@pytest.mark.slow
async def test_burst_of_a_thousand_connections_is_accepted_within_five_seconds(server: Server) -> None:
    answers = await post_many(server, 1000, "burst-")
    assert {status for status, _, _ in answers} == {200}
    assert max(seconds for _, _, seconds in answers) < PROMISED_SECONDS + BUSY_SECONDS


async def test_probes_are_answered_while_every_connection_waits_for_the_journal(server: Server, tmp_path: Path) -> None:
    # Of 300 files 256 are for other things than connections.
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (300, 300))
    with held_lock(tmp_path / "receiver-data/callbacks.db"):
        waiting = asyncio.gather(*(post(server, f"busy-{number}") for number in range(44)))
        await asyncio.sleep(0.5)
        async with httpx2.AsyncClient(base_url=server.url, timeout=30, trust_env=False, verify=False) as client:
            assert (await client.get("/healthz")).status_code == 200
        _, head, seconds = await post(server, "one-more")
        assert b" 503 " in head
        assert b"retry-after: " in head.lower()
        assert seconds < PROMISED_SECONDS + BUSY_SECONDS
        assert {status for status, _, _ in await waiting} == {503}
    async with httpx2.AsyncClient(base_url=server.url, timeout=30, trust_env=False, verify=False) as client:
        metrics = (await client.get("/metrics", headers={"Authorization": "Bearer token-of-a-test"})).text
    assert 'receiver_refused_total{reason="connections"} 1.0' in metrics


async def test_locked_main_file_delays_no_answer(server: Server, tmp_path: Path) -> None:
    """A callback waits for the journal, not for the file of the processor."""
    with held_lock(tmp_path / "receiver-data/receiver.db"):
        answers = await post_many(server, 100, "during-")
    # An answer that waited for the lock would be a 503: the lock is held until all answers are there.
    assert {status for status, _, _ in answers} == {200}
