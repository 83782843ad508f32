"""A message as the sandbox keeps it."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from receiver.domain.events import Api, Direction
from receiver.sandbox.timeline import Receipts, Script, Step

TEXT_KEPT: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where the callbacks of a message go. `seconds` of real time is how long an answer is waited for."""

    url: str | None = field(default=None, repr=False)
    fallback: str | None = field(default=None, repr=False)
    method: Literal["get", "post"] = "post"
    seconds: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What an RCS user did in place of writing: tapped a suggestion, or told where he is."""

    text: str | None = None
    postback_data: str | None = None
    paired_message_id: str | None = None
    latitude: str | None = None
    longitude: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Message:
    """One message, or one copy of an inbound one; `owner` is the number of ours it belongs to.

    `confirmed` holds what a callback that was answered 2xx has told, `unsure` what one without an answer may have.
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
    script: Script
    destination: Destination
    # v1: the address of the message
    uri: str = ""
    text: str | None = None
    media: tuple[str, ...] = ()
    segment_count: int = 1
    application_id: str | None = None
    tag: str | None = None
    # v1 outbound
    receipts: Receipts = Receipts.NONE
    # v2
    priority: str | None = None
    expiration: str | None = None
    channel: str | None = None
    carrier_name: str | None = None
    event: str = "message-received"
    reply: Reply | None = None
    confirmed: set[Step] = field(default_factory=set)
    unsure: set[Step] = field(default_factory=set)
    forgotten: bool = False

    @property
    def is_mms(self) -> bool:
        return bool(self.media) or (self.api is Api.V2 and len(self.recipients) > 1)

    @property
    def sort_key(self) -> int:
        """What messages are sorted by: when they were made, then which came first."""
        return int(self.created_at.timestamp() * 1000) * 1_000_000 + self.ordinal % 1_000_000

    def text_at(self, now: datetime) -> str | None:
        """The text, as long as it is kept."""
        return self.text if now - self.created_at < TEXT_KEPT else None

    def occurred_at(self, step: Step, speed: float) -> datetime:
        return self.created_at + timedelta(seconds=step.after / speed)

    def happened(self, now: datetime, speed: float) -> list[Step]:
        """The steps that lie behind us, the first one first."""
        return [step for step in self.script.steps if self.occurred_at(step, speed) <= now]


def instant(time: datetime, precision: Literal["milliseconds", "microseconds"]) -> str:
    """A time as Bandwidth writes it: UTC with `Z`."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec=precision) + "Z"


InboundEvent = Literal[
    "message-received",
    "suggestion-response",
    # one event, three spellings in three editions of the specification
    "requested-location-response",
    "request-location-response",
    "location-request-response",
]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Numbers = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=250)], ...], BeforeValidator(_listed)]


class InboundRequest(BaseModel):
    """Somebody writes to us, or answers to RCS: `to` are our numbers, `others` who else is in the group."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, hide_input_in_errors=True)

    api: Api = Api.V2
    from_: Annotated[str, Field(alias="from", min_length=1, max_length=250)]
    to: Annotated[Numbers, Field(min_length=1)]
    others: Numbers = ()
    text: str | None = None
    media: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    channel: Literal["SMS", "MMS", "RBM"] | None = None
    event: InboundEvent = "message-received"
    user: str | None = None
    application_id: str | None = None
    carrier_name: str | None = None
    # of a suggestion-response
    postback_data: str | None = None
    paired_message_id: str | None = None
    # of a location response
    latitude: str | None = None
    longitude: str | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.api is Api.V1 and (len(self.to) > 1 or self.others or self.channel or self.reply):
            raise ValueError("v1 has no groups and no RCS")
        if len({*self.to, *self.others}) < len(self.to) + len(self.others):
            raise ValueError("a number is there twice")
        return self

    @property
    def is_mms(self) -> bool:
        return bool(self.media or self.others or len(self.to) > 1)

    @property
    def reply(self) -> Reply | None:
        """What an RCS user did in place of writing."""
        if self.event == "message-received":
            return None
        if self.event == "suggestion-response":
            return Reply(text=self.text, postback_data=self.postback_data, paired_message_id=self.paired_message_id)
        return Reply(latitude=self.latitude or "37.7749", longitude=self.longitude or "-122.4194")
