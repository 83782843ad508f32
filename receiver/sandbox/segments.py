"""Into how many segments a text is broken on its way to a phone."""

import unicodedata
from collections.abc import Iterator
from typing import Final

# GSM 03.38: the basic table takes one septet a character, the extension table two (an escape, then the character)
_BASIC: Final = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_EXTENSION: Final = frozenset("\f^{}\\[~]|€")
_GSM: Final = _BASIC | _EXTENSION

# in one segment, and in each of several, where a header of six bytes takes its room
_SEPTETS: Final = (160, 153)
_UTF_16_UNITS: Final = (70, 67)


def is_gsm(text: str) -> bool:
    """Whether a text can be written in the GSM 03.38 alphabet."""
    return _GSM.issuperset(text)


def not_gsm(text: str) -> list[str]:
    """The characters of a text that GSM 03.38 does not have, each once, in words for people."""
    return [
        unicodedata.name(character, f"U+{ord(character):04X}")
        for character in dict.fromkeys(text)
        if character not in _GSM
    ]


def segment_count(text: str) -> int:
    """How many segments a text takes: seven bits a character if it can be, else UCS-2. An empty one takes one."""
    if is_gsm(text):
        return _segments((2 if character in _EXTENSION else 1 for character in text), *_SEPTETS)
    return _segments((2 if ord(character) > 0xFFFF else 1 for character in text), *_UTF_16_UNITS)


def _segments(widths: Iterator[int], alone: int, joined: int) -> int:
    """The segments for characters of these widths; one that takes two places is not cut in half."""
    total, count, room = 0, 1, joined
    for width in widths:
        total += width
        if width > room:
            count, room = count + 1, joined
        room -= width
    return 1 if total <= alone else count
