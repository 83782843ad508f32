"""What a sink is to be given next, read from the log and from its retries into its window."""

from datetime import datetime
from typing import Final

from receiver.domain.log import LogEntry
from receiver.domain.publication import Candidate
from receiver.domain.window import Window
from receiver.sinks.registry import ConfiguredSink
from receiver.storage import event_log, sinks
from receiver.storage.database import Database
from receiver.workers.publishing import lane, publication

WINDOW: Final = 256
_MOST_RETRIES: Final = WINDOW // 2


class Feed:
    """Fills a window. `log_grew` and `retries_moved` say that it is worth looking."""

    def __init__(self, database: Database, configured: ConfiguredSink, window: Window) -> None:
        self._database = database
        self._sink = configured.name
        self._filter = configured.settings.filter
        self._window = window
        self.log_grew = True
        self.retries_moved = True

    async def read(self, now: datetime) -> None:
        """Reads on as far as there is room, and takes the retries whose time has come."""
        if self.log_grew and len(self._window) <= WINDOW // 2:
            self.log_grew = await self._read_log(WINDOW - len(self._window))
        if self.retries_moved:
            self.retries_moved = False
            await self._read_retries(now)

    @property
    def has_more(self) -> bool:
        """Whether reading again would give more at once."""
        return self.log_grew and len(self._window) <= WINDOW // 2

    async def _read_log(self, room: int) -> bool:
        """Returns whether the log goes on."""
        async with self._database.reading() as connection:
            entries = await event_log.read_after(connection, self._window.read_to, room)
            wanted = {entry.position for entry in entries if self._filter.passes(entry)}
            lanes = {lane(entry) for entry in entries if entry.position in wanted}
            blocked = await sinks.blocked_lanes(self._database, connection, self._sink, lanes) if lanes else frozenset()
        for entry in entries:
            if entry.position in wanted:
                self._queue(entry, is_blocked=lane(entry) in blocked)
            else:
                self._window.pass_over(entry.position)
        return len(entries) == room

    def _queue(self, entry: LogEntry, *, is_blocked: bool) -> None:
        candidate = Candidate(publication=publication(entry))
        if is_blocked:
            self._window.park(candidate)
        else:
            self._window.queue(candidate)

    async def _read_retries(self, now: datetime) -> None:
        async with self._database.reading() as connection:
            due = await sinks.due_retries(connection, self._sink, now=now, limit=_MOST_RETRIES)
            new = {retry.position: retry for retry in due if not self._window.holds_retry(retry.position)}
            entries = await event_log.read_at(connection, list(new)) if new else []
        for entry in entries:
            retry = new[entry.position]
            candidate = Candidate(publication=publication(entry), attempts=retry.attempts, since=retry.first_at)
            self._window.queue_retry(candidate)
