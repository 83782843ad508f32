"""What most commands need: the settings, the database at this version's schema, a processor."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from receiver import credentials, logs
from receiver.clock import now
from receiver.errors import SchemaError
from receiver.settings import Settings, load
from receiver.storage import journal, schema, sqlite_file
from receiver.storage.database import Database, is_sqlite
from receiver.storage.processor import backlog
from receiver.storage.sqlite_file import UnfitDatabase

if TYPE_CHECKING:
    from receiver.intake.transfer import Reprocessing

STALLED_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.05

_QUIET = {"debug": "debug", "error": "error"}


def read_settings(config: Path | None) -> Settings:
    """The settings; configures the log for warnings and errors, because a command has output of its own."""
    settings = load(config)
    logs.configure(form=settings.log_format, level=_QUIET.get(settings.log_level, "warning"), threaded=False)
    return settings


def with_database(
    config: Path | None, work: Callable[[Settings, Database], Awaitable[int]], *, must_exist: bool = True
) -> int:
    """Runs `work` with the database, which must exist and have this version's schema, unless `must_exist` is false."""

    async def run() -> int:
        settings = read_settings(config)
        if must_exist:
            refuse_absent(settings)
        database = Database(settings.database)
        try:
            if must_exist:
                await schema.check(database)
            return await work(settings, database)
        finally:
            await database.close()

    return asyncio.run(run())


async def check_schema(settings: Settings) -> None:
    """Raises SchemaError unless the database has this version's schema and, on SQLite, its own journal."""
    database = Database(settings.database)
    try:
        await schema.check(database)
        await schema.refuse_older_journal(database)
    finally:
        await database.close()


def make_embedded(settings: Settings) -> Path:
    """The file of the embedded database. A missing file is created with mode 0600."""
    sqlite_file.refuse_network(sqlite_file.file_of(settings.database))
    if settings.database_url is None:
        credentials.make_data_dir(settings)
    return sqlite_file.prepare(settings.database)


def refuse_absent(settings: Settings) -> None:
    """Raises SchemaError if the SQLite file is missing: SQLite would create an empty database."""
    if is_sqlite(settings.database) and not sqlite_file.file_of(settings.database).exists():
        file = sqlite_file.file_of(settings.database)
        remedy = "set RECEIVER_DATA_DIR" if settings.database_url is None else "correct RECEIVER_DATABASE_URL"
        raise SchemaError(
            f"there is no database {file.absolute()}; run this where receiver serve runs, or {remedy}; "
            "receiver migrate creates a new one",
            topic="first-run",
        )


async def process_pending(
    settings: Settings,
    database: Database,
    *,
    on_progress: Callable[[int], None],
    stalled_seconds: float = STALLED_SECONDS,
) -> int:
    """Waits until the callbacks that are in the journal now are processed, by a running worker or by this command.

    Returns the number of callbacks that are still pending: 0, unless `stalled_seconds` passed without progress.
    Calls `on_progress` with the number of callbacks processed so far. Raises StorageUnavailable.
    """
    first = latest = await backlog(database)
    moved_at = time.monotonic()
    async with AsyncExitStack() as stack:
        is_processing = False
        while latest.holds(first.last):
            is_processing = is_processing or await _process_here(settings, database, stack)
            await asyncio.sleep(_POLL_SECONDS)
            before, latest = latest, await backlog(database)
            if latest.processed != before.processed:
                moved_at = time.monotonic()
                on_progress(latest.processed - first.processed)
            elif time.monotonic() - moved_at >= stalled_seconds:
                async with database.reading() as connection:
                    return await journal.pending(database, connection, until=first.last)
    return 0


async def _process_here(settings: Settings, database: Database, stack: AsyncExitStack) -> bool:
    """Starts a processor in this command until the stack ends; False if a worker holds the SQLite database.

    On PostgreSQL the processor stands by while a worker holds the lease.
    """
    # Commands that only read start without the worker and all that it imports.
    from receiver.intake.processor import Processor
    from receiver.metrics import WorkerMetrics
    from receiver.worker import tag_checker, worker_lock

    try:
        stack.enter_context(worker_lock(settings))
    except UnfitDatabase:
        return False
    processor = Processor(
        database,
        checker=tag_checker(settings),
        conflict=settings.final_conflict,
        observer=WorkerMetrics(),
        clock=now,
    )
    await processor.start()
    stack.push_async_callback(processor.stop)
    return True


def reprocessing(settings: Settings, database: Database) -> "Reprocessing":
    from receiver.intake.transfer import Reprocessing
    from receiver.worker import tag_checker

    return Reprocessing(database=database, checker=tag_checker(settings), conflict=settings.final_conflict, clock=now)
