"""One sink in one place: what it is given and what it says, held against what has arrived."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest

from receiver.domain.events import Event
from receiver.domain.publication import Publication, Published, Refused, Result, Retry, SinkDown
from receiver.domain.queries import DeadLetterView
from receiver.domain.retry import BreakerState
from receiver.sinks.registry import ConfiguredSink, configure
from receiver.testing.dispatch import Bench, Dispatching
from receiver.testing.events import TEXT, events
from receiver.testing.waiting import eventually, given_time, within

Action = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a sink under test publishes to, and what can be done to it; every function may be async.

    `settings` is the sink's table with its `type` and its own fields, `name` left out. `arrived` gives the ids of the
    events that have arrived since the place was made, in the order of their arrival, every copy. It is not called
    while the place is down or frozen. What is left out costs the tests that need it:

    `down` and `up`: nobody can reach the place; it is back where it was, with what it had.
    `freeze` and `thaw`: it can be reached, and does not answer; it answers again.
    `refuse`: from now on it takes every event but this one, whether the sink calls that `Refused` or `Retry`.
    `publication.id` and `publication.event` say which.
    """

    settings: Mapping[str, Any]
    arrived: Callable[[], Iterable[str] | Awaitable[Iterable[str]]]
    down: Action | None = None
    up: Action | None = None
    freeze: Action | None = None
    thaw: Action | None = None
    refuse: Callable[[Publication], Any] | None = None

    def __post_init__(self) -> None:
        for one, other in (("down", "up"), ("freeze", "thaw")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise TypeError(f"a place has both `{one}` and `{other}`, or neither")

    async def ids(self) -> list[str]:
        """The ids that have arrived."""
        return list(await _done(self.arrived()))

    async def do(self, action: Callable[..., Any] | None, *told: Any) -> None:
        assert action is not None  # noqa: S101
        await _done(action(*told))


async def _done(given: Any) -> Any:
    return await given if inspect.isawaitable(given) else given


_NAME: Final = "tried"
_ON_WISH: Final = {"timeout": "15s"}
_IN_ANY_CASE: Final = {"name": _NAME, "start": "beginning", "schedule": ["30s"]}
# beyond its time-out, before it is cancelled
_GRACE_SECONDS: Final = 0.5
# enough to be in the middle of several hundred
_SOME: Final = 20
_POLL_SECONDS: Final = 0.02
_CANNOT: Final = {
    "down": "its place has no `down` and `up`",
    "freeze": "its place has no `freeze` and `thaw`",
    "refuse": "its place has no `refuse`",
}


class Trial:
    """A sink on trial; `patience` is for what must happen some time soon, in seconds."""

    def __init__(self, place: Place, bench: Bench, *, patience: float) -> None:
        self.place = place
        self.patience = patience
        self._bench = bench
        self._given: dict[str, Publication] = {}
        self._started: list[ConfiguredSink] = []

    async def close(self) -> None:
        for sink in self._started:
            await self.stop(sink)

    def needs(self, ability: str) -> None:
        """Skips the test if the place cannot do what it takes."""
        if getattr(self.place, ability) is None:
            pytest.skip(_CANNOT[ability])

    @asynccontextmanager
    async def down(self) -> AsyncIterator[None]:
        await self.place.do(self.place.down)
        try:
            yield
        finally:
            await self.place.do(self.place.up)

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        await self.place.do(self.place.freeze)
        try:
            yield
        finally:
            await self.place.do(self.place.thaw)

    # the sink by itself

    def sink(self, **fields: Any) -> ConfiguredSink:
        """A new sink, made from its table as `receiver serve` makes it."""
        [sink] = configure([{**_ON_WISH, **self.place.settings, **_IN_ANY_CASE, **fields}])
        return sink

    async def started(self, **fields: Any) -> ConfiguredSink:
        sink = self.sink(**fields)
        await self.start(sink)
        return sink

    async def start(self, sink: ConfiguredSink) -> None:
        self._started.append(sink)
        await within(sink.sink.start(), seconds=self.patience, what="start")

    async def stop(self, sink: ConfiguredSink) -> None:
        await within(sink.sink.stop(), seconds=self.patience, what="stop")

    async def said(self, sink: ConfiguredSink, batch: Sequence[Publication]) -> list[Result] | Exception:
        """What the sink says to a batch, or what it raises; a TimeoutError if it had to be cancelled."""
        self._gives(batch)
        seconds = sink.settings.timeout.total_seconds() + _GRACE_SECONDS
        said = await given_time(sink.sink.publish(batch), seconds=seconds, what="publish")
        return said if isinstance(said, Exception) else _checked(said, batch)

    async def publish(self, sink: ConfiguredSink, batch: Sequence[Publication]) -> None:
        """Gives a batch to the sink, which must take all of it."""
        said = await self.said(sink, batch)
        if isinstance(said, Exception):
            pytest.fail(f"publish raised {type(said).__name__} and all is well: {said}")
        if complaints := reasons(said):
            pytest.fail(f"{len(complaints)} of {len(batch)} events were not taken, and all is well: {complaints[0]}")

    async def comes_to_take(self, sink: ConfiguredSink, batch: Sequence[Publication]) -> None:
        """Gives a batch to the sink until it takes all of it."""

        async def is_taken() -> bool:
            said = await self.said(sink, batch)
            return not isinstance(said, Exception) and not reasons(said)

        await eventually(is_taken, seconds=self.patience, what="it took what it was given")
        await self.arrive(batch)

    async def complaint(self, sink: ConfiguredSink, *, seconds: float | None = None) -> str | Exception | None:
        """What `check` says, or raises."""
        return await given_time(sink.sink.check(), seconds=seconds or self.patience, what="check")

    # the sink under a dispatcher

    async def append(self, count: int, *, messages: int) -> list[Publication]:
        """Appends new events to the log, of so many messages in turn."""
        return await self.append_events(events(count, messages=messages))

    async def append_events(self, told: Sequence[Event]) -> list[Publication]:
        publications = await self._bench.append(told)
        self._gives(publications)
        return publications

    @asynccontextmanager
    async def dispatching(self, *others: ConfiguredSink, **fields: Any) -> AsyncIterator[Dispatching]:
        """A dispatcher at work for the sink, as in a process that has just started."""
        async with self._bench.dispatching(self.sink(**fields), *others, seconds_to_stop=self.patience) as run:
            yield run

    def outcomes(self, run: Dispatching) -> list[str]:
        return run.observed.outcomes[_NAME]

    async def is_found_down(self, run: Dispatching) -> None:
        await eventually(
            lambda: run.observed.breakers.get(_NAME) == BreakerState.OPEN,
            seconds=self.patience,
            what="the dispatcher took the sink for down",
        )

    async def is_found_up(self, run: Dispatching) -> None:
        await eventually(
            lambda: run.observed.breakers.get(_NAME) == BreakerState.CLOSED,
            seconds=self.patience,
            what="the dispatcher took the sink for well again",
        )

    async def has_settled(self, *, dead_letters: int = 0) -> None:
        """Waits until no event is before the sink and no retry waits; so many dead letters are left."""

        async def is_done() -> bool:
            backlog = await self._bench.backlog(_NAME)
            return not (backlog.events or backlog.retries)

        await eventually(is_done, seconds=self.patience, what="the sink had nothing left to do")
        assert len(await self.dead_letters()) == dead_letters, "an event was given up"  # noqa: S101

    async def dead_letters(self) -> list[DeadLetterView]:
        return await self._bench.dead_letters(_NAME)

    # the place

    async def begin_to_arrive(self) -> None:
        async def some() -> bool:
            return len(await self.place.ids()) >= _SOME

        await eventually(some, seconds=self.patience, what="the first events arrived")

    async def arrive(self, publications: Sequence[Publication]) -> list[str]:
        """Waits until events have arrived, in order and none that nobody gave; returns every id so far."""
        deadline = asyncio.get_running_loop().time() + self.patience
        while missing := await self._missing(publications):
            if asyncio.get_running_loop().time() > deadline:
                pytest.fail(f"{len(missing)} of {len(publications)} events did not arrive, first {_named(missing[0])}")
            await asyncio.sleep(_POLL_SECONDS)
        return await self.arrived()

    async def arrived(self) -> list[str]:
        """Every id so far; fails the test if one came before an earlier event of its message, or was never given."""
        ids = await self.place.ids()
        last: dict[str, Publication] = {}
        for one in dict.fromkeys(ids):
            if one not in self._given:
                pytest.fail(f"an event arrived that nobody had published: {one}")
            publication = self._given[one]
            before = last.setdefault(publication.ordering_key, publication)
            if before.position > publication.position:
                pytest.fail(f"the order is broken: {_named(publication)} arrived after {_named(before)}")
            last[publication.ordering_key] = publication
        return ids

    async def _missing(self, publications: Iterable[Publication]) -> list[Publication]:
        arrived = set(await self.place.ids())
        return [one for one in publications if one.id not in arrived]

    def _gives(self, publications: Iterable[Publication]) -> None:
        self._given.update((one.id, one) for one in publications)


def reasons(said: Iterable[Result]) -> list[str]:
    return [result.reason for result in said if not isinstance(result, Published)]


def _checked(said: Any, batch: Sequence[Publication]) -> list[Result]:
    """The results, if they are as they must be whatever happened."""
    results = list(said)
    if len(results) != len(batch):
        pytest.fail(f"publish returned {len(results)} results for {len(batch)} events")
    for result in results:
        if not isinstance(result, Published | Retry | Refused | SinkDown):
            pytest.fail(f"publish returned a {type(result).__name__}, which is not a result")
    for reason in reasons(results):
        if not isinstance(reason, str) or TEXT in reason:
            pytest.fail("a reason is a text, and does not tell what the message said: it is logged")
    return results


def _named(publication: Publication) -> str:
    return f"event {publication.position} ({publication.type}) of message {publication.event['subject']}"
