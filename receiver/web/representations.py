"""What the query API shows, as models: the JSON is made from them, and so is its description."""

import base64
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AliasGenerator, BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema, computed_field
from pydantic.alias_generators import to_camel

from receiver.domain.cloudevents import rfc3339
from receiver.domain.events import Api, Direction, Quarantine, Status, TagVerdict
from receiver.providers import bandwidth_codes
from receiver.web.parameters import MessageStatus, Outcome

Time = Annotated[
    datetime,
    PlainSerializer(rfc3339, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]


class Representation(BaseModel):
    """A view as it is shown: read from its attributes, written in camelCase."""

    model_config = ConfigDict(
        frozen=True,
        from_attributes=True,
        alias_generator=AliasGenerator(serialization_alias=to_camel),
    )


class Reason(Representation):
    """What a delivery code means; null where nobody says."""

    name: str
    description: str
    category: str
    retryable: bool | None
    billable: bool | None


def reason_of(api: Api, code: int | None) -> Reason | None:
    """The meaning of a code, as it is shown."""
    meaning = bandwidth_codes.meaning(api, code)
    return Reason.model_validate(meaning) if meaning else None


class Recipient(Representation):
    """How far a message got to one number; `to` is null where no number is known."""

    api: Api = Field(exclude=True)
    to: str | None = Field(validation_alias="number")
    status: Status
    state: str | None
    delivery_state: str | None
    delivery_code: int | None
    delivery_description: str | None
    sent_time: Time | None = Field(validation_alias="sent_at")
    delivered_time: Time | None = Field(validation_alias="delivered_at")
    failed_time: Time | None = Field(validation_alias="failed_at")
    read_time: Time | None = Field(validation_alias="read_at")
    contradicted: bool
    updated_time: Time | None = Field(validation_alias="updated_at")

    @computed_field
    def reason(self) -> Reason | None:
        return reason_of(self.api, self.delivery_code)


class Message(Representation):
    """A message: its facts, its standing, its recipients."""

    id: str
    api: Api
    direction: Direction
    from_: str | None = Field(validation_alias="sender", serialization_alias="from")
    to: list[str] = Field(validation_alias="numbers")
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
    time: Time | None = Field(validation_alias="created_at")
    status: MessageStatus
    state: str | None
    delivery_state: str | None
    delivery_code: int | None
    delivery_description: str | None
    contradicted: bool
    awaiting_receipt: bool
    first_received_time: Time = Field(validation_alias="first_received_at")
    updated_time: Time = Field(validation_alias="updated_at")
    recipients: list[Recipient]


class MessageEvent(Representation):
    """One event of a message; `status` is what this event itself says, `type` the word Bandwidth used."""

    id: str
    type: str
    time: Time | None = Field(validation_alias="occurred_at")
    received_time: Time = Field(validation_alias="received_at")
    recipient: str | None
    code: int | None
    description: str | None
    tag_verdict: TagVerdict
    route: str
    callback_id: str
    status: Status


class CallbackSummary(Representation):
    """A callback of the raw ledger, without what came in it."""

    id: str
    received_time: Time = Field(validation_alias="received_at")
    api: Api
    route: str
    method: str
    remote: str | None
    outcome: Outcome
    reason: Quarantine | None
    events: int
    duplicates: int
    reread_time: Time | None = Field(validation_alias="reread_at")


class ElementProblem(Representation):
    """Why one element of a callback did not become an event."""

    index: int
    reason: Quarantine
    detail: str


class Callback(CallbackSummary):
    """A callback of the raw ledger as it came: `body` is text, or base64 where the bytes are not UTF-8."""

    query: str
    headers: dict[str, str]
    raw: bytes = Field(validation_alias="body", exclude=True)
    problems: list[ElementProblem]

    @computed_field
    def body(self) -> str:
        return _shown(self.raw)[0]

    @computed_field
    def body_encoding(self) -> Literal["utf-8", "base64"]:
        return _shown(self.raw)[1]


class Code(Reason):
    """A delivery code as Bandwidth's documents list it."""

    api: Api
    code: int
    outcome: str
    retry_limit: int | None
    status: str
    v2_analogue: int | None
    first_documented: str | None
    notes: str | None


class TagRequest(BaseModel):
    """What to sign; with `from` or `to` the tag is worthless for a message with other numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: str = Field(max_length=1024)
    from_: str | None = Field(None, alias="from", min_length=1)
    to: str | Annotated[list[str], Field(min_length=1)] | None = None


class SignedTag(Representation):
    """The tag to give to Bandwidth with the message."""

    tag: str


def _shown(body: bytes) -> tuple[str, Literal["utf-8", "base64"]]:
    try:
        return body.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(body).decode("ascii"), "base64"
