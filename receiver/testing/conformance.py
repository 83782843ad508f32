"""The conformance tests for sinks. The built-in sinks pass them; subclass `SinkConformance` to test your own sink."""

# ruff: noqa: S101

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
from msgspec.structs import replace

from receiver.domain.publication import DeadLetterReason, Published, SinkDown
from receiver.sinks.base import SinkSettings
from receiver.sinks.registry import configure
from receiver.testing.dispatch import TEXT, dispatch_harness, events, publication_of_size, publications
from receiver.testing.harness import SinkHarness, SinkTarget, reasons
from receiver.testing.waiting import eventually, responsive

_SMALLEST_LIMIT: Final = 64 * 1024
# The largest event that is tried, if the sink declares a higher limit.
_LARGEST_TRIED: Final = 8 * 1024 * 1024
_MAX_EVENTS: Final = 256
_ODD_TEXT: Final = 'two\nlines\r\n, "quotes" \\ and \x00, \x1b[31m, Ü, \u2028, \ud7ff, 🚀, ' + "long " * 2000


class SinkConformance:
    """Subclass it as `Test…`, with a fixture `target` that yields a `SinkTarget`.

    `timeout` is how many seconds the tests wait for what should happen soon.
    """

    pytestmark: ClassVar = [pytest.mark.anyio]
    timeout: ClassVar[float] = 20.0

    @pytest.fixture
    def target(self) -> SinkTarget:
        """The target that the sink publishes to, a new one for each test."""
        pytest.fail(f"{type(self).__name__} needs a fixture `target` that yields a receiver.testing.SinkTarget")

    @pytest.fixture(scope="session")
    @staticmethod
    def anyio_backend() -> str:
        return "asyncio"

    @pytest.fixture
    async def harness(
        self, target: SinkTarget, tmp_path: Path, receiver_empty_database: Path
    ) -> AsyncIterator[SinkHarness]:
        async with dispatch_harness(receiver_empty_database, tmp_path / "receiver.testing.db") as dispatch:
            harness = SinkHarness(target, dispatch, timeout=self.timeout)
            yield harness
            await harness.close()

    # the sink without a dispatcher

    async def test_settings_model_and_limits_are_valid(self, harness: SinkHarness) -> None:
        """`Settings` inherits from SinkSettings, and the limits make sense."""
        sink = harness.sink().sink
        assert issubclass(sink.Settings, SinkSettings)
        assert isinstance(sink.max_batch, int)
        assert sink.max_batch >= 1
        assert isinstance(sink.concurrency, int)
        assert sink.concurrency >= 1
        assert sink.max_event_bytes >= _SMALLEST_LIMIT, "an event with a long text would be too large"
        assert sink.keep_attempts in ("all", "failures")
        assert isinstance(sink.keeps_order, bool)

    async def test_every_event_of_a_batch_has_a_result_and_arrives(self, harness: SinkHarness) -> None:
        """Batches of one event, of three, and of as many as `max_batch` allows."""
        sink = await harness.started()
        for size in sorted({1, min(3, sink.sink.max_batch), min(_MAX_EVENTS, sink.sink.max_batch)}):
            batch = publications(size)
            await harness.publish(sink, batch)
            await harness.wait_until_arrived(batch)

    async def test_a_batch_keeps_the_order_of_each_message(self, harness: SinkHarness) -> None:
        """A sink with `keeps_order` gets several events of a message in one batch."""
        sink = await harness.started()
        if not sink.sink.keeps_order:
            pytest.skip("keeps_order is false: the sink never gets two events of a message at once")
        batch = publications(min(_MAX_EVENTS, sink.sink.max_batch), messages=3)
        await harness.publish(sink, batch)
        await harness.wait_until_arrived(batch)

    async def test_batches_arrive_in_order(self, harness: SinkHarness) -> None:
        """Once `publish` has returned, the next event of the message arrives after it."""
        sink = await harness.started()
        events = publications(6, messages=1)
        for publication in events:
            await harness.publish(sink, [publication])
        await harness.wait_until_arrived(events)

    async def test_a_duplicate_event_is_published(self, harness: SinkHarness) -> None:
        """Publishing an event again succeeds too, whether it then arrives once or twice."""
        sink = await harness.started()
        batch = publications()
        for _ in range(2):
            await harness.publish(sink, batch)
        await harness.wait_until_arrived(batch)

    async def test_concurrent_batches_arrive(self, harness: SinkHarness) -> None:
        """`concurrency` calls of `publish` run at once, with events of different messages."""
        sink = await harness.started()
        if sink.sink.keeps_order or sink.sink.concurrency == 1:
            pytest.skip("the sink gets one batch at a time")
        size = min(4, sink.sink.max_batch)
        batches = [publications(size) for _ in range(min(_MAX_EVENTS // size, sink.sink.concurrency))]
        await asyncio.gather(*(harness.publish(sink, batch) for batch in batches))
        await harness.wait_until_arrived([event for batch in batches for event in batch])

    async def test_an_event_of_max_event_bytes_arrives(self, harness: SinkHarness) -> None:
        """`max_event_bytes` holds, whatever the protocol adds."""
        sink = await harness.started()
        batch = [publication_of_size(min(sink.sink.max_event_bytes, _LARGEST_TRIED))]
        await harness.publish(sink, batch)
        await harness.wait_until_arrived(batch)

    async def test_odd_text_arrives_as_one_event(self, harness: SinkHarness) -> None:
        """Line breaks, quotes, control characters and emoji in a text break nothing."""
        sink = await harness.started()
        batch = publications(min(2, sink.sink.max_batch), text=_ODD_TEXT)
        await harness.publish(sink, batch)
        await harness.wait_until_arrived(batch)

    async def test_check_returns_none_and_publishes_nothing(self, harness: SinkHarness) -> None:
        """`check` returns None while the target can be reached, before and after a publish."""
        sink = await harness.started()
        assert await harness.check(sink) is None
        batch = publications()
        await harness.publish(sink, batch)
        assert await harness.check(sink) is None
        await harness.wait_until_arrived(batch)

    async def test_stop_twice_and_start_again(self, harness: SinkHarness) -> None:
        """A lost lease that is acquired again, and a failed start, lead to such calls."""
        sink = harness.sink()
        await harness.stop(sink)
        events = publications(3, messages=1)
        for publication in events:
            await harness.start(sink)
            await harness.publish(sink, [publication])
            await harness.stop(sink)
            await harness.stop(sink)
        await harness.wait_until_arrived(events)

    async def test_stop_leaves_no_task_file_or_connection(self, harness: SinkHarness) -> None:
        """After `stop`, no task of the sink runs, and no file or connection of it is open."""
        sink, tasks, files = harness.sink(), asyncio.all_tasks(), -1
        for _ in range(3):
            await harness.start(sink)
            await harness.publish(sink, publications())
            await harness.stop(sink)
            await eventually(
                lambda: not asyncio.all_tasks() - tasks, seconds=self.timeout, what="all tasks had ended after stop"
            )
            # The first round may open files that stay open, such as those of the event loop's threads.
            files = files if files >= 0 else _open_files()
        await eventually(
            lambda: _open_files() <= files, seconds=self.timeout, what="all files and connections were closed by stop"
        )

    async def test_sink_down_is_reported_and_recovers(self, harness: SinkHarness) -> None:
        """While the target is down: `SinkDown`, or an exception and an error of `check`. Then it recovers by itself."""
        harness.require("down")
        sink = await harness.started(timeout="2s")
        await harness.publish_until_taken(sink, publications())
        batch = publications(min(3, sink.sink.max_batch))
        async with harness.down():
            # The first publish may use a connection that the sink does not yet know to be broken.
            for _ in range(2):
                results = await harness.try_publish(sink, batch)
                assert isinstance(results, Exception) or len(reasons(results)) == len(batch), (
                    "publish returned Published while the target was down"
                )
            error = await harness.check(sink)
            assert error, "check returned None while the target was down"
            assert TEXT not in str(error), "the error of check is logged: it must not contain message text"
            assert isinstance(results, Exception) or all(isinstance(result, SinkDown) for result in results), (
                f"publish returned Retry or Refused, which costs the events an attempt: {reasons(results)[0]}"
            )
        await harness.publish_until_taken(sink, batch)
        assert await harness.check(sink) is None

    async def test_timeout_is_kept_and_recovers(self, harness: SinkHarness) -> None:
        """Without an answer, `publish` and `check` end by themselves or when cancelled, and do not block the loop."""
        harness.require("freeze")
        sink = await harness.started(timeout="1s")
        await harness.publish_until_taken(sink, publications())
        batch = publications(min(3, sink.sink.max_batch))
        async with responsive(), harness.frozen():
            results, _ = await asyncio.gather(harness.try_publish(sink, batch), harness.check(sink, seconds=1.5))
        await harness.publish_until_taken(sink, publications())
        if not isinstance(results, Exception):
            await harness.wait_until_arrived(
                [event for event, result in zip(batch, results, strict=True) if isinstance(result, Published)]
            )

    # the sink under a dispatcher, which reads an event log

    async def test_everything_arrives_in_the_order_of_each_message(self, harness: SinkHarness) -> None:
        """Events in the log arrive, and events appended later too; then the backlog is empty."""
        appended = await harness.append(40, messages=10)
        async with harness.dispatching():
            await harness.wait_until_arrived(appended)
            appended = await harness.append(40, messages=10)
            await harness.wait_until_arrived(appended)
            await harness.wait_until_settled()

    async def test_two_sinks_at_one_target_both_publish_everything(self, harness: SinkHarness) -> None:
        """What one sink has published must not make the target drop what another sink publishes."""
        if harness.target.stores_once:
            pytest.skip("the target stores each event once (`stores_once`)")
        appended = await harness.append(24, messages=6)
        async with harness.dispatching(harness.sink(name="second")):
            await harness.wait_until_arrived_from_all(appended, sinks=2)
            await harness.wait_until_settled()

    async def test_sink_down_at_the_start_costs_no_attempt(self, harness: SinkHarness) -> None:
        """All events wait in the log until the target can be reached."""
        harness.require("down")
        appended = await harness.append(24, messages=6)
        async with AsyncExitStack() as outage:
            await outage.enter_async_context(harness.down())
            async with harness.dispatching(timeout="2s") as run:
                await harness.wait_until_down(run)
                assert set(harness.outcomes(run)) <= {"sink_down"}, "the outage costs events an attempt"
                await outage.aclose()
                await harness.wait_until_arrived(appended)
                await harness.wait_until_settled()
                await harness.wait_until_up(run)

    async def test_sink_down_under_load_loses_nothing(self, harness: SinkHarness) -> None:
        """Events under way may arrive twice; none becomes a dead letter, and publishing resumes by itself."""
        harness.require("down")
        appended = await harness.append(200, messages=50)
        async with AsyncExitStack() as outage, harness.dispatching(timeout="2s") as run:
            await harness.wait_until_first_arrive()
            await outage.enter_async_context(harness.down())
            appended += await harness.append(40, messages=10)
            await harness.wait_until_down(run)
            await outage.aclose()
            await harness.wait_until_arrived(appended)
            await harness.wait_until_settled()
            await harness.wait_until_up(run)

    async def test_a_frozen_target_does_not_harm_other_sinks(self, harness: SinkHarness) -> None:
        """Meanwhile another sink gets its events, attempts end and the process can stop; nothing is lost."""
        harness.require("freeze")
        [neighbour] = configure([{"name": "neighbour", "type": "memory", "start": "beginning"}])
        appended = await harness.append(4, messages=4)
        async with AsyncExitStack() as silence, harness.dispatching(neighbour, timeout="1s") as run:
            await harness.wait_until_arrived(appended)
            # Until they are settled, the outcomes of these attempts may still be missing from `before`.
            await harness.wait_until_settled()
            before = len(harness.outcomes(run))
            await silence.enter_async_context(harness.frozen())
            appended += await harness.append(8, messages=4)
            taken: Any = neighbour.sink
            await eventually(
                lambda: len(taken.published) == len(appended), seconds=self.timeout, what="another sink got its events"
            )
            await eventually(
                lambda: len(harness.outcomes(run)) > before, seconds=self.timeout, what="the attempt ended"
            )
            await run.stop(seconds=self.timeout)
        async with harness.dispatching():
            await harness.wait_until_arrived(appended)
            await harness.wait_until_settled()

    @pytest.mark.parametrize("on_refused", ["continue", "park"])
    async def test_a_refused_event_becomes_a_dead_letter(self, harness: SinkHarness, on_refused: str) -> None:
        """Later events of its message wait until it is a dead letter, with `park` also after it. Others arrive."""
        harness.require("refuse")
        appended = await harness.append(24, messages=6)
        poison, behind = (
            appended[7],
            [event for event in appended[8:] if event.ordering_key == appended[7].ordering_key],
        )
        await harness.target.do(harness.target.refuse, poison)
        async with harness.dispatching(max_age="100s", on_refused=on_refused):
            arrived = await harness.wait_until_arrived([event for event in appended if event not in (poison, *behind)])
            is_pending = not await harness.dead_letters()
            await eventually(harness.dead_letters, seconds=self.timeout, what="the refused event became a dead letter")
            [letter] = await harness.dead_letters()
            assert letter.event_id == poison.id
            if letter.reason == DeadLetterReason.EXPIRED and is_pending:
                assert not {event.id for event in behind} & set(arrived), "later events of its message did not wait"
            if on_refused == "continue":
                await harness.wait_until_arrived(behind)
                await harness.wait_until_settled(dead_letters=1)
            else:
                arrived = await harness.wait_until_arrived(await harness.append(1, messages=1))
                assert not {event.id for event in behind} & set(arrived), "later events of its message did not wait"
            assert poison.id not in await harness.arrived()

    async def test_an_event_above_max_event_bytes_becomes_a_dead_letter(self, harness: SinkHarness) -> None:
        """The sink does not get such an event, and later events of its message arrive."""
        limit = harness.sink().sink.max_event_bytes
        if limit > _LARGEST_TRIED:
            pytest.skip(f"max_event_bytes is above the {_LARGEST_TRIED} bytes that are tried")
        before, large, after = events(3, messages=1)
        appended = await harness.append_events([before, replace(large, description="x" * limit), after])
        async with harness.dispatching():
            await harness.wait_until_arrived([appended[0], appended[2]])
            await eventually(harness.dead_letters, seconds=self.timeout, what="the large event became a dead letter")
            [letter] = await harness.dead_letters()
            assert letter.event_id == large.id
            assert large.id not in await harness.arrived()

    async def test_stop_under_load_leaves_no_gap_and_no_duplicate(self, harness: SinkHarness) -> None:
        """Publishes under way are finished and settled; the next process continues after them."""
        appended = await harness.append(300, messages=75)
        async with harness.dispatching() as run:
            await harness.wait_until_first_arrive()
        async with harness.dispatching():
            arrived = await harness.wait_until_arrived(appended)
            await harness.wait_until_settled()
        if set(harness.outcomes(run)) == {"published"}:
            assert max(Counter(arrived).values()) == 1, "an event that had arrived was published again"

    async def test_crash_under_load_loses_nothing(self, harness: SinkHarness) -> None:
        """A crash settles nothing; the next process publishes the unsettled events again."""
        appended = await harness.append(300, messages=75)
        async with harness.dispatching() as run:
            await harness.wait_until_first_arrive()
            await run.kill()
        async with harness.dispatching():
            await harness.wait_until_arrived(appended)
            await harness.wait_until_settled()


def _open_files() -> int:
    """How many files and connections this process has open; 0 where the system has no /proc."""
    return len(list(_FILES.iterdir())) if _FILES.is_dir() else 0


_FILES: Final = Path("/proc/self/fd")
