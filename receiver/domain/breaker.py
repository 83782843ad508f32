"""The breaker of a sink: after too many failures it lets one event through now and then, until one arrives."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

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
