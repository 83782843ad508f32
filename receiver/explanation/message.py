"""Explains a message in words: what became of it, when, why, whether sending it again helps, whether it is charged.

`explain` is a pure function of a message, its events and the time. The sentences say no more than Bandwidth's documents
do: where the documents are silent, the sentence says that it is not known.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from receiver.domain.events import Api, Event, Status
from receiver.explanation.recipient import OPEN, TWICE, Charged, RecipientExplanation, Recipients
from receiver.explanation.timeline import PROOFS, TimelineEntry, notes, timeline
from receiver.explanation.words import capitalised, duration_text, listed, number, paragraph, quoted, shared, time_text
from receiver.models.columns import Read
from receiver.models.messages import MessageRead, RecipientRead

# Bandwidth waits two hours for a receipt and then reports 9902. It repeats a callback for 24 hours until a 2xx.
RECEIPT_WAIT: Final = timedelta(hours=2)
CALLBACK_REPEATS: Final = timedelta(hours=24)

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


class Explanation(Read):
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
        return paragraph(self.headline, self.why, self.advice, self.charge)

    @property
    def lines(self) -> tuple[str, ...]:
        """The same as lines: what and why, what to do and what it costs, where the message came from."""
        lines = (paragraph(self.headline, self.why), paragraph(self.advice, self.charge), self.origin)
        return tuple(line for line in lines if line)


def explain(message: MessageRead, events: Sequence[Event], now: datetime) -> Explanation:
    """Explains a message by its rows and by those of its events that are still stored."""
    return _Explainer(Recipients(message, events), now).explanation()


class _Explainer:
    """Explains one message; a class only because every sentence needs the same arguments."""

    def __init__(self, recipients: Recipients, now: datetime) -> None:
        self._recipients = recipients
        self._message = recipients.message
        self._now = now

    def explanation(self) -> Explanation:
        rows = self._message.recipients
        recipients = tuple(self._recipients.explain(row) for row in rows)
        why, advice = shared(one.why for one in recipients), shared(one.advice for one in recipients)
        charged, charge = shared(one.charged for one in recipients), shared(one.charge for one in recipients)
        if pending := self._pending():
            why, advice = pending
        elif advice is None and self._recipients.is_group:
            advice = self._advice_for_group()
        return Explanation(
            headline=self._headline(recipients),
            origin=self._origin(),
            why=why,
            advice=advice,
            charged=charged,
            charge=charge,
            recipients=recipients,
            timeline=tuple(timeline(self._message, self._recipients.all_events)),
            notes=tuple(notes(self._recipients)),
        )

    def _headline(self, recipients: Sequence[RecipientExplanation]) -> str:
        if self._recipients.is_inbound:
            return self._recipients.inbound(listed([row.recipient for row in self._message.recipients]))
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
            return f"{capitalised(words)} all {len(rows)} recipients{self._when_of_group(rows)}."
        (words, first), *others = present
        parts = [f"{capitalised(words)} {len(first)} of {len(rows)} recipients"]
        parts += [f"{words} {len(those)}: {listed(map(self._number_and_code, those))}" for words, those in others]
        return "; ".join(parts) + "."

    def _when_of_group(self, rows: Sequence[RecipientRead]) -> str:
        """When the last of recipients that agree got there."""
        moments = [self._recipients.moment(row) for row in rows]
        return max(moments, key=lambda moment: moment.at).on

    def _number_and_code(self, row: RecipientRead) -> str:
        code = self._recipients.code(row)
        return f"{number(row)} (code {code.number})" if code else number(row)

    def _origin(self) -> str | None:
        """`Created on 2026-01-01 12:00:00 UTC, from +15559999, tag "order 4711".`"""
        message = self._message
        parts = []
        if message.created_at is not None:
            parts.append(f"created on {time_text(message.created_at)}")
        if message.sender and not self._recipients.is_inbound:
            parts.append(f"from {message.sender}")
        if message.tag:
            parts.append(f"tag {quoted(message.tag)}")
        return f"{capitalised(', '.join(parts))}." if parts else None

    def _pending(self) -> tuple[str, str] | None:
        """How long a final event has been awaited, what is normal, and what to do; None where the message is final."""
        waiting = [row for row in self._message.recipients if row.status in OPEN]
        if self._recipients.is_inbound or not waiting:
            return None
        since = self._since()
        age = max(self._now - since, timedelta(0))
        who = f" for {len(waiting)} of {len(self._message.recipients)} recipients" if self._recipients.is_group else ""
        pending = f"It has been pending{who} for {duration_text(age)}, since {time_text(since)}."
        if self._message.api is Api.V1:
            return paragraph(pending, self._normal_in_v1()), TWICE
        return paragraph(pending, *_normal_in_v2(age)), _advice_while_pending(age)

    def _since(self) -> datetime:
        message = self._message
        # a creation time later than the first event occurs in Bandwidth's own examples
        return min(message.created_at or message.first_received_at, message.first_received_at)

    def _normal_in_v1(self) -> str:
        if all(row.status == Status.UNKNOWN for row in self._message.recipients):
            if self._message.awaiting_receipt:
                return "A callback is expected. Bandwidth's documents do not say how long it may take."
            return "No callback is expected, because the message was sent without a callback URL."
        if not self._message.awaiting_receipt:
            return "No delivery receipt is expected, because none was requested: this may be the last event."
        return "A delivery receipt is expected. Bandwidth's documents do not say how long it may take."

    def _advice_for_group(self) -> str | None:
        statuses = {row.status for row in self._message.recipients}
        if statuses & PROOFS and statuses - PROOFS:
            return "Sending it again to all recipients would reach some of them twice: see each recipient."
        return None


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
        return f"Wait before you send it again. {TWICE}"
    return f"Look the message up at Bandwidth before you send it again. {TWICE}"
