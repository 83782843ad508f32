"""Messages as the sandbox stores them, the request for an inbound message, and the statuses that are expected."""

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from receiver.domain.events import Api, Direction
from receiver.sandbox.scenario import Kind, Receipts, Scenario, Step

TEXT_RETENTION: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackTarget:
    """Where the callbacks of a message go. `timeout` is in seconds of real time, whatever the speed."""

    url: str | None = field(default=None, repr=False)
    fallback_url: str | None = field(default=None, repr=False)
    method: Literal["get", "post"] = "post"
    timeout: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RcsReply:
    """A reply by an RCS user that is not a text: a tapped suggestion or a location."""

    text: str | None = None
    postback_data: str | None = None
    paired_message_id: str | None = None
    latitude: str | None = None
    longitude: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class SandboxMessage:
    """An outbound message, or one copy of an inbound message; `owner` is the user's number that it belongs to.

    `confirmed` holds the steps whose callback was answered 2xx, `unanswered` the steps whose callback may have arrived
    but ended without an answer.
    """

    api: Api
    id: str
    ordinal: int
    user: str
    direction: Direction
    sender: str
    recipients: tuple[str, ...]
    owner: str
    created_at: datetime
    scenario: Scenario
    target: CallbackTarget
    # v1: the URL of the message
    uri: str = ""
    text: str | None = None
    media: tuple[str, ...] = ()
    segment_count: int = 1
    application_id: str | None = None
    tag: str | None = None
    # v1, outbound
    receipts: Receipts = Receipts.NONE
    # v2
    priority: str | None = None
    expiration: str | None = None
    channel: str | None = None
    carrier_name: str | None = None
    event: str = "message-received"
    reply: RcsReply | None = None
    confirmed: set[Step] = field(default_factory=set)
    unanswered: set[Step] = field(default_factory=set)
    is_evicted: bool = False

    @property
    def is_mms(self) -> bool:
        return bool(self.media) or (self.api is Api.V2 and len(self.recipients) > 1)

    @property
    def sort_key(self) -> int:
        """The key that lists are sorted by: time of creation, then order of creation."""
        return int(self.created_at.timestamp() * 1000) * 1_000_000 + self.ordinal % 1_000_000

    def text_at(self, now: datetime) -> str | None:
        """The text, or None once its retention has passed."""
        return self.text if now - self.created_at < TEXT_RETENTION else None

    def occurred_at(self, step: Step, speed: float) -> datetime:
        return self.created_at + timedelta(seconds=step.after / speed)

    def past_steps(self, now: datetime, speed: float) -> list[Step]:
        """The steps up to `now`, oldest first."""
        return [step for step in self.scenario.steps if self.occurred_at(step, speed) <= now]


def timestamp(time: datetime, precision: Literal["milliseconds", "microseconds"]) -> str:
    """Formats a time as Bandwidth does: UTC with `Z`."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec=precision) + "Z"


InboundEvent = Literal[
    "message-received",
    "suggestion-response",
    # One event with three spellings, in three editions of Bandwidth's specification.
    "requested-location-response",
    "request-location-response",
    "location-request-response",
]


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Numbers = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=250)], ...], BeforeValidator(_as_tuple)]


class InboundRequest(BaseModel):
    """An inbound message to simulate. `to` are the user's numbers, `others` the other members of the group."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, hide_input_in_errors=True)

    api: Api = Api.V2
    from_: Annotated[str, Field(alias="from", min_length=1, max_length=250)]
    to: Annotated[Numbers, Field(min_length=1)]
    others: Numbers = ()
    text: str | None = None
    media: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    channel: Literal["SMS", "MMS", "RBM"] | None = None
    event: InboundEvent = "message-received"
    user: str | None = None
    application_id: str | None = None
    carrier_name: str | None = None
    # suggestion-response
    postback_data: str | None = None
    paired_message_id: str | None = None
    # location responses
    latitude: str | None = None
    longitude: str | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.api is Api.V1 and (len(self.to) > 1 or self.others or self.channel or self.reply):
            raise ValueError("v1 has no group messages and no RCS")
        if len({*self.to, *self.others}) < len(self.to) + len(self.others):
            raise ValueError("to and others must not contain a number twice")
        return self

    @property
    def is_mms(self) -> bool:
        return bool(self.media or self.others or len(self.to) > 1)

    @property
    def reply(self) -> RcsReply | None:
        """The RCS reply, or None for an ordinary message."""
        if self.event == "message-received":
            return None
        if self.event == "suggestion-response":
            return RcsReply(text=self.text, postback_data=self.postback_data, paired_message_id=self.paired_message_id)
        return RcsReply(latitude=self.latitude or "37.7749", longitude=self.longitude or "-122.4194")


# --- segments ---

# GSM 03.38: a character of the basic table takes one septet, of the extension table two (escape and character).
_BASIC: Final = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_EXTENSION: Final = frozenset("\f^{}\\[~]|€")
_GSM: Final = _BASIC | _EXTENSION

# The capacity of a single segment, and of each of several segments, which have a header of six bytes.
_SEPTETS: Final = (160, 153)
_UTF_16_UNITS: Final = (70, 67)


def is_gsm(text: str) -> bool:
    """Whether a text has only characters of the GSM 03.38 alphabet."""
    return _GSM.issuperset(text)


def not_gsm(text: str) -> list[str]:
    """Returns the Unicode names of the characters of a text that GSM 03.38 does not have, each once."""
    return [
        unicodedata.name(character, f"U+{ord(character):04X}")
        for character in dict.fromkeys(text)
        if character not in _GSM
    ]


def segment_count(text: str) -> int:
    """Returns the number of segments of a text, at least 1: in GSM 03.38 if possible, else in UCS-2."""
    if is_gsm(text):
        return _segments((2 if character in _EXTENSION else 1 for character in text), *_SEPTETS)
    return _segments((2 if ord(character) > 0xFFFF else 1 for character in text), *_UTF_16_UNITS)


def _segments(widths: Iterator[int], single: int, joined: int) -> int:
    """Returns the number of segments for characters of these widths. A wide character is never split."""
    total, count, room = 0, 1, joined
    for width in widths:
        total += width
        if width > room:
            count, room = count + 1, joined
        room -= width
    return 1 if total <= single else count


# --- expected statuses ---

# The delivery statuses that a correct receiver shows, computed from the callbacks that were answered 2xx, with the
# sandbox's own steps and none of the receiver's parsing or merging, so that a test can compare the two.

# In rising rank, as the receiver documents them.
_RANKS: Final = ("unknown", "sending", "sent", "unconfirmed", "delivered", "failed", "read", "received")
_STATUSES: Final = {
    Kind.SENDING: "sending",
    Kind.SENT: "sent",
    Kind.WAITING: "sent",
    Kind.DELIVERED: "delivered",
    Kind.READ: "read",
    Kind.RECEIVED: "received",
}
_UNCONFIRMED_CODES: Final = {Api.V1: frozenset({902, 999}), Api.V2: frozenset(range(9000, 10_000))}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedStatus:
    """The status that a correct receiver shows for one delivery.

    `status` is None if no callback of the message was answered 2xx. `certain` is false if a callback ended without an
    answer: the receiver may have stored it all the same.
    """

    api: Api
    message_id: str
    recipient: str
    direction: Direction
    status: str | None
    code: int | None
    contradicted: bool
    certain: bool


def expected_statuses(message: SandboxMessage) -> Iterator[ExpectedStatus]:
    """Yields the expected status of each delivery of a message."""
    confirmed = [step for step in message.confirmed if step.kind is not Kind.UNKNOWN_TYPE]
    uncertain = [step for step in message.unanswered - message.confirmed if step.kind is not Kind.UNKNOWN_TYPE]
    inbound = message.direction is Direction.IN
    for recipient in message.recipients:
        steps = [step for step in confirmed if inbound or step.recipient == recipient]
        status, code = _winner(message.api, steps)
        statuses = {_status(message.api, step) for step in steps}
        yield ExpectedStatus(
            api=message.api,
            message_id=message.id,
            recipient=recipient,
            direction=message.direction,
            status=status if confirmed else None,
            code=code,
            contradicted="failed" in statuses and not statuses.isdisjoint({"delivered", "read"}),
            certain=not uncertain,
        )


def _winner(api: Api, steps: Iterable[Step]) -> tuple[str, int | None]:
    """Returns the status of the highest rank with its code."""
    statuses = [(_status(api, step), step.code) for step in steps]
    return max(statuses, key=lambda status: _RANKS.index(status[0]), default=(_RANKS[0], None))


def _status(api: Api, step: Step) -> str:
    if step.kind is Kind.FAILED:
        return "unconfirmed" if step.code in _UNCONFIRMED_CODES[api] else "failed"
    return _STATUSES[step.kind]
