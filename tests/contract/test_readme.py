"""The README holds: its commands exist, its settings and columns are all there are, its first callback works."""

import json
import re
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from receiver.settings import Retention, Settings
from tests.running import receiver, serving

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def section(title: str) -> str:
    _, _, rest = README.partition(f"\n## {title}\n")
    assert rest, f"the README has no section {title}"
    return rest.partition("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [content for named, content in fenced if named == language]


def test_the_two_commands_come_first_and_ci_runs_the_second() -> None:
    install, test = blocks(README, "sh")[:2]
    assert install.strip().endswith(".venv/bin/receiver serve")
    script = (ROOT / ".ci/run").read_text("utf-8")
    for part in ("-m venv .venv", "'.[test]'", ".venv/bin/pytest"):
        assert part in test
        assert part in script


def test_every_setting_is_documented_and_no_other() -> None:
    documented = set(re.findall(r"`RECEIVER_([A-Z_]+)`", section("Settings")))
    nested = {f"RETENTION__{name.upper()}" for name in Retention.model_fields}
    settings = {name.upper() for name in Settings.model_fields} - {"RETENTION"} | nested
    assert documented - {"CONFIG", "SECRETS_DIR"} == settings


def test_every_command_it_shows_exists(tmp_path: Path) -> None:
    shown = set(re.findall(r"`(?:\.venv/bin/)?receiver ([a-z]+(?:-[a-z]+)?(?: [a-z]+)?)\b", README))
    groups = {"tag", "messages", "callbacks", "sinks", "dead-letters"}
    for command in sorted(shown):
        first, *rest = command.split()
        words = [first, *rest] if first in groups else [first]
        assert receiver(tmp_path, *words, "--help").returncode == 0, command


def test_the_columns_of_the_view_are_those_documented(sqlite_url: str) -> None:
    with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as connection:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(message_status)")}
    table = section("The status table").partition("| column | what |")[2].partition("\n\n")[0]
    documented = {
        name
        for line in table.splitlines()
        for name in re.findall(r"`(\w+)`", line.split("|")[1] if "|" in line else "")
    }
    assert documented == columns


def test_every_link_within_it_leads_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl: the README's example posts with it")
def test_the_first_callback_is_answered_and_found(tmp_path: Path) -> None:
    [post, ask] = [block for block in blocks(section("A first callback"), "sh") if "curl" in block]
    with serving(tmp_path) as server:
        script = (
            (post + ask)
            .replace("http://127.0.0.1:8080", server.url)
            .replace(".venv/bin/receiver messages list", "true")
        )
        ran = subprocess.run(
            ["sh", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
        )
        listed = receiver(tmp_path, "messages", "list").stdout.decode()
    assert "200 OK" in ran.stdout
    [message] = json.loads(ran.stdout[ran.stdout.index('[{"id"') :])
    assert (message["status"], message["deliveryCode"], message["tag"]) == ("failed", 4720, "order 4711")
    [expected] = blocks(section("A first callback"), "")
    assert listed.split() == expected.split()
