"""How a sink is doing: its breaker and its health, told to the log and the metrics when they change."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final, Protocol

import structlog

from receiver.domain.publication import Published, Refused, Result, Retry, SinkDown
from receiver.domain.retry import Breaker, BreakerState
from receiver.storage.sinks import Health


class DispatchObserver(Protocol):
    """Every label is bounded: sinks come from the settings, outcomes, states and reasons from enumerations."""

    def attempt_ended(self, sink: str, outcome: str, seconds: float) -> None:
        """One event was tried; its batch took so long."""

    def event_published(self, sink: str, seconds: float) -> None:
        """An event arrived, so long after its callback came in."""

    def events_superseded(self, sink: str, events: int) -> None:
        """Events were left out because newer ones of their deliveries go in their place."""

    def backlog_measured(
        self,
        sink: str,
        events: int,
        oldest_seconds: float,
        retries: Mapping[str, int],
        dead_letters: Mapping[str, int],
    ) -> None:
        """What a sink has before it: events after its cursor, the age of the oldest, retries by state, dead letters."""

    def breaker_moved(self, sink: str, state: str) -> None:
        """The breaker is now closed, open or half-open."""

    def lease_lost(self, sink: str) -> None:
        """Another process took over while this one still worked."""

    def sink_left(self, sink: str) -> None:
        """This process no longer works for the sink; what it measured of it is out of date."""


# by then it is hardly chance, rather a wrong address or password
_TOLD_AFTER: Final = 5

log = structlog.get_logger("receiver.dispatcher")


class SinkHealth:
    """Takes result after result and says whether the sink may be given more. `steady` is a clock that never jumps."""

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
        # one that was down stays so for the next holder, until an event arrives
        was_down = health.down_since_at is not None and health.failures > 0
        self._breaker = Breaker(failures=health.failures, probes=int(was_down), closed_until=monotonic())
        self._observer = observer
        self._clock = clock
        self._monotonic = monotonic
        self._told = self.state
        self._observer.breaker_moved(sink, self._told)

    @property
    def state(self) -> BreakerState:
        return self._breaker.state(self._monotonic())

    @property
    def probe_at(self) -> float | None:
        """When the next event may be let through, of an open breaker."""
        return self._breaker.closed_until if self.state is BreakerState.OPEN else None

    def take(self, result: Result) -> None:
        """Notes what an attempt gave. A sink that refuses an event has at least answered."""
        now = self._monotonic()
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
                if self._breaker.failures == _TOLD_AFTER:
                    log.error("sink fails again and again", sink=self._sink, reason=result.reason)
            case SinkDown():
                self._breaker = self._breaker.down(now)
                self.health = replace(self.health, last_error=result.reason)

    def tell(self) -> None:
        """Brings health, log and metrics in line with the breaker."""
        state = self.state
        self.health = replace(self.health, failures=self._breaker.failures, down_since_at=self._down_since(state))
        if state is self._told:
            return
        self._observer.breaker_moved(self._sink, state)
        if state is BreakerState.CLOSED:
            log.info("sink is back", sink=self._sink)
        elif self._told is BreakerState.CLOSED:
            log.warning("sink is down", sink=self._sink, reason=self.health.last_error)
        self._told = state

    def _down_since(self, state: BreakerState) -> datetime | None:
        if state is BreakerState.CLOSED:
            return None
        return self.health.down_since_at or self._clock()
