"""Dispatchers: order, retries, dead letters and leases, whatever the sink does."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event as sqlalchemy_event
from structlog.testing import capture_logs

from receiver.domain.events import Status
from receiver.domain.publication import Publication, Published, Refused, Result, Retry, SinkDown
from receiver.errors import StorageUnavailable
from receiver.models.sinks import ATTEMPTS
from receiver.sinks.base import Sink
from receiver.storage import sinks
from receiver.storage.database import Database
from tests.dispatching import (
    append,
    ids,
    in_order,
    letters,
    life,
    memory,
    memory_sink,
    messages,
    now,
    private,
    requeue,
    rows,
    running,
    sink_row,
)
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

# What both databases do alike is tested on one.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

SOON = ["1s"]


async def test_everything_arrives_and_the_cursor_follows(database: Database) -> None:
    sink = memory_sink()
    entries = await append(database, messages(30))
    async with running(database, sink) as run:
        await eventually(lambda: len(memory(sink).published) == len(entries))
    assert set(ids(memory(sink).published)) == {entry.event.id for entry in entries}
    assert in_order(memory(sink).published)
    row = await sink_row(database)
    assert row.cursor == entries[-1].position
    assert row.last_success_at is not None
    assert run.observed.outcomes["crm"] == ["published"] * len(entries)
    assert len(run.observed.waited) == len(entries)


async def test_a_backlog_larger_than_the_window_drains(database: Database) -> None:
    sink = memory_sink()
    entries = await append(database, messages(300))
    async with running(database, sink):
        await eventually(lambda: len(memory(sink).published) == len(entries))
    assert in_order(memory(sink).published)


@on_sqlite
async def test_duplicate_on_a_first_attempt_is_counted_and_logged(
    database: Database, capfd: pytest.CaptureFixture[str]
) -> None:
    """Something else has published events with these ids to the same place, which dropped ours."""
    sink = memory_sink()
    memory(sink).answer = lambda _: Published(duplicate=True)
    entries = await append(database, life("a"))
    async with running(database, sink) as run:
        await eventually(lambda: run.observed.duplicates == ["crm"] * len(entries))
    assert capfd.readouterr().out.count("destination had events before their first attempt") == 1


@on_sqlite
@pytest.mark.parametrize("first", [Retry(reason="timeout"), SinkDown(reason="away")])
async def test_duplicate_on_a_later_attempt_is_expected(database: Database, first: Result) -> None:
    """The answer to the attempt before was lost."""
    sink, tried = memory_sink(schedule=SOON), set()

    def answer(publication: Publication) -> Result:
        if publication.id in tried:
            return Published(duplicate=True)
        tried.add(publication.id)
        return first

    memory(sink).answer = answer
    await append(database, life("a")[:1])
    async with running(database, sink) as run:
        await eventually(lambda: memory(sink).published)
    assert run.observed.duplicates == []


@on_sqlite
async def test_sink_that_cannot_be_reached_is_one_warning_at_its_start(
    database: Database, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without events nothing else would show it. It starts all the same, and is not checked again by itself."""
    sink = memory_sink()
    checks: list[str] = []

    async def check() -> str:
        checks.append("checked")
        return "no such stream"

    memory(sink).check = check
    async with running(database, sink) as run:
        await eventually(lambda: checks)
        await run.dispatchers.reload([sink])
        entries = await append(database, life("a"))
        await eventually(lambda: len(memory(sink).published) == len(entries))
    assert checks == ["checked"]
    [line] = [line for line in capfd.readouterr().out.splitlines() if "sink cannot be reached" in line]
    assert "no such stream" in line


async def test_a_wakeup_is_faster_than_the_next_poll(database: Database) -> None:
    sink = memory_sink()
    async with running(database, sink, poll_seconds=3600) as run:
        for number in range(5):
            await append(database, life(f"m{number}"))
            run.wakeup.set()
            await eventually(lambda: len(memory(sink).published) == 4 * (number + 1))  # noqa: B023


async def test_without_a_wakeup_the_log_is_polled(database: Database) -> None:
    sink = memory_sink()
    async with running(database, sink):
        await append(database, life("m"))
        await eventually(lambda: len(memory(sink).published) == 4)


async def test_filtered_events_are_skipped_and_the_cursor_passes(database: Database) -> None:
    sink = memory_sink(events=["message.sent"])
    entries = await append(database, messages(100))
    async with running(database, sink):

        async def passed() -> bool:
            return bool((await sink_row(database)).cursor == entries[-1].position)

        await eventually(passed)
    assert {one.type for one in memory(sink).published} == {"message.sent"}
    assert len(memory(sink).published) == 100


async def test_each_sink_has_its_own_cursor(database: Database) -> None:
    slow, fast = memory_sink("slow"), memory_sink("fast")
    memory(slow).answer = lambda _: SinkDown(reason="not now")
    entries = await append(database, messages(5))
    async with running(database, slow, fast):
        await eventually(lambda: len(memory(fast).published) == len(entries))
    assert memory(slow).published == []
    assert (await sink_row(database, "slow")).cursor == 0


async def test_retry_is_published_when_due_and_its_ordering_key_waits(database: Database) -> None:
    sink = memory_sink(schedule=["10m"])
    entries = await append(database, [*life("bad"), *life("good")])
    failing = entries[1].event.id
    memory(sink).answer = lambda one: (
        Retry(reason="status 500", response_code=500) if one.id == failing else Published()
    )
    async with running(database, sink) as run:

        async def settled() -> bool:
            return bool((await sink_row(database)).cursor == entries[-1].position)

        await eventually(settled)
        [due, *others] = await rows(database)
        assert [row.state for row in (due, *others)] == ["due", "parked", "parked"]
        assert (due.attempts, due.reason) == (1, "status 500")
        assert timedelta(minutes=9) < due.due_at - now() <= timedelta(minutes=10)
        memory(sink).answer = lambda _: Published()
        assert len(memory(sink).attempted) == 6
        run.clock.ahead = timedelta(minutes=10)
        await eventually(lambda: len(memory(sink).published) == 8)

        async def empty() -> bool:
            return not await rows(database)

        await eventually(empty)
    assert in_order(memory(sink).published)
    assert sorted(ids(memory(sink).published)) == sorted(entry.event.id for entry in entries)


async def test_later_events_are_parked_behind_a_retry(database: Database) -> None:
    sink = memory_sink(schedule=["10m"])
    first, second = life("m", (Status.SENT, Status.DELIVERED))
    await append(database, [first])
    memory(sink).return_next(Retry(reason="status 500"))
    async with running(database, sink) as run:

        async def waiting() -> int:
            return len(await rows(database))

        async def both() -> bool:
            return await waiting() == 2

        async def one() -> bool:
            return await waiting() == 1

        await eventually(one)
        await append(database, [second])
        run.wakeup.set()
        await eventually(both)
        run.clock.ahead = timedelta(minutes=11)
        await eventually(lambda: len(memory(sink).published) == 2)
    assert ids(memory(sink).published) == [first.id, second.id]


async def test_parked_ordering_key_drains_without_waiting_for_the_poll(database: Database) -> None:
    sink = memory_sink(schedule=["10m"])
    entries = await append(database, life("m"))
    memory(sink).return_next(Retry(reason="status 500"))
    async with running(database, sink):

        async def parked() -> bool:
            return len(await rows(database)) == 4

        await eventually(parked)
    async with running(database, sink, poll_seconds=3600, ahead=timedelta(minutes=11)):
        await eventually(lambda: len(memory(sink).published) == 4)
    assert ids(memory(sink).published) == [entry.event.id for entry in entries]


async def test_refused_event_is_a_dead_letter_and_its_ordering_key_goes_on(database: Database) -> None:
    sink = memory_sink()
    entries = await append(database, [*life("bad"), *life("good")])
    poison = entries[1].event.id
    memory(sink).answer = lambda one: Refused(reason="status 422") if one.id == poison else Published()
    async with running(database, sink):
        await eventually(lambda: len(memory(sink).published) == 7)
    [letter] = await letters(database)
    assert (letter.event_id, letter.reason, letter.detail, letter.attempts) == (poison, "refused", "status 422", 1)
    assert in_order(memory(sink).published)


async def test_event_older_than_max_age_is_a_dead_letter(database: Database) -> None:
    sink = memory_sink(schedule=["10m"], max_age="10m")
    await append(database, life("m", (Status.SENT, Status.DELIVERED)))
    memory(sink).return_next(Retry(reason="status 500"), Retry(reason="status 503"))
    async with running(database, sink) as run:
        await eventually(lambda: run.observed.outcomes["crm"] == ["retry"])
        run.clock.ahead = timedelta(minutes=11)
        await eventually(lambda: len(memory(sink).published) == 1)
    [letter] = await letters(database)
    assert (letter.reason, letter.detail, letter.attempts) == ("expired", "status 503", 2)
    assert [one.type for one in memory(sink).published] == ["message.delivered"]


async def test_a_requeued_dead_letter_is_published_with_the_same_id(database: Database) -> None:
    sink = memory_sink()
    [entry] = await append(database, life("m", (Status.SENT,)))
    memory(sink).return_next(Refused(reason="status 422"))
    async with running(database, sink):

        async def dead() -> bool:
            return bool(await letters(database))

        await eventually(dead)
        await requeue(database)
        await eventually(lambda: memory(sink).published)
    assert ids(memory(sink).published) == [entry.event.id]
    assert await rows(database) == []


async def test_sink_down_costs_no_attempts_and_loses_nothing(database: Database) -> None:
    sink = memory_sink()
    entries = await append(database, messages(3))
    memory(sink).answer = lambda _: SinkDown(reason="connection refused")
    async with running(database, sink) as run:

        async def known() -> bool:
            return (await sink_row(database)).down_since_at is not None

        await eventually(known)
        row = await sink_row(database)
        assert (row.cursor, row.last_error) == (0, "connection refused")
        assert await rows(database) == []
        assert await rows(database, ATTEMPTS) == []
        attempted = len(memory(sink).attempted)
        # The sink is probed with one event at a time.
        await eventually(lambda: len(memory(sink).attempted) == attempted + 1)
        memory(sink).answer = lambda _: Published()
        await eventually(lambda: len(memory(sink).published) == len(entries))
    assert in_order(memory(sink).published)
    assert run.observed.breaker[0] == "closed"
    assert run.observed.breaker[-1] == "closed"
    assert {"open", "half-open"} <= set(run.observed.breaker)
    assert (await sink_row(database)).down_since_at is None


async def test_sink_down_outlives_the_lease_holder(database: Database) -> None:
    sink = memory_sink()
    await append(database, messages(3))
    memory(sink).answer = lambda _: SinkDown(reason="connection refused")

    async def known() -> bool:
        return (await sink_row(database)).down_since_at is not None

    async with running(database, sink):
        await eventually(known)
    since = (await sink_row(database)).down_since_at
    attempted = len(memory(sink).attempted)
    async with running(database, sink) as run:
        # The sink is probed with one event at first, not with as many as there are slots.
        await eventually(lambda: len(memory(sink).attempted) == attempted + 1)
        assert run.observed.breaker[0] == "half-open"
        assert (await sink_row(database)).down_since_at == since
        memory(sink).answer = lambda _: Published()
        await eventually(lambda: len(memory(sink).published) == 12)
    assert (await sink_row(database)).down_since_at is None


async def test_ten_failures_in_a_row_open_the_breaker(database: Database) -> None:
    sink = memory_sink(schedule=["10m"])
    entries = await append(database, [event for number in range(200) for event in life(f"m{number}", (Status.SENT,))])
    memory(sink).answer = lambda _: Retry(reason="status 500")
    async with running(database, sink) as run:
        await eventually(lambda: "open" in run.observed.breaker)
        assert len(memory(sink).attempted) <= 10 + 8
        memory(sink).answer = lambda _: Published()
        # The retries of attempts under way would be due later than the clock is moved to below.
        await eventually(lambda: len(run.observed.outcomes["crm"]) == len(memory(sink).attempted))
        run.clock.ahead = timedelta(minutes=11)
        await eventually(lambda: len(memory(sink).published) == len(entries))


class Hostile(Sink):
    """A sink whose `publish` is a function of the test."""

    max_batch = 3
    max_event_bytes = 10_000

    def __init__(self, behave: Callable[[Sequence[Publication]], Any], down: str | None = None) -> None:
        self.behave = behave
        self.down = down
        self.seen: list[list[str]] = []
        self.taken: list[Publication] = []
        self.starts = 0

    async def start(self) -> None:
        self.starts += 1

    async def publish(self, batch: Sequence[Publication]) -> Any:
        self.seen.append(ids(batch))
        results = self.behave(batch)
        if asyncio.iscoroutine(results):
            results = await results
        self.taken += batch
        return results

    async def check(self) -> str | None:
        return self.down


def raising(error: BaseException) -> Callable[[Any], Any]:
    def behave(_: Any) -> Any:
        raise error

    return behave


async def hanging(_: Any = None) -> Any:
    await asyncio.sleep(3600)


FAULTS = {
    "raises": (raising(ValueError("text of a message")), "ValueError"),
    "cancels itself": (raising(asyncio.CancelledError()), "CancelledError"),
    "hangs": (hanging, "timeout"),
    "too few results": (lambda batch: [Published()] * (len(batch) - 1), "the sink miscounted its results"),
    "too many results": (lambda batch: [Published()] * (len(batch) + 1), "the sink miscounted its results"),
    "not results": (lambda batch: ["ok"] * len(batch), "the sink miscounted its results"),
    "no list": (lambda batch: None, "TypeError"),
}


@on_sqlite
@pytest.mark.parametrize("behaviour", FAULTS)
async def test_hostile_sink_publishes_nothing_and_harms_no_other_sink(database: Database, behaviour: str) -> None:
    behave, reason = FAULTS[behaviour]
    sink, other = Hostile(behave), memory_sink("other")
    entries = await append(database, [event for name in "abc" for event in life(name, (Status.SENT,))])
    async with running(database, private(sink, timeout="0.1s", schedule=["10m"]), other):
        await eventually(lambda: len(memory(other).published) == 3)

        async def stored() -> bool:
            return [row.reason for row in await rows(database)] == [reason] * 3

        await eventually(stored)
        assert all(row.attempts == 1 for row in await rows(database))
    assert (await sink_row(database)).cursor == entries[-1].position


@on_sqlite
async def test_exception_with_a_failing_check_means_sink_down(database: Database) -> None:
    sink = Hostile(raising(OSError("gone")), down="no route")
    await append(database, life("a"))
    async with running(database, private(sink)):

        async def known() -> bool:
            return bool((await sink_row(database)).last_error == "no route")

        await eventually(known)
    assert await rows(database) == []
    assert (await sink_row(database)).cursor == 0


@on_sqlite
async def test_retry_is_published_alone_so_that_poison_fails_no_other_event(database: Database) -> None:
    entries = await append(database, [event for name in "abc" for event in life(name, (Status.SENT,))])
    poison = entries[1].event.id

    def behave(batch: Sequence[Publication]) -> list[Result]:
        if poison in ids(batch):
            raise ValueError
        return [Published() for _ in batch]

    sink = Hostile(behave)
    async with running(database, private(sink, schedule=SOON)):
        await eventually(lambda: len(sink.taken) == 2)
    assert sink.seen[0] == [entry.event.id for entry in entries]
    assert set(ids(sink.taken)) == {entries[0].event.id, entries[2].event.id}


@on_sqlite
async def test_event_above_max_event_bytes_is_a_dead_letter_without_a_publish(database: Database) -> None:
    sink = Hostile(lambda batch: [Published() for _ in batch])
    small, large = life("small", (Status.SENT,)), life("large", (Status.SENT,), description="x" * 20_000)
    await append(database, [*large, *small])
    async with running(database, private(sink)):
        await eventually(lambda: sink.taken)
    [letter] = await letters(database)
    assert (letter.message_id, letter.detail) == ("large", "larger than 10000 bytes")
    assert [one.ordering_key for one in sink.taken] == ["v2:small"]


@on_sqlite
async def test_failed_start_is_retried(database: Database) -> None:

    class Sleepy(Hostile):
        async def start(self) -> None:
            await super().start()
            if self.starts == 1:
                raise ConnectionError("not yet")

    sink = Sleepy(lambda batch: [Published() for _ in batch])
    await append(database, life("a"))
    async with running(database, private(sink)) as run:

        async def known() -> bool:
            return bool((await sink_row(database)).last_error == "did not start: ConnectionError")

        await eventually(known)
        await eventually(lambda: len(sink.taken) == 4)
    assert run.observed.breaker == ["open", "closed"]
    assert sink.starts == 2


class Streaming(Hostile):
    """A sink that publishes whole batches in their order."""

    keeps_order = True
    max_batch = 100


async def test_keeps_order_sink_gets_whole_batches_in_log_order(database: Database) -> None:
    sink = Streaming(lambda batch: [Published() for _ in batch])
    entries = await append(database, messages(20))
    async with running(database, private(sink)):
        await eventually(lambda: len(sink.taken) == len(entries))
    assert ids(sink.taken) == [entry.event.id for entry in entries]
    assert len(sink.seen) == 1


async def test_results_after_a_failure_of_the_same_ordering_key_do_not_count(database: Database) -> None:
    def behave(batch: Sequence[Publication]) -> list[Result]:
        return [Retry(reason="status 500") if one.id == bad else Published() for one in batch]

    sink = Streaming(behave)
    entries = await append(database, [*life("bad", (Status.SENT, Status.DELIVERED)), *life("good", (Status.SENT,))])
    bad = entries[0].event.id
    async with running(database, private(sink, schedule=["10m"])):

        async def settled() -> bool:
            return bool((await sink_row(database)).cursor == entries[-1].position)

        await eventually(settled)
    assert [(row.ordering_key, row.state, row.attempts) for row in await rows(database)] == [
        ("v2:bad", "due", 1),
        ("v2:bad", "parked", 0),
    ]


@on_sqlite
async def test_timeout_of_a_keeps_order_sink_means_sink_down(database: Database) -> None:
    await append(database, life("a"))
    async with running(database, private(Streaming(hanging), timeout="0.1s")):

        async def known() -> bool:
            return bool((await sink_row(database)).last_error == "timeout")

        await eventually(known)
    assert await rows(database) == []


class Gated(Sink):
    """A sink whose `publish` waits for a gate. It records two events of an ordering key that are under way at once."""

    concurrency = 4

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.under_way: list[Publication] = []
        self.most = 0
        self.clashes: list[str] = []
        self.taken: list[Publication] = []

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        ordering_keys = {one.ordering_key for one in self.under_way}
        self.clashes += [one.ordering_key for one in batch if one.ordering_key in ordering_keys]
        self.under_way += batch
        self.most = max(self.most, len(self.under_way))
        try:
            await self.gate.wait()
        finally:
            self.under_way = [one for one in self.under_way if one not in batch]
        self.taken += batch
        return [Published() for _ in batch]


@on_sqlite
async def test_concurrency_is_used_with_one_event_per_ordering_key(database: Database) -> None:
    sink = Gated()
    entries = await append(database, messages(10))
    async with running(database, private(sink)):
        await eventually(lambda: len(sink.under_way) == 4)
        sink.gate.set()
        await eventually(lambda: len(sink.taken) == len(entries))
    assert (sink.most, sink.clashes) == (4, [])
    assert in_order(sink.taken)


@on_sqlite
async def test_slow_ordering_key_delays_no_other(database: Database) -> None:
    sink = Gated()
    slow = (await append(database, life("slow", (Status.SENT,))))[0].event.id

    async def publish(batch: Sequence[Publication]) -> list[Result]:
        if slow in ids(batch):
            await sink.gate.wait()
        sink.taken += batch
        return [Published() for _ in batch]

    sink.publish = publish  # type: ignore[method-assign, assignment]
    entries = await append(database, messages(20))
    async with running(database, private(sink, timeout="18s")):
        await eventually(lambda: len(sink.taken) == len(entries))
        assert slow not in ids(sink.taken)
        assert (await sink_row(database)).cursor == 0
        sink.gate.set()
        await eventually(lambda: slow in ids(sink.taken))
    assert (await sink_row(database)).cursor == entries[-1].position
    assert len(sink.taken) == len(entries) + 1


async def test_stop_finishes_and_settles_publishes_under_way(database: Database) -> None:
    sink = Gated()
    entries = await append(database, messages(10))
    async with running(database, private(sink)) as run:
        await eventually(lambda: len(sink.under_way) == 4)
        stopping = asyncio.create_task(run.dispatchers.stop())
        await asyncio.sleep(0)
        sink.gate.set()
        await stopping
        assert len(sink.taken) == 4
        row = await sink_row(database)
        assert (row.cursor, row.lease_holder) == (entries[3].position, None)
        assert run.observed.left == ["crm"]


async def test_keep_attempts_decides_which_attempts_are_recorded(database: Database) -> None:
    some, every = memory_sink("some"), memory_sink("every")
    memory(every).keep_attempts = "all"
    [entry] = await append(database, life("m", (Status.SENT,)))
    for sink in (some, every):
        memory(sink).return_next(Retry(reason="status 500", response_code=500, response="oops"))
    async with running(database, some, every) as run:
        await eventually(lambda: len(run.observed.outcomes) == 2)
        run.clock.ahead = timedelta(minutes=1)
        await eventually(lambda: memory(some).published and memory(every).published)
    attempts = [(row.sink, row.outcome, row.decision, row.response_code) for row in await rows(database, ATTEMPTS)]
    assert sorted(attempts, key=str) == [
        ("every", "published", "done", None),
        ("every", "retry", "retry", 500),
        ("some", "retry", "retry", 500),
    ]
    [failed, *_] = await rows(database, ATTEMPTS)
    assert (failed.event_id, failed.reason, failed.response) == (entry.event.id, "status 500", "oops")
    assert failed.ended_at >= failed.started_at


async def test_backlog_is_measured(database: Database) -> None:
    sink = memory_sink()
    await append(database, life("m", (Status.SENT,), received=0))
    memory(sink).answer = lambda _: SinkDown(reason="not now")
    async with running(database, sink) as run:
        await eventually(lambda: run.observed.backlogs)
    events, oldest, retries, dead = run.observed.backlogs[0]
    assert (events, retries, dead) == (1, {}, {})
    assert oldest > 0


@on_sqlite
async def test_failures_are_logged_without_message_text(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    sink = memory_sink()
    [entry] = await append(database, life("m", (Status.SENT,), description="canary1"))
    memory(sink).return_next(Retry(reason="status 500", response="canary2"))
    async with running(database, sink):

        async def stored() -> bool:
            return bool(await rows(database))

        await eventually(stored)
    output = capsys.readouterr().out
    assert "canary" not in output
    [line] = [line for line in output.splitlines() if "attempt failed" in line]
    for word in ("crm", entry.event.id, "status 500", "retry", "message_id"):
        assert word in line


@on_sqlite
async def test_five_failures_in_a_row_are_logged_as_an_error(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    sink = memory_sink()
    await append(database, [event for number in range(5) for event in life(f"m{number}", (Status.SENT,))])
    memory(sink).answer = lambda _: Retry(reason="status 401")
    async with running(database, sink):

        async def all_wait() -> bool:
            return len(await rows(database)) == 5

        await eventually(all_wait)
    lines = [line for line in capsys.readouterr().out.splitlines() if "again and again" in line]
    assert len(lines) == 1
    assert "error" in lines[0]
    assert "status 401" in lines[0]


@pytest.fixture
async def other_database(database_url: str) -> AsyncIterator[Database]:
    """Another connection to the same database, as of another process."""
    database = Database(database_url)
    yield database
    await database.close()


@on_postgresql
async def test_two_processes_never_publish_at_the_same_time(database: Database, other_database: Database) -> None:
    sink = Gated()
    sink.gate.set()
    configured = private(sink)
    async with running(database, configured) as first, running(other_database, configured) as second:
        for number in range(10):
            await append(database, [event for index in range(5) for event in life(f"m{number}-{index}")])
            for run in (first, second):
                run.wakeup.set()
            await eventually(lambda: len(sink.taken) == 20 * (number + 1))  # noqa: B023
        assert not (first.observed.outcomes and second.observed.outcomes)
    assert sink.clashes == []
    assert in_order(sink.taken)


@on_postgresql
async def test_stop_releases_the_lease_at_once(database: Database, other_database: Database) -> None:
    here, there = Gated(), Gated()
    for sink in (here, there):
        sink.gate.set()
    async with running(database, private(here)) as holder:
        await append(database, life("one"))
        await eventually(lambda: len(here.taken) == 4)
        async with running(other_database, private(there)):
            await holder.dispatchers.stop()
            await append(database, life("two"))
            await eventually(lambda: len(there.taken) == 4)
    assert len(here.taken) == 4


async def test_lost_lease_settles_nothing(database: Database) -> None:
    sink = Gated()
    entries = await append(database, messages(2))
    async with running(database, private(sink)) as run:
        await eventually(lambda: len(sink.under_way) == 2)
        stolen = await sinks.acquire_lease(database, "crm", holder="thief", fingerprint="f", seconds=60, take_over=True)
        assert stolen is not None
        sink.gate.set()
        await eventually(lambda: run.observed.lost == ["crm"])
        row = await sink_row(database)
        assert (row.cursor, row.lease_holder) == (0, "thief")
        await sinks.release_lease(database, stolen)
        await eventually(lambda: {one.id for one in sink.taken} == {entry.event.id for entry in entries})
    assert in_order(sink.taken)


@pytest.mark.slow
@on_postgresql
async def test_lease_is_renewed_while_idle(database: Database) -> None:
    sink = memory_sink(timeout="0.2s")
    async with running(database, sink, lease_seconds=6) as run:
        await eventually(lambda: run.observed.breaker)
        before = (await sink_row(database)).lease_until

        async def renewed() -> bool:
            return bool((await sink_row(database)).lease_until - before > timedelta(seconds=3))

        await eventually(renewed)
        assert run.observed.lost == []


@on_sqlite
async def test_database_outage_loses_nothing(database: Database) -> None:
    sink = memory_sink()
    entries = await append(database, messages(3))
    broken = 3

    def fail(*_: Any) -> None:
        nonlocal broken
        if broken and memory(sink).attempted:
            broken -= 1
            raise OSError("the disk is away")

    sqlalchemy_event.listen(database.engine.sync_engine, "before_cursor_execute", fail)
    async with running(database, sink):
        await eventually(lambda: len(memory(sink).published) == len(entries) and not broken)

        async def settled() -> bool:
            return bool((await sink_row(database)).cursor == entries[-1].position)

        await eventually(settled)
    assert len(memory(sink).attempted) == len(entries)


@on_sqlite
async def test_outage_of_the_database_is_one_line_and_not_one_for_each_poll(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls = 0

    async def unavailable(*_: Any) -> None:
        nonlocal polls
        polls += 1
        raise StorageUnavailable("the server is away")

    with capture_logs() as lines:
        async with running(database, memory_sink(), poll_seconds=0.01):
            monkeypatch.setattr(sinks, "control", unavailable)
            await eventually(lambda: polls > 5)
    outages = [line for line in lines if line["event"] == "the database is unavailable"]
    assert [(line["times"], line["error"]) for line in outages] == [(1, "the server is away")]
