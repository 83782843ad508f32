import json
from itertools import islice
from typing import Any

import pytest

from receiver.domain.events import Api, Callback, Quarantine, Rejected
from receiver.providers import parse
from tests.factories import event_of, get, post, rejected_of, request

DELIVERED = {"type": "message-delivered", "time": "2024-06-12T13:46:41Z", "to": "+1415", "message": {"id": "msg-1"}}
SENT = {"eventType": "sms", "direction": "out", "messageId": "m-1", "to": "+1415", "state": "sent"}

VOICE_EVENTS = """
answer conference conference-member conference-playback conference-speak dtmf gather hangup incomingcall playback
recording reject speak timeout transcription
bridgeComplete disconnect initiate redirect transferAnswer transferComplete transferDisconnect
"""


def outcomes(callback: Callback) -> list[str]:
    return [element.reason if isinstance(element, Rejected) else element.status for element in parse(callback)]


@pytest.mark.parametrize("api", [Api.V1, Api.V2])
def test_api_version_is_that_of_the_event_not_of_the_url(api: Api) -> None:
    assert event_of(post(DELIVERED, api)).api is Api.V2
    assert event_of(post(SENT, api)).api is Api.V1


def test_every_member_of_an_array_is_parsed_whatever_its_neighbours_are() -> None:
    body = [7, DELIVERED, None, SENT, {}, [DELIVERED], {"msgId": "1"}, DELIVERED]
    assert outcomes(post(body)) == [
        "unreadable",
        "delivered",
        "unreadable",
        "sent",
        "unknown-type",
        "unreadable",
        "foreign-product",
        "delivered",
    ]
    assert [element.index for element in parse(post(body)) if isinstance(element, Rejected)] == [0, 2, 4, 5, 6]


def test_an_empty_array_gives_nothing() -> None:
    assert list(parse(post([]))) == []


def test_elements_are_made_one_by_one() -> None:
    elements = parse(post([DELIVERED] * 10_000))
    assert len(list(islice(elements, 3))) == 3
    assert len(list(elements)) == 9_997


def test_elements_are_parsed_lazily() -> None:
    assert iter(parse(request(body=b"junk"))) is not None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, Quarantine.UNKNOWN_TYPE),
        ({"message": {"id": "msg-1"}}, Quarantine.UNKNOWN_TYPE),
        ({"type": "message-recalled", "message": {"id": "msg-1"}}, Quarantine.UNKNOWN_TYPE),
        ({"type": "message-recalled"}, Quarantine.UNKNOWN_TYPE),
        ({"eventType": "rcs", "messageId": "m-1"}, Quarantine.UNKNOWN_TYPE),
        ({"eventType": {"deep": [[]]}}, Quarantine.UNKNOWN_TYPE),
        ({"eventType": "sms", "state": "odd"}, Quarantine.UNKNOWN_TYPE),
        ({"eventType": "sms", "state": "sent"}, Quarantine.NO_MESSAGE_ID),
        ({"type": "message-delivered"}, Quarantine.NO_MESSAGE_ID),
        ({"type": "message-delivered", "message": {}}, Quarantine.NO_MESSAGE_ID),
        ({"type": "message-delivered", "message": "hello", "msgId": "1"}, Quarantine.NO_MESSAGE_ID),
        ({"eventType": "answer"}, Quarantine.FOREIGN_PRODUCT),
        ({"eventType": "answer", "messageId": "m-1"}, Quarantine.FOREIGN_PRODUCT),
        ({"eventType": "somethingNew", "callId": "c-1"}, Quarantine.FOREIGN_PRODUCT),
        ({"eventType": "conferenceMemberJoin", "conferenceId": "conf-1"}, Quarantine.FOREIGN_PRODUCT),
        ({"msgId": "1", "event": "DELIVERED", "errorCode": 0}, Quarantine.FOREIGN_PRODUCT),
        ({"internalTicketNumber": "t", "phoneNumber": "+1800", "status": "VERIFIED"}, Quarantine.FOREIGN_PRODUCT),
    ],
)
def test_rejected_element_has_a_reason(fields: dict[str, Any], reason: Quarantine) -> None:
    rejected = rejected_of(post(fields))
    assert rejected.reason is reason
    assert rejected.detail


@pytest.mark.parametrize("name", VOICE_EVENTS.split())
def test_an_event_named_as_voice_names_its_own_is_foreign(name: str) -> None:
    assert rejected_of(post({"eventType": name})).reason is Quarantine.FOREIGN_PRODUCT


@pytest.mark.parametrize(
    ("key", "product"),
    [
        ("callId", "voice"),
        ("callUri", "voice"),
        ("conferenceId", "voice"),
        ("conferenceUri", "voice"),
        ("recordingId", "voice"),
        ("msgId", "international A2P"),
        ("internalTicketNumber", "toll-free verification"),
    ],
)
def test_foreign_product_is_recognised_by_a_key(key: str, product: str) -> None:
    rejected = rejected_of(post({"eventType": "somethingNew", key: "1"}))
    assert rejected.reason is Quarantine.FOREIGN_PRODUCT
    assert product in rejected.detail


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (None, "null in place of an object"),
        (True, "a boolean in place of an object"),
        (7, "a number in place of an object"),
        (7.5, "a number in place of an object"),
        ("sms", "a string in place of an object"),
        ([[]], "an array in place of an object"),
        ({}, "neither a type nor an eventType"),
        ({"type": 7}, "type '7' is unfamiliar"),
        ({"type": {}, "eventType": "rcs"}, "eventType 'rcs' is unfamiliar"),
        ({"eventType": "sms"}, "neither state nor deliveryState"),
        ({"eventType": "sms", "state": "sent", "direction": "in"}, "no message event has direction 'in', state 'sent'"),
        ({"eventType": "mms", "state": "sent"}, "mms without a messageId"),
        ({"type": "message-sent"}, "message-sent without a message id"),
    ],
)
def test_rejection_has_a_detail_for_people(member: object, words: str) -> None:
    assert rejected_of(post([member])).detail == words


def test_a_reason_quotes_an_unfamiliar_type_briefly_and_harmlessly() -> None:
    detail = rejected_of(post({"type": "x\x00\x1b[31m\ud800" + "y" * 10_000})).detail
    assert len(detail) < 200
    assert detail.isprintable()


@pytest.mark.parametrize(
    ("callback", "expected"),
    [
        pytest.param(get("eventType=sms&messageId=m-1&state=sent"), ["sent"], id="GET"),
        pytest.param(get(""), ["unreadable"], id="GET without query"),
        pytest.param(get("a=1"), ["unknown-type"], id="GET of something else"),
        pytest.param(get("eventType=sms&state=sent"), ["no-message-id"], id="GET without id"),
        pytest.param(
            request(method="GET", query="a=1", body=json.dumps(DELIVERED).encode()),
            ["unknown-type"],
            id="GET with a body",
        ),
        pytest.param(
            request(query="eventType=sms&messageId=m-1&state=sent", body=json.dumps(DELIVERED).encode()),
            ["delivered"],
            id="POST with a query",
        ),
        pytest.param(request(query="eventType=sms&messageId=m-1&state=sent"), ["sent"], id="POST without body"),
        pytest.param(request(query="tenant=7"), ["unreadable"], id="POST of nothing"),
        pytest.param(request(), ["unreadable"], id="POST of nothing at all"),
    ],
)
def test_a_get_is_its_query_and_a_post_its_body(callback: Callback, expected: list[str]) -> None:
    assert outcomes(callback) == expected


@pytest.mark.parametrize("body", [b"", b"junk", b"[" * 100_000, b"null", b'"text"', b"7", b"\xff\xfe"])
def test_a_body_without_elements_is_one_unreadable_element(body: bytes) -> None:
    rejected = rejected_of(request(body=body))
    assert (rejected.index, rejected.reason) == (0, Quarantine.UNREADABLE)
    assert rejected.detail


def test_a_deep_member_that_json_can_hold_does_not_spoil_its_neighbours() -> None:
    deep: Any = "x"
    for _ in range(500):
        deep = [deep]
    assert outcomes(post([{"type": deep, "eventType": deep}, {**DELIVERED, "to": deep}])) == [
        "unknown-type",
        "delivered",
    ]


@pytest.mark.parametrize(
    "member",
    [
        {**DELIVERED, "message": {"id": "m" * 251}},
        {**DELIVERED, "to": "1" * 251},
        {**DELIVERED, "message": {"id": "m", "from": "1" * 251}},
        {**DELIVERED, "message": {"id": "m", "to": ["1" * 251, "2"]}},
        {**DELIVERED, "message": {"id": "m", "applicationId": "a" * 251}},
        {**SENT, "messageId": "m" * 251},
    ],
)
def test_too_long_id_is_rejected_as_unreadable_and_harms_no_neighbour(member: dict[str, Any]) -> None:
    assert outcomes(post([member, DELIVERED])) == ["unreadable", "delivered"]


def test_ids_and_numbers_may_be_long() -> None:
    assert outcomes(post({**DELIVERED, "to": "é" * 250, "message": {"id": "é" * 250}})) == ["delivered"]
