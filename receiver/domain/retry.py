"""The retry schedule of a failed publication, and the circuit breaker of a sink."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

SCHEDULE: Final = (
    timedelta(seconds=5),
    timedelta(seconds=30),
    timedelta(minutes=2),
    timedelta(minutes=10),
    timedelta(minutes=30),
    timedelta(hours=1),
    timedelta(hours=3),
    timedelta(hours=6),
    timedelta(hours=12),
)
MAX_AGE: Final = timedelta(hours=72)

_JITTER: Final = 0.2
_MIN_JITTER: Final = timedelta(seconds=1)
_MIN_PAUSE_IF_OVERLOADED: Final = timedelta(seconds=60)
# A Retry-After up to this long is honoured whatever the schedule says.
_MAX_RETRY_AFTER: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """The pauses between attempts (the last one repeats), and the age at which an event becomes a dead letter.

    With `holds`, the later events of the message then wait for an operator.
    """

    schedule: tuple[timedelta, ...] = SCHEDULE
    max_age: timedelta = MAX_AGE
    holds: bool = False

    def pause(
        self, attempts: int, fraction: float, *, retry_after: timedelta | None = None, overloaded: bool = False
    ) -> timedelta:
        """The pause after this many attempts.

        `fraction` (0 to 1) of the jitter is added. `retry_after` is the pause that the sink asked for, honoured between
        the scheduled pause and the larger of twice that and an hour. `overloaded`: the sink was too busy or did not
        answer in time, so the pause is at least a minute.
        """
        pause = scheduled = self.schedule[min(attempts, len(self.schedule)) - 1]
        if retry_after is not None:
            pause = min(max(retry_after, scheduled), max(2 * scheduled, _MAX_RETRY_AFTER))
        if overloaded:
            pause = max(pause, _MIN_PAUSE_IF_OVERLOADED)
        return pause + fraction * max(_JITTER * pause, _MIN_JITTER)

    def due(self, now: datetime, since: datetime, pause: timedelta) -> datetime | None:
        """The time of the next attempt; the last one is at the age limit. None: the event is past the limit."""
        end = since + self.max_age
        return min(now + pause, end) if now < end else None


FAILURES_TO_OPEN: Final = 10
_LONGEST_PAUSE: Final = 60.0


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """The circuit breaker of a sink. Times are seconds of any monotonic clock.

    `failures` counts failures in a row: ten open the breaker, and a sink that is down opens it at once. `probes` counts
    the openings since the breaker was last closed. Each doubles the pause before the next probe (1, 2, 4 … 60
    seconds), which lasts until `open_until`.
    """

    failures: int = 0
    probes: int = 0
    open_until: float = 0.0

    def state(self, now: float) -> BreakerState:
        if not self.probes:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self.open_until else BreakerState.HALF_OPEN

    def published(self, now: float) -> "Breaker":
        """The breaker after a success. A success while it is open began before it opened, and does not close it."""
        return self if self.state(now) is BreakerState.OPEN else Breaker()

    def failed(self, now: float) -> "Breaker":
        """The breaker after an event failed."""
        failures = self.failures + 1
        if failures < FAILURES_TO_OPEN and not self.probes:
            return Breaker(failures=failures)
        return self._opened(now, failures)

    def down(self, now: float) -> "Breaker":
        """The breaker after the sink as a whole could not be reached."""
        return self._opened(now, self.failures + 1)

    def _opened(self, now: float, failures: int) -> "Breaker":
        if self.state(now) is BreakerState.OPEN:
            return Breaker(failures=failures, probes=self.probes, open_until=self.open_until)
        pause = min(2.0**self.probes, _LONGEST_PAUSE)
        return Breaker(failures=failures, probes=min(self.probes + 1, 10), open_until=now + pause)
