"""The clock of the sandbox: real time, plus what tests advanced it by."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

# Callbacks are scheduled up to a day after the clock: their dates must still exist.
_LAST: Final = datetime(9998, 1, 1, tzinfo=UTC)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Clock:
    """Real time plus an offset that only grows."""

    def __init__(self, real_time: Callable[[], datetime] = _utc_now) -> None:
        self._real_time = real_time
        self._offset = timedelta()

    def now(self) -> datetime:
        return self._real_time() + self._offset

    def advance(self, by: timedelta) -> None:
        """Moves the clock forward.

        Raises ValueError for a step back, and ValueError or OverflowError for a time after the year 9997.
        """
        if by < timedelta():
            raise ValueError("the clock can only move forward")
        if self._real_time() + self._offset + by > _LAST:
            raise ValueError("the clock cannot move past the year 9997")
        self._offset += by

    def reset(self) -> None:
        self._offset = timedelta()
