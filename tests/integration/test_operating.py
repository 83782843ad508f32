"""Actions of operators on sinks, on both databases: pause, replay, requeue, drop; and the lists of them."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, event, insert, select, update
from sqlalchemy import text as sql

from receiver.dispatch.publish import publication
from receiver.domain.events import REGISTERED, Api, Direction, Status
from receiver.domain.publication import (
    DeadLettered,
    DeadLetterReason,
    Decision,
    Done,
    LogEntry,
    Outcome,
    Parked,
    PendingPublication,
    Published,
    Refused,
    Retry,
    RetryAt,
)
from receiver.domain.window import Attempt, Decided, Settlement
from receiver.errors import Conflict, Expired, Unknown
from receiver.models.events import EVENTS
from receiver.models.queries import DeadLetterChoice, DeadLetterQuery, ReplayQuery, SinkQuery, SortOrder
from receiver.models.sinks import ATTEMPTS, DEAD_LETTERS, REPLAYS, RETRIES, SINKS, DeadLetterRead, ReplayRead, SinkRead
from receiver.storage import dead_letters, event_log, publications, replays, retention, sinks
from receiver.storage.database import Database
from receiver.storage.event_retention import Kind, PruneTask
from receiver.storage.replays import LogRange
from receiver.storage.retries import settle
from receiver.storage.sinks import Health, Lease, UnknownSink
from tests.dispatching import append, in_order, life, memory, memory_sink, messages, now, running, whole_log
from tests.factories import at, make_event
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

SINK = "crm"
HEALTHY = Health()
REFUSED = DeadLettered(cause=DeadLetterReason.REFUSED, reason="status 422", response_code=422, response="no")
EXPIRED = DeadLettered(cause=DeadLetterReason.EXPIRED, reason="timeout")
HOLDS = DeadLettered(cause=DeadLetterReason.REFUSED, reason="status 422", holds=True)


class Worker:
    """The lease holder of a sink, and its settlements."""

    def __init__(self, database: Database, entries: list[LogEntry], lease: Lease) -> None:
        self.database, self.entries, self.lease = database, entries, lease

    def first(self, index: int, decision: Decision) -> Decided:
        return Decided(PendingPublication(publication=publication(self.entries[index])), decision)

    def retry(self, position: int, decision: Decision) -> Decided:
        [entry] = [entry for entry in self.entries if entry.position == position]
        return Decided(PendingPublication(publication=publication(entry), attempts=1, since=at(0)), decision)

    async def settle(
        self,
        *firsts: Decided,
        retries: tuple[Decided, ...] = (),
        seconds: float = 0,
        attempts: tuple[Attempt, ...] = (),
        health: Health = HEALTHY,
    ) -> None:
        """Settles decisions; the cursor stays where it was or moves to the last of them."""
        reached = max((await sink_row(self.database)).cursor, *(one.candidate.position for one in firsts), 0)
        settlement = Settlement(cursor=reached, firsts=firsts, retries=retries, attempts=attempts)
        await settle(self.database, self.lease, settlement, health, now=at(seconds))

    async def done(self) -> None:
        await self.settle(self.first(-1, Done()))


async def worker(database: Database, entries: list[LogEntry], name: str = SINK) -> Worker:
    await sinks.register(database, name, start="beginning", fingerprint="f")
    lease = await sinks.acquire_lease(database, name, holder="me", fingerprint="f", seconds=60)
    assert lease is not None
    return Worker(database, entries, lease)


@pytest.fixture
async def log(database: Database) -> Worker:
    """Two messages, their events interleaved, a minute between two: a1 b1 a2 b2 a3 b3. The sink is at their beginning.

    Before them, two events of another message were forgotten.
    """
    early = await append(database, life("early", (Status.QUEUED, Status.SENT)))
    entries = []
    for index, status in enumerate((Status.QUEUED, Status.SENDING, Status.SENT)):
        for ordering_key, message in enumerate("ab"):
            entries += await append(database, life(message, (status,), received=60 * (2 * index + ordering_key)))
    await write(database, delete(EVENTS).where(EVENTS.c.position <= early[-1].position))
    return await worker(database, entries)


async def write(database: Database, statement: Any, *rows: Any) -> None:
    async with database.writing() as connection:
        await connection.execute(statement, *rows)


async def rows_of(database: Database, table: Any) -> list[Any]:
    async with database.reading() as connection:
        return list(await connection.execute(select(table).order_by(*table.primary_key.columns)))


async def sink_row(database: Database, name: str = SINK) -> Any:
    async with database.reading() as connection:
        return (await connection.execute(select(SINKS).where(SINKS.c.name == name))).one()


async def stored_retries(database: Database) -> list[tuple[int, str]]:
    return [(row.position, row.state) for row in await rows_of(database, RETRIES)]


async def letters(database: Database, **chosen: Any) -> list[DeadLetterRead]:
    query = DeadLetterQuery(**chosen)
    return (await dead_letters.find(database, query)).items


async def total(batches: AsyncGenerator[int, None]) -> int:
    return sum([number async for number in batches])


async def requeue(database: Database, sink: str = SINK, seconds: float = 0, **chosen: Any) -> int:
    return await total(dead_letters.requeue(database, DeadLetterChoice(sink=sink, **chosen), now=at(seconds)))


async def drop(database: Database, sink: str = SINK, seconds: float = 0, **chosen: Any) -> int:
    return await total(dead_letters.drop(database, DeadLetterChoice(sink=sink, **chosen), now=at(seconds)))


# --- pause and resume


async def test_pause_is_stored_and_raises_the_revision(log: Worker) -> None:
    before = await sink_row(log.database)
    await sinks.pause(log.database, SINK, paused=True)
    paused = await sink_row(log.database)
    assert (paused.paused, paused.revision) == (True, before.revision + 1)
    await sinks.pause(log.database, SINK, paused=False)
    assert (await sink_row(log.database)).paused is False


async def test_unknown_sinks_and_dead_letters_are_not_found(database: Database) -> None:
    with pytest.raises(UnknownSink, match="there is no sink nobody"):
        await sinks.pause(database, "nobody", paused=True)
    with pytest.raises(UnknownSink):
        await replays.begin(database, "nobody", "beginning", now=at(0))
    with pytest.raises(UnknownSink):
        await replays.log_range(database, "nobody", "beginning")
    with pytest.raises(UnknownSink):
        await replays.act(database, "nobody", "cancel", now=at(0))
    with pytest.raises(UnknownSink):
        await requeue(database, "nobody")
    with pytest.raises(UnknownSink):
        await drop(database, "nobody")
    with pytest.raises(UnknownSink):
        await dead_letters.count(database, DeadLetterChoice(sink="nobody"))
    with pytest.raises(UnknownSink):
        await sinks.with_name(database, "nobody", {}, now=at(0))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("action", ["requeue", "drop", "replay", "cancel"])
async def test_an_operator_waits_for_the_holder_that_is_settling(log: Worker, action: str) -> None:
    await log.settle(log.first(0, REFUSED))
    if action == "cancel":
        await begun(log.database)
    actions: dict[str, Callable[[], Awaitable[Any]]] = {
        "requeue": lambda: requeue(log.database),
        "drop": lambda: drop(log.database),
        "replay": lambda: begun(log.database),
        "cancel": lambda: replays.act(log.database, SINK, "cancel", now=at(0)),
    }
    async with log.database.writing() as connection:
        await connection.execute(update(SINKS).values(failures=1))
        task = asyncio.ensure_future(actions[action]())
        assert await asyncio.wait([task], timeout=0.3) == (set(), {task})
    await task


# --- replays


async def begun(database: Database, since: replays.Since = "beginning", sink: str = SINK) -> ReplayRead:
    replay, _ = await replays.begin(database, sink, since, now=at(1000))
    assert replay is not None
    return replay


async def test_a_replay_from_the_beginning_covers_what_is_kept_up_to_the_cursor(log: Worker) -> None:
    await log.settle(log.first(3, Done()))
    expected = LogRange(after_position=0, to_position=log.entries[3].position, events=4, first_at=at(0))
    assert await replays.log_range(log.database, SINK, "beginning") == expected
    replay, log_range = await replays.begin(log.database, SINK, "beginning", now=at(1000))
    assert log_range == expected
    assert replay is not None
    assert (replay.after_position, replay.to_position, replay.position) == (0, log.entries[3].position, 0)
    assert (replay.state, replay.published, replay.dead_letters) == ("running", 0, 0)
    assert (replay.requested_at, replay.ended_at, replay.progress) == (at(1000), None, 0.0)
    async with log.database.reading() as connection:
        assert await replays.open_of(connection, SINK) == replay


@pytest.mark.parametrize(
    ("seconds", "index"), [(0, 0), (1, 1), (60, 1), (119, 2), (180, 3)], ids=lambda value: str(value)
)
async def test_a_replay_since_a_time_begins_with_the_first_event_received_then(
    log: Worker, seconds: float, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "_SEARCHED_AT_ONCE", 2)
    await log.settle(log.first(3, Done()))
    log_range = await replays.log_range(log.database, SINK, at(seconds))
    assert (log_range.first_at, log_range.events) == (at(60 * index), 4 - index)
    assert (await begun(log.database, at(seconds))).after_position == log.entries[index].position - 1


async def test_events_that_came_late_into_the_log_do_not_hide_those_before_them(database: Database) -> None:
    """Imported and reprocessed callbacks have old times: the log is not in the order of time."""
    entries = await append(database, [*life("young", received=1000), *life("old", received=0)])
    await (await worker(database, entries)).done()
    assert (await replays.log_range(database, SINK, at(500))).events == 8


async def test_a_replay_until_a_time_leaves_out_what_was_received_then_or_later(log: Worker) -> None:
    await log.done()
    only = {"until": at(120)}
    assert (await replays.log_range(log.database, SINK, "beginning", **only)).events == 2
    replay, log_range = await replays.begin(log.database, SINK, at(60), now=at(1000), **only)
    assert replay is not None
    assert (log_range.events, replay.to_position) == (1, log.entries[1].position)


async def test_a_replay_of_messages_holds_only_the_part_of_the_log_that_has_them(database: Database) -> None:
    entries = await append(database, [*life("first"), *life("second"), *life("third"), *life("behind")])
    log = await worker(database, entries)
    await log.settle(log.first(12, Done()))
    positions = [entry.position for entry in entries]
    only = {"message_ids": ["second", "third", "second"]}
    assert (await replays.log_range(database, SINK, "beginning", **only)).events == 8
    replay, log_range = await replays.begin(database, SINK, "beginning", now=at(1000), **only)
    assert replay is not None
    assert (replay.after_position, replay.to_position) == (positions[4] - 1, positions[11])
    assert (replay.message_ids, log_range.events) == (["second", "third"], 8)


async def test_a_replay_counts_no_registrations(database: Database) -> None:
    sends = [make_event(Status.UNKNOWN, message_id=f"sent-{number}", route=REGISTERED) for number in range(3)]
    entries = await append(database, [*sends, *life("sent-1", received=60), *life("behind", received=120)])
    log = await worker(database, entries)
    await write(database, update(SINKS).values(cursor=entries[2].position))
    replay, log_range = await replays.begin(database, SINK, "beginning", now=at(1000))
    assert (replay, log_range.events, log_range.first_at) == (None, 0, None)
    with pytest.raises(Unknown, match="there is no event of a message sent-2"):
        await replays.begin(database, SINK, "beginning", now=at(1000), message_ids=["sent-2"])
    await log.settle(log.first(6, Done()))
    chosen: tuple[dict[str, Any], ...] = ({}, {"message_ids": ["sent-1"]})
    for only in chosen:
        log_range = await replays.log_range(database, SINK, "beginning", **only)
        assert (log_range.events, log_range.first_at) == (4, at(60))


async def test_a_replay_of_unknown_messages_is_rejected_and_of_coming_events_not_begun(database: Database) -> None:
    entries = await append(database, [*life("first"), *life("behind")])
    log = await worker(database, entries)
    await log.settle(log.first(3, Done()))
    with pytest.raises(Unknown, match="there is no event of a message nobody"):
        await replays.begin(database, SINK, "beginning", now=at(1000), message_ids=["first", "nobody"])
    replay, log_range = await replays.begin(database, SINK, "beginning", now=at(1000), message_ids=["behind"])
    assert (replay, log_range.events) == (None, 0)


@pytest.mark.parametrize("since", [at(181), at(10**8)], ids=["beyond the cursor", "beyond the log"])
async def test_replay_of_an_empty_range_is_rejected(log: Worker, since: Any) -> None:
    await log.settle(log.first(3, Done()))
    replay, log_range = await replays.begin(log.database, SINK, since, now=at(1000))
    assert (replay, log_range.events, log_range.first_at) == (None, 0, None)
    assert (await replays.log_range(log.database, SINK, since)).events == 0
    assert await rows_of(log.database, REPLAYS) == []


@pytest.mark.parametrize("since", ["beginning", at(0)], ids=str)
async def test_replay_of_an_empty_log_is_rejected(database: Database, since: Any) -> None:
    await sinks.register(database, SINK, start="beginning", fingerprint="f")
    replay, log_range = await replays.begin(database, SINK, since, now=at(0))
    assert (replay, log_range.events) == (None, 0)


async def test_replay_from_a_pruned_time_is_rejected(log: Worker) -> None:
    await log.done()
    for ask in (replays.log_range(log.database, SINK, at(-1)), replays.begin(log.database, SINK, at(-1), now=at(0))):
        with pytest.raises(Expired, match="has removed events received before 2026-01-01T00:00:00Z"):
            await ask
    assert (await begun(log.database, at(0))).after_position == log.entries[0].position - 1


async def test_a_time_before_the_first_event_ever_is_fine(database: Database) -> None:
    await (await worker(database, await append(database, life("m")))).done()
    assert (await replays.log_range(database, SINK, at(-(10**6)))).events == 4


async def test_one_replay_at_a_time(log: Worker) -> None:
    await log.done()
    first = await begun(log.database)
    for state in ("running", "paused"):
        await write(log.database, update(REPLAYS).values(state=state))
        for ask in (replays.log_range, replays.begin):
            more = {"now": at(0)} if ask is replays.begin else {}
            with pytest.raises(Conflict, match=f"replay {first.id} to crm is {state}"):
                await ask(log.database, SINK, "beginning", **more)  # type: ignore[operator]
    await replays.act(log.database, SINK, "cancel", now=at(0))
    assert (await begun(log.database)).id > first.id


async def test_two_who_begin_a_replay_at_once_get_one(log: Worker) -> None:
    await log.done()
    begins = (replays.begin(log.database, SINK, "beginning", now=at(0)) for _ in range(4))
    outcomes = await asyncio.gather(*begins, return_exceptions=True)
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 3
    assert len(await rows_of(log.database, REPLAYS)) == 1


async def test_each_sink_has_its_own_replay(log: Worker) -> None:
    await log.done()
    await (await worker(log.database, log.entries, "lake")).done()
    assert {(await begun(log.database, sink=name)).sink for name in (SINK, "lake")} == {SINK, "lake"}


async def test_a_replay_is_paused_resumed_and_cancelled(log: Worker) -> None:
    await log.done()
    replay = await begun(log.database)
    revision = (await sink_row(log.database)).revision

    async def act(action: Any, replay_id: int | None = replay.id) -> tuple[str, Any]:
        changed = await replays.act(log.database, SINK, action, now=at(2000), replay_id=replay_id)
        assert changed.id == replay.id
        return changed.state, changed.ended_at

    assert await act("pause") == await act("pause") == ("paused", None)
    assert await act("resume") == await act("resume", None) == ("running", None)
    assert await act("cancel", None) == await act("cancel") == ("cancelled", at(2000))
    assert (await sink_row(log.database)).revision > revision
    for action in ("pause", "resume"):
        with pytest.raises(Conflict, match=f"replay {replay.id} is cancelled"):
            await act(action)
    for unknown in (None, replay.id + 1):
        with pytest.raises(Unknown, match=r"there is no (open|such) replay to crm"):
            await act("cancel", unknown)


async def test_a_replay_of_another_sink_cannot_be_meant(log: Worker) -> None:
    await log.done()
    replay = await begun(log.database)
    await worker(log.database, log.entries, "lake")
    with pytest.raises(Unknown, match="there is no such replay to lake"):
        await replays.act(log.database, "lake", "cancel", now=at(0), replay_id=replay.id)


async def test_replays_are_listed_in_pages(log: Worker) -> None:
    await log.done()
    ids = []
    for _ in range(3):
        ids.append((await begun(log.database)).id)
        await replays.act(log.database, SINK, "cancel", now=at(0))

    async def page(order: SortOrder, after: int | None = None, number: int = 0) -> tuple[list[int], bool]:
        async with log.database.reading() as connection:
            found = await replays.find(connection, SINK, ReplayQuery(order=order, after=after, page=number, size=2))
        return [one.id for one in found.items], found.more

    assert await page(SortOrder.DESC) == ([ids[2], ids[1]], True)
    assert await page(SortOrder.DESC, after=ids[1]) == ([ids[0]], False)
    assert await page(SortOrder.ASC, number=1) == ([ids[2]], False)
    assert await page(SortOrder.ASC, after=ids[0]) == ([ids[1], ids[2]], False)


# --- a replay and retention, which race for the same events


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_replay_that_begins_while_events_are_forgotten_is_of_those_that_are_left(log: Worker) -> None:
    await log.done()
    async with log.database.writing() as connection:
        await log.database.lock_log(connection)
        begin = asyncio.create_task(replays.begin(log.database, SINK, "beginning", now=at(0)))
        since = asyncio.create_task(replays.begin(log.database, SINK, at(0), now=at(0)))
        # Both have read the log, and wait for the lock.
        await asyncio.sleep(0.3)
        assert not begin.done()
        assert not since.done()
        gone = EVENTS.c.position <= log.entries[2].position
        await connection.execute(delete(EVENTS).where(gone))
    outcomes = await asyncio.gather(begin, since, return_exceptions=True)
    begun_one = next(outcome for outcome in outcomes if isinstance(outcome, tuple))
    assert begun_one[1].events == 3
    # The second caller got the conflict with the other replay, or the error that the time is pruned.
    assert sum(isinstance(outcome, Expired | Conflict) for outcome in outcomes) == 1


@pytest.mark.slow
async def test_replays_and_retention_at_once_never_leave_a_replay_without_its_events(database: Database) -> None:
    entries = [entry for number in range(40) for entry in await append(database, life(f"m{number}"))]
    await (await worker(database, entries)).done()
    task = PruneTask(kind=Kind.EVENTS, before=at(10**6), now=at(0), limit=3)

    async def forget() -> None:
        index: int | None = 0
        while index is not None:
            index = (await retention.prune(database, task, index)).next

    async def begin_late() -> LogRange:
        while not await gone(database, entries[20].position):
            await asyncio.sleep(0)
        replay, log_range = await replays.begin(database, SINK, "beginning", now=at(0))
        assert (replay is None) == (log_range.events == 0)
        return log_range

    _, log_range = await asyncio.gather(forget(), begin_late())
    left = await rows_of(database, EVENTS)
    assert [entry.position for entry in entries][-len(left) :] == [row.position for row in left]
    assert len(left) == log_range.events


async def gone(database: Database, position: int) -> bool:
    async with database.reading() as connection:
        return await connection.scalar(select(EVENTS.c.position).where(EVENTS.c.position == position)) is None


# --- dead letters


@pytest.fixture
async def dead(log: Worker) -> Worker:
    """Of the six events, in the order a1 b1 a2 b2 a3 b3: a1 b1 b2 refused, a2 too old, at a minute each."""
    for index, decision in enumerate((REFUSED, REFUSED, EXPIRED, REFUSED)):
        await log.settle(log.first(index, decision), seconds=1000 + 60 * index)
    await log.done()
    await sinks.register(log.database, "lake", start="end", fingerprint="f")
    return log


@pytest.mark.parametrize(
    ("chosen", "indexes"),
    [
        pytest.param({}, [0, 1, 2, 3], id="all"),
        pytest.param({"sink": SINK}, [0, 1, 2, 3], id="of the sink"),
        pytest.param({"sink": "lake"}, [], id="of another"),
        pytest.param({"reason": "expired"}, [2], id="by reason"),
        pytest.param({"message_id": "b"}, [1, 3], id="of a message"),
        pytest.param({"message_id": "b", "reason": "expired"}, [], id="of a message, by reason"),
        pytest.param({"event_id": 2}, [2], id="of an event"),
        pytest.param({"event_id": "nothing"}, [], id="of no event"),
        pytest.param({"since": at(1060), "until": at(1120)}, [1], id="from a time to a time"),
        pytest.param({"ids": [0, 3]}, [0, 3], id="by id"),
        pytest.param({"ids": [0], "reason": "expired"}, [], id="by id and reason"),
    ],
)
@pytest.mark.parametrize("act", [requeue, drop], ids=["requeue", "drop"])
async def test_dead_letters_are_chosen_listed_counted_and_acted_on_alike(
    dead: Worker, chosen: dict[str, Any], indexes: list[int], act: Any
) -> None:
    every = await letters(dead.database)
    if isinstance(chosen.get("event_id"), int):
        chosen = chosen | {"event_id": dead.entries[chosen["event_id"]].event.id}
    if "ids" in chosen:
        chosen = chosen | {"ids": [every[index].id for index in chosen["ids"]]}
    meant = [every[index] for index in indexes]
    listed = {name: value for name, value in chosen.items() if name != "ids"}
    assert [letter for letter in await letters(dead.database, **listed) if letter in meant] == meant
    assert await dead_letters.count(dead.database, DeadLetterChoice(**{"sink": SINK} | chosen)) == len(meant)
    assert await act(dead.database, **{"sink": SINK} | chosen) == len(meant)
    assert await letters(dead.database) == [letter for letter in every if letter not in meant]
    requeued = [letter.position for letter in meant] if act is requeue else []
    assert [position for position, _ in await stored_retries(dead.database)] == requeued


async def test_dead_letter_is_shown_with_its_event(dead: Worker) -> None:
    [letter] = await letters(dead.database, reason="expired")
    assert (letter.event_id, letter.message_id, letter.recipient, letter.status) == (
        dead.entries[2].event.id,
        "a",
        "+15550001",
        "sending",
    )
    assert (letter.sink, letter.detail, letter.attempts, letter.died_at) == (SINK, "timeout", 1, at(1120))


async def test_dead_letters_come_in_pages_from_either_end(dead: Worker) -> None:
    ids = [letter.id for letter in await letters(dead.database)]

    async def page(**parameters: Any) -> tuple[list[int], bool]:
        found = await dead_letters.find(dead.database, DeadLetterQuery(size=2, **parameters))
        return [letter.id for letter in found.items], found.more

    assert await page() == (ids[:2], True)
    assert await page(after=ids[1]) == (ids[2:], False)
    assert await page(order=SortOrder.DESC) == (ids[:1:-1], True)
    assert await page(order=SortOrder.DESC, after=ids[2]) == (ids[1::-1], False)
    assert await page(page=1) == (ids[2:], False)


async def test_drop_removes_the_dead_letter_and_releases_its_ordering_key(log: Worker) -> None:
    await log.settle(log.first(0, HOLDS), log.first(2, Parked()), log.first(4, Parked()))
    assert await stored_retries(log.database) == indexes(log, {0: "held", 2: "parked", 4: "parked"})
    assert await drop(log.database) == 1
    assert await stored_retries(log.database) == indexes(log, {2: "due", 4: "parked"})
    assert await letters(log.database) == []


async def test_dropping_what_holds_nothing_leaves_the_retries_alone(log: Worker) -> None:
    await log.settle(
        log.first(0, REFUSED), log.first(2, RetryAt(due_at=at(5), reason="timeout")), log.first(4, Parked())
    )
    before = await rows_of(log.database, RETRIES)
    assert await drop(log.database) == 1
    assert await rows_of(log.database, RETRIES) == before


async def test_requeued_held_event_begins_with_no_attempts(log: Worker) -> None:
    await log.settle(log.first(0, HOLDS), log.first(2, Parked()))
    assert await requeue(log.database, seconds=500) == 1
    first, second = await rows_of(log.database, RETRIES)
    assert (first.state, first.attempts, first.due_at, first.first_at) == ("due", 0, at(500), at(500))
    assert second.state == "parked"


async def test_requeued_earlier_event_replaces_the_held_head_of_its_ordering_key(log: Worker) -> None:
    await log.settle(log.first(0, REFUSED), log.first(2, HOLDS), log.first(4, Parked()))
    assert await requeue(log.database, event_id=log.entries[0].event.id) == 1
    assert await stored_retries(log.database) == indexes(log, {0: "due", 2: "parked", 4: "parked"})
    await log.settle(retries=(log.retry(log.entries[0].position, Done()),))
    assert await stored_retries(log.database) == indexes(log, {2: "held", 4: "parked"})


def indexes(log: Worker, states: dict[int, str]) -> list[tuple[int, str]]:
    return [(log.entries[index].position, state) for index, state in states.items()]


async def many(database: Database, number: int) -> Worker:
    """A sink with `number` dead letters, each of another message."""
    events = [event for index in range(number) for event in life(f"m{index}", (Status.SENT,))]
    at_work = await worker(database, await append(database, events))
    await at_work.settle(*(at_work.first(index, REFUSED) for index in range(number)))
    return at_work


async def test_bulk_actions_run_in_batches_and_keep_finished_batches(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "_BATCH", 2)
    at_work = await many(database, 7)
    batches = dead_letters.requeue(database, DeadLetterChoice(sink=SINK), now=at(0))
    assert [await anext(batches), await anext(batches)] == [2, 2]
    await batches.aclose()
    assert len(await rows_of(database, RETRIES)) == 4
    assert [letter.position for letter in await letters(database)] == [one.position for one in at_work.entries[4:]]
    rest = [number async for number in dead_letters.drop(database, DeadLetterChoice(sink=SINK), now=at(0))]
    assert rest == [2, 1]
    assert (await letters(database), len(await rows_of(database, RETRIES))) == ([], 4)


async def test_requeue_leaves_dead_letters_that_are_added_meanwhile(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "_BATCH", 1)
    at_work = await many(database, 2)
    batches = dead_letters.drop(database, DeadLetterChoice(sink=SINK), now=at(0))
    assert await anext(batches) == 1
    late = await append(database, life("late", (Status.SENT,)))
    at_work.entries += late
    await at_work.settle(at_work.first(-1, REFUSED))
    assert await total(batches) == 1
    assert [letter.position for letter in await letters(database)] == [late[0].position]


async def test_requeue_does_not_repeat_a_second_dead_letter(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "_BATCH", 1)
    at_work = await many(database, 3)
    met = 0
    async for number in dead_letters.requeue(database, DeadLetterChoice(sink=SINK), now=at(0)):
        met += number
        for position, state in await stored_retries(database):
            assert state == "due"
            await at_work.settle(retries=(at_work.retry(position, REFUSED),))
    assert met == 3
    assert len(await letters(database)) == 3


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
async def test_each_ordering_key_always_has_one_head(database: Database, seed: int) -> None:
    """Decisions of the holder and actions of operators in any order: an ordering key with rows has exactly one head."""
    random_fraction = random.Random(seed)
    events = [make_event(message_id=ordering_key, time=second) for second in range(20) for ordering_key in "abc"]
    at_work = await worker(database, await append(database, events))
    deaths = (HOLDS, HOLDS) if seed % 2 else (REFUSED, EXPIRED)
    unread = list(range(len(events)))
    for step in range(60):
        again = RetryAt(due_at=at(step), reason="timeout")
        match random_fraction.choice(("read", "read", "retry", "retry", "requeue", "drop")):
            case "read":
                index = unread.pop(0)
                blocked = {row.ordering_key for row in await rows_of(database, RETRIES)}
                ordering_key = publication(at_work.entries[index]).ordering_key
                decision = Parked() if ordering_key in blocked else random_fraction.choice((again, *deaths))
                await at_work.settle(at_work.first(index, decision))
            case "retry":
                due = [position for position, state in await stored_retries(database) if state == "due"]
                for position in due[:1]:
                    decision = random_fraction.choice((Done(), again, *deaths))
                    await at_work.settle(retries=(at_work.retry(position, decision),))
            case action:
                ids = [letter.id for letter in await letters(database)]
                chosen = random_fraction.sample(ids, random_fraction.randint(0, len(ids)))
                if not chosen:
                    # Without ids all of the sink are chosen.
                    continue
                act = drop if action == "drop" else requeue
                assert await act(database, seconds=step, ids=chosen) == len(chosen)
        await check_ordering_keys(database)
        held = {position for position, state in await stored_retries(database) if state == "held"}
        heads = {position for position, state in await stored_retries(database) if state != "parked"}
        assert held == heads & {letter.position for letter in await letters(database)}


async def check_ordering_keys(database: Database) -> None:
    ordering_keys: dict[str, list[Any]] = defaultdict(list)
    for row in await rows_of(database, RETRIES):
        ordering_keys[row.ordering_key].append(row)
    for rows in ordering_keys.values():
        head, *others = sorted(rows, key=lambda row: row.position)
        assert head.state in ("due", "held")
        assert head.due_at is not None
        assert {row.state for row in others} <= {"parked"}


@pytest.mark.slow
@pytest.mark.parametrize("on_refused", ["park", "continue"])
async def test_operators_lose_and_disorder_nothing_while_a_dispatcher_works(
    database: Database, database_url: str, on_refused: str
) -> None:
    """A sink that refuses and fails at random, and an operator in another process who performs every action."""
    random_fraction = random.Random(7)
    sink = memory_sink(on_refused=on_refused, schedule=["1s"])
    memory(sink).answer = lambda _: random_fraction.choice(
        (Published(), Published(), Refused(reason="r"), Retry(reason="r"))
    )
    operator = Database(database_url)
    await append(database, messages(12))
    async with running(database, sink):
        for step in range(25):
            await requeue(operator)
            await sinks.pause(operator, SINK, paused=step % 3 == 0)
            with suppress(Conflict):
                await replays.begin(operator, SINK, "beginning", now=now())
            with suppress(Unknown):
                await replays.act(
                    operator, SINK, random_fraction.choice(("pause", "resume", "resume", "cancel")), now=now()
                )
            if step < 20:
                await append(operator, life(f"late{step}"))
            await check_ordering_keys(operator)
            await asyncio.sleep(0.02)  # as operators do; the dispatcher polls at such intervals too
        with suppress(Unknown):
            await replays.act(operator, SINK, "cancel", now=now())
        await sinks.pause(operator, SINK, paused=False)
        memory(sink).answer = lambda _: Published()

        async def all_done() -> bool:
            await requeue(operator)
            view = await sinks.with_name(operator, SINK, {SINK: "memory"}, now=now())
            return (view.lag, view.retries, view.dead_letters) == (0, {}, {})

        await eventually(all_done)
    await operator.close()
    log = await whole_log(database)
    live = [one for one in memory(sink).published if not one.replayed]
    assert {one.id for one in live} == {entry.event.id for entry in log}
    # Where nothing holds an ordering key, a requeued event arrives after its successors.
    assert on_refused == "continue" or in_order(live)


# --- lists and views


async def seen(database: Database, seconds: float = 0, **types: str) -> SinkRead:
    return await sinks.with_name(database, SINK, {SINK: "webhook"} | types, now=at(seconds))


async def test_a_sink_is_shown_with_all_that_it_still_has_before_it(log: Worker) -> None:
    await log.settle(
        log.first(0, HOLDS),
        log.first(1, RetryAt(due_at=at(5), reason="timeout")),
        log.first(2, Parked()),
        log.first(3, Parked()),
        health=Health(failures=2, last_success_at=at(7), last_error="timeout"),
    )
    replay = await begun(log.database)
    view = await sinks.with_name(log.database, SINK, {SINK: "webhook"}, now=at(100))
    assert (view.name, view.type, view.configured) == (SINK, "webhook", True)
    assert (view.cursor, view.lag) == (log.entries[3].position, 2)
    assert (view.oldest_at, view.oldest_seconds) == (at(0), 100.0)
    assert (view.retries, view.dead_letters) == ({"held": 1, "due": 1, "parked": 2}, {"refused": 1})
    assert (view.failures, view.last_success_at, view.last_error) == (2, at(7), "timeout")
    assert view.replay == replay


async def test_the_state_of_a_sink_is_the_one_thing_to_know_first(log: Worker) -> None:
    lease_end = (await sink_row(log.database)).lease_until
    before, after = lease_end - timedelta(seconds=1), lease_end + timedelta(seconds=1)

    async def state(now: Any = before, **types: str) -> str:
        return (await sinks.with_name(log.database, SINK, types or {SINK: "webhook"}, now=now)).state

    assert await state() == "working"
    assert await state(after) == "unattended"
    await log.settle(health=Health(failures=1, down_since_at=at(0), last_error="connection refused"))
    assert await state() == "down"
    await sinks.pause(log.database, SINK, paused=True)
    assert await state() == "paused"
    assert await state(other="webhook") == "removed"
    await sinks.pause(log.database, SINK, paused=False)
    await sinks.release_lease(log.database, log.lease)
    assert await state() == "unattended"


async def test_an_idle_sink_has_nothing_before_it(log: Worker) -> None:
    await log.done()
    view = await seen(log.database)
    assert (view.lag, view.oldest_at, view.oldest_seconds) == (0, None, None)
    assert (view.retries, view.dead_letters, view.replay) == ({}, {}, None)


async def test_sinks_are_listed_by_name_in_pages(log: Worker) -> None:
    for name in ("lake", "bus"):
        await sinks.register(log.database, name, start="end", fingerprint="f")

    async def page(order: SortOrder, skip: int) -> tuple[list[tuple[str, bool]], bool]:
        types = {"bus": "nats", SINK: "webhook"}
        found = await sinks.find(log.database, SinkQuery(order=order, page=skip // 2, size=2), types, now=at(0))
        return [(view.name, view.configured) for view in found.items], found.more

    assert await page(SortOrder.ASC, 0) == ([("bus", True), (SINK, True)], True)
    assert await page(SortOrder.ASC, 2) == ([("lake", False)], False)
    assert await page(SortOrder.DESC, 0) == ([("lake", False), (SINK, True)], True)


async def test_attempts_of_a_message_are_listed_by_sink_and_time(log: Worker) -> None:
    def attempt(index: int, seconds: float, **more: Any) -> Attempt:
        event_of = log.entries[index]
        fields = {"position": event_of.position, "event_id": event_of.event.id, "decision": "done"}
        times = {"started_at": at(seconds), "ended_at": at(seconds + 0.25)}
        return Attempt(**{"outcome": Outcome.PUBLISHED, **fields, **times, **more})

    failed = attempt(0, 1, outcome=Outcome.RETRY, decision="again", reason="status 503", response_code=503)
    await log.settle(attempts=(failed, attempt(1, 2, response_code=200), attempt(0, 6, response_code=204)))
    lake = await worker(log.database, log.entries, "lake")
    await lake.settle(attempts=(attempt(2, 9),))

    async def attempts_of(message: str, sink: str | None = None, api: Api = Api.V2) -> list[Any]:
        async with log.database.reading() as connection:
            found = await publications.attempts_of_message(connection, (api, Direction.OUT, message), sink)
        return [(one.sink, one.started_at, one.seconds, one.response_code, one.decision) for one in found]

    crm = [(SINK, at(1), 0.25, 503, "again"), (SINK, at(6), 0.25, 204, "done")]
    assert await attempts_of("a") == [*crm, ("lake", at(9), 0.25, None, "done")]
    assert await attempts_of("a", SINK) == crm
    assert await attempts_of("b", "lake") == await attempts_of("a", api=Api.V1) == await attempts_of("c") == []
    async with log.database.reading() as connection:
        [first, *_] = await publications.attempts_of_message(connection, (Api.V2, Direction.OUT, "a"), None)
    assert (first.event_id, first.status, first.recipient) == (log.entries[0].event.id, "queued", "+15550001")
    assert (first.outcome, first.reason, first.response, first.replay_id) == ("retry", "status 503", None, None)


# --- indexes


async def test_dead_letters_and_attempts_are_found_by_an_index(database: Database) -> None:
    """As many rows as an outage may leave: a search by message, event or sink must not read all of them."""
    await fill(database, 5000)
    of_message_id = "sqlite_autoindex_events_1" if database.is_sqlite else "uq_events_message_id"
    searches = {
        "message": ({"message_id": "m7"}, of_message_id),
        "event": ({"event_id": "e7"}, "ix_dead_letters_event"),
        "sink": ({"sink": "lake"}, "ix_dead_letters_sink"),
        "message and sink": ({"sink": SINK, "message_id": "m7"}, of_message_id),
    }
    plans = {
        name: await plan(database, dead_letters.find(database, DeadLetterQuery(**choice)))
        for name, (choice, _) in searches.items()
    }
    missed = {name: plans[name] for name, (_, index) in searches.items() if index not in plans[name]}
    assert not missed
    for name in ("message", "message and sink"):
        assert ("position=?" if database.is_sqlite else "_position on dead_letters") in plans[name], plans[name]

    async def of_message() -> None:
        async with database.reading() as connection:
            await publications.attempts_of_message(connection, (Api.V2, Direction.OUT, "m7"), None)

    found = await plan(database, of_message())
    assert of_message_id in found
    assert "ix_attempts_position" in found


async def fill(database: Database, number: int) -> None:
    """Events with a dead letter and an attempt each; nine in ten belong to one sink."""
    [template] = await append(database, life("template", (Status.SENT,)))
    for name in (SINK, "lake"):
        await sinks.register(database, name, start="end", fingerprint="f")
    [row] = [dict(row._mapping) for row in await rows_of(database, EVENTS)]
    indexes = range(template.position + 1, template.position + 1 + number)
    rows = [row | {"position": index, "id": f"e{index}", "message_id": f"m{index}"} for index in indexes]
    letter = {"reason": "refused", "detail": "no", "attempts": 1, "first_at": at(0), "died_at": at(0)}
    attempt = {"started_at": at(0), "ended_at": at(0), "outcome": "refused", "decision": "dead"}
    of_event = [
        {"sink": "lake" if index % 10 == 0 else SINK, "position": index, "event_id": f"e{index}"} for index in indexes
    ]
    await write(database, insert(EVENTS), rows)
    await write(database, insert(DEAD_LETTERS), [one | letter | {"ordering_key": "l"} for one in of_event])
    await write(database, insert(ATTEMPTS), [one | attempt for one in of_event])
    if not database.is_sqlite:
        await write(database, sql("ANALYZE"))


async def plan(database: Database, work: Any) -> str:
    """The query plan of the last statement of some work."""
    statements: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        statements.append((statement, parameters))

    engine = database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        await work
    finally:
        event.remove(engine, "before_cursor_execute", note)
    statement, parameters = statements[-1]
    word = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
    async with database.reading() as connection:
        return "\n".join(str(row) for row in await connection.exec_driver_sql(f"{word} {statement}", parameters))


async def test_log_range_is_counted_in_pieces(log: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """One statement over a large log would exceed its timeout after the replay had begun."""
    monkeypatch.setattr(event_log, "_SEARCHED_AT_ONCE", 2)
    await log.settle(log.first(4, Done()))
    counted: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        counted.append(statement) if "count(" in statement else None

    event.listen(log.database.engine.sync_engine, "before_cursor_execute", note)
    assert (await replays.log_range(log.database, SINK, "beginning")).events == 5
    assert len(counted) == 3
