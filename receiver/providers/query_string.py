"""Parses the query string of a v1 GET into the fields that a POST would have."""

from typing import Final
from urllib.parse import parse_qsl

from receiver.providers.fields import Payload

_NUMBERS: Final = ("from", "to")


def parse(query: str) -> Payload:
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
