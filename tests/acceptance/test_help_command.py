"""`receiver help`: topics, sections, commands and search, on a terminal and in a pipe."""

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from receiver import documents
from receiver.cli import main
from tests.processes import COMMAND, environment


class Result:
    """What a command wrote, and its exit code."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.code = main(["help", *arguments])
        self.out, self.err = capsys.readouterr()


def test_help_lists_every_topic_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    result = Result(capsys)
    assert (result.code, result.err) == (0, "")
    text = " ".join(result.out.split())
    for topic in documents.topics():
        assert f"{topic.name} {topic.summary}" in text


def test_help_prints_the_markdown_of_a_topic(capsys: pytest.CaptureFixture[str]) -> None:
    result = Result(capsys, "sinks")
    assert (result.code, result.err) == (0, "")
    assert result.out == (documents.FOLDER / "sinks.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "heading"),
    [
        (["messages", "list"], "## receiver messages list\n"),
        (["serve"], "## receiver serve\n"),
        (["RECEIVER_PORT"], "## RECEIVER_PORT\n"),
        (["settings", "receiver_port"], "## RECEIVER_PORT\n"),
    ],
)
def test_help_prints_one_command_or_setting(capsys: pytest.CaptureFixture[str], words: list[str], heading: str) -> None:
    result = Result(capsys, *words)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(heading)
    assert result.out.count("\n## ") == 0


def test_an_unknown_topic_is_a_usage_error_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    result = Result(capsys, "sinsk")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "there is no topic 'sinsk' (did you mean sinks" in result.err


def test_search_prints_commands_that_open_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    found = Result(capsys, "--search", "dead", "letter")
    assert (found.code, found.err) == (0, "")
    commands = [line for line in found.out.splitlines() if line.startswith("receiver help ")]
    assert commands
    for command in commands:
        assert Result(capsys, *command.split()[2:]).code == 0, command


def test_search_without_a_hit_fails(capsys: pytest.CaptureFixture[str]) -> None:
    result = Result(capsys, "--search", "unheard-of-xyz")
    assert (result.code, result.out, result.err) == (1, "", "receiver: no topic mentions 'unheard-of-xyz'\n")


def test_help_on_a_terminal_is_formatted() -> None:
    parent, child = pty.openpty()
    variables = environment() | {"COLUMNS": "60", "TERM": "xterm"}
    variables.pop("NO_COLOR", None)
    with subprocess.Popen([COMMAND, "help", "stdout"], env=variables, stdout=child, stderr=child) as process:
        os.close(child)
        output = b""
        # a closed terminal is an error to read from
        try:
            while part := os.read(parent, 65536):
                output += part
        except OSError:
            pass
        assert process.wait(60) == 0
    os.close(parent)
    assert b"\x1b[" in output
    text = " ".join(re.sub(r"\x1b\[[\d;]*m", "", output.decode()).split())
    assert "](" not in text
    assert "receiver help sinks" in text


@pytest.mark.parametrize("arguments", [["settings"], []], ids=["topic", "list"])
def test_a_closed_pipe_ends_help_quietly(tmp_path: Path, arguments: list[str]) -> None:
    with subprocess.Popen(
        [COMMAND, "help", *arguments], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(60) == -signal.SIGPIPE
        assert process.stderr.read() == b""


def test_help_loads_neither_the_server_nor_the_settings() -> None:
    script = (
        "import sys; from receiver.cli import main; code = main(['help', 'sinks']);"
        "heavy = {'sqlalchemy', 'sqlmodel', 'starlette', 'uvicorn', 'pydantic_settings', 'rich', 'markdown_it'}"
        " & sys.modules.keys(); print(sorted(heavy), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_help_is_printed_where_the_encoding_lacks_characters() -> None:
    variables = environment() | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([COMMAND, "help"], env=variables, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
