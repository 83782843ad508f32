"""SIGKILL at each step of evaluating alerts: an alert fires once in the log, and another worker goes on in seconds."""

import asyncio
import json
import signal
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from receiver.storage.database import Database
from tests.evaluating import alert_entries
from tests.factories import callback, v2_event
from tests.processes import foreground, receiver
from tests.processing import append, drain, now
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

SETTINGS = {
    "ALERTS": json.dumps([{"rule": "fallback-used", "name": "fallback"}]),
    "ALERTS_EVERY": "1s",
    "SINKS": json.dumps([]),
}
FAILPOINTS = ("alerts_counted", "alerts_evaluated", "alerts_written", "alerts_committed")


@pytest.mark.parametrize("failpoint", FAILPOINTS)
async def test_worker_killed_at_failpoint_of_alerts_fires_once(
    database: Database, database_url: str, tmp_path: Path, failpoint: str
) -> None:
    await append(database, callback([v2_event("m1")], received_at=now(), route="fallback"))
    await drain(database)
    settings = {**SETTINGS, "DATABASE_URL": database_url}
    killed = await asyncio.to_thread(receiver, tmp_path, "work", **settings, TEST_FAILPOINT=failpoint)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(await alert_entries(database)) == (1 if failpoint == "alerts_committed" else 0)
    before, began = await evaluated_at(database), time.monotonic()
    with foreground(tmp_path, "work", **{f"RECEIVER_{name}": value for name, value in settings.items()}):
        await eventually(lambda: is_evaluated_after(database, before))
        # On PostgreSQL the lease of the dead worker lapses after 8 s; the rest is the start of a process.
        assert time.monotonic() - began < 25
        await eventually(lambda: has_fired(database))
        # The next rounds bring no more.
        before = await evaluated_at(database)
        await eventually(lambda: is_evaluated_after(database, before))
    [fired] = await alert_entries(database)
    assert fired.event.alert["name"] == "fallback"
    assert fired.event.alert["messages"] == ["m1"]


async def evaluated_at(database: Database) -> str:
    async with database.reading() as connection:
        return str((await connection.execute(text("SELECT evaluated_at FROM alerting"))).scalar_one())


async def is_evaluated_after(database: Database, before: str) -> bool:
    return await evaluated_at(database) > before


async def has_fired(database: Database) -> bool:
    return len(await alert_entries(database)) == 1
