"""What Bandwidth says of a message, in our words: events, their statuses, their identity."""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, final

import msgspec
import orjson


class Word(StrEnum):
    """A word of a fixed vocabulary, hashed as the text it is: `Enum` hashes in Python, for every look-up of a key."""

    __hash__ = str.__hash__


class Api(Word):
    """Which generation of Bandwidth's API an event belongs to."""

    V1 = "v1"
    V2 = "v2"


class Direction(Word):
    IN = "in"
    OUT = "out"


class Status(Word):
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


class Failure(Word):
    """On which side a message failed: `refused` before the network, `network` behind it, or not told (`other`)."""

    REFUSED = "refused"
    NETWORK = "network"
    OTHER = "other"


class TagVerdict(Word):
    """What checking the signature of an event's tag gave."""

    VALID = "valid"
    UNSIGNED = "unsigned"
    FORGED = "forged"
    MISSING = "missing"
    NOT_APPLICABLE = "not-applicable"
    UNCHECKED = "unchecked"


class Quarantine(Word):
    """Why an element of a callback was kept raw instead of becoming an event."""

    UNREADABLE = "unreadable"
    UNKNOWN_TYPE = "unknown-type"
    NO_MESSAGE_ID = "no-message-id"
    FOREIGN_PRODUCT = "foreign-product"
    TOO_LARGE = "too-large"
    TAG_FORGED = "tag-forged"
    TAG_UNSIGNED = "tag-unsigned"
    TAG_MISSING = "tag-missing"


def number_key(number: str | None) -> str:
    """A number as it is compared: without the plus. The key of "no number" is the empty string."""
    return number.removeprefix("+") if number else ""


__all__ = [
    "FAR_FUTURE",
    "MAX_EVENTS",
    "MAX_MENTIONS",
    "MAX_RECIPIENTS",
    "PLAIN_FIELDS",
    "Api",
    "Direction",
    "Event",
    "Failure",
    "MessageFields",
    "MessageKey",
    "Quarantine",
    "Status",
    "TagVerdict",
    "event_id",
    "number_key",
]

FAR_FUTURE: Final = datetime.max.replace(tzinfo=UTC)

# What one message may hold. Every event of a message is read and folded again when another one comes, so without these
# limits a single message could keep the processor busy for good.
MAX_RECIPIENTS: Final = 1_000
MAX_EVENTS: Final = 10_000
# The recipients of all events of a message, repetitions counted: they are stored, and read again, with each event.
MAX_MENTIONS: Final = 1_000_000


MessageKey = tuple[Api, Direction, str]
"""What a message is known by. An inbound and an outbound message may have the same id; they are two messages."""


class MessageFields(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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
PLAIN_FIELDS: Final = (
    "sender",
    "owner",
    "application_id",
    "tag",
    "segment_count",
    "channel",
    "carrier_name",
    "priority",
)


@final
class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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
    facts: MessageFields = msgspec.field(default_factory=MessageFields)
    received_at: datetime
    route: str
    callback_id: str

    @property
    def order(self) -> tuple[datetime, str]:
        """The place of this event among those of its message: event time, then id; without a time, last."""
        return (self.occurred_at or FAR_FUTURE, self.id)

    def precedes(self, other: "Event") -> bool:
        """Whether the `order` of this event is before that of another; a third of the time of comparing these."""
        time, other_time = self.occurred_at, other.occurred_at
        if time == other_time:
            return self.id < other.id
        return other_time is None or (time is not None and time < other_time)

    @property
    def key(self) -> MessageKey:
        """The message this event is about."""
        return (self.api, self.direction, self.message_id)


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
    return hashlib.sha256(_canonical(identity)).hexdigest()[:32]


def _canonical(identity: Sequence[str | None]) -> bytes:
    """The JSON of an identity, as `json` spells it: pure ASCII, `\\u` escapes for everything else.

    orjson takes a tenth of the time. It spells the same, except for DEL and what is not ASCII, which it leaves as it
    is, and lone surrogates, which it refuses.
    """
    try:
        spelled = orjson.dumps(identity)
    except orjson.JSONEncodeError:
        return _ASCII_JSON(identity).encode("ascii")
    if spelled.isascii() and b"\x7f" not in spelled:
        return spelled
    return _ASCII_JSON(identity).encode("ascii")


_ASCII_JSON: Final = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode
