"""Numbers as people type them give the key under which stored numbers are found."""

import pytest

from receiver.models.numbers import typed_number_key


def key(text: str, country_code: str = "1") -> str:
    return typed_number_key(text, lambda: country_code)


@pytest.mark.parametrize(
    "text",
    [
        "+19195554321",
        "19195554321",
        "9195554321",
        "(919) 555-4321",
        "919-555-4321",
        "919.555.4321",
        "+1 919 555 4321",
        "1 (919) 555-4321",
        "011 1 919 555 4321",
        "tel:+1-919-555-4321",
        " 919 555 4321 ",
    ],
)
def test_usual_spellings_of_a_number_have_the_same_key(text: str) -> None:
    assert key(text) == "19195554321"


@pytest.mark.parametrize(
    ("text", "country_code", "expected"),
    [
        ("030 1234567", "49", "49301234567"),
        ("020 7183 8750", "44", "442071838750"),
        ("+44 20 7183 8750", "1", "442071838750"),
        ("442071838750", "1", "442071838750"),
        ("06 6982 1234", "39", "390669821234"),
    ],
)
def test_number_without_country_code_belongs_to_the_country_of_the_setting(
    text: str, country_code: str, expected: str
) -> None:
    assert key(text, country_code) == expected


@pytest.mark.parametrize(("text", "expected"), [("555-4321", "5554321"), ("1 555 0100", "15550100")])
def test_incomplete_number_is_taken_as_its_digits(text: str, expected: str) -> None:
    assert key(text) == expected


@pytest.mark.parametrize("text", ["12345", "54321000", "BRAND", "Acme Shop", "H&M", "7eleven"])
def test_short_codes_and_alphanumeric_senders_are_taken_as_they_are(text: str) -> None:
    assert key(text) == text


@pytest.mark.parametrize("text", ["", "  ", "+", "()", "-", "call me maybe", "9" * 40, "555 extension", "1/2/3", "Ω"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a telephone number, a short code or an alphanumeric sender"):
        key(text)


def test_country_code_is_not_read_for_a_number_that_has_one() -> None:
    def unreadable() -> str:
        raise AssertionError

    assert typed_number_key("+1 (919) 555-4321", unreadable) == "19195554321"
