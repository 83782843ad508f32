"""Parses the JSON of a body, as leniently as its meaning stays clear."""

import json
import re
from typing import Any, Final

import orjson


class ParseError(ValueError):
    """A callback cannot be parsed; the text gives the reason in words for people."""


_SMALLEST: Final = -(2**63)
_TOO_LARGE: Final = 2**64
# A string, or a comma directly before a closing bracket. Possessive quantifiers keep the time linear for every body.
_STRING_OR_SPARE_COMMA: Final = re.compile(r'"(?:[^"\\]|\\.)*+"?|,(?=\s*+[}\]])', re.DOTALL)


def parse(body: bytes) -> Any:
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
