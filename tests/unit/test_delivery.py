"""The merge: the same rows for every order, repetition and split, and the rules of who wins."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.domain.delivery import FinalConflict
from receiver.domain.events import Api, Direction, Event, Failure, Status, TagVerdict, number_key
from receiver.domain.fold import Batch
from receiver.domain.message import Message, Recipient, fold, roll_up
from receiver.providers import states
from tests.events import at, make_event

NUMBERS = ("+15550001", "+15550002", "15550002", "BandwidthRBM")
OUTBOUND = [status for status in Status if status not in (Status.UNKNOWN, Status.RECEIVED)]

outbound_events = st.builds(
    make_event,
    st.sampled_from(OUTBOUND),
    recipient=st.sampled_from([*NUMBERS, "+", None]),
    to=st.sampled_from([(), NUMBERS[:1], NUMBERS[:2], ("15550001", "+15550002"), NUMBERS]),
    time=st.sampled_from([None, 0, 1, 2, 3]),
    code=st.sampled_from([None, 0, 4432, 4720, 9902]),
    received=st.integers(0, 9),
    description=st.sampled_from([None, "", "ok", "rejected"]),
    failure=st.sampled_from([None, *Failure]),
    contradicted=st.booleans(),
    fields=st.fixed_dictionaries(
        {
            "tag": st.sampled_from([None, "", "a", "b"]),
            "carrier_name": st.sampled_from([None, "AT&T", "Verizon"]),
            "created_at": st.sampled_from([None, at(-1), at(-2)]),
            "text": st.sampled_from(["a", "b"]),
            "has_text": st.booleans(),
            "media": st.sampled_from([("u",), ("v", "w")]),
            "has_media": st.booleans(),
        }
    ),
)
v1_events = st.builds(
    make_event,
    st.sampled_from(OUTBOUND),
    api=st.just(Api.V1),
    time=st.none(),
    received=st.integers(0, 9),
    state=st.sampled_from([None, "queued", "sent", "error"]),
    delivery_state=st.sampled_from([None, "waiting", "delivered", "not-delivered"]),
)
inbound_events = st.builds(
    make_event,
    st.just(Status.RECEIVED),
    recipient=st.sampled_from([*NUMBERS, None]),
    to=st.sampled_from([(), NUMBERS[:1], ("15550001", "+15550002")]),
    time=st.sampled_from([None, 0, 1]),
    received=st.integers(0, 9),
)
event_sets = st.one_of(
    st.lists(inbound_events, min_size=1, max_size=6, unique_by=lambda event: event.id),
    st.lists(outbound_events, min_size=1, max_size=8, unique_by=lambda event: event.id),
    st.lists(v1_events, min_size=1, max_size=6, unique_by=lambda event: event.id),
)


@dataclass
class Rows:
    """A message and its deliveries, by the recipient's key, as the status table has them."""

    message: dict[str, Any]
    deliveries: dict[str, dict[str, Any]]


FIELDS = ("sender", "tag", "segment_count", "carrier_name", "text", "media", "created_at")
OF_A_MESSAGE = ("api", "direction", "id", "tag_verdict", "listed_at", "first_received_at", "updated_at")
OF_A_DELIVERY = ("status", "contradicted", "sent_at", "delivered_at", "failed_at", "read_at", "updated_at")


def rows_of(message: Message) -> Rows:
    recipients = message.recipients()
    summary = roll_up([row.delivery for row in recipients], message.direction, states)
    values = {
        **{name: getattr(message.fields(), name) for name in FIELDS},
        **{name: getattr(message, name) for name in OF_A_MESSAGE},
        "recipients": [row.number for row in recipients if row.number is not None],
        "status": summary.status,
        "state": summary.state,
        "delivery_state": summary.delivery_state,
        "delivery_code": summary.code,
        "contradicted": summary.contradicted,
        "awaiting_receipt": summary.awaiting_receipt,
    }
    deliveries = {number_key(row.number): delivery_row(row, place) for place, row in enumerate(recipients)}
    return Rows(values, deliveries)


def delivery_row(row: Recipient, place: int) -> dict[str, Any]:
    delivery = row.delivery
    state, delivery_state = states.of_delivery(delivery)
    return {
        **{name: getattr(delivery, name) for name in OF_A_DELIVERY},
        "recipient": row.number,
        "place": place,
        "state": state,
        "delivery_state": delivery_state,
        "delivery_code": delivery.code,
        "delivery_description": delivery.description,
    }


def rows(events: list[Event], conflict: FinalConflict = FinalConflict.FAILED_WINS) -> Any:
    return rows_of(fold(events, conflict))


@given(st.data(), event_sets, st.sampled_from(FinalConflict))
def test_every_order_and_repetition_gives_the_same_rows(
    data: st.DataObject, events: list[Event], conflict: FinalConflict
) -> None:
    shuffled = data.draw(st.permutations(events))
    repeated = shuffled + data.draw(st.lists(st.sampled_from(events), max_size=5))
    assert rows(repeated, conflict) == rows(events, conflict)


@given(st.data(), event_sets, st.sampled_from(FinalConflict))
def test_every_split_into_batches_gives_the_same_rows(
    data: st.DataObject, events: list[Event], conflict: FinalConflict
) -> None:
    known: dict[Any, list[Event]] = {}
    rest = list(data.draw(st.permutations(events)))
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        batch = Batch(known, conflict=conflict, states=states, snapshot=rows_of)
        for event in rest[:size]:
            batch.take(event, 0)
        [(key, message)] = batch.messages.items()
        known[key] = [*known.get(key, []), *(entry.event for entry in batch.appended)]
        rest = rest[size:]
    assert rows_of(message) == rows(events, conflict)


def statuses(message: Message) -> dict[str, Status]:
    """The status of each row there is, by the number as it is compared."""
    return {number_key(row.number): row.delivery.status for row in message.recipients()} if message else {}


@given(event_sets, st.sampled_from(FinalConflict))
def test_log_entries_chain_previous_status_to_status(events: list[Event], conflict: FinalConflict) -> None:
    message = Message(*events[0].key, conflict)
    for event in events:
        before, change, after = statuses(message), message.add(event), statuses(message)
        if event.recipient is not None:
            key = number_key(event.recipient)
            assert (change.before.status if change.before else None) == before.get(key)
            assert change.after.status == after[key]
            assert change.changed is (before.get(key, Status.UNKNOWN) is not after[key])


def test_a_number_that_is_nothing_but_a_plus_goes_on_where_no_number_was_known() -> None:
    message = Message(Api.V2, Direction.OUT, "m1")
    message.add(make_event(Status.QUEUED, recipient=None, to=()))
    change = message.add(make_event(Status.SENT, recipient="+", to=()))
    assert change.before is not None
    assert (change.before.status, change.after.status) == (Status.QUEUED, Status.SENT)


@pytest.mark.parametrize("events", [[make_event(Status.DELIVERED, time=9), make_event(Status.SENT, time=1)]])
def test_late_sent_does_not_undo_delivered(events: list[Event]) -> None:
    [row] = rows(events).deliveries.values()
    assert (row["status"], row["sent_at"], row["delivered_at"]) == ("delivered", at(1), at(9))


REFUSED = {"failure": Failure.REFUSED, "code": 4432}
BY_CARRIER = {"failure": Failure.NETWORK, "code": 4720}
UNEXPLAINED = {"failure": Failure.OTHER, "code": 4001}


@pytest.mark.parametrize(
    ("conflict", "failure", "other", "status"),
    [
        (FinalConflict.FAILED_WINS, REFUSED, Status.DELIVERED, "failed"),
        (FinalConflict.FAILED_WINS, BY_CARRIER, Status.DELIVERED, "failed"),
        (FinalConflict.DELIVERED_WINS, REFUSED, Status.DELIVERED, "failed"),
        (FinalConflict.DELIVERED_WINS, UNEXPLAINED, Status.DELIVERED, "failed"),
        (FinalConflict.DELIVERED_WINS, BY_CARRIER, Status.DELIVERED, "delivered"),
        (FinalConflict.DELIVERED_WINS, BY_CARRIER, Status.UNCONFIRMED, "failed"),
        (FinalConflict.FAILED_WINS, BY_CARRIER, Status.READ, "read"),
    ],
)
def test_delivered_wins_or_failed_wins_and_the_contradiction_shows(
    conflict: FinalConflict, failure: dict[str, Any], other: Status, status: str
) -> None:
    events = [make_event(Status.FAILED, time=1, **failure), make_event(other, time=2)]
    [row] = rows(events, conflict).deliveries.values()
    assert row["status"] == status
    assert row["contradicted"] is (other is not Status.UNCONFIRMED)
    assert row["delivery_code"] == (failure["code"] if status == "failed" else None)


def test_unconfirmed_gives_way_to_a_later_delivered() -> None:
    events = [make_event(Status.UNCONFIRMED, code=9902), make_event(Status.DELIVERED, time=9)]
    [row] = rows(events).deliveries.values()
    assert (row["status"], row["delivery_code"], row["contradicted"]) == ("delivered", None, False)


def test_the_code_comes_from_the_first_event_of_the_winning_status_that_has_one() -> None:
    events = [
        make_event(Status.FAILED, time=1, description="first", failure=Failure.NETWORK),
        make_event(Status.FAILED, time=2, code=4720, description="second", failure=Failure.NETWORK),
        make_event(Status.FAILED, time=3, code=4750, description="third", failure=Failure.NETWORK),
    ]
    [row] = rows(events).deliveries.values()
    assert (row["delivery_code"], row["delivery_description"], row["failed_at"]) == (4720, "second", at(1))


def test_of_equal_rank_and_time_the_smaller_event_id_wins() -> None:
    events = [make_event(Status.FAILED, code=code, failure=Failure.NETWORK) for code in (4720, 4750, 4770)]
    first = min(events, key=lambda event: event.id)
    [row] = rows(events).deliveries.values()
    assert row["delivery_code"] == first.code


GROUP = ("+15550001", "+15550002")


def test_one_of_two_recipients_is_visible_from_the_first_event_on() -> None:
    made = rows([make_event(Status.DELIVERED, to=GROUP)])
    assert {key: row["status"] for key, row in made.deliveries.items()} == {
        "15550001": "delivered",
        "15550002": "unknown",
    }
    assert made.message["status"] == "pending"
    assert made.message["awaiting_receipt"] is True


def test_numbers_that_differ_by_the_plus_are_one_recipient_spelled_as_in_message_to() -> None:
    made = rows([make_event(recipient="15550001", to=("+15550001",))])
    assert made.message["recipients"] == ["+15550001"]
    assert [row["recipient"] for row in made.deliveries.values()] == ["+15550001"]


def test_a_top_level_to_that_message_to_lacks_gets_a_row_too() -> None:
    made = rows([make_event(recipient="+15550009", to=GROUP)])
    assert made.message["recipients"] == [*GROUP, "+15550009"]


def test_an_event_without_recipient_counts_for_those_no_event_names() -> None:
    unnamed = make_event(Status.DELIVERED, recipient=None, to=GROUP, time=5)
    named = make_event(Status.SENDING, recipient=GROUP[0], to=GROUP, time=1)
    alone, both = rows([unnamed]), rows([unnamed, named])
    assert [row["status"] for row in alone.deliveries.values()] == ["delivered", "delivered"]
    assert [row["status"] for row in both.deliveries.values()] == ["sending", "delivered"]


def test_without_any_number_there_is_one_row_until_a_number_is_known() -> None:
    unnamed = make_event(Status.DELIVERED, recipient=None, to=())
    assert list(rows([unnamed]).deliveries) == [""]
    named = make_event(Status.SENT, recipient="+15550001", to=())
    assert {key: row["status"] for key, row in rows([unnamed, named]).deliveries.items()} == {"15550001": "sent"}


def test_every_recipient_of_an_inbound_message_is_received() -> None:
    made = rows([make_event(Status.RECEIVED, recipient=GROUP[0], to=GROUP)])
    assert [row["status"] for row in made.deliveries.values()] == ["received", "received"]
    assert (made.message["status"], made.message["state"], made.message["direction"]) == ("received", "received", "in")
    assert made.message["awaiting_receipt"] is False


@pytest.mark.parametrize(
    ("statuses", "status", "state", "delivery_state"),
    [
        ((Status.DELIVERED, Status.DELIVERED), "delivered", "sent", "delivered"),
        ((Status.DELIVERED, Status.FAILED), "partial", "sent", None),
        ((Status.DELIVERED, Status.SENT), "pending", "sent", "waiting"),
        ((Status.UNCONFIRMED, Status.READ), "partial", "sent", None),
        ((Status.QUEUED, Status.QUEUED), "queued", "queued", None),
        ((Status.SENT, Status.SENT), "sent", "sent", "waiting"),
        ((Status.UNCONFIRMED, Status.UNCONFIRMED), "unconfirmed", "sent", "waiting"),
        ((Status.READ, Status.READ), "read", "sent", "delivered"),
    ],
)
def test_roll_up_is_the_status_the_recipients_agree_on(
    statuses: tuple[Status, Status], status: str, state: str, delivery_state: str | None
) -> None:
    events = [make_event(one, recipient=number, to=GROUP) for one, number in zip(statuses, GROUP, strict=True)]
    standing = roll_up([row.delivery for row in fold(events).recipients()], Direction.OUT, states)
    assert (standing.status, standing.state, standing.delivery_state) == (status, state, delivery_state)


@pytest.mark.parametrize(
    ("failure", "state"),
    [(Failure.REFUSED, "error"), (Failure.NETWORK, "sent"), (Failure.OTHER, "sent")],
)
def test_refusal_before_the_network_is_v1_state_error(failure: Failure, state: str) -> None:
    made = rows([make_event(Status.FAILED, code=4432, failure=failure)])
    assert (made.message["state"], made.message["delivery_state"]) == (state, "not-delivered")


def v1(status: Status, **more: Any) -> Event:
    return make_event(status, api=Api.V1, time=None, type="sms", **more)


def test_v1_words_are_shown_as_they_came() -> None:
    made = rows([v1(Status.UNCONFIRMED, state="sent", delivery_state="not-delivered", code=902)])
    assert (made.message["status"], made.message["state"], made.message["delivery_state"]) == (
        "unconfirmed",
        "sent",
        "not-delivered",
    )


def test_v1_sent_awaits_a_receipt_only_if_requested() -> None:
    unrequested = v1(Status.SENT, state="sent")
    requested = v1(Status.SENT, state="sent", delivery_state="waiting")
    assert rows([unrequested]).message["awaiting_receipt"] is False
    assert rows([unrequested]).message["delivery_state"] is None
    both = rows([unrequested, requested]).message
    assert (both["awaiting_receipt"], both["delivery_state"]) == (True, "waiting")


def test_an_event_may_contradict_itself() -> None:
    made = rows([v1(Status.DELIVERED, state="error", delivery_state="delivered", contradicted=True)])
    assert (made.message["contradicted"], made.message["state"]) == (True, "error")


def test_each_field_is_the_first_non_empty_value_by_event_time() -> None:
    events = [
        make_event(Status.DELIVERED, time=3, fields={"tag": "late", "carrier_name": "AT&T"}),
        make_event(Status.SENDING, time=1, fields={"tag": ""}),
        make_event(Status.SENT, time=2, fields={"tag": "early"}, tag_verdict=TagVerdict.VALID),
    ]
    message = rows(events).message
    assert (message["tag"], message["carrier_name"], message["tag_verdict"]) == ("early", "AT&T", "valid")


def test_a_message_is_listed_by_bandwidth_s_time_else_by_our_first_receipt() -> None:
    message = make_event(received=5, fields={"created_at": at(-3)})
    assert rows([message]).message["listed_at"] == at(-3)
    untold = [make_event(received=7), make_event(Status.SENT, received=5)]
    assert rows(untold).message["listed_at"] == at(5)


def test_stored_text_stays_until_an_earlier_event_replaces_it() -> None:
    stored = make_event(Status.SENT, time=2, fields={"has_text": True})
    later = make_event(Status.DELIVERED, time=3, fields={"text": "later", "has_text": True})
    earlier = make_event(Status.SENDING, time=1, fields={"text": "earlier", "has_text": True})
    assert rows([stored, later]).message["text"] is None
    assert rows([stored, later, earlier]).message["text"] == "earlier"


def test_a_change_names_the_status_before_and_whether_it_moved() -> None:
    message = Message(Api.V2, Direction.OUT, "m")
    first = message.add(make_event(Status.SENDING, to=GROUP))
    second = message.add(make_event(Status.SENDING, time=1, to=GROUP))
    third = message.add(make_event(Status.DELIVERED, recipient=GROUP[1], to=GROUP))
    changes = [
        (change.before and change.before.status, change.after.status, change.changed)
        for change in (first, second, third)
    ]
    assert changes == [(None, "sending", True), ("sending", "sending", False), ("unknown", "delivered", True)]


def test_an_event_for_all_finds_the_rows_that_earlier_ones_made() -> None:
    message = fold([make_event(Status.SENT, recipient=GROUP[0], to=GROUP)])
    change = message.add(make_event(Status.DELIVERED, recipient=None, to=GROUP))
    assert (change.before and change.before.status, change.after.status, change.changed) == (
        "unknown",
        "delivered",
        True,
    )


def test_a_further_recipient_of_an_inbound_message_had_no_row_before() -> None:
    message = fold([make_event(Status.RECEIVED, recipient=GROUP[0], to=GROUP[:1])])
    change = message.add(make_event(Status.RECEIVED, recipient=GROUP[1], to=GROUP[1:]))
    assert (change.before, change.after.status, change.changed) == (None, "received", True)


def test_an_unnamed_event_changes_nothing_where_every_recipient_is_named() -> None:
    message = fold([make_event(Status.SENT, recipient=number, to=GROUP) for number in GROUP])
    assert message.add(make_event(Status.DELIVERED, recipient=None, to=GROUP)).changed is False
