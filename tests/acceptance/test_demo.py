"""`receiver demo` as a process."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import httpx2
import pytest

from receiver import tags
from receiver.cli.demo_messages import INBOUND, V1, V2, MessageSettings, generate_requests
from receiver.domain.events import TagVerdict
from receiver.storage import sqlite_file
from tests.acceptance.test_sandbox_command import waiting_until_idle
from tests.processes import COMMAND, PATIENT, Foreground, environment, foreground, is_open, receiver, until, whole_lines

SETTINGS = MessageSettings("http://127.0.0.1:1/v1", "k1", "secret")


def addresses(running: Foreground) -> tuple[str, str]:
    return running.address("receiver"), running.address("sandbox")


# --- requests


def test_each_round_has_every_kind_of_request() -> None:
    requests = list(islice(generate_requests(SETTINGS, seed=1), 15))
    assert Counter(request.path for request in requests) == {V2: 7, V1: 4, INBOUND: 4}
    bodies = [request.body for request in requests]
    sent = [each for body in bodies for each in (body if isinstance(body, list) else [body])]
    assert sum(request.messages for request in requests) == len(sent)
    assert any(isinstance(each["to"], list) and len(each["to"]) > 1 for each in sent)
    assert any("media" in each and "callbackUrl" in each for each in sent)
    assert any("others" in each for each in sent)
    assert {each["callbackHttpMethod"] for each in sent if "callbackUrl" in each} == {"get", "post"}


def test_outbound_tags_are_bound_to_sender_and_recipients() -> None:
    keys = {"k1": "secret"}
    bodies = [request.body for request in islice(generate_requests(SETTINGS, seed=2), 60) if request.path != INBOUND]
    for each in [each for body in bodies for each in (body if isinstance(body, list) else [body])]:
        sender, to = each["from"], each["to"]
        assert tags.verify(each["tag"], keys, sender=sender, recipients=to).verdict is TagVerdict.VALID
        for numbers in ((sender, "+19195559999"), ("+19195559999", to)):
            assert tags.verify(each["tag"], keys, sender=numbers[0], recipients=numbers[1]).verdict is TagVerdict.FORGED


def test_same_seed_gives_the_same_requests() -> None:
    one, same, other = (list(islice(generate_requests(SETTINGS, seed=seed), 40)) for seed in (1, 1, 2))
    assert one == same != other


# --- the command


@pytest.mark.slow
def test_messages_limit_ends_the_demo_and_data_dir_keeps_the_data(tmp_path: Path) -> None:
    (tmp_path / "receiver.toml").write_text("this is for a real receiver", "utf-8")
    data = tmp_path / "data of the demo"
    command = ["demo", "--data-dir", str(data), "--messages", "50", "--per-second", "200", "--speed", "500"]
    # The settings of a real receiver must have no effect.
    done = receiver(tmp_path, *command, DATABASE_URL=f"sqlite:///{tmp_path / 'real.db'}", SINKS="[", NOTHING="x")
    output = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    assert not (tmp_path / "real.db").exists()
    assert f"The data is in {data}." in output
    (tmp_path / "receiver.toml").unlink()

    [counts] = [line for line in output.splitlines() if line.startswith("out ")]
    listed = json.loads(receiver(tmp_path, "messages", "list", "--json", "--size", "1000", DATA_DIR=str(data)).stdout)
    # One message in a hundred has no callback.
    assert 45 <= len(listed) <= 50
    directions = Counter(message["direction"] for message in listed)
    assert f", in {directions['in']} | callbacks" in counts
    assert {message["api"] for message in listed} == {"v1", "v2"}
    assert {message["tagVerdict"] for message in listed} == {"valid", "not-applicable"}
    assert {"delivered", "failed", "received"} <= {message["status"] for message in listed}
    assert max(len(message["recipients"]) for message in listed) == 3
    published = [json.loads(line) for line in (data / "events.jsonl").read_text("utf-8").splitlines()]
    assert {event["data"]["messageId"] for event in published} <= {message["id"] for message in listed}
    assert published


@pytest.mark.slow
def test_summary_has_the_callbacks_that_come_two_minutes_late(tmp_path: Path) -> None:
    output = receiver(tmp_path, "demo", "--messages", "80", "--per-second", "200", TMPDIR=str(tmp_path)).stdout.decode()
    [*_, counts] = [line for line in output.splitlines() if line.startswith("out ")]
    assert "were not due yet" not in output
    assert int(re.search(r"\((\d+) repeated\)", counts)[1]) > 0  # type: ignore[index]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl: what is printed is for it")
def test_sigint_stops_both_and_deletes_the_data(tmp_path: Path) -> None:
    # One process: even SIGKILL leaves nothing running.
    with foreground(tmp_path, "demo", "--per-second", "50", "--speed", "100", TMPDIR=str(tmp_path)) as running:
        urls = addresses(running)
        [data] = tmp_path.glob("receiver-demo-*")
        assert running.members() == [running.process.pid]
        [token] = json.loads((data / "credentials.json").read_text("utf-8"))["api_tokens"]
        assert token not in running.text()
        # Wait for what the printed commands query.
        until(lambda: failed(urls[0], token) and whole_lines(data / "events.jsonl"))
        works_as_printed(running, token, tmp_path)
        assert running.stop(signal.SIGINT) == 0
        assert (running.members(), [url for url in urls if is_open(url)]) == ([], [])
        assert running.errors.read_text("utf-8") == ""
        assert re.search(
            r"^out \d+, in \d+ \| callbacks \d+ \(\d+ repeated\) \| delivered \d", running.text(), re.MULTILINE
        )
        assert not data.exists()


def failed(url: str, token: str) -> Any:
    """The failed messages of a receiver."""
    authorized = {"Authorization": f"Bearer {token}"}
    return httpx2.get(f"{url}/api/messages?status=failed", headers=authorized, **PATIENT).json()


def works_as_printed(running: Foreground, token: str, folder: Path) -> None:
    """Runs the commands of the banner."""
    # As in another terminal, where no virtual environment is active.
    variables = {"PATH": "/usr/bin:/bin", "TOKEN": token}
    lines = [line.strip() for line in running.text().splitlines() if line.startswith("  ")]
    assert len(lines) == 8
    for line in lines:
        script = line.replace("curl ", "curl -sSf ").replace("tail -f ", "head -n 1 ")
        ran = subprocess.run(
            ["sh", "-ec", script], cwd=folder, env=variables, capture_output=True, timeout=120, check=False
        )
        assert (ran.returncode, ran.stderr) == (0, b""), line
        assert len(ran.stdout) > 10, line


@pytest.mark.slow
def test_idle_wait_does_not_delay_the_stop(tmp_path: Path) -> None:
    with foreground(tmp_path, "demo", "--per-second", "50", TMPDIR=str(tmp_path)) as running:
        _, url = addresses(running)
        until(lambda: httpx2.get(f"{url}/sandbox/idle", **PATIENT).json()["waiting"])
        with waiting_until_idle(url) as waiting:
            assert running.stop() == 0
            assert waiting.recv(4096).startswith(b"HTTP/1.1 200 ")
        assert running.errors.read_text("utf-8") == ""


@pytest.mark.faults
def test_sigkill_leaves_no_process(tmp_path: Path) -> None:
    with foreground(tmp_path, "demo", TMPDIR=str(tmp_path)) as running:
        urls = addresses(running)
        assert running.stop(signal.SIGKILL) == -signal.SIGKILL
        assert (running.members(), [url for url in urls if is_open(url)]) == ([], [])


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)


def test_terminal_shows_the_token_and_one_line_of_counts(tmp_path: Path, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    command = [COMMAND, "demo", "--seconds", "1.1", "--per-second", "20", "--speed", "1000"]
    variables = environment() | {"TMPDIR": str(tmp_path), "COLUMNS": "40"}
    process = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=theirs, stdin=subprocess.DEVNULL)
    os.close(theirs)
    shown = b""
    # Reading a closed terminal raises OSError.
    with suppress(OSError):
        while part := os.read(ours, 4096):
            shown += part
    assert process.wait(60) == 0
    assert b"Authorization: Bearer $TOKEN" not in shown
    assert shown.count(b"Authorization: Bearer ") == 2
    counts = shown.partition(b"Ctrl-C ends both.")[2].split(b"\r")
    running = [line for line in counts if line.endswith(b"\x1b[K") and len(line) > 3]
    assert len(running) >= 2
    assert all(len(line) <= 39 + 3 for line in running)
    assert list(tmp_path.iterdir()) == []


def test_data_dir_in_use_is_one_line(tmp_path: Path) -> None:
    with sqlite_file.held(tmp_path / "receiver.db"):
        done = receiver(tmp_path, "demo", "--data-dir", str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert f"process {os.getpid()} already serves the database" in done.stderr.decode()
