"""The examples of the pages run as they are shown: the sandbox's, the query API's, the queries for SQL."""

import asyncio
import base64
import csv
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from receiver.domain.events import Api, Callback
from tests.brokers.own import free_port
from tests.factories import v2_event
from tests.pages import blocks, page, section
from tests.processes import COMMAND, environment, receiver, serving, until
from tests.processing import opened, process, select
from tests.sandboxes import API_TOKEN, V1, V2, round_trip, v1_message, v2_message
from tests.servers import on_postgres

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl: the examples use it")

SETTINGS = {"CALLBACK_CREDENTIALS": '["user:password"]', "API_TOKENS": '["token-of-a-test"]'}


def run(folder: Path, script: str, **variables: str) -> str:
    done = subprocess.run(
        ["sh", "-ec", script],
        cwd=folder,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- the query API


@needs_curl
def test_the_examples_of_the_query_api_are_answered(tmp_path: Path) -> None:
    commands = [block for block in blocks(page("api"), "") if "curl" in block]
    script = re.sub(r"^export TOKEN=.*$", "", "".join(commands), flags=re.MULTILINE).replace("curl ", "curl -fsS ")
    # What follows the events never ends by itself.
    script = re.sub(r"^(curl -fsS -N .*)$", r"\1 --max-time 1 || [ $? = 28 ]", script, flags=re.MULTILINE)
    with serving(tmp_path, settings=SETTINGS) as server:
        run(tmp_path, script.replace("http://127.0.0.1:8080", server.url), TOKEN="token-of-a-test")
    [header] = csv.reader((tmp_path / "june.csv").read_text("utf-8").splitlines())
    columns = section(page("api"), "CSV").partition("Columns of the message:")[2].partition("```")[0]
    assert set(header) == set(re.findall(r"`(\w+)`", columns))


@pytest.mark.slow
@needs_curl
def test_the_example_that_follows_links_prints_failed_messages(tmp_path: Path) -> None:
    [program] = blocks(section(page("api"), "Pages"), "python")
    with serving(tmp_path, settings=SETTINGS) as server:
        failed = json.dumps([v2_event("m1", "message-failed", errorCode=4720)])
        post = f"curl -fsS -u user:password {server.url}/callbacks/bandwidth/v2 -d '{failed}'"
        run(tmp_path, post)
        (tmp_path / "program.py").write_text(program.replace("http://127.0.0.1:8080", server.url), "utf-8")
        output = run(tmp_path, f"{sys.executable} program.py", TOKEN="token-of-a-test")
    assert output.startswith("m1 {")
    assert "invalid-destination-address" in output


# --- webhooks


def test_webhook_example_accepts_only_valid_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    standardwebhooks = pytest.importorskip("standardwebhooks")
    [program] = blocks(section(page("webhook"), "Verifying a webhook"), "python")
    secret = f"whsec_{base64.b64encode(b'not a secret at all').decode()}"
    monkeypatch.setenv("CRM_HOOK_SECRET", secret)
    names: dict[str, Any] = {}
    exec(compile(program, "webhook.md", "exec"), names)
    now, body = datetime.now(UTC), b'{"id": "e1"}'
    headers = {
        "webhook-id": "e1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": standardwebhooks.Webhook(secret).sign("e1", now, body.decode()),
    }
    assert names["receive"](headers, body) == {"id": "e1"}
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        names["receive"](headers, body + b" ")


# --- the sandbox


@needs_curl
def test_the_examples_of_the_sandbox_end_in_three_messages(tmp_path: Path) -> None:
    start, use = blocks(section(page("sandbox"), "Try it"), "sh")
    port = free_port()
    with serving(tmp_path, settings=SETTINGS) as server:

        def adapted(script: str) -> str:
            moved = script.replace("http://127.0.0.1:8080", server.url).replace(":8090", f":{port}")
            return moved.replace("127.0.0.1:8080", server.url.removeprefix("http://"))

        command = adapted(start).replace(".venv/bin/receiver", str(COMMAND)).strip()
        with (tmp_path / "sandbox.txt").open("wb") as stdout:
            sandbox = subprocess.Popen(
                ["sh", "-c", f"exec {command} --port {port} --speed 1000"],
                cwd=tmp_path,
                env=environment() | {"USER_PASSWORD": "user:password"},
                stdout=stdout,
            )
        try:
            until(lambda: b"listens" in (tmp_path / "sandbox.txt").read_bytes())
            script = adapted(use).replace(".venv/bin/receiver messages list", "true")
            run(tmp_path, script.replace("curl ", "curl -fsS "), USER_PASSWORD="user:password")
            listed = json.loads(receiver(tmp_path, "messages", "list", "--json").stdout)
        finally:
            sandbox.terminate()
            sandbox.wait(30)
    assert {(message["api"], message["direction"], message["status"]) for message in listed} == {
        ("v1", "out", "delivered"),
        ("v2", "in", "received"),
        ("v2", "out", "failed"),
    }
    [failed] = [message for message in listed if message["status"] == "failed"]
    assert failed["deliveryCode"] == 4720


# --- SQL


def callback(message_id: str, **changes: Any) -> Callback:
    body = json.dumps([v2_event(message_id, **changes)]).encode()
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    return Callback(
        id=f"callback-{message_id}", received_at=moment, api=Api.V2, route="primary", method="POST", query="", body=body
    )


def fill(url: str) -> None:
    """A delivered message, a message that failed, and a message of which nothing final came."""

    async def work() -> None:
        sent = {"from": "+19195551234", "time": "2026-01-02T00:00:00Z"}
        time = "2026-01-02T00:00:10Z"
        async with opened(url) as database:
            await process(
                database,
                callback("m1", message=sent, time=time),
                callback("m2", message=sent, time=time, type="message-failed", errorCode=4720),
                callback("m3", message=sent, time=time, type="message-sending"),
            )

    asyncio.run(work())


def queries(*languages: str) -> list[str]:
    text = section(page("sql"), "Five questions")
    return [block for language in languages for block in blocks(text, language)]


def test_the_five_queries_are_answered_on_sqlite(sqlite_url: str) -> None:
    fill(sqlite_url)
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as connection:
        per_day, reasons, senders, silent, times = (
            connection.execute(query).fetchall() for query in queries("sql", "sqlite")
        )
    assert per_day == [("2026-01-02", 2, 1, 50.0)]
    assert [(row[0], row[1], row[-1]) for row in reasons] == [("v2", 4720, 1)]
    assert senders == [("+19195551234", 2, 50.0)]
    assert [row[0] for row in silent] == ["m3"]
    assert [round(seconds) for seconds in times[0]] == [10, 10]


@pytest.mark.anyio
async def test_the_five_queries_are_answered_on_postgresql(postgres_url: str) -> None:
    await asyncio.to_thread(fill, postgres_url)
    async with opened(postgres_url) as database:
        per_day, reasons, senders, silent, times = [
            await select(database, query) for query in queries("sql", "postgresql")
        ]
    assert [tuple(row) for row in per_day] == [("2026-01-02", 2, 1, 50)]
    assert [(row[0], row[1], row[-1]) for row in reasons] == [("v2", 4720, 1)]
    assert [tuple(row) for row in senders] == [("+19195551234", 2, 50)]
    assert [row[0] for row in silent] == ["m3"]
    assert [value.total_seconds() for value in times[0]] == [10, 10]


def test_read_only_database_user_example(postgres_url: str) -> None:
    [script] = blocks(section(page("sql"), "A user that may only read"), "postgresql")
    role = f"reporting_{os.getpid()}"
    statements = [statement for statement in script.replace("reporting", role).split(";") if statement.strip()]
    try:
        for statement in statements:
            on_postgres(postgres_url, statement)
        on_postgres(postgres_url, f"SET ROLE {role}", "SELECT count(*) FROM message_status")
        for refused in ("SELECT count(*) FROM callbacks", "DELETE FROM messages"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                on_postgres(postgres_url, f"SET ROLE {role}", refused)
    finally:
        on_postgres(postgres_url, f"DROP OWNED BY {role}")
        on_postgres(postgres_url, f"DROP ROLE {role}")


# --- registered sends


@pytest.mark.anyio
async def test_the_client_of_three_lines_registers_what_it_sends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_v2, of_v1 = blocks(section(page("registered-sends"), "Register what you send"), "python")
    async with round_trip(tmp_path) as trip:
        monkeypatch.setenv("TOKEN", API_TOKEN)

        def run_with(program: str, path: str, name: str, *arguments: Any) -> Any:
            names: dict[str, Any] = {}
            monkeypatch.setenv("BANDWIDTH_MESSAGES", trip.sandbox_url + path)
            exec(compile(program.replace("http://127.0.0.1:8080", trip.server.url), "registered-sends", "exec"), names)
            return names[name](*arguments)

        silent = "+15552090006"
        sent = await asyncio.to_thread(run_with, of_v2, V2, "send", v2_message(to=silent))
        v1 = v1_message(to=silent, receiptRequested="all", callbackUrl=trip.v1_callback_url())
        one = await asyncio.to_thread(run_with, of_v1, V1, "send_v1", v1)
        many = await asyncio.to_thread(run_with, of_v1, V1, "send_many_v1", [v1, {**v1, "to": ""}])
        assert [result["result"] for result in many] == ["registered", "refused"]
        answer = await trip.receiver.get("/api/messages", params={"awaitingReceipt": "true", "status": "unknown"})
        assert {message["id"] for message in answer.json()} == {sent, one["id"], many[0]["id"]}
