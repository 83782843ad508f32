"""Tells callbacks that were imported, or processed again, from those that have just come."""

from datetime import datetime, timedelta
from typing import Final

# Requests wait for their commit for less than five seconds; the clocks of several machines differ by more.
_OUT_OF_ORDER: Final = timedelta(minutes=1)


class ImportDetector:
    """Recognises imports by their place in a log whose entries come in about the order of their receipt.

    An entry that is much older than one before it was added later than it was received. So was one that is older than
    the moment at which the log had no further entries. A backlog is in order, so its entries count as late, not as
    imported.
    """

    def __init__(self) -> None:
        self._latest: datetime | None = None

    def is_import(self, received_at: datetime, now: datetime) -> bool:
        """Whether the next entry was imported; entries have to be passed in the order of the log."""
        if self._latest is not None and received_at < self._latest - _OUT_OF_ORDER:
            return True
        # An import may have times that lie ahead.
        self.caught_up(min(received_at, now))
        return False

    def caught_up(self, at: datetime) -> None:
        """Notes that the log had nothing more at this moment."""
        if self._latest is None or at > self._latest:
            self._latest = at
