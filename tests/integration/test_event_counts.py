"""What the rules of alerts count, on both databases: each measure, once, within bounds."""

import asyncio
from collections import Counter
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from sqlalchemy import delete, func, select, update

from receiver.alerts.rules import configure
from receiver.domain.events import REGISTERED, Callback
from receiver.intake.fold import TagChecker
from receiver.models.alerts import ALERTING, EVENT_COUNTS
from receiver.storage import alert_facts, event_counts
from receiver.storage.alerts import AlertingLeaseLost
from receiver.storage.database import Database
from receiver.storage.event_counts import Counted
from receiver.storage.status import StatusReader
from receiver.tags import TagPolicy
from tests import factories
from tests.factories import at, callback, v2_event
from tests.processing import process
from tests.processing import select as select_rows
from tests.unit.test_lookups import entry, item, v2_answer
from tests.waiting import cpu_at_most

pytestmark = pytest.mark.anyio

NOW = at(600)
LONG_AGO = at(-365 * 86_400)
EPOCH = 1


@pytest.fixture(autouse=True)
async def lease(database: Database) -> None:
    """This test evaluates: the epoch of the lease is 1, and counting begins with the first event."""
    async with database.writing() as connection:
        await connection.execute(update(ALERTING).values(epoch=EPOCH, cursor=0, counting_since_at=LONG_AGO))


def event(kind: str = "message-delivered", message_id: str = "m1", received: float = 10, **more: Any) -> Callback:
    route = more.pop("route", "primary")
    return callback([v2_event(message_id, kind, **more)], received=received, route=route)


async def counted(database: Database, grain: str = "minute") -> Counter[str]:
    """The events of a grain by measure."""
    async with database.reading() as connection:
        rows = (await connection.execute(select(EVENT_COUNTS).where(EVENT_COUNTS.c.grain == grain))).all()
    total: Counter[str] = Counter()
    for row in rows:
        total[row.measure] += row.events
    return total


async def cells(database: Database, measure: str, grain: str = "minute") -> list[Any]:
    of = EVENT_COUNTS.c.grain == grain, EVENT_COUNTS.c.measure == measure
    async with database.reading() as connection:
        return list((await connection.execute(select(EVENT_COUNTS).where(*of))).all())


async def test_each_final_status_is_counted_once(database: Database) -> None:
    await process(
        database,
        event("message-sending", "m1", 1),
        event("message-delivered", "m1", 2),
        event("message-read", "m1", 3, time="2026-01-01T00:00:09Z"),
        event("message-failed", "m2", 4, errorCode=4470),
        event("message-failed", "m3", 5, errorCode=9902),
    )
    await event_counts.count(database, EPOCH, NOW, senders=None)
    found = await counted(database)
    assert (found["delivered"], found["failed"], found["unconfirmed"]) == (1, 1, 1)
    assert found["receipt"] == 5
    [failed] = await cells(database, "failed")
    assert (failed.delivery_code, failed.application_id, failed.api, failed.direction, failed.sender) == (
        4470,
        factories.v2_event()["message"]["applicationId"],
        "v2",
        "out",
        "",
    )
    [failed] = await cells(database, "failed", "sender-minute")
    assert failed.sender == "+15559999"


async def test_read_without_delivered_counts_as_delivered(database: Database) -> None:
    await process(database, event("message-read"))
    await event_counts.count(database, EPOCH, NOW)
    assert (await counted(database))["delivered"] == 1


@pytest.mark.parametrize("rounds", ["one round", "a round each"])
@pytest.mark.parametrize(
    ("kinds", "outcome"),
    [
        ([("message-delivered", {}), ("message-failed", {"errorCode": 4720})], "failed"),
        ([("message-failed", {"errorCode": 4720}), ("message-read", {})], "delivered"),
        ([("message-failed", {"errorCode": 9902}), ("message-delivered", {})], "delivered"),
        ([("message-failed", {"errorCode": 9902}), ("message-failed", {"errorCode": 4720})], "failed"),
    ],
)
async def test_an_outcome_that_is_replaced_is_taken_off_in_its_own_minute(
    database: Database, kinds: list[tuple[str, dict[str, Any]]], outcome: str, rounds: str
) -> None:
    other = event("message-failed", "m2", 60, errorCode=9902, to="+15550002")
    await process(database, other, event("message-delivered", "m3", 60))
    for number, (kind, more) in enumerate(kinds):
        await process(database, event(kind, "m1", 60 + 60 * number, time=f"2026-01-01T00:00:0{number}Z", **more))
        if rounds == "a round each":
            await event_counts.count(database, EPOCH, NOW, senders=None)
    await event_counts.count(database, EPOCH, NOW, senders=None)
    expected = Counter({"unconfirmed": 1, "delivered": 1}) + Counter({outcome: 1})
    for grain in ("minute", "hour", "sender-minute", "sender-hour"):
        found = await counted(database, grain)
        assert {
            measure: found[measure] for measure in ("delivered", "failed", "unconfirmed") if found[measure]
        } == expected
    assert [row.start % 60 for row in await cells(database, outcome) if row.events > 0][-1] == len(kinds)


async def test_each_delivery_counts_with_its_last_outcome_after_every_history(database: Database) -> None:
    random = Random(7)
    kinds = [("message-delivered", None), ("message-read", None), ("message-failed", 4720), ("message-failed", 9902)]
    for part in range(20):
        histories = []
        for second in range(10 * part, 10 * part + 10):
            kind, code = random.choice([*kinds, ("message-sending", None)])
            more = {"errorCode": code} if code else {}
            to, time = random.choice(["+15550001", "+15550002"]), f"2026-01-01T00:00:{random.randrange(60):02}Z"
            group = {"to": ["+15550001", "+15550002"]}
            id_ = f"m{random.randrange(30)}"
            histories.append(event(kind, id_, second, to=to, time=time, message=group, **more))
        await process(database, *histories)
        if part % 3 == 0:
            await event_counts.count(database, EPOCH, NOW, senders=None)
    await event_counts.count(database, EPOCH, NOW, senders=None)
    stored = dict(await select_rows(database, "SELECT status, count(*) FROM deliveries GROUP BY status"))
    expected = {
        "delivered": stored.get("delivered", 0) + stored.get("read", 0),
        "failed": stored.get("failed", 0),
        "unconfirmed": stored.get("unconfirmed", 0),
    }
    for grain in ("minute", "sender-hour"):
        found = await counted(database, grain)
        assert {measure: found[measure] for measure in expected} == expected


async def test_an_outcome_that_was_not_counted_leaves_no_number_below_zero(database: Database) -> None:
    await process(database, event("message-delivered", "m1", 60))
    async with database.writing() as connection:
        await connection.execute(update(ALERTING).values(cursor=1))
    await process(database, event("message-failed", "m1", 120, errorCode=4720, time="2026-01-01T00:00:09Z"))
    await event_counts.count(database, EPOCH, NOW)
    facts = await alert_facts.gather(StatusReader(database), configure([{"rule": "failure-rate"}]), NOW, sinks={})
    [cells] = facts.cells.values()
    assert {cell.measure: cell.events for cell in cells if cell.measure in ("delivered", "failed")} == {"failed": 1}


async def test_the_time_to_delivery_is_counted_by_bandwidths_clock(database: Database) -> None:
    await process(
        database,
        event(message_id="m1", received=300, time="2026-01-01T00:00:05Z"),
        event(message_id="m2", received=300, time="2026-01-01T00:10:00Z"),
    )
    await event_counts.count(database, EPOCH, NOW)
    quick, slow = sorted(event_counts.seconds_of(row.bucket) or 0 for row in await cells(database, "delivered"))
    assert 3.5 < quick < 7.1
    assert 420 < slow < 850


async def test_inbound_messages_and_the_fallback_route(database: Database) -> None:
    inbound = {"direction": "in", "owner": "+15550001"}
    await process(database, event("message-received", message=inbound, route="fallback"), event(message_id="m2"))
    await event_counts.count(database, EPOCH, NOW, senders=None)
    found = await counted(database)
    assert (found["inbound"], found["fallback"], found["receipt"]) == (1, 1, 1)
    [row] = await cells(database, "inbound", "history")
    assert (row.start, row.events) == (int(NOW.timestamp() // 3600), 1)
    # The sender of an inbound message is a customer.
    assert not await cells(database, "inbound", "sender-minute")


async def test_a_contradiction_is_counted(database: Database) -> None:
    await process(database, event("message-delivered", "m1", 1))
    await process(database, event("message-failed", "m1", 2, errorCode=4720, time="2026-01-01T00:00:09Z"))
    await event_counts.count(database, EPOCH, NOW)
    assert (await counted(database))["contradicted"] == 1


async def test_tag_verdicts_are_counted(database: Database) -> None:
    checker = TagChecker(keys={"k1": "secret-secret-secret"}, policy=TagPolicy.RECORD)
    tagged = {"tag": "order 4711"}
    await process(database, event(message_id="m1", message=tagged), event(message_id="m2"), checker=checker)
    await event_counts.count(database, EPOCH, NOW)
    found = await counted(database)
    assert (found["unsigned"], found["missing"], found["forged"]) == (1, 1, 0)


async def test_repeated_callbacks_and_rounds_count_nothing_twice(database: Database) -> None:
    await process(database, event(), event())
    assert (await event_counts.count(database, EPOCH, NOW)).events == 1
    assert await event_counts.count(database, EPOCH, NOW) == Counted(0, 0)
    await process(database, event(message_id="m2"))
    assert await event_counts.count(database, EPOCH, NOW) == Counted(1, 0)
    assert (await counted(database))["delivered"] == 2
    assert (await counted(database, "hour"))["delivered"] == 2


async def test_a_round_is_counted_in_bounded_batches(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_counts, "BATCH", 2)
    await process(database, *(event(message_id=f"m{number}") for number in range(7)))
    assert await event_counts.count(database, EPOCH, NOW, most_seconds=0) == Counted(2, 5)
    assert await event_counts.count(database, EPOCH, NOW) == Counted(5, 0)
    assert (await counted(database))["delivered"] == 7


async def test_counting_does_not_wait_for_the_lock_of_the_event_log(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("a file has one writer")
    await process(database, event())
    async with asyncio.timeout(30), database.appending():
        assert (await event_counts.count(database, EPOCH, NOW)).events == 1


async def test_another_epoch_counts_nothing(database: Database) -> None:
    await process(database, event())
    with pytest.raises(AlertingLeaseLost):
        await event_counts.count(database, EPOCH + 1, NOW)
    assert not await counted(database)


async def test_a_lease_lost_during_the_round_counts_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await process(database, event())
    bounds = event_counts._bounds

    async def then_taken_over(*arguments: Any) -> Any:
        found = await bounds(*arguments)
        async with database.writing() as connection:
            await connection.execute(update(ALERTING).values(epoch=EPOCH + 1))
        return found

    monkeypatch.setattr(event_counts, "_bounds", then_taken_over)
    with pytest.raises(AlertingLeaseLost):
        await event_counts.count(database, EPOCH, NOW)
    assert not await counted(database)


async def test_registrations_are_not_counted(database: Database) -> None:
    registration = callback([factories.v2_accepted("m9")], route=REGISTERED)
    await process(database, registration, event())
    assert (await event_counts.count(database, EPOCH, NOW)).events == 2
    assert (await counted(database))["receipt"] == 1


async def test_what_our_own_look_ups_report_is_no_receipt(database: Database) -> None:
    message_id = "1589228074636lm4k2je7j7jklbn2"
    await process(database, event("message-sending", message_id, 1))
    await process(database, entry(v2_answer(item())))
    assert (await event_counts.count(database, EPOCH, NOW)).events == 2
    found = await counted(database)
    assert (found["receipt"], found["delivered"], found["fallback"]) == (1, 1, 0)


async def test_old_events_are_counted_where_they_are_still_needed(database: Database) -> None:
    hour = 3600
    await process(database, *(event(message_id=f"m{hours}", received=-hours * hour) for hours in (1, 30, 200, 2000)))
    await event_counts.count(database, EPOCH, NOW)
    assert (await counted(database))["receipt"] == 1
    assert (await counted(database, "hour"))["receipt"] == 2
    # History is about hours since counting began, which the tests of this file put into the year before.
    assert (await counted(database, "history"))["receipt"] == 3


async def test_history_begins_after_the_hour_in_which_counting_began(database: Database) -> None:
    hour = 3600
    async with database.writing() as connection:
        await connection.execute(update(ALERTING).values(counting_since_at=at(-90 * 60)))
    await process(database, *(event(message_id=f"m{hours}", received=-hours * hour) for hours in (0, 1, 2, 30)))
    await event_counts.count(database, EPOCH, NOW)
    current = int(NOW.timestamp() // hour)
    assert {row.start for row in await cells(database, "receipt", "history")} == {current - 1, current}
    assert (await counted(database, "hour"))["receipt"] == 4


async def test_an_event_from_the_future_counts_as_of_now(database: Database) -> None:
    await process(database, event(received=86_400))
    await event_counts.count(database, EPOCH, NOW)
    [row] = await cells(database, "receipt")
    assert row.start == int(NOW.timestamp() // 60)


async def test_old_counts_are_removed(database: Database) -> None:
    await process(database, event())
    await event_counts.count(database, EPOCH, NOW)
    await event_counts.count(database, EPOCH, NOW + timedelta(hours=3))
    assert not await counted(database)
    assert await counted(database, "hour")
    await event_counts.count(database, EPOCH, NOW + timedelta(days=3))
    assert not await counted(database, "hour")
    assert await counted(database, "history")
    await event_counts.count(database, EPOCH, NOW + timedelta(weeks=6))
    assert not await counted(database, "history")


async def test_live_events_between_imported_old_ones_are_counted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_counts, "BATCH", 10)
    old = [event(message_id=f"old{number}", received=-864_000 + number) for number in range(60)]
    live = [event(message_id=f"new{number}", received=number) for number in range(6)]
    for number in range(6):
        await process(database, *old[number * 10 : number * 10 + 10], live[number])
    assert await event_counts.count(database, EPOCH, NOW) == Counted(66, 0)
    assert (await counted(database))["delivered"] == 6


async def test_too_far_behind_only_the_newest_events_are_counted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_counts, "MOST_BEHIND", 15)
    await process(database, *(event(message_id=f"m{number}", received=number) for number in range(40)))
    assert await event_counts.count(database, EPOCH, NOW) == Counted(15, 0)
    assert (await counted(database))["delivered"] == 15
    async with database.reading() as connection:
        assert await connection.scalar(select(ALERTING.c.counting_since_at)) == NOW


def from_sender(number: int, sender: str) -> Callback:
    return event(message_id=f"m{number}", message={"from": sender})


async def senders_counted(database: Database) -> dict[str, int]:
    return {row.sender: row.events for row in await cells(database, "delivered", "sender-hour")}


async def test_senders_are_counted_one_by_one_only_if_rules_need_it(database: Database) -> None:
    await process(database, from_sender(1, "+15550001"), from_sender(2, "+15550002"))
    by_carrier = configure([{"rule": "failure-rate", "by": "carrierName"}])
    named = configure([{"rule": "failure-rate", "where": {"from": "+15550002"}}])
    by_sender = configure([{"rule": "failure-rate", "by": "from"}])
    assert event_counts.senders_of([*by_sender, *named]) is None
    for rules, found in ((by_carrier, {}), (named, {"+15550002": 1}), (by_sender, {"+15550001": 1, "+15550002": 1})):
        async with database.writing() as connection:
            await connection.execute(update(ALERTING).values(cursor=0))
            await connection.execute(delete(EVENT_COUNTS))
        await event_counts.count(database, EPOCH, NOW, senders=event_counts.senders_of(rules))
        assert await senders_counted(database) == found


async def test_senders_of_an_hour_are_bounded_over_batches_and_rounds(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_counts, "MOST_SENDERS", 2)
    monkeypatch.setattr(event_counts, "BATCH", 3)
    numbers = ["1", "2", "2", "1", "3", "3", "3", "4", "2"]
    await process(database, *(from_sender(place, f"+1555000{number}") for place, number in enumerate(numbers)))
    await event_counts.count(database, EPOCH, NOW, senders=None, most_seconds=0)
    await event_counts.count(database, EPOCH, NOW, senders=None)
    assert (await counted(database))["delivered"] == 9
    assert await senders_counted(database) == {"+15550001": 2, "+15550002": 3}


async def test_watching_begins_again_after_rounds_were_left_out(database: Database) -> None:
    every, minute = timedelta(seconds=30), timedelta(minutes=1)
    assert await event_counts.note_round(database, EPOCH, NOW, every) == NOW
    assert await event_counts.note_round(database, EPOCH, NOW + minute, every) == NOW
    assert await event_counts.note_round(database, EPOCH, NOW + 4 * minute, every) == NOW + 4 * minute
    with pytest.raises(AlertingLeaseLost):
        await event_counts.note_round(database, EPOCH + 1, NOW, every)
    # A clock that is set back.
    assert await event_counts.note_round(database, EPOCH, NOW, every) == NOW


async def test_a_slow_round_is_not_one_that_was_left_out(database: Database) -> None:
    every, minute = timedelta(seconds=30), timedelta(minutes=1)
    assert await event_counts.note_round(database, EPOCH, NOW, every) == NOW
    await event_counts.note_end(database, EPOCH, NOW + 10 * minute)
    assert await event_counts.note_round(database, EPOCH, NOW + 10 * minute, every) == NOW
    with pytest.raises(AlertingLeaseLost):
        await event_counts.note_end(database, EPOCH + 1, NOW)


async def test_counts_of_a_clock_that_was_ahead_are_removed(database: Database) -> None:
    day = timedelta(days=1)
    await process(database, event(received=86_400))
    await event_counts.count(database, EPOCH, NOW + day)
    assert (await counted(database))["receipt"] == 1
    await event_counts.count(database, EPOCH, NOW)
    assert not await counted(database)
    assert not await counted(database, "hour")


@pytest.mark.slow
async def test_ten_thousand_events_are_counted_within_a_second(database: Database) -> None:
    number = 10_000
    await process(
        database,
        *(
            callback(
                [
                    v2_event(
                        f"m{batch * 100 + place}",
                        time=f"2026-01-01T00:{place % 10:02}:{place % 60:02}Z",
                        carrierName=f"carrier {place % 5}",
                        message={"from": f"+1555000{place % 200:04}", "applicationId": f"a-{place % 7}"},
                    )
                    for place in range(100)
                ],
                received=batch,
            )
            for batch in range(number // 100)
        ),
    )
    with cpu_at_most(20):
        counted_events = await event_counts.count(database, EPOCH, NOW, senders=None, most_seconds=60)
    assert counted_events.events == number
    async with database.reading() as connection:
        rows = await connection.scalar(select(func.count()).select_from(EVENT_COUNTS))
    print(f"{number:,} events, {rows:,} cells")
    assert (await counted(database))["delivered"] == number
