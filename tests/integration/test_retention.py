"""Retention on both databases: what goes at which age, what is held back, and the worker that does it."""

import asyncio
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import func, insert, select, text, update

from receiver.domain.delivery import FinalConflict
from receiver.domain.events import Api, Callback
from receiver.errors import StorageUnavailable
from receiver.intake.endpoint import new_callback_id
from receiver.models.callbacks import CallbackRow, QuarantineRow
from receiver.models.events import EventRow
from receiver.models.messages import MessageRow
from receiver.models.sinks import AttemptRow, DeadLetterRow, ReplayRow, RetryRow, SinkRow
from receiver.settings import Retention
from receiver.storage import event_retention, journal, retention
from receiver.storage.database import Database
from receiver.storage.event_retention import Batch, Kind, PruneTask
from receiver.storage.journal import first_id
from receiver.storage.rebuild import Rebuild
from receiver.storage.retention import Pruner
from tests import dispatching
from tests.factories import EPOCH, callback, make_event, v1_event, v2_event
from tests.log_lines import json_log
from tests.processing import append, drain, process
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


def day(number: float) -> datetime:
    return EPOCH + timedelta(days=number)


def received(number: float, body: Any, **more: Any) -> Callback:
    """A callback that was received on a day."""
    return callback(body, id=new_callback_id(day(number)), received_at=day(number), **more)


async def receive(database: Database, *bodies: tuple[float, Any]) -> None:
    """Appends callbacks to the journal and processes them, each with the day it was received on."""
    await process(database, *(received(number, body) for number, body in bodies))


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


async def add_retry(database: Database, sink: str, position: int, ordering_key: str, state: str = "due") -> None:
    key = {"sink": sink, "position": position, "ordering_key": ordering_key}
    row = key | {"state": state, "attempts": 1, "first_at": day(0)}
    await write(database, insert(RetryRow), [row])


async def add_dead_letter(database: Database, sink: str, position: int) -> None:
    row = {"sink": sink, "position": position, "ordering_key": "m", "event_id": "e", "reason": "refused", "attempts": 1}
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
    """Prunes all rows of a kind that is older than a day, and checks that `count` returned the same number."""
    task = PruneTask(kind=kind, before=day(before), now=day(now), sinks=sinks, limit=limit)
    counted = await retention.count(database, task)
    forgotten, place = 0, 0
    while True:
        batch = await retention.prune(database, task, place)
        assert batch.removed <= limit
        forgotten += batch.removed
        if batch.next is None:
            assert forgotten == counted
            return forgotten
        place = batch.next


def test_every_age_of_the_settings_has_its_kind() -> None:
    # Alerts have the age of the events.
    assert set(Kind) - {Kind.ALERTS} == set(Retention.model_fields)


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


async def test_quarantined_elements_go_with_their_callback(database: Database) -> None:
    await receive(database, (0, b"not json"), (1, dated("m1", 1)), (20, b"not json"))
    [_, young] = await values(database, QuarantineRow.callback_id)
    assert await forget(database, Kind.CALLBACKS, 10) == 2
    assert await values(database, QuarantineRow.callback_id) == [young]


async def test_quarantined_elements_whose_callback_is_gone_go_too(database: Database) -> None:
    """A process that ends between the journal's transaction and the other one leaves such rows."""
    await receive(database, *((0, b"not json") for _ in range(5)), (20, b"not json"))
    ids = await values(database, QuarantineRow.callback_id)
    await journal.remove(database, ids[:4])
    assert await forget(database, Kind.CALLBACKS, 10, limit=2) == 1
    assert await values(database, QuarantineRow.callback_id) == ids[5:]


async def test_a_callback_that_is_not_processed_stays_whatever_its_age(database: Database) -> None:
    await receive(database, (0, dated("m1", 0)), (20, dated("m2", 20)))
    waiting = [received(1, dated("m3", 1)), received(2, b"not json")]
    await append(database, *waiting)
    assert await forget(database, Kind.CALLBACKS, 10) == 1
    assert {one.id for one in waiting} < set(await values(database, CallbackRow.id))
    await drain(database)
    assert await forget(database, Kind.CALLBACKS, 10) == 2
    assert await values(database, MessageRow.id) == ["m1", "m2", "m3"]


async def test_large_bodies_are_removed_a_few_at_a_time(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_BATCH_BODIES", 3000)
    await receive(database, *((0, b"x" * 1500) for _ in range(5)))
    task = PruneTask(kind=Kind.CALLBACKS, before=day(10), now=day(1000))
    assert await retention.prune(database, task) == Batch(removed=2, next=0)
    assert await forget(database, Kind.CALLBACKS, 10) == 3


async def test_a_callback_at_the_very_edge_of_its_age_stays(database: Database) -> None:
    await receive(database, (10, dated("m1", 10)))
    assert await forget(database, Kind.CALLBACKS, 10) == 0
    assert new_callback_id(day(10)) >= first_id(day(10)) > new_callback_id(day(10) - timedelta(microseconds=1))


async def test_a_message_goes_when_both_its_time_and_its_last_change_are_old(database: Database) -> None:
    await receive(
        database,
        (0, dated("old", 0)),
        (0, dated("reported late", 0, type="message-sending")),
        (20, [v2_event("reported late", time=day(1).isoformat(), message={"time": day(0).isoformat()})]),
        (20, dated("young", 20)),
    )
    assert await forget(database, Kind.MESSAGES, 10) == 1
    assert await values(database, MessageRow.id) == ["reported late", "young"]


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


async def test_only_the_message_of_the_same_direction_is_marked(database: Database) -> None:
    inbound = dated("same-id", 20, type="message-received", message={"direction": "in"})
    await receive(database, (0, dated("same-id", 0)), (20, inbound))
    await forget(database, Kind.EVENTS, 10)
    async with database.reading() as connection:
        rows = (await connection.execute(select(MessageRow.direction, MessageRow.events_forgotten))).all()
    assert {row.direction: row.events_forgotten for row in rows} == {"in": False, "out": True}


async def test_only_the_message_of_the_same_api_version_is_marked(database: Database) -> None:
    await receive(database, (0, dated("same-id", 0)))
    await process(database, received(20, [v1_event("same-id")], api=Api.V1))
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
async def test_lapsed_sink_holds_no_event_back(
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


async def test_retries_of_a_lapsed_sink_are_pruned_with_their_events_and_the_ordering_key_gets_a_new_head(
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
    task = PruneTask(kind=Kind.EVENTS, before=day(10), now=day(1000))
    batch = await retention.prune(database, task)
    assert (batch.removed, batch.retries) == (1, 1)
    async with database.reading() as connection:
        rows = (await connection.execute(select(RetryRow.position, RetryRow.state))).all()
    assert [tuple(row) for row in rows] == [(positions[1], "due")]


async def test_held_retry_of_a_lapsed_sink_stays(database: Database) -> None:
    await receive(database, (0, dated("m", 0)))
    [position] = await values(database, EventRow.position)
    await add_sink(database, "gone", cursor=position, seen=0)
    await add_retry(database, "gone", position, "v2:m", "held")
    assert await forget(database, Kind.EVENTS, 10) == 0


@pytest.mark.parametrize("state", ["running", "paused"])
async def test_events_of_an_open_replay_stay(database: Database, state: str) -> None:
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
    lock = event_retention._lock_lapsed

    async def is_back(connection: Any, task: PruneTask, sink: str) -> bool:
        return sink != "back" and await lock(connection, task, sink)

    monkeypatch.setattr(event_retention, "_lock_lapsed", is_back)
    batch = await retention.prune(database, PruneTask(kind=Kind.EVENTS, before=day(10), now=day(1000)))
    assert batch.removed == 2
    assert await values(database, EventRow.position) == positions[2:]
    # the last one has all of its events still
    assert await replay_states(database) == ["expired", "running", "running"]


async def test_a_young_event_among_old_ones_does_not_hide_those_behind_it(database: Database) -> None:
    await receive(database, (0, dated("m0", 0)), (20, dated("young", 20)), (0, dated("imported", 0)))
    assert await forget(database, Kind.EVENTS, 10, limit=2) == 2


async def add_events(database: Database, days: Iterable[float]) -> None:
    """Appends one event for each day to the log, each of a message of its own."""
    events = [make_event(message_id=uuid4().hex, received_at=day(received)) for received in days]
    await dispatching.append(database, events)


@pytest.mark.parametrize("limit", [3, 500])
async def test_old_imported_events_behind_young_ones_are_pruned(
    database: Database, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(event_retention, "_BLOCK", 20)
    await add_events(database, [20] * 75 + [0] * 4 + [21] * 50 + [1] * 2)
    assert await forget(database, Kind.EVENTS, 10, limit=limit) == 6
    assert await forget(database, Kind.EVENTS, 10, limit=limit) == 0


async def test_pruning_reads_young_blocks_of_the_log_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_retention, "_BLOCK", 20)
    read: list[int] = []
    oldest_of = event_retention._oldest_of

    async def noting(connection: Any, number: int) -> datetime | None:
        read.append(number)
        return await oldest_of(connection, number)

    monkeypatch.setattr(event_retention, "_oldest_of", noting)
    await add_events(database, [20] * 70 + [0] * 5 + [20] * 35)
    work = pruner(database, now=30, events=20)
    assert await work.prune() == {"events": 5, "alerts": 0}
    assert read == [0, 1, 2, 3, 4]
    await add_events(database, [0] * 20)
    assert await work.prune() == {"events": 20, "alerts": 0}
    # the block that became younger, and the one that was not whole then
    assert read == [0, 1, 2, 3, 4, 3, 5]


async def test_batches_are_no_larger_than_asked_for(database: Database) -> None:
    await receive(database, *((0, received_text(f"m{number}", 0)) for number in range(5)))
    for kind in Kind:
        if kind not in (Kind.ATTEMPTS, Kind.ALERTS):
            assert await forget(database, kind, 10, limit=2) == 5


async def test_a_late_batch_leaves_a_status_table_that_a_rebuild_agrees_with(database: Database) -> None:
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


async def test_processor_and_retention_do_not_deadlock(database: Database) -> None:
    """On PostgreSQL two transactions that take the same rows in other orders would deadlock: one of them would fail."""
    await receive(database, *((0, received_text(f"m{number}", 0)) for number in range(30)))
    await append(database, *(received(20, [v2_event(f"m{29 - n}", time=day(1).isoformat())]) for n in range(30)))
    task = PruneTask(kind=Kind.TEXT, before=day(10), now=day(1000), limit=10)
    await asyncio.gather(*(retention.prune(database, task) for _ in range(3)), drain(database))
    assert await forget(database, Kind.TEXT, 10) == 0


def pruner(database: Database, *, now: float = 40, **ages: int) -> Pruner:
    settings = Retention(**{**dict.fromkeys(Retention.model_fields, 0), **ages})
    return Pruner(database, settings.ages, clock=lambda: day(now), limit=2, every=0.01)


async def test_the_pruner_forgets_every_kind_at_its_own_age(database: Database) -> None:
    await receive(database, (0, received_text("m0", 0)), (20, received_text("m1", 20)), (38, received_text("m2", 38)))
    work = pruner(database, text=10, callbacks=30, events=5, messages=30)
    counted = await work.count()
    assert await work.prune() == counted == {"text": 2, "callbacks": 1, "events": 2, "messages": 1, "alerts": 0}


async def test_json_line_of_the_pruner_has_a_number_for_each_kind(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await receive(database, (0, dated("m0", 0)), (38, dated("m1", 38)))
    with json_log(monkeypatch) as lines:
        work = pruner(database, callbacks=30, events=30)
        await work.start()
        await eventually(lambda: "removed old rows" in [line["message"] for line in lines()])
        await work.stop()
        [line] = [line for line in lines() if line["message"] == "removed old rows"]
    assert line["timestamp"]
    assert (line["level"], line["callbacks"], line["events"], line["alerts"]) == ("info", 1, 1, 0)


async def test_an_age_of_zero_keeps(database: Database) -> None:
    await receive(database, (0, received_text("m0", 0)))
    assert await pruner(database, now=10_000).prune() == {}
    async with database.reading() as connection:
        assert await connection.scalar(select(func.count()).select_from(CallbackRow)) == 1


async def test_the_pruner_works_by_itself_and_survives_a_database_that_is_away(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await receive(database, (0, dated("m0", 0)))
    real, failures = retention.prune, [StorageUnavailable("gone"), RuntimeError("what")]

    async def flaky(*given: Any) -> Batch:
        if failures:
            raise failures.pop()
        return await real(*given)

    monkeypatch.setattr(retention, "prune", flaky)
    work = pruner(database, callbacks=10)
    await work.start()
    async with asyncio.timeout(45):
        while await values(database, CallbackRow.id):
            await asyncio.sleep(0.01)
    await work.stop()
    await write(database, update(MessageRow).values(tag="still usable"))
