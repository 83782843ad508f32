"""Processes that publish are killed and frozen at any moment; nothing is lost, and each message keeps its order."""

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import select

from receiver.dispatch.reader import WINDOW
from receiver.domain.events import Event, Status
from receiver.domain.publication import LogEntry
from receiver.models.sinks import ATTEMPTS, DEAD_LETTERS, RETRIES, SINKS
from receiver.storage.database import Database
from tests.brokers import own
from tests.dispatching import append, audit, life
from tests.factories import make_event
from tests.faults import publisher
from tests.faults.load import let_the_lease_lapse, published
from tests.faults.publisher import LEASE_SECONDS, POLL_SECONDS, Lines
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

PUBLISHER = Path(publisher.__file__)
MESSAGES = 160
DEADLINE_SECONDS = 180.0
# Time for a process that shares its CPU with others.
SLACK_SECONDS = 10.0


@contextmanager
def publishing(url: str, path: Path, behaviour: str = "Wavering") -> Iterator[subprocess.Popen[bytes]]:
    (path.parent / publisher.TURNS).mkdir(exist_ok=True)
    with path.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen([sys.executable, PUBLISHER, url, path, behaviour], stdout=log)
    try:
        yield process
    finally:
        # SIGKILL also ends a stopped process; SIGTERM would take effect only after SIGCONT.
        process.kill()
        process.wait()


def arrived(path: Path) -> list[str]:
    return [event["id"] for event in published(path)]


def wait_for(path: Path, count: int) -> None:
    """Waits until at least `count` different events have arrived."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(set(arrived(path))) < count:
        assert time.monotonic() < deadline, f"{len(arrived(path))} lines, waiting for {count} events"
        time.sleep(0.02)  # between two checks of another process


async def freeze(process: subprocess.Popen[bytes], url: str) -> None:
    """Freezes a process, but not in the middle of a statement.

    asyncpg sends a statement that is new to a connection in two parts; PostgreSQL waits for the second without a limit,
    and keeps the locks.
    """
    database = await asyncpg.connect(url)
    own.freeze(process)
    while await is_half_way(database):
        process.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.01)
        own.freeze(process)
    await database.close()


async def is_half_way(database: asyncpg.Connection) -> bool:
    """Whether a statement waits for its second part after the server has done all it can."""
    others = "datname = current_database() AND state = 'active' AND pid <> pg_backend_pid()"
    await asyncio.sleep(0.2)  # what was sent is read by then
    while True:
        waits = [row[0] for row in await database.fetch(f"SELECT wait_event FROM pg_stat_activity WHERE {others}")]
        if all(wait == "ClientRead" for wait in waits):
            return bool(waits)
        await asyncio.sleep(0.01)


async def appended(url: str, events: list[Event]) -> list[LogEntry]:
    database = Database(url)
    entries = await append(database, events)
    await database.close()
    return entries


async def filled(url: str) -> list[LogEntry]:
    """A log with the events of many messages, interleaved at random."""
    lives = [life(f"m{number}") for number in range(MESSAGES)]
    events = []
    while lives:
        one = random.choice(lives)
        events.append(one.pop(0))
        if not one:
            lives.remove(one)
    return await appended(url, events)


async def test_repeated_kills_lose_nothing(database_url: str, tmp_path: Path) -> None:
    entries, path = await filled(database_url), tmp_path / "events.jsonl"
    for killing in range(1, 3):
        with publishing(database_url, path):
            wait_for(path, killing * len(entries) // 4)
        await let_the_lease_lapse(database_url)
    with publishing(database_url, path):
        wait_for(path, len(entries))
    audit(entries, arrived(path))


@pytest.mark.parametrize("behaviour", ["MortalStream", "MortalPosts"])
async def test_kill_between_publish_and_settlement(database_url: str, tmp_path: Path, behaviour: str) -> None:
    entries, path = await filled(database_url), tmp_path / "events.jsonl"
    with publishing(database_url, path, behaviour) as mortal:
        assert await asyncio.to_thread(mortal.wait, DEADLINE_SECONDS) == -signal.SIGKILL
    await let_the_lease_lapse(database_url)
    with publishing(database_url, path):
        wait_for(path, len(entries))
    # Events that were published and not settled arrive twice.
    surplus = audit(entries, arrived(path))
    print(f"{surplus} events came twice")
    assert 0 < surplus <= WINDOW


async def test_another_process_takes_over_when_the_lease_expires(postgres_url: str, tmp_path: Path) -> None:
    entries, path = await filled(postgres_url), tmp_path / "events.jsonl"
    with publishing(postgres_url, path) as first:
        wait_for(path, len(entries) // 10)
        with publishing(postgres_url, path):
            wait_for(path, len(entries) // 4)
            first.kill()
            first.wait()
            killed_at, there = time.monotonic(), len(set(arrived(path)))
            wait_for(path, there + 1)
            waited = time.monotonic() - killed_at
            wait_for(path, len(entries))
    audit(entries, arrived(path))
    print(f"taken over after {waited:.1f} s, with a lease of {LEASE_SECONDS} s")
    assert waited < LEASE_SECONDS + POLL_SECONDS + SLACK_SECONDS


async def test_a_frozen_process_that_wakes_late_changes_nothing(postgres_url: str, tmp_path: Path) -> None:
    entries, path = await filled(postgres_url), tmp_path / "events.jsonl"
    with publishing(postgres_url, path) as first:
        wait_for(path, len(entries) // 10)
        await freeze(first, postgres_url)
        with publishing(postgres_url, path):
            wait_for(path, len(entries) // 2)
            first.send_signal(signal.SIGCONT)
            wait_for(path, len(entries))
    audit(entries, arrived(path))


async def test_a_process_that_wakes_when_all_is_done_changes_no_row(postgres_url: str, tmp_path: Path) -> None:
    entries, path = await filled(postgres_url), tmp_path / "events.jsonl"
    database = Database(postgres_url)
    with publishing(postgres_url, path) as stale:
        wait_for(path, len(entries) // 10)
        await freeze(stale, postgres_url)
        with publishing(postgres_url, path):
            wait_for(path, len(entries))

            async def settled() -> bool:
                sink, retries, *_ = await written(database)
                return bool(sink[0].cursor == entries[-1].position) and not retries

            await eventually(settled)
            before = await written(database)
            stale.send_signal(signal.SIGCONT)

            async def has_noticed() -> bool:
                return b"lease lost" in path.with_suffix(".log").read_bytes()

            await eventually(has_noticed)
            assert await written(database) == before
    await database.close()
    audit(entries, arrived(path))


async def written(database: Database) -> list[Any]:
    """Everything that a lease holder stores, except for the lease expiry."""
    passing = ("lease_until", "seen_at")
    sink = select(*(column for column in SINKS.c if column.name not in passing))
    async with database.reading() as connection:
        tables = (sink, *(select(table).order_by(table.c.position) for table in (RETRIES, ATTEMPTS, DEAD_LETTERS)))
        return [(await connection.execute(statement)).all() for statement in tables]


def whole_lives(messages: int, events: int) -> list[Event]:
    """`events` events of `messages` messages in turn."""
    return [make_event(Status.SENT, message_id=f"m{number % messages}", time=number) for number in range(events)]


@pytest.mark.parametrize(
    ("behaviour", "messages", "events"),
    [("WatchedStream", 1, 10_000), ("WatchedPosts", 6, 2_000)],
    ids=["one message", "a few messages"],
)
async def test_only_one_of_four_processes_publishes_at_a_time(
    postgres_url: str, tmp_path: Path, behaviour: str, messages: int, events: int
) -> None:
    entries, path = await appended(postgres_url, whole_lives(messages, events)), tmp_path / "events.jsonl"
    with ExitStack() as stack:
        four = [stack.enter_context(publishing(postgres_url, path, behaviour)) for _ in range(4)]
        processes = {process.pid: process for process in four}
        wait_for(path, events // 10)
        processes[at_work(tmp_path)].kill()
        wait_for(path, events // 3)
        frozen = at_work(tmp_path)
        await freeze(processes[frozen], postgres_url)
        wait_for(path, events // 2)
        processes[frozen].send_signal(signal.SIGCONT)
        wait_for(path, events * 2 // 3)
        processes[at_work(tmp_path)].kill()
        wait_for(path, events)
    surplus = audit(entries, arrived(path))
    met = overlaps(tmp_path)
    print(f"{events} events, {surplus} of them more than once")
    # Publishes under way in the frozen process go on when it wakes; no other two overlap.
    assert all(frozen in pair for pair in met)
    assert sum(other == frozen for _, other in met) <= Lines.concurrency


def at_work(folder: Path) -> int:
    """The process that publishes."""
    while not (text := (folder / publisher.AT_WORK).read_text()):
        time.sleep(0.001)  # it is being written
    return int(text)


def overlaps(folder: Path) -> list[tuple[int, int]]:
    """Pairs of processes: one that was publishing events of a message, and one that did so at the same time."""
    path = folder / publisher.OVERLAPS
    pairs = map(str.split, path.read_text().splitlines() if path.exists() else ())
    return [(int(one), int(other)) for one, other in pairs]
