"""The view `message_status`, for people with SQL and BI tools."""

import pytest

from receiver.domain.events import Api
from receiver.storage.database import Database
from tests.factories import callback, v1_event, v2_event
from tests.processing import append, drain, opened, select

pytestmark = pytest.mark.anyio


async def test_view_tells_what_is_final_delivered_and_awaited(database: Database) -> None:
    events = {"sent": "message-sending", "done": "message-delivered", "seen": "message-read", "lost": "message-failed"}
    await append(database, callback([v2_event(id_, type_) for id_, type_ in events.items()]))
    await drain(database)
    rows = await select(
        database,
        "SELECT message_id, is_final, is_delivered, awaiting_receipt FROM message_status ORDER BY message_id",
    )
    assert [(row[0], *map(bool, row[1:])) for row in rows] == [
        ("done", True, True, False),
        ("lost", True, False, False),
        ("seen", True, True, False),
        ("sent", False, False, True),
    ]


async def test_view_has_the_time_of_the_delivery_by_our_clock_for_both_versions(database: Database) -> None:
    v1 = v1_event("m1", state="sent", deliveryState="delivered", deliveryCode="0")
    await append(database, callback(v1, api=Api.V1, received=5), callback([v2_event("m2")], received=7))
    await drain(database)
    rows = await select(
        database,
        "SELECT message_id, delivered_at IS NULL, delivered_received_at = updated_at, registered_at IS NULL "
        "FROM message_status ORDER BY message_id",
    )
    assert [(row[0], *map(bool, row[1:])) for row in rows] == [("m1", True, True, True), ("m2", False, True, True)]


async def test_every_column_of_the_view_has_a_comment_on_postgresql(postgres_url: str) -> None:
    async with opened(postgres_url) as database:
        rows = await select(
            database,
            "SELECT attname FROM pg_attribute WHERE attrelid = 'message_status'::regclass AND attnum > 0 "
            "AND coalesce(col_description(attrelid, attnum), '') = ''",
        )
        assert rows == []
        [[comment]] = await select(database, "SELECT obj_description('message_status'::regclass)")
        assert comment.startswith("One row per delivery")


async def test_day_of_the_view_is_read_by_the_index_of_messages(sqlite_url: str) -> None:
    async with opened(sqlite_url) as database:
        day = "listed_at >= '2026-01-01T00:00:00.000000Z' AND listed_at < '2026-01-02T00:00:00.000000Z'"
        query = f"SELECT status, count(*) FROM message_status WHERE {day} GROUP BY status"
        found = await select(database, f"EXPLAIN QUERY PLAN {query}")
        assert "ix_messages_listed (listed_at>? AND listed_at<?)" in "\n".join(row.detail for row in found)
