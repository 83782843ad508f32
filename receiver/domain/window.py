"""The window of a sink: the events between its cursor and the end of what was read, and who of them may go next."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from receiver.domain.publication import Again, Candidate, Decision, Outcome, Parked


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try to publish one event, for the record."""

    position: int
    event_id: str
    started_at: datetime
    ended_at: datetime
    outcome: Outcome
    decision: str
    reason: str | None = None
    response_code: int | None = None
    response: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided about an event."""

    candidate: Candidate
    decision: Decision

    @property
    def attempts(self) -> int:
        """The attempts made by now; being parked is none."""
        return self.candidate.attempts + (not isinstance(self.decision, Parked))

    @property
    def blocks(self) -> bool:
        """Whether later events of the lane must wait."""
        return isinstance(self.decision, Again | Parked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What is to be written: all that was decided up to the new cursor, retries, and the record of attempts."""

    cursor: int
    firsts: tuple[Verdict, ...] = ()
    retries: tuple[Verdict, ...] = ()
    attempts: tuple[Attempt, ...] = ()

    @property
    def touches_retries(self) -> bool:
        return bool(self.retries) or any(verdict.blocks for verdict in self.firsts)


class Window:
    """Keeps the order: of a lane, one event at a time is under way, and none passes an earlier one that must wait.

    A sink that keeps the order of a batch by itself may be given several of a lane in one; its batches must then
    follow each other. First attempts and retries take turns, and retries never hold more than half of the slots.
    """

    def __init__(self, cursor: int, *, slots: int = 1, keeps_order: bool = False) -> None:
        self.cursor = cursor
        self.read_to = cursor
        self._retry_slots = max(1, slots // 2)
        self._keeps_order = keeps_order
        self._waiting: dict[int, Candidate] = {}
        self._retries: dict[int, Candidate] = {}
        self._under_way: dict[int, Candidate] = {}
        self._verdicts: dict[int, Verdict] = {}
        self._retry_verdicts: dict[int, Verdict] = {}
        self._attempts: list[Attempt] = []
        self._blocked: set[str] = set()
        self._retries_turn = False

    def __len__(self) -> int:
        """The events straight from the log that are not settled."""
        return len(self._waiting) + len(self._verdicts) + sum(not one.is_retry for one in self._under_way.values())

    @property
    def unsettled(self) -> int:
        """How many decisions are to be written."""
        return len(self._verdicts) + len(self._retry_verdicts)

    @property
    def reach(self) -> int:
        """Where the cursor may go: to the event before the first that is not decided."""
        undecided = [*self._waiting, *(one.position for one in self._under_way.values() if not one.is_retry)]
        return min(undecided) - 1 if undecided else self.read_to

    @property
    def moved(self) -> bool:
        """Whether there is something to settle."""
        return self.reach != self.cursor or bool(self._retry_verdicts)

    def holds_retry(self, position: int) -> bool:
        return any(position in held for held in (self._retries, self._under_way, self._retry_verdicts))

    def pass_over(self, position: int) -> None:
        """Reads on over an event that the sink is not given."""
        self.read_to = position

    def queue(self, candidate: Candidate) -> None:
        """Adds the next event of the log for its first attempt; behind one of its lane that must wait it is parked."""
        self.read_to = candidate.position
        if candidate.lane in self._blocked:
            self._verdicts[candidate.position] = Verdict(candidate, Parked())
        else:
            self._waiting[candidate.position] = candidate

    def park(self, candidate: Candidate) -> None:
        """Adds the next event of the log behind those of its lane that are kept as retries."""
        self._blocked.add(candidate.lane)
        self.queue(candidate)

    def queue_retry(self, candidate: Candidate) -> None:
        """Adds a retry whose time has come; one that is already here stays as it is."""
        if not self.holds_retry(candidate.position):
            self._retries[candidate.position] = candidate

    def take(self, limit: int) -> list[Candidate]:
        """The next to publish, which are then under way. A retry goes alone: a poisonous one spoils no others."""
        firsts, retry = list(self._next_firsts(limit)), self._next_retry()
        if retry is not None and (self._retries_turn or not firsts):
            firsts = []
            taken = [self._retries.pop(retry.position)]
        else:
            taken = [self._waiting.pop(first.position) for first in firsts]
        self._retries_turn = bool(firsts)
        self._under_way.update((candidate.position, candidate) for candidate in taken)
        return taken

    def put_back(self, candidate: Candidate) -> None:
        """Returns an event whose attempt did not count; it will be the first again."""
        del self._under_way[candidate.position]
        if candidate.is_retry:
            self._retries = {candidate.position: candidate, **self._retries}
        elif candidate.lane in self._blocked:
            self._verdicts[candidate.position] = Verdict(candidate, Parked())
        else:
            self._waiting = dict(sorted([(candidate.position, candidate), *self._waiting.items()]))

    def decide(self, candidate: Candidate, decision: Decision, attempt: Attempt | None = None) -> None:
        """Takes what became of an event that was under way; where it must be tried again, its lane waits."""
        del self._under_way[candidate.position]
        verdict = Verdict(candidate, decision)
        (self._retry_verdicts if candidate.is_retry else self._verdicts)[candidate.position] = verdict
        if attempt is not None:
            self._attempts.append(attempt)
        if verdict.blocks and not candidate.is_retry:
            self._block(candidate.lane)

    def settlement(self) -> Settlement:
        """What can be written now."""
        cursor = self.reach
        return Settlement(
            cursor=cursor,
            firsts=tuple(self._verdicts[position] for position in sorted(self._verdicts) if position <= cursor),
            retries=tuple(self._retry_verdicts.values()),
            attempts=tuple(self._attempts),
        )

    def settled(self, settlement: Settlement) -> None:
        """Forgets what was written; from here on the database knows which lanes wait."""
        self.cursor = settlement.cursor
        for verdict in settlement.firsts:
            del self._verdicts[verdict.candidate.position]
        for verdict in settlement.retries:
            del self._retry_verdicts[verdict.candidate.position]
        del self._attempts[: len(settlement.attempts)]
        self._blocked = {verdict.candidate.lane for verdict in self._verdicts.values() if verdict.blocks}

    def _block(self, lane: str) -> None:
        self._blocked.add(lane)
        behind = [candidate for candidate in self._waiting.values() if candidate.lane == lane]
        for candidate in behind:
            del self._waiting[candidate.position]
            self._verdicts[candidate.position] = Verdict(candidate, Parked())

    def _next_firsts(self, limit: int) -> Iterable[Candidate]:
        lanes = self._lanes_under_way()
        chosen = 0
        for candidate in self._waiting.values():
            if chosen == limit:
                return
            if candidate.lane in lanes:
                continue
            if not self._keeps_order:
                lanes.add(candidate.lane)
            chosen += 1
            yield candidate

    def _next_retry(self) -> Candidate | None:
        if sum(one.is_retry for one in self._under_way.values()) >= self._retry_slots:
            return None
        lanes = self._lanes_under_way()
        free: Iterator[Candidate] = (one for one in self._retries.values() if one.lane not in lanes)
        return next(free, None)

    def _lanes_under_way(self) -> set[str]:
        return {candidate.lane for candidate in self._under_way.values()}
