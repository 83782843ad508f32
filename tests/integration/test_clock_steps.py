"""Retries keep their pauses when a clock is set an hour forward or back, as time servers and people do."""

import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from receiver.api.dead_letters import act_on_dead_letters
from receiver.domain.publication import Published, Refused, Result, Retry
from receiver.models.queries import DeadLetterChoice
from receiver.storage import dead_letters
from receiver.storage.database import Database
from tests.dispatching import Running, append, letters, life, memory, memory_sink, now, rows, running, sink_row
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

HOUR, LATER = timedelta(hours=1), timedelta(minutes=10)
STEPS = pytest.mark.parametrize("step", [HOUR, -HOUR], ids=["forward", "back"])


def failing_sink() -> tuple[object, list[Result]]:
    """A sink whose answer is the last of the list, at first a failure."""
    sink, answers = memory_sink(schedule=["10m"]), [Retry(reason="status 500")]
    memory(sink).answer = lambda _: answers[-1]
    return sink, answers  # type: ignore[return-value]


async def first_failure(database: Database, run: Running) -> None:
    """Waits until the retry is stored and no attempt is under way."""
    await eventually(lambda: run.observed.outcomes["crm"] == ["retry"])

    async def is_stored() -> bool:
        return bool(await rows(database))

    await eventually(is_stored)


@STEPS
async def test_retry_comes_after_its_pause_when_the_clock_is_set(database: Database, step: timedelta) -> None:
    sink, answers = failing_sink()
    await append(database, life("a")[:1])
    async with running(database, sink) as run:
        await first_failure(database, run)
        answers.append(Published())
        [before] = await rows(database)
        run.clock.step = step

        async def is_moved() -> bool:
            [retry] = await rows(database)
            return bool(abs(retry.due_at - before.due_at - step) < timedelta(seconds=5))

        await eventually(is_moved)
        [after] = await rows(database)
        # The age limit moves with it.
        assert abs(after.first_at - before.first_at - step) < timedelta(seconds=5)
        run.clock.ahead = LATER - timedelta(minutes=1)
        # As many polls as it would take.
        for number in range(3):
            await append(database, life(f"b{number}")[:1])
            run.wakeup.set()
            await eventually(lambda n=number: run.observed.outcomes["crm"].count("published") == n + 1)
        assert "a" not in {one.event["subject"] for one in memory(sink).published}
        run.clock.ahead = LATER + timedelta(minutes=1)
        await eventually(lambda: "a" in {one.event["subject"] for one in memory(sink).published})
    # What operators see is by the clock that was set.
    assert abs((await sink_row(database)).last_success_at - run.clock()) < timedelta(minutes=5)


@STEPS
async def test_clock_that_is_set_there_and_back_changes_nothing(database: Database, step: timedelta) -> None:
    sink, answers = failing_sink()
    await append(database, life("a")[:1])
    async with running(database, sink) as run:
        await first_failure(database, run)
        answers.append(Published())
        [before] = await rows(database)
        for is_there in (True, False):
            run.clock.step = step if is_there else timedelta(0)
            expected = before.due_at + run.clock.step

            async def is_moved(expected=expected) -> bool:
                [retry] = await rows(database)
                return bool(abs(retry.due_at - expected) < timedelta(seconds=5))

            await eventually(is_moved)
        run.clock.ahead = LATER + timedelta(minutes=1)
        await eventually(lambda: memory(sink).published)


async def test_clock_that_was_set_back_while_no_process_ran(database: Database) -> None:
    sink, _ = failing_sink()
    await append(database, life("a")[:1])
    async with running(database, sink) as run:
        await first_failure(database, run)
    sink, answers = failing_sink()
    answers.append(Published())
    [before] = await rows(database)

    async def is_moved() -> bool:
        [retry] = await rows(database)
        return bool(retry.due_at < before.due_at - HOUR / 2)

    async with running(database, sink, ahead=-HOUR) as run:
        await eventually(is_moved)
        run.clock.ahead = -HOUR + LATER + timedelta(minutes=1)
        await eventually(lambda: memory(sink).published)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@STEPS
async def test_requeued_event_is_due_by_the_time_of_postgresql(database: Database, step: timedelta) -> None:
    sink = memory_sink()
    memory(sink).answer = lambda _: Refused(reason="status 422")
    await append(database, life("a")[:1])

    async def has_a_dead_letter() -> bool:
        return bool(await letters(database))

    async with running(database, sink):
        await eventually(has_a_dead_letter)
    context = SimpleNamespace(clock=lambda: now() + step)
    call: Any = SimpleNamespace(database=database, query=DeadLetterChoice(sink="crm"), context=context)
    assert (await act_on_dead_letters(call, action=dead_letters.requeue)).dead_letters == 1
    [retry] = await rows(database)
    assert abs(retry.due_at - now()) < timedelta(minutes=5)
    assert abs(retry.first_at - now()) < timedelta(minutes=5)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@STEPS
async def test_clock_of_the_process_does_not_matter_with_postgresql(database: Database, step: timedelta) -> None:
    """Two machines whose clocks differ share the schedule: it is in the database's time."""
    sink = memory_sink(schedule=["1s"])
    answers: list[Result] = [Published(), Retry(reason="status 500")]
    memory(sink).answer = lambda _: answers.pop()
    await append(database, life("a")[:1])
    async with running(database, sink, ahead=step, schedule_seconds=time.monotonic, reference=None) as run:
        run.clock.step = -2 * step
        await eventually(lambda: memory(sink).published, seconds=20)
        await eventually(lambda: run.observed.outcomes["crm"] == ["retry", "published"])
    assert abs((await sink_row(database)).last_success_at - now()) < timedelta(minutes=5)
