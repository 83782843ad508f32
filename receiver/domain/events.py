"""Events and the callbacks that carry them: a callback is one HTTP request, raw; an event is normalized from it."""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, final

import msgspec
import orjson

from receiver.domain.vocabulary import Api, Direction, Failure, Quarantine, Status, TagVerdict, number_key

__all__ = [
    "ALERT",
    "FAR_FUTURE",
    "MAX_EVENTS",
    "MAX_MENTIONS",
    "MAX_RECIPIENTS",
    "PLAIN_FIELDS",
    "RECONCILED",
    "REGISTERED",
    "REGISTERED_FIELDS",
    "Api",
    "Callback",
    "Direction",
    "Element",
    "Event",
    "Failure",
    "MessageFields",
    "MessageKey",
    "Quarantine",
    "Rejected",
    "Status",
    "TagVerdict",
    "event_id",
    "number_key",
]

FAR_FUTURE: Final = datetime.max.replace(tzinfo=UTC)

# Limits of one message. Each new event has all stored events of its message read and folded again, so without these
# limits a single message could occupy the processor for ever.
MAX_RECIPIENTS: Final = 1_000
MAX_EVENTS: Final = 10_000
# The recipients of all events of a message, repetitions included: they are stored with, and read with, each event.
MAX_MENTIONS: Final = 1_000_000


REGISTERED: Final = "registered"
"""The route of an entry of the journal that the sender wrote, and no provider: it registers sends."""

RECONCILED: Final = "reconciled"
"""The route of an entry of the journal that is the provider's answer to our question about a message."""
ALERT: Final = "alert"
"""The route, and the API, of an entry of the event log that is a change of an alert and no event of a message."""

MessageKey = tuple[Api, Direction, str]
"""The identity of a message. An inbound and an outbound message with the same id are two messages."""


class MessageFields(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The fields of an event that describe its message, as opposed to its delivery.

    `recipients` is `message.to` (v1: `to`) as given, empty if the event has none. The log does not store `text` and
    `media`, which are stored with the message alone: in an event that is read from the log, `has_text` and `has_media`
    say whether the callback had any. `created_at` is when the provider created the message. The fields from
    `callback_url` on are parameters of the send, which no callback has: only a registration does.
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
    callback_url: str | None = None
    callback_timeout: int | None = None
    fallback_url: str | None = None
    receipt_requested: str | None = None


# The fields that are a text or a number: a message has the first non-empty value of each.
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
# Likewise, but in registrations alone.
REGISTERED_FIELDS: Final = ("callback_url", "callback_timeout", "fallback_url", "receipt_requested")


@final
class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A normalized fact about one message and one recipient.

    `recipient` is None if the callback names no number, or does not say which of several it is about. `type` is the
    provider's word (`message-delivered`; v1: `sms`, `mms`). `status` is the event's own status, before any merge.
    `state` and `delivery_state` are v1's values if they are known ones. `receipt_expected` tells whether the provider
    sends a final event after this one. `contradicted` is true if the event contradicts itself. `occurred_at` is the
    provider's clock (never set for v1, whose `time` is the creation of the message), `received_at` ours. `id` is the
    digest made by `event_id`.

    A registration (`receiver.providers.sends`) is the one event that no provider reported. Its status is `unknown`,
    and `callback_expected` tells whether any callback about the message should come. A reconciled event
    (`receiver.reconciliation`) comes from a look-up of the message at the provider.
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
    receipt_expected: bool = True
    callback_expected: bool = False
    contradicted: bool = False
    tag_verdict: TagVerdict = TagVerdict.UNCHECKED
    fields: MessageFields = msgspec.field(default_factory=MessageFields)
    received_at: datetime
    route: str
    callback_id: str

    @property
    def order(self) -> tuple[datetime, str]:
        """The sort key among the events of a message: event time, then id; an event without a time is last."""
        return (self.occurred_at or FAR_FUTURE, self.id)

    def precedes(self, other: "Event") -> bool:
        """Whether this event's `order` is smaller than the other's, in a third of the time of comparing both tuples."""
        time, other_time = self.occurred_at, other.occurred_at
        if time == other_time:
            return self.id < other.id
        return other_time is None or (time is not None and time < other_time)

    @property
    def is_registration(self) -> bool:
        """Whether the sender registered the message with this event; it comes after all others in their `order`."""
        return self.route == REGISTERED

    @property
    def is_reconciled(self) -> bool:
        """Whether the event comes from a look-up at the provider; it comes after all callbacks in their `order`."""
        return self.route == RECONCILED

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
    """The identity of an event, 32 hexadecimal digits: two events with the same id are the same event.

    `time` is the event's time: UTC in canonical form, or as given if it cannot be parsed. v1 events have no time; their
    state and delivery fields, in `delivery`, distinguish them. JSON distinguishes absent (null) from empty.
    """
    identity = [api, message_id, number_key(recipient) if recipient else None, type, time, *delivery, code]
    return hashlib.sha256(_canonical(identity)).hexdigest()[:32]


def _canonical(identity: Sequence[str | None]) -> bytes:
    """The JSON of an identity, byte for byte that of `json`: pure ASCII, with `\\u` escapes for everything else.

    orjson takes a tenth of the time. Its output is the same except that it does not escape DEL and non-ASCII
    characters, and raises for lone surrogates; these take the slow path.
    """
    try:
        spelled = orjson.dumps(identity)
    except orjson.JSONEncodeError:
        return _ASCII_JSON(identity).encode("ascii")
    if spelled.isascii() and b"\x7f" not in spelled:
        return spelled
    return _ASCII_JSON(identity).encode("ascii")


_ASCII_JSON: Final = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


class Callback(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One HTTP request from a provider, unchanged.

    `api` and `route` (`primary`, `fallback`) come from the URL; Bandwidth's parser recognises the API version of an
    event from the event itself. `query` is the raw query string, `headers` lacks the headers that hold secrets,
    `remote` is the peer's address. Entries with the routes `registered` and `reconciled` are no such requests: their
    bodies are registered sends, and an answer to a request of ours, whose `query` names the message.
    """

    id: str
    received_at: datetime
    api: Api
    route: str
    method: str
    remote: str | None = None
    query: str = ""
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    body: bytes = b""


@final
class Rejected(msgspec.Struct, frozen=True, gc=False):
    """An element of a callback that did not become an event.

    `index` is its place in the array, `detail` describes the reason for people, `message_id` is the message it names.
    """

    index: int
    reason: Quarantine
    detail: str = ""
    message_id: str | None = None


Element = Event | Rejected
