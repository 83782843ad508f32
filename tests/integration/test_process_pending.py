"""A command waits until the journal is processed, on both databases: by the worker that runs, or else by itself."""

import asyncio
from contextlib import AbstractContextManager, nullcontext

import pytest

from receiver.cli.context import process_pending
from receiver.domain.delivery import FinalConflict
from receiver.intake.fold import TagChecker
from receiver.intake.processor import Processor
from receiver.settings import Settings
from receiver.storage import messages
from receiver.storage.database import Database
from receiver.storage.sqlite_file import WORKER, held
from tests.factories import callback, v2_event
from tests.processing import NoObserver, append, now

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings(database_url=database_url)


def worker(database: Database) -> Processor:
    return Processor(
        database, checker=TagChecker(), conflict=FinalConflict.FAILED_WINS, observer=NoObserver(), clock=now
    )


async def wait(settings: Settings, database: Database, stalled_seconds: float = 30) -> tuple[int, list[int]]:
    """What is left, and the progress that was shown."""
    shown: list[int] = []
    left = await process_pending(settings, database, on_progress=shown.append, stalled_seconds=stalled_seconds)
    return left, shown


async def stored(database: Database) -> bool:
    return bool(await messages.with_id(database, "m1"))


async def test_a_command_processes_the_journal_where_no_worker_runs(settings: Settings, database: Database) -> None:
    await append(database, callback([v2_event("m1")]))
    assert await wait(settings, database) == (0, [1])
    assert await stored(database)
    assert await wait(settings, database) == (0, [])


async def test_a_command_leaves_the_processing_to_the_worker_that_runs(settings: Settings, database: Database) -> None:
    with _worker_lock(database):
        running = worker(database)
        await running.start()
        # it has the lease before there is anything to do
        await asyncio.sleep(0.2)
        await append(database, callback([v2_event("m1")]))
        assert (await wait(settings, database))[0] == 0
        await running.stop()
    assert await stored(database)


async def test_a_command_takes_over_from_a_worker_that_ends(settings: Settings, database: Database) -> None:
    await append(database, callback([v2_event("m1")]))
    with _worker_lock(database):
        waiting = asyncio.create_task(wait(settings, database))
        await asyncio.sleep(0.3)
    assert (await waiting)[0] == 0
    assert await stored(database)


async def test_a_command_stops_waiting_where_nothing_moves(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    await append(database, callback([v2_event("m1")]), callback([v2_event("m2")]))
    with _worker_lock(database):
        assert await wait(Settings(database_url=sqlite_url), database, stalled_seconds=0.2) == (2, [])
    await database.close()


def _worker_lock(database: Database) -> AbstractContextManager[None]:
    """What keeps others from working for an SQLite database; PostgreSQL has the lease alone."""
    return held(database.file, WORKER) if database.file is not None else nullcontext()
