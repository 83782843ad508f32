"""What Bandwidth says of a message, in our words: events, their statuses, their identity."""

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

FAR_FUTURE: Final = datetime.max.replace(tzinfo=UTC)


class Api(StrEnum):
    """Which generation of Bandwidth's API an event belongs to."""

    V1 = "v1"
    V2 = "v2"


class Direction(StrEnum):
    IN = "in"
    OUT = "out"


class Status(StrEnum):
    """Where a delivery stands, in rising rank; `received` is for inbound messages alone."""

    UNKNOWN = "unknown"
    QUEUED = "queued"
    SENDING = "sending"
    SENT = "sent"
    UNCONFIRMED = "unconfirmed"
    DELIVERED = "delivered"
    FAILED = "failed"
    READ = "read"
    RECEIVED = "received"


class Failure(StrEnum):
    """On which side a message failed: `refused` before the network, `network` behind it, or not told (`other`)."""

    REFUSED = "refused"
    NETWORK = "network"
    OTHER = "other"


class TagVerdict(StrEnum):
    """What checking the signature of an event's tag gave."""

    VALID = "valid"
    UNSIGNED = "unsigned"
    FORGED = "forged"
    MISSING = "missing"
    NOT_APPLICABLE = "not-applicable"
    UNCHECKED = "unchecked"


class Quarantine(StrEnum):
    """Why an element of a callback was kept raw instead of becoming an event."""

    UNREADABLE = "unreadable"
    UNKNOWN_TYPE = "unknown-type"
    NO_MESSAGE_ID = "no-message-id"
    FOREIGN_PRODUCT = "foreign-product"
    TAG_FORGED = "tag-forged"
    TAG_UNSIGNED = "tag-unsigned"
    TAG_MISSING = "tag-missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What one event tells about its message, as opposed to about its delivery.

    `recipients` is `message.to` (v1: `to`) as given, empty when the event named none there. An event read back
    from the log comes without `text` and `media`, which are kept with the message alone: `has_text` and
    `has_media` then say that it had brought some. `created_at` is when Bandwidth made the message.
    """

    sender: str | None = None
    recipients: tuple[str, ...] = ()
    owner: str | None = None
    application_id: str | None = None
    text: str | None = None
    has_text: bool = False
    media: tuple[str, ...] = ()
    has_media: bool = False
    tag: str | None = None
    segment_count: int | None = None
    channel: str | None = None
    carrier_name: str | None = None
    priority: str | None = None
    created_at: datetime | None = None


# the facts that are a text or a number: of each, a message keeps the first that is not empty
PLAIN_FACTS: Final = (
    "sender",
    "owner",
    "application_id",
    "tag",
    "segment_count",
    "channel",
    "carrier_name",
    "priority",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A normalized fact about one message and one recipient.

    `recipient` is None where the callback did not say which of several numbers, or any. `type` is the word on the
    wire (`message-delivered`; v1: `sms`, `mms`). `status` is what this event itself says. `state` and
    `delivery_state` are v1's own words, where it used known ones. `contradicted` is true for an event that
    contradicts itself. `occurred_at` is Bandwidth's clock (never set for v1, whose `time` is the creation of the
    message), `received_at` ours. `id` is the digest made by `event_id`.
    """

    id: str
    api: Api
    message_id: str
    direction: Direction
    type: str
    status: Status
    recipient: str | None
    occurred_at: datetime | None
    read_at: datetime | None = None
    code: int | None = None
    description: str | None = None
    failure: Failure | None = None
    state: str | None = None
    delivery_state: str | None = None
    contradicted: bool = False
    tag_verdict: TagVerdict = TagVerdict.UNCHECKED
    facts: Facts = field(default_factory=Facts)
    received_at: datetime
    route: str
    callback_id: str

    @property
    def order(self) -> tuple[datetime, str]:
        """The place of this event among those of its message: event time, then id; without a time, last."""
        return (self.occurred_at or FAR_FUTURE, self.id)


def number_key(number: str | None) -> str:
    """A number as it is compared: without the plus. The key of "no number" is the empty string."""
    return number.removeprefix("+") if number else ""


def event_id(
    *,
    api: Api,
    message_id: str,
    recipient: str | None,
    type: str,  # noqa: A002
    time: str | None,
    delivery: tuple[str | None, ...] = (),
    code: str | None,
) -> str:
    """The identity of an event, 32 hexadecimal digits: two events with the same id are one event twice.

    `time` is the event's time (UTC, canonical where it could be read, as given where not); v1 has none and is told
    apart by `delivery`: its state and delivery fields. JSON keeps what is absent (null) apart from what is empty.
    """
    identity = [api, message_id, number_key(recipient) if recipient else None, type, time, *delivery, code]
    return hashlib.sha256(_canonical(identity).encode("ascii")).hexdigest()[:32]


_canonical: Final = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode
