"""Dispatchers under faults: slow sinks, poison, replays beside live traffic, a log that empties, no lost signal."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from receiver.domain.delivery import FinalConflict
from receiver.domain.publication import Publication, Published, Refused, Result, Retry
from receiver.intake.fold import TagChecker
from receiver.intake.journal import Journal
from receiver.intake.processor import Processor
from receiver.metrics import WebMetrics, WorkerMetrics
from receiver.models.sinks import REPLAYS, SINKS
from receiver.sinks.base import Sink, SinkSettings
from receiver.sinks.file import JsonlSettings, JsonlSink
from receiver.sinks.registry import ConfiguredSink, configure
from receiver.storage import event_log, replays
from receiver.storage.database import Database
from receiver.storage.journal import journal_writer
from tests.benchmarks.filled_log import event_rows, message_rows, write
from tests.dispatching import (
    Running,
    append,
    audit,
    ids,
    letters,
    life,
    memory,
    memory_sink,
    messages,
    now,
    rows,
    running,
    whole_log,
)
from tests.factories import callback, v2_event
from tests.servers import on_postgres
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
PAUSE_SECONDS = 0.01


class Timed(Sink):
    """Stores the ids of arrived events, and the delay since the callback for those that are no replay."""

    def __init__(self) -> None:
        self.arrived: list[str] = []
        self.delays: list[float] = []

    def note(self, batch: Sequence[Publication]) -> None:
        live = [one for one in batch if not one.replayed]
        self.arrived += ids(live)
        self.delays += [(now() - one.received_at).total_seconds() for one in live]


class TimedFile(Timed, JsonlSink):
    def __init__(self, path: Path) -> None:
        Timed.__init__(self)
        JsonlSink.__init__(self, JsonlSettings(name="file", type="jsonl", path=path))

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        results = await JsonlSink.publish(self, batch)
        self.note(batch)
        return results


class TimedPosts(Timed):
    """Like a webhook: one event at a time on each connection."""

    concurrency = 32

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        await asyncio.sleep(0.002)
        self.note(batch)
        return [Published() for _ in batch]


def starting_now(name: str, sink: Sink) -> ConfiguredSink:
    return ConfiguredSink(SinkSettings(name=name, type="test", start="end"), sink)


@asynccontextmanager
async def intake_of(database: Database, run: Running) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """Accepts callbacks, each with one event of another message, and processes them beside the dispatchers."""
    processor = Processor(
        database,
        checker=TagChecker(),
        conflict=FinalConflict.FAILED_WINS,
        observer=WorkerMetrics(),
        clock=now,
        on_commit=run.wakeup.set,
    )
    journal = Journal(journal_writer(database), observer=WebMetrics(), on_append=processor.wake)

    async def take(message_id: str) -> None:
        await journal.append(callback([v2_event(message_id)], id=uuid4().hex, received_at=now()))

    await processor.start()
    await journal.start()
    try:
        yield take
    finally:
        await journal.stop()
        await processor.stop()


def report(name: str, delays: Sequence[float]) -> tuple[float, float]:
    """Prints and returns the median and the 99th percentile of the delays."""
    parts = statistics.quantiles(delays, n=100)
    p50, p99 = parts[49], parts[98]
    print(f"{name}: {len(delays)} events, p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms")
    return p50, p99


# wakeups


@on_sqlite
async def test_event_appended_during_a_read_does_not_wait_for_the_next_poll(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, read_after, late = memory_sink(), event_log.read_after, life("late")

    async def racing(*arguments: Any) -> Any:
        entries = await read_after(*arguments)
        if late:
            events = list(late)
            late.clear()
            await append(database, events)
            run.wakeup.set()
        return entries

    async with running(database, sink, poll_seconds=3600) as run:
        await append(database, life("first"))
        run.wakeup.set()
        await eventually(lambda: len(memory(sink).published) == 4)
        monkeypatch.setattr(event_log, "read_after", racing)
        run.wakeup.set()
        await eventually(lambda: len(memory(sink).published) == 8)


@on_sqlite
async def test_a_replay_to_a_sink_that_was_down_is_the_probe_and_leaves_the_loop_free(database: Database) -> None:
    sink = memory_sink()
    entries = await append(database, messages(2))
    async with running(database, sink):
        await eventually(lambda: len(memory(sink).published) == len(entries))
    async with database.writing() as connection:
        await connection.execute(SINKS.update().values(failures=3, down_since_at=now()))
    await replays.begin(database, "crm", "beginning", now=now())
    async with running(database, sink, poll_seconds=30):
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(0.01)
        # Nothing else would wake the loop before the next poll.
        assert asyncio.get_running_loop().time() - began < 10
        await eventually(lambda: sum(one.replayed for one in memory(sink).published) == len(entries))


# poison


@pytest.mark.parametrize("on_refused", ["continue", "park"])
async def test_refused_and_failing_events_harm_no_other_message(database: Database, on_refused: str) -> None:
    sink = memory_sink(schedule=["10m"], max_age="1h", on_refused=on_refused)
    entries = await append(database, messages(20))
    refused, failing = entries[20].event.id, entries[21].event.id
    behind = {entry.event.id for entry in entries[22:] if entry.event.message_id in ("m0", "m1")}
    others = {entry.event.id for entry in entries} - {refused, failing} - behind

    def answer(one: Publication) -> Result:
        if one.id == refused:
            return Refused(reason="status 422")
        return Retry(reason="status 500") if one.id == failing else Published()

    memory(sink).answer = answer
    async with running(database, sink) as run:

        def arrived() -> set[str]:
            return set(ids(memory(sink).published))

        def decided() -> int:
            return run.observed.outcomes["crm"].count("retry")

        await eventually(lambda: others <= arrived())
        for minutes in (15, 30, 45):
            attempts = decided()
            run.clock.ahead = timedelta(minutes=minutes)
            await eventually(lambda attempts=attempts: decided() > attempts)  # type: ignore[misc]
        run.clock.ahead = timedelta(hours=2)

        async def both_are_dead() -> bool:
            return len(await letters(database)) == 2

        await eventually(both_are_dead)
        if on_refused == "continue":
            await eventually(lambda: behind <= arrived())
    found = {letter.event_id: (letter.reason, letter.detail) for letter in await letters(database)}
    assert found == {refused: ("refused", "status 422"), failing: ("expired", "status 500")}
    waiting = {row.position for row in await rows(database)}
    held = behind | {refused, failing} if on_refused == "park" else set()
    assert waiting == {entry.position for entry in entries if entry.event.id in held}
    alive = [entry for entry in entries if entry.event.id not in {refused, failing} | held]
    assert audit(alive, ids(memory(sink).published)) == 0


# a slow sink


class SlowHook:
    """An HTTP server that answers every post slowly."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.posts = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0))
                await asyncio.sleep(self.seconds)
                self.posts += 1
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def slow_hook(seconds: float) -> AsyncIterator[tuple[SlowHook, str]]:
    hook = SlowHook(seconds)
    server = await asyncio.start_server(hook.serve, "127.0.0.1", 0)
    try:
        yield hook, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()


def resident() -> int:
    """The memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.faults
@on_sqlite
async def test_a_slow_sink_slows_down_no_other_and_takes_no_memory(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    file = TimedFile(tmp_path / "events.jsonl")
    fast = starting_now("fast", file)

    async def traffic(run: Running, name: str) -> list[float]:
        file.delays.clear()
        async with intake_of(database, run) as take:
            for number in range(100):
                await take(f"{name}-{number}")
                await asyncio.sleep(PAUSE_SECONDS)
            await eventually(lambda: len(file.delays) == 100)
        return list(file.delays)

    async with running(database, fast) as run:
        alone, _ = report("alone", await traffic(run, "alone"))
    async with slow_hook(0.2) as (hook, url):
        fields = {"egress_allow": ["127.0.0.0/8"], "concurrency": 1}
        [slow] = configure([{"name": "slow", "type": "webhook", "url": url, **fields}])
        async with running(database, fast, slow) as run:
            beside, _ = report("beside a slow one", await traffic(run, "beside"))
            before, end = resident(), 10_000 + len(await whole_log(database))
            later = ({**row, "position": row["position"] + end} for row in event_rows(10_000))
            await asyncio.to_thread(write, database_url, "events", later)
            run.wakeup.set()
            await eventually(lambda: len(file.arrived) == 10_200)
            grown = resident() - before
            posts = hook.posts
    audit(await whole_log(database), file.arrived)
    print(f"{posts} posts meanwhile; 10,000 events later the process has {grown / 1e6:.1f} MB more")
    assert 0 < posts < 1000
    # A hundred events at the speed of the slow posts would take twenty seconds.
    assert beside < 2 * alone + 2
    assert grown < 50e6


# a log that empties


@pytest.mark.faults
async def test_a_log_that_empties_and_fills_again_and_again_stays_quick(database: Database, database_url: str) -> None:
    if not database.is_sqlite:
        off = [f"ALTER TABLE {table} SET (autovacuum_enabled = off)" for table in ("events", "messages", "retries")]
        await asyncio.to_thread(on_postgres, database_url, *off)
    posts = TimedPosts()
    # A lost wakeup would cost thirty seconds.
    async with running(database, starting_now("hook", posts), poll_seconds=30) as run, intake_of(database, run) as take:
        for round_ in range(100):
            await asyncio.gather(*(take(f"{round_}-{number}") for number in range(10)))
            await eventually(lambda round_=round_: len(posts.arrived) == 10 * (round_ + 1))  # type: ignore[misc]
            async with database.writing() as connection:
                for table in ("events", "deliveries", "messages"):
                    await connection.execute(text(f"DELETE FROM {table}"))
            async with database.writing_journal() as connection:
                await connection.execute(text("DELETE FROM callbacks"))
    assert len(set(posts.arrived)) == 1000
    report("the first ten times", posts.delays[:100])
    last, _ = report("the last ten times", posts.delays[-100:])
    p50, _ = report("100 times", posts.delays)
    assert last < 2 * p50 + 0.5
    assert max(posts.delays) < 15


# a replay beside live traffic


@pytest.mark.faults
@on_sqlite
async def test_live_events_do_not_wait_for_a_replay(database: Database, database_url: str, tmp_path: Path) -> None:
    count = 20_000
    await asyncio.to_thread(write, database_url, "events", event_rows(count))
    await asyncio.to_thread(write, database_url, "messages", message_rows(count))
    timed = {"file": TimedFile(tmp_path / "events.jsonl"), "hook": TimedPosts()}
    configured = [starting_now(name, sink) for name, sink in timed.items()]
    async with running(database, *configured, poll_seconds=1) as run, intake_of(database, run) as take:

        async def traffic(name: str, goes_on: Callable[[int], Awaitable[bool]]) -> dict[str, tuple[float, float]]:
            for sink in timed.values():
                sink.delays.clear()
            number = 0
            while await goes_on(number):
                await take(f"{name}-{number}")
                await asyncio.sleep(PAUSE_SECONDS)
                number += 1
            await eventually(lambda: all(len(sink.delays) == number for sink in timed.values()))
            return {key: report(f"{key}, {name}", sink.delays) for key, sink in timed.items()}

        async def for_a_while(number: int) -> bool:
            return number < 100

        async def until_all_is_replayed(number: int) -> bool:
            return number % 10 != 0 or any(row.ended_at is None for row in await rows(database, REPLAYS))

        without = await traffic("without a replay", for_a_while)
        for name in timed:
            await replays.begin(database, name, "beginning", now=now())
        began = time.monotonic()
        beside = await traffic("beside a replay", until_all_is_replayed)
        took = time.monotonic() - began
    found = await rows(database, REPLAYS)
    assert [(row.state, row.published) for row in found] == [("finished", row.to_position) for row in found]
    live = [entry for entry in await whole_log(database) if entry.position > count]
    for name, sink in timed.items():
        assert audit(live, sink.arrived) == 0
        # An event that waits for the replay waits for half of it on average.
        assert beside[name][0] < without[name][0] + took / 20
        assert beside[name][1] < without[name][1] + took / 5
