"""Processes that publish are killed and frozen at any moment; nothing is lost, and each message keeps its order."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from receiver.domain.log import LogEntry
from receiver.storage.database import Database
from tests.event_log import append, life

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

PUBLISHER = Path(__file__).with_name("publisher.py")
MESSAGES = 250
DEADLINE_SECONDS = 60.0


@contextmanager
def publisher(url: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, PUBLISHER, url, path], stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        # a frozen process does not notice being killed until it is woken
        process.kill()
        process.wait()


def arrived(path: Path) -> list[tuple[str, str, int]]:
    """The (id, message, sequence) of every whole line."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            told = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        found.append((told["id"], told["subject"], told["data"]["sequence"]))
    return found


def wait_for(path: Path, count: int) -> None:
    """Waits until so many different events have arrived."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len({told[0] for told in arrived(path)}) < count:
        assert time.monotonic() < deadline, f"{len(arrived(path))} lines, waiting for {count} events"
        time.sleep(0.02)  # between two looks at another process


def audit(path: Path, entries: list[LogEntry]) -> None:
    """Everything arrived, under its own id, and the first copies of each message in order."""
    told = arrived(path)
    assert {(name, sequence) for name, _, sequence in told} == {(entry.event.id, entry.position) for entry in entries}
    lanes: dict[str, list[int]] = defaultdict(list)
    for _, message, sequence in told:
        if sequence not in lanes[message]:
            lanes[message].append(sequence)
    assert all(sequences == sorted(sequences) for sequences in lanes.values())


async def filled(url: str) -> list[LogEntry]:
    """A log with the lives of many messages, interleaved at random."""
    lives = [life(f"m{number}") for number in range(MESSAGES)]
    events = []
    while lives:
        one = random.choice(lives)
        events.append(one.pop(0))
        if not one:
            lives.remove(one)
    database = Database(url)
    entries = await append(database, events)
    await database.close()
    return entries


async def test_killed_in_the_middle_again_and_again(database_url: str, tmp_path: Path) -> None:
    entries, path = await filled(database_url), tmp_path / "events.jsonl"
    for killing in range(1, 4):
        with publisher(database_url, path):
            wait_for(path, killing * len(entries) // 5)
    with publisher(database_url, path):
        wait_for(path, len(entries))
    audit(path, entries)


async def test_another_process_goes_on_within_the_lease(postgres_url: str, tmp_path: Path) -> None:
    entries, path = await filled(postgres_url), tmp_path / "events.jsonl"
    with publisher(postgres_url, path) as first:
        wait_for(path, len(entries) // 10)
        with publisher(postgres_url, path):
            wait_for(path, len(entries) // 4)
            first.kill()
            wait_for(path, len(entries))
    audit(path, entries)


async def test_a_frozen_process_that_wakes_late_changes_nothing(postgres_url: str, tmp_path: Path) -> None:
    entries, path = await filled(postgres_url), tmp_path / "events.jsonl"
    with publisher(postgres_url, path) as first:
        wait_for(path, len(entries) // 10)
        os.kill(first.pid, signal.SIGSTOP)
        with publisher(postgres_url, path):
            wait_for(path, len(entries) // 2)
            os.kill(first.pid, signal.SIGCONT)
            wait_for(path, len(entries))
    audit(path, entries)
