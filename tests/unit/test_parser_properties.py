"""What no callback may do: make reading raise, or make an event that a database cannot hold."""

import json
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from receiver.domain.events import Api, Callback, Direction, Element, Event, Rejected, Status, TagVerdict
from receiver.domain.message import fold
from receiver.providers import parse
from tests.factories import get, post, request


def assert_storable(value: object) -> None:
    """No text that a database refuses, no number beyond 63 bits, no time without zone, all the way down."""
    if isinstance(value, msgspec.Struct):
        for member in msgspec.structs.astuple(value):
            assert_storable(member)
    elif isinstance(value, tuple):
        for member in value:
            assert_storable(member)
    elif isinstance(value, str):
        assert "\x00" not in value
        assert value == value.encode().decode()
        assert type(value) is str or isinstance(value, Enum)
    elif isinstance(value, datetime):
        assert value.utcoffset() == timedelta(0)
    elif isinstance(value, int):
        assert abs(value) < 2**63
    else:
        assert value is None, value


def assert_consistent(event: Event) -> None:
    assert event.message_id
    assert (event.status is Status.RECEIVED) == (event.direction is Direction.IN)
    assert (event.tag_verdict is TagVerdict.NOT_APPLICABLE) == (event.direction is Direction.IN)
    assert (event.failure is not None) == (event.status is Status.FAILED)
    assert event.recipient != ""
    assert event.occurred_at is None or event.api is Api.V2
    assert fold([event]).recipients()


def assert_sound(element: Element) -> None:
    assert isinstance(element, Event | Rejected)
    if isinstance(element, Event):
        assert_consistent(element)
    else:
        assert element.detail
    assert_storable(element)


def check(callback: Callback) -> None:
    elements = list(parse(callback))
    for element in elements:
        assert_sound(element)
    assert elements == list(parse(callback))


SAMPLES = sorted((Path(__file__).parents[1] / "fixtures" / "callbacks").glob("*.json"))
REQUESTS = [json.loads(file.read_bytes())["request"] for file in SAMPLES]
BODIES = [json.dumps(sent["body"]).encode() for sent in REQUESTS if "body" in sent]
QUERIES = [sent["query"] for sent in REQUESTS if sent.get("query")]

texts = st.text(st.characters(), max_size=20)  # surrogates and NUL among them
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.sampled_from(["", "in", "out", "sent", "received", "error", "delivered", "4432", "902", "+1415", "[a, b]"])
    | st.datetimes().map(str)
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)


def objects(names: str, **known: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of the names, whose values may be anything."""
    return st.fixed_dictionaries({}, optional={**dict.fromkeys(names.split(), anything), **known})


messages = objects(
    "id messageId owner applicationId time segmentCount direction to from text tag media priority channel",
    content=objects("text media"),
)
v2_events = st.builds(
    lambda event, kind: {**event, "type": kind, "message": {"id": "msg-1", **event.get("message", {})}},
    objects("time description to errorCode carrierName eventTime", message=messages),
    st.sampled_from(["message-received", "message-failed", "message-read", "message-delivered", "FAILED"]),
)
v1_events = st.builds(
    lambda event, kind: {"messageId": "m-1", "state": "sent", **event, "eventType": kind},
    objects(
        "messageId direction state deliveryState deliveryCode deliveryDescription from to text time tag"
        " applicationId segmentCount media errorcode error"
    ),
    st.sampled_from(["sms", "mms"]),
)


@given(st.binary())
@example(b"\x00")
@example(b'{"type":"message-sent","message":{"id":"\xed\xa0\x80"}}')
def test_any_bytes_give_sound_elements(body: bytes) -> None:
    check(request(body=body))


@given(texts)
@example("eventType=sms&messageId=%00&state=sent&from=%ED%A0%80")
def test_any_query_gives_sound_elements(query: str) -> None:
    check(get(query))
    check(get(f"eventType=sms&messageId=m-1&state=sent&{query}"))


@given(anything)
def test_any_json_gives_sound_elements(value: object) -> None:
    check(post(value))


@given(st.lists(v1_events | v2_events, max_size=3))
def test_any_event_gives_sound_elements(events: list[dict[str, Any]]) -> None:
    check(post(events))


@given(st.sampled_from(BODIES), st.data())
def test_a_damaged_callback_gives_sound_elements(body: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, min(len(body), start + 12)))
    check(request(body=body[:start] + data.draw(st.binary(max_size=6)) + body[end:]))


@given(st.sampled_from(QUERIES), st.data())
def test_a_damaged_query_gives_sound_elements(query: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(query)))
    check(get(query[:start] + data.draw(texts) + query[start + data.draw(st.integers(0, 12)) :]))


@given(st.sampled_from(BODIES), anything, st.data())
def test_a_callback_with_any_value_in_any_place_gives_sound_elements(
    body: bytes, value: object, data: st.DataObject
) -> None:
    parsed = json.loads(body)
    place = parsed[0] if isinstance(parsed, list) and parsed else parsed
    while isinstance(place, dict) and place:
        name = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[name], dict) or data.draw(st.booleans()):
            place[name] = value
            break
        place = place[name]
    check(post(parsed))
