"""`POST /api/alerts/alertmanager` and `/api/alerts/test`, on both databases."""

import asyncio
import json
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from httpx2 import AsyncClient
from sqlalchemy import select

from receiver.alerts import external
from receiver.alerts.alertmanager import MAX_ALERTS
from receiver.alerts.targets import Targets
from receiver.domain.alerts import RuleType
from receiver.models.alerts import ALERTS
from receiver.models.events import EVENTS
from receiver.storage import alerts, notifications
from receiver.storage.database import Database
from tests.alerting import configured, fire, hook_server, make_rule, rows, targets
from tests.factories import EPOCH
from tests.unit.test_alertmanager import POSTED
from tests.web import READER, application, client

pytestmark = pytest.mark.anyio

PATH = "/api/alerts/alertmanager"


HOOK = "json://127.0.0.1/hook"


def for_external(*to: str) -> Targets:
    """The targets of a rule for the alerts of other programs."""
    return configured([make_rule(*to, type=RuleType.EXTERNAL, name="external")], sinks=["ops"])


def api(database: Database, found: Targets | None = None, **options: Any) -> AbstractAsyncContextManager[AsyncClient]:
    return client(application(database, targets=found or targets()), **options)


def posted(**alert: Any) -> dict[str, Any]:
    return {**POSTED, "alerts": [{**POSTED["alerts"][0], **alert}]}


async def stored(database: Database) -> list[Any]:
    async with database.reading() as connection:
        return list((await connection.execute(select(ALERTS))).all())


async def events(database: Database) -> list[str]:
    async with database.reading() as connection:
        found = await connection.execute(select(EVENTS.c.status).where(EVENTS.c.api == "alert").order_by(EVENTS.c.id))
        return sorted(found.scalars())


async def test_posted_alert_fires_and_is_resolved_as_one_of_ours(database: Database) -> None:
    async with api(database, for_external("ops", HOOK)) as http:
        answer = await http.post(PATH, json=posted())
        assert (answer.status_code, answer.json()) == (200, {"alerts": 1})
        [row] = await stored(database)
        assert (row.rule, row.name, row.status, row.severity) == ("external", "ProbeFailure", "firing", "critical")
        assert await events(database) == ["fired"]
        assert [(one.transition, one.state) for one in await rows(database)] == [("fired", "due")]
        shown = (await http.get(f"/api/alerts/{row.id}")).json()
        assert shown["summary"] == "BlackBox Probe Failure: https://server.example.org"
        # Alertmanager repeats what it posts, and two of them post the same.
        assert (await http.post(PATH, json=posted())).json() == {"alerts": 0}
        assert (await http.post(PATH, json=posted(status="resolved"))).json() == {"alerts": 1}
        assert (await http.post(PATH, json=posted(status="resolved"))).json() == {"alerts": 0}
    [row] = await stored(database)
    assert (row.status, row.resolved_at is not None) == ("resolved", True)
    assert await events(database) == ["fired", "resolved"]
    assert [one.transition for one in await rows(database)] == ["fired", "resolved"]


async def test_notifications_of_an_alert_are_listed(database: Database) -> None:
    found = for_external("json://127.0.0.1/CANARY")
    async with api(database, found) as http:
        await http.post(PATH, json=posted())
        [row] = await stored(database)
        [due] = await notifications.due(
            database, now=datetime.now(UTC), limit=10, known=found.targets, unknown_before=EPOCH
        )
        later = datetime.now(UTC) + timedelta(minutes=1)
        await notifications.begin(database, due, again_at=later)
        await notifications.failed(database, due, "status 500", due_at=later)
        [shown] = (await http.get(f"/api/alerts/{row.id}/notifications")).json()
        assert (await http.get("/api/alerts/nothing/notifications")).status_code == 404
    assert shown["target"].startswith("json://*** (")
    assert (shown["transition"], shown["state"], shown["attempts"], shown["error"]) == ("fired", "due", 1, "status 500")
    assert shown["nextTime"] is not None
    assert shown["sentTime"] is None


async def test_alert_of_another_program_is_resolved_by_hand(database: Database) -> None:
    found = for_external(HOOK)
    async with api(database, found) as http:
        await http.post(PATH, json=posted())
        [row] = await stored(database)
        answer = await http.post(f"/api/alerts/{row.id}/resolve")
        assert (answer.status_code, answer.json()["status"]) == (200, "resolved")
        assert answer.json()["resolvedTime"] is not None
        again = await http.post(f"/api/alerts/{row.id}/resolve")
        assert (again.status_code, again.json()["detail"]) == (409, "The alert is resolved already.")
        # It stays so, though the other program goes on to post it.
        assert (await http.post(PATH, json=posted())).json() == {"alerts": 0}
        assert (await http.post("/api/alerts/nothing/resolve")).status_code == 404
        ours = await fire(database, found, id="ours")
        refused = await http.post(f"/api/alerts/{ours.id}/resolve")
        assert (refused.status_code, refused.json()["detail"]) == (
            409,
            "Only alerts of other programs are resolved by hand; a rule decides about this one.",
        )
        http.headers["Authorization"] = f"Bearer {READER}"
        assert (await http.post(f"/api/alerts/{row.id}/resolve")).status_code == 403
    assert await events(database) == ["fired", "fired", "resolved"]
    assert [one.transition for one in await rows(database) if one.alert_id == row.id] == ["fired", "resolved"]


async def test_open_alerts_of_other_programs_are_limited(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "MAX_OPEN", 2)
    [one] = POSTED["alerts"]
    first, second, third, fourth = (
        {**one, "fingerprint": name, "labels": {"alertname": name}} for name in ("first", "second", "third", "fourth")
    )
    async with api(database) as http:
        assert (await http.post(PATH, json={**POSTED, "alerts": [first, second]})).json() == {"alerts": 2}
        # What is open already may be posted again, and be resolved.
        refused = await http.post(PATH, json={**POSTED, "alerts": [{**first, "status": "resolved"}, third]})
        assert refused.status_code == 409
        assert refused.json()["detail"].startswith("1 new alerts were not taken: 2 alerts of other programs are open")
        assert (await http.post(PATH, json={**POSTED, "alerts": [second, third]})).json() == {"alerts": 1}
        assert (await http.post(PATH, json={**POSTED, "alerts": [fourth]})).status_code == 409
    assert {(row.name, row.status) for row in await stored(database)} == {
        ("first", "resolved"),
        ("second", "firing"),
        ("third", "firing"),
    }


async def test_posts_at_the_same_time_fire_an_alert_once(database: Database) -> None:
    async with api(database) as http:
        answers = await asyncio.gather(*(http.post(PATH, json=posted()) for _ in range(8)))
    assert sorted(answer.json()["alerts"] for answer in answers) == [0] * 7 + [1]
    assert await events(database) == ["fired"]


async def test_alert_named_twice_in_one_post_fires_once_and_the_others_are_taken(database: Database) -> None:
    [one] = POSTED["alerts"]
    other = {**one, "labels": {"alertname": "other"}, "fingerprint": "feed"}
    again = {**one, "annotations": {"summary": "worse"}}
    over = {**one, "startsAt": "2023-02-07T00:00:00Z"}
    post = {**POSTED, "alerts": [other, one, again, over, {**over, "status": "resolved"}]}
    async with client(application(database, targets=targets())) as http:
        answer = await http.post(PATH, json=post)
        assert (answer.status_code, answer.json()) == (200, {"alerts": 2})
        # An alert that fires, and is resolved twice.
        resolved = [{**one, "status": status} for status in ("firing", "resolved", "resolved")]
        assert (await http.post(PATH, json={**POSTED, "alerts": resolved})).json() == {"alerts": 1}
    assert {(row.name, row.status) for row in await stored(database)} == {
        ("other", "firing"),
        ("ProbeFailure", "resolved"),
    }
    assert await events(database) == ["fired", "fired", "resolved"]


async def test_muted_name_and_group_of_another_program_is_announced_to_nobody(database: Database) -> None:
    async with api(database, for_external(HOOK)) as http:
        await http.post(PATH, json=posted())
        [row] = await stored(database)
        await alerts.mute(database, row.id, datetime.now(UTC) + timedelta(hours=1))
        await http.post(PATH, json=posted(status="resolved"))
        assert (await http.post(PATH, json=posted(startsAt="2023-02-07T00:00:00Z"))).json() == {"alerts": 0}
    assert {row.status for row in await stored(database)} == {"resolved", "firing"}
    assert await events(database) == ["fired", "resolved"]


async def test_post_needs_an_admin(database: Database) -> None:
    async with api(database, headers={"Authorization": f"Bearer {READER}"}) as http:
        assert (await http.post(PATH, json=posted())).status_code == 403
        assert (await http.post("/api/alerts/test")).status_code == 403
    async with api(database, headers={}) as http:
        assert (await http.post(PATH, json=posted())).status_code == 401


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({**POSTED, "version": "3"}, 400, "version: Input should be '4'"),
        (posted(labels={"alertname": 1}), 400, "alerts.0.labels.alertname: Input should be a valid string"),
        (posted(startsAt="9999-12-31T23:59:59-12:00"), 400, "alerts.0.startsAt: must not be after the year 9999"),
        (posted(startsAt="yesterday"), 400, "alerts.0.startsAt: Input should be a valid datetime"),
        ({**POSTED, "alerts": POSTED["alerts"] * (MAX_ALERTS + 1)}, 400, "alerts: List should have at most 500 items"),
        ("nothing", 400, "body: Input should be an object"),
        ({**POSTED, "receiver": "x" * 1_100_000}, 413, ""),
    ],
)
async def test_wrong_post_is_a_named_problem(database: Database, body: Any, status: int, detail: str) -> None:
    async with api(database) as http:
        answer = await http.post(PATH, json=body)
        assert answer.status_code == status
        assert answer.json().get("detail", "").startswith(detail)
    assert await stored(database) == []


async def test_hostile_texts_are_stored_and_shown_as_texts(database: Database) -> None:
    hostile = json.dumps(posted(labels={"alertname": "\x00<b>", "x": "\ud800"}, annotations={"summary": "\x00'--"}))
    async with api(database) as http:
        answer = await http.post(PATH, content=hostile, headers={"content-type": "application/json"})
        # A lone surrogate is not JSON; the same without it is stored.
        assert answer.status_code == 400
        kept = posted(labels={"alertname": "\x00<b>"}, annotations={"summary": "\x00'--"})
        assert (await http.post(PATH, json=kept)).json() == {"alerts": 1}
        [shown] = (await http.get("/api/alerts")).json()
    assert (shown["name"], shown["summary"]) == ("\ufffd<b>", "\ufffd'--")


async def test_test_alert_is_sent_to_every_target_and_each_is_reported(database: Database) -> None:
    key = "0123456789abcdef"
    with hook_server() as good, hook_server(status=500) as bad:
        rules = [
            make_rule(f"json://{good.address}/", f"pagerduty://{key}?url=http://{good.address}", name="one"),
            make_rule(f"alertmanager+http://{bad.address}/", name="two"),
        ]
        async with api(database, configured(rules)) as http:
            found = (await http.post("/api/alerts/test")).json()
            assert [(one["ok"], one["error"]) for one in found] == [
                (True, None),
                (True, None),
                (False, "status 500"),
            ]
            only = (await http.post("/api/alerts/test", params={"rule": "two"})).json()
            assert [one["target"][:24] for one in only] == ["alertmanager+http://*** "]
            assert (await http.post("/api/alerts/test", params={"rule": "tow"})).status_code == 404
        incidents = [one.json for one in good.posted if one.path == "/v2/enqueue"]
        assert [one["event_action"] for one in incidents] == ["trigger", "resolve"]
        assert len({one["dedup_key"] for one in incidents}) == 1
        assert len(good.posted) == 3
    assert await stored(database) == []
