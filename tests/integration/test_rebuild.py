"""Rebuild on both databases: the status table made anew from the log, and nothing else touched."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update

from receiver.domain.delivery import FinalConflict
from receiver.domain.events import Api
from receiver.intake import Intake
from receiver.metrics import Metrics
from receiver.storage.database import Database
from receiver.storage.rebuild import Rebuild, Rebuilt
from receiver.storage.tables import DeliveryRow, MessageRow
from tests.events import at
from tests.posts import callback, v1_event, v2_event

pytestmark = pytest.mark.anyio

MESSAGES = 120  # more than one bite


@pytest.fixture
async def intake(database: Database) -> AsyncIterator[Intake]:
    intake = Intake(database, observer=Metrics(), clock=lambda: at(0))
    await intake.start()
    yield intake
    await intake.stop()


async def take_in_a_mixture(intake: Intake) -> None:
    """Messages of every kind: several recipients, contradictions, texts, both generations, one id in both."""
    bodies: list[tuple[Any, Api]] = [([v2_event(f"m{number}")], Api.V2) for number in range(MESSAGES)]
    bodies += [
        ([v2_event("m0", "message-failed", errorCode=4720, time="2026-01-01T00:00:09Z")], Api.V2),
        ([v2_event("group", "message-sending", to=None, message={"to": ["+15550001", "+15550002"]})], Api.V2),
        ([v2_event("group", message={"to": ["+15550001", "+15550002"]})], Api.V2),
        ([v2_event("in", "message-received", message={"direction": "in", "text": "hi", "media": ["u"]})], Api.V2),
        ([v1_event("m0"), v1_event("m-2", deliveryState="not-delivered", deliveryCode="902")], Api.V1),
        ([v2_event("timeless", time="whenever", tag="t")], Api.V2),
    ]
    await asyncio.gather(*(intake.accept(callback(body, api=api)) for body, api in bodies))


async def table(database: Database, row: Any) -> list[dict[str, Any]]:
    statement = select(row.__table__).order_by(*row.__table__.primary_key)
    async with database.reading() as connection:
        return [dict(found._mapping) for found in await connection.execute(statement)]


async def write(database: Database, statement: Any) -> None:
    async with database.writing() as connection:
        await connection.execute(statement)


async def test_a_table_that_is_right_is_not_written(database: Database, intake: Intake) -> None:
    await take_in_a_mixture(intake)
    rebuilt = await Rebuild(database, FinalConflict.FAILED_WINS).run()
    assert rebuilt == Rebuilt(messages=MESSAGES + 5, forgotten=0, differing=0)


async def test_rows_that_are_wrong_missing_or_too_many_are_put_right(database: Database, intake: Intake) -> None:
    await take_in_a_mixture(intake)
    right = await table(database, MessageRow), await table(database, DeliveryRow)
    stale = {**right[1][0], "recipient_key": "15559876", "recipient": "+15559876"}
    for damage in (
        update(MessageRow).where(MessageRow.id == "m7").values(status="queued", tag="other"),
        update(DeliveryRow).where(DeliveryRow.message_id == "m119").values(delivered_at=None),
        delete(MessageRow).where(MessageRow.id == "m5"),
        delete(DeliveryRow).where(DeliveryRow.message_id == "group", DeliveryRow.recipient_key == "15550002"),
        insert(DeliveryRow).values(**stale),
    ):
        await write(database, damage)
    differing = 5
    looked = await Rebuild(database, FinalConflict.FAILED_WINS, writes=False).run()
    assert looked.differing == differing
    assert await table(database, MessageRow) != right[0]
    assert (await Rebuild(database, FinalConflict.FAILED_WINS).run()).differing == differing
    assert (await table(database, MessageRow), await table(database, DeliveryRow)) == right
    assert (await Rebuild(database, FinalConflict.FAILED_WINS).run()).differing == 0


async def test_text_and_media_stay(database: Database, intake: Intake) -> None:
    await take_in_a_mixture(intake)
    await write(database, update(MessageRow).where(MessageRow.id == "in").values(status="queued"))
    await Rebuild(database, FinalConflict.FAILED_WINS).run()
    [row] = [row for row in await table(database, MessageRow) if row["id"] == "in"]
    assert (row["status"], row["text"], row["media"]) == ("received", "hi", ["u"])


async def test_another_rule_for_conflicts_changes_the_rows_it_is_about(database: Database, intake: Intake) -> None:
    await take_in_a_mixture(intake)
    assert (await Rebuild(database, FinalConflict.DELIVERED_WINS).run()).differing == 2
    statuses = {(row["api"], row["id"]): row["status"] for row in await table(database, MessageRow)}
    assert statuses["v2", "m0"] == "delivered"
    assert (await Rebuild(database, FinalConflict.FAILED_WINS).run()).differing == 2


async def test_a_message_that_has_lost_events_is_left_alone(database: Database, intake: Intake) -> None:
    await take_in_a_mixture(intake)
    await write(
        database, update(MessageRow).where(MessageRow.id == "m3").values(events_forgotten=True, status="sending")
    )
    rebuilt = await Rebuild(database, FinalConflict.FAILED_WINS).run()
    assert (rebuilt.forgotten, rebuilt.differing) == (1, 0)


async def test_a_rebuild_beside_a_running_intake_loses_nothing(database: Database, intake: Intake) -> None:
    await take_in_a_mixture(intake)
    later = [
        callback([v2_event(f"m{number}", "message-read", time="2026-01-02T00:00:00Z")], received=60)
        for number in range(MESSAGES)
    ]
    await asyncio.gather(Rebuild(database, FinalConflict.FAILED_WINS).run(), *(intake.accept(one) for one in later))
    assert (await Rebuild(database, FinalConflict.FAILED_WINS).run()).differing == 0
    statuses = [row["status"] for row in await table(database, MessageRow) if row["api"] == "v2"]
    assert statuses.count("read") == MESSAGES
