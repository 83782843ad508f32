"""Reconciliation on both databases against the real sandbox: what is looked up, when, and what the answers become."""

import asyncio
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from starlette.responses import Response
from structlog.testing import capture_logs

from receiver.domain.delivery import FinalConflict
from receiver.domain.events import RECONCILED, Api
from receiver.intake.fold import TagChecker
from receiver.intake.transfer import Importing, Reprocessing, exported, import_lines
from receiver.metrics import WorkerMetrics
from receiver.models.queries import CallbackQuery
from receiver.storage import journal, processor, reconciliation, schema
from receiver.storage.database import Database
from receiver.storage.leases import Held
from receiver.storage.rebuild import Rebuild
from receiver.storage.reconciliation import ReconcilerLeaseLost
from receiver.tags import TagPolicy
from tests.dispatching import dispatching, memory, memory_sink
from tests.factories import callback, v2_event
from tests.log_lines import json_log
from tests.processing import append, drain, now, opened, select
from tests.reconciling import AFTER, LOOPBACK, MISSING, SILENT, Clock, bandwidth, reconciler, register, stepping
from tests.servers import free_port
from tests.waiting import eventually
from tests.web import READER, application, client

pytestmark = pytest.mark.anyio

each_api = pytest.mark.parametrize("api", list(Api))


async def statuses(database: Database) -> dict[str, str]:
    rows = await select(database, "SELECT id, status, awaiting_receipt FROM messages")
    return {row.id: f"{row.status}{' awaiting' if row.awaiting_receipt else ''}" for row in rows}


async def routes(database: Database) -> list[str]:
    return sorted(row.route for row in await select(database, "SELECT route FROM callbacks"))


# --- what is looked up


@each_api
async def test_silent_messages_are_found_and_closed(database: Database, api: Api) -> None:
    async with bandwidth() as there:
        invalid = "+15552024720" if api is Api.V2 else "+15552010720"
        delivered, failed = await there.send(api, SILENT, invalid)
        await register(database, api, delivered, age=AFTER * 1.5)
        await register(database, api, failed, to=invalid)
        async with stepping(database, there.account(api)) as here:
            await here.drain()
        assert there.recorder.lookups == {delivered: 1, failed: 1}
    await drain(database)
    assert await statuses(database) == {delivered: "delivered", failed: "failed"}
    [row] = await select(database, f"SELECT delivery_code, code_name FROM message_status WHERE message_id = '{failed}'")
    assert row.delivery_code == (4720 if api is Api.V2 else 720)
    assert await routes(database) == [RECONCILED, RECONCILED, "registered", "registered"]
    exposition = generate_latest(here.metrics.registry).decode()
    assert f'receiver_reconciliation_requests_total{{answer="final",api="{api}"}} 2.0' in exposition


async def test_json_line_of_reconciliation_has_a_number_for_each_answer(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with json_log(monkeypatch) as lines:
        async with bandwidth() as there:
            [id_] = await there.send(Api.V2, SILENT)
            await register(database, Api.V2, id_, "m-unknown")
            metrics = WorkerMetrics()
            async with reconciler(database, there.account(Api.V2), metrics=metrics) as here:
                await here.start()
                counted = 'receiver_reconciliation_requests_total{answer="%s",api="v2"} 1.0'
                for answer in ("final", "unknown"):
                    await eventually(lambda text=counted % answer: text in generate_latest(metrics.registry).decode())
        [line] = [line for line in lines() if line["message"] == "messages without a final event were looked up"]
    assert line["timestamp"]
    assert (line["level"], line["api"], line["final"], line["unknown"]) == ("info", "v2", 1, 1)


@each_api
async def test_only_old_messages_without_a_final_event_are_looked_up(database: Database, api: Api) -> None:
    async with bandwidth() as there:
        due, young, old = await there.send(api, SILENT, SILENT, SILENT)
        await register(database, api, due)
        await register(database, api, young, age=AFTER / 2)
        await register(database, api, old, age=AFTER * 25)
        other = Api.V1 if api is Api.V2 else Api.V2
        await register(database, other, "of-another-api")
        await register(database, Api.V2, "heard-of")
        await append(database, callback([v2_event("heard-of")]))
        await append(database, callback([v2_event("inbound", "message-received")]))
        await drain(database)
        async with stepping(database, there.account(api)) as here:
            await here.drain()
        assert there.recorder.lookups == {due: 1}


async def test_message_that_only_callbacks_know_is_looked_up(database: Database) -> None:
    async with bandwidth() as there:
        [id_] = await there.send(Api.V2, MISSING)
        event = v2_event(id_, "message-sending", message={"time": (now() - AFTER * 2).isoformat()})
        await append(database, callback([event]))
        await drain(database)
        assert await statuses(database) == {id_: "sending awaiting"}
        async with stepping(database, there.account(Api.V2)) as here:
            await here.drain()
        await drain(database)
        assert (await statuses(database))[id_] == "pending awaiting"
    # The sandbox sent it to another number than the callback of this test names: that one still waits.
    rows = await select(database, "SELECT recipient, status FROM deliveries ORDER BY recipient")
    assert [tuple(row) for row in rows] == [("+15550001", "sending"), (MISSING, "delivered")]


@each_api
async def test_answer_without_a_final_status_leaves_no_trace_in_the_journal(database: Database, api: Api) -> None:
    # At this speed nothing final happens within the test.
    async with bandwidth(speed=0.001) as there:
        [id_] = await there.send(api, SILENT)
        await register(database, api, id_, "m-unknown")
        clock = Clock()
        async with stepping(database, there.account(api), clock=clock) as here:
            await here.drain()
            assert there.recorder.lookups == {id_: 1, "m-unknown": 1}
            exposition = generate_latest(here.metrics.registry).decode()
            for answer in ("pending", "unknown"):
                assert f'requests_total{{answer="{answer}",api="{api}"}} 1.0' in exposition
            assert await routes(database) == ["registered"]
            clock.advance(hours=2.9)
            await here.drain()
            assert there.recorder.lookups.total() == 2
            clock.advance(hours=0.2)
            await here.drain()
            assert there.recorder.lookups.total() == 4
            # The second pause is twice the first.
            clock.advance(hours=5.9)
            await here.drain()
            assert there.recorder.lookups.total() == 4
            clock.advance(hours=0.2)
            await here.drain()
            assert there.recorder.lookups.total() == 6


async def test_pauses_of_messages_survive_a_restart(database: Database) -> None:
    async with bandwidth(speed=0.001) as there:
        [id_] = await there.send(Api.V2, SILENT)
        await register(database, Api.V2, id_)
        for _ in range(3):
            async with stepping(database, there.account(Api.V2)) as here:
                await here.drain()
        assert there.recorder.lookups == {id_: 1}


async def test_claimed_messages_are_looked_up_again_after_a_crash_but_not_at_once(database: Database) -> None:
    async with bandwidth() as there:
        ids = await there.send(Api.V2, *[SILENT] * 3)
        await register(database, Api.V2, *ids)
        clock = Clock()
        async with stepping(database, there.account(Api.V2)) as here:
            # The process dies here.
            claim = await reconciliation.claim(
                database, here.held.lease, here.reconciler._policy, now=clock(), limit=2, seconds=300
            )
        assert [one.message_id for one in claim.messages] == sorted(ids)[:2]
        async with stepping(database, there.account(Api.V2), clock=clock) as here:
            await here.drain()
            assert there.recorder.lookups == {sorted(ids)[2]: 1}
            await drain(database)
            clock.advance(seconds=301)
            await here.drain()
        assert there.recorder.lookups == dict.fromkeys(ids, 1)


async def test_nothing_is_looked_up_while_the_processor_is_behind(database: Database) -> None:
    async with bandwidth() as there:
        [id_] = await there.send(Api.V2, SILENT)
        await register(database, Api.V2, id_)
        await append(database, callback([v2_event(id_, message={"to": [SILENT]})]))
        async with stepping(database, there.account(Api.V2)) as here:
            await here.drain()
            assert there.recorder.lookups == {}
            await drain(database)
            await here.drain()
        assert there.recorder.lookups == {}
        assert await statuses(database) == {id_: "delivered"}


# --- politeness


async def test_rate_is_kept(database: Database) -> None:
    async with bandwidth() as there:
        ids = await there.send(Api.V2, *[SILENT] * 6)
        await register(database, Api.V2, *ids)
        began = time.monotonic()
        async with stepping(database, there.account(Api.V2), per_second=10) as here:
            await here.drain()
        assert time.monotonic() - began >= 0.5
        assert there.recorder.lookups.total() == 6


async def test_retry_after_of_a_429_is_honoured_and_nobody_else_is_looked_up_meanwhile(database: Database) -> None:
    async with bandwidth() as there:
        ids = await there.send(Api.V2, *[SILENT] * 5)
        await register(database, Api.V2, *ids)
        there.recorder.answers.append(Response(status_code=429, headers={"Retry-After": "120"}))
        clock = Clock()
        with capture_logs() as logs:
            async with stepping(database, there.account(Api.V2), clock=clock) as here:
                await here.step()
                assert there.recorder.lookups.total() == 1
                clock.advance(seconds=118)
                await here.step()
                assert there.recorder.lookups.total() == 1
                assert (await reconciliation.state(database, now=clock()))[0].requests_today == 1
            # A restart does not end the pause.
            async with stepping(database, there.account(Api.V2), clock=clock) as here:
                await here.step()
                assert there.recorder.lookups.total() == 1
                clock.advance(seconds=3)
                await here.drain()
        # The message that met the 429 keeps its turn.
        assert there.recorder.lookups == {id_: 2 if number == 0 else 1 for number, id_ in enumerate(sorted(ids))}
        [paused] = [line for line in logs if line["event"] == "reconciliation is paused"]
        assert (paused["error"], paused["seconds"]) == ("status 429", 120)
        assert "reconciliation goes on" in [line["event"] for line in logs]


@pytest.mark.parametrize("what", ["500", "too slow", "HTML", "endless"])
async def test_failing_requests_are_paused_and_hold_up_no_other_message(database: Database, what: str) -> None:
    async with bandwidth() as there:
        ids = sorted(await there.send(Api.V2, *[SILENT] * 3))
        await register(database, Api.V2, *ids)
        if what == "500":
            there.recorder.broken.add(ids[0])
        elif what == "too slow":
            there.recorder.answering.clear()
        elif what == "HTML":
            there.recorder.answers.append(Response("<html>maintenance</html>"))
        else:
            there.recorder.answers.append(Response(b"x" * 1_000_000))
        clock = Clock()
        limit = {"request_seconds": 0.5} if what == "too slow" else {}
        async with stepping(database, there.account(Api.V2), clock=clock, **limit) as here:
            await here.step()
        assert there.recorder.lookups == {ids[0]: 1}
        [state] = await reconciliation.state(database, now=clock())
        assert (state.state, state.health.failures) == ("paused", 1)
        there.recorder.answering.set()
        async with stepping(database, there.account(Api.V2), clock=clock) as here:
            clock.advance(seconds=4)
            await here.step()
            assert there.recorder.lookups.total() == 1
            clock.advance(seconds=2)
            await here.drain()
            assert there.recorder.lookups == dict.fromkeys(ids, 1)
            [state] = await reconciliation.state(database, now=clock())
            assert (state.state, state.requests_today) == ("working", 3)


async def test_message_that_is_answered_403_does_not_stop_its_api(database: Database) -> None:
    async with bandwidth() as there:
        ids = await there.send(Api.V2, *[SILENT] * 3)
        bad = "../../'or 1=1--"
        there.recorder.forbidden = {bad}
        await register(database, Api.V2, bad, age=AFTER * 3)
        await register(database, Api.V2, *ids)
        clock = Clock()
        with capture_logs() as logs:
            async with stepping(database, there.account(Api.V2), clock=clock) as here:
                for _ in range(10):
                    await here.step()
                    clock.advance(seconds=10)
        assert there.recorder.lookups == {bad: 1, **dict.fromkeys(ids, 1)}
        assert [line for line in logs if line["log_level"] == "error"] == []
        assert [line["error"] for line in logs if line["event"] == "reconciliation is paused"] == ["status 403"]


async def test_403_for_two_messages_refuses_the_api_and_holds_up_no_third(database: Database) -> None:
    async with bandwidth() as there:
        ids = await there.send(Api.V2, *[SILENT] * 3)
        bad = ["a' or 1=1--", "b' or 1=1--"]
        there.recorder.forbidden = set(bad)
        await register(database, Api.V2, *bad, age=AFTER * 3)
        await register(database, Api.V2, *ids)
        clock = Clock()
        with capture_logs() as logs:
            # Shorter than the pause of a refused API: the two would be due again first.
            async with stepping(database, there.account(Api.V2), clock=clock, after=timedelta(minutes=1)) as here:
                await here.step()
                clock.advance(seconds=6)
                await here.step()
                assert there.recorder.lookups == dict.fromkeys(bad, 1)
                [state] = await reconciliation.state(database, now=clock())
                assert (state.state, state.requests_today) == ("refused", 2)
                clock.advance(minutes=59)
                await here.step()
                assert there.recorder.lookups.total() == 2
                clock.advance(minutes=2)
                await here.drain()
        assert there.recorder.lookups == dict.fromkeys([*bad, *ids], 1)
        [refused] = [line for line in logs if line["log_level"] == "error"]
        assert refused["error"] == "status 403"


async def test_wrong_credentials_stop_reconciliation_loudly(database: Database) -> None:
    async with bandwidth() as there:
        ids = await there.send(Api.V2, *[SILENT] * 3)
        await register(database, Api.V2, *ids)
        clock = Clock()
        with capture_logs() as logs:
            async with stepping(database, there.account(Api.V2, "wrong"), clock=clock) as here:
                await here.step()
                clock.advance(minutes=59)
                await here.step()
        assert there.recorder.lookups.total() == 1
        [refused] = [line for line in logs if line["log_level"] == "error"]
        assert refused["event"] == "reconciliation is refused: Bandwidth does not accept the credentials"
        assert (refused["error"], refused["setting"]) == ("status 401", "RECEIVER_RECONCILIATION__V2_CREDENTIALS")
        assert "wrong" not in str(logs)
        async with client(application(database), {"Authorization": f"Bearer {READER}"}) as reader:
            status = (await reader.get("/api/status")).json()
        [found] = status["reconciliation"]
        assert (found["api"], found["state"], found["error"]) == ("v2", "refused", "status 401")
        assert any("correct RECEIVER_RECONCILIATION__V2_CREDENTIALS" in problem for problem in status["problems"])
        # A new process tries at once: somebody has corrected the settings.
        async with stepping(database, there.account(Api.V2), clock=clock) as here:
            await here.drain()
        assert there.recorder.lookups.total() == 4
        [state] = await reconciliation.state(database, now=clock())
        assert state.state == "working"


async def test_budget_survives_restarts_and_ends_with_the_day(database: Database) -> None:
    async with bandwidth(speed=0.001) as there:
        earlier = await there.send(Api.V2, SILENT, SILENT)
        await register(database, Api.V2, *earlier)
        clock = Clock()
        start_of_day = clock().replace(hour=0, minute=0, second=1, microsecond=0)
        clock.advance(seconds=(start_of_day + timedelta(days=1) - clock()).total_seconds())
        account = there.account(Api.V2)
        with capture_logs() as logs:
            async with stepping(database, account, clock=clock, per_day=4) as here:
                await here.drain()
                assert there.recorder.lookups.total() == 2
            clock.advance(hours=8)
            new = await there.send(Api.V2, *[SILENT] * 3)
            await register(database, Api.V2, *new)
            for _ in range(3):
                async with stepping(database, account, clock=clock, per_day=4) as here:
                    await here.drain()
        # New messages get what is left of the budget.
        assert there.recorder.lookups.total() == 4
        assert there.recorder.lookups.keys() - earlier == set(sorted(new)[:2])
        [exhausted, *_] = [line for line in logs if line["event"] == "the budget of reconciliation is used up"]
        assert exhausted["requests_per_day"] == 4
        [state] = await reconciliation.state(database, now=clock())
        assert (state.state, state.requests_today) == ("exhausted", 4)
        clock.advance(hours=16)
        assert (await reconciliation.state(database, now=clock()))[0].state == "working"
        async with stepping(database, account, clock=clock, per_day=4) as here:
            await here.drain()
        assert there.recorder.lookups.total() == 8
        assert set(new) <= there.recorder.lookups.keys()


async def test_budget_is_not_given_again_when_the_clock_is_set_back_over_midnight(database: Database) -> None:
    async with bandwidth(speed=0.001) as there:
        await register(database, Api.V2, *await there.send(Api.V2, *[SILENT] * 6))
        clock = Clock()
        midnight = clock().replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        clock.ahead = midnight - now()
        async with stepping(database, there.account(Api.V2), clock=clock, per_day=2) as here:
            for minutes in (2, -5, 5, -5, 5):
                clock.advance(minutes=minutes)
                await here.drain()
                [state] = await reconciliation.state(database, now=clock())
                assert (state.state, state.requests_today) == ("exhausted", 2)
            assert there.recorder.lookups.total() == 2
            clock.advance(days=1)
            await here.drain()
        assert there.recorder.lookups.total() == 4


@pytest.mark.parametrize("restarts", [False, True])
async def test_api_is_queried_again_soon_after_the_clock_was_set_back_in_a_pause(
    database: Database, restarts: bool
) -> None:
    async with bandwidth() as there:
        await register(database, Api.V2, *await there.send(Api.V2, SILENT, SILENT))
        there.recorder.answers.append(Response(status_code=500))
        clock = Clock()
        async with stepping(database, there.account(Api.V2), clock=clock) as here:
            await here.step()
            await here.step()
            assert there.recorder.lookups.total() == 1
            clock.advance(hours=-1)
            if not restarts:
                await here.step()
        if restarts:
            async with stepping(database, there.account(Api.V2), clock=clock) as here:
                await here.step()
        assert there.recorder.lookups.total() == 2


@pytest.mark.parametrize("allowed", [LOOPBACK, ()])
async def test_api_that_cannot_be_reached_costs_no_budget_and_no_turn(database: Database, allowed: Any) -> None:
    async with bandwidth() as there:
        [id_] = await there.send(Api.V2, SILENT)
        await register(database, Api.V2, id_)
        url = there.url
        if allowed:
            there.url = f"http://127.0.0.1:{free_port()}"
        clock = Clock()
        async with stepping(database, there.account(Api.V2), clock=clock, allowed=allowed) as here:
            await here.step()
        [state] = await reconciliation.state(database, now=clock())
        assert (state.requests_today, state.health.failures) == (0, 1)
        assert state.health.error == (
            "Connection refused"
            if allowed
            else "127.0.0.1 is not a public address and in no network of egress_allow; if it is meant, add "
            'egress_allow = ["127.0.0.1/32"] to the table [reconciliation]'
        )
        there.url = url
        clock.advance(seconds=6)
        async with stepping(database, there.account(Api.V2), clock=clock) as here:
            await here.drain()
        assert there.recorder.lookups == {id_: 1}


# --- several processes


async def test_one_of_several_processes_looks_up_and_another_takes_over(database: Database, database_url: str) -> None:
    async with bandwidth(speed=0.001) as there, opened(database_url) as elsewhere:
        first = await there.send(Api.V2, *[SILENT] * 3)
        await register(database, Api.V2, *first)
        account = there.account(Api.V2)
        async with (
            reconciler(database, account, holder="a", lease_seconds=2) as here,
            reconciler(elsewhere, account, holder="b", lease_seconds=2) as other,
        ):
            await here.start()
            await other.start()
            await eventually(lambda: there.recorder.lookups.total() >= 3)
            await asyncio.sleep(0.3)
            assert there.recorder.lookups == dict.fromkeys(first, 1)
            [row] = await select(database, "SELECT lease_holder FROM reconcilers")
            stopped = here if row.lease_holder == "a" else other
            await stopped.stop()
            second = await there.send(Api.V2, *[SILENT] * 3)
            await register(database, Api.V2, *second)
            await eventually(lambda: there.recorder.lookups.total() >= 6)
        assert there.recorder.lookups == dict.fromkeys([*first, *second], 1)


async def test_holder_that_lost_its_lease_changes_nothing(database: Database) -> None:
    async with bandwidth() as there:
        ids = await there.send(Api.V2, SILENT)
        await register(database, Api.V2, *ids)
        async with stepping(database, there.account(Api.V2)) as here:
            assert await reconciliation.acquire(database, Api.V2, holder="other", seconds=60) is None
            assert await reconciliation.acquire(database, Api.V2, holder="test", seconds=60) is not None
            with pytest.raises(ReconcilerLeaseLost):
                await here.step()
        assert there.recorder.lookups == {}


async def test_holder_that_lost_its_lease_within_a_claim_makes_no_further_request(database: Database) -> None:
    async with bandwidth() as there:
        ids = await there.send(Api.V2, *[SILENT] * 10)
        await register(database, Api.V2, *ids)
        there.recorder.answering.clear()
        with capture_logs() as logs:
            async with reconciler(database, there.account(Api.V2), lease_seconds=4, poll_seconds=30) as here:
                work, seen = here._work, []

                async def noted(held: Held[Any]) -> None:
                    seen.append(held)
                    await work(held)

                here._work = noted
                await here.start()
                await eventually(lambda: there.recorder.lookups.total() == 1)
                async with database.writing() as connection:
                    await connection.exec_driver_sql(
                        "UPDATE reconcilers SET epoch = epoch + 1, lease_holder = 'other', lease_until = '2100-01-01'"
                    )
                await eventually(lambda: not seen[0].is_held)
                there.recorder.answering.set()
                await eventually(lambda: "reconciliation lease lost" in [line["event"] for line in logs])
        assert there.recorder.lookups.total() == 1
        [row] = await select(database, "SELECT lease_holder FROM reconcilers")
        assert row.lease_holder == "other"


async def test_holder_whose_lease_lapsed_within_a_claim_makes_no_further_request(database: Database) -> None:
    async with bandwidth() as there:
        ids = await there.send(Api.V2, *[SILENT] * 5)
        await register(database, Api.V2, *ids)
        async with stepping(database, there.account(Api.V2)) as here:
            there.recorder.answering.clear()
            # Without an answer of the database, the lease is not renewed.
            here.held.until = time.monotonic() + 0.5
            asyncio.get_running_loop().call_later(0.6, there.recorder.answering.set)
            with pytest.raises(ReconcilerLeaseLost):
                await here.step()
            assert there.recorder.lookups.total() <= 1
            [state] = await reconciliation.state(database, now=now())
            assert state.requests_today == there.recorder.lookups.total()


async def test_stop_waits_for_no_answer_and_keeps_the_turn_of_its_message(database: Database) -> None:
    async with bandwidth() as there:
        [id_] = await there.send(Api.V2, SILENT)
        await register(database, Api.V2, id_)
        there.recorder.answering.clear()
        async with reconciler(database, there.account(Api.V2)) as here:
            await here.start()
            await eventually(lambda: there.recorder.lookups.total() == 1)
            # Less than a request may take.
            async with asyncio.timeout(9):
                await here.stop()
        there.recorder.answering.set()
        async with stepping(database, there.account(Api.V2)) as again:
            await again.drain()
        assert there.recorder.lookups == {id_: 2}


async def test_records_of_messages_that_are_too_old_are_removed(database: Database) -> None:
    async with bandwidth(speed=0.001) as there:
        ids = await there.send(Api.V2, SILENT, SILENT)
        await register(database, Api.V2, *ids)
        async with stepping(database, there.account(Api.V2)) as here:
            await here.drain()
            assert await reconciliation.forget(database, here.held.lease, before=now() - timedelta(hours=1)) == 0
            assert await reconciliation.forget(database, here.held.lease, before=now() + timedelta(hours=1)) == 2
        assert await select(database, "SELECT 1 FROM reconciliations") == []


# --- what becomes of the answers


async def test_answer_is_published_with_its_route_and_the_required_tag_is_not_required_of_it(
    database: Database,
) -> None:
    checker = TagChecker(keys={"k": "secret"}, policy=TagPolicy.REQUIRE)
    async with bandwidth() as there:
        [id_] = await there.send(Api.V2, SILENT)
        await register(database, Api.V2, id_)
        async with stepping(database, there.account(Api.V2)) as here:
            await here.drain()
    await drain(database, checker=checker)
    async with client(application(database)) as api:
        [event] = (await api.get("/api/events")).json()
        message = (await api.get(f"/api/messages/{id_}")).json()
    data = event["data"]
    assert (event["type"], data["route"], data["status"], data["changed"]) == (
        "message.delivered",
        "reconciled",
        "delivered",
        True,
    )
    assert (data["tagVerdict"], message["status"], message["awaitingReceipt"]) == ("unchecked", "delivered", False)
    assert (message["recipients"][0]["deliveredTime"], message["tagVerdict"]) == (None, "unchecked")
    sink = memory_sink()
    async with dispatching(database, sink):
        await eventually(lambda: memory(sink).published)
    assert [one.event["data"]["route"] for one in memory(sink).published] == ["reconciled"]
    # It does not show that Bandwidth reaches the callback URLs.
    assert (await processor.state(database)).last_callbacks == {}


@pytest.mark.parametrize("is_late", [False, True])
async def test_answer_and_late_callback_merge_in_both_orders(database: Database, is_late: bool) -> None:
    async with bandwidth() as there:
        [id_] = await there.send(Api.V2, SILENT)
        await register(database, Api.V2, id_)
        async with stepping(database, there.account(Api.V2)) as here:
            await here.drain()
    message = {"to": [SILENT], "tag": "order 4711"}
    late = callback([v2_event(id_, message=message)], received=9)
    if is_late:
        await drain(database)
        await append(database, late)
        await drain(database)
    else:
        rows = await select(database, "SELECT id FROM callbacks WHERE route = 'reconciled'")
        [kept] = [
            line
            async for part in exported(database, CallbackQuery())
            for line in part.splitlines()
            if rows[0].id.encode() in line
        ]
        await journal.remove(database, [rows[0].id])
        await append(database, late)
        await drain(database)
        writer = journal.journal_writer(database)
        try:
            await import_lines(writer, [kept], Importing(clock=now, sleep=_at_once))
        finally:
            await writer.close()
        await drain(database)
    [row] = await select(
        database, "SELECT status, tag, delivered_at IS NOT NULL FROM message_status WHERE recipient = '" + SILENT + "'"
    )
    assert (row[0], row[1], bool(row[2])) == ("delivered", "order 4711", True)
    assert len(await select(database, f"SELECT 1 FROM events WHERE message_id = '{id_}'")) == 3
    assert (await Rebuild(database, FinalConflict.FAILED_WINS).run()).differing == 0


async def test_answer_is_reprocessed_exported_and_imported(database: Database, tmp_path: Path) -> None:
    async with bandwidth() as there:
        ids = await there.send(Api.V1, SILENT)
        await register(database, Api.V1, *ids)
        async with stepping(database, there.account(Api.V1)) as here:
            await here.drain()
    await drain(database)
    before = await statuses(database)
    [entry] = await select(database, "SELECT id FROM callbacks WHERE route = 'reconciled'")
    how = Reprocessing(database=database, checker=TagChecker(), conflict=FinalConflict.FAILED_WINS, clock=now)
    done = await how.ids([entry.id])
    assert (done.callbacks, done.events, done.quarantined) == (1, 0, 0)
    lines = [line async for part in exported(database, CallbackQuery()) for line in part.splitlines()]
    elsewhere = Database(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    await schema.migrate(elsewhere)
    writer = journal.journal_writer(elsewhere)
    try:
        assert (await import_lines(writer, lines, Importing(clock=now, sleep=_at_once))).callbacks == 2
        await drain(elsewhere)
        assert await statuses(elsewhere) == before == {ids[0]: "delivered"}
    finally:
        await writer.close()
        await elsewhere.close()


async def _at_once(_: float) -> None:
    await asyncio.sleep(0)
