"""What a process watches about itself while it runs: the delay of its event loop, and what it did within a minute."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Final, Protocol

import structlog

from receiver.errors import StorageUnavailable

_LOOP_SECONDS: Final = 0.5
# A callback that waits this long is late for Bandwidth, which gives up after ten seconds.
_HELD_SECONDS: Final = 2.0
MINUTE_SECONDS: Final = 60.0

log = structlog.get_logger("receiver.monitoring")


class Failures:
    """Failures of a task in a row: since when, the backoff after each, and when a line of the log is due.

    The first failure has a line, then at most one a minute.
    """

    def __init__(self, clock: Callable[[], datetime], *, first_seconds: float, most_seconds: float) -> None:
        self._clock = clock
        self._first_seconds, self._most_seconds = first_seconds, most_seconds
        self.number = 0
        self.since: datetime | None = None
        self.error: str | None = None
        self.line_is_due = False
        self._logged_at = float("-inf")

    def add(self, error: Exception) -> float:
        """Counts a failure; returns the seconds to wait before the next try."""
        self.number += 1
        self.since = self.since or self._clock()
        # Only the first line: further lines may repeat the data of callbacks.
        first = str(error).partition("\n")[0]
        self.error = first if isinstance(error, StorageUnavailable) else f"{type(error).__name__}: {first}"
        self.line_is_due = time.monotonic() - self._logged_at >= MINUTE_SECONDS
        if self.line_is_due:
            self._logged_at = time.monotonic()
        return float(min(self._first_seconds * 2 ** min(self.number - 1, 10), self._most_seconds))

    def end(self) -> None:
        """Forgets the failures: the task has succeeded."""
        self.number, self.since, self.error, self.line_is_due = 0, None, None, False
        self._logged_at = float("-inf")


class LoopObserver(Protocol):
    """Receives the measurements of an event loop."""

    def loop_delayed(self, seconds: float) -> None:
        """A timer of the event loop was late by `seconds`."""
        ...


class Monitor:
    """Measures the delay of the event loop that starts it, and logs once a minute what has happened.

    `totals` returns numbers by name that only rise. The line names those that rose within the minute; there is none
    when none did. `message` is the text of the line. `check` is called once a minute too, and may log more.
    """

    def __init__(
        self,
        observer: LoopObserver,
        *,
        message: str,
        totals: Callable[[], Mapping[str, int]],
        check: Callable[[], Awaitable[None]] | None = None,
        minute_seconds: float = MINUTE_SECONDS,
    ) -> None:
        self._observer = observer
        self._message = message
        self._totals = totals
        self._check = check
        self._minute_seconds = minute_seconds
        self._logged: Mapping[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._logged = dict(self._totals())
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._log_minutes())]

    async def stop(self) -> None:
        """Logs what has happened since the last line, and stops."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._log()

    async def _watch(self) -> None:
        while True:
            due = time.monotonic() + _LOOP_SECONDS
            await asyncio.sleep(_LOOP_SECONDS)
            delay = max(0.0, time.monotonic() - due)
            self._observer.loop_delayed(delay)
            if delay >= _HELD_SECONDS:
                log.warning("the event loop was held up; nothing was answered meanwhile", seconds=round(delay, 1))

    async def _log_minutes(self) -> None:
        while True:
            await asyncio.sleep(self._minute_seconds)
            self._log()
            if self._check is not None:
                try:
                    await self._check()
                except Exception:  # the next minute may succeed
                    log.exception("a check of this process failed")

    def _log(self) -> None:
        totals = dict(self._totals())
        risen = {name: number - self._logged.get(name, 0) for name, number in totals.items()}
        self._logged = totals
        if any(risen.values()):
            log.info(self._message, **{name: number for name, number in risen.items() if number})
