"""The merge: the same rows for every order, repetition and split, and the rules of who wins."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.domain.delivery import FinalConflict
from receiver.domain.events import Api, Event, Failure, Status, number_key
from receiver.domain.fold import Batch
from receiver.domain.message import Message
from receiver.providers import states
from tests.factories import at, make_event
from tests.rows import rows, rows_of

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


def test_v1_error_without_a_receipt_has_no_delivery_state() -> None:
    made = rows([v1(Status.FAILED, state="error", failure=Failure.REFUSED)])
    assert (made.message["status"], made.message["state"], made.message["delivery_state"]) == ("failed", "error", None)
    with_receipt = rows([v1(Status.FAILED, state="error", delivery_state="not-delivered", failure=Failure.REFUSED)])
    assert with_receipt.message["delivery_state"] == "not-delivered"


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
