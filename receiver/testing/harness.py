"""Runs one sink against its target, and compares what it published with what has arrived."""

import asyncio
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest

from receiver.domain.events import Event
from receiver.domain.publication import Publication, Published, Refused, Result, Retry, SinkDown
from receiver.domain.retry import BreakerState
from receiver.models.sinks import DeadLetterRead
from receiver.sinks.registry import ConfiguredSink, configure
from receiver.testing.dispatch import TEXT, DispatchHarness, Dispatching, events
from receiver.testing.waiting import eventually, given_time, within

Action = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class SinkTarget:
    """The target that a sink under test publishes to. Every function may be async.

    `settings` is the settings table of the sink: `type` and its own fields, without `name`. `arrived` returns the ids
    of the events that have arrived since the target was made, in the order of arrival, duplicates included. It is not
    called while the target is down or frozen. Tests that need one of the following are skipped where it is None:

    `down` makes the target unreachable; `up` makes it reachable again, at the same address and with its data.
    `freeze` lets it accept connections without answering; `thaw` lets it answer again.
    `refuse` makes it refuse one event, `publication.id`, from now on; the sink may return `Refused` or `Retry` for it.
    `stores_once` says that it stores each event once, by its id, whichever sink publishes it.

    Raises TypeError if only one of `down` and `up`, or only one of `freeze` and `thaw`, is given.
    """

    settings: Mapping[str, Any]
    arrived: Callable[[], Iterable[str] | Awaitable[Iterable[str]]]
    down: Action | None = None
    up: Action | None = None
    freeze: Action | None = None
    thaw: Action | None = None
    refuse: Callable[[Publication], Any] | None = None
    stores_once: bool = False

    def __post_init__(self) -> None:
        for fault, repair in (("down", "up"), ("freeze", "thaw")):
            if (getattr(self, fault) is None) != (getattr(self, repair) is None):
                raise TypeError(f"a SinkTarget has both `{fault}` and `{repair}`, or neither")

    async def ids(self) -> list[str]:
        """The ids of the events that have arrived, in the order of arrival, duplicates included."""
        return list(await _await_if_needed(self.arrived()))

    async def do(self, action: Callable[..., Any] | None, *arguments: Any) -> None:
        """Calls one of the functions of this target and awaits it if it is async."""
        assert action is not None  # noqa: S101
        await _await_if_needed(action(*arguments))


async def _await_if_needed(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


_NAME: Final = "tested"
_DEFAULTS: Final = {"timeout": "15s"}
_FIXED: Final = {"name": _NAME, "start": "beginning", "schedule": ["30s"]}
# How long a publish may exceed its timeout before it is cancelled.
_GRACE_SECONDS: Final = 0.5
# With so many arrived, a run over several hundred events is in the middle of its work.
_FIRST_EVENTS: Final = 20
_POLL_SECONDS: Final = 0.02
_CANNOT: Final = {
    "down": "the target has no `down` and `up`",
    "freeze": "the target has no `freeze` and `thaw`",
    "refuse": "the target has no `refuse`",
}


class SinkHarness:
    """A sink under test and its target. `timeout` is how many seconds it waits for what should happen soon."""

    def __init__(self, target: SinkTarget, dispatch_harness: DispatchHarness, *, timeout: float) -> None:
        self.target = target
        self.timeout = timeout
        self._dispatch = dispatch_harness
        self._published: dict[str, Publication] = {}
        self._started: list[ConfiguredSink] = []

    async def close(self) -> None:
        for sink in self._started:
            await self.stop(sink)

    def require(self, ability: str) -> None:
        """Skips the test if the target lacks this function."""
        if getattr(self.target, ability) is None:
            pytest.skip(_CANNOT[ability])

    @asynccontextmanager
    async def down(self) -> AsyncIterator[None]:
        await self.target.do(self.target.down)
        try:
            yield
        finally:
            await self.target.do(self.target.up)

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        await self.target.do(self.target.freeze)
        try:
            yield
        finally:
            await self.target.do(self.target.thaw)

    # the sink without a dispatcher

    def sink(self, **fields: Any) -> ConfiguredSink:
        """A new sink, made from its settings table as `receiver serve` makes it."""
        [sink] = configure([{**_DEFAULTS, **self.target.settings, **_FIXED, **fields}])
        return sink

    async def started(self, **fields: Any) -> ConfiguredSink:
        sink = self.sink(**fields)
        await self.start(sink)
        return sink

    async def start(self, sink: ConfiguredSink) -> None:
        self._started.append(sink)
        await within(sink.sink.start(), seconds=self.timeout, what="start")

    async def stop(self, sink: ConfiguredSink) -> None:
        await within(sink.sink.stop(), seconds=self.timeout, what="stop")

    async def try_publish(self, sink: ConfiguredSink, batch: Sequence[Publication]) -> list[Result] | Exception:
        """Returns the results of a batch, or what `publish` raises: a TimeoutError if it had to be cancelled."""
        self._remember(batch)
        seconds = sink.settings.timeout.total_seconds() + _GRACE_SECONDS
        results = await given_time(sink.sink.publish(batch), seconds=seconds, what="publish")
        return results if isinstance(results, Exception) else _validated(results, batch)

    async def publish(self, sink: ConfiguredSink, batch: Sequence[Publication]) -> None:
        """Publishes a batch; fails the test unless every result is Published."""
        results = await self.try_publish(sink, batch)
        if isinstance(results, Exception):
            pytest.fail(f"publish raised {type(results).__name__} although the target is up: {results}")
        if failed := reasons(results):
            pytest.fail(
                f"{len(failed)} of {len(batch)} events were not published although the target is up: {failed[0]}"
            )

    async def publish_until_taken(self, sink: ConfiguredSink, batch: Sequence[Publication]) -> None:
        """Publishes a batch again and again until every result is Published, and waits until it has arrived."""

        async def is_taken() -> bool:
            results = await self.try_publish(sink, batch)
            return not isinstance(results, Exception) and not reasons(results)

        await eventually(is_taken, seconds=self.timeout, what="publish returned Published for the batch")
        await self.wait_until_arrived(batch)

    async def check(self, sink: ConfiguredSink, *, seconds: float | None = None) -> str | Exception | None:
        """Returns what `check` returns or raises."""
        return await given_time(sink.sink.check(), seconds=seconds or self.timeout, what="check")

    # the sink under a dispatcher

    async def append(self, count: int, *, messages: int) -> list[Publication]:
        """Appends new events to the log, of `messages` messages in turn, and returns their publications."""
        return await self.append_events(events(count, messages=messages))

    async def append_events(self, new: Sequence[Event]) -> list[Publication]:
        publications = await self._dispatch.append(new)
        self._remember(publications)
        return publications

    @asynccontextmanager
    async def dispatching(self, *others: ConfiguredSink, **fields: Any) -> AsyncIterator[Dispatching]:
        """A running dispatcher for the sink, as in a process that has just started; `others` are further sinks."""
        async with self._dispatch.dispatching(self.sink(**fields), *others, seconds_to_stop=self.timeout) as run:
            yield run

    def outcomes(self, run: Dispatching) -> list[str]:
        return run.observed.outcomes[_NAME]

    async def wait_until_down(self, run: Dispatching) -> None:
        await eventually(
            lambda: run.observed.breakers.get(_NAME) == BreakerState.OPEN,
            seconds=self.timeout,
            what="the breaker of the sink opened",
        )

    async def wait_until_up(self, run: Dispatching) -> None:
        await eventually(
            lambda: run.observed.breakers.get(_NAME) == BreakerState.CLOSED,
            seconds=self.timeout,
            what="the breaker of the sink closed",
        )

    async def wait_until_settled(self, *, dead_letters: int = 0) -> None:
        """Waits until the sink has no backlog and no retry; fails the test unless it has so many dead letters."""

        async def is_done() -> bool:
            backlog = await self._dispatch.backlog(_NAME)
            return not (backlog.events or backlog.retries)

        await eventually(is_done, seconds=self.timeout, what="the sink had no backlog and no retries")
        assert len(await self.dead_letters()) == dead_letters, "an event became a dead letter"  # noqa: S101

    async def dead_letters(self) -> list[DeadLetterRead]:
        return await self._dispatch.dead_letters(_NAME)

    # what has arrived at the target

    async def wait_until_first_arrive(self) -> None:
        async def first_arrived() -> bool:
            return len(await self.target.ids()) >= _FIRST_EVENTS

        await eventually(first_arrived, seconds=self.timeout, what="the first events arrived")

    async def wait_until_arrived(self, publications: Sequence[Publication]) -> list[str]:
        """Waits until all these events have arrived and returns every id so far, as `arrived` does."""
        deadline = asyncio.get_running_loop().time() + self.timeout
        while missing := await self._missing(publications):
            if asyncio.get_running_loop().time() > deadline:
                pytest.fail(
                    f"{len(missing)} of {len(publications)} events did not arrive, first {_describe(missing[0])}"
                )
            await asyncio.sleep(_POLL_SECONDS)
        return await self.arrived()

    async def wait_until_arrived_from_all(self, publications: Sequence[Publication], *, sinks: int) -> None:
        """Waits until a copy of each of these events has arrived from each of so many sinks."""
        deadline = asyncio.get_running_loop().time() + self.timeout
        while (fewest := await self._fewest_copies(publications)) < sinks:
            if asyncio.get_running_loop().time() > deadline:
                pytest.fail(f"an event arrived {fewest} times from {sinks} sinks; does the target tell them apart?")
            await asyncio.sleep(_POLL_SECONDS)

    async def arrived(self) -> list[str]:
        """Every id so far.

        Fails the test if an event arrived before an earlier event of its message, or was never published.
        """
        ids = await self.target.ids()
        last: dict[str, Publication] = {}
        for event_id in dict.fromkeys(ids):
            if event_id not in self._published:
                pytest.fail(f"an event arrived that nobody had published: {event_id}")
            publication = self._published[event_id]
            before = last.setdefault(publication.ordering_key, publication)
            if before.position > publication.position:
                pytest.fail(f"the order is broken: {_describe(publication)} arrived after {_describe(before)}")
            last[publication.ordering_key] = publication
        return ids

    async def _fewest_copies(self, publications: Iterable[Publication]) -> int:
        copies = Counter(await self.arrived())
        return min(copies[publication.id] for publication in publications)

    async def _missing(self, publications: Iterable[Publication]) -> list[Publication]:
        arrived = set(await self.target.ids())
        return [publication for publication in publications if publication.id not in arrived]

    def _remember(self, publications: Iterable[Publication]) -> None:
        self._published.update((publication.id, publication) for publication in publications)


def reasons(results: Iterable[Result]) -> list[str]:
    """The reasons of the results that are not Published."""
    return [result.reason for result in results if not isinstance(result, Published)]


def _validated(returned: Any, batch: Sequence[Publication]) -> list[Result]:
    """The results as a list; fails the test unless there is one valid result for each event."""
    results = list(returned)
    if len(results) != len(batch):
        pytest.fail(f"publish returned {len(results)} results for {len(batch)} events")
    for result in results:
        if not isinstance(result, Published | Retry | Refused | SinkDown):
            pytest.fail(f"publish returned a {type(result).__name__}, which is not a result")
    for reason in reasons(results):
        if not isinstance(reason, str) or TEXT in reason:
            pytest.fail("a reason is logged: it must be a text and must not contain message text")
    return results


def _describe(publication: Publication) -> str:
    return f"event {publication.position} ({publication.type}) of message {publication.event['subject']}"
