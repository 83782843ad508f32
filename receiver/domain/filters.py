"""The filter of a sink: which events are published to it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from receiver.domain.cloudevents import event_type, message_field
from receiver.domain.events import Direction, Status, number_key
from receiver.domain.publication import LogEntry

EVENT_TYPES: Final = frozenset(
    {
        *(f"message.{status}" for status in Status if status is not Status.UNKNOWN),
        "alert.fired",
        "alert.resolved",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """The filter of a sink. An event passes if it meets every condition; an empty condition is met by all events.

    `number_prefixes` have no plus, and match the number of the sender or of a recipient.
    """

    types: frozenset[str] = frozenset()
    changes_only: bool = False
    direction: Direction | None = None
    applications: frozenset[str] = frozenset()
    number_prefixes: tuple[str, ...] = ()
    tag_prefixes: tuple[str, ...] = ()

    def passes(self, entry: LogEntry) -> bool:
        return (
            (not self.types or event_type(entry.event) in self.types)
            and (entry.changed or not self.changes_only)
            and (self.direction is None or entry.event.direction == self.direction)
            and (not self.applications or message_field(entry, "application_id") in self.applications)
            and (not self.number_prefixes or any(key.startswith(self.number_prefixes) for key in _number_keys(entry)))
            and (not self.tag_prefixes or (message_field(entry, "tag") or "").startswith(self.tag_prefixes))
        )


def _number_keys(entry: LogEntry) -> Iterable[str]:
    """The numbers of an event: its sender, and its own recipient if it has one, else the recipients of its message."""
    recipient = entry.event.recipient
    named = (recipient,) if recipient else message_field(entry, "recipients") or ()
    return (number_key(number) for number in (message_field(entry, "sender"), *named) if number)
