"""The view `message_status`, for people with SQL and BI tools."""

import pytest

from receiver.storage.database import Database
from tests.factories import callback, v2_event
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


async def test_day_of_the_view_is_read_by_the_index_of_messages(sqlite_url: str) -> None:
    async with opened(sqlite_url) as database:
        day = "listed_at >= '2026-01-01T00:00:00.000000Z' AND listed_at < '2026-01-02T00:00:00.000000Z'"
        query = f"SELECT status, count(*) FROM message_status WHERE {day} GROUP BY status"
        found = await select(database, f"EXPLAIN QUERY PLAN {query}")
        assert "ix_messages_listed (listed_at>? AND listed_at<?)" in "\n".join(row.detail for row in found)
