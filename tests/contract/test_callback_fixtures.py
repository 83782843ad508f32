"""Every fixture file: a callback as Bandwidth sends it, or might, and what reading it must give.

In `request`, the body is `body` (JSON), `body_text` or `body_base64`. In `expect`, an event lists what differs from
an Event's defaults; identity, arrival, route and `receipt_expected` are tested elsewhere.
"""

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from receiver.domain.events import Api, Callback, Element, Event, MessageFields, Rejected
from receiver.providers import parse
from tests.factories import request

FOLDER = Path(__file__).parents[1] / "fixtures" / "callbacks"
FILES = sorted(FOLDER.glob("*.json"))
ARRIVAL = {"id", "received_at", "route", "callback_id", "receipt_expected"}
DERIVED = {"has_text", "has_media"}


def body_of(sent: dict[str, Any]) -> bytes:
    if "body" in sent:
        return json.dumps(sent["body"]).encode()
    if "body_text" in sent:
        text: str = sent["body_text"]
        return text.encode()
    return base64.b64decode(sent.get("body_base64", ""))


def callback_of(sent: dict[str, Any]) -> Callback:
    return request(Api(sent["api"]), sent["method"], sent.get("query", ""), body_of(sent))


def plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if isinstance(value, MessageFields):
        return shown_fields(value, DERIVED)
    return list(value) if isinstance(value, tuple) else value


def shown_fields(record: Event | MessageFields, left_out: set[str]) -> dict[str, object]:
    """The fields of a record that differ from their defaults, as a fixture writes them."""
    return {
        field.name: plain(getattr(record, field.name))
        for field in structs.fields(record)
        if field.name not in left_out and getattr(record, field.name) not in (field.default, None)
    }


def outcome(element: Element) -> dict[str, object]:
    if isinstance(element, Rejected):
        return {"rejected": element.reason}
    return {"event": shown_fields(element, ARRIVAL)}


@pytest.mark.parametrize("file", [pytest.param(file, id=file.stem) for file in FILES])
def test_a_callback_is_read_as_its_fixture_says(file: Path) -> None:
    fixture = json.loads(file.read_bytes())
    elements = list(parse(callback_of(fixture["request"])))
    assert [outcome(element) for element in elements] == fixture["expect"]
    for index, element in enumerate(elements):
        if isinstance(element, Rejected):
            assert element.index == index
            assert element.detail
        else:
            assert element.fields.has_text == bool(element.fields.text)
            assert element.fields.has_media == bool(element.fields.media)


def test_there_are_fixtures() -> None:
    assert len(FILES) > 100
