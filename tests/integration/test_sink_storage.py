"""The tables of the sinks on both databases: leases, settlements, retries, dead letters."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, select, update

from receiver.dispatch.publish import publication
from receiver.domain.events import Status
from receiver.domain.publication import (
    DeadLettered,
    DeadLetterReason,
    Decision,
    Done,
    Outcome,
    Parked,
    PendingPublication,
    RetryAt,
    Superseded,
)
from receiver.domain.window import Attempt, Decided, Settlement
from receiver.models.queries import DeadLetterChoice, DeadLetterQuery
from receiver.models.sinks import ATTEMPTS, RETRIES, SINKS, DeadLetterRead
from receiver.storage import dead_letters, replays, retries, sinks
from receiver.storage.database import Database
from receiver.storage.retries import Progress, settle
from receiver.storage.sinks import Health, Lease, LeaseLost, UnknownSink
from tests.dispatching import append, life
from tests.factories import at

pytestmark = pytest.mark.anyio

SINK = "crm"
HEALTHY = Health()
REFUSED = DeadLettered(cause=DeadLetterReason.REFUSED, reason="status 413", response_code=413, response="too big")


def again(seconds: float) -> RetryAt:
    return RetryAt(due_at=at(seconds), reason="status 500")


class Log:
    """A log with two messages, their events interleaved: a1 b1 a2 b2 a3 b3, and a sink at its beginning."""

    def __init__(self, database: Database, entries: list[Any], lease: Lease) -> None:
        self.database = database
        self.entries = entries
        self.lease = lease

    def first(self, index: int, decision: Decision) -> Decided:
        is_tried = not isinstance(decision, Parked)
        return Decided(PendingPublication(publication=publication(self.entries[index])), decision, is_tried=is_tried)

    def retry(self, index: int, decision: Decision, attempts: int = 1) -> Decided:
        event = publication(self.entries[index])
        return Decided(PendingPublication(publication=event, attempts=attempts, since=at(0)), decision)

    def position(self, index: int) -> int:
        return int(self.entries[index].position)

    async def settle(
        self, *firsts: Decided, retries: tuple[Decided, ...] = (), cursor: int | None = None, **more: Any
    ) -> None:
        reached = cursor if cursor is not None else max((one.candidate.position for one in firsts), default=0)
        settlement = Settlement(cursor=reached, firsts=firsts, retries=retries, **more)
        await settle(self.database, self.lease, settlement, HEALTHY, now=at(0))

    async def rows(self) -> list[tuple[int, str, int, datetime | None]]:
        """The sink's retries as (index in the log, state, attempts, due)."""
        indexes = {entry.position: index for index, entry in enumerate(self.entries)}
        statement = select(RETRIES).order_by(RETRIES.c.position)
        async with self.database.reading() as connection:
            rows = await connection.execute(statement)
            return [(indexes[row.position], row.state, row.attempts, row.due_at) for row in rows]

    async def due(self, seconds: float) -> list[int]:
        async with self.database.reading() as connection:
            found = await retries.due(connection, SINK, now=at(seconds), limit=10)
        return [retry.position for retry in found]

    async def letters(self, **chosen: Any) -> list[DeadLetterRead]:
        return (await dead_letters.find(self.database, DeadLetterQuery(**chosen))).items

    async def requeue(self, seconds: float = 0, sink: str = SINK, **chosen: Any) -> int:
        choice = DeadLetterChoice(sink=sink, **chosen)
        return sum([number async for number in dead_letters.requeue(self.database, choice, now=at(seconds))])


@pytest.fixture
async def log(database: Database) -> Log:
    a, b = life("a", (Status.QUEUED, Status.SENDING, Status.SENT)), life("b", (Status.QUEUED, Status.SENT, Status.READ))
    entries = await append(database, [event for pair in zip(a, b, strict=True) for event in pair])
    await sinks.register(database, SINK, start="beginning", fingerprint="f")
    return Log(database, entries, await taken(database))


async def taken(database: Database, holder: str = "me", seconds: float = 60, **options: Any) -> Lease:
    lease = await acquired(database, holder, seconds, **options)
    assert lease is not None
    return lease


async def acquired(database: Database, holder: str, seconds: float = 60, **options: Any) -> Lease | None:
    return await sinks.acquire_lease(database, SINK, holder=holder, seconds=seconds, **{"fingerprint": "f", **options})


async def sink_row(database: Database, name: str = SINK) -> Any:
    async with database.reading() as connection:
        return (await connection.execute(select(SINKS).where(SINKS.c.name == name))).one()


async def test_start_setting_decides_where_a_new_sink_begins(database: Database) -> None:
    early = await append(database, life("early", received=0))
    late = await append(database, life("late", received=60))
    starts: dict[str, sinks.Start] = {
        "end": "end",
        "beginning": "beginning",
        "time": at(30),
        "future": at(3600),
        "past": at(-3600),
    }
    for name, start in starts.items():
        await sinks.register(database, name, start=start, fingerprint="f")
    assert {name: (await sink_row(database, name)).cursor for name in starts} == {
        "end": late[-1].position,
        "beginning": 0,
        "time": early[-1].position,
        "future": late[-1].position,
        "past": early[0].position - 1,
    }


async def test_a_known_sink_goes_on_where_it_was(log: Log) -> None:
    await log.settle(log.first(0, Done()))
    await sinks.register(log.database, SINK, start="end", fingerprint="changed")
    assert (await sink_row(log.database)).cursor == log.position(0)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_start_does_not_wait_for_a_holder_that_froze_while_settling(log: Log) -> None:
    async with log.database.writing() as connection:
        await connection.execute(update(SINKS).values(failures=1))
        # A statement that waits for a lock fails after four seconds.
        await sinks.register(log.database, SINK, start="end", fingerprint="f")


async def test_the_holder_writes_down_which_settings_it_works_by(log: Log) -> None:
    await taken(log.database, take_over=True, fingerprint="changed")
    assert (await sink_row(log.database)).fingerprint == "changed"


async def test_a_lease_keeps_others_away_until_it_ends(log: Log) -> None:
    assert await acquired(log.database, "other") is None
    await sinks.release_lease(log.database, log.lease)
    other = await taken(log.database, "other")
    assert other.epoch > log.lease.epoch


async def test_restarted_worker_takes_over_the_lease_of_the_one_before_by_its_name(log: Log) -> None:
    again = await taken(log.database, "me")
    assert again.epoch == log.lease.epoch + 1
    assert await acquired(log.database, "another") is None


async def test_a_lapsed_lease_is_taken_over(log: Log) -> None:
    await sinks.renew_lease(log.database, log.lease, seconds=0.05)
    deadline = asyncio.get_running_loop().time() + 10
    while (other := await acquired(log.database, "other")) is None:
        assert asyncio.get_running_loop().time() < deadline
    assert other.epoch > log.lease.epoch
    with pytest.raises(LeaseLost):
        await sinks.renew_lease(log.database, log.lease, seconds=60)


async def test_a_renewed_lease_lasts_longer(log: Log) -> None:
    before = (await sink_row(log.database)).lease_until
    await sinks.renew_lease(log.database, log.lease, seconds=120)
    assert (await sink_row(log.database)).lease_until - before > timedelta(seconds=30)


async def test_the_embedded_database_takes_over_from_a_dead_process(log: Log) -> None:
    assert (await taken(log.database, "next", take_over=True)).epoch > log.lease.epoch


async def test_two_concurrent_acquires_get_one_lease(log: Log) -> None:
    await sinks.release_lease(log.database, log.lease)
    found = await asyncio.gather(*(acquired(log.database, str(number)) for number in range(4)))
    assert sum(lease is not None for lease in found) == 1


async def test_a_stale_holder_s_settlement_changes_nothing(log: Log) -> None:
    await log.settle(log.first(0, again(5)), log.first(1, REFUSED))
    before = (await log.rows(), await log.letters(), await sink_row(log.database))
    await sinks.release_lease(log.database, log.lease)
    other = await taken(log.database, "other")
    attempt = Attempt(
        position=log.position(2),
        event_id="e",
        started_at=at(0),
        ended_at=at(1),
        outcome=Outcome.RETRY,
        decision="retry",
    )
    with pytest.raises(LeaseLost):
        await log.settle(
            log.first(3, again(9)),
            log.first(5, REFUSED),
            retries=(log.retry(0, Done()),),
            attempts=(attempt,),
        )
    assert (await log.rows(), await log.letters()) == before[:2]
    assert (await sink_row(log.database)).cursor == before[2].cursor
    assert other.cursor == before[2].cursor
    async with log.database.reading() as connection:
        assert (await connection.execute(select(ATTEMPTS))).all() == []


async def test_a_stale_holder_releases_nobody_else_s_lease(log: Log) -> None:
    await taken(log.database, "other", take_over=True)
    await sinks.release_lease(log.database, log.lease)
    assert (await sink_row(log.database)).lease_holder == "other"


async def test_retry_is_due_and_its_ordering_key_is_parked(log: Log) -> None:
    await log.settle(log.first(0, again(5)), log.first(2, Parked()), log.first(3, Done()))
    assert await log.rows() == [(0, "due", 1, at(5)), (2, "parked", 0, None)]
    assert await log.due(4) == []
    assert await log.due(5) == [log.position(0)]
    async with log.database.reading() as connection:
        assert await retries.blocked_keys(log.database, connection, SINK, ["v2:a", "v2:b"]) == {"v2:a"}


async def test_success_makes_the_next_of_the_ordering_key_due(log: Log) -> None:
    await log.settle(log.first(0, again(5)), log.first(2, Parked()), log.first(4, Parked()))
    await log.settle(retries=(log.retry(0, Done()),), cursor=log.position(5))
    assert await log.rows() == [(2, "due", 0, at(0)), (4, "parked", 0, None)]


async def test_second_failure_keeps_the_ordering_key_parked(log: Log) -> None:
    await log.settle(log.first(0, again(5)), log.first(2, Parked()))
    await log.settle(retries=(log.retry(0, again(35)),), cursor=log.position(5))
    assert await log.rows() == [(0, "due", 2, at(35)), (2, "parked", 0, None)]


async def test_dead_letter_releases_its_ordering_key(log: Log) -> None:
    await log.settle(log.first(0, again(5)), log.first(2, Parked()))
    await log.settle(retries=(log.retry(0, REFUSED, attempts=3),), cursor=log.position(5))
    assert await log.rows() == [(2, "due", 0, at(0))]
    [letter] = await log.letters()
    assert (letter.event_id, letter.message_id, letter.status) == (log.entries[0].event.id, "a", "queued")
    assert (letter.reason, letter.detail, letter.attempts) == ("refused", "status 413", 4)
    assert (letter.response_code, letter.response) == (413, "too big")


async def test_event_parked_on_an_empty_ordering_key_becomes_due(log: Log) -> None:
    """The retry before it succeeded in the settlement before, so nothing else would ever promote it."""
    await log.settle(log.first(0, again(5)))
    await log.settle(retries=(log.retry(0, Done()),), cursor=log.position(1))
    await log.settle(log.first(2, Parked()))
    assert await log.rows() == [(2, "due", 0, at(0))]


async def test_a_settlement_repeated_after_a_lost_answer_changes_nothing(log: Log) -> None:
    firsts = (log.first(0, again(5)), log.first(1, REFUSED), log.first(2, Parked()))
    await log.settle(*firsts)
    before = (await log.rows(), await log.letters())
    await log.settle(*firsts)
    assert (await log.rows(), await log.letters()) == before


async def test_attempts_are_recorded_and_may_say_anything(log: Log) -> None:
    attempt = Attempt(
        position=log.position(0),
        event_id="e",
        started_at=at(0),
        ended_at=at(1),
        outcome=Outcome.RETRY,
        decision="retry",
        reason="\x00 and \ud800",
        response_code=500,
        response="x" * 5000,
    )
    await log.settle(attempts=(attempt,))
    async with log.database.reading() as connection:
        row = (await connection.execute(select(ATTEMPTS))).one()
    assert (row.sink, row.outcome, row.decision, row.reason) == (SINK, "retry", "retry", "� and �")
    assert (row.started_at, row.ended_at, row.response_code, len(row.response)) == (at(0), at(1), 500, 1000)


async def test_health_is_kept_for_the_next_holder(log: Log) -> None:
    health = Health(failures=3, down_since_at=at(1), last_success_at=at(0), last_error="refused")
    await settle(log.database, log.lease, Settlement(cursor=0), health, now=at(2))
    assert (await taken(log.database, take_over=True)).health == health


async def test_a_requeued_dead_letter_is_due_at_once_with_a_fresh_schedule(log: Log) -> None:
    await log.settle(log.first(0, REFUSED), log.first(1, REFUSED))
    assert await log.requeue(100) == 2
    assert await log.rows() == [(0, "due", 0, at(100)), (1, "due", 0, at(100))]
    assert await log.letters() == []


async def test_requeued_event_goes_before_later_events_of_its_ordering_key(log: Log) -> None:
    await log.settle(log.first(0, REFUSED), log.first(2, again(5)), log.first(4, Parked()))
    await log.requeue(1)
    assert await log.rows() == [(0, "due", 0, at(1)), (2, "parked", 1, at(5)), (4, "parked", 0, None)]
    await log.settle(retries=(log.retry(0, Done()),), cursor=log.position(5))
    assert await log.rows() == [(2, "due", 1, at(5)), (4, "parked", 0, None)]


async def test_only_the_chosen_are_requeued(log: Log) -> None:
    await log.settle(log.first(0, REFUSED), log.first(1, REFUSED))
    first, second = await log.letters()
    assert await log.requeue(ids=[second.id, 987654]) == 1
    assert await log.letters() == [first]


async def test_requeue_raises_the_revision(log: Log) -> None:
    await log.settle(log.first(0, REFUSED))
    async with log.database.reading() as connection:
        before = await sinks.control(connection, SINK)
    await log.requeue()
    async with log.database.reading() as connection:
        assert (await sinks.control(connection, SINK)).revision > before.revision


async def test_held_dead_letter_blocks_its_ordering_key_until_requeue(log: Log) -> None:
    held = replace(REFUSED, holds=True)
    await log.settle(log.first(0, held), log.first(2, Parked()), log.first(3, Done()))
    assert await log.rows() == [(0, "held", 1, at(0)), (2, "parked", 0, None)]
    assert await log.due(10**6) == []
    assert [letter.position for letter in await log.letters()] == [log.position(0)]
    assert await log.requeue(5) == 1
    assert [(state, index) for index, state, _, _ in await log.rows()] == [("due", 0), ("parked", 2)]


async def test_expired_retry_may_hold_its_ordering_key(log: Log) -> None:
    await log.settle(log.first(0, again(5)), log.first(2, Parked()))
    await log.settle(retries=(log.retry(0, replace(REFUSED, holds=True), attempts=3),))
    assert [(index, state, attempts) for index, state, attempts, _ in await log.rows()] == [
        (0, "held", 4),
        (2, "parked", 0),
    ]
    # Automatic and manual attempts share one row.
    await log.requeue(5)
    await log.settle(retries=(log.retry(0, Done()),))
    assert [(index, state) for index, state, _, _ in await log.rows()] == [(2, "due")]


async def test_requeued_event_is_not_dead_lettered_by_an_older_replay(log: Log) -> None:
    await log.settle(log.first(0, REFUSED), log.first(1, Done()))
    replay, _ = await replays.begin(log.database, SINK, "beginning", now=at(0))
    assert replay is not None
    async for _ in dead_letters.requeue(log.database, DeadLetterChoice(sink=SINK), now=at(5)):
        pass
    done = Settlement(cursor=log.position(1), firsts=(log.first(0, REFUSED), log.first(1, REFUSED)))
    progress = Progress(replay_id=replay.id, settlement=done, published=0, finished=True)
    nothing = Settlement(cursor=log.position(1))
    await settle(log.database, log.lease, nothing, HEALTHY, now=at(6), progress=progress)
    assert [letter.position for letter in await log.letters()] == [log.position(1)]
    assert [(index, state) for index, state, _, _ in await log.rows()] == [(0, "due")]


async def test_superseded_event_leaves_no_row(log: Log) -> None:
    await log.settle(log.first(0, again(5)), log.first(2, Parked()))
    await log.settle(retries=(log.retry(0, Superseded()),))
    assert [(index, state) for index, state, _, _ in await log.rows()] == [(2, "due")]


async def test_an_unknown_sink_has_nothing_to_requeue(log: Log) -> None:
    with pytest.raises(UnknownSink, match="nobody"):
        await log.requeue(sink="nobody")


async def test_dead_letters_are_listed_by_sink_reason_and_page(log: Log) -> None:
    expired = DeadLettered(cause=DeadLetterReason.EXPIRED, reason="timeout")
    await log.settle(log.first(0, REFUSED), log.first(1, expired), log.first(2, REFUSED))
    first, second, third = await log.letters()
    assert [letter.position for letter in (first, second, third)] == [log.position(index) for index in range(3)]
    assert await log.letters(reason="expired") == [second]
    assert await log.letters(sink="other") == []
    assert await log.letters(after=first.id, size=1) == [second]


async def test_database_rejects_two_heads_of_an_ordering_key(log: Log) -> None:
    await log.settle(log.first(0, again(5)))
    row = {"sink": SINK, "position": log.position(2), "ordering_key": "v2:a"}
    row |= {"state": "due", "first_at": at(0), "attempts": 0}
    with pytest.raises(Exception, match=r"uq_retries_head|UNIQUE"):
        async with log.database.writing() as connection:
            await connection.execute(RETRIES.insert(), [row])


async def test_the_backlog_counts_what_is_ahead(log: Log) -> None:
    async with log.database.reading() as connection:
        fresh = await sinks.backlog(connection, SINK)
    assert (fresh.events, fresh.oldest_at, fresh.retries) == (6, at(0), {})
    await log.settle(log.first(1, REFUSED), log.first(2, again(5)), log.first(4, Parked()), cursor=log.position(5))
    async with log.database.reading() as connection:
        behind = await sinks.backlog(connection, SINK)
    assert (behind.events, behind.oldest_at) == (0, at(0))
    assert (behind.retries, behind.dead_letters) == ({"due": 1, "parked": 1}, {"refused": 1})


async def test_retries_and_dead_letters_are_counted_to_a_limit(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "COUNTED", 2)
    refused = [log.first(index, REFUSED) for index in range(3)]
    await log.settle(*refused, *(log.first(index, again(5)) for index in range(3, 6)), cursor=log.position(5))
    async with log.database.reading() as connection:
        behind = await sinks.backlog(connection, SINK)
    assert sum(behind.dead_letters.values()) == sum(behind.retries.values()) == 2
    [waiting] = await sinks.waiting(log.database, [SINK, "unknown"])
    assert (waiting.name, waiting.events, waiting.retries, waiting.oldest_at) == (SINK, 0, 2, at(0))


async def test_an_idle_sink_has_no_backlog(database: Database) -> None:
    await sinks.register(database, SINK, start="end", fingerprint="f")
    async with database.reading() as connection:
        assert await sinks.backlog(connection, SINK) == sinks.Backlog(
            events=0, oldest_at=None, retries={}, dead_letters={}
        )


async def test_sqlite_finds_due_retries_by_their_index(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    statements: list[str] = []
    event.listen(
        database.engine.sync_engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2])
    )
    async with database.reading() as connection:
        await retries.due(connection, SINK, now=at(0), limit=10)
        plan = (await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statements[-1]}", (SINK, "", 10, 0))).all()
    await database.close()
    assert "ix_retries_due" in str(plan)
