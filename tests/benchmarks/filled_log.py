"""An event log with as many events as a benchmark wants, written past all the rules for the sake of time."""

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg

from receiver.models.columns import sqlite_time

# of one message
STATUSES: Final = ("queued", "sending", "sent", "delivered")
_START: Final = datetime(2026, 1, 1, tzinfo=UTC)
_APART: Final = 64


def event_rows(count: int) -> Iterator[dict[str, Any]]:
    """The events of messages with four events each, a message's events some dozens of others apart."""
    for number in range(count):
        block, place = divmod(number, _APART * len(STATUSES))
        step, ordering_key = divmod(place, _APART)
        message, status = block * _APART + ordering_key, STATUSES[step]
        yield {
            "position": number + 1,
            "id": f"{number:032x}",
            "api": "v2",
            "message_id": f"m{message}",
            "recipient": f"+1555{message % 10_000_000:07}",
            "direction": "out",
            "type": f"message-{status}",
            "status": status,
            "occurred_at": _START + timedelta(milliseconds=number),
            "received_at": _START + timedelta(milliseconds=number),
            "code": None,
            "description": None,
            "tag_verdict": "unsigned",
            "route": "primary",
            "callback_id": f"c{number}",
            "previous_status": STATUSES[step - 1] if step else None,
            "changed": True,
            "facts": json.dumps({"sender": "+15559999999", "recipients": [f"+1555{message % 10_000_000:07}"]}),
            "delivery": json.dumps(
                {
                    "status": status,
                    "state": "sent",
                    "delivery_state": "waiting",
                    "code": None,
                    "description": None,
                    "contradicted": False,
                }
            ),
        }


def message_rows(count: int) -> Iterator[dict[str, Any]]:
    for number in range((count + len(STATUSES) - 1) // len(STATUSES) + _APART):
        yield {
            "api": "v2",
            "id": f"m{number}",
            "direction": "out",
            "sender": "+15559999999",
            "sender_key": "15559999999",
            "recipients": json.dumps([f"+1555{number % 10_000_000:07}"]),
            "text": "Your order is on its way.",
            "tag": f"order {number}",
            "tag_verdict": "unsigned",
            "segment_count": 1,
            "application_id": "93de2206-9669-4e07-948d-329f4b722ee2",
            "listed_at": _START,
            "status": "delivered",
            "contradicted": False,
            "awaiting_receipt": False,
            "first_received_at": _START,
            "updated_at": _START,
        }


def retry_rows(sink: str, ordering_keys: int, each: int = 2) -> Iterator[dict[str, Any]]:
    """Blocks the ordering keys of the first messages: a retry due in an hour, and later events parked behind it."""
    later = datetime.now(UTC) + timedelta(hours=1)
    for row in event_rows((ordering_keys + _APART) * len(STATUSES)):
        message, step = int(row["message_id"][1:]), STATUSES.index(row["status"])
        if message < ordering_keys and step < each:
            yield {
                "sink": sink,
                "position": row["position"],
                "ordering_key": f"v2:{row['message_id']}",
                "state": "parked" if step else "due",
                "attempts": 0 if step else 3,
                "due_at": None if step else later,
                "first_at": _START,
                "reason": None,
            }


def write(url: str, table: str, rows: Iterator[dict[str, Any]], *, analyze: bool = True) -> None:
    """Writes rows into a table of a migrated database; PostgreSQL is told to look at them."""
    if url.startswith("sqlite:///"):
        _write_sqlite(url.removeprefix("sqlite:///"), table, rows)
    else:
        asyncio.run(_write_postgresql(url, table, rows, analyze))


def _write_sqlite(path: str, table: str, rows: Iterator[dict[str, Any]]) -> None:
    first = next(rows)
    names, marks = ", ".join(first), ", ".join("?" * len(first))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        insert = f"INSERT INTO {table} ({names}) VALUES ({marks})"
        connection.execute(insert, _plain(first))
        connection.executemany(insert, map(_plain, rows))
    connection.close()


def _plain(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(sqlite_time(value) if isinstance(value, datetime) else value for value in row.values())


async def _write_postgresql(url: str, table: str, rows: Iterator[dict[str, Any]], analyze: bool) -> None:
    first = next(rows)
    connection = await asyncpg.connect(url)
    try:
        records = (tuple(row.values()) for row in _with(first, rows))
        await connection.copy_records_to_table(table, records=records, columns=list(first))
        if table == "events":
            await connection.execute(
                "SELECT setval(pg_get_serial_sequence('events', 'position'), (SELECT max(position) FROM events))"
            )
        if analyze:
            await connection.execute(f"ANALYZE {table}")
    finally:
        await connection.close()


def _with(first: dict[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rest
