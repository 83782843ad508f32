"""Adds up the requests that the callback routes refuse, and writes them every few seconds, beside the request path.

The worker evaluates the rules of alerts, and wrong credentials are seen by web processes alone.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Final

import structlog

from receiver.intake.endpoint import EndpointObserver
from receiver.logs import Sampled
from receiver.storage.refusals import minute_of

# Bandwidth sends each v2 callback without credentials first: that is no fault of anybody.
_EXPECTED: Final = frozenset({"no-credentials"})
_SECONDS: Final = 10.0
# While the database does not answer. There are about ten reasons.
_MOST_CELLS: Final = 1_000

log = structlog.get_logger("receiver.refusals")

Write = Callable[[Mapping[tuple[int, str], int], datetime], Awaitable[None]]


class Refusals:
    """An observer of the callback routes that counts refusals by minute and reason, and writes them; see `Write`.

    A failure to write is harmless: the counts are written later, or lost if there are very many.
    """

    def __init__(
        self,
        observer: EndpointObserver,
        write: Write,
        *,
        clock: Callable[[], datetime],
        seconds: float = _SECONDS,
    ) -> None:
        self._observer = observer
        self._write = write
        self._clock = clock
        self._seconds = seconds
        self._counts: Counter[tuple[int, str]] = Counter()
        self._failed = Sampled(log, "refused requests could not be counted for alerts")
        self._task: asyncio.Task[None] | None = None

    def rejected(self, reason: str) -> None:
        self._observer.rejected(reason)
        if reason not in _EXPECTED:
            cell = minute_of(self._clock()), reason
            if cell in self._counts or len(self._counts) < _MOST_CELLS:
                self._counts[cell] += 1

    async def start(self) -> None:
        self._task = asyncio.create_task(self._write_regularly())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._flush()

    async def _write_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            await self._flush()

    async def _flush(self) -> None:
        if not self._counts:
            return
        counts, self._counts = self._counts, Counter()
        try:
            await self._write(counts, self._clock())
        except Exception as error:
            self._failed.add(error=type(error).__name__)
            # Those that came meanwhile first: rules look at the newest.
            for cell, number in sorted(counts.items(), reverse=True):
                if cell in self._counts or len(self._counts) < _MOST_CELLS:
                    self._counts[cell] += number
