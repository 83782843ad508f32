"""The pruner: once an hour it removes rows that are older than their age, in small batches, with a pause after each."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Final

import structlog

from receiver.errors import StorageUnavailable
from receiver.storage import retention
from receiver.storage.database import Database
from receiver.storage.retention import Kind, LogAges, PruneTask

_EVERY_SECONDS: Final = 3600.0
# About as long as a batch takes, which leaves at least half of the database's time to the processor.
_PAUSE_SECONDS: Final = 0.02

log = structlog.get_logger("receiver.pruner")


class Pruner:
    """Removes rows that are older than the age of their kind; a kind without an age stays.

    `sinks` are the names of the configured sinks.
    """

    def __init__(
        self,
        database: Database,
        ages: Mapping[str, timedelta],
        *,
        clock: Callable[[], datetime],
        sinks: Collection[str] = (),
        every: float = _EVERY_SECONDS,
        limit: int = 500,
    ) -> None:
        self._database = database
        self._ages = ages
        self._clock = clock
        self.sinks = frozenset(sinks)
        self._every = every
        self._limit = limit
        self._log_ages = LogAges()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Stops; a running batch is committed as a whole or not at all."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def prune(self) -> dict[Kind, int]:
        """Removes all old rows, and returns how many of each kind were removed."""
        return {task.kind: await self._prune(task) for task in self._tasks()}

    async def count(self) -> dict[Kind, int]:
        """How many rows of each kind `prune` would remove."""
        return {task.kind: await retention.count(self._database, task) for task in self._tasks()}

    def _tasks(self) -> list[PruneTask]:
        now = self._clock()
        return [
            PruneTask(
                kind=kind,
                before=now - self._ages[kind],
                now=now,
                sinks=self.sinks,
                limit=self._limit,
                ages=self._log_ages,
            )
            for kind in Kind
            if kind in self._ages
        ]

    async def _prune(self, task: PruneTask) -> int:
        removed, place = 0, 0
        while True:
            batch = await retention.prune(self._database, task, place)
            removed += batch.removed
            if batch.retries:
                log.warning("removed retries of sinks that are no longer configured", retries=batch.retries)
            if batch.next is None:
                return removed
            place = batch.next
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _work(self) -> None:
        while True:
            await self._prune_and_log()
            await asyncio.sleep(self._every)

    async def _prune_and_log(self) -> None:
        try:
            removed = await self.prune()
        except StorageUnavailable as error:
            log.warning("old rows could not be removed, will try again", error=str(error))
        except Exception:  # the run of the next hour may succeed
            log.exception("old rows could not be removed")
        else:
            if any(removed.values()):
                log.info("removed old rows", **removed)
