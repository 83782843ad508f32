"""When an event that a sink did not take is tried again, and when it no longer is."""

from dataclasses import dataclass
from datetime import datetime, timedelta
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
