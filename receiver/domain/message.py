"""One message: its fields and its deliveries, folded from its events, with the same result in any order."""

from collections.abc import Iterable
from datetime import datetime
from operator import attrgetter
from typing import Final

import msgspec

from receiver.domain.delivery import EMPTY_DELIVERY, Change, Delivery, FinalConflict, StateRules, first_of, merge
from receiver.domain.events import (
    MAX_EVENTS,
    MAX_MENTIONS,
    MAX_RECIPIENTS,
    PLAIN_FIELDS,
    REGISTERED_FIELDS,
    Api,
    Direction,
    Event,
    MessageFields,
    Status,
    TagVerdict,
    number_key,
)

# Python 3.11 takes 0.15 us to look up a member of an enumeration, and folding an event needs many.
_IN: Final = Direction.IN
_UNKNOWN: Final = Status.UNKNOWN


class Recipient(msgspec.Struct, frozen=True, gc=False):
    """A row of the status table: a number as it is shown (None: no number is known) and the delivery to it."""

    number: str | None
    delivery: Delivery


# The fields that are the same in an event and in a message; recipients, text and media have rules of their own.
_FIELD_NAMES: Final = (*PLAIN_FIELDS, "created_at")
_REGISTERED_NAMES: Final = (*_FIELD_NAMES, *REGISTERED_FIELDS)


class Message:
    """One message, folded event by event. The result depends on the set of events alone, not on their order.

    All events are about this message: they have its version, direction and id. Every recipient of an inbound message
    is `received`, so an inbound event applies to all recipients, as does an outbound event without a recipient.
    """

    __slots__ = (
        "_events",
        "_fields",
        "_first",
        "_keys",
        "_lists",
        "_mentions",
        "_named",
        "_new",
        "_shared",
        "_tops",
        "api",
        "conflict",
        "direction",
        "first_received_at",
        "id",
        "registered_at",
        "updated_at",
    )

    def __init__(
        self,
        api: Api,
        direction: Direction,
        id: str,  # noqa: A002
        conflict: FinalConflict = FinalConflict.FAILED_WINS,
    ) -> None:
        self.api = api
        self.direction = direction
        self.id = id
        self.conflict = conflict
        self.first_received_at: datetime | None = None
        self.updated_at: datetime | None = None
        # When the sender registered the message, by our clock; None: only callbacks told of it.
        self.registered_at: datetime | None = None
        self._events = 0
        self._mentions = 0
        self._first: Event | None = None
        # The first event that has each field, and the events whose fields are not taken yet.
        self._fields: dict[str, Event] = {}
        self._new: list[Event] = []
        # Every distinct `message.to` and top-level `to`, with the first event that has it. Most events repeat one.
        self._lists: dict[tuple[str, ...], Event] = {}
        self._tops: dict[str, Event] = {}
        self._keys: set[str] = set()
        # The delivery of each number that an event names, and the one that all other numbers share.
        self._named: dict[str, Delivery] = {}
        self._shared: Delivery | None = None

    def __bool__(self) -> bool:
        return self._first is not None

    def add(self, event: Event) -> Change:
        """Folds an event in. The caller checks ids: an event must not be added twice."""
        if self._first is None:
            return self._begin(event)
        before = self._delivery_before(event)
        shared_before = event.recipient is None and self._has_shared_rows()
        self._note(event)
        self._note_numbers(event)
        after = self._merge(event)
        changed = (before or EMPTY_DELIVERY).status is not after.status
        if changed and event.recipient is None:
            changed = shared_before or self._has_shared_rows()
        return Change(before, after, changed)

    def limit_passed(self, event: Event) -> str | None:
        """Describes for people the limit that this message would exceed with another event; None if it exceeds none."""
        if self._events >= MAX_EVENTS:
            return f"the message has {MAX_EVENTS} events already"
        if self._mentions + len(event.fields.recipients) > MAX_MENTIONS:
            return f"the events of the message name more than {MAX_MENTIONS} recipients, repetitions counted"
        if self._has_room_for_numbers(event):
            return None
        return f"the message has more than {MAX_RECIPIENTS} recipients"

    def recipients(self) -> list[Recipient]:
        """The rows in the order of `message.to`, then further numbers; one row without a number if none is known."""
        if not self._keys:
            return [Recipient(None, self._shared or EMPTY_DELIVERY)]
        return [Recipient(number, self._row(key)) for key, number in self._spellings().items()]

    def fields(self) -> MessageFields:
        """The first non-empty value of each field, by the order of the events; `recipients` stays empty."""
        assert self._first is not None  # noqa: S101
        if self._events == 1 and not self._first.is_registration:
            return _non_empty(self._first.fields)
        self._take_fields()
        return MessageFields(**{name: getattr(event.fields, name) for name, event in self._fields.items()})

    @property
    def tag_verdict(self) -> TagVerdict:
        """The verdict on the first callback's event with a tag; without a tag, on the first event."""
        if self._events > 1:
            self._take_fields()
        event = self._fields.get("tag")
        # The tag of a registration proves nothing about the callbacks of the message.
        if event is None or event.is_registration:
            event = self._first
        assert event is not None  # noqa: S101
        return event.tag_verdict

    @property
    def listed_at(self) -> datetime:
        """The time that orders the list of messages: Bandwidth's creation time, else the first receipt by our clock."""
        listed_at = self.fields().created_at or self.first_received_at
        assert listed_at is not None  # noqa: S101
        return listed_at

    def _begin(self, event: Event) -> Change:
        """Folds the first event in. Most messages of a batch have no other, so this path avoids the general one."""
        numbers, recipient = event.fields.recipients, event.recipient
        self._first = event
        self.first_received_at = self.updated_at = event.received_at
        if event.is_registration:
            self.registered_at = event.received_at
        self._events = 1
        self._mentions = len(numbers)
        self._new.append(event)
        if numbers:
            self._lists[numbers] = event
            self._keys.update(map(number_key, numbers))
        if recipient is not None:
            self._tops[recipient] = event
            self._keys.add(number_key(recipient))
        after = self._merge(event)
        return Change(None, after, after.status is not _UNKNOWN)

    def _delivery_before(self, event: Event) -> Delivery | None:
        """The delivery that an event is about, before the event is folded; None if it has no row yet."""
        if event.recipient is None:
            return self._shared or (EMPTY_DELIVERY if self._keys else None)
        key = number_key(event.recipient)
        # A number that is only a plus has the key of "no number", so it uses the row without a number.
        has_row = key in self._keys or (not key and bool(self) and not self._keys)
        return self._row(key) if has_row else None

    def _row(self, key: str) -> Delivery:
        return self._named.get(key) or self._shared or EMPTY_DELIVERY

    def _has_shared_rows(self) -> bool:
        """Whether events without a number decide any row."""
        return len(self._named) < len(self._keys) or not self._keys

    def _merge(self, event: Event) -> Delivery:
        if event.recipient is None or self.direction is _IN:
            self._shared = merge(self._shared or EMPTY_DELIVERY, event, self.conflict)
            return self._shared
        key = number_key(event.recipient)
        after = self._named[key] = merge(self._named.get(key, EMPTY_DELIVERY), event, self.conflict)
        return after

    def _note(self, event: Event) -> None:
        received_at = event.received_at
        self._first = first_of(self._first, event)
        self.first_received_at = min(self.first_received_at or received_at, received_at)
        self.updated_at = max(self.updated_at or received_at, received_at)
        if event.is_registration:
            self.registered_at = min(self.registered_at or received_at, received_at)
        self._events += 1
        self._mentions += len(event.fields.recipients)
        self._new.append(event)

    def _take_fields(self) -> None:
        """Takes the fields of the events added since the last call. They are needed once a batch, to write rows."""
        sources = self._fields
        for event in self._new:
            fields = event.fields
            for name in _REGISTERED_NAMES if event.is_registration else _FIELD_NAMES:
                if getattr(fields, name) not in (None, ""):
                    sources[name] = first_of(sources.get(name), event)
            if fields.has_text:
                sources["text"] = first_of(sources.get("text"), event)
            if fields.has_media:
                sources["media"] = first_of(sources.get("media"), event)
        self._new.clear()

    def _note_numbers(self, event: Event) -> None:
        numbers, recipient = event.fields.recipients, event.recipient
        if numbers:
            known = self._lists.get(numbers)
            if known is None:
                self._keys.update(map(number_key, numbers))
            self._lists[numbers] = first_of(known, event)
        if recipient is not None:
            self._keys.add(number_key(recipient))
            self._tops[recipient] = first_of(self._tops.get(recipient), event)

    def _has_room_for_numbers(self, event: Event) -> bool:
        numbers, recipient = event.fields.recipients, event.recipient
        # This check is cheap, and it suffices for nearly every event.
        if len(self._keys) + len(numbers) < MAX_RECIPIENTS:
            return True
        named = set() if numbers in self._lists else set(map(number_key, numbers))
        if recipient is not None:
            named.add(number_key(recipient))
        return len(self._keys) + len(named - self._keys) <= MAX_RECIPIENTS

    def _spellings(self) -> dict[str, str]:
        """The shown spelling of every number, by key: of the first `message.to`, else of the first top-level `to`."""
        if len(self._lists) == 1:
            [numbers] = self._lists
            shown = {number_key(number): number for number in numbers}
            # The list has every number once, and no top-level `to` adds another.
            if len(shown) == len(self._keys) == len(numbers):
                return shown
        shown = {}
        seen: set[str] = set()
        for numbers in sorted(self._lists, key=lambda numbers: self._lists[numbers].order):
            # Most lists of a message have no new number; a set finds that out faster than a loop.
            if not seen.issuperset(numbers):
                seen.update(numbers)
                _show(numbers, shown)
        _show(sorted(self._tops, key=lambda number: self._tops[number].order), shown)
        return shown


_plain_values: Final = attrgetter(*PLAIN_FIELDS)


def _non_empty(fields: MessageFields) -> MessageFields:
    """The fields of an event, without empty texts."""
    plain = {name: value for name, value in zip(PLAIN_FIELDS, _plain_values(fields), strict=True) if value != ""}
    return MessageFields(
        **plain,
        text=fields.text if fields.has_text else None,
        media=fields.media if fields.has_media else (),
        created_at=fields.created_at,
    )


def _show(numbers: Iterable[str], shown: dict[str, str]) -> None:
    for number in numbers:
        shown.setdefault(number_key(number), number)


class MessageSummary(msgspec.Struct, frozen=True, gc=False):
    """The status of a message as a whole: the roll-up of its recipients."""

    status: str
    state: str | None
    delivery_state: str | None
    code: int | None
    description: str | None
    contradicted: bool
    awaiting_receipt: bool


PENDING: Final = "pending"
PARTIAL: Final = "partial"


def roll_up(deliveries: Iterable[Delivery], direction: Direction, states: StateRules) -> MessageSummary:
    """The summary of a message: that of its recipients if they agree, else pending or partial."""
    rows = list(deliveries)
    if len(rows) == 1:
        return _summary(rows[0], direction, states)
    contradicted = any(row.contradicted for row in rows)
    awaiting = direction is Direction.OUT and any(row.awaits_receipt for row in rows)
    if len({row.status for row in rows}) > 1:
        status = PENDING if any(row.is_pending for row in rows) else PARTIAL
        return MessageSummary(status, *states.of_status(status), None, None, contradicted, awaiting)
    shown = {states.of_delivery(row) for row in rows}
    state, delivery_state = shown.pop() if len(shown) == 1 else states.of_status(rows[0].status)
    codes = {(row.code, row.description) for row in rows}
    code, description = codes.pop() if len(codes) == 1 else (None, None)
    return MessageSummary(rows[0].status, state, delivery_state, code, description, contradicted, awaiting)


def _summary(row: Delivery, direction: Direction, states: StateRules) -> MessageSummary:
    state, delivery_state = states.of_delivery(row)
    awaiting = direction is Direction.OUT and row.awaits_receipt
    return MessageSummary(row.status, state, delivery_state, row.code, row.description, row.contradicted, awaiting)


def fold(events: Iterable[Event], conflict: FinalConflict = FinalConflict.FAILED_WINS) -> Message:
    """Folds the events of one message; a repeated event counts once. Raises ValueError without any event."""
    message: Message | None = None
    seen: set[str] = set()
    for event in events:
        message = message or Message(*event.key, conflict)
        if event.id not in seen:
            seen.add(event.id)
            message.add(event)
    if message is None:
        raise ValueError("a message needs at least one event")
    return message
