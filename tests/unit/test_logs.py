"""The log: its lines, the thread that writes them, what is dropped, and the end of a process."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from receiver import logs
from receiver.logs import Sampled
from tests.log_lines import kept_configuration, lines, written

LINE = "x" * 1000


@pytest.fixture(autouse=True)
def configuration() -> Iterator[None]:
    """The configuration of other tests is as it was."""
    with kept_configuration():
        yield


@pytest.fixture
def log() -> Any:
    return structlog.get_logger("receiver.test")


@contextmanager
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Logs into a pipe; its other end."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"), os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        logs.configure(form="json")
        yield reading


def read_lines(reading: int, until_text: str) -> list[dict[str, Any]]:
    content = b""
    while until_text.encode() not in content or not content.endswith(b"\n"):
        content += os.read(reading, 65536)
    return [json.loads(line) for line in content.splitlines()]


def test_json_line_begins_with_timestamp_level_and_message(monkeypatch: pytest.MonkeyPatch, log: Any) -> None:
    stream = written(monkeypatch)
    log.warning("sink is down", sink="crm")
    logging.getLogger("other").warning("from %s", "a library")
    ours, theirs = lines(stream)
    assert list(ours)[:3] == ["timestamp", "level", "message"]
    assert ours["message"] == "sink is down"
    assert (ours["level"], ours["sink"], ours["logger"]) == ("warning", "crm", "receiver.test")
    assert (theirs["message"], theirs["logger"]) == ("from a library", "other")


def test_console_form_has_no_colours_in_a_file(monkeypatch: pytest.MonkeyPatch, log: Any) -> None:
    stream = written(monkeypatch, form="console")
    log.warning("sink is down", sink="crm")
    logs.flush()
    assert "\x1b" not in stream.getvalue()
    assert "sink=crm" in stream.getvalue()


def test_secrets_are_hidden_and_counts_of_credentials_are_not(monkeypatch: pytest.MonkeyPatch, log: Any) -> None:
    stream = written(monkeypatch)
    log.info("callbacks came in", **{"wrong-credentials": 3, "password": "secret"})
    [line] = lines(stream)
    assert (line["wrong-credentials"], line["password"]) == (3, "***")


class Kind(StrEnum):
    EVENTS = "events"


@pytest.mark.parametrize("threaded", [True, False])
@pytest.mark.parametrize("form", ["json", "console"])
def test_fields_may_have_names_of_an_enumeration(
    monkeypatch: pytest.MonkeyPatch, log: Any, form: str, threaded: bool
) -> None:
    stream = written(monkeypatch, form=form, threaded=threaded)
    log.info("removed old rows", **{Kind.EVENTS: 3}, by_kind={Kind.EVENTS: 3, 7: 1})
    if form == "console":
        logs.flush()
        assert "events=3" in stream.getvalue()
    else:
        [line] = lines(stream)
        assert {**line, "timestamp": ""} == {
            "timestamp": "",
            "level": "info",
            "message": "removed old rows",
            "logger": "receiver.test",
            "events": 3,
            "by_kind": {"events": 3, "7": 1},
        }


class Unwritable:
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


@pytest.mark.parametrize("threaded", [True, False])
@pytest.mark.parametrize("value", [2**64, {(1, 2): 3}, ["\ud800"], Unwritable()])
def test_line_that_cannot_be_formatted_keeps_its_time_level_message_and_fields(
    monkeypatch: pytest.MonkeyPatch, log: Any, value: Any, threaded: bool
) -> None:
    stream = written(monkeypatch, threaded=threaded)
    before = datetime.now(UTC)
    log.warning("sink is down", sink="crm", url="nats://user:canary@host", password="canary", value=value)
    [line] = lines(stream)
    assert before - timedelta(seconds=1) <= datetime.fromisoformat(line.pop("timestamp")) <= datetime.now(UTC)
    text = "<Unwritable>" if isinstance(value, Unwritable) else repr(value)
    assert line == {
        "level": "warning",
        "message": "sink is down",
        "logger": "receiver.test",
        "unformatted": f"sink=crm url=nats://user:***@host password=*** value={text}".replace("\\", "\\"),
    }


@pytest.mark.parametrize("threaded", [True, False])
def test_wrong_line_of_a_library_keeps_its_message_and_shows_no_value(
    monkeypatch: pytest.MonkeyPatch, threaded: bool
) -> None:
    stream = written(monkeypatch, threaded=threaded)
    logging.getLogger("other").warning("%d bytes came", "canary")
    [line] = lines(stream)
    assert line.pop("timestamp")
    assert line == {"level": "warning", "message": "%d bytes came", "logger": "other", "unformatted": "args=['str']"}


def test_half_a_surrogate_pair_is_escaped(monkeypatch: pytest.MonkeyPatch, log: Any) -> None:
    stream = written(monkeypatch)
    log.info("a request was refused", remote="\ud800")
    [line] = lines(stream)
    assert line["remote"] == r"\ud800"


def test_warnings_of_python_are_lines_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = written(monkeypatch)
    with monkeypatch.context() as patch:
        # pytest replaces the filters
        patch.setattr("warnings.filters", [])
        logging._showwarning("old", DeprecationWarning, "module.py", 1)  # type: ignore[attr-defined]
    [line] = lines(stream)
    assert line["logger"] == "py.warnings"


def test_pipe_that_nobody_reads_holds_nobody_up_and_dropped_lines_are_counted(
    monkeypatch: pytest.MonkeyPatch, log: Any
) -> None:
    before = logs.dropped()
    with pipe(monkeypatch) as reading:
        for _ in range(5000):
            log.info(LINE)
        dropped = logs.dropped() - before
        # 64 KiB are in the pipe, a mebibyte waits.
        assert 3500 < dropped < 4500
        found = read_lines(reading, "log lines were dropped")
        log.info("it flows again")
        [last] = read_lines(reading, "flows again")
    assert len(found) == 5000 - dropped + 1
    assert found[-1]["message"] == "log lines were dropped, because nobody read them"
    assert (found[-1]["level"], found[-1]["lines"]) == ("warning", dropped)
    assert last["message"] == "it flows again"


def test_flush_ends_though_nobody_reads(monkeypatch: pytest.MonkeyPatch, log: Any) -> None:
    with pipe(monkeypatch) as reading:
        for _ in range(200):
            log.info(LINE)
        logs.flush(0.05)
        log.info("the last line")
        read_lines(reading, "the last line")


def test_pipe_whose_reader_is_gone_counts_its_lines(monkeypatch: pytest.MonkeyPatch, log: Any) -> None:
    before = logs.dropped()
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        logs.configure()
        log.info("to nobody")
        logs.flush()
    assert logs.dropped() - before == 1


def test_non_blocking_pipe_gets_every_line(monkeypatch: pytest.MonkeyPatch, log: Any) -> None:
    with pipe(monkeypatch) as reading:
        os.set_blocking(sys.stderr.fileno(), False)
        for _ in range(500):
            log.info(LINE)
        log.info("the last line")
        assert len(read_lines(reading, "the last line")) == 501


def test_without_standard_error_nothing_fails(monkeypatch: pytest.MonkeyPatch, log: Any) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    logs.configure()
    log.info("to nobody")
    logs.flush()


def test_command_writes_its_lines_at_once(monkeypatch: pytest.MonkeyPatch, log: Any) -> None:
    stream = written(monkeypatch, threaded=False)
    log.warning("sink is down")
    assert "sink is down" in stream.getvalue()


@pytest.mark.parametrize("end", ["sys.exit(1)", "raise RuntimeError"])
def test_line_right_before_the_end_of_a_process_is_written(end: str) -> None:
    program = (
        "import sys, structlog; from receiver import logs; "
        f"logs.configure(); structlog.get_logger('x').error('last'); {end}"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert '"message":"last"' in ended.stderr


def test_end_of_a_process_waits_for_nobody_who_does_not_read() -> None:
    program = (
        "import structlog; from receiver import logs; logs.configure(); log = structlog.get_logger('x')\n"
        "for _ in range(300): log.error('x' * 1000)\n"
        "print('logged', flush=True)"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.wait(120) == 0


def test_sampled_logs_the_first_at_once_and_then_counts(monkeypatch: pytest.MonkeyPatch, log: Any) -> None:
    stream, clock = written(monkeypatch), SimpleNamespace(now=1000.0)
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: clock.now))
    sampled = Sampled(log, "callbacks are quarantined", seconds=60)
    for number in range(100):
        sampled.add(callback=number)
    clock.now += 60
    sampled.add(callback=-1)
    assert [(line["times"], line["callback"]) for line in lines(stream)] == [(1, 0), (100, -1)]


REFUSED = "bad row\nFailing row contains (canary)"


def fail(text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError as error:
        raise RuntimeError(f"cannot store\nDETAIL: {text}") from error


def test_traceback_has_the_first_lines_of_its_texts_alone(monkeypatch: pytest.MonkeyPatch, log: Any) -> None:
    """A database repeats the values of a row in the lines below the first."""
    stream = written(monkeypatch)
    try:
        fail(REFUSED)
    except RuntimeError:
        log.exception("dispatcher failed")
        logging.getLogger("library").exception("a library failed")
    for line in lines(stream):
        assert "canary" not in json.dumps(line)
        assert "in fail" in line["exception"]
        cause, _, last = line["exception"].partition("which led to:")
        assert cause.rstrip().endswith("ValueError: bad row")
        assert last.endswith("RuntimeError: cannot store")


def test_frames_have_no_text_of_an_error() -> None:
    try:
        fail(REFUSED)
    except RuntimeError as error:
        found = logs.frames(error)
    assert "canary" not in found
    assert "in fail" in found
    assert found.endswith("RuntimeError")
