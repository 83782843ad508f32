"""Telephone numbers as people type them, brought into the form in which stored numbers are compared.

Stored numbers stay as they came: only what is searched for is parsed.
"""

import re
from collections.abc import Callable
from typing import Final

from receiver.domain.events import number_key

_INTERNATIONAL: Final = re.compile(r"\+[0-9]{1,15}", re.ASCII)
_DIGITS: Final = re.compile(r"[0-9]{1,15}", re.ASCII)
# Short codes have at most eight digits; a number without its area code cannot be completed.
_SHORT_CODE_DIGITS: Final = 8
_FORMATTING: Final = re.compile(r"[\s().-]+")
# GSM 03.40 gives an alphanumeric sender eleven characters.
_ALPHANUMERIC: Final = re.compile(r"(?=.*[A-Za-z])[\w &.*#!?/-]{1,11}", re.ASCII)

NOT_A_NUMBER: Final = "must be a telephone number, a short code or an alphanumeric sender"


def typed_number_key(text: str, country_code: Callable[[], str]) -> str:
    """The key of a number in any usual spelling; raises ValueError if it is none.

    A number without a country code belongs to the country whose code `country_code` returns. Short codes and
    alphanumeric senders are taken as they are.
    """
    text = text.strip()
    if _INTERNATIONAL.fullmatch(text):
        return number_key(text)
    if _ALPHANUMERIC.fullmatch(text) or (_DIGITS.fullmatch(text) and len(text) <= _SHORT_CODE_DIGITS):
        return text
    parsed = _parsed(text, country_code)
    if parsed is not None:
        return parsed
    digits = _FORMATTING.sub("", text.removeprefix("+"))
    if _DIGITS.fullmatch(digits):
        return digits
    raise ValueError(NOT_A_NUMBER)


def _parsed(text: str, country_code: Callable[[], str]) -> str | None:
    # Importing the library takes as long as a tenth of a command; most numbers do not need it.
    import phonenumbers

    try:
        region = phonenumbers.region_code_for_country_code(int(country_code())) if not text.startswith("+") else None
        number = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return None
    # A local number without its area code is possible too, and is not the whole number.
    if phonenumbers.is_possible_number_with_reason(number) != phonenumbers.ValidationResult.IS_POSSIBLE:
        return None
    return number_key(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))
