"""Long work in steps: each step is a form that the page sends by itself, so that closing the page stops the work.

No web process remembers anything about it: the form holds what was chosen and how far the work is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from receiver.domain.cloudevents import rfc3339


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """How far the work is, and the fields of the form of its next step (None: it has ended).

    `total` is None where nobody has counted.
    """

    sentence: str
    done: int
    total: int | None
    fields: Mapping[str, str] | None = field(default=None)


def count_of(form: Mapping[str, str], name: str) -> int:
    """A count that an earlier step wrote into the form."""
    text = form.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < _DIGITS else 0


_DIGITS = 12


def fixed_times(since: datetime | None, until: datetime | None, now: datetime) -> dict[str, str]:
    """The range of times of a choice, with an end that does not move.

    What is added later is not part of the work: events that a sink refuses again would keep it from ending.
    """
    times = {"toDateTime": rfc3339(min(until, now) if until is not None else now)}
    return {"fromDateTime": rfc3339(since), **times} if since is not None else times
