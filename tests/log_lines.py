"""The lines that this process logs as JSON, as a server would."""

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import structlog

from receiver import logs


@contextmanager
def kept_configuration() -> Iterator[None]:
    """The configuration of the log is restored at the end."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        logs.flush(1)
        logging.captureWarnings(False)
        root.handlers = handlers
        root.setLevel(level)
        structlog.configure(**before)


def written(monkeypatch: pytest.MonkeyPatch, **options: Any) -> io.StringIO:
    """What is logged from now on."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure(**options)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    logs.flush()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@contextmanager
def json_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The lines that are logged in the block."""
    with kept_configuration():
        stream = written(monkeypatch, form="json")
        yield lambda: lines(stream)
