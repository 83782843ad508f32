"""The explanation of a message in words: the sentences of each case, and that none contradicts the status."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.domain.delivery import FinalConflict
from receiver.domain.events import REGISTERED, Api, Callback, Event, Failure, Status, TagVerdict
from receiver.domain.message import fold
from receiver.explanation.message import Explanation, explain
from receiver.explanation.recipient import Charged
from receiver.explanation.timeline import explain_publication
from receiver.explanation.words import duration_text, time_text
from receiver.models.messages import MessageRead, RecipientRead
from receiver.models.sinks import PublicationRead
from receiver.providers.sends import event_of, normalized
from receiver.storage.bulk import Spelling
from receiver.storage.messages import DELIVERY_COLUMNS, MESSAGE_COLUMNS, rows_of
from tests.factories import at, make_event
from tests.unit.test_delivery import event_sets

ONE, TWO, THREE = "+15550001", "+15550002", "+15550003"
AS_THEY_ARE = Spelling(time=lambda time: time, flag=lambda flag: flag)
NOW = at(180)


def view_of(*events: Event, conflict: FinalConflict = FinalConflict.FAILED_WINS) -> MessageRead:
    """The message that events make, as the status table shows it."""
    rows = rows_of(fold(events, conflict), AS_THEY_ARE)
    message = dict(zip(MESSAGE_COLUMNS, rows.message, strict=True))
    listed = [dict(zip(DELIVERY_COLUMNS, row, strict=True)) for row in rows.deliveries.values()]
    message |= {
        "numbers": json.loads(message["recipients"]),
        "media": json.loads(message["media"]) if message["media"] else None,
        "recipients": [RecipientRead.model_validate(row) for row in listed],
    }
    return MessageRead.model_validate(message)


def explained(*events: Event, now: datetime = NOW, conflict: FinalConflict = FinalConflict.FAILED_WINS) -> Explanation:
    return explain(view_of(*events, conflict=conflict), events, now)


def failed(code: int | None, **more: Any) -> Event:
    return make_event(Status.FAILED, code=code, **{"failure": Failure.NETWORK, "time": 5, "received": 6, **more})


def v1(status: Status, **more: Any) -> Event:
    return make_event(status, **{"api": Api.V1, "time": None, "type": "sms", "received": 7, **more})


def group(status: Status, recipient: str | None, **more: Any) -> Event:
    return make_event(status, **{"recipient": recipient, "to": (ONE, TWO, THREE), **more})


# --- failed


def test_failure_at_the_carrier_says_when_why_retry_and_charge() -> None:
    assert explained(failed(4720)).summary == (
        "The message to +15550001 failed on 2026-01-01 00:00:05 UTC: the carrier refused it."
        " Code 4720 (invalid-destination-address): Carrier says the destination is invalid or not enabled (for example"
        " a landline); on T-Mobile also a user block of toll-free and short code traffic."
        " Sending it again gives the same result, according to Bandwidth. Bandwidth charges for it."
    )


def test_failure_by_opt_out_of_the_recipient() -> None:
    explanation = explained(failed(4775))
    assert explanation.why == (
        "Code 4775 (destination-rejected-due-to-user-opt-out): Carrier reports that the recipient opted out."
    )
    assert explanation.charged is Charged.YES


def test_refusal_by_bandwidth_is_not_charged() -> None:
    explanation = explained(failed(4404, failure=Failure.REFUSED))
    assert explanation.headline == ("The message to +15550001 failed on 2026-01-01 00:00:05 UTC: Bandwidth refused it.")
    assert (explanation.charged, explanation.charge) == (Charged.NO, "Bandwidth does not charge for it.")


def test_failure_inside_bandwidth_may_be_retried() -> None:
    explanation = explained(failed(5100))
    assert explanation.headline.endswith(": it failed at Bandwidth.")
    assert explanation.advice == "Sending it again may help, according to Bandwidth."


def test_failure_at_the_carrier_with_a_retry_limit_of_one() -> None:
    explanation = explained(failed(5600))
    assert explanation.headline.endswith(": it failed at the carrier.")
    assert explanation.advice == "Sending it again may help, but only once, according to Bandwidth."


def test_code_whose_billing_no_document_states() -> None:
    explanation = explained(failed(4476))
    assert explanation.charged is Charged.UNKNOWN
    assert explanation.charge == "Bandwidth's documents do not say whether it is charged."


def test_notes_of_the_code_catalogue_are_notes() -> None:
    assert (
        "About code 4780: Named p2p-volume-violation, for any carrier, until 2022-06-24. The limit is daily, so a retry"
        " on another day can succeed although the class rule says no."
    ) in explained(failed(4780)).notes


def test_unlisted_code_is_judged_by_its_digits() -> None:
    assert explained(failed(4799)).summary == (
        "The message to +15550001 failed on 2026-01-01 00:00:05 UTC: the carrier refused it."
        " Code 4799 is not in Bandwidth's tables; by its digits, the carrier refused it."
        " Sending it again gives the same result, judged by the digits of the code."
        " Bandwidth charges for it, judged by the digits of the code."
    )


def test_unlisted_code_whose_digits_say_nothing() -> None:
    assert explained(failed(12)).summary == (
        "The message to +15550001 failed on 2026-01-01 00:00:05 UTC."
        " Code 12 is not in Bandwidth's tables; its digits say nothing more."
        " Bandwidth's documents do not say whether sending it again helps."
        " Bandwidth's documents do not say whether it is charged."
    )


@pytest.mark.parametrize("code", [None, 0])
def test_failure_without_a_code(code: int | None) -> None:
    assert explained(failed(code)).summary == (
        "The message to +15550001 failed on 2026-01-01 00:00:05 UTC. Bandwidth gave no code for it."
        " It is not known whether sending it again helps. Without a code it is not known whether Bandwidth charges."
    )


def test_description_of_the_event_is_quoted_where_it_says_more_than_the_name() -> None:
    assert (explained(failed(4432, description="forbidden to country")).why or "").endswith(
        ' Bandwidth\'s own text: "forbidden to country".'
    )
    assert "own text" not in (explained(failed(4432, description="rejected forbidden country")).why or "")
    assert len(explained(failed(4432, description="x" * 9_000)).why or "") < 500


def test_v1_failure_has_no_time_of_its_own() -> None:
    explanation = explained(v1(Status.FAILED, code=720, state="sent", delivery_state="not-delivered"))
    assert explanation.summary == (
        "The message to +15550001 failed, as Bandwidth reported on 2026-01-01 00:00:07 UTC: the carrier refused it."
        " Code 720 (Invalid Destination Address): The destination number is not valid."
        " Bandwidth's documents do not say whether sending it again helps."
        " Bandwidth's documents do not say whether it is charged."
    )
    assert (
        "Version 1 of the API gives no time of an event: the times of events are when we received them."
    ) in explanation.notes


def test_v1_failure_with_the_code_of_success_names_no_error() -> None:
    explanation = explained(v1(Status.FAILED, code=0, state="error"))
    assert explanation.why == "Its code 0 names no error."
    assert explanation.advice == "Bandwidth's documents do not say whether sending it again helps."


# --- unconfirmed


def test_unconfirmed_is_no_failure_and_a_retry_may_reach_the_recipient_twice() -> None:
    explanation = explained(make_event(Status.UNCONFIRMED, code=9902, type="message-failed", time=5))
    assert explanation.summary == (
        "It is not known whether the message reached +15550001, as Bandwidth reported on 2026-01-01 00:00:05 UTC."
        " Code 9902 (delivery-receipt-expired): No receipt came within Bandwidth's wait of two hours. The message may"
        " have been received. Sending it again may reach the recipient twice. Bandwidth charges for it."
    )


def test_v1_unconfirmed() -> None:
    explanation = explained(v1(Status.UNCONFIRMED, code=902, state="sent", delivery_state="not-delivered"))
    assert explanation.why == "Code 902 (Message Expired): The message expired before a result was known."
    assert explanation.charged is Charged.UNKNOWN


# --- delivered, read, received


def test_delivered_needs_no_retry_and_says_what_it_means() -> None:
    explanation = explained(make_event(time=5, received=6))
    assert explanation.summary == (
        "The message to +15550001 was delivered on 2026-01-01 00:00:05 UTC. There is no need to send it again."
        " Whether it is charged is not known: Bandwidth's documents state charges for error codes only."
    )
    [note] = explanation.notes
    assert note == (
        "Delivered means that the carrier took the message. From toll-free numbers and short codes it means that the"
        " phone has it, where the carrier reports that."
    )


def test_delivered_mms_may_have_reached_no_more_than_bandwidth() -> None:
    [note] = explained(make_event(fields={"channel": "MMS"})).notes
    assert note.startswith("Delivered means at least that Bandwidth's own MMS centre has the message")


def test_delivered_rcs_message_has_no_note_on_carriers() -> None:
    assert explained(make_event(fields={"channel": "RBM"})).notes == ()


def test_v1_delivered_is_handed_to_the_carrier() -> None:
    explanation = explained(v1(Status.DELIVERED, code=0, state="sent", delivery_state="delivered"))
    assert explanation.headline == (
        "The message to +15550001 was delivered, as Bandwidth reported on 2026-01-01 00:00:07 UTC."
    )
    assert (
        "Delivered means that the carrier took the message; in v1 it says nothing about the phone." in explanation.notes
    )


def test_read_message_gives_the_time_of_reading() -> None:
    explanation = explained(make_event(Status.READ, time=20, read_at=at(15)))
    assert explanation.headline == "The message to +15550001 was read on 2026-01-01 00:00:15 UTC."
    assert explanation.advice == "There is no need to send it again."


def test_inbound_message_says_who_wrote_to_whom() -> None:
    explanation = explained(make_event(Status.RECEIVED, time=5, to=(ONE, TWO), fields={"created_at": at(4)}))
    assert explanation.headline == (
        "A message from +15559999 to +15550001, +15550002 was received on 2026-01-01 00:00:05 UTC."
    )
    assert explanation.origin == "Created on 2026-01-01 00:00:04 UTC."
    assert (explanation.why, explanation.advice, explanation.charged) == (None, None, Charged.UNKNOWN)


def test_v1_inbound_message() -> None:
    explanation = explained(v1(Status.RECEIVED, state="received"))
    assert explanation.headline == (
        "A message from +15559999 to +15550001 was received, as Bandwidth reported on 2026-01-01 00:00:07 UTC."
    )


def test_origin_gives_creation_sender_and_tag() -> None:
    explanation = explained(make_event(fields={"created_at": at(-1), "tag": "order 4711"}))
    assert explanation.origin == 'Created on 2025-12-31 23:59:59 UTC, from +15559999, tag "order 4711".'


def test_lines_are_what_and_why_then_what_to_do_then_the_origin() -> None:
    explanation = explained(failed(4721))
    assert explanation.lines == (
        f"{explanation.headline} {explanation.why}",
        "Sending it again gives the same result, according to Bandwidth. Bandwidth charges for it.",
        "From +15559999.",
    )


# --- pending


@pytest.mark.parametrize(
    ("status", "headline"),
    [
        (Status.QUEUED, "The message to +15550001 has been queued at Bandwidth since 2026-01-01 00:00:00 UTC."),
        (Status.SENDING, "The message to +15550001 has been on its way to the carrier since 2026-01-01 00:00:00 UTC."),
        (
            Status.SENT,
            "The message to +15550001 was sent on 2026-01-01 00:00:00 UTC; whether it arrived is not known.",
        ),
    ],
)
def test_pending_within_two_hours_is_normal(status: Status, headline: str) -> None:
    explanation = explained(make_event(status))
    assert explanation.headline == headline
    assert explanation.why == (
        "It has been pending for 3 minutes, since 2026-01-01 00:00:00 UTC."
        " This is normal: Bandwidth waits up to two hours for a receipt of the carrier."
    )
    assert explanation.advice == "Wait before you send it again. Sending it again may reach the recipient twice."
    assert explanation.charge == "Whether Bandwidth charges for it is not known yet."


def test_pending_for_longer_than_two_hours_is_longer_than_normal() -> None:
    explanation = explained(make_event(Status.SENDING), now=at(0) + timedelta(hours=3, minutes=5))
    assert explanation.why == (
        "It has been pending for 3 hours 5 minutes, since 2026-01-01 00:00:00 UTC."
        " This is longer than normal: Bandwidth waits two hours for a receipt of the carrier, then reports 9902."
        " A final event may still come, because Bandwidth repeats a callback for up to 24 hours."
        " The application's settings may leave final events out, and a carrier may send none for an MMS."
    )
    assert (explanation.advice or "").startswith("Look the message up at Bandwidth before you send it again.")


def test_pending_for_days_is_not_likely_to_become_final() -> None:
    explanation = explained(make_event(Status.SENDING), now=at(0) + timedelta(days=3))
    assert "No final event is likely to come any more" in (explanation.why or "")


def test_pending_since_a_time_in_the_future_is_pending_for_no_time() -> None:
    assert "pending for 0 seconds" in (explained(make_event(Status.SENDING), now=at(-60)).why or "")


def test_v1_message_without_receipt_requested_expects_none() -> None:
    explanation = explained(v1(Status.SENT, state="sent"))
    assert explanation.headline == (
        "The message to +15550001 was sent, as Bandwidth reported on 2026-01-01 00:00:07 UTC;"
        " whether it arrived is not known."
    )
    assert (explanation.why or "").endswith(
        "No delivery receipt is expected, because none was requested: this may be the last event."
    )


def test_v1_message_waiting_for_its_receipt() -> None:
    explanation = explained(v1(Status.SENT, state="sent", delivery_state="waiting"))
    assert (explanation.why or "").endswith(
        "A delivery receipt is expected. Bandwidth's documents do not say how long it may take."
    )


# --- groups


def test_group_delivered_to_all() -> None:
    explanation = explained(*(group(Status.DELIVERED, number, time=5) for number in (ONE, TWO, THREE)))
    assert explanation.headline == "Delivered to all 3 recipients on 2026-01-01 00:00:05 UTC."
    assert explanation.advice == "There is no need to send it again."


def test_group_delivered_in_part_names_who_failed_and_why() -> None:
    explanation = explained(
        group(Status.DELIVERED, ONE, time=5),
        group(Status.DELIVERED, TWO, time=6),
        group(Status.FAILED, THREE, time=7, code=4720),
    )
    assert explanation.headline == ("Delivered to 2 of 3 recipients; failed for 1: +15550003 (code 4720).")
    assert explanation.advice == (
        "Sending it again to all recipients would reach some of them twice: see each recipient."
    )
    assert (explanation.why, explanation.charged, explanation.charge) == (None, None, None)
    assert [one.headline for one in explanation.recipients] == [
        "The message to +15550001 was delivered on 2026-01-01 00:00:05 UTC.",
        "The message to +15550002 was delivered on 2026-01-01 00:00:06 UTC.",
        "The message to +15550003 failed on 2026-01-01 00:00:07 UTC: the carrier refused it.",
    ]


def test_group_still_pending_for_some() -> None:
    explanation = explained(group(Status.DELIVERED, ONE), group(Status.FAILED, TWO))
    assert explanation.headline == (
        "Delivered to 1 of 3 recipients; failed for 1: +15550002; nothing reported for 1: +15550003."
    )
    assert (explanation.why or "").startswith("It has been pending for 1 of 3 recipients for 3 minutes, since")


def test_group_failed_for_all_with_one_code_says_why_once() -> None:
    explanation = explained(*(group(Status.FAILED, number, code=4750) for number in (ONE, TWO, THREE)))
    assert explanation.headline == "Failed for all 3 recipients on 2026-01-01 00:00:00 UTC."
    assert (explanation.why or "").startswith("Code 4750 (destination-rejected-message):")
    assert explanation.charged is Charged.YES


def test_event_without_recipient_counts_for_those_that_no_event_names() -> None:
    explanation = explained(group(Status.FAILED, ONE, time=1), group(Status.DELIVERED, None, time=2))
    assert [one.status for one in explanation.recipients] == ["failed", "delivered", "delivered"]
    assert explanation.headline == "Delivered to 2 of 3 recipients; failed for 1: +15550001."


def test_headline_of_a_large_group_names_five_numbers() -> None:
    numbers = tuple(f"+1555{number:04}" for number in range(12))
    events = [make_event(Status.FAILED, recipient=number, to=numbers) for number in numbers[1:]]
    headline = explained(make_event(recipient=numbers[0], to=numbers), *events).headline
    assert headline == (
        "Delivered to 1 of 12 recipients; failed for 11: +15550001, +15550002, +15550003, +15550004, +15550005"
        " and 6 more."
    )


# --- contradictions


def contradicting(**more: Any) -> tuple[Event, Event]:
    return failed(4720, time=5, **more), make_event(time=6, **more)


def test_delivered_and_failed_for_one_recipient_is_explained() -> None:
    explanation = explained(*contradicting())
    assert explanation.headline.startswith("The message to +15550001 failed on 2026-01-01 00:00:05 UTC")
    assert explanation.notes[0] == (
        "Bandwidth reported the message to +15550001 both as delivered on 2026-01-01 00:00:06 UTC and as failed on"
        " 2026-01-01 00:00:05 UTC. The failure counts, whichever came first."
    )


def test_contradiction_in_a_group_is_a_documented_behaviour() -> None:
    events = [*contradicting(to=(ONE, TWO)), make_event(recipient=TWO, to=(ONE, TWO))]
    assert (
        explained(*events)
        .notes[0]
        .endswith(
            "The failure counts, whichever came first: for an invalid number in a group Bandwidth is documented to"
            " report delivered too."
        )
    )


def test_delivered_wins_over_network_failure_by_a_setting() -> None:
    explanation = explained(*contradicting(), conflict=FinalConflict.DELIVERED_WINS)
    assert explanation.headline == "The message to +15550001 was delivered on 2026-01-01 00:00:06 UTC."
    assert explanation.notes[0].endswith(
        "Delivered counts, because the setting RECEIVER_FINAL_CONFLICT is delivered-wins."
    )


def test_failure_of_a_message_that_was_read_does_not_count() -> None:
    explanation = explained(failed(4720), make_event(Status.READ, time=9))
    assert explanation.notes[0] == (
        "Bandwidth reported the message to +15550001 both as read on 2026-01-01 00:00:09 UTC and as failed on"
        " 2026-01-01 00:00:05 UTC. It was read, so the failure does not count."
    )


def test_v1_event_that_contradicts_itself() -> None:
    event = v1(Status.DELIVERED, state="error", delivery_state="delivered", contradicted=True)
    assert explained(event).notes[0] == (
        "An event about +15550001 contradicts itself: its state says error, its deliveryState says delivered."
        " The deliveryState counts."
    )


# --- tags


@pytest.mark.parametrize(
    ("verdict", "note"),
    [
        (TagVerdict.FORGED, "The event has a tag with a wrong signature: no key of yours made it for these numbers."),
        (TagVerdict.UNSIGNED, "The event has a tag without a signature, so nothing proves that the tag is yours."),
        (TagVerdict.MISSING, "The event has no tag, so nothing proves that you sent the message."),
    ],
)
def test_tag_verdict_that_is_not_valid_is_a_note(verdict: TagVerdict, note: str) -> None:
    assert any(one.startswith(note) for one in explained(make_event(tag_verdict=verdict)).notes)


@pytest.mark.parametrize("verdict", [TagVerdict.VALID, TagVerdict.UNCHECKED, TagVerdict.NOT_APPLICABLE])
def test_tag_verdict_without_fault_is_no_note(verdict: TagVerdict) -> None:
    assert not [note for note in explained(make_event(tag_verdict=verdict)).notes if "tag" in note]


def test_forged_tag_of_one_event_among_valid_ones() -> None:
    events = make_event(tag_verdict=TagVerdict.VALID), failed(None, tag_verdict=TagVerdict.FORGED)
    assert any(note.startswith("1 of 2 events have a tag with a wrong signature") for note in explained(*events).notes)


# --- the timeline


def test_timeline_shows_both_clocks_and_how_far_they_are_apart() -> None:
    explanation = explained(
        failed(4720, time=5, received=5.4, fields={"created_at": at(0)}),
        make_event(Status.SENDING, time=1, received=3),
    )
    assert [(entry.occurred_at, entry.received_at, entry.sentence, entry.clocks) for entry in explanation.timeline] == [
        (at(0), None, "Message created", "Bandwidth's time"),
        (at(1), at(3), "Sending for +15550001", "received 2 seconds later"),
        (
            at(5),
            at(5.4),
            "Failed for +15550001: code 4720 (invalid-destination-address)",
            "received 0.4 seconds later",
        ),
    ]


def test_timeline_of_v1_says_that_bandwidth_gives_no_time() -> None:
    [entry] = explained(v1(Status.SENT, state="sent")).timeline
    assert (entry.occurred_at, entry.received_at, entry.clocks) == (None, at(7), "Bandwidth gives no time")


def test_timeline_says_that_an_event_came_by_the_fallback_address() -> None:
    [entry] = explained(make_event(route="fallback")).timeline
    assert entry.sentence == "Delivered for +15550001, by the fallback address"


def test_timeline_says_that_bandwidth_was_asked() -> None:
    [entry] = explained(make_event(route="reconciled", time=None)).timeline
    assert entry.sentence == "Delivered for +15550001, as Bandwidth answered when it was asked"
    assert entry.clocks == "Bandwidth gives no time"


def test_timeline_says_where_our_clock_is_behind() -> None:
    explanation = explained(make_event(time=10, received=0))
    assert explanation.timeline[0].clocks == "received 10 seconds before Bandwidth's time"
    assert "Bandwidth's clock and ours differ: an event was received 10 seconds before its time." in explanation.notes


def test_late_event_is_a_note() -> None:
    explanation = explained(make_event(Status.SENDING), make_event(time=5, received=7_205))
    assert (
        "1 of 2 events came late: message-delivered was received 2 hours after it happened."
        " Bandwidth repeats a callback for up to 24 hours until it is answered."
    ) in explanation.notes


def test_events_out_of_order_are_a_note() -> None:
    explanation = explained(make_event(time=5, received=6), make_event(Status.SENDING, time=1, received=7))
    assert (
        "1 of 2 events came out of order. The status depends on what the events say, not on when they came."
    ) in explanation.notes


# --- retention


def test_status_remains_where_retention_has_deleted_the_events() -> None:
    view = view_of(failed(4720))
    explanation = explain(view, [], NOW)
    assert explanation.headline == (
        "The message to +15550001 failed on 2026-01-01 00:00:05 UTC: the carrier refused it."
    )
    assert explanation.notes == ("The events of this message are no longer stored: retention has deleted them.",)
    assert explanation.timeline == ()


def test_v1_message_without_stored_events_gives_the_last_receipt() -> None:
    view = view_of(v1(Status.DELIVERED, state="sent", delivery_state="delivered"))
    assert explain(view, [], NOW).headline == (
        "The message to +15550001 was delivered, as Bandwidth reported on 2026-01-01 00:00:07 UTC."
    )


def test_earlier_events_deleted_by_retention_are_a_note() -> None:
    first, last = make_event(Status.SENDING, received=1), make_event(time=5, received=6)
    notes = explain(view_of(first, last), [last], NOW).notes
    assert "The earlier events of this message are no longer stored: retention has deleted them." in notes


# --- sinks


def publication(state: Any, **more: Any) -> PublicationRead:
    defaults = {"sink": "crm", "event_id": "1", "status": "failed", "recipient": ONE, "attempts": 2, "last_at": at(7)}
    return PublicationRead(state=state, **{**defaults, **more})


@pytest.mark.parametrize(
    ("view", "sentence"),
    [
        (publication("published"), "published on 2026-01-01 00:00:07 UTC (2 attempts)"),
        (
            publication("dead_letter", reason="refused: status 422", dead_letter_id=17),
            "dead letter 17 on 2026-01-01 00:00:07 UTC after 2 attempts, refused: status 422",
        ),
        (
            publication("dead_letter", reason="refused: no", dead_letter_id=17, attempts=1, is_held=True, last_at=None),
            "dead letter 17 after 1 attempt, refused: no; later events of the message wait for an operator",
        ),
        (
            publication("retry", reason="status 500", due_at=at(60)),
            "waits for its next attempt after 2 attempts, status 500; it is due on 2026-01-01 00:01:00 UTC",
        ),
        (publication("retry", attempts=0), "waits for its next attempt"),
        (publication("parked"), "waits behind an earlier event of the message"),
        (publication("waiting"), "not sent yet"),
        (publication("waiting", is_paused=True, is_down=True), "not sent yet: the sink is paused"),
        (publication("waiting", is_down=True), "not sent yet: the sink is down"),
        (publication("passed"), "published, or dropped by an operator, after 2 attempts that failed"),
        (publication("passed", attempts=0), "published, or left out by the filter; no attempt is recorded"),
    ],
)
def test_publication_to_a_sink_is_explained(view: PublicationRead, sentence: str) -> None:
    assert explain_publication(view, is_configured=True) == sentence


def test_event_that_waits_for_a_sink_the_settings_have_no_more() -> None:
    sentence = explain_publication(publication("waiting"), is_configured=False)
    assert sentence == "not sent yet: the sink is not in the settings"


# --- times and durations


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds"),
        (0.44, "0.4 seconds"),
        (1, "1 second"),
        (9.97, "10 seconds"),
        (59.6, "1 minute"),
        (185, "3 minutes 5 seconds"),
        (3_660, "1 hour 1 minute"),
        (7_200, "2 hours"),
        (90_000, "1 day 1 hour"),
        (-2, "2 seconds"),
    ],
)
def test_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration_text(timedelta(seconds=seconds)) == text


def test_time_is_in_utc() -> None:
    assert time_text(datetime(2026, 1, 1, 12, 0, 5, 999_999, tzinfo=UTC)) == "2026-01-01 12:00:05 UTC"


# --- any events

SAYS = {
    "unknown": "Bandwidth has reported nothing about the message to",
    "queued": "has been queued at Bandwidth",
    "sending": "has been on its way to the carrier",
    "sent": "was sent",
    "unconfirmed": "It is not known whether the message reached",
    "delivered": "was delivered",
    "failed": " failed",
    "read": "was read",
    "received": "was received",
}
ENDS = {
    "unconfirmed": "Sending it again may reach the recipient twice.",
    "delivered": "There is no need to send it again.",
    "read": "There is no need to send it again.",
}


@given(
    event_sets,
    st.booleans(),
    st.sampled_from(FinalConflict),
    st.sampled_from([timedelta(), timedelta(hours=3), timedelta(days=9), timedelta(days=-9)]),
)
def test_no_explanation_contradicts_the_status(
    events: list[Event], are_stored: bool, conflict: FinalConflict, later: timedelta
) -> None:
    view = view_of(*events, conflict=conflict)
    explanation = explain(view, events if are_stored else [], at(0) + later)
    rows = zip(explanation.recipients, view.recipients, strict=True)
    for one, row in rows:
        assert (one.recipient, one.status) == (row.recipient, row.status)
        assert [status for status, words in SAYS.items() if words in one.headline] == [row.status]
        assert one.advice == ENDS.get(row.status, one.advice)
        assert one.summary.endswith((".", "…"))
    assert len(explanation.timeline) == (len(events) if are_stored else 0) + (view.created_at is not None)
    assert bool(explanation.why and "pending" in explanation.why) == any(
        row.status in ("unknown", "queued", "sending", "sent") for row in view.recipients
    )
    assert any("both as" in note or "contradicts itself" in note for note in explanation.notes) == view.contradicted
    shared = {one.charged for one in explanation.recipients}
    assert explanation.charged == (shared.pop() if len(shared) == 1 else None)


# --- registered sends


def registered(**send: Any) -> Event:
    entry = Callback(id="entry", received_at=at(3), api=Api.V2, route=REGISTERED, method="POST")
    return event_of(normalized({"id": "1661365814859loidf7mcwd4qacn7", "to": [ONE], **send}), entry)


def test_registered_message_of_which_nothing_was_heard() -> None:
    explanation = explained(registered())
    assert explanation.headline == (
        "The message to +15550001 was registered on 2026-01-01 00:00:03 UTC; nothing was heard of it yet."
    )
    assert [(entry.type, entry.sentence, entry.clocks) for entry in explanation.timeline] == [
        ("message-registered", "Registered by the sender", "our time")
    ]
    assert explanation.notes == ("No callback about this message has come.",)


def test_registered_message_of_v1_says_whether_a_callback_is_expected() -> None:
    explained_v1 = explained(registered(api="v1", callbackUrl="https://example.com", text="x"))
    assert "A callback is expected." in (explained_v1.why or "")
    explained_v1 = explained(registered(api="v1", text="x"))
    assert "No callback is expected, because the message was sent without a callback URL." in (explained_v1.why or "")


def test_registration_is_no_event_that_the_notes_count() -> None:
    explanation = explained(registered(), make_event(Status.DELIVERED, time=4, received=600))
    assert explanation.headline == "The message to +15550001 was delivered on 2026-01-01 00:00:04 UTC."
    assert any(note.startswith("The event came late") for note in explanation.notes)
    assert not any("no longer stored" in note for note in explanation.notes)
