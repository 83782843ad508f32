"""Single values out of a callback: each getter takes whatever came and gives a usable value, or None.

Every text that leaves here can be stored: no NUL (PostgreSQL has no place for it) and no lone surrogate.
"""

import re
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from receiver.domain.events import MAX_RECIPIENTS

Fields = dict[str, Any]
"""A JSON object, or a query string taken apart."""

_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
_DIGITS: Final = re.compile(r"-?[0-9]{1,19}")
LARGEST: Final = 2**63 - 1
# What is looked up is indexed, and an index entry of PostgreSQL has room for some 2700 bytes: two of these and more.
LONGEST: Final = 250
# .NET writes the first for "no time"; asyncpg takes both for infinities and gives them back without a zone
_NO_TIMES: Final = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


def storable(value: str) -> str:
    """A text with NUL and lone surrogates replaced by U+FFFD."""
    if value.isascii() and "\x00" not in value:
        return value
    return _UNSTORABLE.sub("\ufffd", value)


def text(value: object) -> str | None:
    """A text as given. A whole number becomes its digits; a fraction has lost its spelling, so it is none."""
    if type(value) is str:
        return storable(value)
    return str(value) if type(value) is int else None


def texts(value: object) -> tuple[str, ...]:
    """The texts of a list, without empty ones; a bare text is a list of one."""
    if not value:
        return ()
    if type(value) is not list:
        value = (value,)
    return tuple(told for member in value if (told := text(member)))


def too_many(recipients: object) -> str | None:
    """Why a list of recipients is too long to be read, in words for people; None if it is not."""
    if type(recipients) is not list or len(recipients) <= MAX_RECIPIENTS:
        return None
    return f"{len(recipients)} recipients, and {MAX_RECIPIENTS} are allowed"


def number(value: object) -> int | None:
    """A whole number of at most 63 bits, given as a number or as its digits."""
    if type(value) is str:
        digits = value.strip()
        value = int(digits) if _DIGITS.fullmatch(digits) else None
    elif type(value) is float:
        value = int(value) if value.is_integer() else None
    return value if type(value) is int and -LARGEST <= value <= LARGEST else None


def number_text(value: object) -> str | None:
    """One spelling for a number however it was given; what is no number is spelled as it came."""
    read = number(value)
    return str(read) if read is not None else text(value) or None


def quoted(value: str, limit: int) -> str:
    """The beginning of a text between quotes, with escapes for what cannot be printed; about `limit` characters."""
    shown = repr(value[:limit])
    return shown if len(shown) <= limit + 2 else f"{shown[:limit]}…{shown[0]}"


def moment(value: object) -> datetime | None:
    """A time in UTC: ISO 8601 with or without fraction, with Z, an offset or neither (UTC), in either case."""
    if type(value) is not str:
        return None
    try:
        time = datetime.fromisoformat(value.strip().upper())
        utc = time if time.tzinfo is UTC else time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
        return None if utc in _NO_TIMES else utc
    except (ValueError, OverflowError):  # OverflowError: the offset carries it out of the years 1 to 9999
        return None


def moment_text(time: datetime) -> str:
    """One spelling for a time in UTC however it was given: ISO 8601 with six fraction digits."""
    # `isoformat` takes a quarter longer: it asks the zone for its offset
    day = (time.year, time.month, time.day, time.hour, time.minute, time.second, time.microsecond)
    return "%04d-%02d-%02dT%02d:%02d:%02d.%06dZ" % day  # noqa: UP031 - and faster than format


def urls(value: object) -> tuple[str, ...]:
    """The media of a message: a list of URLs or of RCS files, one of either, or v1's `[url1, url2]` in one text."""
    if not value:
        return ()
    if type(value) is str and value.strip().startswith("["):
        value = _bracketed(value.strip())
    if type(value) is not list:
        value = [value]
    return tuple(url for member in value for url in texts(_location(member)))


def _bracketed(value: str) -> object:
    """The members of a list in a text: JSON if it is, else bare URLs between brackets (v1 GET, not JSON)."""
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return [url.strip() for url in value.removeprefix("[").removesuffix("]").split(",")]


def _location(member: object) -> object:
    if type(member) is dict:
        return member.get("fileUrl")
    return member
