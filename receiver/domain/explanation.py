"""Explains a message in words: what became of it, when, why, whether sending it again helps, whether it is charged.

`explain` is a pure function of a message, its events, the code catalogue and the time. The sentences say no more than
Bandwidth's documents do: where the documents are silent, the sentence says that it is not known.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, Protocol, TypeVar

from receiver.domain.events import Api, Direction, Event, Status, TagVerdict, number_key
from receiver.domain.queries import PublicationView
from receiver.models.messages import MessageRead, RecipientRead

Value = TypeVar("Value")

# Bandwidth waits two hours for a receipt and then reports 9902. It repeats a callback for 24 hours until a 2xx.
RECEIPT_WAIT: Final = timedelta(hours=2)
CALLBACK_REPEATS: Final = timedelta(hours=24)
# An event that is received later than this after it occurred is worth a note.
_LATE: Final = timedelta(minutes=1)
# Clocks of two hosts differ by this much without anything being wrong.
_CLOCK_DIFFERENCE: Final = timedelta(seconds=2)
_LISTED_NUMBERS: Final = 5
_QUOTED_CHARACTERS: Final = 200


class CodeMeaning(Protocol):
    """What a delivery code means; `retryable` and `billable` are None where no document says."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def category(self) -> str: ...
    @property
    def retryable(self) -> bool | None: ...
    @property
    def billable(self) -> bool | None: ...


class ListedCode(CodeMeaning, Protocol):
    """A code that Bandwidth's documents list; `retry_limit` is how often a retry makes sense."""

    @property
    def retry_limit(self) -> int | None: ...
    @property
    def notes(self) -> str | None: ...


class Codes(Protocol):
    """The code catalogue."""

    def entry(self, api: Api, code: int, /) -> ListedCode | None:
        """The code as the documents list it, if they do."""

    def reason(self, api: Api, code: int, /) -> CodeMeaning:
        """The meaning of a code, judged by its digits where no document lists it."""


class Charged(StrEnum):
    """Whether Bandwidth charges for a message, by its documents."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipientExplanation:
    """What became of a message to one recipient (None where the number is not known).

    `why` and `advice` are None where there is nothing to say.
    """

    recipient: str | None
    status: str
    headline: str
    why: str | None
    advice: str | None
    charged: Charged
    charge: str

    @property
    def summary(self) -> str:
        """All of it as one paragraph."""
        return _paragraph(self.headline, self.why, self.advice, self.charge)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEntry:
    """One event, or the creation of the message (`event_id` is None), by both clocks.

    `type` is Bandwidth's word for the event. `occurred_at` is Bandwidth's clock, `received_at` ours; `clocks` says how
    far they are apart.
    """

    event_id: str | None
    type: str | None
    occurred_at: datetime | None
    received_at: datetime | None
    sentence: str
    clocks: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A message in words. `why`, `advice`, `charged` and `charge` are None where the recipients have different ones."""

    headline: str
    origin: str | None
    why: str | None
    advice: str | None
    charged: Charged | None
    charge: str | None
    recipients: tuple[RecipientExplanation, ...]
    timeline: tuple[TimelineEntry, ...]
    notes: tuple[str, ...]

    @property
    def summary(self) -> str:
        """What became of the message, as one paragraph."""
        return _paragraph(self.headline, self.why, self.advice, self.charge)

    @property
    def lines(self) -> tuple[str, ...]:
        """The same as lines: what and why, what to do and what it costs, where the message came from."""
        lines = (_paragraph(self.headline, self.why), _paragraph(self.advice, self.charge), self.origin)
        return tuple(line for line in lines if line)


def explain(message: MessageRead, events: Sequence[Event], codes: Codes, now: datetime) -> Explanation:
    """Explains a message by its rows and by those of its events that are still stored."""
    return _Explainer(message, events, codes, now).explanation()


def explain_publication(publication: PublicationView, *, is_configured: bool) -> str:
    """What became of one event at one sink; `is_configured`: the settings still have the sink."""
    attempts = _counted(str(publication.attempts), "attempt")
    match publication.state:
        case "published":
            return f"published{_on(publication.last_at)} ({attempts})"
        case "dead_letter":
            held = "; later events of the message wait for an operator" if publication.is_held else ""
            return (
                f"dead letter {publication.dead_letter_id}{_on(publication.last_at)}"
                f" after {attempts}, {publication.reason}{held}"
            )
        case "retry":
            due = f"; it is due{_on(publication.due_at)}" if publication.due_at else ""
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


def _why_waiting(publication: PublicationView, *, is_configured: bool) -> str:
    if not is_configured:
        return ": the sink is not in the settings"
    if publication.is_paused:
        return ": the sink is paused"
    return ": the sink is down" if publication.is_down else ""


def time_text(moment: datetime) -> str:
    """A time as people read it: `2026-01-01 12:00:05 UTC`."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def duration_text(duration: timedelta) -> str:
    """A duration in its two largest units: `0.4 seconds`, `3 minutes`, `2 hours 5 minutes`."""
    seconds = abs(duration).total_seconds()
    if seconds < 9.95:
        return _counted(f"{seconds:.1f}".removesuffix(".0"), "second")
    whole = round(seconds)
    for name, size, smaller, smaller_size in _UNITS:
        if whole >= size:
            rest = whole % size // smaller_size
            text = _counted(str(whole // size), name)
            return f"{text} {_counted(str(rest), smaller)}" if rest else text
    return _counted(str(whole), "second")


_UNITS: Final = (("day", 86_400, "hour", 3_600), ("hour", 3_600, "minute", 60), ("minute", 60, "second", 1))


def _counted(number: str, noun: str) -> str:
    return f"{number} {noun}" if number == "1" else f"{number} {noun}s"


# How far a delivery has got, as far as the sentences need to know.
_OPEN: Final = frozenset({Status.UNKNOWN, Status.QUEUED, Status.SENDING, Status.SENT})
_PROOFS: Final = frozenset({Status.DELIVERED, Status.READ})
_CODED: Final = frozenset({Status.FAILED, Status.UNCONFIRMED})

_SIDES: Final = {
    "client": "Bandwidth refused it",
    "service": "it failed at Bandwidth",
    "carrier-client": "the carrier refused it",
    "carrier-service": "it failed at the carrier",
}

# The statuses of a group in the order in which its headline counts them, as they begin a sentence.
_COUNTED: Final = {
    Status.READ: "read by",
    Status.DELIVERED: "delivered to",
    Status.FAILED: "failed for",
    Status.UNCONFIRMED: "unconfirmed for",
    Status.SENT: "sent to",
    Status.SENDING: "on its way to",
    Status.QUEUED: "queued for",
    Status.UNKNOWN: "nothing reported for",
    Status.RECEIVED: "received for",
}

_DONE: Final = "There is no need to send it again."
_TWICE: Final = "Sending it again may reach the recipient twice."
_CHARGED: Final = {
    True: (Charged.YES, "Bandwidth charges for it"),
    False: (Charged.NO, "Bandwidth does not charge for it"),
    None: (Charged.UNKNOWN, "Bandwidth's documents do not say whether it is charged"),
}
_NOT_CODED: Final = (
    Charged.UNKNOWN,
    "Whether it is charged is not known: Bandwidth's documents state charges for error codes only.",
)

_VERDICTS: Final = {
    TagVerdict.FORGED: (
        "a tag with a wrong signature: no key of yours made it for these numbers."
        " Look the message up at Bandwidth before you trust this."
    ),
    TagVerdict.UNSIGNED: "a tag without a signature, so nothing proves that the tag is yours.",
    TagVerdict.MISSING: "no tag, so nothing proves that you sent the message.",
}


@dataclass(frozen=True, slots=True)
class _Code:
    """The code of a failed or unconfirmed delivery, and what it means."""

    number: int
    meaning: CodeMeaning
    listed: ListedCode | None

    @property
    def is_error(self) -> bool:
        return self.meaning.category != "success"

    @property
    def label(self) -> str:
        return f"code {self.number} ({self.listed.name})" if self.listed else f"code {self.number}"

    @property
    def why(self) -> str:
        if not self.is_error:
            return f"Its code {self.number} names no error."
        if self.listed:
            return f"{_capitalised(self.label)}: {self.listed.description.rstrip('.')}."
        side = _SIDES.get(self.meaning.category)
        digits = f"by its digits, {side}" if side else "its digits say nothing more"
        return f"Code {self.number} is not in Bandwidth's tables; {digits}."

    @property
    def advice(self) -> str:
        retryable = self.meaning.retryable if self.is_error else None
        if retryable is None:
            return "Bandwidth's documents do not say whether sending it again helps."
        if not retryable:
            return f"Sending it again gives the same result, {self._basis}."
        if self.listed and self.listed.retry_limit == 1:
            return f"Sending it again may help, but only once, {self._basis}."
        return f"Sending it again may help, {self._basis}."

    @property
    def charge(self) -> tuple[Charged, str]:
        billable = self.meaning.billable if self.is_error else None
        charged, sentence = _CHARGED[billable]
        by_digits = billable is not None and self.listed is None
        return charged, f"{sentence}, {self._basis}." if by_digits else f"{sentence}."

    @property
    def _basis(self) -> str:
        return "according to Bandwidth" if self.listed else "judged by the digits of the code"


class _Explainer:
    """Explains one message; a class only because every sentence needs the same four arguments."""

    def __init__(self, message: MessageRead, events: Sequence[Event], codes: Codes, now: datetime) -> None:
        self._message = message
        self._events = sorted(events, key=lambda event: event.order)
        self._codes = codes
        self._now = now
        self._is_inbound = message.direction is Direction.IN
        self._is_group = len(message.recipients) > 1
        self._by_recipient: dict[str | None, list[Event]] = defaultdict(list)
        for event in self._events:
            key = None if event.recipient is None or self._is_inbound else number_key(event.recipient)
            self._by_recipient[key].append(event)

    def explanation(self) -> Explanation:
        rows = self._message.recipients
        recipients = tuple(self._recipient(row) for row in rows)
        why, advice = _shared(one.why for one in recipients), _shared(one.advice for one in recipients)
        charged, charge = _shared(one.charged for one in recipients), _shared(one.charge for one in recipients)
        if pending := self._pending():
            why, advice = pending
        elif advice is None and self._is_group:
            advice = self._advice_for_group()
        return Explanation(
            headline=self._headline(recipients),
            origin=self._origin(),
            why=why,
            advice=advice,
            charged=charged,
            charge=charge,
            recipients=recipients,
            timeline=tuple(self._timeline()),
            notes=tuple(self._notes()),
        )

    # --- what became of the message

    def _headline(self, recipients: Sequence[RecipientExplanation]) -> str:
        if self._is_inbound:
            return self._inbound(_listed([row.recipient for row in self._message.recipients]))
        if not recipients:
            return f"The message has the status {self._message.status}."
        return recipients[0].headline if len(recipients) == 1 else self._headline_of_group()

    def _headline_of_group(self) -> str:
        """`Delivered to 2 of 3 recipients; failed for 1: +15550003 (code 4720).`"""
        rows = self._message.recipients
        groups = {status: [row for row in rows if row.status == status] for status in _COUNTED}
        present = [(words, groups[status]) for status, words in _COUNTED.items() if groups[status]]
        if len(present) == 1:
            [(words, _)] = present
            return f"{_capitalised(words)} all {len(rows)} recipients{self._when_of_group(rows)}."
        (words, first), *others = present
        parts = [f"{_capitalised(words)} {len(first)} of {len(rows)} recipients"]
        parts += [f"{words} {len(those)}: {_listed(map(self._number_and_code, those))}" for words, those in others]
        return "; ".join(parts) + "."

    def _when_of_group(self, rows: Sequence[RecipientRead]) -> str:
        """When the last of recipients that agree got there."""
        moments = [self._moment(row) for row in rows]
        return max(moments, key=lambda moment: moment.at).on

    def _number_and_code(self, row: RecipientRead) -> str:
        code = self._code(row)
        return f"{_number(row)} (code {code.number})" if code else _number(row)

    def _origin(self) -> str | None:
        """`Created on 2026-01-01 12:00:00 UTC, from +15559999, tag "order 4711".`"""
        message = self._message
        parts = []
        if message.created_at is not None:
            parts.append(f"created on {time_text(message.created_at)}")
        if message.sender and not self._is_inbound:
            parts.append(f"from {message.sender}")
        if message.tag:
            parts.append(f"tag {_quoted(message.tag)}")
        return f"{_capitalised(', '.join(parts))}." if parts else None

    def _pending(self) -> tuple[str, str] | None:
        """How long a final event has been awaited, what is normal, and what to do; None where the message is final."""
        waiting = [row for row in self._message.recipients if row.status in _OPEN]
        if self._is_inbound or not waiting:
            return None
        since = self._since()
        age = max(self._now - since, timedelta(0))
        who = f" for {len(waiting)} of {len(self._message.recipients)} recipients" if self._is_group else ""
        pending = f"It has been pending{who} for {duration_text(age)}, since {time_text(since)}."
        if self._message.api is Api.V1:
            return _paragraph(pending, self._normal_in_v1()), _TWICE
        return _paragraph(pending, *_normal_in_v2(age)), _advice_while_pending(age)

    def _since(self) -> datetime:
        message = self._message
        # a creation time later than the first event occurs in Bandwidth's own examples
        return min(message.created_at or message.first_received_at, message.first_received_at)

    def _normal_in_v1(self) -> str:
        if not self._message.awaiting_receipt:
            return "No delivery receipt is expected, because none was requested: this may be the last event."
        return "A delivery receipt is expected. Bandwidth's documents do not say how long it may take."

    def _advice_for_group(self) -> str | None:
        statuses = {row.status for row in self._message.recipients}
        if statuses & _PROOFS and statuses - _PROOFS:
            return "Sending it again to all recipients would reach some of them twice: see each recipient."
        return None

    # --- what became of it for one recipient

    def _recipient(self, row: RecipientRead) -> RecipientExplanation:
        code = self._code(row)
        charged, charge = self._charge(row, code)
        return RecipientExplanation(
            recipient=row.recipient,
            status=row.status,
            headline=self._headline_of(row, code),
            why=self._why(row, code),
            advice=self._advice(row, code),
            charged=charged,
            charge=charge,
        )

    def _headline_of(self, row: RecipientRead, code: _Code | None) -> str:
        to, moment = _recipient_text(row), self._moment(row)
        match row.status:
            case Status.QUEUED:
                return f"The message to {to} has been queued at Bandwidth{moment.since}."
            case Status.SENDING:
                return f"The message to {to} has been on its way to the carrier{moment.since}."
            case Status.SENT:
                return f"The message to {to} was sent{moment.on}; whether it arrived is not known."
            case Status.UNCONFIRMED:
                return f"It is not known whether the message reached {to}{moment.reported}."
            case Status.DELIVERED:
                return f"The message to {to} was delivered{moment.on}."
            case Status.FAILED:
                side = _SIDES.get(code.meaning.category) if code else None
                return f"The message to {to} failed{moment.on}{f': {side}' if side else ''}."
            case Status.READ:
                return f"The message to {to} was read{moment.on}."
            case Status.RECEIVED:
                return self._inbound(to)
            case _:
                return f"Bandwidth has reported nothing about the message to {to} yet."

    def _inbound(self, to: str) -> str:
        rows = self._message.recipients
        when = self._moment(rows[0]).on if rows else ""
        return f"A message from {self._message.sender or 'an unknown sender'} to {to} was received{when}."

    def _why(self, row: RecipientRead, code: _Code | None) -> str | None:
        if row.status not in _CODED:
            return None
        why = code.why if code else "Bandwidth gave no code for it."
        description = (row.delivery_description or "").strip()
        if not description or (code and code.listed and _same_words(description, code.listed.name)):
            return why
        return f"{why} Bandwidth's own text: {_quoted(description)}."

    def _advice(self, row: RecipientRead, code: _Code | None) -> str | None:
        match row.status:
            case Status.FAILED:
                return code.advice if code else "It is not known whether sending it again helps."
            case Status.UNCONFIRMED:
                return _TWICE
            case Status.DELIVERED | Status.READ:
                return _DONE
            case _:
                return None

    def _charge(self, row: RecipientRead, code: _Code | None) -> tuple[Charged, str]:
        if row.status in _OPEN:
            return Charged.UNKNOWN, "Whether Bandwidth charges for it is not known yet."
        if row.status not in _CODED:
            return _NOT_CODED
        return code.charge if code else (Charged.UNKNOWN, "Without a code it is not known whether Bandwidth charges.")

    def _code(self, row: RecipientRead) -> _Code | None:
        """The code of a failed or unconfirmed delivery. V2 lists no code for success: its 0 is none."""
        number, api = row.delivery_code, self._message.api
        if number is None or row.status not in _CODED:
            return None
        listed = self._codes.entry(api, number)
        if number == 0 and listed is None:
            return None
        return _Code(number, listed or self._codes.reason(api, number), listed)

    def _moment(self, row: RecipientRead) -> "_Moment":
        """When the status of a delivery came about, by Bandwidth's clock where it gave a time."""
        event = next((event for event in self._events_of(row) if event.status == row.status), None)
        by_row = {
            Status.SENT: row.sent_at,
            Status.DELIVERED: row.delivered_at,
            Status.FAILED: row.failed_at,
            Status.READ: row.read_at,
        }.get(Status(row.status))
        occurred_at = by_row or (event.occurred_at if event else None)
        if occurred_at is not None:
            return _Moment(occurred_at, is_ours=False)
        ours = event.received_at if event else row.updated_at or self._message.updated_at
        return _Moment(ours, is_ours=True)

    def _events_of(self, row: RecipientRead) -> list[Event]:
        """The events that count for a recipient: those that name it, else those that name nobody.

        Every event of an inbound message counts for all of its recipients.
        """
        return self._by_recipient.get(number_key(row.recipient)) or self._by_recipient.get(None, [])

    # --- the timeline

    def _timeline(self) -> Iterable[TimelineEntry]:
        if self._message.created_at is not None:
            yield TimelineEntry(
                event_id=None,
                type=None,
                occurred_at=self._message.created_at,
                received_at=None,
                sentence="Message created",
                clocks="Bandwidth's time",
            )
        by_time = sorted(self._events, key=lambda event: (event.occurred_at or event.received_at, event.order))
        for event in by_time:
            yield TimelineEntry(
                event_id=event.id,
                type=event.type,
                occurred_at=event.occurred_at,
                received_at=event.received_at,
                sentence=self._what(event),
                clocks=_clocks(event),
            )

    def _what(self, event: Event) -> str:
        """`Failed for +15550001: code 4720 (invalid-destination-address)`"""
        words = {
            Status.UNCONFIRMED: "Unconfirmed",
            Status.SENDING: "Sending",
            Status.RECEIVED: "Received",
        }.get(event.status, _capitalised(event.status))
        what = f"{words} for {event.recipient}" if event.recipient else words
        if event.code is not None and (listed := self._codes.entry(event.api, event.code)):
            what = f"{what}: code {event.code} ({listed.name})"
        elif event.code:
            what = f"{what}: code {event.code}"
        return what if event.route == "primary" else f"{what}, by the {event.route} address"

    # --- notes

    def _notes(self) -> Iterable[str]:
        for row in self._message.recipients:
            if row.contradicted:
                yield self._contradiction(row)
        yield from self._tag_notes()
        yield from self._code_notes()
        yield from self._delivered_notes()
        yield from self._time_notes()
        yield from self._retention_notes()

    def _contradiction(self, row: RecipientRead) -> str:
        to, events = _recipient_text(row), self._events_of(row)
        statuses = {event.status for event in events}
        was_failed = row.failed_at is not None or Status.FAILED in statuses
        was_delivered = bool(row.delivered_at or row.read_at or statuses & _PROOFS)
        if any(event.contradicted for event in events) and not (was_failed and was_delivered):
            return (
                f"An event about {to} contradicts itself: its state says error, its deliveryState says delivered."
                " The deliveryState counts."
            )
        is_read = row.status == Status.READ
        proof = f"read{_on(row.read_at)}" if is_read else f"delivered{_on(row.delivered_at)}"
        both = f"Bandwidth reported the message to {to} both as {proof} and as failed{_on(row.failed_at)}."
        return f"{both} {self._winner(row)}"

    def _winner(self, row: RecipientRead) -> str:
        if row.status == Status.READ:
            return "It was read, so the failure does not count."
        if row.status == Status.DELIVERED:
            return "Delivered counts, because the setting RECEIVER_FINAL_CONFLICT is delivered-wins."
        if self._is_group and self._message.api is Api.V2:
            return (
                "The failure counts, whichever came first:"
                " for an invalid number in a group Bandwidth is documented to report delivered too."
            )
        return "The failure counts, whichever came first."

    def _tag_notes(self) -> Iterable[str]:
        if self._is_inbound:
            return
        verdicts = Counter(event.tag_verdict for event in self._events)
        total = len(self._events)
        for verdict, sentence in _VERDICTS.items():
            if count := verdicts[verdict]:
                subject = "The event has" if total == 1 else f"{count} of {total} events have"
                yield f"{subject} {sentence}"
            elif not total and self._message.tag_verdict == verdict:
                yield f"The message has {sentence}"

    def _code_notes(self) -> Iterable[str]:
        codes = {code.number: code for row in self._message.recipients if (code := self._code(row))}
        for number, code in sorted(codes.items()):
            if code.listed and code.listed.notes:
                yield f"About code {number}: {code.listed.notes.rstrip('.')}."

    def _delivered_notes(self) -> Iterable[str]:
        message = self._message
        if not any(row.status == Status.DELIVERED for row in message.recipients):
            return
        if message.api is Api.V1:
            yield "Delivered means that the carrier took the message; in v1 it says nothing about the phone."
        elif (message.channel or "").upper() == "MMS" or message.media or self._is_group:
            yield (
                "Delivered means at least that Bandwidth's own MMS centre has the message;"
                " only with MMS receipts does it mean more."
            )
        elif (message.channel or "SMS").upper() == "SMS":
            yield (
                "Delivered means that the carrier took the message. From toll-free numbers and short codes it means"
                " that the phone has it, where the carrier reports that."
            )

    def _time_notes(self) -> Iterable[str]:
        if self._message.api is Api.V1 and self._events:
            yield "Version 1 of the API gives no time of an event: the times of events are when we received them."
        delays = [(event, event.received_at - event.occurred_at) for event in self._events if event.occurred_at]
        late = [(event, delay) for event, delay in delays if delay > _LATE]
        if late:
            event, delay = max(late, key=lambda item: item[1])
            yield (
                f"{_events_text(len(late), len(self._events))} came late: {event.type} was received"
                f" {duration_text(delay)} after it happened."
                " Bandwidth repeats a callback for up to 24 hours until it is answered."
            )
        if early := [-delay for _, delay in delays if -delay > _CLOCK_DIFFERENCE]:
            ahead = duration_text(max(early))
            yield f"Bandwidth's clock and ours differ: an event was received {ahead} before its time."
        if count := _out_of_order(self._events):
            yield (
                f"{_events_text(count, len(self._events))} came out of order."
                " The status depends on what the events say, not on when they came."
            )

    def _retention_notes(self) -> Iterable[str]:
        message, events = self._message, self._events
        if not events and all(row.status == Status.UNKNOWN for row in message.recipients):
            yield "No callback about this message has come."
        elif not events:
            yield "The events of this message are no longer stored: retention has deleted them."
        elif min(event.received_at for event in events) > message.first_received_at:
            yield "The earlier events of this message are no longer stored: retention has deleted them."


@dataclass(frozen=True, slots=True)
class _Moment:
    """A time, and whether it is our clock's: then it is when something was reported, not when it happened."""

    at: datetime
    is_ours: bool

    @property
    def on(self) -> str:
        return self.reported if self.is_ours else f" on {time_text(self.at)}"

    @property
    def since(self) -> str:
        return self.reported if self.is_ours else f" since {time_text(self.at)}"

    @property
    def reported(self) -> str:
        return f", as Bandwidth reported on {time_text(self.at)}"


def _normal_in_v2(age: timedelta) -> Iterable[str]:
    if age <= RECEIPT_WAIT:
        yield "This is normal: Bandwidth waits up to two hours for a receipt of the carrier."
        return
    if age <= RECEIPT_WAIT + CALLBACK_REPEATS:
        yield "This is longer than normal: Bandwidth waits two hours for a receipt of the carrier, then reports 9902."
        yield "A final event may still come, because Bandwidth repeats a callback for up to 24 hours."
    else:
        yield "No final event is likely to come any more: Bandwidth repeats a callback for 24 hours at most."
    yield "The application's settings may leave final events out, and a carrier may send none for an MMS."


def _advice_while_pending(age: timedelta) -> str:
    if age <= RECEIPT_WAIT:
        return f"Wait before you send it again. {_TWICE}"
    return f"Look the message up at Bandwidth before you send it again. {_TWICE}"


def _clocks(event: Event) -> str:
    """How far Bandwidth's time of an event and our receipt of it are apart."""
    if event.occurred_at is None:
        return "Bandwidth gives no time"
    delay = event.received_at - event.occurred_at
    if delay < timedelta(0):
        return f"received {duration_text(delay)} before Bandwidth's time"
    return f"received {duration_text(delay)} later"


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


def _shared(values: Iterable[Value]) -> Value | None:
    """The value that all have; None where they differ."""
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else None


def _paragraph(*sentences: str | None) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def _listed(numbers: Iterable[str | None]) -> str:
    """Numbers in a sentence; of many, the first and how many more there are."""
    known = [number or "an unknown number" for number in numbers]
    if not known:
        return "an unknown number"
    more = len(known) - _LISTED_NUMBERS
    return f"{', '.join(known[:_LISTED_NUMBERS])} and {more} more" if more > 0 else ", ".join(known)


def _number(row: RecipientRead) -> str:
    return row.recipient or "an unknown number"


def _recipient_text(row: RecipientRead) -> str:
    return row.recipient or "a recipient whose number is not known"


def _events_text(count: int, total: int) -> str:
    return "The event" if total == 1 else f"{count} of {total} events"


def _on(moment: datetime | None) -> str:
    return f" on {time_text(moment)}" if moment is not None else ""


def _quoted(text: str) -> str:
    shortened = text if len(text) <= _QUOTED_CHARACTERS else f"{text[:_QUOTED_CHARACTERS]}…"
    return f'"{shortened}"'


def _same_words(one: str, other: str) -> bool:
    """Whether two texts differ in nothing but case and punctuation."""
    first, second = ("".join(filter(str.isalnum, text)).casefold() for text in (one, other))
    return first == second


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
