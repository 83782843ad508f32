"""Logging: one line per log event, as JSON or for a terminal, with control characters escaped and secrets removed.

No code logs message texts, credentials or tokens; `_no_secrets` is a second safeguard.

A thread writes the lines of a server: standard error may be a pipe that nobody reads, and a process that waits for such
a pipe answers nobody. Lines that find the queue full are dropped and counted.
"""

import atexit
import logging
import os
import re
import select
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import orjson
import structlog
from structlog.typing import EventDict, WrappedLogger

_SECRET_KEYS: Final = re.compile(r"authorization|password|secret|token|cookie|credential", re.IGNORECASE)
# At `debug` these log SQL statements with their values, or requests with their headers; at `info` statements and URLs.
_REVEALING_LOGGERS: Final = ("aiosqlite", "asyncio", "sqlalchemy", "httpx2", "httpcore2")
_URL_PASSWORD: Final = re.compile(r"(?<=://)([^/\s:@]*):[^/\s@]*@")
# Half of a pair of UTF-16, as JSON of others may contain it, is no text in UTF-8.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Some thousands of lines: a reader that pauses for seconds loses nothing.
_MAX_WAITING_BYTES: Final = 1024 * 1024
# The end of a process waits this long for the last lines.
FLUSH_SECONDS: Final = 2.0
_SAMPLE_SECONDS: Final = 60.0
_MAX_CAUSES: Final = 10

log = structlog.get_logger("receiver.logs")


def configure(*, form: str = "auto", level: str = "info", threaded: bool = True) -> None:
    """Configures logging to standard error; `form` is json, console, or auto (console on a terminal, else json).

    With `threaded` no line holds up the process. A command that ends by itself writes at once, in the order of its
    other output.
    """
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    console = form == "console" or (form == "auto" and is_terminal)
    rendered: list[Any] = (
        [structlog.dev.ConsoleRenderer(colors=is_terminal)]
        if console
        else [structlog.processors.EventRenamer("message"), _in_order, structlog.processors.JSONRenderer(_dumps)]
    )
    shared: list[Callable[[WrappedLogger, str, EventDict], Any]] = [
        # The id of the request, from `receiver.intake.request_ids`.
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(_rendered),
        _no_secrets,
        _no_control_characters,
    ]
    structlog.configure(
        # The level first: a line that is not wanted must not cost the work of all the others.
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    flush()
    handler = _Threaded(sys.stderr) if threaded else logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Formatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    root = logging.getLogger()
    for earlier in root.handlers:
        if isinstance(earlier, _Threaded):
            earlier.end()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # Python writes a warning to standard error itself, and would wait for its reader.
    logging.captureWarnings(True)
    for name in _REVEALING_LOGGERS:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def use_logging() -> None:
    """Sends log lines to `logging`, where an application that mounts this one decides what becomes of them.

    Does nothing if structlog is configured, by the application or by `configure`: structlog by itself prints each line
    to standard output.
    """
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            _no_secrets,
            _no_control_characters,
            _as_text,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _as_text(_: WrappedLogger, __: str, event: EventDict) -> tuple[tuple[str], dict[str, Any]]:
    """The message with its fields behind it; `logging` formats a traceback itself."""
    message, with_traceback = event.pop("event"), event.pop("exc_info", None)
    text = " ".join((str(message), *(f"{name}={value}" for name, value in event.items())))
    return (text,), {"exc_info": with_traceback} if with_traceback else {}


def flush(seconds: float = FLUSH_SECONDS) -> None:
    """Waits until the lines that were logged so far are written, but no longer than some seconds."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Threaded):
            handler.drain(seconds)


def dropped() -> int:
    """The number of lines that this process has dropped, because nobody read them."""
    return _Threaded.dropped


# --- lines that cannot be formatted ---


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """A value that cannot be formatted must neither fail the code that logs it nor lose the rest of its line."""

    def format(self, record: logging.LogRecord) -> str:
        try:
            return super().format(record)
        except Exception:
            return _unformatted(record)


_OF_EACH_LINE: Final = frozenset({"timestamp", "level", "event", "logger"})


def _unformatted(record: logging.LogRecord) -> str:
    """The line of a record that cannot be formatted: all but time, level, message and logger in one text."""
    if isinstance(record.msg, dict):
        fields = {name: value for name, value in record.msg.items() if name not in _OF_EACH_LINE}
        message = record.msg.get("event")
    else:
        # By their types: nobody has taken secrets out of what a library logs.
        message, fields = record.msg, {"args": [type(value).__qualname__ for value in record.args or ()]}
    line = {
        "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "message": _URL_PASSWORD.sub(r"\1:***@", _text(message)),
        "logger": record.name,
        "unformatted": _URL_PASSWORD.sub(r"\1:***@", " ".join(f"{key}={_text(fields[key])}" for key in fields)),
    }
    return _dumps(_no_control_characters(None, "", line))


def _text(value: object) -> str:
    """A value as it is shown to developers; its type if even that fails."""
    try:
        return value if type(value) is str else repr(value)
    except Exception:
        return f"<{type(value).__qualname__}>"


# --- the thread that writes ---


class _Threaded(logging.Handler):
    """Queues each line for a thread that writes it. The queue is bounded; lines beyond its bound are dropped."""

    dropped = 0
    """The lines that were dropped in this process."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._write = _writer(stream)
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._unreported = 0
        self._is_ending = False
        # Notified when a line arrives, and when all lines are written.
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="receiver-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
        with self._changed:
            # The line about dropped lines comes from the thread itself, and is never dropped.
            is_full = self._bytes + len(line) > _MAX_WAITING_BYTES and threading.current_thread() is not self._thread
            if is_full:
                self._count_dropped(1)
                return
            self._waiting.append(line)
            self._bytes += len(line)
            self._changed.notify_all()

    def drain(self, seconds: float) -> None:
        """Waits until all lines are written, but no longer than some seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._bytes, seconds)

    def end(self) -> None:
        """Ends the thread after the lines that wait."""
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()

    def _count_dropped(self, lines: int) -> None:
        _Threaded.dropped += lines
        self._unreported += lines

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_ending)
                if not self._waiting:
                    return
                lines, self._waiting = self._waiting, deque()
            written = self._write(b"".join(lines))
            with self._changed:
                self._bytes -= sum(map(len, lines))
                if not written:
                    self._count_dropped(len(lines))
                unreported = 0 if self._bytes or not written else self._unreported
                if unreported:
                    self._unreported = 0
                if not self._bytes:
                    self._changed.notify_all()
            if unreported:
                log.warning("log lines were dropped, because nobody read them", lines=unreported)


def _writer(stream: TextIO | None) -> Callable[[bytes], bool]:
    """A function that writes bytes to a stream and returns whether that succeeded."""
    if stream is None:
        return lambda _: False
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        # A stream of Python alone, as tests put it in the place of standard error.
        return lambda data: _write_text(stream, data)
    # Not through the stream: its lock is held for as long as a write takes, and the end of the process needs it.
    return lambda data: _write_all(descriptor, data)


def _write_text(stream: TextIO, data: bytes) -> bool:
    try:
        stream.write(data.decode())
        stream.flush()
    except (OSError, ValueError):
        return False
    return True


def _write_all(descriptor: int, data: bytes) -> bool:
    rest = memoryview(data)
    try:
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:
                # Another process, which shares the terminal or pipe, has made it non-blocking.
                select.select([], [descriptor], [])
    except OSError:
        # The reader is gone, or the disk is full.
        return False
    return True


atexit.register(flush)


# --- many alike ---


class Sampled:
    """One line for many alike: the first at once, then at most one line a minute, with the number since the last."""

    def __init__(self, logger: Any, message: str, *, seconds: float = _SAMPLE_SECONDS) -> None:
        self._logger, self._message, self._seconds = logger, message, seconds
        self._number = 0
        self._logged_at = float("-inf")

    def add(self, **fields: object) -> None:
        """Counts one; its fields are those of the line, if one is due."""
        self._number += 1
        now = time.monotonic()
        if now - self._logged_at >= self._seconds:
            self._logger.warning(self._message, times=self._number, **fields)
            self._logged_at, self._number = now, 0


# --- tracebacks ---


def frames(error: BaseException) -> str:
    """The traceback of an error about the content of a callback, without the texts that could repeat the content."""
    return _chain(error, lambda one: type(one).__qualname__)


def _rendered(exc_info: Any) -> str:
    """A traceback with the first line of each text: a database repeats the values of a row in the others."""
    return _chain(exc_info[1], lambda one: traceback.format_exception_only(one)[0].partition("\n")[0])


def _chain(error: BaseException | None, text: Callable[[BaseException], str]) -> str:
    """The traceback of an error behind those of its causes."""
    parts: list[str] = []
    while error is not None and len(parts) < _MAX_CAUSES:
        parts.append("".join((*traceback.format_tb(error.__traceback__), text(error))))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\nwhich led to:\n\n".join(reversed(parts))


# --- processors ---


def _in_order(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """What people look for first comes first."""
    first = {name: event.pop(name) for name in ("timestamp", "level", "message") if name in event}
    return {**first, **event}


def _dumps(value: Any, **_: Any) -> str:
    # The keys of counters are often members of an enumeration.
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _no_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if _SECRET_KEYS.search(key) and not isinstance(value, int):
            # A number is a count: of wrong credentials, for example.
            event[key] = "***"
        elif isinstance(value, str):
            event[key] = _URL_PASSWORD.sub(r"\1:***@", value)
    return event


def _no_control_characters(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Escapes control characters: a value from a request must not begin a new line or control a terminal."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            event[key] = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), value)
    return event
