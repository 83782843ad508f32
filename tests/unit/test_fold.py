"""What a batch does with events: which are new, which repeat another, which their message is too large for."""

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.domain.events import (
    MAX_EVENTS,
    MAX_MENTIONS,
    MAX_RECIPIENTS,
    Api,
    Direction,
    Event,
    Quarantine,
    Rejected,
    Status,
)
from receiver.domain.fold import Batch, MessageKey, Repeat
from receiver.domain.message import Message, fold
from receiver.domain.publication import Appended
from receiver.providers import states
from tests.factories import make_event
from tests.waiting import cpu_at_most

Rows = list[tuple[str | None, Status]]


def rows(message: Message) -> Rows:
    return [(row.number, row.delivery.status) for row in message.recipients()]


def batch(*known: Event, **more: Any) -> Batch[Rows]:
    by_message: dict[MessageKey, list[Event]] = {}
    for event in known:
        by_message.setdefault(event.key, []).append(event)
    return Batch(by_message, states=states, snapshot=rows, **more)


SENT = make_event(Status.SENT, time=1, received=1)
DELIVERED = make_event(Status.DELIVERED, time=2, received=2)
KEY = SENT.key


def test_a_new_event_is_appended_with_what_it_changed() -> None:
    taken = batch()
    entry = taken.take(SENT, 0)
    assert isinstance(entry, Appended)
    assert (entry.event, entry.previous_status, entry.changed, entry.delivery.status) == (SENT, None, True, "sent")
    assert taken.appended == [entry]
    assert (list(taken.messages), list(taken.moved()), taken.before) == ([KEY], [KEY], {})


def test_the_rows_before_are_those_before_the_first_new_event() -> None:
    taken = batch(SENT)
    taken.take(DELIVERED, 0)
    taken.take(make_event(Status.READ, time=3), 1)
    assert taken.before == {KEY: [("+15550001", Status.SENT)]}
    assert rows(taken.messages[KEY]) == [("+15550001", Status.READ)]
    assert [entry.previous_status for entry in taken.appended] == ["sent", "delivered"]


def test_a_repeated_event_names_the_callback_that_first_brought_it() -> None:
    taken = batch(SENT)
    assert taken.take(make_event(Status.SENT, time=1, received=9), 0) == Repeat("callback-1")
    taken.take(DELIVERED, 0)
    assert taken.take(make_event(Status.DELIVERED, time=2, received=9), 0) == Repeat("callback-2")
    assert len(taken.appended) == 1


def test_a_message_that_got_nothing_new_is_not_touched() -> None:
    taken = batch(SENT)
    taken.take(SENT, 0)
    assert (taken.messages, taken.before, list(taken.moved())) == ({}, {}, [])


def test_an_event_of_a_message_with_forgotten_events_changes_nothing() -> None:
    taken = batch(forgotten=[KEY])
    entry = taken.take(SENT, 0)
    assert isinstance(entry, Appended)
    assert entry.changed is False
    assert (list(taken.messages), list(taken.moved())) == ([KEY], [])


def test_a_full_message_takes_no_new_event_and_knows_its_own() -> None:
    taken = batch(full={KEY: {SENT.id: "callback-1"}})
    assert taken.take(SENT, 0) == Repeat("callback-1")
    assert taken.take(DELIVERED, 5) == Rejected(5, Quarantine.TOO_LARGE, "the message has 10000 events already", KEY[2])
    assert (taken.messages, taken.appended) == ({}, [])


def many(count: int, **more: Any) -> list[Event]:
    return [make_event(Status.SENT, time=number, **more) for number in range(count)]


def test_an_event_beyond_the_limit_of_its_message_is_too_large() -> None:
    taken = batch(*many(MAX_EVENTS - 1))
    assert isinstance(taken.take(DELIVERED, 0), Appended)
    refused = taken.take(make_event(Status.READ), 3)
    assert isinstance(refused, Rejected)
    assert (refused.index, refused.reason) == (3, Quarantine.TOO_LARGE)
    assert taken.take(DELIVERED, 0) == Repeat(DELIVERED.callback_id)
    assert len(taken.appended) == 1


def numbers(start: int, count: int) -> tuple[str, ...]:
    return tuple(f"+1{number:010}" for number in range(start, start + count))


@pytest.mark.parametrize(
    ("to", "recipient", "is_taken"),
    [
        (numbers(500, 500), None, True),
        (numbers(500, 499), "+1555", True),
        (numbers(500, 500), "+1555", False),
        (numbers(500, 501), None, False),
        (numbers(0, 1000), None, True),
        (tuple(number.removeprefix("+") for number in numbers(0, 1000)), numbers(0, 1)[0], True),
        (numbers(0, 600), "+1555", True),
    ],
)
def test_a_message_has_at_most_a_thousand_different_recipients(
    to: tuple[str, ...], recipient: str | None, is_taken: bool
) -> None:
    taken = batch(make_event(Status.SENT, to=numbers(0, 500), recipient=None))
    result = taken.take(make_event(Status.DELIVERED, to=to, recipient=recipient), 0)
    assert isinstance(result, Appended if is_taken else Rejected)
    assert len(rows(next(iter(taken.messages.values())))) <= MAX_RECIPIENTS if is_taken else not taken.messages


def test_the_first_event_of_a_message_may_be_too_large_and_a_smaller_one_is_taken() -> None:
    taken = batch()
    refused = taken.take(make_event(to=numbers(0, MAX_RECIPIENTS), recipient="+1555"), 0)
    assert isinstance(refused, Rejected)
    assert refused.detail == "the message has more than 1000 recipients"
    assert isinstance(taken.take(SENT, 1), Appended)
    assert taken.before == {}


def test_the_recipients_of_all_events_of_a_message_are_limited() -> None:
    whole = numbers(0, MAX_RECIPIENTS)
    taken = batch(*many(MAX_MENTIONS // MAX_RECIPIENTS - 1, to=whole, recipient=None))
    assert isinstance(taken.take(make_event(to=whole, recipient=None), 0), Appended)
    assert isinstance(taken.take(make_event(Status.READ, to=whole[:1]), 0), Rejected)
    assert isinstance(taken.take(make_event(Status.READ, to=(), recipient=whole[0]), 0), Appended)


def v1(**more: Any) -> Event:
    return make_event(api=Api.V1, type="sms", time=None, **more)


INBOUND = [
    make_event(Status.RECEIVED, time=0, fields={"tag": "EVIL"}, to=("+15550001", "+777")),
    make_event(Status.RECEIVED, time=9, to=(), recipient=None),
]
OUTBOUND = [SENT, DELIVERED, make_event(Status.FAILED, code=4720, recipient=None)]
OF_V1 = [v1(status=Status.FAILED, state="error"), v1(status=Status.RECEIVED, state="received")]


@pytest.mark.parametrize("events", list(permutations([*INBOUND[:1], *OUTBOUND[:2], OF_V1[0]])))
def test_inbound_outbound_and_v1_messages_with_one_id_stay_apart(events: list[Event]) -> None:
    taken = batch()
    for event in events:
        taken.take(event, 0)
    assert {key: rows(message) for key, message in taken.messages.items()} == {
        (Api.V2, Direction.OUT, SENT.message_id): [("+15550001", Status.DELIVERED)],
        (Api.V2, Direction.IN, SENT.message_id): [("+15550001", Status.RECEIVED), ("+777", Status.RECEIVED)],
        (Api.V1, Direction.OUT, SENT.message_id): [("+15550001", Status.FAILED)],
    }
    assert taken.messages[KEY].fields().tag is None


@given(st.permutations([*INBOUND, *OUTBOUND, *OF_V1]), st.integers(0, 7))
def test_an_inbound_event_never_changes_an_outbound_message_nor_the_reverse(events: list[Event], split: int) -> None:
    taken = batch(*events[:split])
    for event in events[split:]:
        taken.take(event, 0)
    for key, message in taken.messages.items():
        alone = fold(event for event in events if event.key == key)
        assert (message.api, message.direction, message.id) == key
        assert rows(message) == rows(alone)
        assert (message.fields().tag, message.fields().sender) == (alone.fields().tag, alone.fields().sender)
    for entry in taken.appended:
        before = [event for event in events[: events.index(entry.event)] if event.key == entry.event.key]
        expected = batch(*before).take(entry.event, 0)
        assert entry == expected


def fold_within(multiple: float, events: list[Event]) -> None:
    """Folds within this multiple of the reference work."""
    with cpu_at_most(multiple):
        message = fold(events)
        message.recipients()
        message.fields()


def test_folding_the_most_events_a_message_may_have_takes_little_time() -> None:
    fold_within(8, many(MAX_EVENTS))


def test_folding_the_most_recipients_a_message_may_have_takes_little_time() -> None:
    # equal, but not the same objects: as they come from the log
    events = [
        make_event(Status.SENT, time=number, to=numbers(0, MAX_RECIPIENTS), recipient=None) for number in range(1000)
    ]
    fold_within(25, events)


def test_folding_events_that_each_name_other_recipients_takes_little_time() -> None:
    whole = numbers(0, MAX_RECIPIENTS)
    events = [
        make_event(Status.SENT, time=number, to=(*whole[number:], *whole[:number]), recipient=whole[number])
        for number in range(1000)
    ]
    fold_within(40, events)
