"""Words of the explanations: times, durations, numbers and quotations in a sentence."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from receiver.models.messages import RecipientRead

Value = TypeVar("Value")

_LISTED_NUMBERS: Final = 5
_QUOTED_CHARACTERS: Final = 200


def time_text(moment: datetime) -> str:
    """A time as people read it: `2026-01-01 12:00:05 UTC`."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def duration_text(duration: timedelta) -> str:
    """A duration in its two largest units: `0.4 seconds`, `3 minutes`, `2 hours 5 minutes`."""
    seconds = abs(duration).total_seconds()
    if seconds < 9.95:
        return counted(f"{seconds:.1f}".removesuffix(".0"), "second")
    whole = round(seconds)
    for name, size, smaller, smaller_size in _UNITS:
        if whole >= size:
            rest = whole % size // smaller_size
            text = counted(str(whole // size), name)
            return f"{text} {counted(str(rest), smaller)}" if rest else text
    return counted(str(whole), "second")


_UNITS: Final = (("day", 86_400, "hour", 3_600), ("hour", 3_600, "minute", 60), ("minute", 60, "second", 1))


def counted(number: str, noun: str) -> str:
    return f"{number} {noun}" if number == "1" else f"{number} {noun}s"


def shared(values: Iterable[Value]) -> Value | None:
    """The value that all have; None where they differ."""
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else None


def paragraph(*sentences: str | None) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def listed(numbers: Iterable[str | None]) -> str:
    """Numbers in a sentence; of many, the first and how many more there are."""
    known = [number or "an unknown number" for number in numbers]
    if not known:
        return "an unknown number"
    more = len(known) - _LISTED_NUMBERS
    return f"{', '.join(known[:_LISTED_NUMBERS])} and {more} more" if more > 0 else ", ".join(known)


def number(row: RecipientRead) -> str:
    return row.recipient or "an unknown number"


def recipient_text(row: RecipientRead) -> str:
    return row.recipient or "a recipient whose number is not known"


def on(moment: datetime | None) -> str:
    return f" on {time_text(moment)}" if moment is not None else ""


def quoted(text: str) -> str:
    shortened = text if len(text) <= _QUOTED_CHARACTERS else f"{text[:_QUOTED_CHARACTERS]}…"
    return f'"{shortened}"'


def same_words(one: str, other: str) -> bool:
    """Whether two texts differ in nothing but case and punctuation."""
    first, second = ("".join(filter(str.isalnum, text)).casefold() for text in (one, other))
    return first == second


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
