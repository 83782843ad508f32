"""Logging: one line per log event, as JSON or for a terminal, with control characters escaped and secrets removed.

No code logs message texts, credentials or tokens; `_no_secrets` is a second safeguard.
"""

import logging
import re
import sys
from collections.abc import Callable
from typing import Any, Final

import orjson
import structlog
from structlog.typing import EventDict, WrappedLogger

_SECRET_KEYS: Final = re.compile(r"authorization|password|secret|token|cookie|credential", re.IGNORECASE)
# At `debug` these log SQL statements with their values, or requests with their headers; at `info` statements and URLs.
_REVEALING_LOGGERS: Final = ("aiosqlite", "asyncio", "sqlalchemy", "httpx2", "httpcore2")
_URL_PASSWORD: Final = re.compile(r"(?<=://)([^/\s:@]*):[^/\s@]*@")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def configure(*, form: str = "auto", level: str = "info") -> None:
    """Configures logging to standard error; `form` is json, console, or auto (console on a terminal, else json)."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer(_dumps)
    shared: list[Callable[[WrappedLogger, str, EventDict], Any]] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _no_secrets,
        _no_control_characters,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in _REVEALING_LOGGERS:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def _dumps(value: Any, **_: Any) -> str:
    return orjson.dumps(value, default=str).decode()


def _no_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if _SECRET_KEYS.search(key):
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
