"""Names made from an event: what they may say, and that nothing from outside can break out of its place."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from receiver.sinks.encoding import FIELDS, Template, render
from tests.factories import make_publication

CHECK = TypeAdapter[str](Template)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("sms-events", "sms-events"),
        ("sms.{direction}.{type}", "sms.out.message.delivered"),
        ("{status}/{api}/{message_id}", "delivered/v2/m1"),
        ("{sender}-{recipient}", "15559999-15550001"),
        ("{application_id}.{tag}.{channel}", "app-1.order_4711.-"),
        ("{{literal}}", "{literal}"),
    ],
)
def test_a_name_is_made_of_the_event(template: str, name: str) -> None:
    assert CHECK.validate_python(template) == template
    assert render(template, make_publication(tag="order 4711", applicationId="app-1", channel=None)) == name


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{account}", "{account} is not a field; there are api, "),
        ("{}", "{} is not a field"),
        ("{type", "has a brace too many or too few"),
        ("type}", "has a brace too many or too few"),
        ("{type!r}", "{type} is not a field"),
        ("{type:>10}", "{type} is not a field"),
        ("{type.__class__}", "{type.__class__} is not a field"),
        ("{type[0]}", "{type[0]} is not a field"),
    ],
)
def test_a_template_that_makes_no_sense_is_refused(template: str, complaint: str) -> None:
    with pytest.raises(ValidationError, match="Value error") as refused:
        CHECK.validate_python(template)
    assert complaint in str(refused.value)


@given(st.text())
def test_no_value_adds_a_level_a_wildcard_or_a_line(text: str) -> None:
    data: dict[str, Any] = {"tag": text, "messageId": text, "recipient": text, "from": text, "applicationId": text}
    fields = sorted(FIELDS - {"type", "status", "api", "direction", "channel"})
    for field in fields:
        name = render(f"a.{{{field}}}.b", make_publication(**data))
        first, value, last = name.split(".")
        assert (first, last) == ("a", "b")
        assert 1 <= len(value) <= 64
        assert value.isascii()
        assert value.replace("_", "").replace("-", "").isalnum() or not value.strip("_-")
