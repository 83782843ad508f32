"""A server and its worker behind PgBouncer: as without it, in every mode, and also when the bouncer restarts."""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers.pgbouncer import OwnPgBouncer, PoolMode
from tests.faults.audit import arrive, audit, audit_sink
from tests.faults.load import Load, published
from tests.processes import receiver, serving

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

FILE = {"name": "file", "type": "jsonl", "path": "events.jsonl", "start": "beginning"}
SETTINGS = {"CALLBACK_CREDENTIALS": '["u:p"]', "API_TOKENS": '["token"]', "SINKS": json.dumps([FILE])}
IGNORED = "plan_cache_mode,lock_timeout,idle_in_transaction_session_timeout,tcp_user_timeout,synchronous_commit,jit"


@pytest.fixture(
    params=[("transaction", ""), ("transaction", IGNORED), ("session", "")], ids=["transaction", "ignoring", "session"]
)
def bouncer(request: pytest.FixtureRequest, postgres_url: str) -> Iterator[OwnPgBouncer]:
    mode: PoolMode
    mode, ignored = request.param
    # pytest's temporary folders are closed to the user that runs PgBouncer.
    with tempfile.TemporaryDirectory(prefix="receiver-") as folder:
        Path(folder).chmod(0o755)
        with OwnPgBouncer(Path(folder), postgres_url, mode, ignored=ignored) as bouncer:
            yield bouncer


async def test_pgbouncer_changes_nothing_and_its_restart_loses_nothing(
    postgres_url: str, bouncer: OwnPgBouncer, tmp_path: Path
) -> None:
    load = Load()
    settings = {**SETTINGS, "DATABASE_URL": bouncer.url}
    assert receiver(tmp_path, "migrate", **settings).returncode == 0
    with serving(tmp_path, settings=settings) as server:
        async with load.on(server.url, "a", connections=12, pause=0.01):
            await asyncio.sleep(3)
        assert set(load.answers) == {200}
        async with load.on(server.url, "b", connections=12, pause=0.02):
            await asyncio.sleep(1)
            await asyncio.to_thread(bouncer.stop)
            await asyncio.sleep(1)
            await asyncio.to_thread(bouncer.start)
            await asyncio.sleep(2)
        assert set(load.answers) <= {200, 503}
        accepted = load.answers[200]
        async with load.on(server.url, "c", connections=12, pause=0.01):
            await asyncio.sleep(1)
        assert load.answers[200] > accepted
        events = await audit(postgres_url, load)
        await arrive(lambda: published(tmp_path / "events.jsonl"), events)
        audit_sink(published(tmp_path / "events.jsonl"), events)
        checked = receiver(tmp_path, "check", PORT="0", **settings)
        assert (checked.returncode, b"through a connection pooler" in checked.stdout) == (0, True)
        for command in (["status"], ["messages", "list"], ["rebuild", "--dry-run"], ["prune"]):
            ran = receiver(tmp_path, *command, **settings)
            assert ran.returncode == 0, ran.stderr
        assert server.stop() == 0
    log = server.errors.read_text("utf-8")
    assert "Traceback" not in log
    assert "prepared statement" not in log
