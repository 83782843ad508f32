"""A database filled with messages, each with a delivery and an event, as if they had come in over the last days.

Rows are written into the tables as they are declared today: a column that is not known here gets its default, null,
or the empty value of its type. The indexes are there while they are filled, so their pages are as loosely packed as
those of a database that has grown. The journal stays empty.
"""

import asyncio
import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlmodel import SQLModel

from receiver.models import events, messages  # noqa: F401  (declare the tables)
from tests.benchmarks.bodies import DESCRIPTION, application, message_id, recipient, sender

_BATCH: Final = 20_000
# younger than anything that retention removes
_DAYS: Final = 20
_EMPTY: Final[dict[type, Any]] = {str: "", int: 0, float: 0.0, bool: False, dict: {}, list: [], bytes: b""}
_TIMES: Final = (
    "created_at",
    "listed_at",
    "occurred_at",
    "received_at",
    "first_received_at",
    "updated_at",
    "delivered_at",
)

Value = Callable[[int], Any]


@dataclass(frozen=True, slots=True)
class _Constant:
    """The same value for every message."""

    value: Any

    def __call__(self, _: int) -> Any:
        return self.value


class _Values:
    """What the columns of message `number` hold, by name; what differs between tables is asked for by table."""

    def __init__(self, count: int) -> None:
        start, apart = datetime.now(UTC) - timedelta(days=_DAYS), timedelta(days=_DAYS) / count
        state = {"status": "delivered", "state": "sent", "delivery_state": "delivered"}
        snapshot = {**state, "code": None, "description": DESCRIPTION, "contradicted": False}

        def time(number: int) -> datetime:
            return start + number * apart

        def to(number: int) -> str:
            return f"+1555{recipient(number):07}"

        def fields(number: int) -> dict[str, Any]:
            return {
                "sender": origin(number),
                "owner": origin(number),
                "application_id": application_id(number),
                "tag": f"order {number:015}",
                "segment_count": 1,
                "recipients": [to(number)],
                "created_at": time(number).isoformat(),
            }

        def origin(number: int) -> str:
            return f"+19195550{sender(number):03}"

        def application_id(number: int) -> str:
            return f"93de2206-9669-4e07-948d-329f4b722ee{application(number)}"

        constant = _Constant
        self._time = time
        self._common: dict[str, Value] = {
            **{name: constant(value) for name, value in state.items()},
            "api": constant("v2"),
            "direction": constant("out"),
            "message_id": message_id,
            "recipient": to,
            "recipient_key": lambda number: to(number)[1:],
            "recipients": lambda number: [to(number)],
            "sender": origin,
            "sender_key": lambda number: origin(number)[1:],
            "owner": origin,
            "application_id": application_id,
            "tag": lambda number: f"order {number:015}",
            "tag_verdict": constant("unchecked"),
            "segment_count": constant(1),
            "type": constant("message-delivered"),
            "route": constant("primary"),
            "callback_id": lambda number: f"{number:032x}",
            "description": constant(DESCRIPTION),
            "delivery_description": constant(DESCRIPTION),
            "changed": constant(True),
            "facts": fields,
            "fields": fields,
            "delivery": constant(snapshot),
        }
        self._common |= dict.fromkeys(_TIMES, time)
        self._of_table: dict[str, dict[str, Value]] = {
            "messages": {"id": message_id},
            "events": {"id": lambda number: hashlib.md5(b"%d" % number).hexdigest()},
        }

    def of(self, table: str, column: Any) -> Value | None:
        """How to make a column's value; None: leave the column to the database."""
        value = self._of_table.get(table, {}).get(column.name) or self._common.get(column.name)
        if value is not None:
            return value
        if column.server_default is not None or column.autoincrement is True or column.nullable:
            return None
        if column.default is not None and column.default.is_scalar:
            fixed = column.default.arg
        elif column.type.python_type is datetime:
            return self._time
        else:
            fixed = _EMPTY.get(column.type.python_type, "")
        return _Constant(fixed)


class _Table:
    """Makes rows of one table for a driver."""

    def __init__(self, name: str, values: _Values, dialect: Any) -> None:
        self.name = name
        self.columns: list[str] = []
        # with the constants in their places
        self._template: list[Any] = []
        self._varying: list[tuple[int, Value, Value | None]] = []
        for column in SQLModel.metadata.tables[name].columns:
            if (value := values.of(name, column)) is None:
                continue
            self.columns.append(column.name)
            encode = column.type.dialect_impl(dialect).bind_processor(dialect)
            if isinstance(value, _Constant):
                self._template.append(encode(value.value) if encode else value.value)
            else:
                self._varying.append((len(self._template), value, encode))
                self._template.append(None)

    def rows(self, numbers: range) -> Iterator[tuple[Any, ...]]:
        for number in numbers:
            row = self._template.copy()
            for place, make, encode in self._varying:
                row[place] = encode(make(number)) if encode else make(number)
            yield tuple(row)


def fill(url: str, count: int) -> None:
    """Stores messages 0 to `count` in a migrated database that nobody serves."""
    dialects: tuple[Any, Any] = (sqlite_dialect, asyncpg_dialect)
    dialect = dialects[0 if url.startswith("sqlite:///") else 1]()
    values = _Values(count)
    tables = [_Table(name, values, dialect) for name in ("messages", "deliveries", "events")]
    batches = [range(first, min(count, first + _BATCH)) for first in range(0, count, _BATCH)]
    if url.startswith("sqlite:///"):
        _fill_sqlite(url.removeprefix("sqlite:///"), tables, batches)
    else:
        asyncio.run(_fill_postgres(url, tables, batches))


def _fill_sqlite(path: str, tables: list[_Table], batches: list[range]) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -1000000", "locking_mode = EXCLUSIVE"):
        connection.execute(f"PRAGMA {pragma}")
    for numbers in batches:
        connection.execute("BEGIN")
        for table in tables:
            marks = ", ".join("?" * len(table.columns))
            insert = f"INSERT INTO {table.name} ({', '.join(table.columns)}) VALUES ({marks})"
            connection.executemany(insert, table.rows(numbers))
        connection.execute("COMMIT")
    connection.close()
    # only an ordinary connection puts the file back into the mode that it is served in
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()


async def _fill_postgres(url: str, tables: list[_Table], batches: list[range]) -> None:
    connection: Any = await asyncpg.connect(url)
    try:
        for numbers in batches:
            for table in tables:
                await connection.copy_records_to_table(table.name, records=table.rows(numbers), columns=table.columns)
        await connection.execute("VACUUM (ANALYZE)")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
