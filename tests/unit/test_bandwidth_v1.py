from typing import Any
from urllib.parse import urlencode

import pytest

from receiver.domain.events import Api, Direction, Event, Failure, Quarantine, Status
from tests.factories import RECEIVED_AT, event_of, get, post, rejected_of

ABSENT = object()


def fields(**changes: Any) -> dict[str, Any]:
    sent = {
        "eventType": "sms",
        "direction": "out",
        "messageId": "m-1",
        "from": "+19195550100",
        "to": "+14155550142",
        "text": "Your order is ready",
        "time": "2018-09-26T01:44:05Z",
        "state": "sent",
    }
    return {name: value for name, value in {**sent, **changes}.items() if value is not ABSENT}


def receipt(**changes: Any) -> dict[str, Any]:
    return fields(
        **{"deliveryState": "not-delivered", "deliveryCode": "720", "deliveryDescription": "Invalid", **changes}
    )


def read(**changes: Any) -> Event:
    return event_of(post(fields(**changes), Api.V1))


@pytest.mark.parametrize(
    ("state", "delivery_state", "status"),
    [
        ("queued", None, Status.QUEUED),
        ("sending", None, Status.SENDING),
        ("sent", None, Status.SENT),
        ("error", None, Status.FAILED),
        ("not-delivered", None, Status.FAILED),
        ("queued", "waiting", Status.QUEUED),
        ("sending", "waiting", Status.SENDING),
        ("sent", "waiting", Status.SENT),
        ("error", "waiting", Status.FAILED),
        (None, "waiting", Status.SENT),
        ("odd", "waiting", Status.SENT),
        ("sent", "odd", Status.SENT),
        ("error", "odd", Status.FAILED),
        ("sent", "delivered", Status.DELIVERED),
        ("queued", "delivered", Status.DELIVERED),
        ("error", "delivered", Status.DELIVERED),
        ("not-delivered", "delivered", Status.DELIVERED),
        (None, "delivered", Status.DELIVERED),
        ("odd", "delivered", Status.DELIVERED),
        ("sent", "not-delivered", Status.FAILED),
        ("error", "not-delivered", Status.FAILED),
        (None, "not-delivered", Status.FAILED),
    ],
)
@pytest.mark.parametrize("direction", ["out", None, "sideways"])
def test_delivery_state_decides_the_status_before_state(
    state: str | None, delivery_state: str | None, direction: str | None, status: Status
) -> None:
    event = read(state=state, deliveryState=delivery_state, direction=direction)
    assert (event.direction, event.status) == (Direction.OUT, status)
    assert event.contradicted == (state == "error" and delivery_state == "delivered")
    assert event.state == (state if state not in ("odd", "not-delivered") else None)
    assert event.delivery_state == (delivery_state if delivery_state != "odd" else None)


@pytest.mark.parametrize(
    ("direction", "state", "delivery_state"),
    [
        ("out", "received", None),
        ("out", "received", "delivered"),
        ("in", "sent", None),
        ("in", "error", None),
        ("in", "not-delivered", None),
        ("in", "odd", None),
        ("in", None, None),
        ("in", None, "delivered"),
        ("out", None, None),
        ("out", "odd", None),
        ("out", "odd", "odd"),
        (None, None, None),
        (None, "", ""),
    ],
)
def test_state_that_no_message_event_has_is_rejected_as_unknown_type(
    direction: str | None, state: str | None, delivery_state: str | None
) -> None:
    sent = fields(direction=direction, state=state, deliveryState=delivery_state)
    assert rejected_of(post(sent, Api.V1)).reason is Quarantine.UNKNOWN_TYPE


@pytest.mark.parametrize("direction", ["in", None, "sideways"])
@pytest.mark.parametrize("delivery_state", [None, "waiting", "delivered", "odd"])
def test_inbound_is_received_and_nothing_else(direction: str | None, delivery_state: str | None) -> None:
    event = read(state="received", direction=direction, deliveryState=delivery_state)
    assert (event.direction, event.status, event.contradicted) == (Direction.IN, Status.RECEIVED, False)


@pytest.mark.parametrize(
    ("changes", "status", "failure"),
    [
        ({"state": "error"}, Status.FAILED, Failure.REFUSED),
        ({"state": "error", "deliveryCode": "600"}, Status.FAILED, Failure.REFUSED),
        ({"state": "error", "deliveryCode": "999"}, Status.UNCONFIRMED, None),
        ({"deliveryState": "not-delivered"}, Status.FAILED, Failure.NETWORK),
        ({"deliveryState": "not-delivered", "deliveryCode": "770"}, Status.FAILED, Failure.NETWORK),
        ({"deliveryState": "not-delivered", "deliveryCode": "187"}, Status.FAILED, Failure.REFUSED),
        ({"deliveryState": "not-delivered", "deliveryCode": "100"}, Status.FAILED, Failure.NETWORK),
        ({"deliveryState": "not-delivered", "deliveryCode": "4432"}, Status.FAILED, Failure.NETWORK),
        ({"deliveryState": "not-delivered", "deliveryCode": 902}, Status.UNCONFIRMED, None),
        ({"deliveryState": "delivered", "deliveryCode": 902}, Status.DELIVERED, None),
        ({"deliveryState": "waiting", "deliveryCode": 902}, Status.SENT, None),
        ({"state": "not-delivered", "errorcode": "482"}, Status.FAILED, Failure.REFUSED),
        ({"state": "not-delivered", "errorcode": "902"}, Status.UNCONFIRMED, None),
    ],
)
def test_the_code_tells_the_kind_of_a_failure(changes: dict[str, Any], status: Status, failure: Failure | None) -> None:
    event = read(**changes)
    assert (event.status, event.failure) == (status, failure)


def test_the_names_of_the_receipt_come_before_those_of_the_howto_page() -> None:
    event = read(deliveryCode="0", errorcode="720", deliveryDescription="ok", error="Invalid")
    assert (event.code, event.description) == (0, "ok")


def test_time_is_the_creation_of_the_message_and_never_that_of_the_event() -> None:
    event = read()
    assert event.occurred_at is None
    assert event.fields.created_at is not None


def test_an_event_knows_the_callback_it_came_in() -> None:
    event = read()
    assert (event.callback_id, event.route, event.received_at) == ("callback-1", "primary", RECEIVED_AT)
    assert event.api is Api.V1


def test_the_id_of_an_event_stays_what_it_was() -> None:
    """A new id would let events already stored in a second time, and publish them again."""
    assert event_of(post(receipt())).id == "593795adaf6c0c6acf03f60a21a0ca0f"


@pytest.mark.parametrize(("kind", "channel"), [("sms", "SMS"), ("mms", "MMS")])
def test_the_channel_is_taken_from_the_event_type(kind: str, channel: str) -> None:
    event = read(eventType=kind)
    assert (event.type, event.fields.channel) == (kind, channel)


@pytest.mark.parametrize(
    "changes",
    [
        {"deliveryCode": 720},
        {"to": "14155550142"},
        {"time": "2019-01-01T00:00:00Z"},
        {"text": "other"},
        {"tag": "order-7"},
        {"segmentCount": 2},
        {"from": "54321"},
    ],
)
def test_event_spelled_differently_has_the_same_id(changes: dict[str, Any]) -> None:
    assert event_of(post(receipt(**changes))).id == event_of(post(receipt())).id


def test_every_significant_difference_gives_another_id() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"messageId": "m-2"},
        {"eventType": "mms"},
        {"to": "+14155550177"},
        {"to": ABSENT},
        {"state": "error"},
        {"state": ABSENT},
        {"deliveryState": "delivered"},
        {"deliveryState": "waiting"},
        {"deliveryState": ABSENT},
        {"deliveryCode": "740"},
        {"deliveryCode": "odd"},
        {"deliveryCode": ABSENT},
        {"deliveryDescription": "other"},
        {"deliveryDescription": ""},
        {"deliveryDescription": ABSENT},
    ]
    assert len({event_of(post(receipt(**change))).id for change in changes}) == len(changes)


@pytest.mark.parametrize("sent", [fields(), receipt(), fields(direction="in", state="received", tag="")])
def test_a_get_and_a_post_of_one_event_are_the_same_event(sent: dict[str, Any]) -> None:
    assert event_of(get(urlencode(sent))) == event_of(post(sent, Api.V1))


def test_a_misfit_is_described_in_words() -> None:
    rejected = rejected_of(post(fields(state="received" * 100)))
    assert "'out'" in rejected.detail
    assert "receivedreceived" in rejected.detail
    assert len(rejected.detail) < 200
