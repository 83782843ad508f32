"""The README is short and holds: its two commands, its first callback, the event it shows, the program that gets it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.brokers.own import free_port
from tests.pages import ROOT, blocks, page, readme, section
from tests.processes import environment, receiver, serving, until

FIRST_CALLBACK = section(readme(), "A first callback")
EVENT = section(readme(), "An event, and a program that receives it")

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl: the README's example posts with it")


def run(folder: Path, script: str, url: str) -> str:
    """The output of a shell script of the README, with the server's URL."""
    done = subprocess.run(
        ["sh", "-ec", script.replace("http://127.0.0.1:8080", url)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout


def test_readme_has_at_most_200_lines() -> None:
    assert len(readme().splitlines()) <= 200


def test_the_two_commands_come_first_and_ci_runs_the_second() -> None:
    install, test = blocks(readme(), "sh")[:2]
    assert install.strip().endswith(".venv/bin/receiver serve")
    script = (ROOT / ".ci/run").read_text("utf-8")
    for part in ("-m venv .venv", "'.[test]'", ".venv/bin/pytest"):
        assert part in test
        assert part in script


def test_readme_names_every_reader() -> None:
    readers = ("Everybody", "Developer", "Operator", "Support", "BI", "Contributor")
    text = section(readme(), "Where to read on")
    assert [line.split("**")[1].rstrip(":") for line in text.splitlines() if line.startswith("* **")] == [*readers]


@needs_curl
def test_the_first_callback_is_answered_and_found(tmp_path: Path) -> None:
    [post, query] = [block for block in blocks(FIRST_CALLBACK, "sh") if "curl" in block]
    with serving(tmp_path) as server:
        output = run(tmp_path, (post + query).replace(".venv/bin/receiver messages list", "true"), server.url)
        listed = receiver(tmp_path, "messages", "list").stdout.decode()
    assert "200 OK" in output
    [message] = json.loads(output[output.index('[{"id"') :])
    assert (message["status"], message["deliveryCode"], message["tag"]) == ("failed", 4720, "order 4711")
    [expected] = blocks(FIRST_CALLBACK, "")
    assert listed.split() == expected.split()


def test_the_events_page_shows_the_event_of_the_readme() -> None:
    [shown] = blocks(EVENT, "json")
    assert shown in blocks(page("events"), "json")


def test_the_webhook_page_has_the_sink_of_the_readme() -> None:
    [shown] = blocks(EVENT, "toml")
    [of_page] = blocks(section(page("webhook"), "Trying it on this machine"), "toml")
    uncommented = [line.partition("    #")[0].rstrip() for line in shown.splitlines()]
    assert set(of_page.splitlines()) <= {*uncommented}


@needs_curl
def test_the_first_callback_is_published_as_the_event_shown_to_the_program_shown(tmp_path: Path) -> None:
    [program] = blocks(EVENT, "python")
    [table] = blocks(EVENT, "toml")
    [shown] = blocks(EVENT, "json")
    port = free_port()
    archive = '[[sinks]]\nname = "archive"\ntype = "jsonl"\npath = "events.jsonl"\nstart = "beginning"\n'
    (tmp_path / "receiver.toml").write_text(table.replace(":9000/", f":{port}/") + archive, "utf-8")
    [post] = [block for block in blocks(FIRST_CALLBACK, "sh") if "curl -i" in block]
    with running(tmp_path, program.replace("9000", str(port))) as output, serving(tmp_path) as server:
        run(tmp_path, post, server.url)
        until(lambda: output.read_bytes().endswith(b"\n"))
        until(lambda: (tmp_path / "events.jsonl").exists() and (tmp_path / "events.jsonl").read_bytes())
    assert output.read_text("utf-8") == "message.failed 17672688001234example failed\n"
    published, expected = json.loads((tmp_path / "events.jsonl").read_bytes()), json.loads(shown)
    for event in (published, expected):
        del event["data"]["receivedTime"]
    assert published == expected


@contextmanager
def running(folder: Path, program: str) -> Iterator[Path]:
    """A Python program that runs; the file holds its output."""
    pytest.importorskip("standardwebhooks")
    script, output = folder / "program.py", folder / "program.txt"
    script.write_text(program, "utf-8")
    with output.open("wb") as stdout, (folder / "program-errors.txt").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, script], cwd=folder, env=environment(), stdout=stdout, stderr=stderr
        )
    try:
        yield output
    finally:
        process.kill()
        process.wait(10)
