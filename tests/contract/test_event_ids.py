"""Event ids stay what they were: with a new id, an event that is stored already would be stored and published again.

`event_ids.json` was written by the code that first gave these ids, from all fixtures and many odd callbacks. Each event
is its id, message id, recipient and status; an element that is no event is the reason. Never write the file again.
"""

import base64
import json
from typing import Any

import pytest

from receiver.domain.events import Api, Callback, Element, Rejected
from receiver.providers import parse
from tests.contract.test_callback_fixtures import FOLDER, callback_of
from tests.factories import request

RECORDED = json.loads((FOLDER.parent / "event_ids.json").read_bytes())


def callback_from(record: dict[str, Any]) -> Callback:
    if "fixture" in record:
        return callback_of(json.loads((FOLDER / f"{record['fixture']}.json").read_bytes())["request"])
    body = record["body"].encode() if "body" in record else base64.b64decode(record["body_base64"])
    return request(Api(record["api"]), record["method"], record["query"], body)


def identity(element: Element) -> list[str | None]:
    if isinstance(element, Rejected):
        return [element.reason]
    return [element.id, element.message_id, element.recipient, element.status]


@pytest.mark.parametrize("record", [pytest.param(one, id=one.get("fixture") or one["name"]) for one in RECORDED])
def test_event_ids_are_byte_for_byte_what_they_were(record: dict[str, Any]) -> None:
    assert [identity(element) for element in parse(callback_from(record))] == record["elements"]


def test_there_are_recorded_ids() -> None:
    assert len(RECORDED) > 600
