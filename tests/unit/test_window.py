"""The window keeps the order of each message, whatever fails and whenever the process dies."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from receiver.domain.publication import (
    DeadLettered,
    DeadLetterReason,
    Decision,
    Done,
    Parked,
    PendingPublication,
    Publication,
    RetryAt,
    Superseded,
)
from receiver.domain.window import Window

NOW = datetime(2026, 1, 1, tzinfo=UTC)
AGAIN = RetryAt(due_at=NOW, reason="status 500")
DEAD = DeadLettered(cause=DeadLetterReason.REFUSED, reason="status 413")
HELD = DeadLettered(cause=DeadLetterReason.REFUSED, reason="status 413", holds=True)


def candidate(
    position: int, ordering_key: str, *, attempts: int = 0, since: datetime | None = None, recipient: str | None = None
) -> PendingPublication:
    publication = Publication(
        id=f"e{position}",
        position=position,
        ordering_key=ordering_key,
        type="message.sent",
        received_at=NOW,
        event={},
        body=b"{}",
        recipient=recipient,
    )
    return PendingPublication(publication=publication, attempts=attempts, since=since)


def filled(ordering_keys: str, **options: Any) -> Window:
    """A window with one event for each letter, the letter its lane."""
    window = Window(0, **options)
    for position, ordering_key in enumerate(ordering_keys, 1):
        window.queue(candidate(position, ordering_key))
    return window


def positions(candidates: Sequence[PendingPublication]) -> list[int]:
    return [one.position for one in candidates]


def test_one_event_of_an_ordering_key_is_in_flight() -> None:
    window = filled("aab")
    assert positions(window.take(9)) == [1, 3]
    assert window.take(9) == []


def test_sink_that_keeps_order_gets_several_events_of_an_ordering_key() -> None:
    assert positions(filled("aab", keeps_order=True).take(9)) == [1, 2, 3]


def test_next_event_of_an_ordering_key_follows_when_the_first_is_done() -> None:
    window = filled("aa")
    [first] = window.take(9)
    window.decide(first, Done())
    assert positions(window.take(9)) == [2]


def test_cursor_stops_before_the_first_undecided_event() -> None:
    window = filled("abc")
    first, second, third = window.take(9)
    window.decide(first, Done())
    window.decide(third, Done())
    assert window.settlement().cursor == 1
    window.settled(window.settlement())
    window.decide(second, Done())
    assert window.settlement().cursor == 3
    assert positions([verdict.candidate for verdict in window.settlement().firsts]) == [2, 3]


def test_filtered_events_move_the_cursor() -> None:
    window = Window(4)
    window.pass_over(5)
    window.pass_over(9)
    assert window.moved
    assert window.settlement().cursor == 9


def test_ordering_key_is_parked_behind_a_retry_and_others_go_on() -> None:
    window = filled("aab")
    first, other = window.take(9)
    window.decide(first, AGAIN)
    window.decide(other, Done())
    window.queue(candidate(4, "a"))
    settlement = window.settlement()
    assert settlement.cursor == 4
    assert [(verdict.candidate.position, verdict.decision) for verdict in settlement.firsts] == [
        (1, AGAIN),
        (2, Parked()),
        (3, Done()),
        (4, Parked()),
    ]
    assert [verdict.attempts for verdict in settlement.firsts] == [1, 0, 1, 0]
    assert settlement.touches_retries


def test_ordering_key_goes_on_after_a_dead_letter() -> None:
    window = filled("aa")
    [first] = window.take(9)
    window.decide(first, DEAD)
    # not before that is written: a crash would bring the first back behind the second
    assert window.take(9) == []
    window.settled(window.settlement())
    assert positions(window.take(9)) == [2]


def test_dead_letter_may_hold_its_ordering_key() -> None:
    window = filled("aab")
    first, other = window.take(9)
    window.decide(first, HELD)
    window.decide(other, Done())
    settlement = window.settlement()
    assert [(verdict.candidate.position, verdict.blocks, verdict.holds) for verdict in settlement.firsts] == [
        (1, True, True),
        (2, True, False),
        (3, False, False),
    ]
    assert [verdict.attempts for verdict in settlement.firsts] == [1, 0, 1]


def test_coalesce_supersedes_the_older_event() -> None:
    window = filled("aaba", latest_only=True)
    assert positions(window.take(9)) == [3, 4]
    settlement = window.settlement()
    assert (settlement.cursor, settlement.superseded) == (2, 2)


def test_another_recipient_is_another_delivery() -> None:
    window = Window(0, latest_only=True, keeps_order=True)
    for position, recipient in enumerate(("+1", "+2", "+1", None), 1):
        window.queue(candidate(position, "a", recipient=recipient))
    assert positions(window.take(9)) == [2, 3, 4]


def test_coalesce_supersedes_an_event_that_is_put_back() -> None:
    window = filled("a", latest_only=True)
    [first] = window.take(9)
    window.queue(candidate(2, "a"))
    window.put_back(first)
    assert positions(window.take(9)) == [2]
    assert window.settlement().superseded == 1


def test_busy_ordering_keys_wait() -> None:
    window = filled("ab")
    assert positions(window.take(9, busy={"a"})) == [2]
    assert positions(window.take(9)) == [1]


def test_expired_event_is_dead_lettered_without_an_attempt() -> None:
    window = filled("ab")
    window.queue_retry(candidate(9, "c", attempts=2, since=NOW))
    window.take(1)
    assert positions(window.waiting_since(NOW)) == [2, 9]
    assert window.waiting_since(NOW - timedelta(seconds=1)) == []
    for one in window.waiting_since(NOW):
        window.drop(one, DEAD)
    assert window.take(9) == []
    [retry] = window.settlement().retries
    assert retry.attempts == 2


def test_retries_that_an_operator_changed_are_read_again() -> None:
    window = Window(0, slots=4)
    for position, ordering_key in enumerate("ab", 1):
        window.queue_retry(candidate(position, ordering_key, since=NOW))
    assert positions(window.take(9)) == [1]
    window.forget_retries()
    assert window.holds_retry(1)
    assert not window.holds_retry(2)


def test_an_attempt_that_does_not_count_leaves_the_event_where_it_was() -> None:
    window = filled("ab")
    first, second = window.take(9)
    window.put_back(second)
    window.put_back(first)
    assert window.settlement().cursor == 0
    again = window.take(9)
    assert positions(again) == [1, 2]
    # The mark leaves the window with the event, whatever becomes of it: nothing else remembers the attempt.
    assert [one.was_put_back for one in (first, second, *again)] == [False, False, True, True]


def test_an_event_put_back_behind_a_failure_is_parked() -> None:
    window = filled("aa", keeps_order=True)
    first, second = window.take(9)
    window.decide(first, AGAIN)
    window.put_back(second)
    assert [verdict.decision for verdict in window.settlement().firsts] == [AGAIN, Parked()]


def test_retries_and_first_attempts_take_turns_and_retries_go_alone() -> None:
    window = filled("abcd", slots=4, keeps_order=True)
    for position, ordering_key in ((-1, "x"), (-2, "y")):
        window.queue_retry(candidate(position, ordering_key, since=NOW))
    assert [positions(window.take(2)) for _ in range(5)] == [[1, 2], [-1], [3, 4], [-2], []]


def test_retries_hold_no_more_than_half_of_the_slots() -> None:
    window = Window(9, slots=4)
    for position in range(5):
        window.queue_retry(candidate(position, f"lane {position}", since=NOW))
    taken = [one for _ in range(5) for one in window.take(1)]
    assert positions(taken) == [0, 1]
    window.decide(taken[0], Done())
    assert positions(window.take(1)) == [2]


def test_retry_waits_while_its_ordering_key_is_in_flight() -> None:
    window = filled("a", slots=4)
    window.take(1)
    window.queue_retry(candidate(-1, "a", since=NOW))
    assert window.take(1) == []


def test_known_retry_is_not_queued_twice() -> None:
    window = Window(9)
    retry = candidate(1, "a", since=NOW)
    window.queue_retry(retry)
    [taken] = window.take(1)
    window.queue_retry(retry)
    window.decide(taken, Done())
    window.queue_retry(retry)
    assert window.take(1) == []
    window.settled(window.settlement())
    window.queue_retry(retry)
    assert positions(window.take(1)) == [1]


def test_decisions_made_while_a_settlement_is_written_wait_for_the_next() -> None:
    window = filled("ab")
    first, second = window.take(9)
    window.decide(first, Done())
    settlement = window.settlement()
    window.decide(second, Done())
    window.settled(settlement)
    assert window.cursor == 1
    assert positions([verdict.candidate for verdict in window.settlement().firsts]) == [2]


class Publishing(RuleBasedStateMachine):
    """A sink with everything that can happen to it. The rows of the database are played by `rows` and `cursor`."""

    @initialize(
        ordering_keys=st.lists(st.sampled_from("abc"), min_size=1, max_size=30),
        slots=st.integers(1, 4),
        keeps_order=st.booleans(),
        latest_only=st.booleans(),
    )
    def begin(self, ordering_keys: list[str], slots: int, keeps_order: bool, latest_only: bool) -> None:
        self.log = dict(enumerate(ordering_keys, 1))
        self.keeps_order, self.slots = keeps_order, 1 if keeps_order else slots
        self.latest_only = latest_only
        self.superseded: set[int] = set()
        self.cursor = 0
        self.rows: dict[int, tuple[str, int]] = {}
        self.dead: set[int] = set()
        self.received: list[int] = []
        # in a batch that keeps its order, a refused copy has reached the sink too: if the process dies before that is
        # settled, the next is a repetition
        self.reached: list[int] = []
        self.take_over()

    @rule()
    def take_over(self) -> None:
        """The process died, or another took the lease."""
        self.window = Window(self.cursor, slots=self.slots, keeps_order=self.keeps_order, latest_only=self.latest_only)
        self.under_way: list[list[PendingPublication]] = []

    @rule(count=st.integers(1, 8))
    def read(self, count: int) -> None:
        ahead = [position for position in self.log if position > self.window.read_to]
        blocked = {ordering_key for ordering_key, _ in self.rows.values()}
        for position in ahead[:count]:
            one = candidate(position, self.log[position])
            (self.window.park if one.ordering_key in blocked else self.window.queue)(one)

    @rule()
    def read_retries(self) -> None:
        for position, (ordering_key, attempts) in self.heads().items():
            if position not in self.dead:
                self.window.queue_retry(candidate(position, ordering_key, attempts=attempts, since=NOW))

    @rule(data=st.data())
    def operate(self, data: st.DataObject) -> None:
        """An operator drops what is held, or makes it due again."""
        held = sorted(self.dead & set(self.rows))
        if held:
            position = data.draw(st.sampled_from(held))
            if data.draw(st.booleans()):
                del self.rows[position]
            else:
                self.dead.remove(position)
        self.window.forget_retries()

    @rule()
    def give_up(self) -> None:
        """The sink was down for too long."""
        for one in self.window.waiting_since(NOW)[:2]:
            self.window.drop(one, DEAD)

    @precondition(lambda self: len(self.under_way) < self.slots)
    @rule(limit=st.integers(1, 3))
    def take(self, limit: int) -> None:
        batch = self.window.take(limit)
        ordering_keys = [one.ordering_key for other in self.under_way for one in other]
        assert not {one.ordering_key for one in batch} & set(ordering_keys), "two of one ordering key under way"
        assert self.keeps_order or len({one.ordering_key for one in batch}) == len(batch)
        if batch:
            self.under_way.append(batch)

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 3), decisions=st.lists(st.sampled_from([Done(), AGAIN, DEAD, HELD, None]), min_size=3))
    def end(self, which: int, decisions: list[Decision | None]) -> None:
        batch = self.under_way.pop(which % len(self.under_way))
        stopped: set[str] = set()
        for one, decision in zip(batch, decisions, strict=False):
            if one.ordering_key in stopped or decision is None:
                self.window.put_back(one)
            else:
                if decision == Done():
                    self.received.append(one.position)
                if decision == Done() or (decision in (DEAD, HELD) and self.keeps_order):
                    self.reached.append(one.position)
                self.window.decide(one, decision)
            if decision is None or decision in (AGAIN, HELD):
                stopped.add(one.ordering_key)

    @rule()
    def settle(self) -> None:
        settlement = self.window.settlement()
        assert settlement.cursor >= self.cursor
        self.cursor = settlement.cursor
        for verdict in (*settlement.firsts, *settlement.retries):
            one = verdict.candidate
            if verdict.blocks:
                # somebody else may have moved the row of a retry meanwhile
                if not one.is_retry or one.position in self.rows:
                    self.rows[one.position] = (one.ordering_key, verdict.attempts)
            else:
                self.rows.pop(one.position, None)
            if isinstance(verdict.decision, DeadLettered):
                self.dead.add(one.position)
            if isinstance(verdict.decision, Superseded):
                self.superseded.add(one.position)
        self.window.settled(settlement)

    def heads(self) -> dict[int, tuple[str, int]]:
        first: dict[str, int] = {}
        for position, (ordering_key, _) in sorted(self.rows.items()):
            first.setdefault(ordering_key, position)
        return {position: self.rows[position] for position in first.values()}

    @invariant()
    def nothing_is_left_behind(self) -> None:
        if not hasattr(self, "log"):
            return
        behind = {position for position in self.log if position <= self.cursor}
        assert behind <= set(self.received) | set(self.rows) | self.dead | self.superseded

    @invariant()
    def only_what_has_a_successor_gives_way(self) -> None:
        if hasattr(self, "log"):
            assert self.latest_only or not self.superseded
            assert all(self.log[one] in list(self.log.values())[one:] for one in self.superseded)

    @invariant()
    def first_copies_arrive_in_order(self) -> None:
        if not hasattr(self, "log"):
            return
        for ordering_key in set(self.log.values()):
            copies = [position for position in self.reached if self.log[position] == ordering_key]
            firsts = list(dict.fromkeys(copies))
            assert firsts == sorted(firsts)

    def teardown(self) -> None:
        """Once everything succeeds, everything arrives."""
        if not hasattr(self, "log"):
            return
        for batch in [*self.under_way]:
            self.end(0, [Done()] * len(batch))
        for _ in range(10 * len(self.log)):
            # an operator drops what is held, also what was given up a moment ago
            for position in self.dead & set(self.rows):
                del self.rows[position]
            self.read(8)
            self.read_retries()
            while len(self.under_way) < self.slots and (batch := self.window.take(3)):
                self.under_way.append(batch)
            while self.under_way:
                self.end(0, [Done()] * 3)
            self.settle()
        assert self.cursor == max(self.log)
        assert not self.rows
        assert set(self.received) | self.dead | self.superseded == set(self.log)
        self.first_copies_arrive_in_order()


TestPublishing = Publishing.TestCase
TestPublishing.settings = settings(max_examples=150, stateful_step_count=40)


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_an_empty_window_has_nothing_to_do(slots: int) -> None:
    window = Window(3, slots=slots)
    assert (window.take(9), window.moved, window.settlement().cursor, len(window)) == ([], False, 3, 0)


def test_expired_event_does_not_overtake_a_younger_one_before_it() -> None:
    """Clocks differ, and what is imported is old: positions need not rise with the time of receipt."""
    window = Window(0)
    young = candidate(1, "a")
    window.queue(replace(young, publication=replace(young.publication, received_at=NOW + timedelta(hours=1))))
    window.queue(candidate(2, "a"))
    for one in window.waiting_since(NOW):
        window.drop(one, DEAD)
    window.settled(window.settlement())
    assert positions(window.take(9)) == [1]


def test_no_event_expires_behind_one_in_flight() -> None:
    window = filled("aab")
    [first] = window.take(1)
    assert positions(window.waiting_since(NOW)) == [3]
    window.put_back(first)
    assert positions(window.waiting_since(NOW)) == [1, 2, 3]


def test_move_schedule_moves_retries_that_are_not_written_yet() -> None:
    """A decided event may wait for an earlier one in flight before it is settled."""
    due_at = datetime(2026, 1, 1, tzinfo=UTC)
    window = Window(0, slots=4)
    for number in (1, 2):
        window.queue(candidate(number, f"m{number}"))
    first, second = window.take(4)
    window.decide(second, RetryAt(due_at=due_at, reason="status 500"))
    window.move_schedule(timedelta(hours=-1))
    window.decide(first, Done())
    _, decided = window.settlement().firsts
    assert decided.decision == RetryAt(due_at=due_at - timedelta(hours=1), reason="status 500")
