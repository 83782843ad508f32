"""Who is told what the dispatchers do, for the metrics."""

from collections.abc import Mapping
from typing import Protocol


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
