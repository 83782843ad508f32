"""Faults of the database under a processor: nothing is quarantined for them, nothing lost, and all is processed after.

What the database refuses for its data is quarantined alone.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from receiver.domain.delivery import FinalConflict
from receiver.domain.fold import Batch
from receiver.intake import fold
from receiver.intake import processor as processor_module
from receiver.intake.fold import TagChecker
from receiver.intake.journal import Journal
from receiver.intake.processor import Processor, ProcessorStatus
from receiver.intake.transfer import Reprocessing
from receiver.metrics import Processed
from receiver.storage import bulk, postgresql
from receiver.storage import processor as processor_table
from receiver.storage.bulk import Step
from receiver.storage.database import Database, is_data_error, journal_file
from receiver.storage.journal import journal_writer
from tests.factories import callback, v2_event
from tests.processing import drain, now, opened, process
from tests.servers import on_postgres
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def lines() -> Iterator[list[Any]]:
    """The lines of the log. Not rendered: a trace in colours takes seconds."""
    with capture_logs() as lines:
        yield lines


Fault = Callable[[str], AbstractAsyncContextManager[None]]


class Observed:
    """An observer of the journal and of the processor."""

    def __init__(self) -> None:
        self.is_stuck = False
        self.was_stuck = False
        self.quarantined = 0
        self.accepted = 0

    def appended(self, callbacks: int, commit_seconds: float, waited_seconds: Iterable[float]) -> None:
        self.accepted += callbacks

    def processed(self, batch: Processed) -> None:
        self.quarantined += batch.results["quarantined"]

    def stuck(self, is_stuck: bool) -> None:
        self.is_stuck = is_stuck
        self.was_stuck = self.was_stuck or is_stuck


@asynccontextmanager
async def running(url: str, observed: Observed) -> AsyncIterator[tuple[Journal, Processor]]:
    """A journal and a processor, each with a database of its own as the two processes have."""
    web, worker = Database(url), Database(url)
    journal = Journal(journal_writer(web), observer=observed)
    processor = make_processor(worker, observer=observed)
    await journal.start()
    await processor.start()
    try:
        yield journal, processor
    finally:
        await processor.stop()
        await journal.stop()
        await worker.close()
        await web.close()


def make_processor(database: Database, **more: Any) -> Processor:
    defaults = {"checker": TagChecker(), "conflict": FinalConflict.FAILED_WINS, "observer": Observed(), "clock": now}
    return Processor(database, **{**defaults, **more})


async def select(url: str, statement: str) -> list[Any]:
    async with opened(url) as database, database.reading() as connection:
        return list(await connection.execute(text(statement)))


# --- faults ---


def main_file(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


@asynccontextmanager
async def damaged_page(url: str) -> AsyncIterator[None]:
    """The root page of an index of `messages` is overwritten, as a broken disk may do."""
    file = main_file(url)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [size] = connection.execute("PRAGMA page_size").fetchone()
        index = "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_messages_1'"
        [root] = connection.execute(index).fetchone()
    with file.open("r+b") as opened_file:
        opened_file.seek((root - 1) * size)
        page = opened_file.read(size)
        opened_file.seek((root - 1) * size)
        opened_file.write(b"\xff" * size)
        opened_file.flush()
        yield
        opened_file.seek((root - 1) * size)
        opened_file.write(page)


@asynccontextmanager
async def moved_away(url: str) -> AsyncIterator[None]:
    """The main file is removed: moved, so that it can be put back."""
    files = [main_file(url).with_name(f"receiver.db{ending}") for ending in ("", "-wal", "-shm")]
    there = [file for file in files if file.exists()]
    for file in there:
        file.rename(file.with_name(f"moved-{file.name}"))
    yield
    for file in files:
        file.unlink(missing_ok=True)
    for file in there:
        file.with_name(f"moved-{file.name}").rename(file)


@asynccontextmanager
async def foreign_writer(url: str) -> AsyncIterator[None]:
    with closing(sqlite3.connect(main_file(url), isolation_level=None, timeout=30)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def by_statements(during: list[str], after: list[str]) -> Fault:
    """A fault by statements on either database."""

    @asynccontextmanager
    async def on_sqlite(url: str) -> AsyncIterator[None]:
        with closing(sqlite3.connect(main_file(url), isolation_level=None, timeout=30)) as connection:
            for statement in during:
                connection.execute(statement)
            yield
            for statement in after:
                connection.execute(statement)

    @asynccontextmanager
    async def on_server(url: str) -> AsyncIterator[None]:
        connection = await asyncpg.connect(url)
        try:
            for statement in during:
                await connection.execute(statement)
            yield
            for statement in after:
                await connection.execute(statement)
        finally:
            await connection.close()

    return lambda url: on_sqlite(url) if url.startswith("sqlite") else on_server(url)


@asynccontextmanager
async def no_connections(url: str) -> AsyncIterator[None]:
    """Nobody but the journal gets a connection: the sessions of the worker are ended again and again."""
    server, name = urlunsplit(urlsplit(url)._replace(path="/postgres")), urlsplit(url).path[1:]
    cut = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        f"WHERE datname = '{name}' AND application_name = 'receiver' AND query NOT LIKE '%noted AS%'"
    )
    ending = asyncio.Event()

    async def cutting() -> None:
        connection = await asyncpg.connect(server)
        while not ending.is_set():
            await connection.execute(cut)
            await asyncio.sleep(0)
        await connection.close()

    task = asyncio.create_task(cutting())
    yield
    ending.set()
    await task


renamed_table = by_statements(["ALTER TABLE deliveries RENAME TO gone"], ["ALTER TABLE gone RENAME TO deliveries"])
sequence_set_back = by_statements(
    ["SELECT setval('events_position_seq', 1)"],
    ["SELECT setval('events_position_seq', (SELECT max(position) FROM events))"],
)

FAULTS: dict[str, tuple[str, Fault, str]] = {
    "sqlite, damaged page": ("sqlite", damaged_page, "malformed"),
    "sqlite, file removed": ("sqlite", moved_away, "restart"),
    "sqlite, foreign writer": ("sqlite", foreign_writer, "locked"),
    "sqlite, renamed table": ("sqlite", renamed_table, "deliveries"),
    "postgresql, renamed table": ("postgresql", renamed_table, "deliveries"),
    "postgresql, sequence set back": ("postgresql", sequence_set_back, "events"),
    "postgresql, locked log": ("postgresql", by_statements(["BEGIN", "LOCK TABLE events"], ["ROLLBACK"]), "lock"),
    "postgresql, lost connections": ("postgresql", no_connections, ""),
}


# A statement waits four seconds for a lock.
LONG = {"sqlite, foreign writer", "postgresql, locked log"}


@pytest.mark.parametrize(
    ("database_url", "fault", "reason"),
    [pytest.param(*case, id=name, marks=[pytest.mark.slow] if name in LONG else []) for name, case in FAULTS.items()],
    indirect=["database_url"],
)
async def test_fault_stops_the_processor_and_nothing_is_quarantined(
    database_url: str, fault: Fault, reason: str
) -> None:
    await assert_fault_is_survived(database_url, fault, reason)


async def assert_fault_is_survived(url: str, fault: Fault, reason: str) -> None:
    async with opened(url) as database:
        await process(database, *(callback([v2_event(f"before-{n}")]) for n in range(300)))
    observed = Observed()
    with capture_logs() as lines:
        async with running(url, observed) as (journal, processor):
            await journal.append(callback([v2_event("before")]))
            await eventually(lambda: _is_processed(url, 301))
            async with fault(url):
                for number in range(19):
                    await journal.append(callback([v2_event(f"m{number}")]))
                await eventually(lambda: processor.health.status is ProcessorStatus.STUCK)
                assert reason in (processor.health.error or "")
                assert processor.health.failing_since_at is not None
                assert observed.is_stuck
                # it goes on trying, and the journal goes on accepting
                failures = processor._failures
                await eventually(lambda: failures.number >= 2)
                await journal.append(callback([v2_event("m19")]))
            await eventually(lambda: processor.health.status is ProcessorStatus.WORKING)
            await eventually(lambda: _is_processed(url, 321))
            assert not observed.is_stuck
    failed = [line for line in lines if line["event"] == "callbacks cannot be processed"]
    recovered = [line for line in lines if line["event"] == "callbacks are processed again"]
    # once a minute: a second line only after a recovery between two faults
    assert 1 <= len(failed) <= max(len(recovered), 1)
    assert await select(url, "SELECT count(*) FROM quarantine") == [(0,)]
    assert await select(url, "SELECT count(DISTINCT message_id), count(*) FROM events") == [(321, 321)]
    assert await select(url, "SELECT count(*) FROM messages") == [(321,)]
    assert await select(url, "SELECT failing_since_at, last_error FROM processor") == [(None, None)]


async def _is_processed(url: str, callbacks: int) -> bool:
    return await select(url, "SELECT callbacks FROM processor") == [(callbacks,)]


@pytest.mark.parametrize(
    "error",
    [MemoryError(), sqlite3.DatabaseError("database disk image is malformed"), RuntimeError("unforeseen"), KeyError],
    ids=["memory", "corrupt", "runtime", "observer"],
)
async def test_error_that_says_nothing_of_the_callback_quarantines_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    patched = (processor_table, "advance") if error is KeyError else (Batch, "take")
    if isinstance(error, KeyError | sqlite3.DatabaseError):
        patched = (fold.Folder, "_steps")
    monkeypatch.setattr(*patched, fail)
    observed = Observed()
    async with running(database_url, observed) as (journal, processor):
        await journal.append(callback([v2_event("m1")]))
        await eventually(lambda: processor.health.status is ProcessorStatus.STUCK)
        await journal.append(callback([v2_event("m2")]))
        monkeypatch.undo()
        await eventually(lambda: _is_processed(database_url, 2))
    assert observed.was_stuck
    assert await select(database_url, "SELECT count(*) FROM quarantine") == [(0,)]
    assert await select(database_url, "SELECT message_id FROM events ORDER BY 1") == [("m1",), ("m2",)]


async def test_error_is_visible_in_the_processor_s_row_while_it_lasts(database_url: str) -> None:
    async with running(database_url, Observed()) as (journal, processor), renamed_table(database_url):
        await journal.append(callback([v2_event()]))
        await eventually(lambda: processor.health.status is ProcessorStatus.STUCK)

        async def is_recorded() -> bool:
            async with opened(database_url) as database:
                state = await processor_table.state(database)
            return "deliveries" in (state.last_error or "") and state.failing_since_at is not None

        await eventually(is_recorded)


async def test_failing_processor_logs_once_a_minute(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor_module, "_FIRST_BACKOFF_SECONDS", 0.02)
    monkeypatch.setattr(processor_module, "_MAX_BACKOFF_SECONDS", 0.02)
    with capture_logs() as lines:
        async with running(sqlite_url, Observed()) as (journal, processor), renamed_table(sqlite_url):
            await journal.append(callback([v2_event()]))
            await eventually(lambda: processor._failures.number > 20)
            logged = [line for line in lines if line["event"] == "callbacks cannot be processed"]
            assert len(logged) == 1
            assert "deliveries" in logged[0]["error"]
            # a minute later
            processor._failures._logged_at -= 60
            tries = processor._failures.number
            await eventually(lambda: processor._failures.number > tries + 20)
            logged = [line for line in lines if line["event"] == "callbacks cannot be processed"]
            assert len(logged) == 2
            assert logged[1]["tries"] > 20


async def test_observer_that_raises_does_not_stop_the_processor(database_url: str) -> None:
    class Broken(Observed):
        def processed(self, batch: Processed) -> None:
            raise RuntimeError("no metrics today")

    async with running(database_url, Broken()) as (journal, processor):
        for number in range(3):
            await journal.append(callback([v2_event(f"m{number}")]))
        await eventually(lambda: _is_processed(database_url, 3))
        # The commit is seen by others before the processor knows of it.
        await eventually(lambda: processor.health.status is ProcessorStatus.WORKING)
    assert await select(database_url, "SELECT count(*) FROM events") == [(3,)]


async def test_stop_ends_a_stuck_processor(sqlite_url: str) -> None:
    async with renamed_table(sqlite_url), asyncio.timeout(30), running(sqlite_url, Observed()) as (journal, processor):
        await journal.append(callback([v2_event()]))
        await eventually(lambda: processor._failures.number >= 3)


async def test_damaged_journal_stops_the_processor_and_skips_nothing(sqlite_url: str) -> None:
    file = journal_file(main_file(sqlite_url))
    async with opened(sqlite_url) as database:
        await process(database, callback([v2_event("m0")]))
    good = file.read_bytes()
    file.write_bytes(good[:100] + b"\xff" * (len(good) - 100))
    async with opened(sqlite_url) as database:
        processor = make_processor(database)
        await processor.start()
        await eventually(lambda: processor.health.status is ProcessorStatus.STUCK)
        await processor.stop()
    file.write_bytes(good)
    async with opened(sqlite_url) as database:
        await process(database, callback([v2_event("m1")]))
    assert await select(sqlite_url, "SELECT message_id FROM events ORDER BY 1") == [("m0",), ("m1",)]


async def test_lost_connection_is_unavailable_whatever_it_looks_like(postgres: str, postgres_url: str) -> None:
    name = postgres_url.rpartition("/")[2]
    cut = f"SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity WHERE datname = '{name}'"
    async with opened(postgres_url) as database:

        async def lose_it() -> None:
            async with database.appending():
                await asyncio.to_thread(on_postgres, postgres, cut)
                raise asyncpg.DataError("got result for unknown protocol state")

        with pytest.raises(Exception, match="connection to the database was lost") as raised:
            await lose_it()
        assert not is_data_error(raised.value)
        async with database.appending():
            pass


# --- errors of the data ---


def refuse_data_of(monkeypatch: pytest.MonkeyPatch, message_id: str, error: Exception) -> None:
    """Has the driver refuse every row that names a message."""
    for transaction in (bulk._SqliteTransaction, postgresql._PostgresqlTransaction):
        run = transaction.run

        async def refusing(self: Any, steps: Iterable[Step], run: Any = run) -> None:
            listed: Sequence[Step] = list(steps)
            rows = [row for step in listed if "quarantine" not in str(getattr(step, "table", "")) for row in step.rows]
            if any(message_id in row for row in rows):
                raise error
            await run(self, listed)

        monkeypatch.setattr(transaction, "run", refusing)


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.DataError("string or blob too big"),
        asyncpg.DataError("invalid byte sequence"),
        asyncpg.exceptions.CharacterNotInRepertoireError("invalid byte sequence"),
        asyncpg.CheckViolationError("violates check constraint"),
        asyncpg.exceptions.ProgramLimitExceededError("index row size exceeds"),
        OverflowError("Python int too large to convert to SQLite INTEGER"),
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_data_error_quarantines_its_callback_alone(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    refuse_data_of(monkeypatch, "poison", error)
    bodies = [[v2_event(f"m{number}")] for number in range(20)]
    bodies[13] = [v2_event("before"), v2_event("poison"), 17]
    async with opened(sqlite_url) as database:
        await process(database, *(callback(body, id=f"c{number:02}") for number, body in enumerate(bodies)))
    [row] = await select(sqlite_url, "SELECT callback_id, element, reason, detail FROM quarantine")
    assert row[:3] == ("c13", 0, "unreadable")
    assert type(error).__name__ in row[3]
    events = await select(sqlite_url, "SELECT callback_id FROM events ORDER BY position")
    assert [id_ for (id_,) in events] == [f"c{number:02}" for number in range(20) if number != 13]
    assert await select(sqlite_url, "SELECT callbacks FROM processor") == [(20,)]
    assert await select(sqlite_url, "SELECT count(*) FROM callbacks") == [(20,)]


async def test_check_of_the_database_quarantines_its_callback_alone(postgres_url: str) -> None:
    await asyncio.to_thread(on_postgres, postgres_url, "ALTER TABLE messages ADD CHECK (id <> 'poison')")
    bodies = [[v2_event("m1")], [v2_event("poison"), 17, v2_event("m3")], [v2_event("m2")]]
    async with opened(postgres_url) as database:
        await process(database, *(callback(body, id=f"c{number}") for number, body in enumerate(bodies)))
    assert await select(postgres_url, "SELECT DISTINCT callback_id, reason FROM quarantine") == [("c1", "unreadable")]
    assert await select(postgres_url, "SELECT message_id FROM events ORDER BY 1") == [("m1",), ("m2",)]


async def test_quarantined_callback_is_processed_once_the_database_takes_it(postgres_url: str) -> None:
    add = "ALTER TABLE messages ADD CONSTRAINT no_poison CHECK (id <> 'poison')"
    await asyncio.to_thread(on_postgres, postgres_url, add)
    poison = callback([v2_event("poison")])
    async with opened(postgres_url) as database:
        await process(database, poison)
        await asyncio.to_thread(on_postgres, postgres_url, "ALTER TABLE messages DROP CONSTRAINT no_poison")
        again = Reprocessing(database=database, checker=TagChecker(), conflict=FinalConflict.FAILED_WINS, clock=now)
        await again.ids([poison.id])
        await drain(database)
    assert await select(postgres_url, "SELECT count(*) FROM quarantine") == [(0,)]
    assert await select(postgres_url, "SELECT message_id FROM events") == [("poison",)]


async def test_fold_that_fails_on_an_event_quarantines_its_callback_alone(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Batch.take

    def failing(self: Any, event: Any, index: int) -> Any:
        if event.message_id == "poison":
            raise ValueError("year is out of range")
        return take(self, event, index)

    monkeypatch.setattr(Batch, "take", failing)
    async with opened(database_url) as database:
        await process(database, *(callback([v2_event(id_)], id=id_) for id_ in ("m1", "poison", "m2")))
    assert await select(database_url, "SELECT callback_id FROM quarantine") == [("poison",)]
    assert await select(database_url, "SELECT message_id FROM events ORDER BY 1") == [("m1",), ("m2",)]


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.DatabaseError("database disk image is malformed"),
        sqlite3.OperationalError("no such table: deliveries"),
        sqlite3.OperationalError("disk I/O error"),
        MemoryError(),
        asyncpg.UniqueViolationError("duplicate key"),
        asyncpg.UndefinedTableError("relation does not exist"),
        asyncpg.UndefinedColumnError("column does not exist"),
        asyncpg.InvalidSQLStatementNameError("prepared statement does not exist"),
        asyncpg.exceptions.DuplicatePreparedStatementError("prepared statement exists"),
        asyncpg.DiskFullError("no space left on device"),
        asyncpg.ReadOnlySQLTransactionError("read-only transaction"),
        asyncpg.InsufficientPrivilegeError("permission denied"),
        asyncpg.exceptions.IndexCorruptedError("index is damaged"),
        asyncpg.exceptions.DataCorruptedError("page is damaged"),
        asyncpg.InterfaceError("connection is closed"),
        ConnectionResetError(),
        TimeoutError(),
    ],
    ids=repr,
)
def test_fault_of_the_database_is_no_data_error(error: Exception) -> None:
    assert not is_data_error(error)
