"""The sink on its page is short, can be configured by both names, and passes the tests on the page."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.pages import blocks, page

TEXT = page("own-sinks")
SINK, TESTS = blocks(TEXT, "python")
TABLE, PACKAGE = (tomllib.loads(block) for block in blocks(TEXT, "toml"))
[COMMAND] = blocks(TEXT, "sh")

CONFIGURE = """
import json, sys
from receiver.sinks.registry import configure
[sink] = configure([json.loads(sys.argv[1])])
print(type(sink.sink).__module__, type(sink.sink).__name__, sink.settings.port)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with only the files on the page."""
    (tmp_path / "my_sinks.py").write_text(SINK, "utf-8")
    (tmp_path / "test_my_sinks.py").write_text(TESTS, "utf-8")
    return tmp_path


def run(home: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(home)}
    ran = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def configured(home: Path, table: dict[str, Any]) -> list[str]:
    return run(home, sys.executable, "-c", CONFIGURE, json.dumps(table)).split()


def test_it_has_thirty_lines() -> None:
    assert sum(bool(line.strip()) for line in SINK.splitlines()) <= 30


def test_it_is_found_by_module_and_class(home: Path) -> None:
    [table] = TABLE["sinks"]
    assert configured(home, table) == ["my_sinks", "LinesSink", "4711"]


def test_it_is_found_by_its_entry_point(home: Path) -> None:
    [[group, names]] = PACKAGE["project"]["entry-points"].items()
    installed = home / "my_sinks-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-sinks\nVersion: 1.0\n", "utf-8")
    (installed / "entry_points.txt").write_text(
        f"[{group}]\n" + "".join(f"{name} = {where}\n" for name, where in names.items()), "utf-8"
    )
    [table] = TABLE["sinks"]
    assert configured(home, {**table, "type": "lines"}) == ["my_sinks", "LinesSink", "4711"]


@pytest.mark.slow
def test_it_passes_the_conformance_kit(home: Path) -> None:
    python, *options = COMMAND.split()
    assert python == "python"
    output = run(home, sys.executable, *options, "-p", "no:cacheprovider", "-W", "error")
    assert " passed, 2 skipped" in output
    assert "the sink gets one batch at a time" in output
