"""Rebuild on both databases: the status table recomputed from the event log, and nothing else changed."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update

from receiver.domain.delivery import FinalConflict
from receiver.domain.events import Api, Callback
from receiver.models.messages import DeliveryRow, MessageRow
from receiver.storage import rebuild
from receiver.storage.database import Database
from receiver.storage.rebuild import Rebuild, Rebuilt
from tests.factories import callback, v1_event, v2_event
from tests.processing import append, drain, process

pytestmark = pytest.mark.anyio

MESSAGES = 120  # more than one batch


def mixture() -> list[Callback]:
    """Messages of every kind: several recipients, contradictions, texts, both versions and directions of one id."""
    bodies: list[tuple[Any, Api]] = [([v2_event(f"m{number}")], Api.V2) for number in range(MESSAGES)]
    bodies += [
        ([v2_event("m0", "message-failed", errorCode=4720, time="2026-01-01T00:00:09Z")], Api.V2),
        ([v2_event("group", "message-sending", to=None, message={"to": ["+15550001", "+15550002"]})], Api.V2),
        ([v2_event("group", message={"to": ["+15550001", "+15550002"]})], Api.V2),
        ([v2_event("in", "message-received", message={"direction": "in", "text": "hi", "media": ["u"]})], Api.V2),
        ([v2_event("m1", "message-received", message={"direction": "in", "text": "hello"})], Api.V2),
        ([v1_event("m0"), v1_event("m-2", deliveryState="not-delivered", deliveryCode="902")], Api.V1),
        ([v2_event("timeless", time="whenever", tag="t")], Api.V2),
    ]
    return [callback(body, api=api) for body, api in bodies]


async def table(database: Database, row: Any) -> list[dict[str, Any]]:
    statement = select(row.__table__).order_by(*row.__table__.primary_key)
    async with database.reading() as connection:
        return [dict(found._mapping) for found in await connection.execute(statement)]


async def write(database: Database, statement: Any) -> None:
    async with database.writing() as connection:
        await connection.execute(statement)


async def test_a_table_that_is_right_is_not_written(database: Database) -> None:
    await process(database, *mixture())
    rebuilt = await Rebuild(database, FinalConflict.FAILED_WINS).run()
    assert rebuilt == Rebuilt(messages=MESSAGES + 6, forgotten=0, differing=0)


async def test_rows_that_are_wrong_missing_or_too_many_are_put_right(database: Database) -> None:
    await process(database, *mixture())
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


async def test_text_and_media_stay(database: Database) -> None:
    await process(database, *mixture())
    await write(database, update(MessageRow).where(MessageRow.id == "in").values(status="queued"))
    await Rebuild(database, FinalConflict.FAILED_WINS).run()
    [row] = [row for row in await table(database, MessageRow) if row["id"] == "in"]
    assert (row["status"], row["text"], row["media"]) == ("received", "hi", ["u"])


async def test_another_rule_for_conflicts_changes_the_rows_it_is_about(database: Database) -> None:
    await process(database, *mixture())
    assert (await Rebuild(database, FinalConflict.DELIVERED_WINS).run()).differing == 2
    statuses = {(row["api"], row["id"]): row["status"] for row in await table(database, MessageRow)}
    assert statuses["v2", "m0"] == "delivered"
    assert (await Rebuild(database, FinalConflict.FAILED_WINS).run()).differing == 2


async def test_a_message_that_has_lost_events_is_left_alone(database: Database) -> None:
    await process(database, *mixture())
    await write(
        database, update(MessageRow).where(MessageRow.id == "m3").values(events_forgotten=True, status="sending")
    )
    rebuilt = await Rebuild(database, FinalConflict.FAILED_WINS).run()
    assert (rebuilt.forgotten, rebuilt.differing) == (1, 0)


async def test_a_rebuild_beside_the_processor_loses_nothing(database: Database) -> None:
    await process(database, *mixture())
    later = [
        callback([v2_event(f"m{number}", "message-read", time="2026-01-02T00:00:00Z")], received=60)
        for number in range(MESSAGES)
    ]
    await append(database, *later)
    await asyncio.gather(Rebuild(database, FinalConflict.FAILED_WINS).run(), drain(database))
    assert (await Rebuild(database, FinalConflict.FAILED_WINS).run()).differing == 0
    statuses = [row["status"] for row in await table(database, MessageRow) if row["api"] == "v2"]
    assert statuses.count("read") == MESSAGES


async def test_a_missing_message_with_a_stale_delivery_is_put_right(database: Database) -> None:
    await process(database, callback([v2_event("m1")]))
    right = await table(database, MessageRow), await table(database, DeliveryRow)
    await write(database, delete(MessageRow))
    await write(database, insert(DeliveryRow).values(**{**right[1][0], "recipient_key": "1", "recipient": "+1"}))
    assert (await Rebuild(database, FinalConflict.FAILED_WINS).run()).differing == 2
    assert (await table(database, MessageRow), await table(database, DeliveryRow)) == right


async def test_messages_with_more_events_than_a_batch_reads_are_rebuilt(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "_BATCH_EVENTS", 3)
    events = [v2_event("large", "message-sending", time=f"2026-01-01T00:00:{second:02}Z") for second in range(10)]
    await process(database, callback([v2_event("a"), *events, v2_event("z")]))
    right = await table(database, MessageRow)
    await write(database, update(MessageRow).values(status="queued"))
    assert await Rebuild(database, FinalConflict.FAILED_WINS).run() == Rebuilt(messages=3, differing=3)
    assert await table(database, MessageRow) == right


async def test_a_message_merged_from_inbound_and_outbound_events_is_split(database: Database) -> None:
    """The first version knew a message by version and id, and called it inbound if any of its events was."""
    sent = v2_event("same", message={"to": ["+15550002"], "from": "+15550001"})
    received = v2_event("same", "message-received", message={"direction": "in", "text": "hi"})
    await process(database, callback([sent]), callback([received]))
    right = await table(database, MessageRow), await table(database, DeliveryRow)
    outbound = MessageRow.direction == "out"
    await write(database, delete(MessageRow).where(outbound))
    await write(database, delete(DeliveryRow).where(DeliveryRow.direction == "out"))
    stale = {**next(row for row in right[1] if row["direction"] == "out"), "direction": "in"}
    await write(database, insert(DeliveryRow).values(**stale))
    await write(database, update(MessageRow).values(sender="+15550001", sender_key="15550001"))
    await Rebuild(database, FinalConflict.FAILED_WINS).run()
    assert (await table(database, MessageRow), await table(database, DeliveryRow)) == right


async def test_a_message_without_events_in_the_log_is_left_alone(database: Database) -> None:
    await process(database, callback([v2_event("m1")]))
    rows = await table(database, MessageRow)
    await write(database, insert(MessageRow).values(**{**rows[0], "direction": "in", "status": "received"}))
    await Rebuild(database, FinalConflict.FAILED_WINS).run()
    assert len(await table(database, MessageRow)) == 2
