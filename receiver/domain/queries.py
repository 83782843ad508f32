"""The queries of the status table, the journal and the sinks, and the views that they return."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Generic, Literal, TypeVar

import msgspec

from receiver.domain.events import Api, Direction, MessageKey, TagVerdict

Item = TypeVar("Item")

ReplayAction = Literal["pause", "resume", "cancel"]
ReplayState = Literal["running", "paused", "cancelled", "finished", "expired"]
SinkState = Literal["working", "down", "paused", "unattended", "removed"]


class SortOrder(StrEnum):
    ASC = "asc"
    DESC = "desc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[Item]):
    """A page of a list, and whether the list has more items after it."""

    items: list[Item]
    more: bool


@dataclass(frozen=True, slots=True)
class MessagePlace:
    """A message's place in the list of messages: the next page begins after it."""

    listed_at: datetime
    api: Api
    direction: Direction
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageQuery:
    """A query for messages: filters, order and page. A filter that is None does not filter.

    `sender` and `recipient` are numbers without plus. `since` is inclusive, `until` exclusive; both compare the
    creation of the message, else its first receipt. `delivery_code` matches the code of any recipient; together with
    `recipient`, the code of that recipient.
    """

    sender: str | None = None
    recipient: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    direction: Direction | None = None
    status: str | None = None
    state: str | None = None
    delivery_state: str | None = None
    delivery_code: int | None = None
    tag: str | None = None
    tag_verdict: TagVerdict | None = None
    application_id: str | None = None
    contradicted: bool | None = None
    awaiting_receipt: bool | None = None
    order: SortOrder = SortOrder.DESC
    after: MessagePlace | None = None
    skip: int = 0
    size: int = 25

    def is_contradictory(self, delivery_states: Mapping[str, frozenset[str]]) -> bool:
        """Whether no message can have all of these values; the database would search very many rows to find none.

        `delivery_states` are those that messages of each status can have.
        """
        filters = ((self.direction, "in"), (self.status, "received"), (self.state, "received"))
        is_inbound = {value == inbound for value, inbound in filters if value is not None}
        if self.tag_verdict is not None:
            is_inbound.add(self.tag_verdict is TagVerdict.NOT_APPLICABLE)
        if len(is_inbound) > 1:
            return True
        if self.status is None or self.delivery_state is None:
            return False
        return self.delivery_state not in delivery_states.get(self.status, (self.delivery_state,))


class RecipientView(msgspec.Struct, frozen=True, gc=False):
    """A delivery as it is shown: how far a message got to one number (None: no number is known)."""

    api: Api
    number: str | None
    status: str
    state: str | None
    delivery_state: str | None
    delivery_code: int | None
    delivery_description: str | None
    sent_at: datetime | None
    delivered_at: datetime | None
    failed_at: datetime | None
    read_at: datetime | None
    contradicted: bool
    updated_at: datetime | None


class MessageView(msgspec.Struct, frozen=True):
    """A message as it is shown: its fields, its status, and its recipients in their order.

    A msgspec structure: a page has up to a thousand messages, and a frozen dataclass costs a `setattr` for each field.
    """

    api: Api
    direction: Direction
    id: str
    sender: str | None
    numbers: list[str]
    owner: str | None
    application_id: str | None
    text: str | None
    media: list[str] | None
    tag: str | None
    tag_verdict: str
    segment_count: int | None
    channel: str | None
    carrier_name: str | None
    priority: str | None
    created_at: datetime | None
    listed_at: datetime
    status: str
    state: str | None
    delivery_state: str | None
    delivery_code: int | None
    delivery_description: str | None
    contradicted: bool
    awaiting_receipt: bool
    first_received_at: datetime
    updated_at: datetime
    recipients: list[RecipientView]

    @property
    def place(self) -> MessagePlace:
        return MessagePlace(self.listed_at, self.api, self.direction, self.id)

    @property
    def key(self) -> MessageKey:
        return (self.api, self.direction, self.id)


CallbackOutcome = Literal["pending", "accepted", "quarantined"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackQuery:
    """A query for callbacks of the journal: filters, order and page. A filter that is None does not filter.

    `reason` finds quarantined callbacks with an element that was rejected for this reason. `message_id` finds callbacks
    with an event of the message, or with a quarantined element that names the message. `since` is inclusive, `until`
    exclusive; both compare the time of receipt.
    """

    outcome: CallbackOutcome | None = None
    reason: str | None = None
    message_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    order: SortOrder = SortOrder.DESC
    after: str | None = None
    skip: int = 0
    size: int = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackView:
    """A callback of the journal without headers and body.

    `reason` is that of the first quarantined element, `reprocessed_at` when that element was last reprocessed; both are
    None unless an element of the callback is quarantined.
    """

    id: str
    received_at: datetime
    api: Api
    route: str
    method: str
    remote: str | None
    outcome: CallbackOutcome
    reason: str | None
    reprocessed_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedElement:
    """An element of a callback that did not become an event: its place in the array, and why."""

    index: int
    reason: str
    detail: str
    message_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeCallback(CallbackView):
    """A callback of the journal with query string, headers and body, and its quarantined elements."""

    query: str
    headers: dict[str, str]
    body: bytes
    problems: list[QuarantinedElement]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterChoice:
    """Filters of dead letters. A filter that is None does not filter.

    `since` is inclusive, `until` exclusive; both compare `died_at`, the time at which an event became a dead letter.
    """

    sink: str | None = None
    ids: Sequence[int] | None = None
    reason: str | None = None
    message_id: str | None = None
    event_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterQuery:
    """A page of the chosen dead letters, by id; ids rise with `died_at`."""

    choice: DeadLetterChoice = DeadLetterChoice()
    order: SortOrder = SortOrder.ASC
    after: int | None = None
    skip: int = 0
    size: int = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterView:
    """An event that is not published to one sink again by itself, and why."""

    id: int
    sink: str
    position: int
    event_id: str
    message_id: str
    recipient: str | None
    status: str
    reason: str
    detail: str
    attempts: int
    response_code: int | None
    response: str | None
    first_at: datetime
    died_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptView:
    """One attempt to publish one event of a message to one sink, its outcome and the decision.

    `status` and `recipient` are the event's. `replay_id` names the replay that the attempt belongs to, None outside of
    a replay.
    """

    id: int
    sink: str
    position: int
    event_id: str
    recipient: str | None
    status: str
    started_at: datetime
    ended_at: datetime
    outcome: str
    decision: str
    reason: str | None
    response_code: int | None
    response: str | None
    replay_id: int | None

    @property
    def seconds(self) -> float:
        return (self.ended_at - self.started_at).total_seconds()


PublicationState = Literal["published", "dead_letter", "retry", "parked", "waiting", "passed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicationView:
    """How far the publication of one event of a message to one sink has got.

    `waiting`: the cursor of the sink has not passed the event. `passed`: it has, and nothing else is stored, so the
    event was published or left out by the filter. `last_at` is when the last stored attempt ended, `due_at` when a
    retry is due. `is_held`: later events of the message wait until an operator decides about a dead letter.
    """

    sink: str
    event_id: str
    status: str
    recipient: str | None
    state: PublicationState
    attempts: int
    last_at: datetime | None
    due_at: datetime | None = None
    reason: str | None = None
    dead_letter_id: int | None = None
    is_held: bool = False
    is_paused: bool = False
    is_down: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayView:
    """A replay: the events after `after_position` up to and including `to_position` are published to a sink again.

    The replay has passed all events up to `position`; `published` and `dead_letters` count those that the sink's filter
    let through. `state` is `running`, `paused`, `cancelled`, `finished` or `expired`. A replay expires if no worker
    publishes to its sink any more and retention removes its events.
    """

    id: int
    sink: str
    state: ReplayState
    after_position: int
    to_position: int
    position: int
    published: int
    dead_letters: int
    requested_at: datetime
    ended_at: datetime | None

    @property
    def progress(self) -> float:
        """The share of its log range that the replay has passed, from 0 to 1."""
        return round((self.position - self.after_position) / max(1, self.to_position - self.after_position), 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkView:
    """A sink that was ever registered: its health, its backlog and its lease.

    `type` is None if the settings have no such sink. `lag` counts the events after its cursor, `oldest_at` is when the
    oldest waiting event was received. `retries` are counted by state, `dead_letters` by reason. `is_attended` is true
    while a worker holds its lease.
    """

    name: str
    type: str | None
    paused: bool
    cursor: int
    lag: int
    oldest_at: datetime | None
    oldest_seconds: float | None
    retries: dict[str, int]
    dead_letters: dict[str, int]
    failures: int
    down_since_at: datetime | None
    last_success_at: datetime | None
    last_error: str | None
    lease_until: datetime | None
    is_attended: bool
    replay: ReplayView | None

    @property
    def configured(self) -> bool:
        return self.type is not None

    @property
    def state(self) -> SinkState:
        """The first of these that holds: removed, paused, unattended, down; else working."""
        if not self.configured:
            return "removed"
        if self.paused:
            return "paused"
        if not self.is_attended:
            return "unattended"
        return "down" if self.down_since_at is not None else "working"
