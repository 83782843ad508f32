"""What can be asked of the status table, of the ledger and about the sinks, and what comes back."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, Literal, TypeVar

from receiver.domain.events import Api, Direction, TagVerdict

Item = TypeVar("Item")

ReplayAction = Literal["pause", "resume", "cancel"]
ReplayState = Literal["running", "paused", "cancelled", "finished", "expired"]
SinkState = Literal["working", "down", "paused", "unattended", "removed"]


class SortOrder(StrEnum):
    ASC = "asc"
    DESC = "desc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[Item]):
    """A part of a list, and whether the list goes on after it."""

    items: list[Item]
    more: bool


@dataclass(frozen=True, slots=True)
class MessagePlace:
    """A message's place in the list of messages: the next page begins after it."""

    listed_at: datetime
    api: Api
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageQuery:
    """Which messages, in which order, from which place on. What is None does not filter.

    `sender` and `recipient` are numbers without plus. `since` is inclusive, `until` exclusive; both are about the
    message's creation, else its first receipt. `delivery_code` asks for any recipient's; together with `recipient`,
    for that one's.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipientView:
    """A delivery as it is shown: how far a message of a generation got to one number (None where none is known)."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageView:
    """A message as it is shown: its facts, its standing, and its recipients in their order."""

    api: Api
    id: str
    direction: Direction
    sender: str | None
    numbers: list[str]
    owner: str | None
    application_id: str | None
    text: str | None
    media: list[str]
    tag: str | None
    tag_verdict: TagVerdict
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
        return MessagePlace(self.listed_at, self.api, self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackQuery:
    """Which callbacks of the ledger, in which order, from which id on. What is None does not filter."""

    outcome: str | None = None
    reason: str | None = None
    order: SortOrder = SortOrder.DESC
    after: str | None = None
    skip: int = 0
    size: int = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackView:
    """A callback of the ledger without what came in it."""

    id: str
    received_at: datetime
    api: Api
    route: str
    method: str
    remote: str | None
    outcome: str
    reason: str | None
    events: int
    duplicates: int
    reread_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeCallback(CallbackView):
    """A callback of the ledger with what came in it, and what was not read of it, element by element."""

    query: str
    headers: dict[str, str]
    body: bytes
    problems: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterChoice:
    """Which dead letters. What is None does not filter.

    `since` is inclusive, `until` exclusive; both are about when they died.
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
    """A page of the chosen dead letters by id, in the order in which they died or in reverse, from an id on."""

    choice: DeadLetterChoice = DeadLetterChoice()
    order: SortOrder = SortOrder.ASC
    after: int | None = None
    skip: int = 0
    size: int = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterView:
    """An event that one sink will not be given again by itself, and why."""

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
    """One try to publish one event of a message to one sink, what came of it and what was decided.

    `status` and `recipient` are the event's. `replay_id` names the replay it was part of, None where it was none.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayView:
    """The events after `after_position` up to `to_position`, to be given to a sink again.

    All up to `position` are done with; `published` and `dead_letters` count what became of those that the sink's
    filter let through. `state` is `running`, `paused`, `cancelled`, `finished`, or `expired`: then retention has taken
    its events, of a sink that nobody worked for any more.
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
        """The part of its stretch of the log that is done with, from 0 to 1."""
        return round((self.position - self.after_position) / max(1, self.to_position - self.after_position), 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkView:
    """A sink that was ever registered: how it is doing, what it still has before it, and who works for it.

    `type` is None where the settings have no such sink. `lag` counts the events after its cursor, `oldest_at` is when
    the oldest of what waits was received. `retries` are counted by state, `dead_letters` by reason.
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
        """The one thing to know first."""
        if not self.configured:
            return "removed"
        if self.paused:
            return "paused"
        if not self.is_attended:
            return "unattended"
        return "down" if self.down_since_at is not None else "working"
