"""Version 2: what is refused and in which words, what is shown, listed and posted."""

from datetime import timedelta
from typing import Any

import pytest

from receiver.domain.events import Api, Direction
from receiver.sandbox import v2
from receiver.sandbox.messages import Message, Reply
from receiver.sandbox.numbers import of_code
from receiver.sandbox.timeline import Kind, Post, Script, Sending, Step
from receiver.sandbox.v2_requests import Refusal, read, read_list
from tests.sandboxes import v2_message
from tests.unit.test_sandbox_truth import MADE, message

LATER = MADE + timedelta(hours=1)
SPEED = 1.0


def refusal(given: object) -> dict[str, Any]:
    with pytest.raises(Refusal) as caught:
        read(given)
    assert caught.value.status == 400
    return caught.value.body()


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({"from": None}, "from", "'from' must contain exactly one telephone number"),
        ({"from": ""}, "from", "'from' must contain exactly one telephone number"),
        ({"from": ["+19195551212", "+19195551214"]}, "from", "'from' must contain exactly one telephone number"),
        ({"from": "+invalid!"}, "from", "'+invalid!' must be replaced with a valid E164 formatted telephone number"),
        (
            {"from": "twelve chars"},
            "from",
            "'twelve chars' must be replaced with a valid E164 formatted telephone number",
        ),
        ({"to": None}, "to", "'to' must contain at least one telephone number"),
        ({"to": []}, "to", "'to' must contain at least one telephone number"),
        ({"to": ""}, "to", "'to' must contain at least one telephone number"),
        ({"to": "9195551213"}, "to", "'9195551213' must be replaced with a valid E164 formatted telephone number"),
        ({"to": ["+19195551213", 5]}, "to", "'5' must be replaced with a valid E164 formatted telephone number"),
        ({"to": ["{x}"]}, "to", "'{x}' must be replaced with a valid E164 formatted telephone number"),
        ({"to": ["+19195551213"] * 2}, "to", "'to' must not contain a telephone number twice"),
        (
            {"to": [f"+1919555{number:04}" for number in range(11)]},
            "to",
            "'to' must contain at most 10 telephone numbers",
        ),
        ({"text": None}, "text", "'text' is required unless media is included"),
        ({"text": ""}, "text", "'text' is required unless media is included"),
        ({"text": None, "media": []}, "text", "'text' is required unless media is included"),
        ({"text": "a" * 2049}, "text", "'text' must be 2048 characters or less"),
        ({"text": 5}, "text", "'text' must be a string"),
        ({"applicationId": None}, "applicationId", "'applicationId' is required"),
        ({"applicationId": " "}, "applicationId", "'applicationId' must not be empty"),
        ({"applicationId": 5}, "applicationId", "'applicationId' must be a string"),
        ({"media": "http://x.y/z"}, "media", "'media' must be an array of URLs"),
        ({"media": ["z.jpg"]}, "media", "'z.jpg' must be replaced with a valid URL"),
        ({"tag": "a" * 1025}, "tag", "'tag' must be 1024 characters or less"),
        ({"tag": {}}, "tag", "'tag' must be a string"),
        ({"priority": "low"}, "priority", "'priority' must be 'default' or 'high'"),
        ({"expiration": "soon"}, "expiration", "'expiration' must be an ISO 8601 date and time"),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_in_the_documented_shape(given: dict[str, Any], field: str, words: str) -> None:
    assert refusal(v2_message(**given)) == {
        "type": "request-validation",
        "description": "Your request could not be accepted",
        "fieldErrors": [{"fieldName": field, "description": words}],
    }


def test_everything_that_is_wrong_is_told() -> None:
    told = refusal({})["fieldErrors"]
    assert [each["fieldName"] for each in told] == ["from", "to", "applicationId", "text"]


@pytest.mark.parametrize("given", [[], "x", None, 5])
def test_a_message_must_be_an_object(given: object) -> None:
    assert refusal(given) == {"type": "request-validation", "description": "Your request could not be accepted"}


@pytest.mark.parametrize(
    "good",
    [
        {"to": "+19195551213"},
        {"to": [f"+1919555{number:04}" for number in range(10)]},
        {"from": "12345"},
        {"from": "My Shop"},
        {"text": "a" * 2048},
        {"text": "привет 😀"},
        {"text": None, "media": ["https://example.com/a.jpg"]},
        {"tag": "a" * 1024},
        {"tag": ""},
        {"priority": "high", "expiration": "2030-01-01T00:00:00Z"},
        {"unknown": 1},
    ],
    ids=str,
)
def test_what_the_documents_allow_is_taken(good: dict[str, Any]) -> None:
    read(v2_message(**good))


def sent(*to: str, **more: Any) -> Message:
    sending = {name: more.pop(name) for name in ("is_mms", "sent_events") if name in more}
    facts = {"id": "1767225600000abcdefghijklmnop", "application_id": "app-1", **more}
    return message(Sending(api=Api.V2, recipients=to or ("+19195551213",), **sending), **facts)


def test_a_message_is_answered_as_bandwidth_does() -> None:
    assert v2.representation(sent(tag="mine", is_mms=True, priority="high")) == {
        "id": "1767225600000abcdefghijklmnop",
        "owner": "+19195551212",
        "applicationId": "app-1",
        "time": "2026-01-01T00:00:00.000000Z",
        "segmentCount": 1,
        "direction": "out",
        "to": ["+19195551213"],
        "from": "+19195551212",
        "media": ["http://example.com/a.jpg"],
        "text": "hello",
        "tag": "mine",
        "priority": "high",
    }


def test_a_status_has_the_documented_fields_and_no_text() -> None:
    one = sent(of_code(Api.V2, 4432), tag="mine")
    (step,) = one.script.steps
    told = v2.event(one, step, SPEED)
    assert told["message"] == {**v2.representation(one), "text": ""}
    assert {name: told[name] for name in told if name not in ("message", "time")} == {
        "type": "message-failed",
        "to": "+15552024432",
        "description": "rejected-forbidden-country",
        "errorCode": 4432,
    }


@pytest.mark.parametrize("speed", [1.0, 1000.0])
def test_the_time_of_an_event_is_when_it_happened(speed: float) -> None:
    one = sent()
    (step,) = one.script.steps
    time = one.created_at + timedelta(seconds=step.after / speed)
    assert v2.event(one, step, speed)["time"] == f"{time:%Y-%m-%dT%H:%M:%S.%fZ}"


def test_only_read_has_an_event_time() -> None:
    one = sent("+15552090100", sent_events=True)
    told = [v2.event(one, step, SPEED) for step in one.script.steps]
    assert [event["type"] for event in told] == ["message-sent", "message-delivered", "message-read"]
    assert ["eventTime" in event for event in told] == [False, False, True]


def test_a_delivered_event_has_no_code() -> None:
    one = sent()
    assert "errorCode" not in v2.event(one, one.script.steps[0], SPEED)


def came_in(**more: Any) -> dict[str, Any]:
    step = Step(0, Kind.RECEIVED, "+19195551213")
    one = sent(direction=Direction.IN, sender="+1", owner="+2", script=Script((step,), (Post(0, (step,)),)), **more)
    return v2.event(one, step, SPEED)


def test_an_inbound_message_has_its_text() -> None:
    told = came_in(carrier_name="AT&T")
    assert (told["type"], told["description"], told["carrierName"]) == (
        "message-received",
        "Incoming message received",
        "AT&T",
    )
    assert (told["message"]["text"], told["message"]["direction"], told["message"]["owner"]) == ("hello", "in", "+2")


def test_inbound_rcs_has_text_and_media_in_its_content() -> None:
    told = came_in(channel="RBM", media=("http://x/y",))["message"]
    assert told["content"] == {"text": "hello", "media": {"fileUrl": "http://x/y"}}
    assert "text" not in told
    assert "media" not in told


def test_a_tapped_suggestion_is_a_response() -> None:
    reply = Reply(text="Yes", postback_data="eA==", paired_message_id="m-0")
    told = came_in(event="suggestion-response", channel="RBM", reply=reply)
    assert told["type"] == "suggestion-response"
    assert told["message"]["suggestionResponse"] == {
        "text": "Yes",
        "postbackData": "eA==",
        "pairedMessageId": "m-0",
    }


@pytest.mark.parametrize(
    "event", ["requested-location-response", "request-location-response", "location-request-response"]
)
def test_a_location_comes_in_three_spellings(event: str) -> None:
    told = came_in(event=event, channel="RBM", reply=Reply(latitude="1.5", longitude="-2"))
    assert told["type"] == event
    assert told["message"]["locationResponse"] == {"latitude": "1.5", "longitude": "-2"}


# listed


INVALID = of_code(Api.V2, 4720)
MESSAGES = [
    sent(id="a", created_at=MADE, ordinal=1),
    sent(of_code(Api.V2, 4432), id="b", created_at=MADE + timedelta(seconds=1), ordinal=2, sender="+19195550000"),
    sent("+19195551213", INVALID, id="c", created_at=MADE + timedelta(seconds=2), ordinal=3),
    sent(of_code(Api.V2, 9902), id="d", created_at=MADE + timedelta(seconds=3), ordinal=4),
]


def listed(**asked: str) -> list[tuple[str, str]]:
    found = v2.items(read_list({"sort": "receiveTime:asc", **asked}), MESSAGES, LATER, SPEED)
    return [(item["messageId"], item["messageStatus"]) for item in found]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"messageId": "a"}, [("a", "DELIVERED")]),
        ({"sourceTn": "+19195550000"}, [("b", "FAILED")]),
        ({"sourceTn": " 19195550000,+1000000"}, [("b", "FAILED")]),
        ({"sourceTn": "+191955500"}, [("b", "FAILED")]),
        ({"destinationTn": INVALID}, [("c", "FAILED")]),
        ({"messageStatus": "UNDELIVERED"}, [("d", "UNDELIVERED")]),
        ({"messageStatus": "delivered"}, [("a", "DELIVERED"), ("c", "DELIVERED")]),
        ({"errorCode": "4432"}, [("b", "FAILED")]),
        ({"messageDirection": "INBOUND"}, []),
        ({"messageType": "mms"}, [("c", "DELIVERED"), ("c", "FAILED")]),
        ({"fromDateTime": "2026-01-01T00:00:03Z"}, [("d", "UNDELIVERED")]),
        ({"toDateTime": "2026-01-01T00:00:01Z"}, [("a", "DELIVERED")]),
        ({"sort": "receiveTime:desc", "messageStatus": "DELIVERED"}, [("c", "DELIVERED"), ("a", "DELIVERED")]),
    ],
    ids=str,
)
def test_a_list_has_an_item_for_each_delivery_asked_for(asked: dict[str, str], found: list[tuple[str, str]]) -> None:
    assert listed(**asked) == found


def test_a_message_is_accepted_until_something_happens() -> None:
    (item,) = v2.items(read_list({"messageId": "a"}), MESSAGES, MADE, SPEED)
    assert item["messageStatus"] == "ACCEPTED"


@pytest.mark.parametrize(
    "wrong", [{}, {"limit": "many"}, {"limit": "10001"}, {"sort": "sourceTn"}, {"fromDateTime": "x"}], ids=str
)
def test_a_list_needs_good_parameters(wrong: dict[str, str]) -> None:
    with pytest.raises(Refusal) as caught:
        read_list(wrong)
    assert caught.value.type == "request-validation"


def test_a_status_does_not_tell_when_the_message_would_have_expired() -> None:
    one = sent(expiration="2026-01-02T00:00:00.000Z")
    assert "expiration" in v2.representation(one)
    assert "expiration" not in v2.event(one, one.script.steps[0], SPEED)["message"]
