import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from receiver.providers.fields import moment, moment_text, number, number_text, storable, text, texts, urls

NOON = "2024-06-12T12:00:00.000000Z"


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("", ""),
        ("Grüße 👋", "Grüße 👋"),
        ("a\x00b", "a\ufffdb"),
        ("é\x00", "é\ufffd"),
        ("\ud83d", "\ufffd"),
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("\x01\x1f\x7f\ufffe\uffff", "\x01\x1f\x7f\ufffe\uffff"),
    ],
)
def test_only_nul_and_lone_surrogates_are_replaced(given: str, stored: str) -> None:
    assert storable(given) == stored


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", ""),
        (" a ", " a "),
        (0, "0"),
        (18446744073709551615, "18446744073709551615"),
        (1.0, None),
        (True, None),
        (None, None),
        (["a"], None),
        ({"a": 1}, None),
    ],
)
def test_a_text_is_kept_as_given_and_an_integer_by_its_digits(value: object, expected: str | None) -> None:
    assert text(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["a", "b"], ("a", "b")),
        ("a", ("a",)),
        ("a,b", ("a,b",)),
        (["a", "", None, 7, {}, ["b"]], ("a", "7")),
        ([], ()),
        ("", ()),
        (None, ()),
        ({"a": 1}, ()),
    ],
)
def test_a_bare_text_is_a_list_of_one_and_empty_members_do_not_count(value: object, expected: tuple[str, ...]) -> None:
    assert texts(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (4432, 4432),
        ("4432", 4432),
        (" 4432\n", 4432),
        ("0", 0),
        ("-1", -1),
        ("007", 7),
        (4432.0, 4432),
        (2**63 - 1, 2**63 - 1),
        (str(2**63 - 1), 2**63 - 1),
        (2**63, None),
        (str(2**63), None),
        (-(2**63), None),
        ("9" * 5000, None),
        (0.5, None),
        (1e300, None),
        (float("inf"), None),
        (True, None),
        ("", None),
        ("4_432", None),
        ("44.32", None),
        ("٤٤٣٢", None),
        ("4432a", None),
        (None, None),
        ([4432], None),
    ],
)
def test_a_number_is_an_integer_or_its_digits_within_63_bits(value: object, expected: int | None) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(4432, "4432"), ("4432", "4432"), (" 04432 ", "4432"), ("no-route", "no-route"), ("", None), (None, None)],
)
def test_a_number_has_one_spelling(value: object, expected: str | None) -> None:
    assert number_text(value) == expected


@pytest.mark.parametrize(
    "given",
    [
        "2024-06-12T12:00:00Z",
        "2024-06-12T12:00:00.0Z",
        "2024-06-12T12:00:00.000000000Z",
        "2024-06-12t12:00:00z",
        "2024-06-12 12:00:00",
        "2024-06-12T12:00:00",
        "2024-06-12T14:00:00+02:00",
        "2024-06-12T14:00:00.000+0200",
        " 2024-06-12T12:00:00Z ",
    ],
)
def test_every_form_of_one_time_has_one_spelling_in_utc(given: str) -> None:
    read = moment(given)
    assert read is not None
    assert moment_text(read) == NOON


@pytest.fixture
def _far_from_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_far_from_greenwich")
def test_a_time_without_zone_is_utc_wherever_we_run() -> None:
    assert moment("2024-06-12T12:00:00") == datetime(2024, 6, 12, 12, tzinfo=UTC)


@pytest.mark.parametrize("digits", range(1, 10))
def test_a_time_may_have_one_to_nine_fraction_digits(digits: int) -> None:
    read = moment(f"2024-06-12T12:00:00.{'123456789'[:digits]}Z")
    assert read is not None
    assert read.microsecond == int("123456789"[: min(digits, 6)].ljust(6, "0"))


@pytest.mark.parametrize(
    "given",
    [
        "",
        "noon",
        "2024-13-01T00:00:00Z",
        "2024-06-12T12:00:60Z",
        "10000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "\ud800",
        1718193600,
        None,
        ["2024-06-12T12:00:00Z"],
        # PostgreSQL's infinities
        "0001-01-01T00:00:00",
        "0001-01-01T01:00:00+01:00",
        "9999-12-31T23:59:59.999999999Z",
    ],
)
def test_an_unreadable_time_is_none(given: object) -> None:
    assert moment(given) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["u1", "u2"], ("u1", "u2")),
        ("[u1, u2]", ("u1", "u2")),
        (" [u1,u2] ", ("u1", "u2")),
        ("[u1]", ("u1",)),
        ("[https://a/photo,1.jpg]", ("https://a/photo,1.jpg",)),
        ("[https://a/1,2.jpg,http://b/c, d.png, s3://e]", ("https://a/1,2.jpg", "http://b/c, d.png", "s3://e")),
        ("[u1, u2", ("u1", "u2")),
        ("[]", ()),
        ("[ , ]", ()),
        ('["u1", "u2,3"]', ("u1", "u2,3")),
        ("u1,2", ("u1,2",)),
        ("", ()),
        (None, ()),
        ([], ()),
        ({"fileUrl": "u1", "thumbnailUrl": "t1"}, ("u1",)),
        ([{"fileUrl": "u1"}, {"thumbnailUrl": "t1"}, {"fileUrl": ["u2"]}, "u3", 7.5, None], ("u1", "u2", "u3")),
        (7.5, ()),
        ("[" * 5000, ("[" * 4999,)),
    ],
)
def test_media_come_as_a_list_as_files_or_between_brackets(value: object, expected: tuple[str, ...]) -> None:
    assert urls(value) == expected
