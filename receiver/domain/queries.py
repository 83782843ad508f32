"""What can be asked of the status table and of the ledger, and what comes back."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

from receiver.domain.events import Api, Direction, TagVerdict

Item = TypeVar("Item")


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
