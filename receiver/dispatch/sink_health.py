"""The breaker and the health of a sink, reported to log and metrics when they change."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, Protocol

import structlog

from receiver.domain.publication import Published, Refused, Result, Retry, SinkDown
from receiver.domain.retry import Breaker, BreakerState
from receiver.storage import sinks
from receiver.storage.database import Database
from receiver.storage.sinks import Health


class DispatchObserver(Protocol):
    """Receives the measurements of the dispatchers.

    Every label is bounded: sinks come from the settings, outcomes, states and reasons from enumerations.
    """

    def attempt_ended(self, sink: str, outcome: str) -> None:
        """An attempt to publish one event ended."""

    def batch_ended(self, sink: str, seconds: float) -> None:
        """The attempts of one batch ended, after `seconds`."""

    def event_published(self, sink: str, seconds: float) -> None:
        """An event was published; `seconds` is the time since its callback was received."""

    def events_superseded(self, sink: str, events: int) -> None:
        """Events were left out because newer events of their deliveries replace them."""

    def unexpected_duplicate(self, sink: str) -> None:
        """On its first attempt, an event was acknowledged as a duplicate."""

    def backlog_measured(
        self,
        sink: str,
        events: int,
        oldest_seconds: float,
        retries: Mapping[str, int],
        dead_letters: Mapping[str, int],
    ) -> None:
        """The backlog of a sink: events after its cursor, age of the oldest, retries and dead letters."""

    def breaker_moved(self, sink: str, state: str) -> None:
        """The breaker is now closed, open or half-open."""

    def lease_lost(self, sink: str) -> None:
        """Another process took over the lease while this process still held the sink."""

    def sink_left(self, sink: str) -> None:
        """This process no longer publishes to the sink; its last measurements of the sink are out of date."""


# After five failures in a row the cause is hardly chance, rather a wrong address or password.
_LOG_AFTER_FAILURES: Final = 5
_MEASURE_SECONDS: Final = 10.0

_DUPLICATES_SECONDS: Final = 60.0

log = structlog.get_logger("receiver.dispatcher")


class UnexpectedDuplicates:
    """Counts events that the destination acknowledged as duplicates on their first attempt, and logs them.

    After a crash they are copies of what was published but not settled. Otherwise something else has published events
    with these ids to the same place, and the destination dropped ours. The log has a line a minute at most.
    """

    def __init__(self, sink: str, observer: DispatchObserver, monotonic: Callable[[], float]) -> None:
        self._sink = sink
        self._observer = observer
        self._monotonic = monotonic
        self._events = 0
        self._first_id = ""
        self._logged_at = float("-inf")

    def add(self, event_id: str) -> None:
        self._observer.unexpected_duplicate(self._sink)
        self._first_id = self._first_id or event_id
        self._events += 1

    def log(self) -> None:
        if not self._events or self._monotonic() - self._logged_at < _DUPLICATES_SECONDS:
            return
        log.warning(
            "destination had events before their first attempt",
            sink=self._sink,
            events=self._events,
            first_event_id=self._first_id,
        )
        self._events, self._first_id, self._logged_at = 0, "", self._monotonic()


class SinkHealth:
    """Records the result of each attempt and decides whether the sink may get more events.

    `clock` returns aware UTC time; `monotonic` returns seconds and never jumps.
    """

    def __init__(
        self,
        sink: str,
        health: Health,
        *,
        observer: DispatchObserver,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float],
    ) -> None:
        self.health = health
        self._sink = sink
        # A sink that was down is still down for the next holder, until an event is published.
        was_down = health.down_since_at is not None and health.failures > 0
        self._breaker = Breaker(failures=health.failures, probes=int(was_down), open_until=monotonic())
        self._observer = observer
        self._clock = clock
        self._monotonic = monotonic
        self._measured_at = float("-inf")
        # Why a check of the idle sink found that it cannot be reached.
        self._unreachable: str | None = None
        self._reported = self.state
        self._observer.breaker_moved(sink, self._reported)

    @property
    def state(self) -> BreakerState:
        return self._breaker.state(self._monotonic())

    @property
    def probe_at(self) -> float | None:
        """When an open breaker lets the next probe through, in monotonic seconds; None if it is not open."""
        return self._breaker.open_until if self.state is BreakerState.OPEN else None

    def record(self, result: Result) -> None:
        """Records the result of one attempt. A sink that refuses an event has at least answered."""
        now = self._monotonic()
        self._unreachable = None
        match result:
            case Published():
                self._breaker = self._breaker.published(now)
                self.health = replace(self.health, last_success_at=self._clock())
            case Refused():
                self._breaker = self._breaker.published(now)
                self.health = replace(self.health, last_error=result.reason)
            case Retry():
                self._breaker = self._breaker.failed(now)
                self.health = replace(self.health, last_error=result.reason)
                if self._breaker.failures == _LOG_AFTER_FAILURES:
                    log.error("sink fails again and again", sink=self._sink, reason=result.reason)
            case SinkDown():
                self._breaker = self._breaker.down(now)
                self.health = replace(self.health, last_error=result.reason)

    def checked(self, reason: str | None) -> None:
        """Records the result of a check while the sink was idle: `reason` is why it cannot be reached.

        The breaker stays as it is: the next event is the better check, and need not wait for another one of these.
        """
        if reason == self._unreachable or self.state is not BreakerState.CLOSED:
            return
        if reason is not None:
            self.health = replace(self.health, last_error=reason)
            log.warning("sink cannot be reached", sink=self._sink, reason=reason)
        else:
            log.info("sink is back", sink=self._sink)
        self._unreachable = reason

    def moved(self, by: timedelta) -> Health:
        """The health after the clock was set by that much."""
        down_since = self.health.down_since_at
        return replace(self.health, down_since_at=down_since + by) if down_since is not None else self.health

    def report(self) -> None:
        """Updates health, log and metrics if the state of the breaker has changed."""
        state = self.state
        self.health = replace(self.health, failures=self._breaker.failures, down_since_at=self._down_since(state))
        if state is self._reported:
            return
        self._observer.breaker_moved(self._sink, state)
        if state is BreakerState.CLOSED:
            log.info("sink is back", sink=self._sink)
        elif self._reported is BreakerState.CLOSED:
            log.warning("sink is down", sink=self._sink, reason=self.health.last_error)
        self._reported = state

    async def measure(self, database: Database, max_age: timedelta) -> None:
        """Reports the backlog of the sink, at most every ten seconds."""
        if self._monotonic() - self._measured_at < _MEASURE_SECONDS:
            return
        self._measured_at = self._monotonic()
        async with database.reading() as connection:
            backlog = await sinks.backlog(connection, self._sink)
        age = self._clock() - backlog.oldest_at if backlog.oldest_at else timedelta(0)
        if age > max_age and self.health.down_since_at is not None:
            log.error("sink is down, events wait for longer than max_age", sink=self._sink, oldest=str(age))
        self._observer.backlog_measured(
            self._sink, backlog.events, max(0.0, age.total_seconds()), backlog.retries, backlog.dead_letters
        )

    def _down_since(self, state: BreakerState) -> datetime | None:
        if state is BreakerState.CLOSED and self._unreachable is None:
            return None
        return self.health.down_since_at or self._clock()
