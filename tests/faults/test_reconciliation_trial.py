"""1,000 sends, one in a hundred of them silent: exactly those are looked up, found and closed, also after SIGKILL."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from receiver.domain.events import RECONCILED, Api
from receiver.sandbox.app import application
from receiver.sandbox.settings import SandboxSettings
from receiver.storage.database import Database
from tests.brokers.own import free_port
from tests.processes import PATIENT, Server, receiver, serving
from tests.processing import drain, select
from tests.reconciling import SILENT, Recorder, register
from tests.sandboxes import API_TOKEN, PAIR, SECRET, TOKEN, USER, V1, V2, v1_message, v2_message
from tests.waiting import eventually
from tests.web import serving as serving_here

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

SENDS = 1000
ONE_IN = 100
AT_ONCE = 20
SETTINGS = {"CALLBACK_CREDENTIALS": json.dumps([PAIR]), "API_TOKENS": json.dumps([API_TOKEN])}


@dataclass
class Trial:
    """A sandbox, the look-ups there, and what was sent there."""

    url: str
    recorder: Recorder
    client: httpx2.AsyncClient
    callbacks: str
    sent: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)

    def reconciliation(self, **more: str) -> dict[str, str]:
        """The settings of a receiver that looks messages up at this sandbox."""
        values = {
            "V1_USER_ID": USER,
            "V1_CREDENTIALS": f"{TOKEN}:{SECRET}",
            "V1_URL": f"{self.url}/v1",
            "V2_ACCOUNT_ID": USER,
            "V2_CREDENTIALS": f"{TOKEN}:{SECRET}",
            "V2_URL": f"{self.url}/api/v2",
            "AFTER": "1",
            "REQUESTS_PER_SECOND": "50",
            "EGRESS_ALLOW": '["127.0.0.0/8"]',
            **more,
        }
        return {f"RECONCILIATION__{name}": value for name, value in values.items()}

    async def send(self, number: int, api: Api) -> dict[str, Any]:
        """Sends a message; returns it as it is registered."""
        to = SILENT if number % ONE_IN == 0 else f"+1919555{number:04}"
        if api is Api.V2:
            answer = await self.client.post(V2, json=v2_message(to=to))
            send: dict[str, Any] = answer.json()
            id_ = send["id"]
        else:
            url = self.callbacks.replace("://", f"://{PAIR}@") + "/v1"
            message = v1_message(to=to, receiptRequested="all", callbackUrl=url)
            answer = await self.client.post(V1, json=message)
            send = {"request": message, "location": answer.headers["Location"]}
            id_ = send["location"].rpartition("/")[2]
        self.sent.add(id_)
        if to == SILENT:
            self.silent.add(id_)
        return send

    async def is_idle(self) -> bool:
        answer = await self.client.get("/sandbox/idle", params={"wait": 45})
        return bool(answer.json()["idle"])


@asynccontextmanager
async def trial(port: int) -> AsyncIterator[Trial]:
    callbacks = f"http://127.0.0.1:{port}/callbacks/bandwidth"
    settings = SandboxSettings(
        speed=1000,
        messages_per_second=0,
        credentials=[f"{TOKEN}:{SECRET}"],
        outbound_url=f"{callbacks}/v2",
        callback_credentials=PAIR,
    )
    recorder = Recorder(application(settings))
    async with (
        serving_here(recorder) as url,
        httpx2.AsyncClient(base_url=url, auth=(TOKEN, SECRET), **PATIENT) as client,
    ):
        yield Trial(url, recorder, client, callbacks)


def api_of(server: Server) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=server.url, headers={"Authorization": f"Bearer {API_TOKEN}"}, **PATIENT)


async def awaited(api: httpx2.AsyncClient) -> set[str]:
    answer = await api.get("/api/messages", params={"awaitingReceipt": "true", "size": "1000"})
    return {message["id"] for message in answer.json()}


async def statuses(api: httpx2.AsyncClient) -> Mapping[str, str]:
    answer = await api.get("/api/messages", params={"size": "1000"})
    return {message["id"]: message["status"] for message in answer.json()}


@pytest.mark.parametrize("kind", list(Api))
async def test_of_1000_sends_exactly_the_silent_ones_are_looked_up_and_closed(
    database_url: str, tmp_path: Path, kind: Api
) -> None:
    port = free_port()
    settings = {**SETTINGS, "DATABASE_URL": database_url}
    async with trial(port) as there:
        with serving(tmp_path, "--port", str(port), settings=settings) as server:
            async with api_of(server) as api:
                for begin in range(0, SENDS, AT_ONCE):
                    sends = await asyncio.gather(*(there.send(begin + number, kind) for number in range(AT_ONCE)))
                    (await api.post("/api/messages", json=sends)).raise_for_status()
                await eventually(there.is_idle, 120)

                async def are_known() -> bool:
                    return await awaited(api) == there.silent

                await eventually(are_known, 120)
            assert server.stop() == 0
        assert (len(there.sent), len(there.silent)) == (SENDS, SENDS // ONE_IN)
        assert there.recorder.lookups == {}
        with serving(tmp_path, "--port", str(port), settings={**settings, **there.reconciliation()}) as server:
            async with api_of(server) as api:

                async def are_closed() -> bool:
                    return not await awaited(api)

                await eventually(are_closed, 120)
                assert await statuses(api) == dict.fromkeys(there.sent, "delivered")
                status = (await api.get("/api/status")).json()
            assert server.stop() == 0
        # Exactly those, and each once.
        assert there.recorder.lookups == dict.fromkeys(there.silent, 1)
    found = {one["api"]: (one["state"], one["requestsToday"]) for one in status["reconciliation"]}
    assert found == {one: ("working", len(there.silent) if one == kind else 0) for one in Api}
    assert "secret" not in server.errors.read_text("utf-8")
    async with closing(Database(database_url)) as database:
        rows = await select(database, "SELECT route, message_id FROM events WHERE route = 'reconciled'")
        assert {row.message_id for row in rows} == there.silent
        journal = await select(database, "SELECT route FROM callbacks WHERE route = 'reconciled'")
        assert len(journal) == len(rows) == len(there.silent)


@asynccontextmanager
async def closing(database: Database) -> AsyncIterator[Database]:
    try:
        yield database
    finally:
        await database.close()


@pytest.mark.parametrize("failpoint", ["claimed", "answered", "answered:5", "looked_up"])
async def test_worker_killed_during_look_ups_loses_nothing_and_looks_little_up_twice(
    database: Database, database_url: str, tmp_path: Path, failpoint: str
) -> None:
    async with trial(free_port()) as there:
        for number in range(0, 10 * ONE_IN, ONE_IN):
            await there.send(number, Api.V2)
        await register(database, Api.V2, *there.silent)
        settings = {"DATABASE_URL": database_url, **there.reconciliation()}
        for name in ("V1_USER_ID", "V1_CREDENTIALS"):
            del settings[f"RECONCILIATION__{name}"]
        killed = await asyncio.to_thread(receiver, tmp_path, "work", TEST_FAILPOINT=failpoint, **settings)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        before = there.recorder.lookups.copy()
        assert before.total() == {"claimed": 0, "answered": 1, "answered:5": 5, "looked_up": 10}[failpoint]
        # What the dead worker has appended is in the journal. Its claims and its leases lapse.
        await let_leases_lapse(database)
        await drain(database)
        await let_claims_lapse(database)
        with serving(tmp_path, settings={**SETTINGS, **settings}) as server:
            async with api_of(server) as api:

                async def are_closed() -> bool:
                    return not await awaited(api)

                await eventually(are_closed, 120)
                assert await statuses(api) == dict.fromkeys(there.silent, "delivered")
            assert server.stop() == 0
        # Only the message whose answer the process had in its hands is looked up again.
        again = there.recorder.lookups.total() - len(there.silent)
        assert again == (1 if failpoint.startswith("answered") else 0)
        assert max(there.recorder.lookups.values()) <= 2
    entries = await select(database, f"SELECT query FROM callbacks WHERE route = '{RECONCILED}'")
    assert sorted(row.query for row in entries) == sorted(f"messageId={id_}" for id_ in there.silent)


async def let_leases_lapse(database: Database) -> None:
    async with database.writing() as connection:
        for table in ("processor", "reconcilers"):
            await connection.exec_driver_sql(f"UPDATE {table} SET lease_until = NULL")


async def let_claims_lapse(database: Database) -> None:
    """As if five minutes had passed."""
    async with database.writing() as connection:
        await connection.exec_driver_sql("UPDATE reconciliations SET due_at = asked_at")
