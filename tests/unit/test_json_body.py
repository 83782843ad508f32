import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.providers.fields import ParseError
from receiver.providers.fields import parse_json as parse
from tests.waiting import cpu_at_most

SAMPLE = {"type": "message-delivered", "tag": "Grüße 👋", "code": [0, -1, 1.5, None, True], "empty": {}}


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
def test_json_is_read_in_every_unicode_encoding(encoding: str) -> None:
    assert parse(json.dumps(SAMPLE, ensure_ascii=False).encode(encoding)) == SAMPLE


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b'"a\x01\n\tb"', "a\x01\n\tb", id="control characters in a string"),
        pytest.param(b'"a\x00b"', "a\x00b", id="NUL in a string"),
        pytest.param(b'"caf\xe9"', "caf\ufffd", id="invalid UTF-8"),
        pytest.param(b'"\\ud800"', "\ud800", id="lone surrogate"),
        pytest.param(b'"\xed\xa0\x80"', "\ufffd\ufffd\ufffd", id="surrogate in UTF-8"),
        pytest.param(b"[NaN, Infinity, -Infinity]", [None, None, None], id="not a number"),
        pytest.param(b"[1e999, -1e999]", [float("inf"), float("-inf")], id="beyond a double"),
        pytest.param(b"9" * 400, float("inf"), id="integer beyond a double"),
        pytest.param(b"[NaN, -9223372036854775808, 18446744073709551615]", [None, -(2**63), 2**64 - 1], id="64 bits"),
        pytest.param(b"[NaN, -9223372036854775809, 18446744073709551616]", [None, -(2.0**63), 2.0**64], id="65 bits"),
        pytest.param(b'{"a": 1, "a": 2}', {"a": 2}, id="duplicate key"),
        pytest.param(b'{"a": NaN, "a": 2}', {"a": 2}, id="duplicate key, read leniently"),
        pytest.param(b'{"a": [1, 2 ,\n], "b": ",]", "c": "\\",}",}', {"a": [1, 2], "b": ",]", "c": '",}'}, id="commas"),
    ],
)
def test_malformed_json_with_a_clear_meaning_is_parsed_leniently(body: bytes, expected: object) -> None:
    assert parse(body) == expected


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b" \r\n", "empty", id="blank"),
        pytest.param(b"\xef\xbb\xbf", "not JSON", id="byte order mark alone"),
        pytest.param(b"<event/>", "not JSON", id="XML"),
        pytest.param(b"eventType=sms&messageId=m-1", "not JSON", id="form"),
        pytest.param(b'{"type": "message-deli', "not JSON", id="cut short"),
        pytest.param(b"{} {}", "not JSON", id="two documents"),
        pytest.param(b"{'a': 1}", "not JSON", id="single quotes"),
        pytest.param(b"\x80\x81", "not JSON", id="bytes"),
        pytest.param(b"\x00" * 9, "not JSON", id="NULs"),
        pytest.param(b"[" * 100_000, "nested too deeply", id="arrays"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, "nested too deeply", id="balanced arrays"),
        pytest.param(b'{"a":' * 100_000, "nested too deeply", id="objects"),
    ],
)
def test_invalid_json_raises_parse_error_with_a_reason(body: bytes, why: str) -> None:
    with pytest.raises(ParseError, match=why):
        parse(body)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'"\\"' * 300_000, id="open strings full of escapes"),
        pytest.param(b"," + b" " * 900_000, id="a comma before many blanks"),
        pytest.param(b", " * 450_000, id="many commas"),
        pytest.param(b'"' * 900_001, id="many quotes"),
        pytest.param(b"NaN" * 300_000, id="many constants"),
        pytest.param(b"9" * 900_000, id="one number"),
    ],
)
def test_the_worst_body_takes_time_in_proportion_to_its_length(body: bytes) -> None:
    with cpu_at_most(30), suppress(ParseError):
        parse(body)


@given(st.binary())
def test_only_parse_error_is_raised(body: bytes) -> None:
    with suppress(ParseError):
        parse(body)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_json_is_read_as_it_was_written(value: object) -> None:
    assert parse(json.dumps(value).encode()) == value


@given(values)
def test_lenient_parsing_equals_strict_parsing_of_valid_json(value: object) -> None:
    body = json.dumps(value).encode()
    assert parse(b"\xef\xbb\xbf" + body) == parse(body)
