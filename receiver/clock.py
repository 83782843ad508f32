"""The clock. Everything that needs the time takes a clock as an argument; this is the one that is passed."""

from datetime import UTC, datetime


def now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)
