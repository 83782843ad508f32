import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.providers.fields import parse_query as parse


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {}),
        ("eventType=sms&messageId=m-1", {"eventType": "sms", "messageId": "m-1"}),
        ("text=a+b%20c%2Bd", {"text": "a b c+d"}),
        ("time=2016-12-01T16:04:49Z", {"time": "2016-12-01T16:04:49Z"}),
        ("tag=", {"tag": ""}),
        ("flag", {"flag": ""}),
        ("text=a=b", {"text": "a=b"}),
        ("text=Gr%C3%BC%C3%9Fe", {"text": "Grüße"}),
        ("text=%FF%zz%", {"text": "\ufffd%zz%"}),
        ("a=1&a=2", {"a": "1"}),
        ("a=&a=2", {"a": ""}),
        ("&&a=1&", {"a": "1"}),
        ("a=1;b=2", {"a": "1;b=2"}),
        ("from=%2B1415&to=%2B1919", {"from": "+1415", "to": "+1919"}),
        ("from=+1415&to=%201919", {"from": "+1415", "to": "+1919"}),
        ("from=54321&to=Acme+Bot", {"from": "54321", "to": "Acme Bot"}),
        ("text=+1415&tag=+a", {"text": " 1415", "tag": " a"}),
        ("media=[u1,%20u2]", {"media": "[u1, u2]"}),
        ("media=u1&media=u2", {"media": ["u1", "u2"]}),
    ],
)
def test_a_query_string_gives_the_fields_of_a_post(query: str, expected: dict[str, object]) -> None:
    assert parse(query) == expected


@given(st.text())
def test_any_query_string_can_be_read(query: str) -> None:
    assert all(isinstance(value, str | list) for value in parse(query).values())
