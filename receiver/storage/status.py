"""Reads the status of the installation from the database, each part separately and within a bounded time.

A part that cannot be read does not affect the others: people need this page when the database is broken.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import select
from sqlalchemy import text as sql

from receiver.errors import StorageUnavailable
from receiver.explanation.installation import Backlog, DatabaseSize, Findings, Part, ProcessorRecord
from receiver.models.callbacks import CALLBACKS, PENDING
from receiver.models.queries import SinkQuery
from receiver.models.sinks import SinkRead
from receiver.storage import alerts, journal, processor, reconciliation, sinks
from receiver.storage.database import Database

# /api/status answers within 2 s.
GATHER_SECONDS: Final = 1.5
_MAX_SINKS: Final = 100

Read = Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Values for the metrics; None, or empty, where they could not be read. `last_callbacks` are times by API/route."""

    backlog: Backlog | None
    database: DatabaseSize | None
    last_callbacks: Mapping[str, datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What the rules of alerts look at; None where it could not be read, with the reason in `unreadable`."""

    backlog: Backlog | None
    processor: ProcessorRecord | None
    sinks: Sequence[sinks.Waiting] | None
    database: DatabaseSize | None
    unreadable: Mapping[str, str]


AnyPart = TypeVar("AnyPart", bound=str)


class StatusReader:
    """Reads the parts of one database's status.

    A read that exceeds its time goes on, because cancelling it would mean waiting for its end, and the next caller
    waits for the same read: however often the status is requested, a frozen database costs one connection for each
    part.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._reads: dict[str, asyncio.Task[Any]] = {}

    async def findings(
        self, types: Mapping[str, str], *, clock: Callable[[], datetime], seconds: float = GATHER_SECONDS
    ) -> Findings:
        """The parts that can be read within `seconds`; `types` are the types of the configured sinks, by name."""

        async def listed_sinks() -> Sequence[SinkRead]:
            page = await sinks.find(self.database, SinkQuery(size=_MAX_SINKS), types, now=clock())
            return page.items

        parts: dict[Part, Read] = {
            "journal": self._backlog,
            "processor": lambda: processor.state(self.database),
            "sinks": listed_sinks,
            "database": self._size,
            "reconciliation": lambda: reconciliation.state(self.database, now=clock()),
            "alerts": lambda: alerts.state(self.database),
        }
        found, unreadable = await self._read(parts, seconds)
        return Findings(
            backlog=found.get("journal"),
            processor=found.get("processor"),
            sinks=found.get("sinks"),
            database=found.get("database"),
            reconciliation=found.get("reconciliation"),
            alerting=found.get("alerts"),
            unreadable=unreadable,
        )

    async def measured(self, *, seconds: float) -> Measured:
        """The values for the metrics that can be read within `seconds`."""
        parts: dict[Part, Read] = {
            "journal": self._backlog,
            "processor": lambda: processor.state(self.database),
            "database": self._size,
        }
        found, _ = await self._read(parts, seconds)
        record: ProcessorRecord | None = found.get("processor")
        last_callbacks = record.last_callbacks if record is not None else {}
        return Measured(
            backlog=found.get("journal"),
            database=found.get("database"),
            last_callbacks={name: datetime.fromisoformat(moment) for name, moment in last_callbacks.items()},
        )

    async def watched(self, names: Collection[str], *, seconds: float = GATHER_SECONDS) -> Watched:
        """What can be read within `seconds` for the rules of alerts, about these sinks."""
        parts: dict[str, Read] = {
            "journal": self._backlog,
            "processor": lambda: processor.state(self.database),
            "what waits for the sinks": lambda: sinks.waiting(self.database, names),
            "database": self._size,
        }
        found, unreadable = await self._read(parts, seconds)
        return Watched(
            backlog=found.get("journal"),
            processor=found.get("processor"),
            sinks=found.get("what waits for the sinks"),
            database=found.get("database"),
            unreadable=unreadable,
        )

    async def _read(
        self, parts: Mapping[AnyPart, Read], seconds: float
    ) -> tuple[dict[AnyPart, Any], dict[AnyPart, str]]:
        """The parts that could be read, and for the others the reason."""
        tasks = {part: self._task(part, read) for part, read in parts.items()}
        done, _ = await asyncio.wait(tasks.values(), timeout=seconds)
        found: dict[AnyPart, Any] = {}
        unreadable: dict[AnyPart, str] = {}
        for part, task in tasks.items():
            error = task.exception() if task in done else TimeoutError(f"no answer within {seconds:g} s")
            if error is None:
                found[part] = task.result()
            else:
                unreadable[part] = _reason(error)
        return found, unreadable

    def _task(self, part: str, read: Read) -> asyncio.Task[Any]:
        task = self._reads.get(part)
        if task is None or task.done():
            task = self._reads[part] = asyncio.ensure_future(_awaited(read))
            task.add_done_callback(_retrieve)
        return task

    async def _backlog(self) -> Backlog:
        return await read_backlog(self.database)

    async def _size(self) -> DatabaseSize:
        database = self.database
        if database.file is not None and database.journal_file is not None:
            return await asyncio.to_thread(_file_sizes, database.file, database.journal_file)
        async with database.reading() as connection:
            row = (await connection.execute(_SERVER_SIZES)).one()
        return DatabaseSize(
            type="postgresql", bytes=row.whole, journal_bytes=row.journal, wal_bytes=None, disk_free_bytes=None
        )


async def read_backlog(database: Database) -> Backlog:
    """The number of pending callbacks, and when the oldest of them was received."""
    oldest = select(CALLBACKS.c.received_at).limit(1)
    if database.is_sqlite:
        oldest = oldest.where(journal.is_pending(database)).order_by(CALLBACKS.c.sequence)
    else:
        first = select(PENDING.c.sequence).order_by(PENDING.c.sequence).limit(1).scalar_subquery()
        oldest = oldest.where(CALLBACKS.c.sequence == first)
    async with database.reading() as connection:
        return Backlog(pending=await journal.pending(database, connection), oldest_at=await connection.scalar(oldest))


_SERVER_SIZES: Final = sql(
    "SELECT pg_database_size(current_database()) AS whole, "
    "pg_total_relation_size(to_regclass('callbacks')) + pg_total_relation_size(to_regclass('pending_callbacks')) "
    "AS journal"
)


async def _awaited(read: Read) -> Any:
    return await read()


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Retrieves the error of a read without a waiting caller; asyncio would log it as never retrieved."""
    if not task.cancelled():
        task.exception()


def _reason(error: BaseException) -> str:
    """An error in one line, without SQLAlchemy's statement."""
    if isinstance(error, StorageUnavailable | TimeoutError):
        return str(error) or type(error).__name__
    driver = getattr(error, "orig", None) or error
    first = str(driver).partition("\n")[0].rstrip(".")
    return first if driver is not error else f"{type(error).__name__}: {first}"


def _file_sizes(main: Path, journal_file: Path) -> DatabaseSize:
    return DatabaseSize(
        type="sqlite",
        bytes=_size_of(main),
        journal_bytes=_size_of(journal_file),
        wal_bytes=sum(_size_of(file.with_name(f"{file.name}-wal")) or 0 for file in (main, journal_file)),
        disk_free_bytes=shutil.disk_usage(main.parent).free,
    )


def _size_of(file: Path) -> int | None:
    return file.stat().st_size if file.exists() else None
