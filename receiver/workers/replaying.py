"""A replay at work: old events read once more, behind everything that is new."""

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Final

from receiver.domain.publication import Candidate, Decision, Done, Result, Retry, decide_replayed
from receiver.domain.queries import ReplayView
from receiver.domain.window import Window
from receiver.sinks.registry import ConfiguredSink
from receiver.storage import event_log, retries
from receiver.storage.database import Database
from receiver.storage.settling import Progress
from receiver.workers.feed import WINDOW, has_room
from receiver.workers.publishing import publication

# a replay keeps no retries: what fails is tried so often, while the replay as a whole waits, and is then a dead letter
_TRIES: Final = 3


class Replaying:
    """Reads from a replay's position to its end, and keeps count. What the sink has yet to be given is left out."""

    def __init__(self, database: Database, configured: ConfiguredSink, asked: ReplayView, *, slots: int) -> None:
        self.id = asked.id
        self.window = Window(asked.position, slots=slots, keeps_order=configured.sink.keeps_order)
        self._database = database
        self._settings = configured.settings
        self._filter = configured.settings.filter
        self._end = asked.to_position
        self._tries: Counter[int] = Counter()
        self.is_left = False
        self._rests_until = float("-inf")

    async def read(self) -> None:
        """Reads on while there is room."""
        if not self.has_more:
            return
        room = WINDOW - len(self.window)
        async with self._database.reading() as connection:
            entries = await event_log.read_after(connection, self.window.read_to, room)
            read_to = min(entries[-1].position, self._end) if len(entries) == room else self._end
            awaited = await retries.awaited(connection, self._settings.name, self.window.read_to, read_to)
        for entry in entries:
            if entry.position <= self._end and entry.position not in awaited and self._filter.passes(entry):
                self.window.queue(Candidate(publication=replace(publication(entry), replayed=True)))
        self.window.pass_over(read_to)

    def rests(self, now: float) -> bool:
        """Whether it waits because the sink did not take an event; times are seconds of a steady clock."""
        return now < self._rests_until

    @property
    def has_more(self) -> bool:
        """Whether reading again would give more at once."""
        return self.window.read_to < self._end and has_room(self.window)

    @property
    def has_ended(self) -> bool:
        """Whether all of it is done, and written."""
        return self.window.cursor >= self._end

    def decide(self, candidate: Candidate, result: Result, now: float, fraction: float) -> Decision | None:
        """What becomes of an event after an attempt; None: it is tried again, when the replay has rested."""
        if isinstance(result, Retry):
            self._tries[candidate.position] += 1
            self._rest(result, self._tries[candidate.position], now, fraction)
        decision = decide_replayed(result, tries_left=_TRIES - self._tries[candidate.position])
        if decision is not None:
            self._tries.pop(candidate.position, None)
        return decision

    def progress(self) -> Progress:
        """What can be written now."""
        settlement = self.window.settlement()
        finished = settlement.cursor >= self._end
        published = sum(isinstance(verdict.decision, Done) for verdict in settlement.firsts)
        return Progress(replay_id=self.id, settlement=settlement, published=published, finished=finished)

    def settled(self, progress: Progress) -> None:
        """Forgets what was written."""
        self.window.settled(progress.settlement)

    def _rest(self, result: Retry, tries: int, now: float, fraction: float) -> None:
        pause: timedelta = self._settings.policy.pause(
            tries, fraction, asked=result.after, overloaded=result.overloaded
        )
        self._rests_until = max(self._rests_until, now + pause.total_seconds())
