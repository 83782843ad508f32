"""Registered sends: every form in which a sender has them, and what their events change in a message, in any order."""

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.domain.delivery import FinalConflict
from receiver.domain.events import REGISTERED, Api, Callback, Direction, Event, Rejected, Status, TagVerdict
from receiver.domain.message import Message, fold
from receiver.intake.fold import TagChecker
from receiver.providers.sends import SendError, event_of, expanded, normalized, parse
from receiver.storage.bulk import Spelling
from receiver.storage.messages import MESSAGE_COLUMNS, rows_of
from receiver.tags import TagPolicy, sign
from tests.factories import at, make_event, v2_accepted

AS_THEY_ARE = Spelling(time=lambda time: time, flag=lambda flag: flag)
LOCATION = "https://api.catapult.inetwork.com/v1/users/u-1/messages/m-1"
ACCEPTED = v2_accepted("1661365814859loidf7mcwd4qacn7", media=[], priority="default")
V1_REQUEST = {
    "from": "+15559999",
    "to": "+15550001",
    "text": "hello",
    "receiptRequested": "all",
    "callbackUrl": "https://user:secret@example.com/callbacks/bandwidth/v1",
    "callbackTimeout": "2000",
    "fallbackUrl": "https://example.com/fallback",
}


def entry(received: float = 0) -> Callback:
    return Callback(id=f"entry-{received}", received_at=at(received), api=Api.V2, route=REGISTERED, method="POST")


def registered(send: Any, received: float = 0) -> Event:
    [one] = expanded(send)
    return event_of(normalized(one), entry(received))


def refusal(send: Any) -> tuple[str, str]:
    with pytest.raises(SendError) as caught:
        registered(send)
    return caught.value.name, caught.value.detail


# --- the forms


def test_answer_of_v2_is_a_send() -> None:
    event = registered(ACCEPTED)
    assert (event.api, event.direction, event.message_id) == (Api.V2, Direction.OUT, ACCEPTED["id"])
    assert (event.status, event.recipient, event.type) == (Status.UNKNOWN, None, "message-registered")
    fields = event.fields
    assert (fields.sender, fields.recipients, fields.text, fields.tag) == (
        "+15559999",
        ("+15550001",),
        "hello",
        "order 4711",
    )
    assert (fields.application_id, fields.segment_count, fields.created_at) == ("a-1", 1, at(0))
    assert event.receipt_expected


@pytest.mark.parametrize(
    "send",
    [
        {**V1_REQUEST, "location": LOCATION},
        {**V1_REQUEST, "Location": LOCATION},
        {"request": V1_REQUEST, "location": LOCATION},
        {"request": [V1_REQUEST], "results": [{"result": "accepted", "location": LOCATION}]},
        {**V1_REQUEST, "id": "m-1"},
        {**V1_REQUEST, "messageId": "m-1", "api": "v1"},
    ],
)
def test_request_of_v1_with_its_answer_is_a_send(send: dict[str, Any]) -> None:
    event = registered(send)
    assert (event.api, event.message_id, event.fields.recipients) == (Api.V1, "m-1", ("+15550001",))
    assert (event.fields.receipt_requested, event.fields.callback_timeout) == ("all", 2000)
    assert event.fields.fallback_url == "https://example.com/fallback"


def test_password_in_a_callback_url_is_not_stored() -> None:
    assert registered({**V1_REQUEST, "location": LOCATION}).fields.callback_url == (
        "https://example.com/callbacks/bandwidth/v1"
    )


def test_results_of_v1_alone_are_sends() -> None:
    results = [{"result": "accepted", "location": LOCATION}, {"result": "accepted", "location": LOCATION + "2"}]
    assert [event_of(normalized(one), entry()).message_id for one in expanded({"results": results})] == ["m-1", "m-12"]


def test_plain_send_needs_an_id_alone() -> None:
    event = registered({"id": "x", "recipients": ["+1", "+2"], "receiptExpected": False, "unknown": 1})
    assert (event.api, event.fields.recipients, event.receipt_expected) == (Api.V2, ("+1", "+2"), False)


def test_normalized_send_stays_as_it_is() -> None:
    for send in (ACCEPTED, {**V1_REQUEST, "location": LOCATION}, {"location": LOCATION}):
        once = normalized(send)
        assert normalized(once) == once


@pytest.mark.parametrize(
    ("send", "name", "words"),
    [
        ("text", "send", "must be an object"),
        ({}, "id", "is missing"),
        ({"id": 7}, "id", "must be a text"),
        ({"id": "x" * 251}, "id", "more than 250 characters"),
        ({"location": "https://example.com/"}, "location", "must be the address of a message"),
        ({"id": "x", "api": "v3"}, "api", "must be one of v1, v2"),
        ({"id": "x", "to": [1]}, "to", "list of texts"),
        ({"id": "x", "to": ["+1"] * 1001}, "to", "1000 are allowed"),
        ({"id": "x", "from": 7}, "from", "must be a text"),
        ({"id": "x", "time": "yesterday"}, "time", "must be a time of RFC 3339"),
        ({"id": "x", "receiptRequested": "some"}, "receiptRequested", "must be none, error or all"),
        ({"id": "x", "receiptExpected": "yes"}, "receiptExpected", "must be true or false"),
        ({"id": "x", "callbackTimeout": "soon"}, "callbackTimeout", "must be a whole number"),
        ({"id": "x", "direction": "in"}, "direction", "must be out"),
        ({"result": "error", "error": {"message": "'to' is blank"}}, "result", "refused this message: 'to' is blank"),
        ({"request": [{}], "results": []}, "results", "one result for each member"),
        ({"request": "x", "location": LOCATION}, "request", "must be the object"),
    ],
)
def test_wrong_send_is_refused_by_the_name_of_its_field(send: Any, name: str, words: str) -> None:
    refused_name, detail = refusal(send)
    assert refused_name == name
    assert words in detail


def test_wrong_send_in_the_journal_is_quarantined_alone() -> None:
    callback = Callback(
        id="entry", received_at=at(0), api=Api.V2, route=REGISTERED, method="POST", body=b'[{"id":"a"},{},{"id":"b"}]'
    )
    first, second, third = parse(callback)
    assert isinstance(first, Event)
    assert isinstance(second, Rejected)
    assert isinstance(third, Event)


@pytest.mark.parametrize("body", [b"", b"{", b'{"id":"a"}', b"7"])
def test_entry_that_is_no_list_of_sends_is_quarantined(body: bytes) -> None:
    callback = Callback(id="entry", received_at=at(0), api=Api.V2, route=REGISTERED, method="POST", body=body)
    [rejected] = parse(callback)
    assert isinstance(rejected, Rejected)


# --- silence


@pytest.mark.parametrize(
    ("send", "awaits"),
    [
        (ACCEPTED, True),
        ({"id": "x"}, True),
        ({"id": "x", "receiptExpected": False}, False),
        ({**V1_REQUEST, "location": LOCATION}, True),
        # The callback URL gets an event, although no receipt was requested.
        ({**V1_REQUEST, "receiptRequested": "none", "location": LOCATION}, True),
        ({"from": "+1", "to": "+2", "text": "x", "location": LOCATION}, False),
        ({"location": LOCATION}, True),
        ({**V1_REQUEST, "location": LOCATION, "receiptExpected": False}, False),
    ],
)
def test_registered_message_awaits_what_bandwidth_is_to_send(send: Any, awaits: bool) -> None:
    [row] = fold([registered(send)]).recipients()
    assert (row.delivery.status, row.delivery.awaits_receipt) == (Status.UNKNOWN, awaits)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_wait_of_one_of_several_registrations_counts(order: tuple[int, ...]) -> None:
    sends = [
        {"id": "m-1", "to": "+15550001", "receiptExpected": False},
        {"location": LOCATION},
        {"from": "+1", "to": "+15550001", "text": "x", "location": LOCATION},
    ]
    [row] = fold([registered(sends[number]) for number in order]).recipients()
    assert row.delivery.awaits_receipt


def test_first_event_of_v1_without_receipts_ends_the_wait() -> None:
    send = registered({**V1_REQUEST, "receiptRequested": "none", "location": LOCATION})
    sent = make_event(Status.SENT, api=Api.V1, message_id="m-1", time=None, state="sent", type="sms")
    [row] = fold([send, sent]).recipients()
    assert (row.delivery.status, row.delivery.awaits_receipt) == (Status.SENT, False)


# --- with callbacks


def view(message: Message) -> Any:
    return rows_of(message, AS_THEY_ARE)


REGISTRATION = registered(
    {**ACCEPTED, "text": "as registered", "tag": "mine", "applicationId": "a-2", "owner": "+15558888"}, received=9
)
EVENTS = (
    make_event(Status.SENDING, time=1, received=1, fields={"tag": "order", "application_id": "a-1"}),
    make_event(Status.FAILED, time=None, code=4720, received=2),
    make_event(Status.DELIVERED, time=3, received=3, tag_verdict=TagVerdict.MISSING),
)
STATUSES = st.sampled_from([status for status in Status if status not in (Status.UNKNOWN, Status.RECEIVED)])


@pytest.mark.parametrize("order", list(permutations([REGISTRATION, *EVENTS])))
def test_registration_merges_in_every_order(order: tuple[Event, ...]) -> None:
    assert view(fold(order)) == view(fold([REGISTRATION, *EVENTS]))


def test_registration_fills_in_and_overwrites_nothing() -> None:
    before = dict(zip(MESSAGE_COLUMNS, view(fold(EVENTS)).message, strict=True))
    after = dict(zip(MESSAGE_COLUMNS, view(fold([REGISTRATION, *EVENTS])).message, strict=True))
    assert after["owner"] == "+15558888"
    assert after["registered_at"] == at(9)
    changed = {name for name in MESSAGE_COLUMNS if before[name] != after[name]}
    # What no callback had, and our clock: the registration came last.
    assert changed == {
        "owner",
        "text",
        "segment_count",
        "priority",
        "created_at",
        "listed_at",
        "registered_at",
        "updated_at",
    }
    assert after["tag"] == "order"


@given(
    st.lists(
        st.builds(
            make_event,
            STATUSES,
            time=st.none() | st.integers(0, 5),
            received=st.integers(0, 5),
            code=st.sampled_from([None, 4720]),
            recipient=st.sampled_from(["+15550001", None]),
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 5),
    st.sampled_from(FinalConflict),
)
def test_registration_never_changes_a_status(events: list[Event], place: int, conflict: FinalConflict) -> None:
    given_events = [*events[:place], REGISTRATION, *events[place:]]
    [with_it] = fold(given_events, conflict).recipients()
    [without] = fold(events, conflict).recipients()
    for name in ("status", "code", "description", "contradicted", "delivered_at", "failed_at", "delivered_received_at"):
        assert getattr(with_it.delivery, name) == getattr(without.delivery, name)


def test_verdict_of_a_message_is_that_of_its_callbacks() -> None:
    unsigned = make_event(Status.DELIVERED, tag_verdict=TagVerdict.MISSING)
    assert fold([REGISTRATION, unsigned]).tag_verdict is TagVerdict.MISSING


def test_tag_of_a_registration_needs_no_signature_and_loses_it() -> None:
    checker = TagChecker(keys={"k": "secret"}, policy=TagPolicy.REQUIRE)
    signed = registered({**ACCEPTED, "tag": sign("order 4711", "secret", kid="k")})
    for event in (signed, registered(ACCEPTED)):
        checked = checker.check(event, 0)
        assert isinstance(checked, Event)
        assert (checked.tag_verdict, checked.fields.tag) == (TagVerdict.UNCHECKED, "order 4711")


def test_time_of_the_delivery_by_our_clock_is_the_first_proof() -> None:
    read = make_event(Status.READ, time=5, received=8)
    delivered = make_event(Status.DELIVERED, time=3, received=9)
    for events in permutations([REGISTRATION, read, delivered, make_event(Status.SENT, time=1, received=1)]):
        [row] = fold(events).recipients()
        assert row.delivery.delivered_received_at == at(8)
