"""Which events a sink is given."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from receiver.domain.cloudevents import event_type, fact
from receiver.domain.events import Direction, Status
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
    """What a sink wants; an event passes if it meets every part, and a part that names nothing is met by all.

    `number_prefixes` are without plus, and met by the sender's or a recipient's number.
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
            and (not self.applications or fact(entry, "application_id") in self.applications)
            and (not self.number_prefixes or any(_plain(one).startswith(self.number_prefixes) for one in _ends(entry)))
            and (not self.tag_prefixes or (fact(entry, "tag") or "").startswith(self.tag_prefixes))
        )


def _ends(entry: LogEntry) -> Iterable[str]:
    """The numbers an event is about: its sender, and its own recipient if it names one, else those of its message."""
    recipient = entry.event.recipient
    named = (recipient,) if recipient else fact(entry, "recipients") or ()
    return (number for number in (fact(entry, "sender"), *named) if number)


def _plain(number: str) -> str:
    return number.removeprefix("+")
