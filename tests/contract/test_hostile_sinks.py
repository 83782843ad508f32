"""Sinks of others that do what no sink should: nothing counts as published, and no other sink notices."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import count
from typing import Any

import pytest

from receiver.dispatch import publish
from receiver.domain.events import Status
from receiver.domain.publication import Publication, Published, Result, Retry, SinkDown
from receiver.sinks.base import Sink
from receiver.storage.database import Database
from tests.dispatching import append, ids, life, memory, memory_sink, private, rows, running, sink_row
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)]

Behaviour = Callable[[Sequence[Publication]], Any]


class Hostile(Sink):
    """Calls `behave` in `publish` while `is_hostile` is set. `odd` are attributes to set, methods too."""

    max_batch: Any = 3
    concurrency: Any = 1

    def __init__(self, behave: Behaviour | None = None, **odd: Any) -> None:
        self.is_hostile = behave is not None
        self.calls = 0
        self.taken: list[str] = []
        self.failures: dict[str, BaseException] = {}
        self._behave = behave
        for name, value in odd.items():
            setattr(self, name, value)

    async def start(self) -> None:
        self._fail("start")

    async def publish(self, batch: Sequence[Publication]) -> Any:
        self.calls += 1
        if self.is_hostile and self._behave is not None:
            results = self._behave(batch)
            return await results if asyncio.iscoroutine(results) else results
        self.taken += ids(batch)
        return [Published() for _ in batch]

    async def stop(self) -> None:
        self._fail("stop")

    def _fail(self, where: str) -> None:
        if where in self.failures:
            raise self.failures.pop(where)


class Uncalled(BaseException):
    """Nobody expects it."""


def raising(error: BaseException) -> Callable[..., Any]:
    def behave(*_: Any) -> Any:
        raise error

    return behave


def returning(*results: Any) -> Behaviour:
    """The same result for every event, or these in turn."""
    return lambda batch: [results[index % len(results)] for index in range(len(batch))]


def emptying(batch: Any) -> list[Result]:
    batch.clear()
    return []


def filling(batch: Any) -> list[Result]:
    batch += batch
    return [Published() for _ in batch]


def shortening(batch: Any) -> list[Result]:
    batch.pop()
    return [Published() for _ in batch]


def yielding(batch: Sequence[Publication]) -> Iterator[Result]:
    yield Published()
    raise ValueError("half way")


async def streaming() -> AsyncIterator[Result]:
    yield Published()


async def hanging() -> Any:
    await asyncio.sleep(3600)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def meddling(batch: Sequence[Publication]) -> Any:
    for one in batch:
        event: Any = one.event
        event["data"].clear()
        event.clear()
    return [Retry(reason="meddled")] * len(batch)


RESULTS: dict[str, Behaviour] = {
    "results by id": lambda batch: {one.id: Published() for one in batch},
    "success for ids nobody gave": lambda batch: {f"unknown{index}": Published() for index in range(len(batch))},
    "pairs": lambda batch: [(one.id, Published()) for one in batch],
    "classes": returning(Published),
    "truth": returning(True),
    "results until it raises": yielding,
    "a stream of results": lambda batch: streaming(),
    "a batch that it emptied": emptying,
    "a batch that it filled": filling,
    "a batch that it shortened": shortening,
    "no reason": returning(Retry(reason=None)),  # type: ignore[arg-type]
    "a reason in bytes": returning(Retry(reason=b"status 500")),  # type: ignore[arg-type]
    "a number as reason": returning(SinkDown(reason=500)),  # type: ignore[arg-type]
    "an unstorable reason": returning(Retry(reason="a\x00b \ud800 " + "x" * 1_000_000)),
    "a pause in words": returning(Retry(reason="later", after="soon")),  # type: ignore[arg-type]
    "a pause without end": returning(Retry(reason="later", after=timedelta.max)),
    "a pause in the past": returning(Retry(reason="later", after=timedelta.min)),
    "a code in words": returning(Retry(reason="later", response_code="five hundred")),  # type: ignore[arg-type]
    "an endless code": returning(Retry(reason="later", response_code=2**70)),
    "a response in bytes": returning(Retry(reason="later", response=b"\xff")),  # type: ignore[arg-type]
    "an unstorable response": returning(Retry(reason="later", response="\x00\udfff" * 1000)),
    "an event that it meddled with": meddling,
    "an exit": raising(SystemExit(3)),
    "an exception that is no Exception": raising(Uncalled()),
    "a group of exceptions": raising(BaseExceptionGroup("several", [Uncalled()])),
    "an exception without words": raising(Unspeakable()),
    "the end of an iteration": raising(StopIteration()),
}

CHECKS: dict[str, Callable[[], Any]] = {
    "raises": raising(ValueError("no")),
    "exits": raising(SystemExit(3)),
    "cancels itself": raising(asyncio.CancelledError()),
    "hangs": hanging,
    "says no": lambda: False,
    "says a number": lambda: 42,
    "says bytes": lambda: b"down",
    "says nothing": lambda: "",
    "says what cannot be stored": lambda: "\x00\ud800" * 1000,
}

ERRORS = [ValueError("no"), SystemExit(3), asyncio.CancelledError(), Uncalled()]

LIMITS: dict[str, dict[str, Any]] = {
    "no batch": {"max_batch": 0},
    "less than no batch": {"max_batch": -1},
    "a batch in words": {"max_batch": "three"},
    "no limit": {"max_event_bytes": None},
    "no event is small enough": {"max_event_bytes": -1},
    "nothing at once": {"concurrency": 0},
    "very much at once": {"concurrency": 10**12, "max_batch": 10**12},
    "a concurrency in words": {"concurrency": "eight"},
}


@pytest.mark.parametrize("behaviour", RESULTS)
async def test_odd_results_are_no_success_and_everything_arrives_later(database: Database, behaviour: str) -> None:
    sink, other = Hostile(RESULTS[behaviour]), memory_sink("other")
    entries = await append(database, [event for name in "abc" for event in life(name, (Status.SENT, Status.DELIVERED))])
    async with running(database, private(sink, timeout="0.1s", schedule=["1h"]), other) as run:
        # Wait for the outcome, not only for the call: a retry is due counted from the time of its outcome.
        await eventually(lambda: len(run.observed.outcomes["crm"]) >= len("abc"))
        await eventually(lambda: len(memory(other).published) == len(entries))
        assert all(one.event["data"]["messageId"] for one in memory(other).published)
        assert sink.taken == []
        sink.is_hostile = False
        run.clock.ahead = timedelta(hours=2)
        await eventually(lambda: set(sink.taken) >= {entry.event.id for entry in entries})


async def test_endless_results_are_not_read_to_the_end(database: Database) -> None:
    counted = 0

    def endless(_: Any) -> Iterator[Result]:
        nonlocal counted
        for counted in count():
            if counted > 1000:
                return
            yield Published()

    sink = Hostile(endless)
    await append(database, life("a"))
    async with running(database, private(sink)):
        await eventually(lambda: sink.calls)
    assert counted <= sink.max_batch + 1


# Each waits for a probe.
@pytest.mark.parametrize("check", ["raises", *(pytest.param(name, marks=pytest.mark.slow) for name in [*CHECKS][1:])])
async def test_odd_check_costs_no_attempt(database: Database, check: str) -> None:
    async def odd_check() -> Any:
        answer = CHECKS[check]()
        return await answer if asyncio.iscoroutine(answer) else answer

    sink, other = Hostile(raising(OSError("gone")), check=odd_check), memory_sink("other")
    entries = await append(database, life("a"))
    async with running(database, private(sink), other):

        async def known() -> bool:
            return (await sink_row(database)).down_since_at is not None

        await eventually(known)
        assert await rows(database) == []
        await eventually(lambda: len(memory(other).published) == len(entries))
        sink.is_hostile = False
        await eventually(lambda: sink.taken == [entry.event.id for entry in entries])


@pytest.mark.parametrize("limits", LIMITS)
async def test_odd_limits_harm_no_other_sink(database: Database, limits: str) -> None:
    sink, other = Hostile(**LIMITS[limits]), memory_sink("other")
    entries = await append(database, life("a"))
    async with running(database, private(sink), other):
        await eventually(lambda: len(memory(other).published) == len(entries))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_failed_start_is_retried(database: Database, error: BaseException) -> None:
    sink, other = Hostile(), memory_sink("other")
    sink.failures["start"] = error
    entries = await append(database, life("a"))
    async with running(database, private(sink), other):
        await eventually(lambda: len(memory(other).published) == len(entries))
        await eventually(lambda: sink.taken == [entry.event.id for entry in entries])


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_failed_stop_does_not_keep_the_dispatcher_from_stopping(database: Database, error: BaseException) -> None:
    sink = Hostile()
    sink.failures["stop"] = error
    entries = await append(database, life("a"))
    async with running(database, private(sink)):
        await eventually(lambda: sink.taken == [entry.event.id for entry in entries])
    row = await sink_row(database)
    assert (row.cursor, row.lease_holder) == (entries[-1].position, None)


@pytest.mark.slow
async def test_publish_that_cannot_be_cancelled_does_not_keep_the_dispatcher_from_stopping(database: Database) -> None:
    async def stuck(_: Any) -> Any:
        while sink.is_hostile:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    sink, other = Hostile(stuck), memory_sink("other")
    entries = await append(database, life("a"))
    async with running(database, private(sink, timeout="0.1s"), other, lease_seconds=2) as run:
        await eventually(lambda: sink.calls and len(memory(other).published) == len(entries))
        stopping = asyncio.create_task(run.dispatchers.stop())
        await asyncio.wait({stopping}, timeout=30)
        is_stopped, sink.is_hostile = stopping.done(), False
    assert is_stopped
    assert (await sink_row(database)).cursor == 0


@pytest.mark.slow
async def test_publish_that_never_ends_is_abandoned_and_the_sink_restarted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(publish, "CHECK_SECONDS", 0.1)
    is_over = asyncio.Event()

    async def stuck(_: Any) -> Any:
        sink.is_hostile = False
        while not is_over.is_set():
            with suppress(asyncio.CancelledError):
                await is_over.wait()

    sink = Hostile(stuck)
    entries = await append(database, life("a"))
    async with running(database, private(sink, timeout="0.1s"), lease_seconds=3):
        await eventually(lambda: sink.taken == [entry.event.id for entry in entries])
        is_over.set()
    assert (await sink_row(database)).cursor == entries[-1].position


class Late(Published):
    """Success by another name."""


async def test_subclass_of_a_result_counts_as_the_result(database: Database) -> None:
    sink = Hostile(returning(Late()))
    entries = await append(database, life("a"))
    async with running(database, private(sink)):

        async def settled() -> bool:
            return bool((await sink_row(database)).cursor == entries[-1].position)

        await eventually(settled)
    assert sink.calls == len(entries)


async def test_backlog_of_a_sink_that_does_not_start_is_reported(
    database: Database,
) -> None:
    class Asleep(Hostile):
        async def start(self) -> None:
            raise ConnectionError("not yet")

    entries = await append(database, life("a"))
    async with running(database, private(Asleep())) as run:
        await eventually(lambda: run.observed.backlogs)
        events, oldest_seconds, _, _ = run.observed.backlogs[-1]
        assert (events, oldest_seconds > 0) == (len(entries), True)
        assert run.observed.breaker[-1] == "open"
        assert run.observed.left == []
        async with running(database, private(Hostile())):
            await eventually(lambda: run.observed.left)
