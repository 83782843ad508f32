"""How far a message got: the merge of its events into one row per recipient, the same whatever their order.

`merge` folds an event into a delivery. It has the manners of addition: defined for every pair, harmless when
repeated, indifferent to order. `Message` keeps the deliveries of one message and its facts.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from receiver.domain.events import PLAIN_FACTS, Api, Direction, Event, Failure, Status, TagVerdict, number_key


class FinalConflict(StrEnum):
    """Which of two contradicting final events gives the status; see `_rank`."""

    FAILED_WINS = "failed-wins"
    DELIVERED_WINS = "delivered-wins"


_RANK: Final = {
    Status.UNKNOWN: 0,
    Status.QUEUED: 1,
    Status.SENDING: 2,
    Status.SENT: 3,
    Status.UNCONFIRMED: 4,
    # 5: a failure that `delivered-wins` puts below delivered
    Status.DELIVERED: 6,
    Status.FAILED: 7,
    Status.READ: 8,
    Status.RECEIVED: 9,
}
_OVERRULED_FAILURE: Final = 5

# What the seed API's axes show where the event did not bring v1's own words. `sent` and `failed` need a closer look.
_AXES: Final[dict[Status, tuple[str | None, str | None]]] = {
    Status.UNKNOWN: (None, None),
    Status.QUEUED: ("queued", None),
    Status.SENDING: ("sending", None),
    Status.SENT: ("sent", None),
    Status.UNCONFIRMED: ("sent", "waiting"),
    Status.DELIVERED: ("sent", "delivered"),
    Status.FAILED: ("sent", "not-delivered"),
    Status.READ: ("sent", "delivered"),
    Status.RECEIVED: ("received", None),
}


def _rank(event: Event, conflict: FinalConflict) -> int:
    """The rank of what an event says.

    `delivered-wins` lets delivered beat a failure that came from the network side, never a refusal before it.
    """
    overruled = (
        conflict is FinalConflict.DELIVERED_WINS and event.status is Status.FAILED and event.failure is Failure.NETWORK
    )
    return _OVERRULED_FAILURE if overruled else _RANK[event.status]


def _first(kept: Event | None, event: Event) -> Event:
    return event if kept is None or (kept is not event and event.order < kept.order) else kept


def _earliest(kept: datetime | None, time: datetime | None) -> datetime | None:
    return min(kept, time) if kept and time else kept or time


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How far one message got to one recipient.

    `winner` gave the status: highest rank, then earliest. Among the events of its rank, `coded`, `described`,
    `stated` and `receipted` are the first that brought a code, a description, v1's state and its delivery state.
    """

    rank: int = 0
    winner: Event | None = None
    coded: Event | None = None
    described: Event | None = None
    stated: Event | None = None
    receipted: Event | None = None
    seen_delivered: bool = False
    seen_failed: bool = False
    self_contradicted: bool = False
    receipt_expected: bool = False
    sent_at: datetime | None = None
    delivered_at: datetime | None = None
    failed_at: datetime | None = None
    read_at: datetime | None = None
    updated_at: datetime | None = None

    @property
    def status(self) -> Status:
        return self.winner.status if self.winner else Status.UNKNOWN

    @property
    def code(self) -> int | None:
        return self.coded.code if self.coded else None

    @property
    def description(self) -> str | None:
        told = self.coded if self.coded and self.coded.description else self.described
        return told.description if told else None

    @property
    def contradicted(self) -> bool:
        return self.self_contradicted or (self.seen_delivered and self.seen_failed)

    @property
    def axes(self) -> tuple[str | None, str | None]:
        """The seed API's `state` and `deliveryState`: v1's own words where they came, else derived."""
        state, delivery_state = _AXES[self.status]
        if self.status is Status.SENT and self.awaits_receipt:
            delivery_state = "waiting"
        told = self.coded or self.winner
        if self.status is Status.FAILED and told and told.failure is Failure.REFUSED:
            state = "error"
        if self.stated:
            state = self.stated.state
        if self.receipted:
            delivery_state = self.receipted.delivery_state
        return state, delivery_state

    @property
    def awaits_receipt(self) -> bool:
        """Whether a final event is still to be expected: v2 always promises one, v1 only when asked for receipts."""
        promised = self.receipt_expected or self.winner is None or self.winner.api is Api.V2
        return promised and self.rank < _RANK[Status.UNCONFIRMED]


NOTHING_SAID: Final = Delivery()


def merge(delivery: Delivery, event: Event, conflict: FinalConflict = FinalConflict.FAILED_WINS) -> Delivery:
    """Folds an event into a delivery and returns what the delivery then is."""
    rank = _rank(event, conflict)
    if rank < delivery.rank:
        return replace(delivery, **_history(delivery, event))
    # what a lower rank told of code and words is of no account any more
    same = delivery if rank == delivery.rank else NOTHING_SAID
    return Delivery(
        rank=rank,
        winner=_first(same.winner, event),
        coded=_first(same.coded, event) if event.code is not None else same.coded,
        described=_first(same.described, event) if event.description else same.described,
        stated=_first(same.stated, event) if event.state is not None else same.stated,
        receipted=_first(same.receipted, event) if event.delivery_state is not None else same.receipted,
        **_history(delivery, event),
    )


def _history(delivery: Delivery, event: Event) -> dict[str, Any]:
    """What is remembered of every event, whichever wins."""
    status, time = event.status, event.occurred_at
    return {
        "seen_delivered": delivery.seen_delivered or status is Status.DELIVERED or status is Status.READ,
        "seen_failed": delivery.seen_failed or status is Status.FAILED,
        "self_contradicted": delivery.self_contradicted or event.contradicted,
        "receipt_expected": delivery.receipt_expected or event.delivery_state is not None,
        "sent_at": _earliest(delivery.sent_at, time) if status is Status.SENT else delivery.sent_at,
        "delivered_at": _earliest(delivery.delivered_at, time) if status is Status.DELIVERED else delivery.delivered_at,
        "failed_at": _earliest(delivery.failed_at, time) if status is Status.FAILED else delivery.failed_at,
        "read_at": _earliest(delivery.read_at, event.read_at or time) if status is Status.READ else delivery.read_at,
        "updated_at": max(delivery.updated_at or event.received_at, event.received_at),
    }


@dataclass(frozen=True, slots=True)
class Change:
    """What one event did: the delivery before (None: there was no row) and after, and whether its status moved."""

    before: Delivery | None
    after: Delivery
    changed: bool


@dataclass(frozen=True, slots=True)
class Recipient:
    """A row of the status table: a number as shown (None where none is known) and the delivery to it."""

    number: str | None
    delivery: Delivery


_FACTS: Final = (*PLAIN_FACTS, "created_at")


class Message:
    """One message, folded event by event. What it says depends on the set of events alone, not on their order."""

    __slots__ = (
        "_facts",
        "_first",
        "_inbound",
        "_named",
        "_numbers",
        "_unnamed",
        "api",
        "conflict",
        "first_received_at",
        "id",
        "updated_at",
    )

    def __init__(self, api: Api, id: str, conflict: FinalConflict = FinalConflict.FAILED_WINS) -> None:  # noqa: A002
        self.api = api
        self.id = id
        self.conflict = conflict
        self.first_received_at: datetime | None = None
        self.updated_at: datetime | None = None
        self._first: Event | None = None
        self._facts: dict[str, Event] = {}
        # key -> (0 for a spelling from message.to, 1 for one from a top-level to; order of the event; place; spelling)
        self._numbers: dict[str, tuple[int, tuple[datetime, str], int, str]] = {}
        self._named: dict[str, Delivery] = {}
        self._unnamed: Delivery | None = None
        self._inbound: Delivery | None = None

    def __bool__(self) -> bool:
        return self._first is not None

    def add(self, event: Event) -> Change:
        """Folds an event in. An event that is already in must not be added again: its id is the caller's to check."""
        before = self._standing(event)
        had_unnamed_rows = len(self._named) < len(self._numbers) or not self._numbers
        self._take_facts(event)
        after = self._take_delivery(event)
        changed = (before or NOTHING_SAID).status is not after.status
        if event.recipient is None and event.direction is Direction.OUT:
            changed = changed and (had_unnamed_rows or len(self._named) < len(self._numbers))
        return Change(before, after, changed)

    def recipients(self) -> list[Recipient]:
        """The rows in the order of `message.to`, further numbers after; one without number if none is known."""
        if not self._numbers:
            return [Recipient(None, self._inbound or self._unnamed or NOTHING_SAID)]
        rows = sorted(self._numbers.items(), key=lambda item: item[1])
        return [Recipient(spelling, self._row(key)) for key, (_, _, _, spelling) in rows]

    def fact(self, name: str) -> Any:
        """The first non-empty value of a fact in the order of its events, or None."""
        event = self._facts.get(name)
        return getattr(event.facts, name) if event else None

    @property
    def direction(self) -> Direction:
        assert self._first is not None  # noqa: S101
        return Direction.IN if self._inbound else self._first.direction

    @property
    def tag_verdict(self) -> TagVerdict:
        """The verdict on the event that gave the tag; without a tag, on the first event."""
        event = self._facts.get("tag") or self._first
        assert event is not None  # noqa: S101
        return event.tag_verdict

    @property
    def listed_at(self) -> datetime:
        """The time a message is listed by: Bandwidth's creation time, else our first receipt."""
        created_at: datetime | None = self.fact("created_at")
        listed_at = created_at or self.first_received_at
        assert listed_at is not None  # noqa: S101
        return listed_at

    def _standing(self, event: Event) -> Delivery | None:
        """The delivery an event is about, before it; None where it has no row yet."""
        if event.recipient is None:
            return self._inbound or self._unnamed or (NOTHING_SAID if self._numbers else None)
        key = number_key(event.recipient)
        # a number that is nothing but a plus has the row of those that are not known
        has_row = key in self._numbers or (not key and bool(self) and not self._numbers)
        return self._row(key) if has_row else None

    def _row(self, key: str) -> Delivery:
        return self._inbound or self._named.get(key) or self._unnamed or NOTHING_SAID

    def _take_delivery(self, event: Event) -> Delivery:
        if event.direction is Direction.IN:
            self._inbound = merge(self._inbound or NOTHING_SAID, event, self.conflict)
            return self._inbound
        if event.recipient is None:
            self._unnamed = merge(self._unnamed or NOTHING_SAID, event, self.conflict)
            return self._inbound or self._unnamed
        key = number_key(event.recipient)
        self._named[key] = merge(self._named.get(key, NOTHING_SAID), event, self.conflict)
        return self._row(key)

    def _take_facts(self, event: Event) -> None:
        self._first = _first(self._first, event)
        received_at = event.received_at
        self.first_received_at = min(self.first_received_at or received_at, received_at)
        self.updated_at = max(self.updated_at or received_at, received_at)
        facts = event.facts
        for name in _FACTS:
            if getattr(facts, name) not in (None, ""):
                self._facts[name] = _first(self._facts.get(name), event)
        if facts.has_text:
            self._facts["text"] = _first(self._facts.get("text"), event)
        if facts.has_media:
            self._facts["media"] = _first(self._facts.get("media"), event)
        for place, number in enumerate(facts.recipients):
            self._spell(number, 0, event, place)
        if event.recipient is not None:
            self._spell(event.recipient, 1, event, 0)

    def _spell(self, number: str, source: int, event: Event, place: int) -> None:
        key, spelling = number_key(number), (source, event.order, place, number)
        if key not in self._numbers or spelling < self._numbers[key]:
            self._numbers[key] = spelling


@dataclass(frozen=True, slots=True)
class Standing:
    """What a message as a whole says: the roll-up of its recipients."""

    status: str
    state: str | None
    delivery_state: str | None
    code: int | None
    description: str | None
    contradicted: bool
    awaiting_receipt: bool


PENDING: Final = "pending"
PARTIAL: Final = "partial"


def roll_up(deliveries: Iterable[Delivery], direction: Direction) -> Standing:
    """A message's standing: that of its recipients where they agree, else pending or partial."""
    rows = list(deliveries)
    contradicted = any(row.contradicted for row in rows)
    awaiting = direction is Direction.OUT and any(row.awaits_receipt for row in rows)
    if len({row.status for row in rows}) > 1:
        pending = any(row.rank < _RANK[Status.UNCONFIRMED] for row in rows)
        status, delivery_state = (PENDING, "waiting") if pending else (PARTIAL, None)
        return Standing(status, "sent", delivery_state, None, None, contradicted, awaiting)
    states = {row.axes for row in rows}
    state, delivery_state = states.pop() if len(states) == 1 else _AXES[rows[0].status]
    codes = {(row.code, row.description) for row in rows}
    code, description = codes.pop() if len(codes) == 1 else (None, None)
    return Standing(rows[0].status, state, delivery_state, code, description, contradicted, awaiting)


def fold(events: Iterable[Event], conflict: FinalConflict = FinalConflict.FAILED_WINS) -> Message:
    """The message that a set of events of one message makes; repeated events count once."""
    message: Message | None = None
    seen: set[str] = set()
    for event in events:
        message = message or Message(event.api, event.message_id, conflict)
        if event.id not in seen:
            seen.add(event.id)
            message.add(event)
    if message is None:
        raise ValueError("a message needs at least one event")
    return message
