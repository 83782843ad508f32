"""The clock of the retry schedule: it does not jump when the clock of the machine is set."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

# A smaller difference is followed: clocks drift, and are slewed.
_TOLERANCE: Final = timedelta(seconds=5)


class ScheduleClock:
    """Aware UTC time that passes at the pace of `schedule_seconds`: seconds that never jump.

    It starts at `start`. Whoever compares it with the reference clock learns how far that was set, moves the stored
    times of its schedule by as much, and then this clock: the pauses that are left stay as they were.
    """

    def __init__(self, start: datetime, schedule_seconds: Callable[[], float]) -> None:
        self._start = start
        self._schedule_seconds = schedule_seconds
        self._started = schedule_seconds()

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._schedule_seconds() - self._started)

    def anchor(self, reference: datetime, read_at: float) -> None:
        """Goes on from the time of the reference clock, which was read at `read_at` of `schedule_seconds`."""
        self._start, self._started = reference, read_at

    def step(self, reference: datetime, read_at: float) -> timedelta | None:
        """How far the reference clock was set since this clock was anchored; None if it was not."""
        return step_between(self._start + timedelta(seconds=read_at - self._started), reference)


def step_between(expected: datetime, reference: datetime) -> timedelta | None:
    difference = reference - expected
    return difference if abs(difference) > _TOLERANCE else None
