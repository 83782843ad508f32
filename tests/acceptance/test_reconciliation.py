"""Reconciliation with the installed command and the sandbox: a silent message is looked up, and everybody sees it."""

import json
from pathlib import Path
from typing import Any

import httpx2

from receiver.testing.sandbox import Sandbox, running_sandbox
from tests.processes import PATIENT, Server, receiver, serving, until
from tests.sandboxes import API_TOKEN, PAIR, V2, v2_message

SETTINGS = {"CALLBACK_CREDENTIALS": json.dumps([PAIR]), "API_TOKENS": json.dumps([API_TOKEN])}
AUTHORIZED = {"Authorization": f"Bearer {API_TOKEN}"}
SILENT = "+15552090006"


def settings(sandbox: Sandbox, password: str = "secret") -> dict[str, str]:
    reconciliation = {
        "v2_account_id": "u-1",
        "v2_credentials": f"token:{password}",
        "v2_url": f"{sandbox.url}/api/v2",
        "after": 1,
        "egress_allow": ["127.0.0.1/32"],
    }
    return {**SETTINGS, "RECONCILIATION": json.dumps(reconciliation)}


def send_silently(server: Server, sandbox: Sandbox) -> str:
    httpx2.post(sandbox.url + V2, json=v2_message(to=SILENT), auth=sandbox.auth, **PATIENT).raise_for_status()
    [result] = sandbox.register_sends(server.url, API_TOKEN)
    id_: str = result["id"]
    return id_


def read(server: Server, path: str) -> Any:
    answer = httpx2.get(f"{server.url}{path}", headers=AUTHORIZED, **PATIENT)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_silent_message_is_looked_up_and_shown(tmp_path: Path) -> None:
    with running_sandbox(credentials=["token:secret"]) as sandbox:
        configured = settings(sandbox)
        with serving(tmp_path, settings=configured) as server:
            id_ = send_silently(server, sandbox)
            until(lambda: read(server, f"/api/messages/{id_}")["status"] == "delivered")
            [event] = read(server, "/api/events")
            assert (event["type"], event["data"]["route"]) == ("message.delivered", "reconciled")
            [found] = read(server, "/api/status")["reconciliation"]
            assert (found["api"], found["state"], found["requestsToday"]) == ("v2", "working", 1)
            shown = receiver(tmp_path, "status", **configured)
            assert shown.returncode == 0
            assert b"reconciliation v2  working, 1 requests today, the latest at 20" in shown.stdout
            exported = receiver(tmp_path, "messages", "show", id_, **configured).stdout.decode()
            assert f"Delivered for {SILENT}, as Bandwidth answered when it was asked" in exported
            [entry] = [one for one in read(server, "/api/callbacks") if one["route"] == "reconciled"]
            replayed = receiver(tmp_path, "callbacks", "replay", entry["id"], "--to", "http://127.0.0.1:9/")
            assert replayed.returncode == 1
            assert b"is an answer to reconciliation, which Bandwidth never posted" in replayed.stderr
            page = httpx2.get(f"{server.url}/metrics", headers=AUTHORIZED, **PATIENT).text
            assert 'receiver_reconciliation_failing{api="v2"} 0.0' in page
            assert server.stop() == 0
        assert '"secret' not in server.errors.read_text("utf-8")
        stopped = receiver(tmp_path, "status", "--json", **configured)
        assert [one["state"] for one in json.loads(stopped.stdout)["reconciliation"]] == ["off"]


def test_wrong_credentials_are_a_problem_that_everybody_sees(tmp_path: Path) -> None:
    with running_sandbox(credentials=["token:secret"]) as sandbox:
        configured = settings(sandbox, "wrong-pass")
        with serving(tmp_path, settings=configured) as server:
            send_silently(server, sandbox)
            until(lambda: read(server, "/api/status")["status"] == "degraded")
            shown = receiver(tmp_path, "status", **configured)
            assert shown.returncode == 1
            assert (
                b"(status 401): correct RECEIVER_RECONCILIATION__V2_CREDENTIALS, and restart the receiver."
                in shown.stdout
            )
            assert server.stop() == 0
        log = server.errors.read_text("utf-8")
        assert "reconciliation is refused: Bandwidth does not accept the credentials" in log
        assert "wrong-pass" not in log
