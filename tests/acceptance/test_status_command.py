"""`receiver status` and `/api/status` of a running server: words, exit code, and problems while the server runs."""

import asyncio
import json
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from receiver.storage.status import GATHER_SECONDS
from tests.factories import v2_event
from tests.processes import PATIENT, Server, receiver, serving, until
from tests.waiting import eventually

CREDENTIALS, TOKEN = ("bandwidth", "secret"), "token"
SETTINGS = {"CALLBACK_CREDENTIALS": '["bandwidth:secret"]', "API_TOKENS": f'["{TOKEN}"]'}
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


def post(server: Server, message_id: str) -> None:
    url = f"{server.url}/callbacks/bandwidth/v2"
    answer = httpx2.post(url, json=[v2_event(message_id)], auth=CREDENTIALS, **PATIENT)
    assert answer.status_code == 200


def status(server: Server) -> dict[str, Any]:
    answer = httpx2.get(f"{server.url}/api/status", headers=AUTHORIZED, **PATIENT)
    assert answer.status_code == 200
    installation: dict[str, Any] = answer.json()
    return installation


def gauges(server: Server) -> dict[str, float]:
    page = httpx2.get(f"{server.url}/metrics", headers=AUTHORIZED, **PATIENT).text
    lines = (line.rpartition(" ") for line in page.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def rename(file: Path, before: str, after: str) -> None:
    with closing(sqlite3.connect(file, timeout=20)) as connection:
        connection.execute(f"ALTER TABLE {before} RENAME TO {after}")


def test_status_in_words_and_as_json_with_and_without_a_server(tmp_path: Path) -> None:
    with serving(tmp_path, settings=SETTINGS) as server:
        post(server, "m1")
        until(lambda: status(server)["processor"]["callbacks"] == 1)
        installation = status(server)
        assert (installation["status"], installation["worker"]["state"]) == ("ok", "running")
        shown = receiver(tmp_path, "status", **SETTINGS)
        assert shown.returncode == 0
        lines = dict(line.split(None, 1) for line in shown.stdout.decode().splitlines())
        assert lines["processor"] == "working, 1 callbacks processed, 0 of them repeats"
        assert {"receiver", "journal", "processor", "database", "alerts", "last"} == set(lines)
        assert server.stop() == 0
    stopped = receiver(tmp_path, "status", "--json", **SETTINGS)
    assert stopped.returncode == 1
    found = json.loads(stopped.stdout)
    assert (found["processor"]["state"], found["worker"]) == ("missing", None)
    assert found["problems"] == ["No worker processes callbacks: start receiver serve, or receiver work."]
    in_words = receiver(tmp_path, "status", **SETTINGS)
    assert (in_words.returncode, b"! No worker processes callbacks" in in_words.stdout) == (1, True)


def test_status_waits_for_a_busy_database_longer_than_the_api(tmp_path: Path, postgres_url: str) -> None:
    locks = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'sinks'::regclass"

    async def with_a_locked_table() -> bytes:
        holder, watcher = await asyncpg.connect(postgres_url), await asyncpg.connect(postgres_url)
        try:
            async with holder.transaction():
                await holder.execute("LOCK TABLE sinks IN ACCESS EXCLUSIVE MODE")
                printing = asyncio.create_task(
                    asyncio.to_thread(receiver, tmp_path, "status", DATABASE_URL=postgres_url)
                )
                await eventually(lambda: watcher.fetchval(locks))
                await asyncio.sleep(GATHER_SECONDS + 0.3)
            return (await printing).stdout
        finally:
            await holder.close()
            await watcher.close()

    printed = asyncio.run(with_a_locked_table())
    assert b"missing, 0 callbacks processed" in printed
    assert b"no answer within" not in printed


def test_status_without_a_database_says_so(tmp_path: Path) -> None:
    shown = receiver(tmp_path, "status")
    assert (shown.returncode, b"there is no database" in shown.stderr) == (1, True)


@pytest.mark.slow
def test_status_reports_a_stuck_processor_while_callbacks_are_accepted(tmp_path: Path) -> None:
    file = tmp_path / "receiver-data" / "receiver.db"
    with serving(tmp_path, settings=SETTINGS) as server:
        post(server, "m1")
        until(lambda: status(server)["processor"]["callbacks"] == 1)
        rename(file, "events", "events_away")
        post(server, "m2")
        until(lambda: status(server)["processor"]["state"] == "stuck")
        installation = status(server)
        assert "events" in installation["processor"]["error"]
        assert (installation["status"], installation["journal"]["pending"]) == ("degraded", 1)
        until(lambda: gauges(server)["receiver_pending_callbacks"] == 1)
        assert receiver(tmp_path, "status", **SETTINGS).returncode == 1
        rename(file, "events_away", "events")
        until(lambda: status(server)["status"] == "ok")
        until(lambda: gauges(server)["receiver_pending_callbacks"] == 0)


@pytest.mark.faults
def test_status_reports_a_killed_worker_and_its_restart(tmp_path: Path) -> None:
    with serving(tmp_path, settings=SETTINGS) as server:
        until(lambda: gauges(server)["receiver_worker_up"] == 1)
        process = status(server)["worker"]["process"]
        os.kill(process, signal.SIGKILL)
        until(lambda: status(server)["worker"]["restarts"] == 1)
        until(lambda: status(server)["status"] == "ok")
        assert status(server)["worker"]["process"] != process
