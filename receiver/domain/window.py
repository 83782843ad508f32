"""The window of a sink: the events between its cursor and the last one read, and which of them to publish next."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from receiver.domain.publication import DeadLettered, Decision, Outcome, Parked, PendingPublication, RetryAt, Superseded


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt to publish one event, as it is recorded."""

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
    """An event with the decision about it."""

    candidate: PendingPublication
    decision: Decision

    is_tried: bool = True

    @property
    def attempts(self) -> int:
        """The attempts made so far."""
        return self.candidate.attempts + self.is_tried

    @property
    def blocks(self) -> bool:
        """Whether later events of the ordering key must wait."""
        return isinstance(self.decision, RetryAt | Parked) or self.holds

    @property
    def holds(self) -> bool:
        """Whether later events of the ordering key must wait for an operator."""
        return isinstance(self.decision, DeadLettered) and self.decision.holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What is to be written: the new cursor, the decisions up to it (`firsts`), those about retries, the attempts."""

    cursor: int
    firsts: tuple[Decided, ...] = ()
    retries: tuple[Decided, ...] = ()
    attempts: tuple[Attempt, ...] = ()

    @property
    def superseded(self) -> int:
        """How many events were superseded by newer ones."""
        return sum(isinstance(decided.decision, Superseded) for decided in (*self.firsts, *self.retries))

    @property
    def touches_retries(self) -> bool:
        return bool(self.retries) or any(decided.blocks for decided in self.firsts)


class Window:
    """Keeps the order: one event of an ordering key is in flight at a time, and none passes an earlier one that waits.

    A sink that `keeps_order` within a batch may get several events of an ordering key in one batch; its batches must
    then follow each other. First attempts and retries take turns, and retries occupy at most half of the slots. With
    `latest_only`, an event that waits for its first attempt is superseded by a newer event of its delivery.
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
        self._in_flight: dict[int, PendingPublication] = {}
        self._decided: dict[int, Decided] = {}
        self._decided_retries: dict[int, Decided] = {}
        self._attempts: list[Attempt] = []
        self._blocked: set[str] = set()
        # Ordering keys whose dead letter is not committed yet. Publishing their next event now could reorder them
        # after a crash.
        self._uncommitted_dead_letters: set[str] = set()
        self._retries_turn = False

    def __len__(self) -> int:
        """The number of events straight from the log without a decision."""
        return len(self._waiting) + sum(not candidate.is_retry for candidate in self._in_flight.values())

    @property
    def decided(self) -> int:
        """The number of events straight from the log with a decision, also behind one without."""
        return len(self._decided)

    @property
    def unsettled(self) -> int:
        """How much is to be written: the positions that the cursor can advance, and the decided retries."""
        return self.reach - self.cursor + len(self._decided_retries)

    @property
    def reach(self) -> int:
        """How far the cursor can advance: to the event before the first one without a decision."""
        undecided = [*self._waiting, *(other.position for other in self._in_flight.values() if not other.is_retry)]
        return min(undecided) - 1 if undecided else self.read_to

    @property
    def moved(self) -> bool:
        """Whether there is something to settle."""
        return self.reach != self.cursor or bool(self._decided_retries) or bool(self._attempts)

    def holds_retry(self, position: int) -> bool:
        return any(position in held for held in (self._retries, self._in_flight, self._decided_retries))

    def waiting_since(self, before: datetime) -> list[PendingPublication]:
        """The events that are not in flight and have waited since before a time: since receipt, or their first failure.

        It leaves out events behind a younger one, or behind one in flight, of the same ordering key: a dead letter of
        theirs would be settled first and block the earlier event.
        """
        found, left_out = [], {candidate.ordering_key for candidate in self._in_flight.values()}
        for candidate in (*self._waiting.values(), *self._retries.values()):
            since = candidate.since or candidate.publication.received_at
            if candidate.ordering_key not in left_out and since <= before:
                found.append(candidate)
            else:
                left_out.add(candidate.ordering_key)
        return found

    def pass_over(self, position: int) -> None:
        """Moves past an event that the filter leaves out."""
        self.read_to = position

    def queue(self, candidate: PendingPublication) -> None:
        """Adds the next event of the log for its first attempt; it is parked if its ordering key is blocked."""
        self.read_to = candidate.position
        self._wait(candidate)
        if self._latest_only:
            older = self._waiting.get(self._latest.get(candidate.delivery, 0))
            self._latest[candidate.delivery] = candidate.position
            if older is not None:
                self.drop(older, Superseded())

    def supersede(self, candidate: PendingPublication) -> None:
        """Moves past an event that a newer event of its delivery, further on in the log, supersedes."""
        self.read_to = candidate.position
        self._decided[candidate.position] = Decided(candidate, Superseded(), is_tried=False)

    def park(self, candidate: PendingPublication) -> None:
        """Adds the next event of the log behind the stored retries of its ordering key."""
        self._blocked.add(candidate.ordering_key)
        self.queue(candidate)

    def queue_retry(self, candidate: PendingPublication) -> None:
        """Adds a retry that is due; a retry that the window has already is left alone."""
        if not self.holds_retry(candidate.position):
            self._retries[candidate.position] = candidate

    def forget_retries(self) -> None:
        """Drops the retries that are not in flight, after an operator changed some of them; they are read again."""
        self._retries.clear()

    def move_schedule(self, by: timedelta) -> None:
        """Moves the times of retries that are decided and not written yet, after the clock was set."""
        for decisions in (self._decided, self._decided_retries):
            for position, decided in decisions.items():
                if isinstance(decided.decision, RetryAt):
                    again = replace(decided.decision, due_at=decided.decision.due_at + by)
                    decisions[position] = replace(decided, decision=again)
        self.forget_retries()

    def drop(self, candidate: PendingPublication, decision: Decision) -> None:
        """Records a decision without an attempt, about an event that waits for its first one or about a retry."""
        (self._retries if candidate.is_retry else self._waiting).pop(candidate.position, None)
        self._note(Decided(candidate, decision, is_tried=False))

    def take(self, limit: int, busy: Collection[str] = ()) -> list[PendingPublication]:
        """Takes the next events to publish, which are then in flight; none of the ordering keys in `busy`.

        A retry is published alone, so that a poison event does not fail others with it.
        """
        in_flight = {candidate.ordering_key for candidate in self._in_flight.values()}
        occupied = {*busy, *self._uncommitted_dead_letters, *in_flight}
        firsts, retry = list(self._next_firsts(limit, set(occupied))), self._next_retry(occupied)
        if retry is not None and (self._retries_turn or not firsts):
            firsts = []
            taken = [self._retries.pop(retry.position)]
        else:
            taken = [self._waiting.pop(first.position) for first in firsts]
        self._retries_turn = bool(firsts)
        self._in_flight.update((candidate.position, candidate) for candidate in taken)
        return taken

    def put_back(self, candidate: PendingPublication, attempt: Attempt | None = None) -> None:
        """Returns an event whose attempt did not count to the front."""
        del self._in_flight[candidate.position]
        self._record(attempt)
        candidate = replace(candidate, was_put_back=True)
        if candidate.is_retry:
            self._retries = {candidate.position: candidate, **self._retries}
            return
        self._wait(candidate)
        self._waiting = dict(sorted(self._waiting.items()))
        if self._latest_only and self._latest[candidate.delivery] > candidate.position in self._waiting:
            self.drop(candidate, Superseded())

    def decide(self, candidate: PendingPublication, decision: Decision, attempt: Attempt | None = None) -> None:
        """Records the decision about an event in flight; a retry blocks its ordering key."""
        del self._in_flight[candidate.position]
        self._record(attempt)
        self._note(Decided(candidate, decision))

    def settlement(self) -> Settlement:
        """The settlement that can be written now."""
        cursor = self.reach
        return Settlement(
            cursor=cursor,
            firsts=tuple(self._decided[position] for position in sorted(self._decided) if position <= cursor),
            retries=tuple(self._decided_retries.values()),
            attempts=tuple(self._attempts),
        )

    def settled(self, settlement: Settlement) -> None:
        """Forgets what was written; from now on the database knows which ordering keys are blocked."""
        self.cursor = settlement.cursor
        for decided in settlement.firsts:
            del self._decided[decided.candidate.position]
        for decided in settlement.retries:
            del self._decided_retries[decided.candidate.position]
        del self._attempts[: len(settlement.attempts)]
        self._blocked = {decided.candidate.ordering_key for decided in self._decided.values() if decided.blocks}
        self._uncommitted_dead_letters = {
            decided.candidate.ordering_key
            for decided in self._decided.values()
            if isinstance(decided.decision, DeadLettered)
        }
        if self._latest_only:
            held = (*self._waiting.values(), *self._in_flight.values())
            deliveries = {candidate.delivery for candidate in held if not candidate.is_retry}
            self._latest = {delivery: self._latest[delivery] for delivery in deliveries}

    def _note(self, decided: Decided) -> None:
        candidate = decided.candidate
        (self._decided_retries if candidate.is_retry else self._decided)[candidate.position] = decided
        if isinstance(decided.decision, DeadLettered):
            self._uncommitted_dead_letters.add(candidate.ordering_key)
        if decided.blocks and not candidate.is_retry:
            self._block(candidate.ordering_key)

    def _record(self, attempt: Attempt | None) -> None:
        if attempt is not None:
            self._attempts.append(attempt)

    def _wait(self, candidate: PendingPublication) -> None:
        if candidate.ordering_key in self._blocked:
            self._decided[candidate.position] = Decided(candidate, Parked(), is_tried=False)
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
        if sum(candidate.is_retry for candidate in self._in_flight.values()) >= self._retry_slots:
            return None
        free: Iterator[PendingPublication] = (
            candidate for candidate in self._retries.values() if candidate.ordering_key not in ordering_keys
        )
        return next(free, None)
