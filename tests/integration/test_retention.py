"""Retention on both databases: what goes at which age, what is held back, and the worker that does it."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, insert, select, text, update

from receiver.domain.delivery import FinalConflict
from receiver.errors import StorageUnavailable
from receiver.intake import Intake
from receiver.metrics import Metrics
from receiver.settings import Retention
from receiver.storage import retention
from receiver.storage.database import Database
from receiver.storage.kept import first_id
from receiver.storage.rebuild import Rebuild
from receiver.storage.retention import Bite, Errand, Kind
from receiver.storage.sink_tables import AttemptRow, DeadLetterRow, ReplayRow, RetryRow, SinkRow
from receiver.storage.tables import CallbackRow, EventRow, MessageRow
from receiver.web.callbacks import new_callback_id
from receiver.workers.pruner import Pruner
from tests.events import EPOCH, at
from tests.posts import callback, v1_event, v2_event

pytestmark = pytest.mark.anyio


def day(number: float) -> datetime:
    return EPOCH + timedelta(days=number)


@asynccontextmanager
async def running_intake(database: Database) -> AsyncIterator[Intake]:
    intake = Intake(database, observer=Metrics(), clock=lambda: at(0))
    await intake.start()
    yield intake
    await intake.stop()


async def receive(database: Database, *bodies: tuple[float, Any]) -> None:
    """Takes in one callback after another, each with the day it was received on."""
    async with running_intake(database) as intake:
        for number, body in bodies:
            received = day(number)
            id_ = new_callback_id(received)
            await intake.accept(callback(body, id=id_, received_at=received))


def dated(message_id: str, number: float, **more: Any) -> list[dict[str, Any]]:
    """A v2 callback about a message made on a day."""
    message = {"time": day(number).isoformat(), **more.pop("message", {})}
    return [v2_event(message_id, time=day(number).isoformat(), message=message, **more)]


def received_text(message_id: str, number: float) -> list[dict[str, Any]]:
    message = {"text": f"hello from {message_id}", "media": ["https://media.example/1"], "direction": "in"}
    return dated(message_id, number, type="message-received", message=message)


async def values(database: Database, column: Any) -> list[Any]:
    async with database.reading() as connection:
        return list(await connection.scalars(select(column).order_by(column)))


async def write(database: Database, statement: Any, rows: list[dict[str, Any]] | None = None) -> None:
    async with database.writing() as connection:
        await connection.execute(statement, rows)


async def add_sink(database: Database, name: str, *, cursor: int, seen: float) -> None:
    row = {"name": name, "cursor": cursor, "epoch": 0, "revision": 0, "paused": False, "fingerprint": "f"}
    await write(database, insert(SinkRow), [{**row, "failures": 0, "seen_at": day(seen)}])


async def add_retry(database: Database, sink: str, position: int, lane: str, state: str = "due") -> None:
    row = {"sink": sink, "position": position, "lane": lane, "state": state, "attempts": 1, "first_at": day(0)}
    await write(database, insert(RetryRow), [row])


async def add_dead_letter(database: Database, sink: str, position: int) -> None:
    row = {"sink": sink, "position": position, "lane": "m", "event_id": "e", "reason": "refused", "attempts": 1}
    given = {column.name for column in DeadLetterRow.__table__.columns}  # type: ignore[attr-defined]
    detail = {"detail": "no"} if "detail" in given else {}
    await write(database, insert(DeadLetterRow), [{**row, **detail, "first_at": day(0), "died_at": day(0)}])


async def add_replay(database: Database, sink: str, position: int, state: str = "running") -> None:
    row = {"sink": sink, "state": state, "after_position": 0, "to_position": 10**6, "position": position}
    counts = {"published": 0, "dead_letters": 0}
    await write(database, insert(ReplayRow), [{**row, **counts, "requested_at": day(0)}])


async def replay_states(database: Database) -> list[str]:
    async with database.reading() as connection:
        return list(await connection.scalars(select(ReplayRow.state).order_by(ReplayRow.id)))


async def forget(
    database: Database, kind: Kind, before: float, *, now: float = 1000, sinks: Collection[str] = (), limit: int = 500
) -> int:
    """Forgets everything of a kind that is older than a day, and checks that counting had told the same number."""
    errand = Errand(kind=kind, before=day(before), now=day(now), sinks=sinks, limit=limit)
    counted = await retention.count(database, errand)
    forgotten, place = 0, 0
    while True:
        bite = await retention.bite(database, errand, place)
        assert bite.forgotten <= limit
        forgotten += bite.forgotten
        if bite.next is None:
            assert forgotten == counted
            return forgotten
        place = bite.next


def test_every_age_of_the_settings_has_its_kind() -> None:
    assert set(Kind) == set(Retention.model_fields)


async def test_text_and_media_go_at_their_age_and_the_message_stays(database: Database) -> None:
    await receive(database, (0, received_text("old", 0)), (20, received_text("young", 20)))
    assert await forget(database, Kind.TEXT, 10) == 1
    async with database.reading() as connection:
        rows = (await connection.execute(select(MessageRow.id, MessageRow.text, MessageRow.media))).all()
    assert {row.id: (row.text, row.media) for row in rows} == {
        "old": (None, None),
        "young": ("hello from young", ["https://media.example/1"]),
    }
    assert await forget(database, Kind.TEXT, 10) == 0


async def test_text_of_a_message_that_bandwidth_dates_wrongly_stays_for_its_time_with_us(database: Database) -> None:
    await receive(database, (20, received_text("misdated", -3000)))
    assert await forget(database, Kind.TEXT, 10) == 0


async def test_callbacks_go_at_their_age_quarantined_ones_too(database: Database) -> None:
    await receive(database, (0, dated("m1", 0)), (1, b"not json"), (20, dated("m2", 20)), (21, b"not json"))
    assert await forget(database, Kind.CALLBACKS, 10) == 2
    assert [round((moment - EPOCH).days) for moment in await values(database, CallbackRow.received_at)] == [20, 21]


async def test_a_callback_at_the_very_edge_of_its_age_stays(database: Database) -> None:
    await receive(database, (10, dated("m1", 10)))
    assert await forget(database, Kind.CALLBACKS, 10) == 0
    assert new_callback_id(day(10)) >= first_id(day(10)) > new_callback_id(day(10) - timedelta(microseconds=1))


async def test_a_message_goes_when_both_its_time_and_its_last_change_are_old(database: Database) -> None:
    await receive(
        database,
        (0, dated("old", 0)),
        (0, dated("told late", 0, type="message-sending")),
        (20, [v2_event("told late", time=day(1).isoformat(), message={"time": day(0).isoformat()})]),
        (20, dated("young", 20)),
    )
    assert await forget(database, Kind.MESSAGES, 10) == 1
    assert await values(database, MessageRow.id) == ["told late", "young"]


async def test_the_deliveries_of_a_forgotten_message_go_with_it(database: Database) -> None:
    await receive(database, (0, dated("old", 0, message={"to": ["+15550001", "+15550002"]})))
    await forget(database, Kind.MESSAGES, 10)
    async with database.reading() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM deliveries")) == 0


async def test_attempts_go_at_their_age(database: Database) -> None:
    def attempt(number: float) -> dict[str, Any]:
        row = {"sink": "s", "position": 1, "event_id": "e", "outcome": "published"}
        return {**row, "started_at": day(number), "ended_at": day(number)}

    given = {column.name for column in AttemptRow.__table__.columns}  # type: ignore[attr-defined]
    more = {"decision": "done"} if "decision" in given else {}
    await write(database, insert(AttemptRow), [{**attempt(number), **more} for number in (0, 1, 2, 20, 21)])
    assert await forget(database, Kind.ATTEMPTS, 10, limit=2) == 3
    assert len(await values(database, AttemptRow.id)) == 2


async def test_events_go_at_their_age_and_their_messages_move_no_more(database: Database) -> None:
    await receive(
        database, (0, dated("old", 0, type="message-sending")), (0, dated("older", 0)), (20, dated("young", 20))
    )
    assert await forget(database, Kind.EVENTS, 10) == 2
    assert await values(database, EventRow.message_id) == ["young"]
    async with database.reading() as connection:
        marked = set(await connection.scalars(select(MessageRow.id).where(MessageRow.events_forgotten)))
    assert marked == {"old", "older"}
    await receive(database, (30, dated("old", 1)))
    async with database.reading() as connection:
        assert await connection.scalar(select(MessageRow.status).where(MessageRow.id == "old")) == "sending"


async def test_only_the_message_of_the_same_generation_is_marked(database: Database) -> None:
    await receive(database, (0, dated("same-id", 0)))
    async with running_intake(database) as intake:
        young = callback([v1_event("same-id")], id=new_callback_id(day(20)), received_at=day(20), api="v1")
        await intake.accept(young)
    await forget(database, Kind.EVENTS, 10)
    async with database.reading() as connection:
        rows = (await connection.execute(select(MessageRow.api, MessageRow.events_forgotten))).all()
    assert {row.api: row.events_forgotten for row in rows} == {"v1": False, "v2": True}


async def test_an_event_that_a_cursor_has_not_passed_stays(database: Database) -> None:
    await receive(database, *((0, dated(f"m{number}", 0)) for number in range(4)))
    positions = await values(database, EventRow.position)
    await add_sink(database, "ahead", cursor=positions[2], seen=999)
    await add_sink(database, "behind", cursor=positions[1], seen=999)
    assert await forget(database, Kind.EVENTS, 10) == 2
    assert await values(database, EventRow.position) == positions[2:]


@pytest.mark.parametrize(
    ("seen", "configured", "forgotten"),
    [
        pytest.param(994, (), 0, id="seen six days ago"),
        pytest.param(992, (), 2, id="not seen for eight days"),
        pytest.param(992, ("slow",), 0, id="not seen for eight days but in the settings"),
    ],
)
async def test_a_sink_that_is_gone_holds_nothing_back(
    database: Database, seen: float, configured: tuple[str, ...], forgotten: int
) -> None:
    await receive(database, (0, dated("m1", 0)), (0, dated("m2", 0)))
    await add_sink(database, "slow", cursor=0, seen=seen)
    assert await forget(database, Kind.EVENTS, 10, sinks=configured) == forgotten


async def test_an_event_that_waits_for_a_retry_stays(database: Database) -> None:
    await receive(database, *((0, dated(f"m{number}", 0)) for number in range(3)))
    positions = await values(database, EventRow.position)
    await add_sink(database, "crm", cursor=positions[-1], seen=999)
    await add_retry(database, "crm", positions[1], "v2:m1")
    assert await forget(database, Kind.EVENTS, 10) == 2
    assert await values(database, EventRow.position) == [positions[1]]


async def test_an_event_with_a_dead_letter_stays_even_if_its_sink_is_gone(database: Database) -> None:
    await receive(database, *((0, dated(f"m{number}", 0)) for number in range(3)))
    positions = await values(database, EventRow.position)
    await add_sink(database, "gone", cursor=0, seen=0)
    await add_dead_letter(database, "gone", positions[0])
    assert await forget(database, Kind.EVENTS, 10, limit=1) == 2
    assert await values(database, DeadLetterRow.position) == [positions[0]]


async def test_retries_of_a_sink_that_is_gone_go_with_their_events_and_the_next_of_the_lane_takes_their_place(
    database: Database,
) -> None:
    await receive(
        database,
        (0, dated("m", 0, type="message-sending")),
        (20, dated("m", 1, type="message-sent")),
        (20, dated("n", 2)),
    )
    positions = await values(database, EventRow.position)
    await add_sink(database, "gone", cursor=positions[-1], seen=0)
    await add_retry(database, "gone", positions[0], "v2:m")
    await add_retry(database, "gone", positions[1], "v2:m", "parked")
    errand = Errand(kind=Kind.EVENTS, before=day(10), now=day(1000))
    assert await retention.bite(database, errand) == Bite(forgotten=1, next=None, retries=1)
    async with database.reading() as connection:
        rows = (await connection.execute(select(RetryRow.position, RetryRow.state))).all()
    assert [tuple(row) for row in rows] == [(positions[1], "due")]


async def test_what_a_sink_that_is_gone_holds_for_an_operator_stays(database: Database) -> None:
    await receive(database, (0, dated("m", 0)))
    [position] = await values(database, EventRow.position)
    await add_sink(database, "gone", cursor=position, seen=0)
    await add_retry(database, "gone", position, "v2:m", "held")
    assert await forget(database, Kind.EVENTS, 10) == 0


@pytest.mark.parametrize("state", ["running", "paused"])
async def test_what_a_replay_is_yet_to_give_stays(database: Database, state: str) -> None:
    await receive(database, *((0, dated(f"m{number}", 0)) for number in range(4)))
    positions = await values(database, EventRow.position)
    await add_sink(database, "crm", cursor=positions[-1], seen=999)
    await add_replay(database, "crm", positions[1], state)
    assert await forget(database, Kind.EVENTS, 10) == 2
    assert await values(database, EventRow.position) == positions[2:]
    assert await replay_states(database) == [state]


@pytest.mark.parametrize("state", ["cancelled", "finished", "expired"])
async def test_a_replay_that_has_ended_holds_nothing_back(database: Database, state: str) -> None:
    await receive(database, (0, dated("m0", 0)))
    await add_sink(database, "crm", cursor=10**6, seen=999)
    await add_replay(database, "crm", 0, state)
    assert await forget(database, Kind.EVENTS, 10) == 1
    assert await replay_states(database) == [state]


async def test_a_replay_to_a_sink_that_is_gone_expires_with_its_events(database: Database) -> None:
    await receive(database, *((0, dated(f"m{number}", 0)) for number in range(3)), (20, dated("young", 20)))
    positions = await values(database, EventRow.position)
    await add_sink(database, "gone", cursor=positions[-1], seen=0)
    for place, state in ((1, "paused"), (2, "running"), (0, "finished")):
        await add_replay(database, "gone", positions[place], state)
    assert await forget(database, Kind.EVENTS, 10) == 3
    # one that has all of its events still is left alone
    assert await replay_states(database) == ["expired", "running", "finished"]
    async with database.reading() as connection:
        assert await connection.scalar(select(ReplayRow.ended_at).where(ReplayRow.state == "expired")) == day(1000)


async def test_a_sink_that_comes_back_this_moment_keeps_what_its_replay_is_yet_to_give(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await receive(database, *((0, dated(f"m{number}", 0)) for number in range(4)))
    positions = await values(database, EventRow.position)
    for name, place in (("gone", 0), ("back", 1), ("gone too", 2)):
        await add_sink(database, name, cursor=positions[-1], seen=0)
        await add_replay(database, name, positions[place])
    lock = retention._lock_lapsed

    async def is_back(connection: Any, errand: Errand, sink: str) -> bool:
        return sink != "back" and await lock(connection, errand, sink)

    monkeypatch.setattr(retention, "_lock_lapsed", is_back)
    bite = await retention.bite(database, Errand(kind=Kind.EVENTS, before=day(10), now=day(1000)))
    assert bite.forgotten == 2
    assert await values(database, EventRow.position) == positions[2:]
    # the last one has all of its events still
    assert await replay_states(database) == ["expired", "running", "running"]


async def test_a_young_event_among_old_ones_does_not_hide_those_behind_it(database: Database) -> None:
    await receive(database, (0, dated("m0", 0)), (20, dated("young", 20)), (0, dated("imported", 0)))
    assert await forget(database, Kind.EVENTS, 10, limit=2) == 2


async def test_bites_are_no_larger_than_asked_for(database: Database) -> None:
    await receive(database, *((0, received_text(f"m{number}", 0)) for number in range(5)))
    for kind in Kind:
        if kind is not Kind.ATTEMPTS:
            assert await forget(database, kind, 10, limit=2) == 5


async def test_a_late_bite_leaves_a_status_table_that_a_rebuild_agrees_with(database: Database) -> None:
    await receive(
        database,
        (0, dated("half gone", 0, type="message-sending")),
        (20, dated("half gone", 20)),
        (20, dated("whole", 20)),
    )
    await forget(database, Kind.EVENTS, 10)
    rebuilt = await Rebuild(database, FinalConflict.FAILED_WINS).run()
    assert (rebuilt.messages, rebuilt.forgotten, rebuilt.differing) == (1, 1, 0)
    async with database.reading() as connection:
        assert await connection.scalar(select(MessageRow.status).where(MessageRow.id == "half gone")) == "delivered"


async def test_intake_and_retention_do_not_wait_for_each_other_in_a_ring(database: Database) -> None:
    """On PostgreSQL two transactions that take the same rows in other orders would deadlock: one of them would fail."""
    await receive(database, *((0, received_text(f"m{number}", 0)) for number in range(30)))
    async with running_intake(database) as intake:
        late = [callback([v2_event(f"m{29 - n}", time=day(1).isoformat())], received_at=day(20)) for n in range(30)]
        errand = Errand(kind=Kind.TEXT, before=day(10), now=day(1000), limit=10)
        bites = (retention.bite(database, errand) for _ in range(3))
        await asyncio.gather(*bites, *(intake.accept(one) for one in late))
    assert await forget(database, Kind.TEXT, 10) == 0


def pruner(database: Database, *, now: float = 40, **ages: int) -> Pruner:
    settings = Retention(**{**dict.fromkeys(Retention.model_fields, 0), **ages})
    return Pruner(database, settings.ages, clock=lambda: day(now), bite=2, every=0.01)


async def test_the_pruner_forgets_every_kind_at_its_own_age(database: Database) -> None:
    await receive(database, (0, received_text("m0", 0)), (20, received_text("m1", 20)), (38, received_text("m2", 38)))
    work = pruner(database, text=10, callbacks=30, events=5, messages=30)
    counted = await work.count()
    assert await work.prune() == counted == {"text": 2, "callbacks": 1, "events": 2, "messages": 1}


async def test_an_age_of_zero_keeps(database: Database) -> None:
    await receive(database, (0, received_text("m0", 0)))
    assert await pruner(database, now=10_000).prune() == {}
    async with database.reading() as connection:
        assert await connection.scalar(select(func.count()).select_from(CallbackRow)) == 1


async def test_the_pruner_works_by_itself_and_survives_a_database_that_is_away(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await receive(database, (0, dated("m0", 0)))
    real, failures = retention.bite, [StorageUnavailable("gone"), RuntimeError("what")]

    async def flaky(*given: Any) -> Bite:
        if failures:
            raise failures.pop()
        return await real(*given)

    monkeypatch.setattr(retention, "bite", flaky)
    work = pruner(database, callbacks=10)
    await work.start()
    async with asyncio.timeout(45):
        while await values(database, CallbackRow.id):
            await asyncio.sleep(0.01)
    await work.stop()
    await write(database, update(MessageRow).values(tag="still usable"))
