"""The sandbox's clock: the real one, moved forward on demand."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

# what is planned after it still has a date
_LAST: Final = datetime(9998, 1, 1, tzinfo=UTC)


def _real() -> datetime:
    return datetime.now(UTC)


class Clock:
    """Tells the time."""

    def __init__(self, real: Callable[[], datetime] = _real) -> None:
        self._real = real
        self._ahead = timedelta()

    def now(self) -> datetime:
        return self._real() + self._ahead

    def advance(self, by: timedelta) -> None:
        """Moves the clock forward; raises ValueError for a step back, ValueError or OverflowError
        beyond the end of time."""
        if by < timedelta():
            raise ValueError("the clock goes forward only")
        if self._real() + self._ahead + by > _LAST:
            raise ValueError("time ends before that")
        self._ahead += by

    def reset(self) -> None:
        self._ahead = timedelta()
