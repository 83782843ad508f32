"""Answers of Bandwidth about one message: what they prove, also malformed ones, and how they merge with callbacks."""

import json
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.domain.delivery import FinalConflict
from receiver.domain.events import (
    RECONCILED,
    Api,
    Callback,
    Direction,
    Event,
    Failure,
    Quarantine,
    Rejected,
    Status,
    TagVerdict,
)
from receiver.domain.message import Message, fold
from receiver.domain.reconciliation import Answer
from receiver.intake.fold import TagChecker
from receiver.providers import PROVIDERS, parse
from receiver.providers.bandwidth_lookups import V1, V2, query_of
from receiver.providers.base import Lookup
from receiver.storage.bulk import Spelling
from receiver.storage.messages import rows_of
from receiver.tags import TagPolicy, sign
from tests.factories import at, callback, v1_event, v2_accepted, v2_event

AS_THEY_ARE = Spelling(time=lambda time: time, flag=lambda flag: flag)
V2_ID, V1_ID = "1589228074636lm4k2je7j7jklbn2", "m-zwnmpvmbzhpqqc4qqz2sqsa"


def item(status: str = "DELIVERED", id_: str = V2_ID, **more: Any) -> dict[str, Any]:
    """An item of v2's list, as its documents show it."""
    return {
        "messageId": id_,
        "accountId": "12345",
        "sourceTn": "+15559999",
        "destinationTn": "+15550001",
        "messageStatus": status,
        "messageDirection": "OUTBOUND",
        "messageType": "sms",
        "segmentCount": 2,
        "errorCode": 0,
        "receiveTime": "2026-01-01T00:00:00.000Z",
        "carrierName": "other",
        "recipientCount": 1,
        **more,
    }


def v2_answer(*items: Any) -> dict[str, Any]:
    return {"totalCount": len(items), "pageInfo": {}, "messages": list(items)}


def v1_answer(**more: Any) -> dict[str, Any]:
    """What v1 answers about a message, as its documents show it."""
    return {
        "id": V1_ID,
        "messageId": V1_ID,
        "from": "+15559999",
        "to": "+15550001",
        "text": "hello",
        "time": "2026-01-01T00:00:00Z",
        "direction": "out",
        "state": "sent",
        "media": [],
        **more,
    }


def entry(body: Any, api: Api = Api.V2, *, received: float = 100, query: str | None = None) -> Callback:
    id_ = V1_ID if api is Api.V1 else V2_ID
    query = query_of(id_) if query is None else query
    return callback(body, received=received, api=api, route=RECONCILED, method="GET", query=query)


def event(body: Any, api: Api = Api.V2, **more: Any) -> Event:
    [found] = parse(entry(body, api, **more))
    assert isinstance(found, Event), found
    return found


def rejected(body: Any, api: Api = Api.V2, **more: Any) -> Rejected:
    [found] = parse(entry(body, api, **more))
    assert isinstance(found, Rejected), found
    return found


def lookup_of(api: Api) -> Lookup:
    lookup = PROVIDERS[api].lookup
    assert lookup is not None
    return lookup


# --- requests


def test_v1_is_queried_by_id_and_v2_by_its_list() -> None:
    assert V1.target("u-1", V1_ID) == f"/users/u-1/messages/{V1_ID}"
    assert V2.target("12345", V2_ID) == f"/users/12345/messages?messageId={V2_ID}"


def test_ids_of_strangers_cannot_change_the_request() -> None:
    assert V1.target("u/1", "../../m?x=1#y") == "/users/u%2F1/messages/..%2F..%2Fm%3Fx%3D1%23y"
    assert (
        V2.target("12345", "a&messageId=b c\r\nü") == "/users/12345/messages?messageId=a%26messageId%3Db+c%0D%0A%C3%BC"
    )


# --- v2


@pytest.mark.parametrize(
    ("status", "code", "expected", "failure"),
    [
        ("DELIVERED", 0, Status.DELIVERED, None),
        ("delivered", None, Status.DELIVERED, None),
        ("READ", 0, Status.READ, None),
        ("FAILED", 4720, Status.FAILED, Failure.NETWORK),
        ("FAILED", "4432", Status.FAILED, Failure.REFUSED),
        ("FAILED", 0, Status.FAILED, Failure.NETWORK),
        ("FAILED", 9902, Status.UNCONFIRMED, None),
        ("UNDELIVERED", 9902, Status.UNCONFIRMED, None),
        ("UNDELIVERED", 4720, Status.FAILED, Failure.NETWORK),
        ("UNDELIVERED", 0, Status.UNCONFIRMED, None),
        ("DLR_EXPIRED", None, Status.UNCONFIRMED, None),
    ],
)
def test_final_status_of_v2_is_an_event(status: str, code: Any, expected: Status, failure: Failure | None) -> None:
    found = event(v2_answer(item(status, errorCode=code)))
    assert (found.status, found.failure) == (expected, failure)
    assert found.code == (int(code) if code else None)
    assert (found.api, found.direction, found.message_id) == (Api.V2, Direction.OUT, V2_ID)
    assert (found.recipient, found.occurred_at, found.route) == ("+15550001", None, "reconciled")
    assert lookup_of(Api.V2).answer(200, entry(v2_answer(item(status, errorCode=code)))) is Answer.FINAL


def test_fields_of_v2_answer() -> None:
    fields = event(v2_answer(item(messageType="mms"))).fields
    assert (fields.sender, fields.recipients, fields.segment_count) == ("+15559999", ("+15550001",), 2)
    assert (fields.channel, fields.carrier_name, fields.created_at) == ("MMS", "other", at(0))
    assert (fields.text, fields.tag) == (None, None)


@pytest.mark.parametrize("status", ["ACCEPTED", "QUEUED", "SENDING", "SENT", "RECEIVED", "PONDERED", "", None, 7])
def test_answer_of_v2_without_a_final_status_is_nothing(status: Any) -> None:
    answered = entry(v2_answer(item(status)))
    assert list(parse(answered)) == []
    assert V2.answer(200, answered) is Answer.PENDING


def test_group_message_has_an_event_for_each_final_recipient() -> None:
    items = [
        item("DELIVERED", recipientCount=3),
        item("FAILED", destinationTn="+15550002", errorCode=4720, recipientCount=3),
        item("SENDING", destinationTn="+15550003", recipientCount=3),
    ]
    found = [one for one in parse(entry(v2_answer(*items))) if isinstance(one, Event)]
    assert [(one.recipient, one.status) for one in found] == [
        ("+15550001", Status.DELIVERED),
        ("+15550002", Status.FAILED),
    ]
    # The other recipients of the group are in no item of theirs.
    assert [one.fields.recipients for one in found] == [(), ()]


def test_list_that_was_not_filtered_has_nothing_about_other_messages() -> None:
    others = [item("FAILED", "m-other", errorCode=4720), item("DELIVERED", messageDirection="INBOUND")]
    assert event(v2_answer(*others, item())).status is Status.DELIVERED
    answered = entry(v2_answer(*others))
    assert [one.reason for one in parse(answered)] == [Quarantine.NO_MESSAGE_ID]  # type: ignore[union-attr]
    assert V2.answer(200, answered) is Answer.UNKNOWN


# --- v1


@pytest.mark.parametrize(
    ("fields", "expected", "code"),
    [
        ({"deliveryState": "delivered", "deliveryCode": 0}, Status.DELIVERED, 0),
        ({"deliveryState": "delivered", "deliveryCode": "0"}, Status.DELIVERED, 0),
        ({"deliveryState": "not-delivered", "deliveryCode": 720}, Status.FAILED, 720),
        ({"deliveryState": "not-delivered", "deliveryCode": 902}, Status.UNCONFIRMED, 902),
        ({"state": "error"}, Status.FAILED, None),
        # Without receipts nothing more is ever said.
        ({"state": "sent"}, Status.SENT, None),
        ({"state": "sent", "receiptRequested": "none"}, Status.SENT, None),
    ],
)
def test_final_status_of_v1_is_an_event(fields: dict[str, Any], expected: Status, code: int | None) -> None:
    found = event(v1_answer(**fields), Api.V1)
    assert (found.status, found.code, found.type) == (expected, code, "sms")
    assert (found.message_id, found.recipient, found.fields.text) == (V1_ID, "+15550001", "hello")
    assert found.receipt_expected is (found.delivery_state is not None)


@pytest.mark.parametrize(
    "fields",
    [
        {"state": "queued"},
        {"state": "sending"},
        {"state": "sent", "deliveryState": "waiting"},
        {"state": "sent", "receiptRequested": "all"},
        {"state": "sent", "receiptRequested": "error"},
    ],
)
def test_answer_of_v1_without_a_final_status_is_nothing(fields: dict[str, Any]) -> None:
    answered = entry(v1_answer(**fields), Api.V1)
    assert list(parse(answered)) == []
    assert V1.answer(200, answered) is Answer.PENDING


# --- hostile and malformed answers

MALFORMED = [
    b"",
    b"<html>maintenance</html>",
    b"[" * 100_000,
    b"\xff\xfe\x00",
    "null",
    7,
    [],
    {},
    {"messages": None},
    {"messages": {"messageId": V2_ID}},
    {"messages": [item(messageId=None)]},
    v1_answer(id="m-other", messageId="m-other", deliveryState="delivered"),
    v1_answer(direction="in", state="received"),
    v1_answer(direction=None),
    v1_answer(to=["+1"] * 2000, deliveryState="delivered"),
    v1_answer(**{"from": "+" + "1" * 300}, deliveryState="delivered"),
    v1_answer(state="pondered"),
]


@pytest.mark.parametrize("api", list(Api))
@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: str(body)[:40])
def test_malformed_answer_is_no_event(api: Api, body: Any) -> None:
    answered = entry(body, api)
    assert [one for one in parse(answered) if isinstance(one, Event)] == []
    assert lookup_of(api).answer(200, answered) in (Answer.UNUSABLE, Answer.UNKNOWN)


def test_entry_that_names_no_message_is_no_event() -> None:
    assert rejected(v2_answer(item()), query="").reason is Quarantine.UNREADABLE
    assert rejected(v1_answer(deliveryState="delivered"), Api.V1, query="page=1").reason is Quarantine.UNREADABLE


def test_item_without_number_is_about_the_only_recipient_and_else_refused() -> None:
    assert event(v2_answer(item(destinationTn=None))).recipient is None
    two = [item(destinationTn=None), item(destinationTn="+15550002")]
    assert [type(one) for one in parse(entry(v2_answer(*two)))] == [Rejected, Event]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@given(st.sampled_from(list(Api)), st.dictionaries(st.sampled_from(sorted({*item(), *v1_answer()})), VALUES))
def test_answers_of_any_content_are_parsed_without_an_error(api: Api, changes: dict[str, Any]) -> None:
    body = v1_answer(**changes) if api is Api.V1 else v2_answer({**item(), **changes})
    answered = entry(json.dumps(body).encode(), api)
    for one in parse(answered):
        assert not isinstance(one, Event) or one.message_id == (V1_ID if api is Api.V1 else V2_ID)
    assert lookup_of(api).answer(200, answered) in Answer


@pytest.mark.parametrize(
    ("status", "v1", "v2"),
    [
        (401, Answer.REFUSED, Answer.REFUSED),
        (403, Answer.FORBIDDEN, Answer.FORBIDDEN),
        (429, Answer.LIMITED, Answer.LIMITED),
        (404, Answer.UNKNOWN, Answer.FAILED),
        (302, Answer.FAILED, Answer.FAILED),
        (400, Answer.FAILED, Answer.FAILED),
        (503, Answer.FAILED, Answer.FAILED),
        (204, Answer.FAILED, Answer.FAILED),
    ],
)
def test_meaning_of_a_status(status: int, v1: Answer, v2: Answer) -> None:
    # The body says delivered: without 200 it proves nothing.
    assert V1.answer(status, entry(v1_answer(deliveryState="delivered"), Api.V1)) is v1
    assert V2.answer(status, entry(v2_answer(item()))) is v2


# --- the merge


def folded(*events: Event, conflict: FinalConflict = FinalConflict.FAILED_WINS) -> Message:
    return fold(events, conflict)


def of_callback(body: Any, *, received: float, api: Api = Api.V2, route: str = "primary") -> Event:
    [found] = parse(callback(body, received=received, api=api, route=route))
    assert isinstance(found, Event), found
    return found


REGISTERED = of_callback([v2_accepted(V2_ID, api="v2")], received=1, route="registered")
V2_EVENTS = [
    REGISTERED,
    of_callback([v2_event(V2_ID, message={"tag": "order", "applicationId": "a-1"})], received=50),
    event(v2_answer(item())),
    event(v2_answer(item("FAILED", errorCode=4720)), received=200),
]


@pytest.mark.parametrize("conflict", list(FinalConflict))
@pytest.mark.parametrize("count", [2, 3, 4])
def test_answers_merge_with_callbacks_in_every_order(count: int, conflict: FinalConflict) -> None:
    chosen = V2_EVENTS[:count]
    rows = [rows_of(folded(*order, conflict=conflict), AS_THEY_ARE) for order in permutations(chosen)]
    assert all(row == rows[0] for row in rows)


def test_answer_closes_a_silent_message() -> None:
    message = folded(REGISTERED, V2_EVENTS[2])
    [row] = message.recipients()
    assert (row.delivery.status, row.delivery.awaits_receipt) == (Status.DELIVERED, False)
    assert (message.fields().text, message.fields().tag, message.fields().carrier_name) == (
        "hello",
        "order 4711",
        "other",
    )
    assert message.registered_at == at(1)


def test_fields_of_a_callback_win_over_those_of_an_answer() -> None:
    sent = of_callback(v1_event(V1_ID, tag="order", text="as sent", state="sent"), received=500, api=Api.V1)
    answered = event(v1_answer(deliveryState="delivered", text="another", tag="another"), Api.V1, received=1)
    fields = folded(answered, sent).fields()
    assert (fields.text, fields.tag) == ("as sent", "order")


def test_answer_and_callback_with_the_same_words_are_two_events() -> None:
    body = {"state": "sent", "deliveryState": "delivered", "deliveryCode": 0, "deliveryDescription": "ok"}
    received = of_callback(v1_event(V1_ID, **body, tag="order"), received=1, api=Api.V1)
    answered = event(v1_answer(**body), Api.V1)
    assert received.id != answered.id
    assert folded(answered, received).fields().tag == "order"


def test_same_answer_again_is_the_same_event() -> None:
    first, again = event(v2_answer(item())), event(v2_answer(item(carrierName="AT&T")), received=500)
    assert first.id == again.id
    assert event(v2_answer(item("UNDELIVERED"))).id != event(v2_answer(item("FAILED"))).id


def test_time_of_an_answer_is_no_time_to_delivery() -> None:
    answered, received = event(v2_answer(item()), received=10_000), V2_EVENTS[1]
    [row] = folded(REGISTERED, answered).recipients()
    assert (row.delivery.delivered_at, row.delivery.delivered_received_at) == (None, None)
    [row] = folded(answered, received).recipients()
    assert (row.delivery.delivered_at, row.delivery.delivered_received_at) == (at(5), at(50))


def test_answer_needs_no_signed_tag() -> None:
    checker = TagChecker(keys={"k": "secret"}, policy=TagPolicy.REQUIRE)
    signed = sign("order 4711", "secret", kid="k")
    for tag in (None, "order 4711", signed):
        checked = checker.check(event(v1_answer(deliveryState="delivered", tag=tag), Api.V1), 0)
        assert isinstance(checked, Event)
        assert checked.tag_verdict is TagVerdict.UNCHECKED
        assert checked.fields.tag == (tag and "order 4711")
    unsigned = of_callback([v2_event(V2_ID)], received=1)
    assert isinstance(checker.check(unsigned, 0), Rejected)
