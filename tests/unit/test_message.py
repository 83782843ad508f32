"""The message: its recipients, its fields, its summary, and the change that an event makes."""

import pytest

from receiver.domain.events import Api, Direction, Status, TagVerdict
from receiver.domain.message import Message, fold, roll_up
from receiver.providers import states
from tests.factories import at, make_event
from tests.rows import rows


def test_a_number_that_is_nothing_but_a_plus_goes_on_where_no_number_was_known() -> None:
    message = Message(Api.V2, Direction.OUT, "m1")
    message.add(make_event(Status.QUEUED, recipient=None, to=()))
    change = message.add(make_event(Status.SENT, recipient="+", to=()))
    assert change.before is not None
    assert (change.before.status, change.after.status) == (Status.QUEUED, Status.SENT)


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
