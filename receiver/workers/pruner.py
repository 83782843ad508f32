"""The pruner: once an hour it lets go of what has had its time, in small bites, with a pause after each."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Final

import structlog

from receiver.errors import StorageUnavailable
from receiver.storage import retention
from receiver.storage.database import Database
from receiver.storage.retention import Errand, Kind

_EVERY_SECONDS: Final = 3600.0
# about as long as a bite takes: intake then has half of the database at least
_PAUSE_SECONDS: Final = 0.02

log = structlog.get_logger("receiver.pruner")


class Pruner:
    """Forgets what is older than its age; a kind without an age is kept. `sinks` are those of the settings."""

    def __init__(
        self,
        database: Database,
        ages: Mapping[str, timedelta],
        *,
        clock: Callable[[], datetime],
        sinks: Collection[str] = (),
        every: float = _EVERY_SECONDS,
        bite: int = 500,
    ) -> None:
        self._database = database
        self._ages = ages
        self._clock = clock
        self.sinks = frozenset(sinks)
        self._every = every
        self._bite = bite
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Ends; a bite that is under way is either wholly done or not at all."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def prune(self) -> dict[Kind, int]:
        """Forgets all there is to be forgotten now, and returns how many rows of each kind that were."""
        return {errand.kind: await self._prune(errand) for errand in self._errands()}

    async def count(self) -> dict[Kind, int]:
        """How many rows of each kind `prune` would find."""
        return {errand.kind: await retention.count(self._database, errand) for errand in self._errands()}

    def _errands(self) -> list[Errand]:
        now = self._clock()
        return [
            Errand(kind=kind, before=now - self._ages[kind], now=now, sinks=self.sinks, limit=self._bite)
            for kind in Kind
            if kind in self._ages
        ]

    async def _prune(self, errand: Errand) -> int:
        forgotten, place = 0, 0
        while True:
            bite = await retention.bite(self._database, errand, place)
            forgotten += bite.forgotten
            if bite.retries:
                log.warning("retries of sinks that are no longer there were forgotten", retries=bite.retries)
            if bite.next is None:
                return forgotten
            place = bite.next
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _work(self) -> None:
        while True:
            await self._prune_and_tell()
            await asyncio.sleep(self._every)

    async def _prune_and_tell(self) -> None:
        try:
            forgotten = await self.prune()
        except StorageUnavailable as error:
            log.warning("could not forget what is old, will try again", error=str(error))
        except Exception:  # whatever it is, the next hour may be luckier
            log.exception("could not forget what is old")
        else:
            if any(forgotten.values()):
                log.info("forgot what is old", **forgotten)
