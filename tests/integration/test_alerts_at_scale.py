"""A round of the default rules over a million messages and a busy day of counts, on both databases, in time."""

from datetime import timedelta

import pytest
from sqlalchemy import update

from receiver.alerts.rules import configure
from receiver.domain.alert_rules import evaluate
from receiver.models.alerts import EVENT_COUNTS
from receiver.models.messages import MESSAGES
from receiver.storage import alert_facts
from receiver.storage.bulk import InsertMany
from receiver.storage.database import Database
from receiver.storage.event_counts import HISTORY, HOUR, MINUTE, NO_BUCKET, NO_CODE
from receiver.storage.status import StatusReader
from tests.databases import Explained
from tests.integration.test_messages_at_scale import MESSAGES as NUMBER
from tests.integration.test_messages_at_scale import START, stock
from tests.waiting import cpu_at_most

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

NOW = START + timedelta(minutes=NUMBER)
# A hundred messages a second: what there is of a minute and of an hour, of six applications and five carriers.
CELLS = [
    {
        "measure": measure,
        "api": "v2",
        "direction": "out",
        "application_id": f"a-{application}",
        "carrier_name": f"carrier {carrier}",
        "sender": "",
        "delivery_code": code,
        "bucket": bucket,
        "events": 25,
    }
    for application in range(6)
    for carrier in range(5)
    for measure, code, bucket in (
        *(("delivered", NO_CODE, bucket) for bucket in range(8, 20)),
        *(("failed", code, NO_BUCKET) for code in (4470, 4720, 4750, 4770)),
        ("unconfirmed", 9902, NO_BUCKET),
    )
]
RECEIPTS = [
    {**CELLS[0], "measure": "receipt", "application_id": f"a-{number}", "carrier_name": "", "delivery_code": NO_CODE,
     "bucket": NO_BUCKET}
    for number in range(6)
]  # fmt: skip


async def fill(database: Database) -> None:
    """A million messages, of which those of two days wait for a receipt, and the counts of a busy day."""
    await stock(database)
    waits = update(MESSAGES).where(MESSAGES.c.listed_at >= NOW - timedelta(days=2)).values(awaiting_receipt=True)
    async with database.writing() as connection:
        await connection.execute(waits)
    await fill_counts(database)


async def fill_counts(database: Database) -> None:
    minute, hour = int(NOW.timestamp() // 60), int(NOW.timestamp() // 3600)
    columns = tuple(column.name for column in EVENT_COUNTS.columns)
    for grain, starts, cells in (
        (MINUTE, range(minute - 119, minute + 1), [*CELLS, *RECEIPTS]),
        (HOUR, range(hour - 49, hour + 1), [*CELLS, *RECEIPTS]),
        (HISTORY, range(hour - 5 * 168, hour), RECEIPTS),
    ):
        counted = [
            tuple({**cell, "grain": grain, "start": start}[name] for name in columns)
            for start in starts
            for cell in cells
        ]
        for place in range(0, len(counted), 5_000):
            async with database.appending() as transaction:
                await transaction.run([InsertMany(EVENT_COUNTS, columns, counted[place : place + 5_000])])
    if not database.is_sqlite:
        driver = database.driver_connection()
        try:
            await driver.use(lambda connection: connection.execute("ANALYZE", timeout=60))
        finally:
            await driver.close()


async def test_a_round_over_a_million_messages_is_quick(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(database)
    rules = configure([])
    with cpu_at_most(40):
        await alert_facts.gather(StatusReader(database), rules, NOW, sinks={})
    with cpu_at_most(20):
        facts = await alert_facts.gather(StatusReader(database), rules, NOW, sinks={})
    with cpu_at_most(6):
        found = {rule.name: evaluate(rule, facts, NOW) for rule in rules}
    assert found["failure-rate"]
    assert len(found["receipts-stopped"]) == 6
    waiting = next(rule for rule in rules if rule.name == "awaiting-receipt")
    with cpu_at_most(20):
        await alert_facts.offending(database, [(waiting, None)], facts, NOW)
    explained = {
        "ix_messages_awaiting": alert_facts._overdue(waiting, NOW, [alert_facts.MESSAGES.c.id]).limit(20_000),
        "event_counts": alert_facts._window(alert_facts.Span(timedelta(minutes=15), False), NOW),
    }
    async with database.reading() as connection:
        for index, statement in explained.items():
            plan = "\n".join(str(row) for row in await connection.execute(Explained(statement)))
            print(plan)
            assert index in plan
            assert "Seq Scan" not in plan
