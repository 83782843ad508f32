"""Parses bodies, query strings, and the single values of a callback.

What parses a single value takes any JSON value and returns a usable one, or None. Every returned text can be stored:
without NUL, which PostgreSQL cannot store, and without lone surrogates.
"""

import json
import re
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson

from receiver.domain.events import MAX_RECIPIENTS, Element, Event, Quarantine, Rejected

Payload = dict[str, Any]
"""A JSON object, or the parameters of a query string."""

LARGEST: Final = 2**63 - 1
# Ids and numbers are indexed, and an index entry of PostgreSQL has room for some 2700 bytes: for two of these and more.
LONGEST: Final = 250


class ParseError(ValueError):
    """A callback cannot be parsed; the text gives the reason in words for people."""


_SMALLEST: Final = -(2**63)
_TOO_LARGE: Final = 2**64
# A string, or a comma directly before a closing bracket. Possessive quantifiers keep the time linear for every body.
_STRING_OR_SPARE_COMMA: Final = re.compile(r'"(?:[^"\\]|\\.)*+"?|,(?=\s*+[}\]])', re.DOTALL)


def parse_json(body: bytes) -> Any:
    """The JSON value of a body, parsed strictly if possible, else leniently; raises ParseError and nothing else."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return _parse_leniently(body)


def _parse_leniently(body: bytes) -> Any:
    """Also parses UTF-16 and -32, a byte order mark, broken UTF-8, control characters in strings, lone surrogates,
    NaN and infinities (as null), integers of any size and trailing commas (Bandwidth's two-factor samples have one).
    """
    if not body.strip():
        raise ParseError("the body is empty")
    text = body.decode(json.detect_encoding(body), errors="replace")
    try:
        return _DECODER.decode(_STRING_OR_SPARE_COMMA.sub(_without_spare_comma, text))
    except RecursionError:
        raise ParseError("the body is nested too deeply") from None
    except ValueError as error:
        raise ParseError(f"the body is not JSON: {str(error)[:120]}") from None


def _without_spare_comma(match: re.Match[str]) -> str:
    found = match[0]
    return "" if found == "," else found


def _integer(digits: str) -> int | float:
    """A whole number of 64 bits; a larger one becomes a float, as in orjson. Python's `int` raises for 4,301 digits."""
    number = int(digits) if len(digits) <= 20 else _TOO_LARGE
    return number if _SMALLEST <= number < _TOO_LARGE else float(digits)


def _null(_constant: str) -> None:
    """Replaces NaN, Infinity and -Infinity by null."""


_DECODER: Final = json.JSONDecoder(strict=False, parse_int=_integer, parse_constant=_null)
_NUMBERS: Final = ("from", "to")


def parse_query(query: str) -> Payload:
    """The fields of a raw query string: the first value of a repeated parameter, but all values of `media`."""
    pairs = parse_qsl(query, keep_blank_values=True, errors="replace")
    payload: Payload = dict(reversed(pairs))
    media = [value for name, value in pairs if name == "media"]
    if len(media) > 1:
        payload["media"] = media
    for name in _NUMBERS:
        if name in payload:
            payload[name] = _with_plus(payload[name])
    return payload


def _with_plus(number: str) -> str:
    """The number, with its plus restored if that was not escaped and so was decoded as a space."""
    return "+" + number[1:] if number.startswith(" ") else number


_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
_DIGITS: Final = re.compile(r"-?[0-9]{1,19}")
# .NET writes the first for "no time"; asyncpg takes both for infinities and returns them without a time zone.
_NO_TIMES: Final = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


def storable(value: str) -> str:
    """A text with NUL and lone surrogates replaced by U+FFFD."""
    if value.isascii() and "\x00" not in value:
        return value
    return _UNSTORABLE.sub("\ufffd", value)


def text(value: object) -> str | None:
    """A text as given, or the digits of a whole number. A fraction is None: parsing has lost its spelling."""
    if type(value) is str:
        return storable(value)
    return str(value) if type(value) is int else None


def texts(value: object) -> tuple[str, ...]:
    """The non-empty texts of a list; a bare text counts as a list of one."""
    if not value:
        return ()
    if type(value) is not list:
        value = (value,)
    return tuple(item for member in value if (item := text(member)))


def too_many(recipients: object) -> str | None:
    """Describes for people why a list of recipients is too long; None if it is not."""
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
    """The canonical spelling of a number, in whatever form it is given; any other value as its text."""
    parsed = number(value)
    return str(parsed) if parsed is not None else text(value) or None


def quoted(value: str, limit: int) -> str:
    """The first `limit` characters of a text (about), in quotes, with unprintable characters escaped."""
    shown = repr(value[:limit])
    return shown if len(shown) <= limit + 2 else f"{shown[:limit]}…{shown[0]}"


def moment(value: object) -> datetime | None:
    """A time in UTC from ISO 8601: with or without a fraction, with Z, an offset or neither (UTC), in any case."""
    if type(value) is not str:
        return None
    try:
        time = datetime.fromisoformat(value.strip().upper())
        utc = time if time.tzinfo is UTC else time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
        return None if utc in _NO_TIMES else utc
    except (ValueError, OverflowError):  # OverflowError: the offset moves it out of the years 1 to 9999
        return None


def moment_text(time: datetime) -> str:
    """The canonical spelling of a time in UTC: ISO 8601 with six fraction digits."""
    # `isoformat` takes a quarter longer, because it asks the time zone for its offset.
    day = (time.year, time.month, time.day, time.hour, time.minute, time.second, time.microsecond)
    return "%04d-%02d-%02dT%02d:%02d:%02d.%06dZ" % day  # noqa: UP031 - and faster than format


def urls(value: object) -> tuple[str, ...]:
    """The media URLs of a message: from a list of URLs or RCS files, a single one, or v1's text `[url1, url2]`."""
    if not value:
        return ()
    if type(value) is str and value.strip().startswith("["):
        value = _bracketed(value.strip())
    if type(value) is not list:
        value = [value]
    return tuple(url for member in value for url in texts(_location(member)))


def _bracketed(value: str) -> object:
    """The members of a list in a text: JSON, else bare URLs between brackets (as in a v1 GET)."""
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        members = value.removeprefix("[").removesuffix("]")
        return [url.strip() for url in (_NEXT_URL.split(members) if "://" in members else members.split(","))]


# A comma is legal within a URL: the next one begins where a scheme follows.
_NEXT_URL: Final = re.compile(r",(?=\s*[A-Za-z][A-Za-z0-9+.-]*://)")


def _location(member: object) -> object:
    if type(member) is dict:
        return member.get("fileUrl")
    return member


def with_storable_ids(element: Element, index: int) -> Element:
    """The element, rejected if one of its ids or numbers is too long for a database index."""
    if type(element) is not Event:
        return element
    fields = element.fields
    looked_up = (element.message_id, element.recipient, fields.sender, fields.application_id, *fields.recipients)
    if all(value is None or len(value) <= LONGEST for value in looked_up):
        return element
    return Rejected(index, Quarantine.UNREADABLE, f"an id or a number has more than {LONGEST} characters")
