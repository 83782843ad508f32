"""What settings and operators choose for a sink: on_refused, coalesce, max_age, pause, replay."""

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from receiver.domain.events import Status
from receiver.domain.publication import LogEntry, Publication, Published, Refused, Result, Retry, SinkDown
from receiver.models.queries import DeadLetterChoice
from receiver.models.sinks import ATTEMPTS, REPLAYS
from receiver.sinks.registry import configure
from receiver.storage import dead_letters, replays, sinks
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
    publications,
    requeue,
    rows,
    running,
    sink_row,
)
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

SOON = ["1s"]


def published(sink: Any) -> list[tuple[str, str]]:
    return [(one.ordering_key, one.type.removeprefix("message.")) for one in memory(sink).published]


def refusing(*poisonous: str) -> Callable[[Publication], Result]:
    return lambda one: Refused(reason="status 422") if one.id in poisonous else Published()


async def states(database: Database) -> list[tuple[str, int]]:
    return [(row.state, row.attempts) for row in await rows(database)]


async def state_of(database: Database, replay: Any) -> Any:
    [found] = [row for row in await rows(database, REPLAYS) if row.id == replay.id]
    return found


async def ended(database: Database, replay: Any) -> Any:
    async def over() -> bool:
        return (await state_of(database, replay)).ended_at is not None

    await eventually(over)
    return await state_of(database, replay)


# on_refused = park


async def test_on_refused_park_holds_the_ordering_key_until_requeue(database: Database) -> None:
    sink = memory_sink(on_refused="park")
    entries = await append(database, messages(2))
    memory(sink).answer = refusing(entries[0].event.id)
    async with running(database, sink) as run:
        await eventually(lambda: len(memory(sink).published) == 4)

        async def parked() -> bool:
            return await states(database) == [("held", 1), ("parked", 0), ("parked", 0), ("parked", 0)]

        await eventually(parked)
        [letter] = await letters(database)
        assert (letter.event_id, letter.reason) == (entries[0].event.id, "refused")
        later = await append(database, life("m0", (Status.READ,)))
        run.wakeup.set()

        async def waits_too() -> bool:
            return len(await rows(database)) == 5

        await eventually(waits_too)
        memory(sink).answer = lambda _: Published()
        assert await requeue(database) == 1
        await eventually(lambda: len(memory(sink).published) == len(entries) + len(later))
    assert in_order(memory(sink).published)
    assert await letters(database) == []
    assert await rows(database) == []


async def test_dropping_a_held_event_releases_its_ordering_key(database: Database) -> None:
    sink = memory_sink(on_refused="park")
    entries = await append(database, life("m0"))
    memory(sink).answer = refusing(entries[1].event.id)
    async with running(database, sink):

        async def held() -> bool:
            return ("held", 1) in await states(database)

        await eventually(held)
        dropped = dead_letters.drop(database, DeadLetterChoice(sink="crm"), now=now())
        assert [number async for number in dropped] == [1]
        await eventually(lambda: len(memory(sink).published) == 3)
    assert ids(memory(sink).published) == [entry.event.id for entry in entries if entry is not entries[1]]


# only the latest


async def test_coalesce_latest_publishes_only_the_newest_waiting_event(database: Database) -> None:
    sink = memory_sink(coalesce="latest")
    both = [event for number in (1, 2) for event in life("m0", recipient=f"+1919555000{number}")]
    await append(database, [*both, *life("m1")])
    async with running(database, sink) as run:
        await eventually(lambda: len(memory(sink).published) == 3)

        async def passed() -> bool:
            return bool((await sink_row(database)).cursor == 12)

        await eventually(passed)
        await eventually(lambda: run.observed.superseded == 9)
        # An event that arrives while nothing waits is published, whatever follows later.
        await append(database, life("m2", (Status.SENT,)))
        run.wakeup.set()
        await eventually(lambda: len(memory(sink).published) == 4)
    assert [kind for _, kind in published(sink)] == ["delivered"] * 3 + ["sent"]


async def test_coalesce_latest_looks_beyond_the_window(database: Database) -> None:
    sink = memory_sink(coalesce="latest")
    first = life("early", (Status.SENT,))
    others = [event for number in range(300) for event in life(f"m{number}", (Status.SENT,))]
    await append(database, [*first, *others, *life("early", (Status.DELIVERED,))])
    async with running(database, sink):
        await eventually(lambda: len(memory(sink).published) == 301)
    assert [kind for ordering_key, kind in published(sink) if ordering_key == "v2:early"] == ["delivered"]


async def test_coalesce_latest_ignores_filtered_events(database: Database) -> None:
    sink = memory_sink(coalesce="latest", events=["message.sent"])
    others = [event for number in range(300) for event in life(f"m{number}", (Status.SENT,))]
    await append(database, [*life("early", (Status.SENT,)), *others, *life("early", (Status.DELIVERED,))])
    async with running(database, sink):
        await eventually(lambda: len(memory(sink).published) == 301)


async def test_coalesce_latest_supersedes_a_retry(database: Database) -> None:
    sink = memory_sink(coalesce="latest", schedule=["10m"])
    await append(database, life("m0", (Status.SENT,)))
    memory(sink).return_next(Retry(reason="status 503"))
    async with running(database, sink) as run:

        async def waits() -> bool:
            return await states(database) == [("due", 1)]

        await eventually(waits)
        await append(database, [*life("m0", (Status.DELIVERED,)), *life("m0", (Status.READ,))])
        run.wakeup.set()

        async def wait_behind() -> bool:
            return len(await rows(database)) == 3

        await eventually(wait_behind)
        run.clock.ahead = timedelta(minutes=11)
        await eventually(lambda: memory(sink).published)

        async def settled() -> bool:
            return not await rows(database)

        await eventually(settled)
    assert [kind for _, kind in published(sink)] == ["read"]


# age


async def test_on_expire_keep_dead_letters_nothing_while_the_sink_is_down(database: Database) -> None:
    sink = memory_sink(max_age="1h")
    await append(database, life("m0"))
    memory(sink).answer = lambda _: SinkDown(reason="connection refused")
    async with running(database, sink) as run:

        async def noted() -> bool:
            return (await sink_row(database)).down_since_at is not None

        await eventually(noted)
        run.clock.ahead = timedelta(minutes=61)
        attempted = len(memory(sink).attempted)
        await eventually(lambda: len(memory(sink).attempted) > attempted)
    assert await letters(database) == []
    assert (await sink_row(database)).cursor == 0


async def test_on_expire_dead_letter_while_the_sink_is_down(database: Database) -> None:
    sink = memory_sink(max_age="1h", on_expire="dead_letter")
    entries = await append(database, life("m0"))
    memory(sink).answer = lambda _: SinkDown(reason="connection refused")
    async with running(database, sink) as run:

        async def noted() -> bool:
            return (await sink_row(database)).down_since_at is not None

        await eventually(noted)
        run.clock.ahead = timedelta(minutes=59)
        assert await letters(database) == []
        run.clock.ahead = timedelta(minutes=61)

        async def given_up() -> bool:
            return len(await letters(database)) == len(entries)

        await eventually(given_up)
    assert {(one.reason, one.detail, one.attempts) for one in await letters(database)} == {
        ("expired", "connection refused", 0)
    }


# pause


async def test_a_paused_sink_gets_nothing_and_goes_on_where_it_was(database: Database) -> None:
    sink = memory_sink()
    async with running(database, sink) as run:
        await sinks.pause(database, "crm", paused=True)
        await asyncio.sleep(0.2)  # several polls
        entries = await append(database, messages(2))
        run.wakeup.set()
        await asyncio.sleep(0.2)  # time enough to publish all of it
        assert memory(sink).attempted == []
        await sinks.pause(database, "crm", paused=False)
        await eventually(lambda: len(memory(sink).published) == len(entries))


async def test_what_comes_after_a_pause_is_not_published_before_the_next_poll(database: Database) -> None:
    sink = memory_sink()
    first = await append(database, life("m1"))
    async with running(database, sink, poll_seconds=60) as run:
        await eventually(lambda: ids(memory(sink).published) == ids(publications(first)))
        await sinks.pause(database, "crm", paused=True)
        await append(database, life("m2"))
        run.wakeup.set()
        await asyncio.sleep(0.2)  # time enough to publish all of it
        assert len(memory(sink).attempted) == len(first)


async def test_gone_sink_is_paused_until_resume(database: Database) -> None:
    sink = memory_sink()
    memory(sink).return_next(Refused(reason="status 410", gone=True))
    await append(database, messages(20))
    async with running(database, sink):

        async def paused() -> bool:
            return bool((await sink_row(database)).paused)

        await eventually(paused)
        attempted = len(memory(sink).attempted)
        await asyncio.sleep(0.2)  # several polls
        assert len(memory(sink).attempted) == attempted < 80
        await sinks.pause(database, "crm", paused=False)
        await eventually(lambda: len(memory(sink).published) == 79)
    assert len(await letters(database)) == 1


# replay


async def replayed(database: Database, **parameters: Any) -> Any:
    replay, _ = await replays.begin(database, "crm", parameters.get("since", "beginning"), now=now())
    assert replay is not None
    return replay


async def settled_at(database: Database, entries: list[LogEntry]) -> None:
    async def passed() -> bool:
        return bool((await sink_row(database)).cursor == entries[-1].position)

    await eventually(passed)


async def test_replay_publishes_old_events_with_their_ids_and_a_mark(database: Database) -> None:
    sink = memory_sink()
    entries = await append(database, messages(100))
    async with running(database, sink):
        await settled_at(database, entries)
        replay = await replayed(database)
        over = await ended(database, replay)
    assert (over.state, over.position, over.published, over.dead_letters) == ("finished", entries[-1].position, 400, 0)
    again = [one for one in memory(sink).published if one.replayed]
    assert sorted(ids(again)) == sorted(entry.event.id for entry in entries)
    assert in_order(again)
    assert await rows(database) == []


async def test_replay_of_messages_publishes_their_events_alone_and_in_order(database: Database) -> None:
    sink = memory_sink()
    entries = await append(database, messages(400))
    wanted = [entry for entry in entries if int(entry.event.message_id[1:]) % 3 == 0]
    chosen = sorted({entry.event.message_id for entry in wanted})
    async with running(database, sink):
        await settled_at(database, entries)
        replay, _ = await replays.begin(database, "crm", "beginning", now=now(), message_ids=chosen)
        over = await ended(database, replay)
    assert (over.state, over.published) == ("finished", len(wanted))
    again = [one for one in memory(sink).published if one.replayed]
    assert sorted(ids(again)) == sorted(entry.event.id for entry in wanted)
    assert in_order(again)


async def test_source_setting_is_in_the_first_copy_in_a_retry_and_in_a_replay(database: Database) -> None:
    [sink] = configure(
        [{"name": "crm", "type": "memory", "start": "beginning", "schedule": SOON}],
        source="/sms/staging/",
        public_url="https://sms.example.com/",
    )
    entries = await append(database, life("m"))
    failing = iter([Retry(reason="status 503")])
    memory(sink).answer = lambda _: next(failing, Published())

    async def no_retries() -> bool:
        return await rows(database) == []

    async with running(database, sink) as run:
        await eventually(lambda: len(memory(sink).attempted) >= 1)
        run.clock.ahead = timedelta(minutes=1)
        await settled_at(database, entries)
        await eventually(no_retries)
        await ended(database, await replayed(database))
    assert len(memory(sink).published) == 2 * len(entries)
    assert {one.event["source"] for one in memory(sink).published} == {"/sms/staging/v2"}
    assert {json.loads(one.body)["source"] for one in memory(sink).published} == {"/sms/staging/v2"}
    schema = "https://sms.example.com/schemas/message-event/1"
    assert {json.loads(one.body)["dataschema"] for one in memory(sink).published} == {schema}


async def test_replay_failure_is_a_dead_letter_after_three_attempts(
    database: Database,
) -> None:
    sink = memory_sink(schedule=SOON)
    entries = await append(database, messages(2))
    async with running(database, sink):
        await settled_at(database, entries)
        bad = entries[0].event.id
        memory(sink).answer = lambda one: Retry(reason="status 503") if one.id == bad else Published()
        over = await ended(database, await replayed(database))
    assert (over.published, over.dead_letters) == (7, 1)
    [letter] = await letters(database)
    assert (letter.event_id, letter.reason, letter.detail) == (bad, "expired", "status 503")
    assert await rows(database) == []
    tried = [row for row in await rows(database, ATTEMPTS) if row.replay_id == over.id]
    assert {row.event_id for row in tried} == {bad}
    assert [row.decision for row in tried] == ["postponed", "postponed", "dead_letter"]
    assert sum(one.id == bad for one in memory(sink).attempted) == 4


async def test_replay_skips_events_that_wait_as_retries(database: Database) -> None:
    sink = memory_sink(schedule=["10m"])
    entries = await append(database, messages(2))
    waiting = entries[0].event.id
    memory(sink).return_next(Retry(reason="status 503"))
    async with running(database, sink):
        await settled_at(database, entries)
        assert len(await rows(database)) == 4
        over = await ended(database, await replayed(database))
    assert over.published == 4
    assert waiting not in ids(memory(sink).published)


async def test_a_replay_waits_while_the_sink_is_down_and_loses_nothing(database: Database) -> None:
    sink = memory_sink()
    entries = await append(database, messages(3))
    async with running(database, sink):
        await settled_at(database, entries)
        memory(sink).return_next(*[SinkDown(reason="connection refused")] * 2)
        over = await ended(database, await replayed(database))
    assert (over.published, over.dead_letters) == (12, 0)


async def at_rest(sink: Any) -> None:
    """Waits until nothing was published for several polls."""
    attempted = -1
    while len(sink.attempted) != attempted:
        attempted = len(sink.attempted)
        await asyncio.sleep(0.3)


async def test_a_paused_replay_goes_on_and_a_cancelled_one_ends(database: Database) -> None:
    sink = memory_sink()
    entries = await append(database, messages(300))
    async with running(database, sink) as run:
        await settled_at(database, entries)
        slow = memory(sink)
        publish = slow.publish

        async def slowly(batch: Any) -> Any:
            await asyncio.sleep(0.02)
            return await publish(batch)

        slow.publish = slowly
        replay = await replayed(database)

        async def has_begun() -> bool:
            return (await state_of(database, replay)).published > 20

        await eventually(has_begun)
        await replays.act(database, "crm", "pause", now=now())
        await at_rest(slow)
        at = await state_of(database, replay)
        assert (at.state, at.position < entries[-1].position) == ("paused", True)
        # New events are published meanwhile.
        await append(database, life("new", (Status.SENT,)))
        run.wakeup.set()
        await eventually(lambda: slow.published[-1].ordering_key == "v2:new")
        await replays.act(database, "crm", "resume", now=now())

        async def goes_on() -> bool:
            return (await state_of(database, replay)).position > at.position

        await eventually(goes_on)
        await replays.act(database, "crm", "cancel", now=now())
        await at_rest(slow)
        assert len(slow.attempted) < 2 * len(entries)
        assert (await state_of(database, replay)).state == "cancelled"
        # The next replay may begin.
        slow.publish = publish
        assert (await ended(database, await replayed(database))).published == len(entries) + 1


async def test_a_replay_goes_on_in_the_next_process(database: Database) -> None:
    entries = await append(database, messages(200))
    first = memory_sink()
    async with running(database, first):
        await settled_at(database, entries)
        replay = await replayed(database)
        publish = memory(first).publish

        async def slowly(batch: Any) -> Any:
            await asyncio.sleep(0.005)
            return await publish(batch)

        memory(first).publish = slowly
        await eventually(lambda: sum(one.replayed for one in memory(first).published) > 20)
    second = memory_sink()
    async with running(database, second):
        over = await ended(database, replay)
    again = [one for sink in (first, second) for one in memory(sink).published if one.replayed]
    assert over.published == len(again) == len(entries)


async def test_replay_does_not_delay_new_events(database: Database) -> None:
    sink = memory_sink()
    entries = await append(database, messages(500))
    async with running(database, sink) as run:
        await settled_at(database, entries)
        publish = memory(sink).publish

        async def slowly(batch: Any) -> Any:
            await asyncio.sleep(0.01)
            return await publish(batch)

        memory(sink).publish = slowly
        await replayed(database)
        await eventually(lambda: any(one.replayed for one in memory(sink).published))
        run.observed.waited.clear()
        for number in range(20):
            events = life(f"new{number}", (Status.SENT,))
            [entry] = await append(database, events)
            run.wakeup.set()
            await eventually(lambda entry=entry: entry.event.id in ids(memory(sink).published[-40:]))  # type: ignore[misc]
        sent = [one for one in memory(sink).published if one.ordering_key.startswith("v2:new")]
    # A replay gets at most four of eight slots, so a new event is published in the next turn.
    assert len(sent) == 20
    assert not any(one.replayed for one in sent)
