"""SIGKILL before and after a notification is sent: its target hears of it once more at most, and never not at all."""

import asyncio
import json
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text, update

from receiver.domain.alerts import RuleType
from receiver.models.alerts import NOTIFICATIONS
from receiver.storage.database import Database
from tests.alerting import configured, fire, hook_server, make_rule, states
from tests.faults.load import let_the_lease_lapse
from tests.processes import foreground, receiver
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.faults]


@pytest.mark.parametrize(("failpoint", "copies"), [("notification_begun", 1), ("notification_sent", 2)])
async def test_killed_notifier_loses_no_notification(
    database: Database, database_url: str, tmp_path: Path, failpoint: str, copies: int
) -> None:
    with hook_server() as hook:
        url = f"json://{hook.address}/"
        settings = {
            "DATABASE_URL": database_url,
            "ALERTS": json.dumps([{"rule": "external", "to": [url]}]),
            "ALERTS_EVERY": "0",
        }
        await fire(database, configured([make_rule(url)]), name="external", rule=RuleType.EXTERNAL)
        worker = await asyncio.to_thread(receiver, tmp_path, "work", **settings, TEST_FAILPOINT=failpoint)
        assert worker.returncode == -signal.SIGKILL, worker.stderr
        assert len(hook.posted) == copies - 1
        assert await states(database) == [("fired", "due")]
        await let_the_lease_lapse(database_url)
        async with database.writing() as connection:
            # Spares the test the thirty seconds after which the attempt is made again.
            await connection.execute(update(NOTIFICATIONS).values(due_at=datetime.now(UTC)))
        with foreground(tmp_path, "work", **{f"RECEIVER_{name}": value for name, value in settings.items()}) as running:

            async def is_sent() -> bool:
                return await states(database) == [("fired", "sent")]

            await eventually(is_sent)
            assert await asyncio.to_thread(running.stop, signal.SIGTERM) == 0
        assert len(hook.posted) == copies
        assert {one.json["title"] for one in hook.posted} == {"Warning: external (T-Mobile)"}
    async with database.reading() as connection:
        attempts = (await connection.execute(text("SELECT max(attempts) FROM notifications"))).scalar_one()
    assert attempts == 2
