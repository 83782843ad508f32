"""What became of a message to one recipient: when, why, whether sending it again helps, whether it is charged."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from pydantic import Field

from receiver.domain.events import Direction, Event, Status, number_key
from receiver.explanation.words import capitalised, paragraph, quoted, recipient_text, same_words, time_text
from receiver.models.columns import Read
from receiver.models.messages import MessageRead, RecipientRead
from receiver.providers import registry
from receiver.providers.base import CodeEntry, Reason


class Charged(StrEnum):
    """Whether Bandwidth charges for a message, by its documents."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


# How far a delivery has got, as far as the sentences need to know.
OPEN: Final = frozenset({Status.UNKNOWN, Status.QUEUED, Status.SENDING, Status.SENT})
_CODED: Final = frozenset({Status.FAILED, Status.UNCONFIRMED})

_SIDES: Final = {
    "client": "Bandwidth refused it",
    "service": "it failed at Bandwidth",
    "carrier-client": "the carrier refused it",
    "carrier-service": "it failed at the carrier",
}

_DONE: Final = "There is no need to send it again."
TWICE: Final = "Sending it again may reach the recipient twice."
_CHARGED: Final = {
    True: (Charged.YES, "Bandwidth charges for it"),
    False: (Charged.NO, "Bandwidth does not charge for it"),
    None: (Charged.UNKNOWN, "Bandwidth's documents do not say whether it is charged"),
}
_NOT_CODED: Final = (
    Charged.UNKNOWN,
    "Whether it is charged is not known: Bandwidth's documents state charges for error codes only.",
)


class RecipientExplanation(Read):
    """What became of a message to one recipient (None where the number is not known).

    `why` and `advice` are None where there is nothing to say.
    """

    recipient: str | None = Field(serialization_alias="to")
    status: str
    headline: str
    why: str | None
    advice: str | None
    charged: Charged
    charge: str

    @property
    def summary(self) -> str:
        """All of it as one paragraph."""
        return paragraph(self.headline, self.why, self.advice, self.charge)


@dataclass(frozen=True, slots=True)
class Code:
    """The code of a failed or unconfirmed delivery, and what it means."""

    number: int
    meaning: Reason
    listed: CodeEntry | None

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
            return f"{capitalised(self.label)}: {self.listed.description.rstrip('.')}."
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


@dataclass(frozen=True, slots=True)
class Moment:
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


class Recipients:
    """The recipients of one message, with its events; `all_events` has its registrations too."""

    def __init__(self, message: MessageRead, events: Sequence[Event]) -> None:
        self.message = message
        self.all_events = sorted(events, key=lambda event: event.order)
        self.events = [event for event in self.all_events if not event.is_registration]
        self.is_inbound = message.direction is Direction.IN
        self.is_group = len(message.recipients) > 1
        self._by_recipient: dict[str | None, list[Event]] = defaultdict(list)
        for event in self.events:
            key = None if event.recipient is None or self.is_inbound else number_key(event.recipient)
            self._by_recipient[key].append(event)

    def explain(self, row: RecipientRead) -> RecipientExplanation:
        """What became of the message to one recipient."""
        code = self.code(row)
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

    def _headline_of(self, row: RecipientRead, code: Code | None) -> str:
        to, moment = recipient_text(row), self.moment(row)
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
                return self.inbound(to)
            case _ if self.message.registered_at is not None:
                when = time_text(self.message.registered_at)
                return f"The message to {to} was registered on {when}; nothing was heard of it yet."
            case _:
                return f"Bandwidth has reported nothing about the message to {to} yet."

    def inbound(self, to: str) -> str:
        """The sentence for an inbound message."""
        rows = self.message.recipients
        when = self.moment(rows[0]).on if rows else ""
        return f"A message from {self.message.sender or 'an unknown sender'} to {to} was received{when}."

    def _why(self, row: RecipientRead, code: Code | None) -> str | None:
        if row.status not in _CODED:
            return None
        why = code.why if code else "Bandwidth gave no code for it."
        description = (row.delivery_description or "").strip()
        if not description or (code and code.listed and same_words(description, code.listed.name)):
            return why
        return f"{why} Bandwidth's own text: {quoted(description)}."

    def _advice(self, row: RecipientRead, code: Code | None) -> str | None:
        match row.status:
            case Status.FAILED:
                return code.advice if code else "It is not known whether sending it again helps."
            case Status.UNCONFIRMED:
                return TWICE
            case Status.DELIVERED | Status.READ:
                return _DONE
            case _:
                return None

    def _charge(self, row: RecipientRead, code: Code | None) -> tuple[Charged, str]:
        if row.status in OPEN:
            return Charged.UNKNOWN, "Whether Bandwidth charges for it is not known yet."
        if row.status not in _CODED:
            return _NOT_CODED
        return code.charge if code else (Charged.UNKNOWN, "Without a code it is not known whether Bandwidth charges.")

    def code(self, row: RecipientRead) -> Code | None:
        """The code of a failed or unconfirmed delivery. V2 lists no code for success: its 0 is none."""
        number, api = row.delivery_code, self.message.api
        if number is None or row.status not in _CODED:
            return None
        listed = registry.entry(api, number)
        if number == 0 and listed is None:
            return None
        return Code(number, listed or registry.reason(api, number), listed)

    def moment(self, row: RecipientRead) -> Moment:
        """When the status of a delivery came about, by Bandwidth's clock where it gave a time."""
        event = next((event for event in self.events_of(row) if event.status == row.status), None)
        by_row = {
            Status.SENT: row.sent_at,
            Status.DELIVERED: row.delivered_at,
            Status.FAILED: row.failed_at,
            Status.READ: row.read_at,
        }.get(Status(row.status))
        occurred_at = by_row or (event.occurred_at if event else None)
        if occurred_at is not None:
            return Moment(occurred_at, is_ours=False)
        ours = event.received_at if event else row.updated_at or self.message.updated_at
        return Moment(ours, is_ours=True)

    def events_of(self, row: RecipientRead) -> list[Event]:
        """The events that count for a recipient: those that name it, else those that name nobody.

        Every event of an inbound message counts for all of its recipients.
        """
        return self._by_recipient.get(number_key(row.recipient)) or self._by_recipient.get(None, [])
