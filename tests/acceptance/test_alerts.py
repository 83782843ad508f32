"""Alerts as users see them: the API, the commands, the line of the status, and what a consumer of events gets."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from httpx2 import AsyncClient

from receiver.cli import reference
from receiver.domain.alerts import CLEAR_FOR, Condition, RuleType, Severity
from receiver.storage.database import Database
from tests import event_schema
from tests.dispatching import append, life
from tests.evaluating import BASE_URL, Rounds, finding, make_rule
from tests.factories import at
from tests.processes import receiver
from tests.web import ADMIN, READER, application, client

pytestmark = pytest.mark.anyio

CLEARED = CLEAR_FOR.total_seconds()


@pytest.fixture
async def rounds(database: Database) -> Rounds:
    """Two carriers are blocked, then one of them no more; and receipts have stopped, which is critical."""
    rounds = Rounds(
        database,
        make_rule(),
        make_rule("silence", type=RuleType.RECEIPTS_STOPPED, severity=Severity.CRITICAL, by=None),
    )
    breached = [finding(Condition.BREACHED, "AT&T"), finding(Condition.BREACHED, "T-Mobile")]
    await append(database, life("m1"))
    await rounds.round(0, breached[0])
    await rounds.round(30, *breached)
    await rounds.round(60, finding(Condition.BREACHED, None), rule="silence")
    await rounds.round(90, finding(Condition.CLEAR, "AT&T"), breached[1])
    await rounds.round(90 + CLEARED)
    return rounds


@pytest.fixture
async def api(rounds: Rounds) -> AsyncIterator[AsyncClient]:
    app = application(rounds.database, clock=lambda: at(1000), base_url=BASE_URL)
    async with client(app) as opened:
        yield opened


async def get(api: AsyncClient, path: str, code: int = 200, **parameters: Any) -> Any:
    answer = await api.get(path, params=parameters)
    assert answer.status_code == code, answer.text
    return answer.json()


async def post(api: AsyncClient, path: str, body: Any = None, code: int = 200) -> Any:
    answer = await api.post(path, json=body)
    assert answer.status_code == code, answer.text
    return answer.json()


async def test_alerts_are_listed_newest_first(api: AsyncClient) -> None:
    listed = await get(api, "/api/alerts")
    assert [(one["name"], one["group"], one["status"]) for one in listed] == [
        ("silence", None, "firing"),
        ("blocks", "T-Mobile", "firing"),
        ("blocks", "AT&T", "resolved"),
    ]
    assert listed[2] == await get(api, f"/api/alerts/{listed[2]['id']}")
    assert set(listed[0]) == {
        *("id", "rule", "name", "severity", "status", "group", "summary", "evidence", "messages", "link", "runbook"),
        *("firedTime", "updatedTime", "resolvedTime", "acknowledgedTime", "mutedUntil"),
    }
    assert listed[0]["link"] == f"{BASE_URL}/alerts/{listed[0]['id']}"
    assert listed[0]["runbook"] == f"{BASE_URL}/docs/alerts#receipts-stopped"


async def test_list_of_alerts_is_filtered_and_paged_by_link(api: AsyncClient) -> None:
    assert [one["group"] for one in await get(api, "/api/alerts", status="resolved")] == ["AT&T"]
    assert [one["name"] for one in await get(api, "/api/alerts", severity="critical")] == ["silence"]
    assert [one["name"] for one in await get(api, "/api/alerts", rule="receipts-stopped")] == ["silence"]
    assert [one["group"] for one in await get(api, "/api/alerts", group="T-Mobile")] == ["T-Mobile"]
    assert len(await get(api, "/api/alerts", toDateTime="2026-01-01 00:01")) == 2
    found, url = [], "/api/alerts?size=1"
    while url:
        answer = await api.get(url)
        found += answer.json()
        url = answer.links.get("next", {}).get("url", "")
    assert found == await get(api, "/api/alerts")
    for wrong in ({"status": "pending"}, {"rule": "no-rule"}, {"cursor": "x"}, {"when": "now"}):
        assert (await get(api, "/api/alerts", 400, **wrong))["errors"][0]["parameter"] == next(iter(wrong))


async def test_alert_is_acknowledged(api: AsyncClient) -> None:
    silence, _, resolved = await get(api, "/api/alerts")
    answer = await post(api, f"/api/alerts/{silence['id']}/acknowledge")
    assert answer == {**silence, "acknowledgedTime": "2026-01-01T00:16:40Z"}
    problem = await post(api, f"/api/alerts/{resolved['id']}/acknowledge", code=409)
    assert "only an alert that fires can be acknowledged" in problem["detail"]
    await post(api, "/api/alerts/nothing/acknowledge", code=404)


async def test_alert_is_muted_and_unmuted(api: AsyncClient) -> None:
    silence = (await get(api, "/api/alerts"))[0]
    path = f"/api/alerts/{silence['id']}/mute"
    assert (await post(api, path, {"for": "2h"}))["mutedUntil"] == "2026-01-01T02:16:40Z"
    assert (await post(api, path, {"until": "2026-02-01T00:00:00Z"}))["mutedUntil"] == "2026-02-01T00:00:00Z"
    assert (await post(api, path, {"until": None})) == silence
    for body, parameter in (
        ({}, "body"),
        ({"until": None, "for": "2h"}, "body"),
        ({"until": "2026-01-01T00:00:00Z"}, "until"),
        ({"until": "soon"}, "until"),
        ({"for": "0h"}, "for"),
        ({"for": "two hours"}, "for"),
        ({"forever": True}, "forever"),
    ):
        assert (await post(api, path, body, 400))["errors"][0]["parameter"] == parameter
    await post(api, "/api/alerts/nothing/mute", {"for": "2h"}, 404)


async def test_token_that_may_only_read_sees_alerts_and_decides_nothing(rounds: Rounds) -> None:
    async with client(application(rounds.database), headers={"Authorization": f"Bearer {READER}"}) as api:
        listed = await get(api, "/api/alerts")
        path = f"/api/alerts/{listed[0]['id']}"
        await get(api, path)
        await post(api, f"{path}/acknowledge", code=403)
        await post(api, f"{path}/mute", {"for": "2h"}, 403)


async def test_status_counts_firing_alerts_and_calls_them_no_problem(api: AsyncClient) -> None:
    found = await get(api, "/api/status")
    # At the end of the round.
    assert at(390) <= datetime.fromisoformat(found["alerts"].pop("evaluatedTime")) < at(450)
    assert found["alerts"] == {
        "firing": {"critical": 1, "warning": 1, "info": 0},
        "failingSince": None,
        "error": None,
    }
    assert not [problem for problem in found["problems"] if "lert" in problem]


async def test_status_says_that_alerts_are_not_evaluated(rounds: Rounds) -> None:
    rounds.watch.found["blocks"] = ValueError("no such carrier")
    await rounds.round(120 + CLEARED)
    async with client(application(rounds.database, clock=lambda: at(500))) as api:
        problems = (await get(api, "/api/status"))["problems"]
        since = "2026-01-01T00:07:00Z"
        assert f"Alerts cannot be evaluated since {since}: rule blocks: ValueError: no such carrier." in problems
    await rounds.round(150 + CLEARED, finding(Condition.CLEAR))
    async with client(application(rounds.database, clock=lambda: at(0) + timedelta(hours=1))) as api:
        problems = (await get(api, "/api/status"))["problems"]
        [problem] = [problem for problem in problems if problem.startswith("Alerts were")]
        assert re.fullmatch(
            r"Alerts were last evaluated at 2026-01-01T00:0[78]:\d\dZ: no worker evaluates them\.", problem
        )


async def test_events_of_alerts_are_pulled_by_those_who_name_their_types(api: AsyncClient) -> None:
    ordinary = await get(api, "/api/events")
    assert {event["type"].partition(".")[0] for event in ordinary} == {"message"}
    answer = await api.get("/api/events", params={"type": "alert.fired,alert.resolved", "limit": "3"})
    pulled = answer.json()
    assert [event["type"] for event in pulled] == ["alert.fired", "alert.fired", "alert.fired"]
    following = await api.get(answer.links["next"]["url"])
    [resolved] = following.json()
    assert resolved["type"] == "alert.resolved"
    for event in (*pulled, resolved):
        event_schema.check(event)
    # At the end of the log the link stays where it is.
    end = await api.get(following.links["next"]["url"])
    assert (end.json(), end.links["next"]["url"]) == ([], following.links["next"]["url"])
    assert (await get(api, "/api/events", 400, type="alert.firing"))["errors"][0]["parameter"] == "type"


async def test_schema_of_an_alert_is_served_without_a_token(api: AsyncClient) -> None:
    answer = await api.get("/schemas/alert/1", headers={"Authorization": ""})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/schema+json"
    assert answer.json() == json.loads((reference.SCHEMA_FOLDER / "alert-1.json").read_text("utf-8"))


async def test_commands_list_show_acknowledge_and_mute_alerts(
    rounds: Rounds, database_url: str, tmp_path: Path
) -> None:
    async def run(*arguments: str, code: int = 0) -> str:
        done = await asyncio.to_thread(
            receiver, tmp_path, "alerts", *arguments, DATABASE_URL=database_url, PUBLIC_URL=BASE_URL
        )
        assert done.returncode == code, done.stderr.decode()
        return (done.stderr if code else done.stdout).decode()

    listed = (await run("list", "--status", "firing")).splitlines()
    assert listed[0].split() == ["ID", "FIRED", "STATUS", "SEVERITY", "RULE", "GROUP", "SUMMARY"]
    assert [line.split()[4] for line in listed[1:]] == ["silence", "blocks"]
    alert_id = listed[2].split()[0]
    shown = await run("show", alert_id)
    for words in ("31% failed.", "T-Mobile", "0.31, threshold 0.2", "m1, m2", f"{BASE_URL}/docs/alerts#failure-rate"):
        assert words in shown
    assert "acknowledged  20" in await run("acknowledge", alert_id)
    muted = json.loads(await run("mute", alert_id, "--for", "2h", "--json"))
    assert muted["mutedUntil"] is not None
    assert "firing, acknowledged, muted until" in await run("list", "--group", "T-Mobile")
    assert json.loads(await run("mute", alert_id, "--off", "--json"))["mutedUntil"] is None
    assert "there is no alert with this id" in await run("show", "nothing", code=1)
    assert "give one of --for, --until and --off" in await run("mute", alert_id, code=2)
    assert "must be a duration" in await run("mute", alert_id, "--for", "long", code=2)
    assert "must be a time that is to come" in await run("mute", alert_id, "--until", "2020-01-01", code=2)


async def test_status_command_has_a_line_for_alerts(rounds: Rounds, database_url: str, tmp_path: Path) -> None:
    done = await asyncio.to_thread(receiver, tmp_path, "status", DATABASE_URL=database_url)
    assert "1 critical, 1 warning firing" in done.stdout.decode()


async def test_tail_prints_alerts_where_their_types_are_named(
    rounds: Rounds, database_url: str, tmp_path: Path
) -> None:
    arguments = ("events", "tail", "--after", "0", "--type", "alert.fired,message.delivered", "--count", "4")
    done = await asyncio.to_thread(receiver, tmp_path, *arguments, DATABASE_URL=database_url)
    lines = done.stdout.decode().splitlines()
    assert [line.split()[1] for line in lines] == ["message.delivered", "alert.fired", "alert.fired", "alert.fired"]
    assert "critical" in lines[3]
    assert "31% failed." in lines[3]


# --- the pages ---


@pytest.fixture
async def pages(rounds: Rounds) -> AsyncIterator[AsyncClient]:
    app = application(rounds.database, clock=lambda: at(1000), base_url=BASE_URL)
    async with client(app, {"accept": "text/html"}) as opened:
        await opened.post("/login", data={"token": ADMIN})
        yield opened


async def test_the_page_shows_alerts_that_fire_and_earlier_ones(pages: AsyncClient) -> None:
    firing = await pages.get("/alerts")
    assert len(set(re.findall(r'href="\./alerts/([\w-]+)"', firing.text))) == 2
    assert "blocks: T-Mobile" in firing.text
    assert "AT&amp;T" not in firing.text
    every = await pages.get("/alerts?status=any&severity=any&rule=any")
    assert "blocks: AT&amp;T" in every.text
    assert "Alerts fire" in (await pages.get("/")).text
    assert (await pages.get("/alerts?status=maybe")).status_code == 400


async def test_an_alert_is_acknowledged_and_muted_on_its_page(pages: AsyncClient) -> None:
    listed = await pages.get("/alerts?rule=failure-rate&status=firing")
    [path] = set(re.findall(r'href="\.(/alerts/[\w-]+)"', listed.text))
    page = await pages.get(path)
    assert 'href="../docs/alerts#failure-rate"' in page.text
    assert re.findall(r'href="\.\./messages/([^"]+)"', page.text)
    [csrf, *_] = re.findall(r'name="csrf" value="([0-9a-f]+)"', page.text)

    assert "31 %" in page.text
    assert 'value="resolve"' not in page.text

    async def press(action: str, code: int = 200, **more: str) -> str:
        answer = await pages.post(path, data={"csrf": csrf, "action": action, **more})
        assert answer.status_code == code
        return answer.text

    assert 'value="acknowledge"' not in await press("acknowledge")
    muted = await press("mute", **{"for": "8h"})
    assert f'Muted until</dt><dd><time datetime="{(at(1000) + timedelta(hours=8)).isoformat()[:19]}' in muted
    assert 'value="unmute"' in muted
    assert "Muted until" not in await press("unmute")
    assert "has no such button" in await press("mute", 400, **{"for": "a while"})
    assert "a rule decides about this one" in await press("resolve", 409)


async def test_a_read_token_decides_nothing_about_alerts(rounds: Rounds) -> None:
    app = application(rounds.database, clock=lambda: at(1000), base_url=BASE_URL)
    async with client(app, {"accept": "text/html"}) as visitor:
        await visitor.post("/login", data={"token": READER})
        [path, *_] = set(re.findall(r'href="\.(/alerts/[\w-]+)"', (await visitor.get("/alerts")).text))
        page = await visitor.get(path)
        assert 'name="action"' not in page.text
        [csrf, *_] = re.findall(r'name="csrf" value="([0-9a-f]+)"', page.text)
        for action in ("acknowledge", "mute", "unmute", "resolve"):
            assert (await visitor.post(path, data={"csrf": csrf, "action": action, "for": "1h"})).status_code == 403
