"""Sinks operated over the API, by the commands and on the pages, also while a server works for them."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from httpx2 import AsyncClient

from receiver.api import dead_letters as web_dead_letters
from receiver.dispatch.publish import publication
from receiver.domain.events import Status
from receiver.domain.publication import DeadLettered, DeadLetterReason, Outcome, Parked, PendingPublication, RetryAt
from receiver.domain.window import Attempt, Decided, Settlement
from receiver.sinks import registry
from receiver.sinks.memory import MemorySink
from receiver.storage import dead_letters, replays, sinks
from receiver.storage.database import Database
from receiver.storage.retries import settle
from receiver.storage.sinks import Health
from tests.dispatching import append, life
from tests.factories import at, v2_event
from tests.processes import PATIENT, Server, receiver, serving, until, whole_lines
from tests.rows import insert, message
from tests.web import ADMIN, READER, application, client

pytestmark = pytest.mark.anyio

HOLDS = DeadLettered(
    cause=DeadLetterReason.REFUSED, reason="status 422", holds=True, response_code=422, response="no such contact"
)


class BrokenSink(MemorySink):
    """A sink that cannot start."""

    async def start(self) -> None:
        raise ConnectionError("secret-of-the-client")

    async def check(self) -> str | None:
        return "connection refused"


class SpeechlessSink(BrokenSink):
    async def check(self) -> str | None:
        raise RuntimeError("secret-of-the-client")


class WorriedSink(MemorySink):
    async def check(self) -> str | None:
        raise RuntimeError("secret-of-the-client")


class LeakingSink(MemorySink):
    """A sink that records whether it was stopped."""

    open = 0

    async def start(self) -> None:
        LeakingSink.open += 1

    async def stop(self) -> None:
        LeakingSink.open -= 1


class HangingSink(MemorySink):
    async def check(self) -> str | None:
        await asyncio.Event().wait()
        return None

    async def stop(self) -> None:
        await asyncio.Event().wait()


SINKS: dict[str, dict[str, Any]] = {
    "crm": {"name": "crm", "type": "memory"},
    "broken": {"name": "broken", "type": f"{__name__}:BrokenSink"},
    "speechless": {"name": "speechless", "type": f"{__name__}:SpeechlessSink"},
    "worried": {"name": "worried", "type": f"{__name__}:WorriedSink"},
    "leaking": {"name": "leaking", "type": f"{__name__}:LeakingSink"},
    "forgetful": {"name": "forgetful", "type": "webhook", "url": "env:NO_SUCH_VARIABLE"},
}


@pytest.fixture
async def stocked(database: Database) -> Database:
    """A sink with two messages: of the first, its first event holds two others; of the second, one is a retry."""
    entries = await append(database, [*life("a", tuple(Status)[1:4]), *life("b", tuple(Status)[1:4])])
    candidates = [PendingPublication(publication=publication(entry)) for entry in entries]
    again = RetryAt(due_at=at(10**9), reason="status 503")
    decisions = (HOLDS, Parked(), Parked(), again, Parked())
    failed = Attempt(
        position=entries[0].position,
        event_id=entries[0].event.id,
        started_at=at(1),
        ended_at=at(1.5),
        outcome=Outcome.REFUSED,
        decision="dead",
        reason="status 422",
        response_code=422,
        response="no such contact",
    )
    settlement = Settlement(
        cursor=entries[4].position,
        firsts=tuple(Decided(*pair) for pair in zip(candidates, decisions, strict=False)),
        attempts=(failed,),
    )
    await sinks.register(database, "crm", start="beginning", fingerprint="f")
    lease = await sinks.acquire_lease(database, "crm", holder="nobody", fingerprint="f", seconds=60)
    assert lease is not None
    await settle(database, lease, settlement, Health(failures=1, last_error="status 503"), now=at(2))
    return database


@pytest.fixture
async def api(stocked: Database) -> AsyncIterator[AsyncClient]:
    async with client(application(stocked, sinks=SINKS, clock=lambda: at(100))) as opened:
        yield opened


async def post(api: AsyncClient, path: str, body: Any = None, status: int = 200, **parameters: Any) -> Any:
    answer = await api.post(path, json=body, params=parameters)
    assert answer.status_code == status, answer.text
    return answer.json()


async def get(api: AsyncClient, path: str, **parameters: Any) -> Any:
    answer = await api.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


# --- over the API


async def test_a_sink_is_shown(api: AsyncClient) -> None:
    shown = await get(api, "/api/sinks/crm")
    assert shown.pop("leaseUntil") > "2026"
    assert shown == {
        "name": "crm",
        "type": "memory",
        "configured": True,
        "state": "working",
        "paused": False,
        "cursor": 5,
        "lag": 1,
        "oldestTime": "2026-01-01T00:00:00Z",
        "oldestSeconds": 100.0,
        "retries": {"held": 1, "due": 1, "parked": 3},
        "deadLetters": {"refused": 1},
        "failures": 1,
        "downSince": None,
        "lastSuccessTime": None,
        "lastError": "status 503",
        "replay": None,
    }
    assert [one["name"] for one in await get(api, "/api/sinks")] == ["crm"]


async def test_sinks_come_in_pages(api: AsyncClient, stocked: Database) -> None:
    for name in ("bus", "lake"):
        await sinks.register(stocked, name, start="end", fingerprint="f")
    answer = await api.get("/api/sinks", params={"size": 2})
    assert [(one["name"], one["configured"], one["state"]) for one in answer.json()] == [
        ("bus", False, "removed"),
        ("crm", True, "working"),
    ]
    assert [one["name"] for one in (await api.get(answer.links["next"]["url"])).json()] == ["lake"]


async def test_a_sink_is_paused_and_resumed(api: AsyncClient) -> None:
    paused = await post(api, "/api/sinks/crm/pause")
    assert (paused["paused"], paused["state"]) == (True, "paused")
    assert (await post(api, "/api/sinks/crm/resume"))["state"] == "working"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("crm", None),
        ("broken", "connection refused"),
        ("speechless", "did not start: ConnectionError"),
        ("worried", "check failed: RuntimeError"),
        ("forgetful", "RECEIVER_SINKS: forgetful: url: there is no environment variable NO_SUCH_VARIABLE"),
    ],
)
async def test_sink_test_reveals_no_secret(api: AsyncClient, name: str, error: str | None) -> None:
    tried = await post(api, f"/api/sinks/{name}/test")
    assert (tried["ok"], tried["error"]) == (error is None, error)
    assert tried["seconds"] >= 0


async def test_sink_test_stops_the_sink(api: AsyncClient) -> None:
    assert (await post(api, "/api/sinks/leaking/test"))["ok"]
    assert LeakingSink.open == 0


async def test_sink_test_has_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_STOP_SECONDS", 0.05)
    tried = await registry.probe_sink({"name": "hanging", "type": f"{__name__}:HangingSink"}, seconds=0.05)
    assert (tried.ok, tried.error) == (False, "timeout")


@pytest.mark.parametrize("since", ["beginning", "2026-01-01T00:00:00Z", "2026-01-01 00:00:00", "2025"])
async def test_replay_dry_run_and_start(api: AsyncClient, since: str) -> None:
    expected = {
        "sink": "crm",
        "events": 5,
        "atLeast": False,
        "afterPosition": 0,
        "toPosition": 5,
        "firstTime": "2026-01-01T00:00:00Z",
    }
    dry_run = await post(api, "/api/sinks/crm/replay", {"from": since}, dryRun="true")
    assert dry_run == {"id": None, "dryRun": True, **expected}
    assert await get(api, "/api/sinks/crm/replays") == []
    begun = await post(api, "/api/sinks/crm/replay", {"from": since})
    assert begun.pop("id") >= 1
    assert begun == {"dryRun": False, **expected}


@pytest.mark.parametrize(
    ("fields", "events", "of_a", "of_four"),
    [
        ({"events": ["message.sending"]}, 2, 1, 1),
        ({"direction": "in"}, 0, 0, 0),
        ({"number_prefixes": ["1555"]}, 5, 3, 4),
        ({"events": ["alert.fired"]}, 0, 0, 0),
    ],
)
async def test_replay_counts_what_the_filter_of_the_sink_accepts(
    stocked: Database, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], events: int, of_a: int, of_four: int
) -> None:
    configured = {"crm": {**SINKS["crm"], **fields}}
    body = {"from": "beginning"}
    app = application(stocked, sinks=configured, clock=lambda: at(100))
    async with client(app, {}) as pages:
        await pages.post("/login", data={"token": ADMIN})
        assert f">{events} events" in await press(pages, "/sinks/crm", action="count", **body)
    async with client(app) as api:
        found = await post(api, "/api/sinks/crm/replay", body, dryRun="true")
        assert (found["events"], found["atLeast"]) == (events, False)
        found = await post(api, "/api/sinks/crm/replay", {"messageIds": ["a"]}, dryRun="true")
        assert found["events"] == of_a
        monkeypatch.setattr(replays, "_READ_AT_ONCE", 2)
        monkeypatch.setattr(replays, "_MOST_READ", 4)
        found = await post(api, "/api/sinks/crm/replay", body, dryRun="true")
        assert (found["events"], found["atLeast"]) == (of_four, True)
        begun = await post(api, "/api/sinks/crm/replay", body)
        assert (begun["events"], begun["atLeast"]) == (found["events"], True)


async def test_replay_progress_pause_resume_and_cancel(api: AsyncClient) -> None:
    replay = (await post(api, "/api/sinks/crm/replay", {"from": "beginning"}))["id"]
    expected = {
        "id": replay,
        "sink": "crm",
        "state": "running",
        "afterPosition": 0,
        "toPosition": 5,
        "position": 0,
        "progress": 0.0,
        "published": 0,
        "deadLetters": 0,
        "requestedTime": "2026-01-01T00:01:40Z",
        "endedTime": None,
        "messageIds": None,
    }
    assert await get(api, "/api/sinks/crm/replays") == [expected]
    assert (await get(api, "/api/sinks/crm"))["replay"] == expected
    of_it = f"/api/sinks/crm/replays/{replay}"
    for action, state in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")):
        assert (await post(api, f"{of_it}/{action}"))["state"] == state
    assert (await post(api, f"{of_it}/resume", status=409))["detail"] == f"Replay {replay} is cancelled."
    assert (await get(api, "/api/sinks/crm"))["replay"] is None


async def test_replays_come_in_pages(api: AsyncClient) -> None:
    begun = []
    for _ in range(3):
        begun.append((await post(api, "/api/sinks/crm/replay", {"from": "beginning"}))["id"])
        await post(api, f"/api/sinks/crm/replays/{begun[-1]}/cancel")
    answer = await api.get("/api/sinks/crm/replays", params={"size": 2})
    assert [one["id"] for one in answer.json()] == begun[:0:-1]
    assert [one["id"] for one in (await api.get(answer.links["next"]["url"])).json()] == begun[:1]


async def test_a_second_replay_is_a_conflict(api: AsyncClient) -> None:
    first = (await post(api, "/api/sinks/crm/replay", {"from": "beginning"}))["id"]
    for dry_run in ("true", "false"):
        refused = await post(api, "/api/sinks/crm/replay", {"from": "beginning"}, 409, dryRun=dry_run)
        assert refused["detail"] == f"Replay {first} to crm is running: let it finish, or cancel it."


@pytest.mark.parametrize(
    ("body", "blamed"),
    [
        ({}, {"body"}),
        ({"until": "2026-01-01"}, {"body"}),
        ({"messageIds": []}, {"body"}),
        ({"messageIds": [""]}, {"messageIds"}),
        ({"messageIds": ["m"] * 1001}, {"messageIds"}),
        ({"from": "beginning", "until": "soon"}, {"until"}),
        ({"from": "2026-01-02", "until": "2026-01-01"}, {"body"}),
        ({"from": "tomorrow"}, {"from"}),
        ({"from": "end"}, {"from"}),
        ({"from": 5}, {"from"}),
        ({"from": "beginning", "to": "end"}, {"to"}),
        ([], {"body"}),
    ],
)
async def test_replay_with_invalid_from_is_400_by_name(api: AsyncClient, body: Any, blamed: set[str]) -> None:
    refused = await post(api, "/api/sinks/crm/replay", body, 400)
    assert {one["parameter"].partition(".")[0] for one in refused["errors"]} == blamed
    assert await get(api, "/api/sinks/crm/replays") == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/sinks/nobody"),
        ("POST", "/api/sinks/nobody/pause"),
        ("POST", "/api/sinks/nobody/test"),
        ("GET", "/api/sinks/nobody/replays"),
        ("POST", "/api/sinks/crm/replays/77/cancel"),
        ("POST", "/api/sinks/crm/replays/x/cancel"),
        ("POST", "/api/sinks/crm/replays/%C2%B2/cancel"),
        ("POST", "/api/sinks/crm/replays/99999999999999999999/cancel"),
        ("POST", "/api/dead-letters/drop?sink=nobody"),
        ("POST", "/api/dead-letters/requeue?sink=nobody&dryRun=true"),
        ("GET", "/api/messages/nothing/attempts"),
    ],
)
async def test_unknown_sink_replay_and_dead_letter_are_404(api: AsyncClient, method: str, path: str) -> None:
    answer = await api.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_read_token_cannot_operate_sinks_and_dead_letters(api: AsyncClient) -> None:
    reader = {"Authorization": f"Bearer {READER}"}
    actions = ("sinks/crm/pause", "sinks/crm/test", "sinks/crm/replay", "dead-letters/drop?sink=crm")
    for action in actions:
        answer = await api.post(f"/api/{action}", headers=reader, json={"from": "beginning"})
        assert answer.status_code == 403
    assert (await api.get("/api/sinks/crm", headers=reader)).json()["paused"] is False
    assert len((await api.get("/api/dead-letters", headers=reader)).json()) == 1


async def test_dead_letters_are_shown(api: AsyncClient) -> None:
    [letter] = await get(api, "/api/dead-letters", sink="crm", reason="refused", messageId="a")
    assert letter.pop("id") >= 1
    assert letter.pop("eventId")
    assert letter == {
        "sink": "crm",
        "position": 1,
        "messageId": "a",
        "recipient": "+15550001",
        "status": "queued",
        "reason": "refused",
        "detail": "status 422",
        "attempts": 1,
        "responseCode": 422,
        "response": "no such contact",
        "firstTime": "2026-01-01T00:00:02Z",
        "diedTime": "2026-01-01T00:00:02Z",
    }
    for narrowed in ({"sink": "lake"}, {"reason": "expired"}, {"messageId": "b"}, {"eventId": "x"}):
        assert await get(api, "/api/dead-letters", **narrowed) == []
    assert await get(api, "/api/dead-letters", fromDateTime="2026-01-01 00:00:03") == []
    assert await get(api, "/api/dead-letters", toDateTime="2026-01-01 00:00:02") == []


@pytest.mark.parametrize(("action", "states"), [("requeue", ["due", "parked", "parked"]), ("drop", ["due", "parked"])])
async def test_dead_letters_dry_run_requeue_and_drop(
    api: AsyncClient, action: str, states: list[str], stocked: Database
) -> None:
    path = f"/api/dead-letters/{action}"
    one = {"deadLetters": 1, "left": 0}
    assert await post(api, path, sink="crm", dryRun="true") == {**one, "dryRun": True}
    assert len(await get(api, "/api/dead-letters")) == 1
    assert (await post(api, path, sink="crm", messageId="b"))["deadLetters"] == 0
    assert await post(api, path, sink="crm") == {**one, "dryRun": False}
    assert await get(api, "/api/dead-letters") == []
    assert (await post(api, path, sink="crm"))["deadLetters"] == 0
    retries = (await get(api, "/api/sinks/crm"))["retries"]
    assert retries == {"due": 2, "parked": 1 + states.count("parked")}


async def many(database: Database, number: int) -> list[int]:
    """Adds dead letters of the sink; returns the ids of all its dead letters."""
    events = [event for place in range(number) for event in life(f"m{place}", (Status.SENT,))]
    entries = await append(database, events)
    dead = DeadLettered(cause=DeadLetterReason.EXPIRED, reason="timeout")
    verdicts = tuple(Decided(PendingPublication(publication=publication(entry)), dead) for entry in entries)
    lease = await sinks.acquire_lease(database, "crm", holder="me", fingerprint="f", seconds=60, take_over=True)
    assert lease is not None
    settlement = Settlement(cursor=entries[-1].position, firsts=verdicts)
    await settle(database, lease, settlement, Health(), now=at(3))
    return [letter.id for letter in (await dead_letters.find(database)).items]


async def test_several_ids_may_be_named(api: AsyncClient, stocked: Database) -> None:
    ids = await many(stocked, 4)
    answer = await api.post("/api/dead-letters/drop", params=[("sink", "crm"), ("id", ids[1]), ("id", ids[3])])
    assert answer.json()["deadLetters"] == 2
    assert [one["id"] for one in await get(api, "/api/dead-letters")] == [ids[0], ids[2], ids[4]]


async def test_dead_letters_come_in_pages(api: AsyncClient, stocked: Database) -> None:
    ids = await many(stocked, 2)
    for order, expected in (("asc", ids), ("desc", ids[::-1])):
        answer = await api.get("/api/dead-letters", params={"size": 2, "sortOrder": order})
        rest = await api.get(answer.links["next"]["url"])
        assert [one["id"] for one in answer.json() + rest.json()] == expected
        assert "next" not in rest.links


async def test_dead_letters_left_after_the_time_of_a_request(
    api: AsyncClient, stocked: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await many(stocked, 4)
    monkeypatch.setattr(dead_letters, "_BATCH", 2)
    monkeypatch.setattr(web_dead_letters, "_SECONDS_PER_REQUEST", 0)
    results = [await post(api, "/api/dead-letters/requeue", sink="crm") for _ in range(3)]
    assert [(result["deadLetters"], result["left"]) for result in results] == [(2, 3), (2, 1), (1, 0)]


@pytest.mark.parametrize(
    ("query", "blamed"),
    [
        ("", "sink"),
        ("sink=", "sink"),
        ("sink=crm&sink=lake", "sink"),
        ("sink=crm&reason=bored", "reason"),
        ("sink=crm&id=x", "id"),
        ("sink=crm&id=", "id"),
        ("sink=crm&dryRun=maybe", "dryRun"),
        ("sink=crm&size=1", "size"),
        ("sink=crm&ids=1", "ids"),
        ("sink=crm&" + "&".join(f"id={number}" for number in range(91)), "id"),
    ],
)
async def test_invalid_dead_letter_parameters_are_400_and_change_nothing(
    api: AsyncClient, query: str, blamed: str
) -> None:
    for action in ("requeue", "drop"):
        answer = await api.post(f"/api/dead-letters/{action}?{query}")
        assert answer.status_code == 400, answer.text
        assert [one["parameter"] for one in answer.json()["errors"]] == [blamed]
    assert len(await get(api, "/api/dead-letters")) == 1


async def test_message_attempts_are_listed(api: AsyncClient, stocked: Database) -> None:
    await insert(stocked, message("a"), message("b"))
    [attempt] = await get(api, "/api/messages/a/attempts")
    assert attempt.pop("id") >= 1
    assert attempt.pop("eventId")
    assert attempt == {
        "sink": "crm",
        "recipient": "+15550001",
        "status": "queued",
        "startedTime": "2026-01-01T00:00:01Z",
        "endedTime": "2026-01-01T00:00:01.500000Z",
        "seconds": 0.5,
        "outcome": "refused",
        "decision": "dead",
        "reason": "status 422",
        "responseCode": 422,
        "response": "no such contact",
        "replayId": None,
    }
    assert await get(api, "/api/messages/a/attempts", sink="lake") == []
    assert await get(api, "/api/messages/b/attempts") == []


# --- a server at work, and commands beside it


CONFIG = """
callback_credentials = ["u:p"]
api_tokens = ["token"]

[[sinks]]
name = "file"
type = "jsonl"
path = "events.jsonl"
"""


class Site:
    """A server in a folder of its own, and what it has published."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server
        self.received: list[str] = []
        self.api = httpx2.Client(base_url=server.url, headers={"Authorization": "Bearer token"}, **PATIENT)

    def receive(self, *message_ids: str) -> None:
        body = [v2_event(message_id) for message_id in message_ids]
        answer = self.api.post("/callbacks/bandwidth/v2", json=body, auth=("u", "p"), headers={"Authorization": ""})
        assert answer.status_code == 200
        self.received += message_ids

    def published(self) -> list[str]:
        return [json.loads(line)["subject"] for line in whole_lines(self.folder / "events.jsonl")]

    def holds_back(self) -> bool:
        """Whether an event that came a moment ago still waits: a server notices a pause when it next looks."""
        self.receive(f"m{len(self.received) + 1}")
        time.sleep(0.5)  # published at once, it would be there
        return bool(self.sink()["lag"])

    def sink(self) -> Any:
        return self.api.get("/api/sinks/file").json()

    def replays(self) -> Any:
        return self.api.get("/api/sinks/file/replays").json()

    def run(self, *arguments: str) -> str:
        done = receiver(self.folder, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "receiver.toml").write_text(CONFIG, "utf-8")
    with serving(tmp_path) as server:
        site = Site(tmp_path, server)
        yield site
        site.api.close()


@pytest.mark.slow
def test_pause_resume_and_replay_beside_a_running_server(site: Site) -> None:
    site.receive("m1", "m2")
    until(lambda: site.published() == ["m1", "m2"])
    assert site.run("sinks", "pause", "file") == "file is paused: its events wait\n"
    until(site.holds_back)
    assert site.sink()["state"] == "paused"
    assert site.run("sinks", "resume", "file") == "file is resumed: its events are published again\n"
    until(lambda: site.published() == site.received and site.sink()["lag"] == 0)
    [heading, row] = site.run("sinks", "list").splitlines()
    assert heading.split()[:4] == ["NAME", "TYPE", "STATE", "LAG"]
    assert row.split()[:7] == ["file", "jsonl", "working", "0", "-", "0", "0"]
    first = list(site.received)
    begun = site.run("sinks", "replay", "file", "--beginning")
    assert begun.startswith(f"replay 1: {len(first)} events, received from 20")
    until(lambda: site.replays()[0]["state"] == "finished")
    assert site.published() == first * 2
    assert site.replays()[0]["published"] == len(first)
    site.receive("last")
    until(lambda: site.published() == [*first * 2, "last"])
    begun = site.run("sinks", "replay", "file", "--message", "m2", "--until", "now")
    assert begun.startswith("replay 2: 1 events, received from 20")
    until(lambda: site.replays()[0]["state"] == "finished")
    assert site.published() == [*first * 2, "last", "m2"]
    assert site.replays()[0]["messageIds"] == ["m2"]
    assert "there is no event to replay" in site.run("sinks", "replay", "file", "--beginning", "--until", "2020")


async def test_responses_of_sinks_are_for_admin_tokens_only(api: AsyncClient, stocked: Database) -> None:
    await insert(stocked, message("a"))
    reader = {"Authorization": f"Bearer {READER}"}
    for path in ("/api/messages/a/attempts", "/api/dead-letters"):
        [attempt] = await get(api, path)
        assert attempt["response"] == "no such contact"
        assert (await api.get(path, headers=reader)).json() == [attempt | {"response": None}]


# --- the pages ---


@pytest.fixture
async def pages(stocked: Database) -> AsyncIterator[AsyncClient]:
    async with client(application(stocked, sinks=SINKS, clock=lambda: at(100)), {}) as opened:
        await opened.post("/login", data={"token": ADMIN})
        yield opened


async def press(pages: AsyncClient, path: str, **form: str) -> str:
    """The page after a button of a page was pressed."""
    page = await pages.get(path)
    [csrf, *_] = re.findall(r'name="csrf" value="([0-9a-f]+)"', page.text)
    answer = await pages.post(path, data={"csrf": csrf, **form})
    assert answer.status_code == 200, answer.text
    return answer.text


async def test_the_pages_show_backlog_and_dead_letters(pages: AsyncClient) -> None:
    assert '<a href="./dead-letters?sink=crm">1</a>' in (await pages.get("/sinks")).text
    shown = (await pages.get("/sinks/crm")).text
    assert "1 due" in shown
    assert "1 refused" in shown
    assert (await pages.get("/sinks/nobody")).status_code == 404


async def test_a_sink_is_paused_resumed_and_tested_on_its_page(pages: AsyncClient) -> None:
    assert ">paused<" in await press(pages, "/sinks/crm", action="pause")
    assert ">paused<" not in await press(pages, "/sinks/crm", action="resume")
    assert "The sink can be reached" in await press(pages, "/sinks/crm", action="test")


async def test_a_replay_is_counted_started_and_cancelled_on_the_page(pages: AsyncClient, stocked: Database) -> None:
    counted = await press(pages, "/sinks/crm", action="count", **{"from": "beginning"})
    assert "would be published again" in counted
    assert 'value="replay"' in counted
    begun = await press(pages, "/sinks/crm", action="replay", **{"from": "beginning"})
    [replay] = re.findall(r'value="cancel-replay-(\d+)"', begun)
    assert "The replay is cancelled." in await press(pages, "/sinks/crm", action=f"cancel-replay-{replay}")


async def test_wrong_times_of_a_replay_are_named(pages: AsyncClient) -> None:
    page = await pages.get("/sinks/crm")
    [csrf, *_] = re.findall(r'name="csrf" value="([0-9a-f]+)"', page.text)
    answer = await pages.post("/sinks/crm", data={"csrf": csrf, "action": "count", "from": "some time"})
    assert answer.status_code == 400
    assert "from:" in answer.text
    assert 'value="some time"' in answer.text


async def test_dead_letters_are_counted_before_they_are_requeued(pages: AsyncClient) -> None:
    address = "/dead-letters?sink=crm"
    assert "Requeue these" not in (await pages.get(address)).text
    assert "Requeue these 1" in await press(pages, address, sink="crm", action="requeue-count")
    assert "1 dead letter requeued." in await press(pages, address, sink="crm", action="requeue")
    assert "no such dead letter" in (await pages.get(address)).text


async def test_one_dead_letter_is_requeued(pages: AsyncClient) -> None:
    page = (await pages.get("/dead-letters")).text
    [letter] = re.findall(r'name="id" value="(\d+)"', page)
    assert "1 dead letter requeued." in await press(pages, "/dead-letters", sink="crm", id=letter, action="requeue-one")


async def test_a_read_token_sees_no_buttons_and_no_responses_of_sinks(stocked: Database) -> None:
    async with client(application(stocked, sinks=SINKS, clock=lambda: at(100)), {}) as visitor:
        await visitor.post("/login", data={"token": READER})
        await insert(stocked, message("a"))
        for path in ("/sinks/crm", "/dead-letters?sink=crm", "/messages/a"):
            page = await visitor.get(path)
            assert page.status_code == 200, path
            assert 'name="action"' not in page.text, path
            assert "no such contact" not in page.text, path
        [csrf, *_] = re.findall(r'name="csrf" value="([0-9a-f]+)"', page.text)
        for path, form in (
            ("/sinks/crm", {"action": "pause"}),
            ("/sinks/crm", {"action": "test"}),
            ("/dead-letters", {"action": "drop", "sink": "crm"}),
            ("/dead-letters", {"action": "drop-count", "sink": "crm"}),
        ):
            assert (await visitor.post(path, data={"csrf": csrf, **form})).status_code == 403, form
