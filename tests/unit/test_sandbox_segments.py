"""Segments, against vectors made by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.sandbox.messages import is_gsm, not_gsm, segment_count

# the tables of GSM 03.38 as rows of code points, written down apart from the code's own
_BASIC = (
    "0040 00A3 0024 00A5 00E8 00E9 00F9 00EC 00F2 00C7 000A 00D8 00F8 000D 00C5 00E5 "
    "0394 005F 03A6 0393 039B 03A9 03A0 03A8 03A3 0398 039E 00C6 00E6 00DF 00C9 "
    "0020 0021 0022 0023 00A4 0025 0026 0027 0028 0029 002A 002B 002C 002D 002E 002F "
    "0030 0031 0032 0033 0034 0035 0036 0037 0038 0039 003A 003B 003C 003D 003E 003F "
    "00A1 0041 0042 0043 0044 0045 0046 0047 0048 0049 004A 004B 004C 004D 004E 004F "
    "0050 0051 0052 0053 0054 0055 0056 0057 0058 0059 005A 00C4 00D6 00D1 00DC 00A7 "
    "00BF 0061 0062 0063 0064 0065 0066 0067 0068 0069 006A 006B 006C 006D 006E 006F "
    "0070 0071 0072 0073 0074 0075 0076 0077 0078 0079 007A 00E4 00F6 00F1 00FC 00E0"
)
BASIC = "".join(chr(int(point, 16)) for point in _BASIC.split())
EXTENSION = "\f^{}\\[~]|€"


def test_gsm_alphabet_is_complete() -> None:
    assert len(BASIC) == 127
    assert is_gsm(BASIC + EXTENSION)


@pytest.mark.parametrize("character", ["`", "ç", "’", "“", "…", "–", "\t", "\x1b", "\u0301", "😀", "\u2126", "я"])
def test_other_characters_are_not_gsm(character: str) -> None:
    assert not is_gsm(f"hello {character}")


def test_only_the_characters_of_the_tables_are_gsm() -> None:
    found = {chr(point) for point in range(0x10000) if is_gsm(chr(point))}
    assert found == set(BASIC + EXTENSION)


def test_not_gsm_names_each_character_once() -> None:
    assert not_gsm("`a`😀\x07") == ["GRAVE ACCENT", "GRINNING FACE", "U+0007"]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 1),
        ("a" * 160, 1),
        ("a" * 161, 2),
        ("a" * 306, 2),
        ("a" * 307, 3),
        ("a" * 459, 3),
        ("a" * 460, 4),
        ("€" * 80, 1),
        ("€" * 81, 2),
        # 76 pairs of septets to a segment: the 153rd place cannot take half of one
        ("€" * 152, 2),
        ("€" * 153, 3),
        ("a" * 158 + "€", 1),
        ("a" * 159 + "€", 2),
        # the extension character at the seam goes to the next segment whole
        ("a" * 152 + "€" + "a" * 152, 3),
        ("a" * 151 + "€" + "a" * 153, 2),
        ("a" * 2048, 14),
    ],
)
def test_gsm_segments_have_160_or_153_septets(text: str, count: int) -> None:
    assert segment_count(text) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("я", 1),
        ("я" * 70, 1),
        ("я" * 71, 2),
        ("я" * 134, 2),
        ("я" * 135, 3),
        # one character of another alphabet is enough
        ("a" * 70 + "я", 2),
        # beyond the basic plane a character takes two
        ("😀" * 35, 1),
        ("😀" * 36, 2),
        ("😀" * 66, 2),
        ("😀" * 67, 3),
        ("я" * 66 + "😀" + "я" * 66, 3),
        ("я" * 2048, 31),
    ],
)
def test_ucs2_segments_have_70_or_67_units(text: str, count: int) -> None:
    assert segment_count(text) == count


@given(st.text(alphabet=st.sampled_from(BASIC + EXTENSION + "я😀"), max_size=330))
def test_segment_count_never_falls_with_more_text(text: str) -> None:
    counts = [segment_count(text[:end]) for end in range(len(text) + 1)]
    gsm = [count for end, count in enumerate(counts) if is_gsm(text[:end])]
    other = [count for end, count in enumerate(counts) if not is_gsm(text[:end])]
    assert gsm == sorted(gsm)
    assert other == sorted(other)
