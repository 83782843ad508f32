"""Counts the segments of an SMS."""

import unicodedata
from collections.abc import Iterator
from typing import Final

# GSM 03.38: a character of the basic table takes one septet, of the extension table two (escape and character).
_BASIC: Final = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_EXTENSION: Final = frozenset("\f^{}\\[~]|€")
_GSM: Final = _BASIC | _EXTENSION

# The capacity of a single segment, and of each of several segments, which have a header of six bytes.
_SEPTETS: Final = (160, 153)
_UTF_16_UNITS: Final = (70, 67)


def is_gsm(text: str) -> bool:
    """Whether a text has only characters of the GSM 03.38 alphabet."""
    return _GSM.issuperset(text)


def not_gsm(text: str) -> list[str]:
    """Returns the Unicode names of the characters of a text that GSM 03.38 does not have, each once."""
    return [
        unicodedata.name(character, f"U+{ord(character):04X}")
        for character in dict.fromkeys(text)
        if character not in _GSM
    ]


def segment_count(text: str) -> int:
    """Returns the number of segments of a text, at least 1: in GSM 03.38 if possible, else in UCS-2."""
    if is_gsm(text):
        return _segments((2 if character in _EXTENSION else 1 for character in text), *_SEPTETS)
    return _segments((2 if ord(character) > 0xFFFF else 1 for character in text), *_UTF_16_UNITS)


def _segments(widths: Iterator[int], single: int, joined: int) -> int:
    """Returns the number of segments for characters of these widths. A wide character is never split."""
    total, count, room = 0, 1, joined
    for width in widths:
        total += width
        if width > room:
            count, room = count + 1, joined
        room -= width
    return 1 if total <= single else count
