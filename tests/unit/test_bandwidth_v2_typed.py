"""The typed and the lenient way of reading v2 arrays give the same elements, whatever the body."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from receiver.domain.events import MAX_RECIPIENTS, Callback, Quarantine
from receiver.providers import parse
from receiver.providers.bandwidth import parse_leniently
from receiver.providers.bandwidth_v2 import decode
from tests.contract.test_event_ids import RECORDED, callback_from
from tests.factories import event_of, post, rejected_of, request
from tests.waiting import cpu_at_most

MESSAGE = {"id": "msg-1", "time": "2024-06-12T13:46:40Z", "to": ["+14155550142"], "from": "+19195550100", "tag": "t"}
FAILED = {
    "type": "message-failed",
    "time": "2024-06-12T13:46:41Z",
    "to": "+14155550142",
    "description": "rejected",
    "errorCode": 4720,
    "message": {**MESSAGE, "segmentCount": 1, "text": "", "media": ["https://example.com/1"]},
}


def assert_both_ways_agree(callback: Callback) -> None:
    assert list(parse(callback)) == list(parse_leniently(callback))


texts = st.sampled_from(["", "+1415", "1415", "msg-1", "Grüße 👋", "\x7f", 'a"b\\c/', "x" * 250, "x" * 251, "é" * 250])
times = st.sampled_from(
    ["2024-06-12T13:46:41Z", "2024-06-12t13:46:41.5z", "2024-06-12T15:46:41+02:00", "noon", "", "0001-01-01T00:00:00Z"]
)
numbers = st.sampled_from([0, 1, -1, 4720, 9902, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63) + 1, -(2**63), -(2**70)])
odd: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 1.0, 4720.0, 1e300, "4720", " 4720 ", "a\x00b", "\ud83d", [], [1], {}, ["a", None], 7]
)
deep = st.recursive(odd | texts | numbers, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=5)
lists = st.lists(texts, max_size=3)
kinds = st.sampled_from(["message-received", "message-delivered", "message-failed", "message-read", "SENDING", "other"])


def some(fields: dict[str, st.SearchStrategy[Any]], values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects with some of the fields, of the documented types unless `values` puts something else into one."""
    typed = st.fixed_dictionaries({}, optional=fields)
    spoiled = st.builds(
        lambda payload, name, value: {**payload, name: value}, typed, st.sampled_from([*fields, "x"]), values
    )
    return typed | typed | spoiled


message_fields: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("owner", "applicationId", "from", "text", "tag", "channel", "priority", "messageId"), texts),
    "id": texts,
    "time": times,
    "to": lists,
    "media": lists,
    "segmentCount": numbers,
}
event_fields: dict[str, st.SearchStrategy[Any]] = {
    "time": times,
    "eventTime": times,
    "to": texts,
    "description": texts,
    "carrierName": texts,
    "errorCode": numbers,
}
messages = st.builds(lambda payload: {"id": "msg-1", **payload}, some(message_fields, deep))
events = st.builds(
    lambda kind, payload, message: {"type": kind, "message": message, **payload},
    kinds,
    some(event_fields, deep),
    messages,
)
arrays = st.lists(events | events | deep, max_size=3)


@given(arrays, st.booleans())
def test_any_array_is_parsed_alike_both_ways(array: list[Any], ascii_only: bool) -> None:
    body = json.dumps(array, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    assert_both_ways_agree(request(body=body))


@given(arrays, st.data())
def test_a_damaged_array_is_parsed_alike_both_ways(array: list[Any], data: st.DataObject) -> None:
    body = json.dumps(array, ensure_ascii=False).encode(errors="surrogatepass")
    start = data.draw(st.integers(0, len(body)))
    piece = data.draw(st.binary(max_size=3) | st.sampled_from([b"\xff", b"1e999", b"-0", b",", b"NaN", b"\\", b"\x01"]))
    assert_both_ways_agree(request(body=body[:start] + piece + body[start + data.draw(st.integers(0, 3)) :]))


pairs = st.lists(st.tuples(st.sampled_from(["type", "message", "to", "time", "errorCode"]), deep | kinds | messages))


@given(pairs, pairs)
@example(
    [("type", "message-sent"), ("type", "message-delivered"), ("message", {"id": "a"}), ("message", {"id": "b"})], []
)
@example([("type", "message-sent"), ("message", {"id": "a", "to": ["1"]}), ("message", {"id": "b"})], [("to", "2")])
def test_of_a_repeated_key_the_last_counts_both_ways(first: list[Any], more: list[Any]) -> None:
    members = ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in first + more)
    assert_both_ways_agree(request(body=f"[{{{members}}}]".encode()))


@pytest.mark.parametrize("record", [pytest.param(one, id=one.get("fixture") or one["name"]) for one in RECORDED])
def test_every_recorded_callback_is_parsed_alike_both_ways(record: dict[str, Any]) -> None:
    assert_both_ways_agree(callback_from(record))


@pytest.mark.parametrize(
    "body",
    [
        b'[{"type":"message-sent","message":{"id":"b"},"x":"\xff"}]',
        b'[{"type":"message-sent","message":{"id":"b"},"\xff":1}]',
        b'[{"type":"message-sent","message":{"id":"b"},"x":1e999}]',
        b'[{"type":"message-sent","message":{"id":"b"},"x":' + b"[" * 900 + b"]" * 900 + b"}]",
        b'[{"type":"message-sent","message":{"id":"b"},"x":' + b"[" * 5000 + b"]" * 5000 + b"}]",
        b'[{"type":"message-sent","message":{"id":"b"},"x":' + b"9" * 5000 + b"}]",
        b'[{"type":"message-failed","errorCode":' + b"9" * 400 + b',"message":{"id":"b"}}]',
        b'[{"type":"message-sent","message":{"id":"b"}}] x',
        b"\xef\xbb\xbf" + json.dumps([FAILED]).encode(),
        json.dumps([FAILED]).encode("utf-16"),
        b"[]",
        b"",
    ],
)
def test_a_malformed_body_is_parsed_alike_both_ways(body: bytes) -> None:
    assert_both_ways_agree(request(body=body))


def with_message(**changes: Any) -> dict[str, Any]:
    return {**FAILED, "message": {**FAILED["message"], **changes}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "member",
    [
        FAILED,
        {**FAILED, "unknown": {"deep": [1, None]}, "errorCode": None, "description": "Grüße 👋"},
        with_message(to=[], media=None, segmentCount=None),
        with_message(to=["", "+1"], media=[""]),
        {"type": "message-sent", "message": {"id": "m"}},
    ],
)
def test_documented_types_are_decoded_typed(member: dict[str, Any]) -> None:
    body = json.dumps([member], ensure_ascii=False).encode()
    assert decode(body) is not None
    assert_both_ways_agree(request(body=body))


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(FAILED),
        json.dumps([{**FAILED, "errorCode": "4720"}]),
        json.dumps([{**FAILED, "errorCode": 4720.0}]),
        json.dumps([{**FAILED, "type": "message-recalled"}]),
        json.dumps([FAILED, 7]),
        json.dumps([with_message(content={"text": "RCS"})]),
        json.dumps([with_message(to="+1")]),
        json.dumps([with_message(id="")]),
        json.dumps([with_message(to=["x" * 251])]),
        json.dumps([{**FAILED, "description": "\u00e9"}]),
        "[",
    ],
)
def test_everything_else_is_left_to_the_lenient_parser(body: str) -> None:
    assert decode(body.encode()) is None


def test_an_event_with_as_many_recipients_as_allowed_is_read() -> None:
    numbers = [f"+1{number:010}" for number in range(MAX_RECIPIENTS)]
    assert event_of(post([with_message(to=numbers)])).fields.recipients == tuple(numbers)


@pytest.mark.parametrize("place", ["message.to", "to"])
def test_an_event_with_too_many_recipients_is_too_large(place: str) -> None:
    numbers = ["+1"] * (MAX_RECIPIENTS + 1)
    rejected = rejected_of(post([with_message(to=numbers) if place == "message.to" else {**FAILED, "to": numbers}]))
    assert (rejected.index, rejected.reason) == (0, Quarantine.TOO_LARGE)
    assert rejected.detail == "1001 recipients, and 1000 are allowed"


def test_a_v1_event_with_too_many_recipients_is_too_large() -> None:
    payload = {"eventType": "sms", "messageId": "m", "state": "sent", "to": ["+1"] * (MAX_RECIPIENTS + 1)}
    assert rejected_of(post(payload)).reason is Quarantine.TOO_LARGE


def test_half_a_million_elements_that_are_no_events_take_little_time() -> None:
    callback = request(body=b"[" + b"1," * 523_999 + b"1]")
    with cpu_at_most(30):
        assert sum(1 for _ in parse(callback)) == 524_000


@pytest.mark.parametrize(
    "member",
    [
        {"type": "\U000e0001" * 300},
        {"eventType": "\x01" * 300},
        {"eventType": "sms", **dict.fromkeys(("direction", "state", "deliveryState"), "\U000e0001" * 99)},
        {"eventType": "sms", **dict.fromkeys(("direction", "state", "deliveryState"), "'\"" * 99)},
    ],
)
def test_the_words_of_an_unreadable_element_have_a_bounded_length(member: dict[str, Any]) -> None:
    assert len(rejected_of(post([member])).detail) <= 200
