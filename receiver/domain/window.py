"""The window of a sink: the events between its cursor and the end of what was read, and who of them may go next."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from receiver.domain.publication import DeadLettered, Decision, Outcome, Parked, PendingPublication, RetryAt, Superseded


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
class Decided:
    """What was decided about an event."""

    candidate: PendingPublication
    decision: Decision

    is_tried: bool = True

    @property
    def attempts(self) -> int:
        """The attempts made by now."""
        return self.candidate.attempts + self.is_tried

    @property
    def blocks(self) -> bool:
        """Whether later events of the lane must wait."""
        return isinstance(self.decision, RetryAt | Parked) or self.holds

    @property
    def holds(self) -> bool:
        """Whether they must wait for an operator."""
        return isinstance(self.decision, DeadLettered) and self.decision.holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What is to be written: all that was decided up to the new cursor, retries, and the record of attempts."""

    cursor: int
    firsts: tuple[Decided, ...] = ()
    retries: tuple[Decided, ...] = ()
    attempts: tuple[Attempt, ...] = ()

    @property
    def superseded(self) -> int:
        """How many gave way to newer ones."""
        return sum(isinstance(verdict.decision, Superseded) for verdict in (*self.firsts, *self.retries))

    @property
    def touches_retries(self) -> bool:
        return bool(self.retries) or any(verdict.blocks for verdict in self.firsts)


class Window:
    """Keeps the order: of a lane, one event at a time is under way, and none passes an earlier one that must wait.

    A sink that keeps the order of a batch by itself may be given several of a lane in one; its batches must then
    follow each other. First attempts and retries take turns, and retries never hold more than half of the slots. With
    `latest_only`, what waits for its first attempt gives way to a newer event of its delivery.
    """

    def __init__(self, cursor: int, *, slots: int = 1, keeps_order: bool = False, latest_only: bool = False) -> None:
        self.cursor = cursor
        self.read_to = cursor
        self._retry_slots = max(1, slots // 2)
        self._keeps_order = keeps_order
        self._latest_only = latest_only
        self._latest: dict[tuple[str, str | None], int] = {}
        self._waiting: dict[int, PendingPublication] = {}
        self._retries: dict[int, PendingPublication] = {}
        self._under_way: dict[int, PendingPublication] = {}
        self._verdicts: dict[int, Decided] = {}
        self._retry_verdicts: dict[int, Decided] = {}
        self._attempts: list[Attempt] = []
        self._blocked: set[str] = set()
        # of which an event was given up, but not yet in writing: a crash would bring it back behind its successor
        self._dying: set[str] = set()
        self._retries_turn = False

    def __len__(self) -> int:
        """The events straight from the log that are not decided."""
        return len(self._waiting) + sum(not one.is_retry for one in self._under_way.values())

    @property
    def decided(self) -> int:
        """The events straight from the log that are decided, but perhaps behind one that is not."""
        return len(self._verdicts)

    @property
    def unsettled(self) -> int:
        """How much is to be written: how far the cursor may go, and retries."""
        return self.reach - self.cursor + len(self._retry_verdicts)

    @property
    def reach(self) -> int:
        """Where the cursor may go: to the event before the first that is not decided."""
        undecided = [*self._waiting, *(one.position for one in self._under_way.values() if not one.is_retry)]
        return min(undecided) - 1 if undecided else self.read_to

    @property
    def moved(self) -> bool:
        """Whether there is something to settle."""
        return self.reach != self.cursor or bool(self._retry_verdicts) or bool(self._attempts)

    def holds_retry(self, position: int) -> bool:
        return any(position in held for held in (self._retries, self._under_way, self._retry_verdicts))

    def waiting_since(self, before: datetime) -> list[PendingPublication]:
        """Those nobody is trying that have waited since before a time: since received, or since they first failed.

        None behind one of its lane that has not, or is under way: given up first, it would keep that one waiting.
        """
        found, spared = [], {one.ordering_key for one in self._under_way.values()}
        for one in (*self._waiting.values(), *self._retries.values()):
            if one.ordering_key not in spared and (one.since or one.publication.received_at) <= before:
                found.append(one)
            else:
                spared.add(one.ordering_key)
        return found

    def pass_over(self, position: int) -> None:
        """Reads on over an event that the sink is not given."""
        self.read_to = position

    def queue(self, candidate: PendingPublication) -> None:
        """Adds the next event of the log for its first attempt; behind one of its lane that must wait it is parked."""
        self.read_to = candidate.position
        self._wait(candidate)
        if self._latest_only:
            older = self._waiting.get(self._latest.get(candidate.delivery, 0))
            self._latest[candidate.delivery] = candidate.position
            if older is not None:
                self.drop(older, Superseded())

    def supersede(self, candidate: PendingPublication) -> None:
        """Reads on over an event of which a newer one of its delivery is known to follow."""
        self.read_to = candidate.position
        self._verdicts[candidate.position] = Decided(candidate, Superseded(), is_tried=False)

    def park(self, candidate: PendingPublication) -> None:
        """Adds the next event of the log behind those of its lane that are kept as retries."""
        self._blocked.add(candidate.ordering_key)
        self.queue(candidate)

    def queue_retry(self, candidate: PendingPublication) -> None:
        """Adds a retry whose time has come; one that is already here stays as it is."""
        if not self.holds_retry(candidate.position):
            self._retries[candidate.position] = candidate

    def forget_retries(self) -> None:
        """Lets go of the retries that nobody is trying, for somebody else has moved some: they are read again."""
        self._retries.clear()

    def drop(self, candidate: PendingPublication, decision: Decision) -> None:
        """Decides about an event that waits for its first attempt, or about a retry, without an attempt."""
        (self._retries if candidate.is_retry else self._waiting).pop(candidate.position, None)
        self._note(Decided(candidate, decision, is_tried=False))

    def take(self, limit: int, busy: Collection[str] = ()) -> list[PendingPublication]:
        """The next to publish, which are then under way; of the lanes that are busy elsewhere, none.

        A retry goes alone: a poisonous one spoils no others.
        """
        occupied = {*busy, *self._dying, *(candidate.ordering_key for candidate in self._under_way.values())}
        firsts, retry = list(self._next_firsts(limit, set(occupied))), self._next_retry(occupied)
        if retry is not None and (self._retries_turn or not firsts):
            firsts = []
            taken = [self._retries.pop(retry.position)]
        else:
            taken = [self._waiting.pop(first.position) for first in firsts]
        self._retries_turn = bool(firsts)
        self._under_way.update((candidate.position, candidate) for candidate in taken)
        return taken

    def put_back(self, candidate: PendingPublication, attempt: Attempt | None = None) -> None:
        """Returns an event whose attempt did not count; it will be the first again."""
        del self._under_way[candidate.position]
        self._record(attempt)
        if candidate.is_retry:
            self._retries = {candidate.position: candidate, **self._retries}
            return
        self._wait(candidate)
        self._waiting = dict(sorted(self._waiting.items()))
        if self._latest_only and self._latest[candidate.delivery] > candidate.position in self._waiting:
            self.drop(candidate, Superseded())

    def decide(self, candidate: PendingPublication, decision: Decision, attempt: Attempt | None = None) -> None:
        """Takes what became of an event that was under way; where it must be tried again, its lane waits."""
        del self._under_way[candidate.position]
        self._record(attempt)
        self._note(Decided(candidate, decision))

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
        self._blocked = {verdict.candidate.ordering_key for verdict in self._verdicts.values() if verdict.blocks}
        self._dying = {
            verdict.candidate.ordering_key
            for verdict in self._verdicts.values()
            if isinstance(verdict.decision, DeadLettered)
        }
        if self._latest_only:
            here = (*self._waiting.values(), *self._under_way.values())
            self._latest = {one.delivery: self._latest[one.delivery] for one in here if not one.is_retry}

    def _note(self, verdict: Decided) -> None:
        candidate = verdict.candidate
        (self._retry_verdicts if candidate.is_retry else self._verdicts)[candidate.position] = verdict
        if isinstance(verdict.decision, DeadLettered):
            self._dying.add(candidate.ordering_key)
        if verdict.blocks and not candidate.is_retry:
            self._block(candidate.ordering_key)

    def _record(self, attempt: Attempt | None) -> None:
        if attempt is not None:
            self._attempts.append(attempt)

    def _wait(self, candidate: PendingPublication) -> None:
        if candidate.ordering_key in self._blocked:
            self._verdicts[candidate.position] = Decided(candidate, Parked(), is_tried=False)
        else:
            self._waiting[candidate.position] = candidate

    def _block(self, ordering_key: str) -> None:
        self._blocked.add(ordering_key)
        behind = [candidate for candidate in self._waiting.values() if candidate.ordering_key == ordering_key]
        for candidate in behind:
            del self._waiting[candidate.position]
            self._wait(candidate)

    def _next_firsts(self, limit: int, ordering_keys: set[str]) -> Iterable[PendingPublication]:
        chosen = 0
        for candidate in self._waiting.values():
            if chosen == limit:
                return
            if candidate.ordering_key in ordering_keys:
                continue
            if not self._keeps_order:
                ordering_keys.add(candidate.ordering_key)
            chosen += 1
            yield candidate

    def _next_retry(self, ordering_keys: Collection[str]) -> PendingPublication | None:
        if sum(one.is_retry for one in self._under_way.values()) >= self._retry_slots:
            return None
        free: Iterator[PendingPublication] = (
            one for one in self._retries.values() if one.ordering_key not in ordering_keys
        )
        return next(free, None)
