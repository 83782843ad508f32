"""Registered sends with the installed command and the sandbox: exactly those of which nothing was heard are found."""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from receiver.testing.sandbox import running_sandbox
from tests.processes import PATIENT, receiver, serving, until
from tests.sandboxes import API_TOKEN, PAIR, V1, V2, round_trip, v1_message, v2_message

SETTINGS = {"CALLBACK_CREDENTIALS": json.dumps([PAIR]), "API_TOKENS": json.dumps([API_TOKEN])}
SENDS = 100
# Recipients of the sandbox: no final receipt ever comes, no callback ever comes.
MISSING, SILENT = "+15552090005", "+15552090006"


def recipient(number: int) -> str:
    """One in ten sends is answered by nothing, one in ten by nothing final."""
    return {3: MISSING, 7: SILENT}.get(number % 10, f"+1919555{number:04}")


@pytest.mark.anyio
async def test_of_100_sends_exactly_the_silent_ones_are_found(tmp_path: Path) -> None:
    async with round_trip(tmp_path) as trip:
        silent: set[str] = set()
        for number in range(SENDS):
            to = recipient(number)
            answer = await trip.sandbox.post(V2, json=v2_message(to=to))
            assert answer.status_code == 202, answer.text
            send = answer.json()
            registered = await trip.receiver.post("/api/messages", json=send)
            assert registered.status_code == 200, registered.text
            if to in (MISSING, SILENT):
                silent.add(send["id"])
        v1 = {"receiptRequested": "all", "callbackUrl": trip.v1_callback_url()}
        for to in ("+19195550001", SILENT, MISSING):
            message = v1_message(to=to, **v1)
            answer = await trip.sandbox.post(V1, json=message)
            registered = await trip.receiver.post(
                "/api/messages", json={"request": message, "location": answer.headers["Location"]}
            )
            if to != "+19195550001":
                silent.add(registered.json()["id"])
        await trip.settle()
        query = {"awaitingReceipt": "true", "olderThan": "0s", "size": "1000"}
        found = (await trip.receiver.get("/api/messages", params=query)).json()
        assert {message["id"] for message in found} == silent
        assert len(silent) == SENDS // 5 + 2
        everything = (await trip.receiver.get("/api/messages", params={"size": "1000"})).json()
        assert len(everything) == SENDS + 3


def sent(number: int, **more: Any) -> dict[str, Any]:
    return {"id": f"m{number}", "to": ["+15550001"], "time": "2026-01-01T00:00:00Z", **more}


def test_command_registers_lines_and_names_the_wrong_ones(tmp_path: Path) -> None:
    lines = [
        json.dumps(sent(1)),
        "",
        json.dumps(sent(2, time="soon")),
        "not JSON",
        json.dumps([sent(3), {"to": "+1"}]),
        json.dumps({"request": [{"from": "+1", "to": "+2"}], "results": [{"location": "/v1/users/u/messages/m-9"}]}),
    ]
    receiver(tmp_path, "migrate")
    done = receiver(tmp_path, "messages", "register", "-", stdin="\n".join(lines).encode())
    errors = done.stderr.decode().splitlines()
    assert done.returncode == 1, done.stderr
    assert [line.partition(": ")[2].partition(":")[0] for line in errors] == ["line 3", "line 4", "line 5"]
    assert "must be a time" in errors[0]
    assert "is not JSON" in errors[1]
    assert "is missing" in errors[2]
    assert done.stdout.decode().split() == ["registered", "3", "refused", "3", "pending", "0"]
    listed = receiver(tmp_path, "messages", "list", "--awaiting", "--older-than", "15m", "--json")
    assert {message["id"] for message in json.loads(listed.stdout)} == {"m1", "m3"}
    shown = receiver(tmp_path, "messages", "show", "m1").stdout.decode()
    assert "The message to +15550001 was registered on " in shown
    assert "; nothing was heard of it yet." in shown
    assert "Registered by the sender" in shown


def test_command_can_be_run_again_beside_a_server(tmp_path: Path) -> None:
    sends = "\n".join(json.dumps(sent(number)) for number in range(1200)).encode()
    (tmp_path / "sends.jsonl").write_bytes(sends)
    with serving(tmp_path, settings=SETTINGS):
        for _ in range(2):
            done = receiver(tmp_path, "messages", "register", "sends.jsonl", "--json")
            assert (done.returncode, done.stderr) == (0, b"")
            assert json.loads(done.stdout) == {"registered": 1200, "refused": 0, "pending": 0}
        exported = receiver(tmp_path, "messages", "export", "--jsonl")
        assert len(exported.stdout.splitlines()) == 1200


def test_fixture_registers_what_the_application_sent(tmp_path: Path) -> None:
    with (
        serving(tmp_path, settings=SETTINGS) as server,
        running_sandbox(outbound_url=f"{server.url}/callbacks/bandwidth/v2", callback_credentials=PAIR) as sandbox,
    ):
        numbers = ["+19195550001", SILENT, "+19195550002"]
        for to in numbers:
            httpx2.post(sandbox.url + V2, json=v2_message(to=to), auth=sandbox.auth, **PATIENT).raise_for_status()
        httpx2.post(sandbox.url + V1, json=v1_message(to=SILENT), auth=sandbox.auth, **PATIENT).raise_for_status()
        sandbox.wait_until_idle()
        results = sandbox.register_sends(server.url, API_TOKEN)
        assert [result["result"] for result in results] == ["registered"] * 4
        assert [send["id"] for send in sandbox.sends()] == [result["id"] for result in results]
        with pytest.raises(ValueError, match="answered 401"):
            sandbox.register_sends(server.url, "another-token")

        def awaited() -> list[str]:
            headers, chosen = {"Authorization": f"Bearer {API_TOKEN}"}, {"awaitingReceipt": "true"}
            answer = httpx2.get(f"{server.url}/api/messages", params=chosen, headers=headers, **PATIENT)
            return [message["id"] for message in answer.json()]

        # v1 sends nothing about a message without a callback URL, so nothing is awaited there.
        until(lambda: awaited() == [results[1]["id"]])
