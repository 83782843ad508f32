"""Which events a sink is given."""

from dataclasses import dataclass
from typing import Final

from receiver.domain.cloudevents import event_type
from receiver.domain.events import Status
from receiver.domain.log import LogEntry

EVENT_TYPES: Final = frozenset(
    {
        *(f"message.{status}" for status in Status if status is not Status.UNKNOWN),
        "alert.fired",
        "alert.resolved",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What a sink wants: events of these types (none named: of all), and perhaps only those that moved a status."""

    types: frozenset[str] = frozenset()
    changes_only: bool = False

    def passes(self, entry: LogEntry) -> bool:
        wanted = not self.types or event_type(entry.event) in self.types
        return wanted and (entry.changed or not self.changes_only)
