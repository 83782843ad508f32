"""When a failed publication is tried again, and when a sink is left alone for a while (circuit breaker)."""

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
_LEAST_JITTER: Final = timedelta(seconds=1)
_LEAST_FOR_THE_OVERLOADED: Final = timedelta(seconds=60)
_ALWAYS_ASKABLE: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """The pauses between attempts, the last of them repeated, and the age at which an event is given up.

    `holds` says that the later events of a message then wait for an operator.
    """

    schedule: tuple[timedelta, ...] = SCHEDULE
    max_age: timedelta = MAX_AGE
    holds: bool = False

    def pause(
        self, attempts: int, fraction: float, *, asked: timedelta | None = None, overloaded: bool = False
    ) -> timedelta:
        """The pause after so many attempts.

        `fraction` of the jitter is added. `asked` is the sink's own wish (Retry-After), granted within bounds.
        `overloaded` says that the sink had too much to do or did not answer in time.
        """
        pause = scheduled = self.schedule[min(attempts, len(self.schedule)) - 1]
        if asked is not None:
            pause = min(max(asked, scheduled), max(2 * scheduled, _ALWAYS_ASKABLE))
        if overloaded:
            pause = max(pause, _LEAST_FOR_THE_OVERLOADED)
        return pause + fraction * max(_JITTER * pause, _LEAST_JITTER)

    def due(self, now: datetime, since: datetime, pause: timedelta) -> datetime | None:
        """The time of the next attempt, the last one at the age limit; None for an event that is past it."""
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
    """How a sink has been doing. Times are seconds of any steady clock.

    `failures` are those in a row; a sink that is down opens the breaker at once. `probes` counts the openings since it
    last was closed, and doubles the pause before the next probe: 1, 2, 4 … 60 seconds, until `closed_until`.
    """

    failures: int = 0
    probes: int = 0
    closed_until: float = 0.0

    def state(self, now: float) -> BreakerState:
        if not self.probes:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self.closed_until else BreakerState.HALF_OPEN

    def published(self, now: float) -> "Breaker":
        """After a success; one that began before the breaker opened proves nothing."""
        return self if self.state(now) is BreakerState.OPEN else Breaker()

    def failed(self, now: float) -> "Breaker":
        """After an event failed."""
        failures = self.failures + 1
        if failures < FAILURES_TO_OPEN and not self.probes:
            return Breaker(failures=failures)
        return self._opened(now, failures)

    def down(self, now: float) -> "Breaker":
        """After the sink as a whole could not be reached."""
        return self._opened(now, self.failures + 1)

    def _opened(self, now: float, failures: int) -> "Breaker":
        if self.state(now) is BreakerState.OPEN:
            return Breaker(failures=failures, probes=self.probes, closed_until=self.closed_until)
        pause = min(2.0**self.probes, _LONGEST_PAUSE)
        return Breaker(failures=failures, probes=min(self.probes + 1, 10), closed_until=now + pause)
