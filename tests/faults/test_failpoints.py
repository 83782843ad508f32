"""SIGKILL at each step between a callback's body and the processor's cursor: each event is in the log exactly once."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from receiver.domain.events import ALERT
from receiver.storage.database import Database
from tests.factories import callback
from tests.faults.audit import audit
from tests.faults.load import Load, identity, let_the_lease_lapse, posts
from tests.faults.test_killed_servers import SETTINGS
from tests.processes import PATIENT, Server, receiver, serving
from tests.processing import append, drain

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

# at the third of the callbacks that are posted one after the other
OF_THE_WEB_PROCESS = ("body:3", "accepted:3")
OF_THE_WORKER = ("read", "folded", "written", "advanced", "committed")


@pytest.mark.parametrize("failpoint", OF_THE_WEB_PROCESS)
async def test_web_process_killed_at_failpoint_gets_a_repeat_and_logs_it_once(
    database: Database, database_url: str, tmp_path: Path, failpoint: str
) -> None:
    settings, load, bodies = {**SETTINGS, "DATABASE_URL": database_url, "WORKER": "none"}, Load(), posts("m1")
    with serving(tmp_path, settings={**settings, "TEST_FAILPOINT": failpoint}) as server:
        post(server, load, bodies[:2])
        with pytest.raises(httpx2.TransportError):
            post(server, load, bodies[2:3])
        assert await asyncio.to_thread(server.process.wait, 60) == -signal.SIGKILL
    with serving(tmp_path, settings=settings) as server:
        # As Bandwidth does: what was not answered is sent again.
        post(server, load, bodies[2:])
        assert server.stop() == 0
    await drain(database)
    assert len(await audit(database_url, load)) == len(load.acknowledged) == 6


def post(server: Server, load: Load, bodies: list[list[dict[str, Any]]]) -> None:
    """Posts callbacks one after the other, and notes those that are answered 200."""
    with httpx2.Client(base_url=server.url, auth=("u", "p"), **PATIENT) as client:
        for body in bodies:
            assert client.post("/callbacks/bandwidth/v2", json=body).status_code == 200
            load.acknowledged |= {identity(event) for event in body}


@pytest.mark.parametrize("failpoint", OF_THE_WORKER)
async def test_worker_killed_at_failpoint_logs_each_event_once(
    database: Database, database_url: str, tmp_path: Path, failpoint: str
) -> None:
    load, bodies = Load(), posts("m1")
    await append(database, *(callback(body) for body in bodies))
    load.acknowledged = {identity(event) for body in bodies for event in body}
    worker = await asyncio.to_thread(
        receiver, tmp_path, "work", DATABASE_URL=database_url, TEST_FAILPOINT=failpoint, SINKS=json.dumps([])
    )
    assert worker.returncode == -signal.SIGKILL, worker.stderr
    async with database.reading() as connection:
        logged = (await connection.execute(text(f"SELECT count(*) FROM events WHERE type <> '{ALERT}'"))).scalar_one()
    assert logged == (6 if failpoint == "committed" else 0)
    await let_the_lease_lapse(database_url)
    await drain(database)
    assert len(await audit(database_url, load)) == 6
