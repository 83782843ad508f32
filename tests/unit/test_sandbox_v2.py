"""Version 2: what is refused and in which error, what is shown, listed and posted."""

from datetime import timedelta
from typing import Any

import pytest

from receiver.domain.events import Api, Direction
from receiver.sandbox import v2
from receiver.sandbox.messages import RcsReply, SandboxMessage
from receiver.sandbox.scenario import Kind, PlannedCallback, Scenario, Sending, Step
from receiver.sandbox.scenario_writer import code_number
from receiver.sandbox.v2_requests import V2Error, parse_list_parameters, parse_message
from tests.sandboxes import v2_message
from tests.unit.test_sandbox_expected import CREATED_AT, message

LATER = CREATED_AT + timedelta(hours=1)
SPEED = 1.0


def error_of(body: object) -> dict[str, Any]:
    with pytest.raises(V2Error) as caught:
        parse_message(body)
    assert caught.value.status == 400
    return caught.value.body()


@pytest.mark.parametrize(
    ("body", "field", "error"),
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
def test_field_errors_have_the_documented_format_and_wording(body: dict[str, Any], field: str, error: str) -> None:
    assert error_of(v2_message(**body)) == {
        "type": "request-validation",
        "description": "Your request could not be accepted",
        "fieldErrors": [{"fieldName": field, "description": error}],
    }


def test_every_field_error_is_reported() -> None:
    event = error_of({})["fieldErrors"]
    assert [each["fieldName"] for each in event] == ["from", "to", "applicationId", "text"]


@pytest.mark.parametrize("body", [[], "x", None, 5])
def test_message_must_be_a_json_object(body: object) -> None:
    assert error_of(body) == {"type": "request-validation", "description": "Your request could not be accepted"}


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
def test_documented_values_are_accepted(good: dict[str, Any]) -> None:
    parse_message(v2_message(**good))


def sent(*to: str, **more: Any) -> SandboxMessage:
    sending = {name: more.pop(name) for name in ("is_mms", "sent_events") if name in more}
    fields = {"id": "1767225600000abcdefghijklmnop", "application_id": "app-1", **more}
    return message(Sending(api=Api.V2, recipients=to or ("+19195551213",), **sending), **fields)


def test_representation_has_the_documented_fields() -> None:
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


def test_status_event_has_the_documented_fields_and_no_text() -> None:
    outbound = sent(code_number(Api.V2, 4432), tag="mine")
    (step,) = outbound.scenario.steps
    event = v2.event(outbound, step, SPEED)
    assert event["message"] == {**v2.representation(outbound), "text": ""}
    assert {name: event[name] for name in event if name not in ("message", "time")} == {
        "type": "message-failed",
        "to": "+15552024432",
        "description": "rejected-forbidden-country",
        "errorCode": 4432,
    }


@pytest.mark.parametrize("speed", [1.0, 1000.0])
def test_event_time_is_the_time_of_its_step(speed: float) -> None:
    outbound = sent()
    (step,) = outbound.scenario.steps
    time = outbound.created_at + timedelta(seconds=step.after / speed)
    assert v2.event(outbound, step, speed)["time"] == f"{time:%Y-%m-%dT%H:%M:%S.%fZ}"


def test_only_message_read_has_event_time() -> None:
    outbound = sent("+15552090100", sent_events=True)
    event = [v2.event(outbound, step, SPEED) for step in outbound.scenario.steps]
    assert [event["type"] for event in event] == ["message-sent", "message-delivered", "message-read"]
    assert ["eventTime" in event for event in event] == [False, False, True]


def test_delivered_event_has_no_error_code() -> None:
    outbound = sent()
    assert "errorCode" not in v2.event(outbound, outbound.scenario.steps[0], SPEED)


def inbound_event(**more: Any) -> dict[str, Any]:
    step = Step(0, Kind.RECEIVED, "+19195551213")
    scenario = Scenario((step,), (PlannedCallback(0, (step,)),))
    inbound = sent(direction=Direction.IN, sender="+1", owner="+2", scenario=scenario, **more)
    return v2.event(inbound, step, SPEED)


def test_inbound_message_has_text() -> None:
    event = inbound_event(carrier_name="AT&T")
    assert (event["type"], event["description"], event["carrierName"]) == (
        "message-received",
        "Incoming message received",
        "AT&T",
    )
    assert (event["message"]["text"], event["message"]["direction"], event["message"]["owner"]) == ("hello", "in", "+2")


def test_inbound_rcs_has_text_and_media_in_content() -> None:
    event = inbound_event(channel="RBM", media=("http://x/y",))["message"]
    assert event["content"] == {"text": "hello", "media": {"fileUrl": "http://x/y"}}
    assert "text" not in event
    assert "media" not in event


def test_rcs_suggestion_response() -> None:
    reply = RcsReply(text="Yes", postback_data="eA==", paired_message_id="m-0")
    event = inbound_event(event="suggestion-response", channel="RBM", reply=reply)
    assert event["type"] == "suggestion-response"
    assert event["message"]["suggestionResponse"] == {
        "text": "Yes",
        "postbackData": "eA==",
        "pairedMessageId": "m-0",
    }


@pytest.mark.parametrize(
    "event_type", ["requested-location-response", "request-location-response", "location-request-response"]
)
def test_rcs_location_response_has_three_spellings(event_type: str) -> None:
    event = inbound_event(event=event_type, channel="RBM", reply=RcsReply(latitude="1.5", longitude="-2"))
    assert event["type"] == event_type
    assert event["message"]["locationResponse"] == {"latitude": "1.5", "longitude": "-2"}


# --- lists


INVALID = code_number(Api.V2, 4720)
MESSAGES = [
    sent(id="a", created_at=CREATED_AT, ordinal=1),
    sent(
        code_number(Api.V2, 4432),
        id="b",
        created_at=CREATED_AT + timedelta(seconds=1),
        ordinal=2,
        sender="+19195550000",
    ),
    sent("+19195551213", INVALID, id="c", created_at=CREATED_AT + timedelta(seconds=2), ordinal=3),
    sent(code_number(Api.V2, 9902), id="d", created_at=CREATED_AT + timedelta(seconds=3), ordinal=4),
]


def listed(**parameters: str) -> list[tuple[str, str]]:
    found = v2.list_items(parse_list_parameters({"sort": "receiveTime:asc", **parameters}), MESSAGES, LATER, SPEED)
    return [(item["messageId"], item["messageStatus"]) for item in found]


@pytest.mark.parametrize(
    ("parameters", "found"),
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
def test_list_has_an_item_for_each_matching_delivery(parameters: dict[str, str], found: list[tuple[str, str]]) -> None:
    assert listed(**parameters) == found


def test_list_status_is_accepted_before_the_first_step() -> None:
    (item,) = v2.list_items(parse_list_parameters({"messageId": "a"}), MESSAGES, CREATED_AT, SPEED)
    assert item["messageStatus"] == "ACCEPTED"


@pytest.mark.parametrize(
    "wrong", [{}, {"limit": "many"}, {"limit": "10001"}, {"sort": "sourceTn"}, {"fromDateTime": "x"}], ids=str
)
def test_invalid_list_parameters_are_rejected(wrong: dict[str, str]) -> None:
    with pytest.raises(V2Error) as caught:
        parse_list_parameters(wrong)
    assert caught.value.type == "request-validation"


def test_status_event_has_no_expiration() -> None:
    outbound = sent(expiration="2026-01-02T00:00:00.000Z")
    assert "expiration" in v2.representation(outbound)
    assert "expiration" not in v2.event(outbound, outbound.scenario.steps[0], SPEED)["message"]
