"""The life of an alert in the database: it fires once, is heard of once, and people's decisions stay."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import select, text

from receiver.alerts import external
from receiver.alerts.alertmanager import AlertmanagerPost
from receiver.alerts.targets import Targets
from receiver.domain.alerts import CLEAR_FOR, Alert, AlertChange, Condition, RuleType, Severity, Transition, resolution
from receiver.domain.delivery import FinalConflict
from receiver.domain.events import Status
from receiver.errors import Conflict, StorageUnavailable
from receiver.models.alerts import ALERTING
from receiver.models.queries import AlertQuery, SortOrder
from receiver.storage import alerts, event_log, messages, replays
from receiver.storage.alerts import AlertingLeaseLost, UnknownAlert
from receiver.storage.database import Database
from receiver.storage.rebuild import Rebuild
from receiver.storage.retention import Pruner
from tests.dispatching import append, dispatching, ids, life, memory, memory_sink
from tests.evaluating import BASE_URL, Rounds, acquire, alert_entries, finding, make_rule, rows
from tests.factories import at, callback
from tests.processing import append as append_callbacks
from tests.processing import drain, opened
from tests.unit.test_alertmanager import POSTED
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

BREACHED, NEAR, CLEAR = finding(Condition.BREACHED), finding(Condition.NEAR), finding(Condition.CLEAR, value=0.01)
CLEARED = CLEAR_FOR.total_seconds()
PAGER = Targets(sinks=frozenset({"pager"}))


async def fired(database: Database, **rulebook: Any) -> Rounds:
    rounds = Rounds(database, **rulebook)
    await rounds.round(0, BREACHED)
    return rounds


async def test_alert_fires_once_and_is_resolved_once(database: Database) -> None:
    rounds = await fired(database)
    for seconds in (30, 60):
        await rounds.round(seconds)
    [entry] = await alert_entries(database)
    [row] = await rows(database)
    assert (entry.type, entry.subject, entry.ordering_key) == ("alert.fired", row.id, f"alert:{row.id}")
    assert entry.event.occurred_at == row.fired_at == at(0)
    await rounds.round(90, CLEAR)
    await rounds.round(90 + CLEARED)
    await rounds.round(120 + CLEARED)
    first, second = await alert_entries(database)
    assert (first.event.id, second.type, second.subject) == (entry.event.id, "alert.resolved", row.id)
    assert second.position > first.position
    assert second.event.alert["resolvedTime"] == "2026-01-01T00:06:30Z"
    assert rounds.heard == 2


async def test_time_by_which_the_clock_jumps_within_a_round_was_not_watched(database: Database) -> None:
    """As of a machine that slept: the silence of that time is its own."""
    rounds = Rounds(database)
    await rounds.round(0)
    gather = rounds.watch.gather

    async def sleep(*arguments: Any) -> None:
        rounds.now = at(5 * 3600)
        await gather(*arguments)

    rounds.watch.gather = sleep  # type: ignore[method-assign]
    await rounds.round(30)
    await rounds.round(5 * 3600 + 30)
    async with database.reading() as connection:
        since = await connection.scalar(select(ALERTING.c.watching_since_at))
    assert since == at(5 * 3600 + 30)


async def test_event_has_the_alert_as_the_api_shows_it(database: Database) -> None:
    await fired(database)
    [entry] = await alert_entries(database)
    assert entry.event.alert == {
        "id": entry.subject,
        "rule": "failure-rate",
        "name": "blocks",
        "severity": "warning",
        "status": "firing",
        "group": "T-Mobile",
        "summary": "31% failed.",
        "evidence": {"value": 0.31, "threshold": 0.2, "volume": 120, "before": 0.02},
        "messages": ["m1", "m2"],
        "link": f"{BASE_URL}/alerts/{entry.subject}",
        "runbook": f"{BASE_URL}/docs/alerts#failure-rate",
        "firedTime": "2026-01-01T00:00:00Z",
        "updatedTime": "2026-01-01T00:00:00Z",
        "resolvedTime": None,
        "acknowledgedTime": None,
        "mutedUntil": None,
    }


async def test_pending_alert_is_neither_shown_nor_heard_of(database: Database) -> None:
    rounds = Rounds(database, make_rule(holds_for=timedelta(minutes=5)))
    await rounds.round(0, BREACHED)
    [row] = await rows(database)
    assert row.status == "pending"
    assert (await alerts.find(database, AlertQuery())).items == []
    with pytest.raises(UnknownAlert):
        await alerts.with_id(database, row.id)
    await rounds.round(30, CLEAR)
    assert await rows(database) == await alert_entries(database) == []


async def test_restart_brings_no_storm(database: Database) -> None:
    groups = [finding(Condition.BREACHED, f"carrier {n}") for n in range(15)]
    before = Rounds(database)
    await before.round(0, *groups)
    after = Rounds(database)
    await after.round(600, *groups)
    assert len(await alert_entries(database)) == 15
    assert after.measured.firing == {("failure-rate", "warning"): 15}


async def test_lease_holder_alone_evaluates_and_a_successor_fences_it_off(
    database: Database, database_url: str
) -> None:
    rounds = await fired(database)
    async with opened(database_url) as other:
        successor = Rounds(other)
        assert await acquire(other, "successor") is None
        async with database.writing() as connection:
            await connection.execute(text("UPDATE alerting SET lease_until = NULL"))
        successor.lease = await acquire(other, "successor")
        await successor.round(30, CLEAR)
        with pytest.raises(AlertingLeaseLost):
            await rounds.round(30 + CLEARED, CLEAR)
        assert len(await alert_entries(database)) == 1
        await successor.round(30 + CLEARED)
    assert [entry.type for entry in await alert_entries(database)] == ["alert.fired", "alert.resolved"]


async def post(database: Database, seconds: float, **alert: Any) -> list[AlertChange]:
    """Takes a post of Alertmanager with one alert; what others hear of."""
    taken = AlertmanagerPost.model_validate({**POSTED, "alerts": [{**POSTED["alerts"][0], **alert}]})
    return await external.take(database, taken, Targets(), now=at(seconds))


@contextmanager
def posted_during_a_round(database: Database, seconds: float, **alert: Any) -> Iterator[None]:
    """Takes such a post within the next round, after it has read the open alerts."""
    read = alerts.open_alerts

    async def read_and_post(connection: Any) -> Any:
        monkeypatch.undo()
        found = await read(connection)
        await post(database, seconds, **alert)
        return found

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(alerts, "open_alerts", read_and_post)
        yield


async def test_external_alert_resolved_during_a_round_stays_resolved(database: Database) -> None:
    rounds = Rounds(database)
    await post(database, 0)
    async with database.writing() as connection:
        # As if it was muted until the round, which then announces it, unless it is resolved meanwhile.
        await connection.execute(text("UPDATE alerts SET announced_at = NULL"))
        await connection.execute(text("DELETE FROM events"))
    with posted_during_a_round(database, 29, status="resolved"):
        assert await rounds.round(30) == []
    [row] = await rows(database)
    assert (row.status, row.resolved_at, row.announced_at) == ("resolved", at(29), None)


async def test_external_alert_ends_when_its_program_has_said(database: Database) -> None:
    rounds = Rounds(database)
    await post(database, 0, endsAt="2026-01-01T00:01:00Z")
    assert await rounds.round(30) == []
    # It is posted again, with a later end.
    await post(database, 45, endsAt="2026-01-01T00:02:00Z")
    assert await rounds.round(60) == []
    [change] = await rounds.round(120)
    assert (change.transition, change.alert.resolved_at) == (Transition.RESOLVED, at(120))
    assert [entry.type for entry in await alert_entries(database)] == ["alert.fired", "alert.resolved"]
    # One that is over when it is posted fires not at all.
    assert await post(database, 200, startsAt="2026-01-01T00:00:00Z", endsAt="2026-01-01T00:03:00Z") == []


async def test_external_alert_that_fires_again_with_the_same_start_is_heard_of_again(database: Database) -> None:
    async def posted(seconds: float, status: str) -> list[str]:
        return [change.alert.id for change in await post(database, seconds, status=status)]

    [first] = await posted(0, "firing")
    assert await posted(10, "resolved") == [first]
    # From a second Alertmanager, a little later.
    assert [await posted(12, status) for status in ("firing", "resolved")] == [[], []]
    [second] = await posted(400, "firing")
    assert await posted(410, "firing") == []
    assert await posted(420, "resolved") == [second]
    [third] = await posted(800, "firing")
    assert len({first, second, third}) == 3
    assert [(row.id, row.status) for row in await rows(database)] == [
        (first, "resolved"),
        (second, "resolved"),
        (third, "firing"),
    ]
    types = [entry.type for entry in await alert_entries(database)]
    assert types == ["alert.fired", "alert.resolved"] * 2 + ["alert.fired"]


async def test_external_alert_whose_end_is_put_off_during_a_round_fires_on(database: Database) -> None:
    rounds = Rounds(database)
    await post(database, 0, endsAt="2026-01-01T00:01:00Z")
    with posted_during_a_round(database, 59, endsAt="2026-01-01T00:05:00Z"):
        assert await rounds.round(60) == []
    [row] = await rows(database)
    assert (row.status, row.ends_at) == ("firing", at(300))


async def test_write_of_a_fenced_off_holder_changes_nothing(database: Database) -> None:
    rounds = Rounds(database)
    rounds.lease = await acquire(database, "tests")

    async def lose(*_: Any) -> None:
        # Between counting and writing another process takes the lease.
        async with database.writing() as connection:
            await connection.execute(text("UPDATE alerting SET epoch = epoch + 1"))

    rounds.watch.gather = lose  # type: ignore[method-assign]
    with pytest.raises(AlertingLeaseLost):
        await rounds.round(0, BREACHED)
    assert await rows(database) == await alert_entries(database) == []


async def test_rule_that_fails_stops_no_other_and_its_alerts_stay_open(database: Database) -> None:
    rounds = Rounds(database, make_rule(), make_rule("other"))
    await rounds.round(0, BREACHED)
    rounds.watch.found = {"blocks": ZeroDivisionError("division by zero\nsecret"), "other": [BREACHED]}
    await rounds.round(30)
    assert {(row.name, row.status) for row in await rows(database)} == {("blocks", "firing"), ("other", "firing")}
    state = await alerts.state(database)
    assert state.last_error == "rule blocks: ZeroDivisionError: division by zero"
    assert (state.failing_since_at, rounds.measured.failures) == (at(30), 1)
    await rounds.round(60, BREACHED)
    state = await alerts.state(database)
    assert (state.failing_since_at, state.last_error) == (None, None)
    assert len(await alert_entries(database)) == 2


async def test_failing_evaluation_is_retried_recorded_and_logged(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = Rounds(database, every=timedelta(seconds=0.05))
    rounds.watch.found = {"blocks": [BREACHED]}
    rounds.watch.gathering = StorageUnavailable("the disk is gone")
    async with rounds.running():
        await eventually(lambda: rounds.measured.failures >= 2)
        state = await alerts.state(database)
        assert (state.failing_since_at, state.last_error) == (at(0), "the disk is gone")
        rounds.watch.gathering = None
        await eventually(lambda: rounds.measured.rounds >= 2)
    assert (await alerts.state(database)).failing_since_at is None
    assert len(await alert_entries(database)) == 1
    async with database.reading() as connection:
        assert (await connection.execute(text("SELECT lease_holder FROM alerting"))).scalar_one() is None


async def test_successor_evaluates_after_the_lease_of_a_dead_holder_has_lapsed(
    database: Database, database_url: str
) -> None:
    successor = Rounds(database)
    async with opened(database_url) as other:
        # It never renews its lease.
        lease = await alerts.acquire(other, holder="dead", seconds=1.5, take_over=True)
        assert lease is not None
        successor.watch.found = {"blocks": [BREACHED]}
        async with successor.running():
            await eventually(lambda: successor.measured.rounds > 0)
        with pytest.raises(AlertingLeaseLost):
            await alerts.renew(other, lease, seconds=1)


async def test_reload_evaluates_new_rules_at_once(database: Database) -> None:
    rounds = Rounds(database, every=timedelta(hours=1))
    rounds.watch.found = {"blocks": [BREACHED]}
    async with rounds.running():
        await eventually(lambda: rounds.measured.rounds == 1)
        rounds.evaluator.reload(rounds.rulebook(make_rule("new"), every=timedelta(hours=1)))
        await eventually(lambda: rounds.measured.rounds == 2)
    # The rule of the alert is gone.
    assert [entry.type for entry in await alert_entries(database)] == ["alert.fired", "alert.resolved"]


# --- what people decide ---


async def test_next_round_begins_at_once_while_events_wait_to_be_counted(database: Database) -> None:
    rounds = Rounds(database)
    rounds.watch.is_behind = True
    async with rounds.running():
        await eventually(lambda: rounds.measured.rounds >= 3)


async def test_acknowledged_alert_stays_acknowledged_until_it_fires_again(database: Database) -> None:
    rounds = await fired(database)
    [row] = await rows(database)
    first = await alerts.acknowledge(database, row.id, now=at(10))
    again = await alerts.acknowledge(database, row.id, now=at(20))
    assert first.acknowledged_at == again.acknowledged_at == at(10)
    await rounds.round(30, finding(Condition.BREACHED, value=0.5))
    await rounds.round(60, CLEAR)
    await rounds.round(60 + CLEARED)
    [row] = await rows(database)
    assert (row.status, row.acknowledged_at) == ("resolved", at(10))
    with pytest.raises(Conflict):
        await alerts.acknowledge(database, row.id, now=at(0))
    await rounds.round(1000, BREACHED)
    _, new = await rows(database)
    assert (new.status, new.acknowledged_at) == ("firing", None)
    resolved = (await alert_entries(database))[1]
    assert resolved.event.alert["acknowledgedTime"] == "2026-01-01T00:00:10Z"


async def test_muted_alert_is_evaluated_and_shown_but_fires_silently_again(database: Database) -> None:
    rounds = await fired(database)
    [row] = await rows(database)
    await alerts.mute(database, row.id, at(0) + timedelta(hours=2))
    await rounds.round(30, CLEAR)
    await rounds.round(30 + CLEARED)
    # Those who heard that it fires hear that it is resolved.
    assert [entry.type for entry in await alert_entries(database)] == ["alert.fired", "alert.resolved"]
    await rounds.round(1000, BREACHED)
    _, again = await rows(database)
    assert (again.status, again.muted_until, again.announced_at) == ("firing", at(0) + timedelta(hours=2), None)
    await rounds.round(1030, CLEAR)
    await rounds.round(1030 + CLEARED)
    # Nobody heard that it fires.
    assert len(await alert_entries(database)) == 2
    # Another group is not muted.
    await rounds.round(2000, finding(Condition.BREACHED, "AT&T"))
    assert len(await alert_entries(database)) == 3


async def test_alert_that_still_fires_when_its_mute_ends_is_heard_of_then(database: Database) -> None:
    rounds = await fired(database)
    [row] = await rows(database)
    await alerts.mute(database, row.id, at(0) + timedelta(hours=1))
    await rounds.round(30, CLEAR)
    await rounds.round(30 + CLEARED)
    await rounds.round(1000, BREACHED)
    await rounds.round(3500)
    assert len(await alert_entries(database)) == 2
    # The finding is the same, so the row does not change by itself.
    await rounds.round(3601)
    assert [entry.type for entry in await alert_entries(database)] == ["alert.fired", "alert.resolved", "alert.fired"]
    await rounds.round(3631)
    assert len(await alert_entries(database)) == 3


async def test_unmuting_holds_for_all_alerts_of_the_rule_and_group(database: Database) -> None:
    rounds = await fired(database)
    [row] = await rows(database)
    await alerts.mute(database, row.id, at(0) + timedelta(hours=9))
    await rounds.round(30, CLEAR)
    await rounds.round(30 + CLEARED)
    await rounds.round(1000, BREACHED)
    _, again = await rows(database)
    assert (await alerts.mute(database, again.id, None)).muted_until is None
    await rounds.round(1030)
    assert len(await alert_entries(database)) == 3
    assert [row.muted_until for row in await rows(database)] == [None, None]


async def test_mute_during_a_round_holds_for_the_alert_that_begins_in_it(database: Database) -> None:
    rounds = await fired(database)
    [row] = await rows(database)
    await rounds.round(30, CLEAR)
    await rounds.round(30 + CLEARED)
    gather = rounds.watch.gather

    async def gather_and_mute(*arguments: Any) -> None:
        await gather(*arguments)
        await alerts.mute(database, row.id, at(3600))

    rounds.watch.gather = gather_and_mute  # type: ignore[method-assign]
    assert await rounds.round(1000, BREACHED) == []
    rounds.watch.gather = gather  # type: ignore[method-assign]
    _, again = await rows(database)
    assert (again.status, again.muted_until) == ("firing", at(3600))
    # A mute that is over is not inherited.
    await rounds.round(3700, CLEAR)
    await rounds.round(3700 + CLEARED)
    [change] = await rounds.round(5000, BREACHED)
    assert (change.transition, change.alert.muted_until) == (Transition.FIRED, None)


async def test_mute_during_a_post_holds_for_the_alert_that_it_brings(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again = (
        AlertmanagerPost.model_validate({**POSTED, "alerts": [{**POSTED["alerts"][0], "startsAt": begin}]})
        for begin in ("2026-01-01T00:00:00Z", "2026-01-01T00:00:20Z")
    )
    await external.take(database, first, Targets(), now=at(0))
    [row] = await rows(database)
    appending = database.appending

    @asynccontextmanager
    async def mute_and_append() -> AsyncIterator[Any]:
        # Just before the post has its turn.
        await alerts.mute(database, row.id, at(3600))
        async with appending() as transaction:
            yield transaction

    monkeypatch.setattr(database, "appending", mute_and_append)
    assert await external.take(database, again, Targets(), now=at(20)) == []
    assert {row.muted_until for row in await rows(database)} == {at(3600)}


async def ends_or_waits(database: Database, task: "asyncio.Task[Any]") -> None:
    """Waits until a task has ended or waits for a lock of PostgreSQL; on SQLite it waits for its turn to write."""

    async def is_waiting() -> bool:
        if task.done() or database.is_sqlite:
            return True
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        async with database.reading() as connection:
            return bool((await connection.execute(text(waiting))).scalar_one())

    await eventually(is_waiting)


async def test_mute_during_the_write_of_other_alerts_waits_for_it_without_a_deadlock(database: Database) -> None:
    both = [{**POSTED["alerts"][0], "startsAt": f"2026-01-01T00:00:0{number}Z"} for number in range(2)]
    post = AlertmanagerPost.model_validate({**POSTED, "alerts": both})
    await external.take(database, post, Targets(), now=at(10))
    async with database.reading() as connection:
        first, last = sorted(await alerts.open_alerts(connection), key=lambda alert: alert.began_at)

    def worse(alert: Alert) -> AlertChange:
        return AlertChange(transition=Transition.UPDATED, alert=replace(alert, summary="worse"))

    new = AlertChange(transition=Transition.FIRED, alert=replace(first, id="new", announced_at=None))
    async with database.appending() as transaction:
        await alerts.write(transaction, [worse(last), new], now=at(20), base_url=BASE_URL)
        muting = asyncio.create_task(alerts.mute(database, first.id, at(3600)))
        await ends_or_waits(database, muting)
        await alerts.write(transaction, [worse(first)], now=at(20), base_url=BASE_URL)
    await muting
    assert {(row.summary, row.muted_until) for row in await rows(database) if row.id != "new"} == {("worse", at(3600))}
    # Also the one that was just being written.
    assert {row.muted_until for row in await rows(database)} == {at(3600)}


async def test_alert_that_is_just_being_resolved_cannot_be_acknowledged(database: Database) -> None:
    await external.take(database, AlertmanagerPost.model_validate(POSTED), Targets(), now=at(0))
    async with database.reading() as connection:
        [alert] = await alerts.open_alerts(connection)
    async with database.appending() as transaction:
        await alerts.write(transaction, [resolution(alert, at(20))], now=at(20), base_url=BASE_URL)
        acknowledging = asyncio.create_task(alerts.acknowledge(database, alert.id, now=at(20)))
        await ends_or_waits(database, acknowledging)
    with pytest.raises(Conflict):
        await acknowledging
    assert (await alerts.with_id(database, alert.id)).acknowledged_at is None


async def test_mute_of_an_alert_of_another_program_mutes_no_rule_of_the_same_name(database: Database) -> None:
    labels = {"alertname": "blocks"}
    post = AlertmanagerPost.model_validate({**POSTED, "alerts": [{**POSTED["alerts"][0], "labels": labels}]})
    await external.take(database, post, Targets(), now=at(0))
    [other] = await rows(database)
    assert (other.name, other.group_value) == ("blocks", None)
    await alerts.mute(database, other.id, at(600))
    rounds = Rounds(database, make_rule(by=None))
    assert len(await rounds.round(30, finding(Condition.BREACHED, None))) == 1
    await alerts.mute(database, other.id, at(86_400))

    async def muted() -> dict[str, Any]:
        return {row.rule: row.muted_until for row in await rows(database)}

    assert await muted() == {"external": at(86_400), "failure-rate": None}
    # Both hold mutes of their own.
    [ours] = [row for row in await rows(database) if row.rule == "failure-rate"]
    await alerts.mute(database, ours.id, at(86_400))
    await external.resolve(database, other.id, Targets(), now=at(60))
    pruner = Pruner(database, {"events": timedelta(hours=1)}, clock=lambda: at(50_000))
    await pruner.prune()
    assert await muted() == {"external": at(86_400), "failure-rate": at(86_400)}


async def test_decision_between_reading_and_writing_is_not_overwritten(database: Database) -> None:
    await fired(database)
    [row] = await rows(database)
    async with database.reading() as connection:
        [seen] = await alerts.open_alerts(connection)
    await alerts.acknowledge(database, row.id, now=at(5))
    await alerts.mute(database, row.id, at(0) + timedelta(hours=1))
    async with database.appending() as transaction:
        change = AlertChange(transition=Transition.UPDATED, alert=seen)
        await alerts.write(transaction, [change], now=at(30), base_url=BASE_URL)
    [row] = await rows(database)
    assert (row.acknowledged_at, row.muted_until) == (at(5), at(0) + timedelta(hours=1))


async def test_several_changes_of_an_alert_at_once_are_refused(database: Database) -> None:
    await fired(database)
    async with database.reading() as connection:
        [seen] = await alerts.open_alerts(connection)
    change = AlertChange(transition=Transition.UPDATED, alert=seen)
    with pytest.raises(ValueError, match="several changes"):
        async with database.appending() as transaction:
            await alerts.write(transaction, [change, change], now=at(30), base_url=BASE_URL)


async def test_list_is_filtered_and_paged(database: Database) -> None:
    rounds = Rounds(database, make_rule(), make_rule("slow", type=RuleType.SLOW_DELIVERY, severity=Severity.CRITICAL))
    for n in range(4):
        rounds.watch.found["blocks"] = [finding(Condition.BREACHED, f"c{k}") for k in range(n + 1)]
        await rounds.round(30 * n)
    await rounds.round(200, BREACHED, rule="slow")

    async def names(**query: Any) -> list[tuple[str, str | None]]:
        page = await alerts.find(database, AlertQuery(**query))
        return [(alert.name, alert.group) for alert in page.items]

    assert await names() == [("slow", "T-Mobile"), *(("blocks", f"c{k}") for k in (3, 2, 1, 0))]
    assert await names(order=SortOrder.ASC, size=2) == [("blocks", "c0"), ("blocks", "c1")]
    assert await names(severity="critical") == await names(rule="slow-delivery") == await names(name="slow")
    assert await names(group="c2") == [("blocks", "c2")]
    assert await names(since=at(60)) == [("slow", "T-Mobile"), ("blocks", "c3"), ("blocks", "c2")]
    assert await names(until=at(30)) == [("blocks", "c0")]
    assert await names(status="resolved") == []
    assert len(await names(status="firing")) == 5


async def test_old_resolved_alerts_are_pruned_at_the_age_of_events(database: Database) -> None:
    rounds = await fired(database)
    await rounds.round(30, CLEAR)
    await rounds.round(30 + CLEARED)
    await rounds.round(1000, finding(Condition.BREACHED, "AT&T"))
    late = at(0) + timedelta(days=200)
    pruner = Pruner(database, {"events": timedelta(days=180)}, clock=lambda: late)
    assert (await pruner.count())["alerts"] == 1  # type: ignore[index]
    removed = await pruner.prune()
    assert removed["alerts"] == 1  # type: ignore[index]
    assert [row.group_value for row in await rows(database)] == ["AT&T"]


async def test_mute_outlasts_the_retention_of_its_alert(database: Database) -> None:
    rounds = await fired(database)
    [row] = await rows(database)
    await alerts.mute(database, row.id, at(0) + timedelta(days=7))
    day = timedelta(days=1).total_seconds()
    for begin in (60.0, day):
        # On the second day it fires again, muted, and is resolved again.
        await rounds.round(begin, BREACHED)
        await rounds.round(begin + 60, CLEAR)
        await rounds.round(begin + 60 + CLEARED)
    now = at(0) + timedelta(days=3)
    pruner = Pruner(database, {"events": timedelta(days=1)}, clock=lambda: now)
    # The last of the two holds the mute.
    assert (await pruner.prune())["alerts"] == 1  # type: ignore[index]
    assert await rounds.round(3 * day, BREACHED) == []
    now = at(0) + timedelta(days=9)
    await rounds.round(8 * day, CLEAR)
    await rounds.round(8 * day + CLEARED)
    now = at(0) + timedelta(days=10)
    assert (await pruner.prune())["alerts"] == 2  # type: ignore[index]


# --- the event log ---


async def test_alert_with_the_id_of_a_message_does_no_harm(database: Database) -> None:
    rounds = Rounds(database)
    rounds.evaluator._new_id = lambda: "m1"
    await rounds.round(0, BREACHED)
    payload = {"type": "message-delivered", "time": "2026-01-01T00:00:01Z", "to": "+15550100"}
    message = {"id": "m1", "owner": "+15550199", "direction": "out", "from": "+15550199", "to": ["+15550100"]}
    await append_callbacks(database, callback([{**payload, "message": message}]))
    await drain(database)
    await rounds.round(30, CLEAR)
    await rounds.round(30 + CLEARED)
    rebuilt = await Rebuild(database, FinalConflict.FAILED_WINS).run()
    assert (rebuilt.messages, rebuilt.differing) == (1, 0)
    async with database.reading() as connection:
        entries = await event_log.read_after(connection, 0, 10)
    assert [entry.type for entry in entries] == ["alert.fired", "message.delivered", "alert.resolved"]
    assert len(await messages.events(database, entries[1].event.key)) == 1


async def test_sinks_get_alerts_if_they_ask_and_named_sinks_alone_if_the_rule_names_some(database: Database) -> None:
    rounds = Rounds(database, make_rule(), make_rule("named", to=("pager",)), sinks_of=PAGER.sinks_of)
    both = ["alert.fired", "alert.resolved"]
    sinks = {
        "plain": memory_sink("plain"),
        "asks": memory_sink("asks", events=[*both, "message.failed"], changes_only=True, tag_prefixes=["x"]),
        "fired": memory_sink("fired", events=["alert.fired"]),
        "pager": memory_sink("pager", events=["message.read"]),
    }
    await append(database, life("m1"))
    await rounds.round(0, BREACHED)
    await rounds.round(30, BREACHED, rule="named")
    rounds.watch.found = {"blocks": [CLEAR], "named": [CLEAR]}
    await rounds.round(60)
    await rounds.round(60 + CLEARED)
    await append(database, life("m2", [Status.READ]))
    async with dispatching(database, *sinks.values()):
        await eventually(lambda: len(memory(sinks["plain"]).published) == 5)
        await eventually(lambda: len(memory(sinks["pager"]).published) == 3)
        await eventually(lambda: len(memory(sinks["asks"]).published) == 2)
    types = {name: [event.type for event in memory(sink).published] for name, sink in sinks.items()}
    assert all(type_.startswith("message.") for type_ in types["plain"])
    assert types["asks"] == both
    assert types["fired"] == ["alert.fired"]
    # Between messages and alerts there is no order.
    assert sorted(types["pager"]) == [*both, "message.read"]
    fired, resolved = memory(sinks["asks"]).published
    assert fired.ordering_key == resolved.ordering_key == f"alert:{fired.event['subject']}"
    assert fired.event["source"] == "/bandwidth/alerts"
    assert fired.event["data"]["name"] == "blocks"


async def test_resolved_alert_goes_to_the_sinks_that_heard_that_it_fires(database: Database) -> None:
    rounds = Rounds(database, make_rule(to=("pager",)), sinks_of=PAGER.sinks_of)
    await rounds.round(0, BREACHED)
    rounds.evaluator.reload(rounds.rulebook(make_rule("another")))
    await rounds.round(30)
    fired, resolved = await alert_entries(database)
    assert fired.event.sinks == resolved.event.sinks == {"pager"}


async def test_muted_alert_of_another_program_goes_to_the_sinks_of_its_rule_when_the_mute_ends(
    database: Database,
) -> None:
    rule = make_rule("external", type=RuleType.EXTERNAL, by=None, to=("pager",))
    targets = replace(PAGER, rules=(rule,))
    rounds = Rounds(database, rule, sinks_of=targets.sinks_of)
    first, again = (
        AlertmanagerPost.model_validate({**POSTED, "alerts": [{**POSTED["alerts"][0], "startsAt": begin}]})
        for begin in ("2026-01-01T00:00:00Z", "2026-01-01T00:00:20Z")
    )
    await external.take(database, first, targets, now=at(0))
    [row] = await rows(database)
    await alerts.mute(database, row.id, at(600))
    await external.take(database, again, targets, now=at(20))
    assert await rounds.round(30) == []
    assert len(await rounds.round(700)) == 1
    assert [entry.event.sinks for entry in await alert_entries(database)] == [{"pager"}, {"pager"}]


async def test_alert_events_are_replayed(database: Database) -> None:
    rounds = await fired(database)
    await rounds.round(30, CLEAR)
    await rounds.round(30 + CLEARED)
    sink = memory_sink("asks", events=["alert.fired", "alert.resolved"])
    async with dispatching(database, sink):
        await eventually(lambda: len(memory(sink).published) == 2)
        await eventually(lambda: is_settled(database))
        first = list(memory(sink).published)
        started, part = await replays.begin(database, "asks", "beginning", now=at(0))
        assert started is not None
        await eventually(lambda: len(memory(sink).published) == 4)
    again = memory(sink).published[2:]
    assert ids(again) == ids(first)
    assert [event.event for event in again] == [event.event for event in first]
    assert part.events == 2


async def is_settled(database: Database) -> bool:
    """Whether every sink has passed the whole log."""
    async with database.reading() as connection:
        _, end = await event_log.bounds(connection)
        return (await connection.execute(text("SELECT min(cursor) FROM sinks"))).scalar_one() == end


async def test_pull_gives_alerts_only_where_their_types_are_named(database: Database) -> None:
    await append(database, life("m1"))
    rounds = await fired(database)
    await append(database, life("m2"))
    await rounds.round(30, CLEAR)
    await rounds.round(30 + CLEARED)

    async def pulled(*types: str, after: int = 0, limit: int = 100) -> tuple[list[str], int]:
        found = await event_log.pull_types(database, after, limit, types)
        return [entry.type for entry in found.entries], found.read_to

    ordinary, read_to = await pulled()
    assert len(ordinary) == 8
    assert all(type_.startswith("message.") for type_ in ordinary)
    assert read_to == 10
    assert await pulled("alert.fired", "alert.resolved") == (["alert.fired", "alert.resolved"], 10)
    assert await pulled("alert.resolved", "message.sent") == (["message.sent", "message.sent", "alert.resolved"], 10)
    assert await pulled("alert.fired", limit=1) == (["alert.fired"], 5)
    assert await pulled("alert.fired", after=5) == ([], 10)
    assert await pulled(after=10) == ([], 10)


async def test_registration_is_still_pulled_by_nobody(database: Database) -> None:
    [event] = life("m1", [Status.QUEUED])
    await append(database, [msgspec.structs.replace(event, route="registered")])
    found = await event_log.pull_types(database, 0, 10, ["message.queued"])
    assert (found.entries, found.read_to) == ([], 1)
