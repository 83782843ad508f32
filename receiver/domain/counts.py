"""How far what may be very many is counted, and how such counts are shown to people."""

from collections.abc import Mapping
from typing import Final

COUNTED: Final = 100_000
"""What may be very many is counted no further than this: to count 3 million dead letters takes SQLite ten seconds."""


def count_text(number: int) -> str:
    """A number that was counted no further than `COUNTED`."""
    return f"{number:,}+" if number >= COUNTED else f"{number:,}"


def count_texts(numbers: Mapping[str, int]) -> dict[str, str]:
    """Numbers that were together counted no further than `COUNTED`."""
    more = "+" if sum(numbers.values()) >= COUNTED else ""
    return {name: f"{number:,}{more}" for name, number in numbers.items()}
