"""`/api/status` on both databases: what it says, and that it answers whatever is broken."""

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text, update
from structlog.testing import capture_logs

from receiver.app import Receiver
from receiver.domain.events import Api
from receiver.explanation import installation
from receiver.explanation.installation import Findings, WorkerRecord
from receiver.models.callbacks import PROCESSOR
from receiver.settings import Settings
from receiver.storage import processor, sinks
from receiver.storage.database import Database
from receiver.storage.postgresql import STATEMENT_SECONDS
from receiver.storage.status import Measured, StatusReader
from tests.brokers.own import free_port
from tests.dispatching import now
from tests.factories import callback, v1_event, v2_event
from tests.processing import append, process
from tests.rows import NOON
from tests.web import READER, application, client

pytestmark = pytest.mark.anyio

PARTS = ("journal", "processor", "sinks", "database", "reconciliation", "alerts")


async def status(database: Database, **more: Any) -> dict[str, Any]:
    async with client(application(database, **more), {"Authorization": f"Bearer {READER}"}) as reader:
        answer = await reader.get("/api/status")
    assert answer.status_code == 200, answer.text
    answer_body: dict[str, Any] = answer.json()
    return answer_body


async def lease(database: Database) -> processor.ProcessorLease:
    held = await processor.acquire(database, holder="test", seconds=60)
    assert held is not None
    return held


async def run(database: Database, statement: str) -> None:
    async with database.writing() as connection:
        await connection.execute(text(statement))


async def test_a_read_token_sees_a_healthy_installation(database: Database) -> None:
    await process(database, callback([v2_event("m1")]), callback([v2_event("m1")]), callback(v1_event(), api=Api.V1))
    await lease(database)
    answer_body = await status(database)
    assert (answer_body["status"], answer_body["problems"]) == ("ok", [])
    assert answer_body["journal"] == {"pending": 0, "oldestPendingSeconds": 0, "waiting": None}
    assert answer_body["processor"] == {
        "state": "working",
        "failingSince": None,
        "error": None,
        "callbacks": 3,
        "repeats": 1,
    }
    assert set(answer_body["lastCallbacks"]) == {"v1/primary", "v2/primary"}
    assert answer_body["worker"] is None
    assert answer_body["database"]["type"] == ("sqlite" if database.is_sqlite else "postgresql")
    assert answer_body["database"]["bytes"] > 0
    assert answer_body["database"]["journalBytes"] > 0


async def test_no_token_no_status(database: Database) -> None:
    async with client(application(database), {}) as stranger:
        assert (await stranger.get("/api/status")).status_code == 401


async def test_pending_callbacks_and_the_age_of_the_oldest_are_shown(database: Database) -> None:
    await lease(database)
    received = (now() - timedelta(seconds=age) for age in (60, 1))
    old, young = (callback([v2_event("m1")], received_at=time) for time in received)
    await append(database, old, young)
    answer_body = await status(database)
    assert answer_body["journal"]["pending"] == 2
    assert 60 <= answer_body["journal"]["oldestPendingSeconds"] < 90
    assert answer_body["processor"]["state"] == "behind"


async def test_processor_without_a_lease_is_missing(database: Database) -> None:
    answer_body = await status(database)
    assert answer_body["processor"]["state"] == "missing"
    assert answer_body["status"] == "degraded"


async def test_processor_that_records_a_failure_is_stuck(database: Database) -> None:
    await processor.record_failure(database, await lease(database), NOON, "no such table: events")
    answer_body = await status(database)
    assert answer_body["processor"]["state"] == "stuck"
    assert answer_body["processor"]["failingSince"] == "2024-06-12T12:00:00Z"
    assert answer_body["processor"]["error"] == "no such table: events"


async def test_sinks_are_listed_with_lag_and_dead_letters(database: Database) -> None:
    await lease(database)
    await sinks.register(database, "crm", start="end", fingerprint="f")
    await process_as_holder(database)
    answer_body = await status(database, sinks={"crm": {"name": "crm", "type": "webhook"}})
    [sink] = answer_body["sinks"]
    assert (sink["name"], sink["state"], sink["lag"], sink["deadLetters"]) == ("crm", "unattended", 1, 0)
    assert answer_body["problems"] == ["No worker publishes to sink crm."]


async def process_as_holder(database: Database) -> None:
    """Processes one callback although the test has the lease."""
    async with database.writing() as connection:
        row = (await connection.execute(update(PROCESSOR).values(lease_until=None).returning(PROCESSOR.c.id))).one()
        assert row.id == 1
    await process(database, callback([v2_event("m1")]))
    await lease(database)


async def test_what_the_web_process_knows_is_shown(database: Database) -> None:
    reader = StatusReader(database)

    async def findings() -> Findings:
        worker = WorkerRecord(mode="process", state="down", restarts=2)
        return replace(await reader.findings({}, clock=now), worker=worker, waiting=5)

    answer_body = await status(database, findings=findings)
    assert answer_body["journal"]["waiting"] == 5
    assert answer_body["worker"] == {"mode": "process", "state": "down", "process": None, "restarts": 2, "since": None}


# --- broken databases ---


@pytest.mark.parametrize(
    ("table", "lost"), [("processor", {"processor"}), ("sinks", {"sinks"}), ("retries", set()), ("messages", set())]
)
async def test_a_renamed_table_costs_its_part_alone(database: Database, table: str, lost: set[str]) -> None:
    await run(database, f"ALTER TABLE {table} RENAME TO {table}_away")
    answer_body = await status(database)
    # SQLite's backlog is what is behind the processor's cursor
    lost = lost | ({"journal"} if table == "processor" and database.is_sqlite else set())
    assert known(answer_body) == set(PARTS) - lost
    assert len([problem for problem in answer_body["problems"] if "cannot be read" in problem]) == len(lost)


def known(answer_body: dict[str, Any]) -> set[str]:
    """The parts that could be read."""
    found = {
        "journal": answer_body["journal"]["pending"],
        "processor": answer_body["processor"]["callbacks"],
        "sinks": answer_body["sinks"],
        "database": answer_body["database"],
        "reconciliation": answer_body["reconciliation"],
        "alerts": answer_body["alerts"],
    }
    return {part for part, value in found.items() if value is not None}


async def test_a_journal_that_is_gone_costs_its_part_alone(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "callbacks.db").unlink()
    database = Database(sqlite_url)
    try:
        answer_body = await status(database)
    finally:
        await database.close()
    assert known(answer_body) == set(PARTS) - {"journal"}
    assert answer_body["database"]["journalBytes"] is None


@pytest.mark.parametrize("file", ["receiver.db", "callbacks.db"])
async def test_a_damaged_file_is_a_problem_and_no_error(sqlite_url: str, tmp_path: Path, file: str) -> None:
    with closing(sqlite3.connect(tmp_path / file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray((tmp_path / file).read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    (tmp_path / file).write_bytes(content)
    database = Database(sqlite_url)
    try:
        answer_body = await status(database)
    finally:
        await database.close()
    assert answer_body["status"] == "degraded"
    assert any("malformed" in problem for problem in answer_body["problems"])
    assert "database" in known(answer_body)


async def test_a_postgresql_that_is_away_is_a_problem_and_no_error() -> None:
    database = Database(f"postgresql://postgres@127.0.0.1:{free_port()}/nothing")
    try:
        answer_body = await status(database)
    finally:
        await database.close()
    assert known(answer_body) == set()
    assert len(answer_body["problems"]) == len(PARTS)


async def test_a_postgresql_that_does_not_answer_is_waited_for_no_longer_than_allowed() -> None:
    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(writer)

    connected: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    database = Database(f"postgresql://postgres@127.0.0.1:{port}/nothing")
    reader = StatusReader(database)

    async def findings() -> Findings:
        return await reader.findings({}, clock=now, seconds=0.1)

    try:
        for _ in range(3):
            answer_body, seconds = await timed(lambda: status(database, findings=findings))
            assert known(answer_body) == set()
            # sooner than the attempts to connect fail
            assert seconds < STATEMENT_SECONDS
        assert await reader.measured(seconds=0.01) == Measured(backlog=None, database=None, last_callbacks={})
        # whoever looks again waits for the connections that are being made already
        assert len(connected) <= 2 * len(PARTS)
    finally:
        for writer in connected:
            writer.close()
        server.close()
        await server.wait_closed()
        await database.close()


async def timed(work: Callable[[], Awaitable[dict[str, Any]]]) -> tuple[dict[str, Any], float]:
    began = time.monotonic()
    return await work(), time.monotonic() - began


async def test_write_ahead_log_that_a_reader_keeps_is_logged_once_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "LARGE_WAL_BYTES", 1024 * 1024)
    url = f"sqlite:///{tmp_path}/receiver.db"
    receiver = Receiver(Settings(database_url=url, callback_auth="none", api_auth="none", worker="none"))
    with capture_logs() as lines:
        async with receiver.running():
            await receiver._check_storage()
            with closing(sqlite3.connect(tmp_path / "callbacks.db", isolation_level=None)) as reader:
                reader.execute("BEGIN")
                reader.execute("SELECT count(*) FROM callbacks").fetchall()
                for _ in range(4):
                    await receiver.journal.append(callback(b" " * 500_000))
                for _ in range(3):
                    await receiver._check_storage()
    logged = [line for line in lines if line["event"] == "the database needs room"]
    assert len(logged) == 1
    assert "write-ahead logs" in logged[0]["problem"]
