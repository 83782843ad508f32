"""Request ids: in the answer, in problem details and in the log; and what the log has at the level debug."""

import asyncio
import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from receiver.intake.request_ids import request_id
from tests.factories import v2_event
from tests.metrics_pages import answering_webhook, hook
from tests.processes import PATIENT, Server, foreground, receiver, serving, until, whole_lines

V2 = "/callbacks/bandwidth/v2"
SETTINGS = {"CALLBACK_CREDENTIALS": '["u:p"]', "API_TOKENS": '["token"]'}
BEARER = {"Authorization": "Bearer token"}
MADE = re.compile(r"[0-9a-f]{32}")


def logged(server: Server, message: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, whole_lines(server.errors)) if line["message"] == message]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("ids"), settings=SETTINGS) as server:
        yield server


def get(server: Server, path: str, **headers: str) -> httpx2.Response:
    return httpx2.get(server.url + path, headers={**BEARER, **headers}, **PATIENT)


# --- the answer


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/messages", 200),
        ("/api/messages/none", 404),
        ("/api/messages?size=x", 400),
        ("/v1/users/u/messages", 401),
        ("/no-such-address", 404),
        ("/callbacks/none", 404),
        ("/metrics", 200),
        ("/healthz", 200),
        ("/docs", 200),
    ],
)
def test_request_id_comes_back(server: Server, path: str, status: int) -> None:
    answer = get(server, path, **{"X-Request-ID": "proxy-1:a/b=="})
    assert answer.status_code == status
    assert answer.headers["x-request-id"] == "proxy-1:a/b=="
    if "problem" in answer.headers["content-type"]:
        assert answer.json()["requestId"] == "proxy-1:a/b=="


def test_request_without_an_id_gets_one_of_its_own(server: Server) -> None:
    made = [get(server, "/api/messages").headers["x-request-id"] for _ in range(2)]
    assert all(map(MADE.fullmatch, made))
    assert made[0] != made[1]
    missing = get(server, "/api/messages/none")
    assert missing.json()["requestId"] == missing.headers["x-request-id"]


ODD = ["", "x" * 129, "two words", "tab\there", "caf\u00e9", "\x1b[31m", "a\x7fb"]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_odd_request_id_is_replaced(odd: str) -> None:
    scope = {"headers": [(b"x-request-id", odd.encode())]}
    assert MADE.fullmatch(request_id(scope, b"x-request-id").decode())


def test_longest_request_id_is_taken_over_and_two_are_not() -> None:
    longest = b"~" * 128
    assert request_id({"headers": [(b"x-request-id", longest)]}, b"x-request-id") == longest
    several = {"headers": [(b"x-request-id", b"a"), (b"x-request-id", b"b")]}
    assert MADE.fullmatch(request_id(several, b"x-request-id").decode())


def test_refused_callback_has_its_request_id_and_the_first_try_of_v2_has_none(server: Server) -> None:
    given = {"X-Request-ID": "callback-1"}
    wrong = httpx2.post(server.url + V2, auth=("u", "wrong"), headers=given, **PATIENT)
    assert (wrong.status_code, wrong.headers["x-request-id"]) == (401, "callback-1")
    compressed = {**given, "Content-Encoding": "gzip"}
    answer = httpx2.post(server.url + V2, auth=("u", "p"), headers=compressed, content=b"x", **PATIENT)
    assert (answer.status_code, answer.headers["x-request-id"]) == (415, "callback-1")
    first = httpx2.post(server.url + V2, headers=given, **PATIENT)
    assert first.status_code == 401
    assert "x-request-id" not in first.headers
    accepted = httpx2.post(server.url + V2, auth=("u", "p"), headers=given, json=[], **PATIENT)
    assert accepted.status_code == 200
    assert "x-request-id" not in accepted.headers


def test_header_of_the_request_id_is_a_setting(tmp_path: Path) -> None:
    with serving(tmp_path, settings={**SETTINGS, "REQUEST_ID_HEADER": "X-Amzn-Trace-Id"}) as server:
        given = {"X-Amzn-Trace-Id": "Root=1-67891233-abc", "X-Request-ID": "another"}
        answer = get(server, "/api/messages/none", **given)
        assert answer.headers["x-amzn-trace-id"] == answer.json()["requestId"] == "Root=1-67891233-abc"
        assert "x-request-id" not in answer.headers
        wrong = httpx2.post(server.url + V2, auth=("u", "wrong"), headers=given, **PATIENT)
        assert wrong.headers["x-amzn-trace-id"] == "Root=1-67891233-abc"


def test_page_of_a_worker_has_request_ids_too(tmp_path: Path) -> None:
    assert receiver(tmp_path, "migrate").returncode == 0
    settings = {"RECEIVER_API_TOKENS": '["token"]'}
    with foreground(tmp_path, "work", "--metrics", "127.0.0.1:0", **settings) as worker:
        until(lambda: '"working"' in worker.errors.read_text("utf-8") or worker.process.poll() is not None)
        [working] = [json.loads(line) for line in whole_lines(worker.errors)]
        accept = {"Accept": "application/openmetrics-text", "X-Request-ID": "scrape-1"}
        answer = httpx2.get(working["metrics"], headers={**BEARER, **accept}, **PATIENT)
        assert answer.headers["x-request-id"] == "scrape-1"
        assert answer.text.endswith("# EOF\n")
        refused = httpx2.get(working["metrics"], headers=accept, **PATIENT)
        assert (refused.status_code, refused.json()["requestId"]) == (401, "scrape-1")


# --- the log


def test_lines_of_a_request_have_its_id_and_those_of_others_have_not(server: Server) -> None:
    unknown = {"X-Request-ID": "unknown-1"}
    httpx2.post(f"{server.url}/callbacks/bandwidth/v9", headers=unknown, **PATIENT)
    until(lambda: logged(server, "requests to unknown callback URLs are refused"))
    [line] = logged(server, "requests to unknown callback URLs are refused")
    # The first of a minute is logged, and the tests above may have caused it.
    assert line["request_id"] in ("unknown-1", "proxy-1:a/b==")
    assert "request_id" not in logged(server, "listening")[0]


def tracebacks(server: Server) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, whole_lines(server.errors)) if "exception" in line]


def test_traceback_of_a_request_has_its_id(tmp_path: Path) -> None:
    """The server logs it, behind the application."""
    with serving(tmp_path, settings=SETTINGS) as server:
        assert httpx2.post(server.url + V2, auth=("u", "p"), json=[v2_event("m1")], **PATIENT).status_code == 200
        until(lambda: get(server, "/api/messages/m1").status_code == 200)
        with sqlite3.connect(tmp_path / "receiver-data/receiver.db") as database:
            database.execute("UPDATE messages SET direction = 'sideways'")
        answer = get(server, "/api/messages/m1", **{"X-Request-ID": "broken-1"})
        assert (answer.status_code, answer.json()["requestId"]) == (500, "broken-1")
        assert get(server, "/api/codes").headers["x-request-id"] != "broken-1"
        until(lambda: tracebacks(server))
        [line] = tracebacks(server)
        assert line["request_id"] == "broken-1"


def test_debug_level_logs_groups_batches_and_attempts(tmp_path: Path) -> None:
    with answering_webhook() as port:
        sinks = [hook("crm", port, "200"), hook("refusing", port, "422")]
        settings = {**SETTINGS, "LOG_LEVEL": "debug", "SINKS": json.dumps(sinks)}
        with serving(tmp_path, settings=settings) as server:
            given = {"X-Request-ID": "callback-1"}
            events = [v2_event("m1"), v2_event("m2")]
            answer = httpx2.post(server.url + V2, auth=("u", "p"), headers=given, json=events, **PATIENT)
            assert (answer.status_code, answer.headers["x-request-id"]) == (200, "callback-1")
            until(lambda: len(logged(server, "attempt ended")) == 2 and len(logged(server, "attempt failed")) == 2)
        [accepted] = logged(server, "a callback was accepted")
        assert accepted["request_id"] == "callback-1"
        [group] = logged(server, "callbacks were committed")
        assert (group["callbacks"], group["first"], group["last"]) == (1, accepted["callback"], accepted["callback"])
        [batch] = logged(server, "a batch was processed")
        assert (batch["callbacks"], batch["first"], batch["events"]) == (1, accepted["callback"], 2)
        assert batch["results"] == {"accepted": 1}
        ended, failed = logged(server, "attempt ended"), logged(server, "attempt failed")
        assert {(line["sink"], line["outcome"], line["decision"]) for line in ended} == {("crm", "published", "done")}
        assert {(line["outcome"], line["decision"]) for line in failed} == {("refused", "dead_letter")}
        for line in (*ended, *failed):
            assert line["message_id"] in ("m1", "m2")
            assert line["attempt"] == 1
            assert {"event_id", "position", "reason"} <= line.keys()
        assert {line["position"] for line in ended} == {line["position"] for line in failed}
        assert all(line["seconds"] >= 0 for line in (group, batch, *ended, *failed))


def test_info_level_has_none_of_these_lines(tmp_path: Path) -> None:
    sinks = [{"name": "file", "type": "jsonl", "path": "events.jsonl", "start": "beginning"}]
    with serving(tmp_path, settings={**SETTINGS, "SINKS": json.dumps(sinks)}) as server:
        assert httpx2.post(server.url + V2, auth=("u", "p"), json=[v2_event("m1")], **PATIENT).status_code == 200
        until(lambda: (tmp_path / "events.jsonl").exists() and whole_lines(tmp_path / "events.jsonl"))
        server.stop()
        assert {json.loads(line)["level"] for line in whole_lines(server.errors)} == {"info"}


def test_request_ids_of_concurrent_requests_do_not_mix(server: Server) -> None:
    async def run() -> None:
        async with httpx2.AsyncClient(base_url=server.url, headers=BEARER, **PATIENT) as client:

            async def one(number: int) -> None:
                answer = await client.get("/api/messages/none", headers={"X-Request-ID": f"r{number}"})
                assert answer.json()["requestId"] == answer.headers["x-request-id"] == f"r{number}"

            await asyncio.gather(*map(one, range(40)))

    asyncio.run(run())
