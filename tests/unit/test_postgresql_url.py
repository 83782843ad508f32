"""Errors about database URLs, for random passwords: none contains a part of one."""

import string
import traceback

from hypothesis import example, given
from hypothesis import strategies as st

from receiver.errors import SettingsError
from receiver.storage.database import driver_url

# Of the characters that end a part of a URL, more than their share; and the names and values that errors may contain.
_DELIMITERS = st.sampled_from([*"?&=@:/#%;,+[]", "sslmode=", "&sslrootcert=", "?host=", "://", "%3F", "&port="])
# Words of capitals, which no error of ours contains.
_WORDS = st.text(string.ascii_uppercase, min_size=4, max_size=12)
PASSWORDS = st.lists(st.one_of(_WORDS, _WORDS.map(str.lower).map("zq".__add__), _DELIMITERS), min_size=1, max_size=6)
OTHER_PARTS = ("", "?sslmode=require", "?sslmode=on", "?zzz=1", "?port=0", "?sslrootcert=/none", "?passfile=/none")


def secrets_of(parts: list[str]) -> list[str]:
    """The words of a password: an error that has one of them has a part of the password."""
    return [part for part in parts if part.isalpha() and len(part) >= 4]


def error_about(url: str) -> str:
    """The error and what a traceback would show with it; nothing for a URL that is accepted."""
    try:
        driver_url(url)
    except SettingsError as error:
        return "".join(traceback.format_exception_only(error)) + str(error.__cause__ or "")
    return ""


@given(PASSWORDS, st.sampled_from(OTHER_PARTS), st.sampled_from(["host", "host:5432", "a,b", "host:port", ""]))
@example(["SEC", "?", "zqsecret", "=", "x"], "", "host")
@example(["SEC", "?", "sslrootcert=", "SECRET"], "", "host")
@example(["SECR", "?", "zqsecret"], "", "host")
@example(["SECR", "&sslrootcert=", "TOPSECRET"], "?zzz=1", "host")
def test_no_error_about_a_url_contains_a_part_of_its_password(parts: list[str], rest: str, host: str) -> None:
    password = "".join(parts)
    for url in (
        f"postgresql://user:{password}@{host}/name{rest}",
        f"postgresql://user:{password}",
        f"postgresql://user:5432{password}",
        f"postgresql://user@{host}/name?password={password}",
        f"postgresql://user@{host}/name?sslmode=require&password={password}&zzz=1",
        f"postgres:/user:{password}@{host}/name{rest}",
        f"mysql://user:{password}@{host}/name{rest}",
        f"{password}://user:{password}@{host}/name{rest}",
        f"sqlite://user:{password}@{host}/name{rest}",
    ):
        assert [part for part in secrets_of(parts) if part in error_about(url)] == [], url
