"""Callbacks, appended to the journal and processed as the service does it, without the service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import text

from receiver.domain.delivery import FinalConflict
from receiver.domain.events import Callback
from receiver.intake.fold import TagChecker
from receiver.intake.processor import Processor
from receiver.metrics import Processed
from receiver.storage import journal
from receiver.storage.database import Database


def now() -> datetime:
    return datetime.now(UTC)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """A second database object for the same database, as another process has it."""
    database = Database(url)
    try:
        yield database
    finally:
        await database.close()


async def select(database: Database, statement: str) -> list[Any]:
    """The rows of a statement."""
    async with database.reading() as connection:
        return list(await connection.execute(text(statement)))


class NoObserver:
    """An observer of the processor for tests that measure nothing."""

    def processed(self, batch: Processed) -> None: ...

    def stuck(self, is_stuck: bool) -> None: ...


async def append(database: Database, *callbacks: Callback) -> int:
    """Appends callbacks to the journal in one transaction; returns how many are new."""
    writer = journal.journal_writer(database)
    try:
        return await writer.append(callbacks)
    finally:
        await writer.close()


async def drain(
    database: Database, *, checker: TagChecker | None = None, conflict: FinalConflict = FinalConflict.FAILED_WINS
) -> None:
    """Processes all that is pending in the journal."""
    processor = Processor(
        database, checker=checker or TagChecker(), conflict=conflict, observer=NoObserver(), clock=now
    )
    try:
        assert await processor.drain(), "another worker has the processor's lease"
    finally:
        await processor.stop()


async def process(
    database: Database,
    *callbacks: Callback,
    checker: TagChecker | None = None,
    conflict: FinalConflict = FinalConflict.FAILED_WINS,
) -> None:
    """Appends callbacks to the journal and processes all that is pending."""
    if callbacks:
        await append(database, *callbacks)
    await drain(database, checker=checker, conflict=conflict)
