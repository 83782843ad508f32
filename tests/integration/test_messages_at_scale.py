"""The list of messages over a million of them, on both databases: every filter by its index, and in time."""

import asyncio
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from receiver.domain.events import Api, Direction, TagVerdict
from receiver.models.message_queries import MessageQuery
from receiver.models.parameters import MessagePlace
from receiver.storage import messages
from receiver.storage.database import Database
from receiver.storage.message_search import Patience, search
from tests.databases import plan
from tests.waiting import reference_seconds

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MESSAGES = 1_000_000
START = datetime(2024, 1, 1, tzinfo=UTC)

# One message a minute: one of a hundred failed, one of fifty is inbound, nothing is signed. SQL of both databases.
INBOUND, FAILED = "n % 50 = 0", "n % 100 = 1"
NUMBER = "(15550000000 + n)"
SHARED = {
    "api": "'v2'",
    "direction": f"CASE WHEN {INBOUND} THEN 'in' ELSE 'out' END",
    "listed_at": "at",
    "status": f"CASE WHEN {INBOUND} THEN 'received' WHEN {FAILED} THEN 'failed' ELSE 'delivered' END",
    "state": f"CASE WHEN {INBOUND} THEN 'received' ELSE 'sent' END",
    "delivery_state": f"CASE WHEN {INBOUND} THEN NULL WHEN {FAILED} THEN 'not-delivered' ELSE 'delivered' END",
    "delivery_code": f"CASE WHEN {FAILED} THEN 4700 + n / 100 % 30 END",
    "contradicted": "FALSE",
    "updated_at": "at",
}
MESSAGE = SHARED | {
    "id": "'17040' || (100000000 + n) || 'abcdefghijklmno'",
    "sender": "'+' || (19195550000 + n % 200)",
    "sender_key": "'' || (19195550000 + n % 200)",
    "recipients": "JSON_OF('[\"+' || " + NUMBER + " || '\"]')",
    "application_id": "'a-' || (n % 500)",
    "tag": "'order ' || n",
    "tag_verdict": f"CASE WHEN {INBOUND} THEN 'not-applicable' ELSE 'unchecked' END",
    "created_at": "at",
    "first_received_at": "at",
    "awaiting_receipt": "FALSE",
}
DELIVERY = SHARED | {
    "message_id": MESSAGE["id"],
    "recipient_key": f"'' || {NUMBER}",
    "recipient": f"'+' || {NUMBER}",
    "place": "0",
    "delivered_at": f"CASE WHEN {INBOUND} OR {FAILED} THEN NULL ELSE at END",
}
SQLITE = """(
    WITH RECURSIVE c (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM c WHERE n + 1 < {number})
    SELECT n, strftime('%Y-%m-%dT%H:%M:%S', {start} + n * 60, 'unixepoch') || '.000000Z' AS at FROM c
)"""
POSTGRESQL = """(
    SELECT n, to_timestamp({start} + n * 60) AS at FROM generate_series(0::bigint, {number} - 1) AS n
) AS numbers"""


def insert(table: str, values: dict[str, str], *, sqlite: bool) -> str:
    given = ", ".join(values.values())
    given = given.replace("JSON_OF", "json" if sqlite else "jsonb")
    source = (SQLITE if sqlite else POSTGRESQL).format(number=MESSAGES, start=int(START.timestamp()))
    return f"INSERT INTO {table} ({', '.join(values)}) SELECT {given} FROM {source}"


async def stock(database: Database) -> None:
    """A million messages. Indexes are built after the rows: each row's entries would cost most of the time."""
    if database.file is not None:
        await asyncio.to_thread(stock_sqlite, database.file)
    else:
        driver = database.driver_connection()
        try:
            await driver.use(stock_postgresql)
        finally:
            await driver.close()


def stock_sqlite(file: Path) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -262144"):
            connection.execute(f"PRAGMA {pragma}")
        indexes = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE tbl_name IN ('messages', 'deliveries') "
            "AND type = 'index' AND sql IS NOT NULL"
        ).fetchall()
        for name, _ in indexes:
            connection.execute(f"DROP INDEX {name}")
        for table, values in (("messages", MESSAGE), ("deliveries", DELIVERY)):
            connection.execute(insert(table, values, sqlite=True))
        for _, definition in indexes:
            connection.execute(definition)
        connection.execute("PRAGMA journal_mode = WAL")


async def stock_postgresql(driver: Any) -> None:
    indexes = await driver.fetch(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename IN ('messages', 'deliveries') "
        "AND indexdef NOT LIKE '%UNIQUE%'"
    )
    for name, _ in indexes:
        await driver.execute(f"DROP INDEX {name}")
    for table, values in (("messages", MESSAGE), ("deliveries", DELIVERY)):
        await driver.execute(f"ALTER TABLE {table} SET UNLOGGED")
        await driver.execute(insert(table, values, sqlite=False), timeout=120)
    for _, definition in indexes:
        await driver.execute(definition, timeout=120)
    for table in ("messages", "deliveries"):
        await driver.execute(f"VACUUM ANALYZE {table}", timeout=120)


# The queries, each with the index that finds its messages, and how long it may take, as a multiple of the reference
# work: that is half a second on a machine that nobody else uses.
LIMIT = 10
QUERIES: dict[str, tuple[dict[str, Any], str | None]] = {
    "first page": ({}, "ix_messages_listed"),
    "size=1000": ({"size": 1000}, "ix_messages_listed"),
    "page=1000": ({"page": 1000}, "ix_messages_listed"),
    "page=20000": ({"page": 20_000}, "ix_messages_listed"),
    "cursor": (
        {"after": MessagePlace(START + timedelta(minutes=500_000), Api.V2, Direction.OUT, "1")},
        "ix_messages_listed",
    ),
    "to=": ({"recipient": "15550123456"}, "ix_deliveries_recipient"),
    "from=": ({"sender": "19195550042"}, "ix_messages_sender"),
    "tag=": ({"tag": "order 777777"}, "ix_messages_tag"),
    "tag=, no match": ({"tag": "order"}, "ix_messages_tag"),
    "tagPrefix=, ten": ({"tag_prefix": "order 77777"}, "ix_messages_tag"),
    "tagPrefix=, very many": ({"tag_prefix": "order"}, "ix_messages_listed"),
    "number=": ({"number": "19195550042"}, "ix_messages_sender"),
    "q=, a number": ({"q": "+1 555 012 3456"}, "ix_deliveries_recipient"),
    "q=, no match": ({"q": "nothing has this"}, "ix_messages_tag"),
    "status=failed,delivered": ({"status": "failed,delivered"}, "ix_messages_status"),
    "deliveryCode=1,4720": ({"delivery_code": "1,4720"}, "ix_deliveries_code"),
    "status=failed": ({"status": "failed"}, "ix_messages_status"),
    "status=sending, no match": ({"status": "sending"}, "ix_messages_status"),
    "from= and status=failed": ({"sender": "19195550001", "status": "failed"}, None),
    "state=error, no match": ({"state": "error"}, "ix_messages_state"),
    "deliveryState=waiting, no match": ({"delivery_state": "waiting"}, "ix_messages_delivery_state"),
    "direction=in": ({"direction": Direction.IN}, "ix_messages_listed"),
    "tagVerdict=valid, no match": ({"tag_verdict": TagVerdict.VALID}, "ix_messages_tag_verdict"),
    "tagVerdict=unchecked": ({"tag_verdict": TagVerdict.UNCHECKED}, "ix_messages_listed"),
    "tagVerdict=not-applicable": ({"tag_verdict": TagVerdict.NOT_APPLICABLE}, "ix_messages_listed"),
    "deliveryState=delivered and status=failed, no match": ({"delivery_state": "delivered", "status": "failed"}, None),
    "deliveryCode=4720": ({"delivery_code": 4720}, "ix_deliveries_code"),
    "deliveryCode=1, no match": ({"delivery_code": 1}, "ix_deliveries_code"),
    "applicationId=": ({"application_id": "a-42"}, "ix_messages_application"),
    "contradicted, no match": ({"contradicted": True}, "ix_messages_contradicted"),
    "awaiting receipt, no match": ({"awaiting_receipt": True}, "ix_messages_awaiting"),
    "a day": ({"since": START + timedelta(days=300), "until": START + timedelta(days=301)}, "ix_messages_listed"),
    "a day, from=": (
        {"since": START + timedelta(days=300), "until": START + timedelta(days=301), "sender": "19195550042"},
        "ix_messages_sender",
    ),
}


async def test_every_list_of_messages_is_quick_at_a_million(database: Database) -> None:
    await stock(database)
    slow: dict[str, float] = {}
    without_index: dict[str, str] = {}
    for name, (fields, index) in QUERIES.items():
        query = MessageQuery(**fields)
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            found = await messages.find(database, query)
            seconds.append(time.perf_counter() - started)
        assert bool(found.items) is not name.endswith("no match"), name
        if min(seconds) > LIMIT * reference_seconds(time.perf_counter):
            slow[name] = min(seconds)
        if index and index not in (made := await plan(database, query)):
            without_index[name] = made
    assert not without_index
    assert not slow
    for name, (fields, expected) in WITHOUT_INDEX.items():
        assert await _in_steps(database, MessageQuery(**fields)) == expected, name


# Two filters of which each has an index and many matches: so many messages have both.
WITHOUT_INDEX: dict[str, tuple[dict[str, Any], int]] = {
    "from= and applicationId=, no match": ({"sender": "19195550042", "application_id": "a-43"}, 0),
    "from= and applicationId=": ({"sender": "19195550042", "application_id": "a-42", "size": 1000}, 1000),
    "status=failed and applicationId=, no match": ({"status": "failed", "application_id": "a-42"}, 0),
    "tagVerdict= and state=, no match": ({"tag_verdict": TagVerdict.UNCHECKED, "state": "queued"}, 0),
}


async def _in_steps(database: Database, query: MessageQuery) -> int:
    """How many messages a search has found at its end, or when its page is full; no step takes long."""
    found, steps = 0, 0
    query = query.model_copy(
        update={"after": MessagePlace.at(datetime.max.replace(tzinfo=UTC), span=timedelta(hours=6))}
    )
    while True:
        started = time.perf_counter()
        step = await search(database, query, Patience(whole=0.05, in_spans=0.05))
        seconds = time.perf_counter() - started
        assert seconds < LIMIT * reference_seconds(time.perf_counter)
        found, steps = found + len(step.items), steps + 1
        if step.searched_to is None:
            return found
        assert steps < 1000
        query = query.model_copy(update={"after": step.after, "size": query.size - len(step.items)})
