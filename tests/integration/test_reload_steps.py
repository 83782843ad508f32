"""A reload is all or nothing: whichever of its steps fails, nothing of the old configuration has changed."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr
from sqlalchemy import event

from receiver import app, supervisor, worker
from receiver.alerts import targets
from receiver.alerts.apprise import AppriseTarget
from receiver.app import Receiver
from receiver.dispatch.dispatcher import Dispatcher
from receiver.errors import ReceiverError, StorageUnavailable
from receiver.models.sinks import SINKS
from receiver.settings import Settings
from receiver.storage import sinks
from receiver.tags import sign
from tests.dispatching import rows
from tests.factories import v2_event
from tests.waiting import eventually
from tests.web import serving

pytestmark = pytest.mark.anyio

KEYS = {"old": "k" * 32, "new": "n" * 32}


def settings(url: str, folder: Path, name: str, *more: str) -> Settings:
    """Settings of which everything that a reload applies differs by `name`."""
    return Settings(
        database_url=url,
        worker="inline",
        callback_credentials=[f"bandwidth:{name}"],
        api_tokens=[f"token-{name}"],
        tag_keys=[f"{name}:{KEYS[name]}"],
        tag_policy="record",
        max_body_bytes=100_000 if name == "old" else 200_000,
        sinks=[{"name": one, "type": "jsonl", "path": str(folder / f"{one}.jsonl")} for one in (name, *more)],
    )


@dataclass
class Running:
    receiver: Receiver
    client: httpx2.AsyncClient
    folder: Path

    @property
    def worker(self) -> Any:
        thread: Any = self.receiver.worker
        return thread._worker

    async def post(self, name: str, message_id: str) -> int:
        sent = v2_event(message_id=message_id)
        sent["message"]["tag"] = sign("invoice-1", KEYS["old"], kid="old")
        answer = await self.client.post("/callbacks/bandwidth/v2", json=[sent], auth=("bandwidth", name))
        return answer.status_code

    async def published(self, name: str) -> dict[str, str]:
        """The tag verdict of each message that a sink has got."""
        path = self.folder / f"{name}.jsonl"
        events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return {one["subject"]: one["data"]["tagVerdict"] for one in events}

    async def has_configuration(self, name: str, other: str) -> None:
        """Fails unless every part is as the settings `name` have it, and nothing as `other` has it."""
        token, wrong = ({"authorization": f"Bearer token-{one}"} for one in (name, other))
        assert (await self.client.get("/api/status", headers=token)).status_code == 200
        assert (await self.client.get("/api/status", headers=wrong)).status_code == 401
        assert (await self.client.get("/metrics", headers=token)).status_code == 200
        assert (await self.client.get("/metrics", headers=wrong)).status_code == 401
        tag = (await self.client.post("/api/tags", json={"value": "v"}, headers=token)).json()["tag"]
        assert tag == sign("v", KEYS[name], kid=name)
        assert (await self.client.post(f"/api/sinks/{name}/test", headers=token)).status_code == 200
        assert (await self.client.post(f"/api/sinks/{other}/test", headers=token)).status_code == 404
        message_id = f"{name}-{len(await self.published(name))}"
        assert await self.post(other, "refused") == 401
        assert await self.post(name, message_id) == 200
        await eventually(lambda: self._has(name, message_id))
        # Signed with the old key.
        assert (await self.published(name))[message_id] == ("valid" if name == "old" else "forged")
        assert message_id not in await self.published(other)

    async def _has(self, name: str, message_id: str) -> bool:
        return message_id in await self.published(name)


@asynccontextmanager
async def running(url: str, folder: Path) -> AsyncIterator[Running]:
    receiver = Receiver(settings(url, folder, "old"))
    async with (
        serving(receiver.app) as base,
        httpx2.AsyncClient(base_url=base, trust_env=False, verify=False, timeout=20) as client,
    ):
        yield Running(receiver, client, folder)


def fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("this step fails")


async def lost(_: object, work: Any) -> None:
    work.close()
    raise RuntimeError("this step fails")


def unavailable(*_: Any, **__: Any) -> Any:
    raise StorageUnavailable("the disk is away")


def replace(owner: object, name: str, failing: Callable[..., Any] = fail) -> Callable[[Running, Any], None]:
    return lambda _, patch: patch.setattr(owner, name, failing)


def break_second_registration(run: Running, patch: pytest.MonkeyPatch) -> None:
    """The first of two new sinks is inserted, the second is not."""
    inserted: list[str] = []

    def execute(*arguments: Any) -> None:
        if str(arguments[2]).startswith("INSERT INTO sinks"):
            inserted.append("one")
            if len(inserted) == 2:
                raise OSError("the disk is away")

    event.listen(run.worker._database.engine.sync_engine, "before_cursor_execute", execute)


# The steps of `Receiver.reload`, `WorkerThread.reload` and `Worker.reload`, in their order.
STEPS: dict[str, Callable[[Running, Any], None]] = {
    "web: sinks": replace(app, "configured_sinks"),
    "web: tag checker": replace(app, "tag_checker"),
    "web: callback credentials": replace(app, "_admission"),
    "web: targets of alerts": replace(app, "configured_targets"),
    "web: tokens": replace(app, "Tokens"),
    "web: health": replace(app, "Health"),
    "web: tag key": replace(app, "tag_keys"),
    "web: operations": replace(app.routes, "routes"),
    "the way to the worker": replace(supervisor.WorkerThread, "_on_worker_loop", lost),
    "worker: sinks": replace(worker, "configured_sinks"),
    "worker: tag checker": replace(worker, "tag_checker"),
    "worker: targets of alerts": replace(worker, "configured_targets"),
    "worker: rules of alerts": replace(worker, "rulebook"),
    "worker: registration": replace(sinks, "register_all", unavailable),
    "worker: second registration": break_second_registration,
}


@pytest.mark.parametrize("step", STEPS)
async def test_failing_step_changes_nothing(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async with running(sqlite_url, tmp_path) as run:
        await run.has_configuration("old", "new")
        parts = lambda: (  # noqa: E731
            run.receiver.settings,
            run.worker.processor.checker,
            run.worker._pruner.sinks,
            dict(run.worker._dispatchers._configured),
            dict(run.worker._dispatchers._dispatchers),
        )
        before, table = parts(), [row.name for row in await rows(run.receiver.database, SINKS)]
        with monkeypatch.context() as patch:
            STEPS[step](run, patch)
            with pytest.raises((RuntimeError, ReceiverError)):
                await run.receiver.reload(settings(sqlite_url, tmp_path, "new", "newer"))
        assert parts() == before
        assert [row.name for row in await rows(run.receiver.database, SINKS)] == table
        await run.has_configuration("old", "new")


async def test_reload_in_which_no_step_fails_changes_everything(sqlite_url: str, tmp_path: Path) -> None:
    async with running(sqlite_url, tmp_path) as run:
        await run.has_configuration("old", "new")
        await run.receiver.reload(settings(sqlite_url, tmp_path, "new", "newer"))
        await run.has_configuration("new", "old")
        assert run.worker._pruner.sinks == {"new", "newer"}


async def test_targets_of_alerts_are_made_once_and_block_neither_callbacks_nor_processor(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocking: list[bool] = []

    def make(*arguments: Any) -> AppriseTarget:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            blocking.append(False)
        else:
            blocking.append(True)
        return AppriseTarget(*arguments)

    monkeypatch.setattr(targets, "AppriseTarget", make)
    async with running(sqlite_url, tmp_path) as run:
        await run.has_configuration("old", "new")
        changed = settings(sqlite_url, tmp_path, "new")
        await run.receiver.reload(changed.model_copy(update={"alert_to": [SecretStr("json://127.0.0.1/hook")]}))
    # Once for the web process, once for the worker.
    assert blocking == [False, False]


async def test_sink_that_does_not_stop_orderly_does_not_stop_a_reload(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old sinks are stopped when everything else is applied already."""
    stop = Dispatcher.stop

    async def failing_stop(self: Dispatcher) -> None:
        await stop(self)
        raise RuntimeError("it does not stop orderly")

    async with running(sqlite_url, tmp_path) as run:
        await run.has_configuration("old", "new")
        with monkeypatch.context() as patch:
            patch.setattr(Dispatcher, "stop", failing_stop)
            await run.receiver.reload(settings(sqlite_url, tmp_path, "new", "newer"))
        await run.has_configuration("new", "old")
