"""The timeline of a message, what its events make noteworthy, and what became of an event at a sink."""

from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from pydantic import Field

from receiver.domain.events import Api, Event, Status, TagVerdict
from receiver.explanation.recipient import Recipients
from receiver.explanation.words import capitalised, counted, duration_text, on, recipient_text
from receiver.models.columns import Read, Time
from receiver.models.messages import MessageRead, RecipientRead
from receiver.models.sinks import PublicationRead
from receiver.providers import registry

# An event that is received later than this after it occurred is worth a note.
_LATE: Final = timedelta(minutes=1)
# Clocks of two hosts differ by this much without anything being wrong.
_CLOCK_DIFFERENCE: Final = timedelta(seconds=2)
PROOFS: Final = frozenset({Status.DELIVERED, Status.READ})

_VERDICTS: Final = {
    TagVerdict.FORGED: (
        "a tag with a wrong signature: no key of yours made it for these numbers."
        " Look the message up at Bandwidth before you trust this."
    ),
    TagVerdict.UNSIGNED: "a tag without a signature, so nothing proves that the tag is yours.",
    TagVerdict.MISSING: "no tag, so nothing proves that you sent the message.",
}


class TimelineEntry(Read):
    """One event, or the creation of the message (`event_id` is None), by both clocks.

    `type` is Bandwidth's word for the event, or `message-registered`. `occurred_at` is Bandwidth's clock, `received_at`
    ours; `clocks` says how far they are apart.
    """

    event_id: str | None
    type: str | None
    occurred_at: Time | None = Field(serialization_alias="time")
    received_at: Time | None
    sentence: str
    clocks: str


def timeline(message: MessageRead, events: Iterable[Event]) -> Iterable[TimelineEntry]:
    """The creation of a message and its events, in the order of their times."""
    if message.created_at is not None:
        yield TimelineEntry(
            event_id=None,
            type=None,
            occurred_at=message.created_at,
            received_at=None,
            sentence="Message created",
            clocks="Bandwidth's time",
        )
    by_time = sorted(events, key=lambda event: (event.occurred_at or event.received_at, event.order))
    for event in by_time:
        yield TimelineEntry(
            event_id=event.id,
            type=event.type,
            occurred_at=event.occurred_at,
            received_at=event.received_at,
            sentence=_what(event),
            clocks=_clocks(event),
        )


def _what(event: Event) -> str:
    """`Failed for +15550001: code 4720 (invalid-destination-address)`"""
    if event.is_registration:
        return "Registered by the sender"
    words = {
        Status.UNCONFIRMED: "Unconfirmed",
        Status.SENDING: "Sending",
        Status.RECEIVED: "Received",
    }.get(event.status, capitalised(event.status))
    what = f"{words} for {event.recipient}" if event.recipient else words
    if event.code is not None and (listed := registry.entry(event.api, event.code)):
        what = f"{what}: code {event.code} ({listed.name})"
    elif event.code:
        what = f"{what}: code {event.code}"
    if event.is_reconciled:
        return f"{what}, as Bandwidth answered when it was asked"
    return what if event.route == "primary" else f"{what}, by the {event.route} address"


def _clocks(event: Event) -> str:
    """How far Bandwidth's time of an event and our receipt of it are apart."""
    if event.is_registration:
        return "our time"
    if event.occurred_at is None:
        return "Bandwidth gives no time"
    delay = event.received_at - event.occurred_at
    if delay < timedelta(0):
        return f"received {duration_text(delay)} before Bandwidth's time"
    return f"received {duration_text(delay)} later"


def notes(of: Recipients) -> Iterable[str]:
    """What the reader of a message should know beside what became of it."""
    for row in of.message.recipients:
        if row.contradicted:
            yield _contradiction(of, row)
    yield from _tag_notes(of)
    yield from _code_notes(of)
    yield from _delivered_notes(of)
    yield from _time_notes(of)
    yield from _retention_notes(of)


def _contradiction(of: Recipients, row: RecipientRead) -> str:
    to, events = recipient_text(row), of.events_of(row)
    statuses = {event.status for event in events}
    was_failed = row.failed_at is not None or Status.FAILED in statuses
    was_delivered = bool(row.delivered_at or row.read_at or statuses & PROOFS)
    if any(event.contradicted for event in events) and not (was_failed and was_delivered):
        return (
            f"An event about {to} contradicts itself: its state says error, its deliveryState says delivered."
            " The deliveryState counts."
        )
    is_read = row.status == Status.READ
    proof = f"read{on(row.read_at)}" if is_read else f"delivered{on(row.delivered_at)}"
    both = f"Bandwidth reported the message to {to} both as {proof} and as failed{on(row.failed_at)}."
    return f"{both} {_winner(of, row)}"


def _winner(of: Recipients, row: RecipientRead) -> str:
    if row.status == Status.READ:
        return "It was read, so the failure does not count."
    if row.status == Status.DELIVERED:
        return "Delivered counts, because the setting RECEIVER_FINAL_CONFLICT is delivered-wins."
    if of.is_group and of.message.api is Api.V2:
        return (
            "The failure counts, whichever came first:"
            " for an invalid number in a group Bandwidth is documented to report delivered too."
        )
    return "The failure counts, whichever came first."


def _tag_notes(of: Recipients) -> Iterable[str]:
    if of.is_inbound:
        return
    verdicts = Counter(event.tag_verdict for event in of.events)
    total = len(of.events)
    for verdict, sentence in _VERDICTS.items():
        if count := verdicts[verdict]:
            subject = "The event has" if total == 1 else f"{count} of {total} events have"
            yield f"{subject} {sentence}"
        elif not total and of.message.tag_verdict == verdict:
            yield f"The message has {sentence}"


def _code_notes(of: Recipients) -> Iterable[str]:
    codes = {code.number: code for row in of.message.recipients if (code := of.code(row))}
    for number, code in sorted(codes.items()):
        if code.listed and code.listed.notes:
            yield f"About code {number}: {code.listed.notes.rstrip('.')}."


def _delivered_notes(of: Recipients) -> Iterable[str]:
    message = of.message
    if not any(row.status == Status.DELIVERED for row in message.recipients):
        return
    if message.api is Api.V1:
        yield "Delivered means that the carrier took the message; in v1 it says nothing about the phone."
    elif (message.channel or "").upper() == "MMS" or message.media or of.is_group:
        yield (
            "Delivered means at least that Bandwidth's own MMS centre has the message;"
            " only with MMS receipts does it mean more."
        )
    elif (message.channel or "SMS").upper() == "SMS":
        yield (
            "Delivered means that the carrier took the message. From toll-free numbers and short codes it means"
            " that the phone has it, where the carrier reports that."
        )


def _time_notes(of: Recipients) -> Iterable[str]:
    if of.message.api is Api.V1 and of.events:
        yield "Version 1 of the API gives no time of an event: the times of events are when we received them."
    delays = [(event, event.received_at - event.occurred_at) for event in of.events if event.occurred_at]
    late = [(event, delay) for event, delay in delays if delay > _LATE]
    if late:
        event, delay = max(late, key=lambda item: item[1])
        yield (
            f"{_events_text(len(late), len(of.events))} came late: {event.type} was received"
            f" {duration_text(delay)} after it happened."
            " Bandwidth repeats a callback for up to 24 hours until it is answered."
        )
    if early := [-delay for _, delay in delays if -delay > _CLOCK_DIFFERENCE]:
        ahead = duration_text(max(early))
        yield f"Bandwidth's clock and ours differ: an event was received {ahead} before its time."
    if count := _out_of_order(of.events):
        yield (
            f"{_events_text(count, len(of.events))} came out of order."
            " The status depends on what the events say, not on when they came."
        )


def _retention_notes(of: Recipients) -> Iterable[str]:
    message, events = of.message, of.events
    if not events and all(row.status == Status.UNKNOWN for row in message.recipients):
        yield "No callback about this message has come."
    elif not events:
        yield "The events of this message are no longer stored: retention has deleted them."
    elif min(event.received_at for event in of.all_events) > message.first_received_at:
        yield "The earlier events of this message are no longer stored: retention has deleted them."


def _out_of_order(events: Iterable[Event]) -> int:
    """How many events were received after one that occurred later."""
    timed = [(event.received_at, event.occurred_at) for event in events if event.occurred_at is not None]
    count, latest = 0, None
    for _, occurred_at in sorted(timed):
        if latest is not None and occurred_at < latest:
            count += 1
        else:
            latest = occurred_at
    return count


def _events_text(count: int, total: int) -> str:
    return "The event" if total == 1 else f"{count} of {total} events"


def explain_publication(publication: PublicationRead, *, is_configured: bool) -> str:
    """What became of one event at one sink; `is_configured`: the settings still have the sink."""
    attempts = counted(str(publication.attempts), "attempt")
    match publication.state:
        case "published":
            return f"published{on(publication.last_at)} ({attempts})"
        case "dead_letter":
            held = "; later events of the message wait for an operator" if publication.is_held else ""
            return (
                f"dead letter {publication.dead_letter_id}{on(publication.last_at)}"
                f" after {attempts}, {publication.reason}{held}"
            )
        case "retry":
            due = f"; it is due{on(publication.due_at)}" if publication.due_at else ""
            tried = f" after {attempts}" if publication.attempts else ""
            reason = f", {publication.reason}" if publication.reason else ""
            return f"waits for its next attempt{tried}{reason}{due}"
        case "parked":
            return "waits behind an earlier event of the message"
        case "waiting":
            return f"not sent yet{_why_waiting(publication, is_configured=is_configured)}"
        case "passed" if publication.attempts:
            return f"published, or dropped by an operator, after {attempts} that failed"
        case _:
            return "published, or left out by the filter; no attempt is recorded"


def _why_waiting(publication: PublicationRead, *, is_configured: bool) -> str:
    if not is_configured:
        return ": the sink is not in the settings"
    if publication.is_paused:
        return ": the sink is paused"
    return ": the sink is down" if publication.is_down else ""
