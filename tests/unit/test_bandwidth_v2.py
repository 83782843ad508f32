from typing import Any

import pytest

from receiver.domain.events import Api, Direction, Event, Failure, Quarantine, Status, TagVerdict
from tests.factories import RECEIVED_AT, event_of, post, rejected_of


def status_event(**changes: Any) -> dict[str, Any]:
    message = {"id": "msg-1", "time": "2024-06-12T13:46:40Z", "to": ["+14155550142"], "from": "+19195550100"}
    event = {"type": "message-failed", "time": "2024-06-12T13:46:41Z", "to": "+14155550142", "message": message}
    return {**event, "description": "ok", "errorCode": 4720, **changes}


def read(**changes: Any) -> Event:
    return event_of(post([status_event(**changes)]))


@pytest.mark.parametrize(
    ("kind", "direction", "status"),
    [
        ("message-received", Direction.IN, Status.RECEIVED),
        ("suggestion-response", Direction.IN, Status.RECEIVED),
        ("request-location-response", Direction.IN, Status.RECEIVED),
        ("requested-location-response", Direction.IN, Status.RECEIVED),
        ("location-request-response", Direction.IN, Status.RECEIVED),
        ("message-queued", Direction.OUT, Status.QUEUED),
        ("message-sending", Direction.OUT, Status.SENDING),
        ("message-sent", Direction.OUT, Status.SENT),
        ("message-delivered", Direction.OUT, Status.DELIVERED),
        ("message-read", Direction.OUT, Status.READ),
        ("message-failed", Direction.OUT, Status.FAILED),
        ("message-rejected-forbidden-country", Direction.OUT, Status.FAILED),
        ("QUEUED", Direction.OUT, Status.QUEUED),
        ("SENDING", Direction.OUT, Status.SENDING),
        ("DELIVERED", Direction.OUT, Status.DELIVERED),
        ("FAILED", Direction.OUT, Status.FAILED),
    ],
)
def test_type_alone_decides_the_status(kind: str, direction: Direction, status: Status) -> None:
    event = read(type=kind)
    assert (event.type, event.direction, event.status) == (kind, direction, status)
    assert (event.failure is not None) == (status is Status.FAILED)
    checked = TagVerdict.NOT_APPLICABLE if direction is Direction.IN else TagVerdict.UNCHECKED
    assert event.tag_verdict is checked


@pytest.mark.parametrize("kind", ["message-failed", "FAILED"])
@pytest.mark.parametrize(
    ("code", "status", "failure"),
    [
        (4432, Status.FAILED, Failure.REFUSED),
        (4770, Status.FAILED, Failure.NETWORK),
        (5620, Status.FAILED, Failure.NETWORK),
        (None, Status.FAILED, Failure.NETWORK),
        ("", Status.FAILED, Failure.NETWORK),
        (4001, Status.FAILED, Failure.OTHER),
        (9902, Status.UNCONFIRMED, None),
        ("9999", Status.UNCONFIRMED, None),
        (902, Status.FAILED, Failure.OTHER),
    ],
)
def test_the_code_tells_the_kind_of_a_failure(kind: str, code: object, status: Status, failure: Failure | None) -> None:
    event = read(type=kind, errorCode=code)
    assert (event.status, event.failure) == (status, failure)


@pytest.mark.parametrize("code", [4720, 9902, None])
def test_a_forbidden_country_is_a_refusal_whatever_the_code(code: int | None) -> None:
    event = read(type="message-rejected-forbidden-country", errorCode=code)
    assert (event.status, event.failure) == (Status.FAILED, Failure.REFUSED)


def test_an_event_knows_the_callback_it_came_in() -> None:
    event = read()
    assert (event.callback_id, event.route, event.received_at) == ("callback-1", "primary", RECEIVED_AT)
    assert event.api is Api.V2


@pytest.mark.parametrize(
    "changes",
    [
        {"errorCode": "4720"},
        {"errorCode": 4720.0},
        {"time": "2024-06-12T13:46:41.000Z"},
        {"time": "2024-06-12T15:46:41+02:00"},
        {"to": "14155550142"},
        {"description": "other"},
        {"carrierName": "Verizon"},
        {"eventTime": "2024-06-12T13:50:00Z"},
    ],
)
def test_event_spelled_differently_has_the_same_id(changes: dict[str, Any]) -> None:
    assert read(**changes).id == read().id


def test_the_id_of_an_event_stays_what_it_was() -> None:
    """A new id would let events already stored in a second time, and publish them again."""
    assert read().id == "654207f5c8b979f041072343bbe43428"


def test_every_significant_difference_gives_another_id() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"message": {"id": "msg-2"}},
        {"to": "+14155550177"},
        {"to": "", "message": {"id": "msg-1"}},
        {"type": "FAILED"},
        {"time": "2024-06-12T13:46:42Z"},
        {"time": "noon"},
        {"time": "midnight"},
        {"time": ""},
        {"time": None},
        {"errorCode": 4721},
        {"errorCode": None},
        {"errorCode": "no-route"},
        {"errorCode": "no-carrier"},
    ]
    assert len({read(**change).id for change in changes}) == len(changes)


def test_an_unnamed_recipient_is_the_only_one_of_the_message() -> None:
    assert read(to=None).id == read().id


@pytest.mark.parametrize(
    ("to", "recipients", "recipient"),
    [
        ("+1", ["+2"], "+1"),
        (["+1"], ["+2"], "+1"),
        (["+1", "+2"], ["+1"], None),
        (None, ["+2"], "+2"),
        ("", ["+2"], "+2"),
        ([], ["+2"], "+2"),
        ([""], ["+2"], "+2"),
        (None, "+2", "+2"),
        (None, ["+2", "+3"], None),
        (None, [], None),
        (None, None, None),
        ({}, [{}], None),
    ],
)
def test_the_recipient_is_the_one_number_named(to: object, recipients: object, recipient: str | None) -> None:
    assert read(to=to, message={"id": "msg-1", "to": recipients}).recipient == recipient


@pytest.mark.parametrize(
    ("message", "text", "media"),
    [
        ({"text": "hello"}, "hello", ()),
        ({"text": ""}, "", ()),
        ({}, None, ()),
        ({"text": "hello", "content": {"text": "other"}}, "hello", ()),
        ({"text": "", "content": {"text": "hello"}}, "hello", ()),
        ({"content": {"text": ""}}, None, ()),
        ({"content": {"media": {"fileUrl": "u1"}}}, None, ("u1",)),
        ({"content": {"media": [{"fileUrl": "u1"}, {"fileUrl": "u2"}]}}, None, ("u1", "u2")),
        ({"media": ["u0"], "content": {"media": {"fileUrl": "u1"}}}, None, ("u0",)),
        ({"media": [], "content": {"media": {"fileUrl": "u1"}}}, None, ("u1",)),
        ({"content": ["hello"]}, None, ()),
        ({"suggestionResponse": {"text": "Yes"}}, None, ()),
    ],
)
def test_text_and_media_fall_back_to_content(message: dict[str, Any], text: str | None, media: tuple[str, ...]) -> None:
    fields = read(message={"id": "msg-1", **message}).fields
    assert (fields.text, fields.media) == (text, media)
    assert (fields.has_text, fields.has_media) == (bool(text), bool(media))


def test_the_older_name_of_the_id_counts_where_the_newer_is_missing() -> None:
    assert read(message={"id": "msg-1", "messageId": "msg-2"}).message_id == "msg-1"
    assert read(message={"id": "", "messageId": "msg-2"}).message_id == "msg-2"


def test_an_event_without_message_id_says_of_what_type_it_is() -> None:
    rejected = rejected_of(post([status_event(message={})]))
    assert rejected.reason is Quarantine.NO_MESSAGE_ID
    assert "message-failed" in rejected.detail
