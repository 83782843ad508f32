"""The query string of a v1 GET, taken apart into the fields that a POST would carry."""

from typing import Final
from urllib.parse import parse_qsl

from receiver.providers.fields import Fields

_NUMBERS: Final = ("from", "to")


def parse(query: str) -> Fields:
    """The fields of a raw query string: of a repeated parameter the first, of a repeated `media` all."""
    pairs = parse_qsl(query, keep_blank_values=True, errors="replace")
    fields: Fields = dict(reversed(pairs))
    media = [value for name, value in pairs if name == "media"]
    if len(media) > 1:
        fields["media"] = media
    for name in _NUMBERS:
        if name in fields:
            fields[name] = _with_plus(fields[name])
    return fields


def _with_plus(number: str) -> str:
    """A number whose unescaped plus arrived as a space, put right."""
    return "+" + number[1:] if number.startswith(" ") else number
