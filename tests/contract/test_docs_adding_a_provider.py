"""The provider on its page is complete: in a copy of the project it passes its fixture, its test and those of all."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT, blocks, page

TEXT = page("adding-a-provider")
MODULE, TEST = blocks(TEXT, "python")
[CHANGES] = blocks(TEXT, "diff")
[FIXTURE] = blocks(TEXT, "json")
[COMMAND] = blocks(TEXT, "sh")


def patch(root: Path, changes: str) -> None:
    """Makes the changes of a diff; its hunks have no line numbers."""
    for part in changes.split("--- ")[1:]:
        name, *hunks = part.split("@@\n")
        file = root / name.strip()
        text = file.read_text("utf-8")
        for hunk in hunks:
            lines = hunk.splitlines(keepends=True)
            before, after = ("".join(line[1:] for line in lines if line[0] in marks) for marks in (" -", " +"))
            assert text.count(before) == 1, before
            text = text.replace(before, after)
        file.write_text(text, "utf-8")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project with the files on the page."""
    for name in ("receiver", "migrations", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("alembic.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "receiver/providers/acme.py").write_text(MODULE, "utf-8")
    (tmp_path / "tests/acceptance/test_acme.py").write_text(TEST, "utf-8")
    (tmp_path / "tests/fixtures/callbacks/acme-failed.json").write_text(FIXTURE, "utf-8")
    patch(tmp_path, CHANGES)
    return tmp_path


def test_provider_on_the_page_passes_its_tests_and_those_of_every_provider(copy: Path) -> None:
    command, *options = COMMAND.split()
    assert command == ".venv/bin/pytest"
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", "-k", "acme or providers"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
