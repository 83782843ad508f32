"""When an event is tried again, what becomes of it, and when a sink is left alone for a while."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.domain.publication import (
    DeadLettered,
    DeadLetterReason,
    Done,
    PendingPublication,
    Publication,
    Published,
    Refused,
    Result,
    Retry,
    RetryAt,
    SinkDown,
    decide,
)
from receiver.domain.retry import FAILURES_TO_OPEN, SCHEDULE, Breaker, BreakerState, RetryPolicy

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
POLICY = RetryPolicy()


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def candidate(attempts: int = 0, since: datetime | None = None) -> PendingPublication:
    publication = Publication(
        id="e1", position=1, ordering_key="v2:m1", type="message.sent", received_at=NOW, event={}, body=b"{}"
    )
    return PendingPublication(publication=publication, attempts=attempts, since=since)


@pytest.mark.parametrize(
    ("attempts", "pause"),
    [
        (1, seconds(5)),
        (2, seconds(30)),
        (3, seconds(120)),
        (4, seconds(600)),
        (5, seconds(1800)),
        (6, HOUR),
        (7, 3 * HOUR),
        (8, 6 * HOUR),
        (9, 12 * HOUR),
        (10, 12 * HOUR),
        (1000, 12 * HOUR),
    ],
)
def test_retry_pauses_grow_and_the_last_repeats(attempts: int, pause: timedelta) -> None:
    assert POLICY.pause(attempts, 0.0) == pause


@given(attempts=st.integers(1, 50), fraction=st.floats(0, 1))
def test_jitter_only_lengthens_a_pause(attempts: int, fraction: float) -> None:
    scheduled = POLICY.pause(attempts, 0.0)
    assert scheduled <= POLICY.pause(attempts, fraction) <= scheduled * 1.2 + seconds(1e-3)


def test_jitter_of_a_short_pause_is_a_second() -> None:
    assert RetryPolicy(schedule=(seconds(1),)).pause(1, 1.0) == seconds(2)


@pytest.mark.parametrize(
    ("attempts", "retry_after", "pause"),
    [
        (1, seconds(0), seconds(5)),
        (1, seconds(90), seconds(90)),
        # an hour is always honoured, and twice a longer pause
        (1, seconds(86400), HOUR),
        (8, 10 * HOUR, 10 * HOUR),
        (8, 20 * HOUR, 12 * HOUR),
    ],
)
def test_retry_after_is_honoured_within_bounds(attempts: int, retry_after: timedelta, pause: timedelta) -> None:
    assert POLICY.pause(attempts, 0.0, retry_after=retry_after) == pause


def test_overloaded_sink_gets_a_pause_of_a_minute() -> None:
    assert POLICY.pause(1, 0.0, overloaded=True) == seconds(60)
    assert POLICY.pause(4, 0.0, overloaded=True) == seconds(600)
    assert POLICY.pause(1, 0.0, retry_after=seconds(7), overloaded=True) == seconds(60)


def test_last_retry_is_at_max_age() -> None:
    since = NOW - timedelta(hours=71)
    assert POLICY.due(NOW, since, 12 * HOUR) == NOW + HOUR
    assert POLICY.due(NOW + HOUR, since, 12 * HOUR) is None


def test_retry_schedule_ends_after_three_days() -> None:
    now, attempts = NOW, 1
    while (due := POLICY.due(now, NOW, POLICY.pause(attempts, 0.0))) is not None:
        now, attempts = due, attempts + 1
    assert now == NOW + timedelta(hours=72)
    assert attempts > len(SCHEDULE)


@pytest.mark.parametrize(
    ("result", "decision"),
    [
        (Published(), Done()),
        (SinkDown(reason="refused"), None),
        (
            Refused(reason="status 413", response_code=413, response="big"),
            DeadLettered(cause=DeadLetterReason.REFUSED, reason="status 413", response_code=413, response="big"),
        ),
        (Retry(reason="status 500"), RetryAt(due_at=NOW + seconds(5), reason="status 500")),
        (Retry(reason="timeout", overloaded=True), RetryAt(due_at=NOW + seconds(60), reason="timeout")),
        (Retry(reason="status 503", after=seconds(40)), RetryAt(due_at=NOW + seconds(40), reason="status 503")),
    ],
)
def test_each_result_has_its_decision(result: Result, decision: Any) -> None:
    assert decide(candidate(), result, POLICY, now=NOW, fraction=0.0) == decision


def test_the_pause_counts_the_attempts_before() -> None:
    decision = decide(candidate(attempts=2, since=NOW), Retry(reason="x"), POLICY, now=NOW, fraction=0.0)
    assert decision == RetryAt(due_at=NOW + seconds(120), reason="x")


def test_event_past_max_age_is_dead_lettered_at_the_next_failure() -> None:
    old = candidate(attempts=12, since=NOW - timedelta(hours=72))
    failure = Retry(reason="status 500", response_code=500, response="oops")
    assert decide(old, failure, POLICY, now=NOW, fraction=0.0) == DeadLettered(
        cause=DeadLetterReason.EXPIRED, reason="status 500", response_code=500, response="oops"
    )
    assert decide(old, Published(), POLICY, now=NOW, fraction=0.0) == Done()


def test_ten_failures_in_a_row_open_the_breaker() -> None:
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN - 1):
        breaker = breaker.failed(0.0)
    assert breaker.state(0.0) is BreakerState.CLOSED
    assert breaker.failed(0.0).state(0.0) is BreakerState.OPEN
    assert breaker.published(0.0).failed(0.0).state(0.0) is BreakerState.CLOSED


def test_sink_down_opens_the_breaker_at_once_and_backoff_doubles() -> None:
    breaker, now, pauses = Breaker(), 100.0, []
    for _ in range(9):
        breaker = breaker.down(now)
        assert breaker.state(now) is BreakerState.OPEN
        pauses.append(breaker.open_until - now)
        now = breaker.open_until
        assert breaker.state(now) is BreakerState.HALF_OPEN
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert breaker.published(now) == Breaker()


def test_what_ends_while_the_breaker_is_open_neither_closes_it_nor_prolongs_the_pause() -> None:
    opened = Breaker().down(0.0)
    assert opened.published(0.5).state(0.5) is BreakerState.OPEN
    assert opened.failed(0.5).open_until == opened.down(0.5).open_until == opened.open_until


def test_a_probe_that_fails_opens_the_breaker_again() -> None:
    assert Breaker().down(0.0).failed(1.0).state(1.5) is BreakerState.OPEN
