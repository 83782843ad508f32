"""What every sink must do, as tests: ours pass them, and one of your own can be put to them."""

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
from receiver.testing.dispatch import bench
from receiver.testing.events import TEXT, events, publication_of_size, publications
from receiver.testing.harness import Place, Trial, reasons
from receiver.testing.waiting import eventually, responsive

_SMALLEST_LIMIT: Final = 64 * 1024
# what is declared larger is tried so far
_LARGEST_TRIED: Final = 8 * 1024 * 1024
_MOST_AT_ONCE: Final = 256
_ODD_TEXT: Final = 'two\nlines\r\n, "quotes" \\ and \x00, \x1b[31m, Ü, \u2028, \ud7ff, 🚀, ' + "long " * 2000


class SinkConformance:
    """Subclass it as `Test…`, with a fixture `place`. `patience` is how many seconds a busy machine may take."""

    pytestmark: ClassVar = [pytest.mark.anyio]
    patience: ClassVar[float] = 20.0

    @pytest.fixture
    def place(self) -> Place:
        """Where the sink publishes to, made anew for each test."""
        pytest.fail(f"{type(self).__name__} needs a fixture `place` that yields a receiver.testing.Place")

    @pytest.fixture(scope="session")
    @staticmethod
    def anyio_backend() -> str:
        return "asyncio"

    @pytest.fixture
    async def trial(self, place: Place, tmp_path: Path, receiver_empty_database: Path) -> AsyncIterator[Trial]:
        async with bench(receiver_empty_database, tmp_path / "receiver.testing.db") as made:
            trial = Trial(place, made, patience=self.patience)
            yield trial
            await trial.close()

    # what it is given by hand

    async def test_it_declares_what_it_can_be_given(self, trial: Trial) -> None:
        """Its settings are of our kind and its limits make sense."""
        sink = trial.sink().sink
        assert issubclass(sink.Settings, SinkSettings)
        assert isinstance(sink.max_batch, int)
        assert sink.max_batch >= 1
        assert isinstance(sink.concurrency, int)
        assert sink.concurrency >= 1
        assert sink.max_event_bytes >= _SMALLEST_LIMIT, "an event with a long text would be too large"
        assert sink.keep_attempts in ("all", "failures")
        assert isinstance(sink.keeps_order, bool)

    async def test_every_event_of_a_batch_has_a_result_and_arrives(self, trial: Trial) -> None:
        """Batches of one event, of some, and of as many as it allows."""
        sink = await trial.started()
        for size in sorted({1, min(3, sink.sink.max_batch), min(_MOST_AT_ONCE, sink.sink.max_batch)}):
            batch = publications(size)
            await trial.publish(sink, batch)
            await trial.arrive(batch)

    async def test_a_batch_keeps_the_order_of_each_message(self, trial: Trial) -> None:
        """A sink that `keeps_order` is given several events of a message at once."""
        sink = await trial.started()
        if not sink.sink.keeps_order:
            pytest.skip("it does not keep the order of a batch, and is never given two events of a message at once")
        batch = publications(min(_MOST_AT_ONCE, sink.sink.max_batch), messages=3)
        await trial.publish(sink, batch)
        await trial.arrive(batch)

    async def test_one_batch_follows_the_other(self, trial: Trial) -> None:
        """Once `publish` has returned, what comes next arrives behind."""
        sink = await trial.started()
        told = publications(6, messages=1)
        for one in told:
            await trial.publish(sink, [one])
        await trial.arrive(told)

    async def test_an_event_may_come_twice(self, trial: Trial) -> None:
        """A repeated event is taken too: it is up to the sink whether it arrives once or twice."""
        sink = await trial.started()
        batch = publications()
        for _ in range(2):
            await trial.publish(sink, batch)
        await trial.arrive(batch)

    async def test_as_many_batches_as_it_allows_may_be_under_way(self, trial: Trial) -> None:
        """`concurrency` calls of `publish` at once, of different messages."""
        sink = await trial.started()
        if sink.sink.keeps_order or sink.sink.concurrency == 1:
            pytest.skip("it is given one batch at a time")
        size = min(4, sink.sink.max_batch)
        batches = [publications(size) for _ in range(min(_MOST_AT_ONCE // size, sink.sink.concurrency))]
        await asyncio.gather(*(trial.publish(sink, batch) for batch in batches))
        await trial.arrive([one for batch in batches for one in batch])

    async def test_an_event_as_large_as_it_allows_arrives(self, trial: Trial) -> None:
        """`max_event_bytes` is true, whatever the protocol adds."""
        sink = await trial.started()
        batch = [publication_of_size(min(sink.sink.max_event_bytes, _LARGEST_TRIED))]
        await trial.publish(sink, batch)
        await trial.arrive(batch)

    async def test_odd_text_arrives_as_one_event(self, trial: Trial) -> None:
        """Line breaks, quotes, control characters and emoji within a message break nothing."""
        sink = await trial.started()
        batch = publications(min(2, sink.sink.max_batch), text=_ODD_TEXT)
        await trial.publish(sink, batch)
        await trial.arrive(batch)

    async def test_a_check_finds_nothing_wrong_and_publishes_nothing(self, trial: Trial) -> None:
        """`check` says None where all is well, before and after something was published."""
        sink = await trial.started()
        assert await trial.complaint(sink) is None
        batch = publications()
        await trial.publish(sink, batch)
        assert await trial.complaint(sink) is None
        await trial.arrive(batch)

    async def test_it_can_be_stopped_twice_and_started_again(self, trial: Trial) -> None:
        """As when the right to work for it is lost and found again, and when its start failed."""
        sink = trial.sink()
        await trial.stop(sink)
        told = publications(3, messages=1)
        for one in told:
            await trial.start(sink)
            await trial.publish(sink, [one])
            await trial.stop(sink)
            await trial.stop(sink)
        await trial.arrive(told)

    async def test_it_leaves_nothing_running_or_open(self, trial: Trial) -> None:
        """After `stop` no task of it runs, and no file or connection stays open."""
        sink, tasks, files = trial.sink(), asyncio.all_tasks(), -1
        for _ in range(3):
            await trial.start(sink)
            await trial.publish(sink, publications())
            await trial.stop(sink)
            await eventually(
                lambda: not asyncio.all_tasks() - tasks, seconds=self.patience, what="all tasks had ended after stop"
            )
            # the first round may open what stays, such as the loop's threads
            files = files if files >= 0 else _open_files()
        await eventually(
            lambda: _open_files() <= files, seconds=self.patience, what="all files and connections were closed by stop"
        )

    async def test_it_says_that_the_place_is_down_and_recovers(self, trial: Trial) -> None:
        """No event is to blame: `SinkDown`, or an exception while `check` complains. Then it goes on by itself."""
        trial.needs("down")
        sink = await trial.started(timeout="2s")
        await trial.comes_to_take(sink, publications())
        batch = publications(min(3, sink.sink.max_batch))
        async with trial.down():
            # the first may find a connection that it does not yet know to be broken
            for _ in range(2):
                said = await trial.said(sink, batch)
                assert isinstance(said, Exception) or len(reasons(said)) == len(batch), "published where nobody is"
            complaint = await trial.complaint(sink)
            assert complaint, "check finds nothing wrong where nobody is"
            assert TEXT not in str(complaint), "what check says is logged: it must not tell what a message said"
            assert isinstance(said, Exception) or all(isinstance(one, SinkDown) for one in said), (
                f"it says Retry or Refused, which costs the events an attempt: {reasons(said)[0]}"
            )
        await trial.comes_to_take(sink, batch)
        assert await trial.complaint(sink) is None

    async def test_it_gives_up_in_time_and_recovers(self, trial: Trial) -> None:
        """Where nothing answers, `publish` and `check` end by themselves or when cancelled, and block nobody else."""
        trial.needs("freeze")
        sink = await trial.started(timeout="1s")
        await trial.comes_to_take(sink, publications())
        batch = publications(min(3, sink.sink.max_batch))
        async with responsive(), trial.frozen():
            said, _ = await asyncio.gather(trial.said(sink, batch), trial.complaint(sink, seconds=1.5))
        await trial.comes_to_take(sink, publications())
        if not isinstance(said, Exception):
            await trial.arrive([one for one, result in zip(batch, said, strict=True) if isinstance(result, Published)])

    # what it is given by a dispatcher, from an event log

    async def test_everything_arrives_in_the_order_of_each_message(self, trial: Trial) -> None:
        """What is in the log arrives, and what is appended later; then there is nothing left to do."""
        told = await trial.append(40, messages=10)
        async with trial.dispatching():
            await trial.arrive(told)
            told = await trial.append(40, messages=10)
            await trial.arrive(told)
            await trial.has_settled()

    async def test_a_place_that_is_down_at_the_start_costs_no_attempt(self, trial: Trial) -> None:
        """Everything waits in the log until the place is there."""
        trial.needs("down")
        told = await trial.append(24, messages=6)
        async with AsyncExitStack() as outage:
            await outage.enter_async_context(trial.down())
            async with trial.dispatching(timeout="2s") as run:
                await trial.is_found_down(run)
                assert set(trial.outcomes(run)) <= {"sink_down"}, "the outage costs events an attempt"
                await outage.aclose()
                await trial.arrive(told)
                await trial.has_settled()
                await trial.is_found_up(run)

    async def test_a_place_that_goes_down_under_load_loses_nothing(self, trial: Trial) -> None:
        """What was under way may arrive twice; nothing is given up, and it goes on by itself."""
        trial.needs("down")
        told = await trial.append(200, messages=50)
        async with AsyncExitStack() as outage, trial.dispatching(timeout="2s") as run:
            await trial.begin_to_arrive()
            await outage.enter_async_context(trial.down())
            told += await trial.append(40, messages=10)
            await trial.is_found_down(run)
            await outage.aclose()
            await trial.arrive(told)
            await trial.has_settled()
            await trial.is_found_up(run)

    async def test_a_place_that_does_not_answer_harms_nobody_else(self, trial: Trial) -> None:
        """Another sink gets its events meanwhile, attempts end, the process can stop, and nothing is lost."""
        trial.needs("freeze")
        [neighbour] = configure([{"name": "neighbour", "type": "memory", "start": "beginning"}])
        told = await trial.append(4, messages=4)
        async with AsyncExitStack() as silence, trial.dispatching(neighbour, timeout="1s") as run:
            await trial.arrive(told)
            before = len(trial.outcomes(run))
            await silence.enter_async_context(trial.frozen())
            told += await trial.append(8, messages=4)
            taken: Any = neighbour.sink
            await eventually(
                lambda: len(taken.published) == len(told), seconds=self.patience, what="another sink got its events"
            )
            await eventually(lambda: len(trial.outcomes(run)) > before, seconds=self.patience, what="the attempt ended")
            await run.stop(seconds=self.patience)
        async with trial.dispatching():
            await trial.arrive(told)
            await trial.has_settled()

    @pytest.mark.parametrize("on_refused", ["continue", "park"])
    async def test_an_event_that_the_place_refuses_harms_no_other_message(self, trial: Trial, on_refused: str) -> None:
        """It becomes a dead letter. Until then the later events of its message wait, with "park" after it too."""
        trial.needs("refuse")
        told = await trial.append(24, messages=6)
        poison, behind = told[7], [one for one in told[8:] if one.ordering_key == told[7].ordering_key]
        await trial.place.do(trial.place.refuse, poison)
        async with trial.dispatching(max_age="100s", on_refused=on_refused):
            arrived = await trial.arrive([one for one in told if one not in (poison, *behind)])
            is_pending = not await trial.dead_letters()
            await eventually(trial.dead_letters, seconds=self.patience, what="the refused event became a dead letter")
            [letter] = await trial.dead_letters()
            assert letter.event_id == poison.id
            if letter.reason == DeadLetterReason.EXPIRED and is_pending:
                assert not {one.id for one in behind} & set(arrived), "later events of its message did not wait"
            if on_refused == "continue":
                await trial.arrive(behind)
                await trial.has_settled(dead_letters=1)
            else:
                arrived = await trial.arrive(await trial.append(1, messages=1))
                assert not {one.id for one in behind} & set(arrived), "later events of its message did not wait"
            assert poison.id not in await trial.arrived()

    async def test_an_event_too_large_for_it_becomes_a_dead_letter(self, trial: Trial) -> None:
        """An event above `max_event_bytes` is not even given to it, and its message goes on."""
        limit = trial.sink().sink.max_event_bytes
        if limit > _LARGEST_TRIED:
            pytest.skip(f"it takes more than the {_LARGEST_TRIED} bytes that are tried")
        before, large, after = events(3, messages=1)
        told = await trial.append_events([before, replace(large, description="x" * limit), after])
        async with trial.dispatching():
            await trial.arrive([told[0], told[2]])
            await eventually(trial.dead_letters, seconds=self.patience, what="it became a dead letter")
            [letter] = await trial.dead_letters()
            assert letter.event_id == large.id
            assert large.id not in await trial.arrived()

    async def test_a_stop_in_the_middle_leaves_no_gap_and_repeats_nothing(self, trial: Trial) -> None:
        """What is under way is finished and settled; the next process goes on behind it."""
        told = await trial.append(300, messages=75)
        async with trial.dispatching() as run:
            await trial.begin_to_arrive()
        async with trial.dispatching():
            arrived = await trial.arrive(told)
            await trial.has_settled()
        if set(trial.outcomes(run)) == {"published"}:
            assert max(Counter(arrived).values()) == 1, "what had arrived was published again"

    async def test_a_crash_in_the_middle_loses_nothing(self, trial: Trial) -> None:
        """Nothing is settled; the next process repeats what it must."""
        told = await trial.append(300, messages=75)
        async with trial.dispatching() as run:
            await trial.begin_to_arrive()
            await run.kill()
        async with trial.dispatching():
            await trial.arrive(told)
            await trial.has_settled()


def _open_files() -> int:
    """How many files and connections this process has open; 0 where nobody says."""
    return len(list(_FILES.iterdir())) if _FILES.is_dir() else 0


_FILES: Final = Path("/proc/self/fd")
