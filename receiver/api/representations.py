"""The models of the query API, from which the JSON and its schemas are made."""

import base64
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AliasGenerator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    computed_field,
)
from pydantic.alias_generators import to_camel

from receiver.api.parameter_kinds import moment
from receiver.api.parameters import MessageStatus, Outcome
from receiver.domain.events import Api, Direction, Quarantine, Status, TagVerdict
from receiver.domain.publication import DeadLetterReason
from receiver.domain.publication import Outcome as AttemptOutcome
from receiver.domain.queries import ReplayState, ReplayView, SinkState
from receiver.providers import delivery_codes
from receiver.storage.replays import LogRange

# All times are UTC. pydantic writes them as `rfc3339` does, without a call of Python for each.
Time = Annotated[datetime, WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization")]


def _listed(value: Any) -> Any:
    return [] if value is None else value


Media = Annotated[list[str], BeforeValidator(_listed)]


class Representation(BaseModel):
    """The base of all representations: made from the attributes of a view, with camelCase names in JSON."""

    model_config = ConfigDict(
        frozen=True,
        from_attributes=True,
        alias_generator=AliasGenerator(serialization_alias=to_camel),
    )


class Reason(Representation):
    """The meaning of a delivery code; null where no source documents it."""

    name: str
    description: str
    category: str
    retryable: bool | None
    billable: bool | None


def reason_of(api: Api, code: int | None) -> Reason | None:
    """The representation of the meaning of a code."""
    meaning = delivery_codes.meaning(api, code)
    return Reason.model_validate(meaning) if meaning else None


class Recipient(Representation):
    """The delivery of a message to one number; `to` is null where no number is known."""

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
    """A message: its fields, its status, its recipients."""

    id: str
    api: Api
    direction: Direction
    from_: str | None = Field(validation_alias="sender", serialization_alias="from")
    to: list[str] = Field(validation_alias="numbers")
    owner: str | None
    application_id: str | None
    text: str | None
    media: Media
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
    """One event of a message; `status` is the status in this event alone, `type` is Bandwidth's name for it."""

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
    """A callback of the journal, without headers and body.

    `reason` is the reason of its first quarantined element, `reprocessedTime` the time of its latest reprocessing.
    """

    id: str
    received_time: Time = Field(validation_alias="received_at")
    api: Api
    route: str
    method: str
    remote: str | None
    outcome: Outcome
    reason: Quarantine | None
    reprocessed_time: Time | None = Field(validation_alias="reprocessed_at")


class ElementProblem(Representation):
    """Why one element of a callback did not become an event; `messageId` is null where the element names none."""

    index: int
    reason: Quarantine
    detail: str
    message_id: str | None


class Callback(CallbackSummary):
    """A callback of the journal as it was received; `body` is text, or base64 where the bytes are not UTF-8."""

    query: str
    headers: dict[str, str]
    raw: bytes = Field(validation_alias="body", exclude=True)
    problems: list[ElementProblem]

    @computed_field
    def body(self) -> str:
        return _text_and_encoding(self.raw)[0]

    @computed_field
    def body_encoding(self) -> Literal["utf-8", "base64"]:
        return _text_and_encoding(self.raw)[1]


class DeliveryCode(Reason):
    """A delivery code that Bandwidth documents."""

    api: Api
    code: int
    outcome: str
    retry_limit: int | None
    status: str
    v2_analogue: int | None
    first_documented: str | None
    notes: str | None


class TagRequest(BaseModel):
    """The value of a tag to sign. With `from` or `to` the tag is valid only for a message with these numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: str = Field(max_length=1024)
    from_: str | None = Field(None, alias="from", min_length=1)
    to: str | Annotated[list[str], Field(min_length=1)] | None = None


class SignedTag(Representation):
    """A signed tag, to be sent to Bandwidth with the message."""

    tag: str


class Attempt(Representation):
    """One attempt to publish an event to a sink: its outcome, the response, and the decision that followed."""

    id: int
    sink: str
    event_id: str
    recipient: str | None
    status: Status
    started_time: Time = Field(validation_alias="started_at")
    ended_time: Time = Field(validation_alias="ended_at")
    seconds: float
    outcome: AttemptOutcome
    decision: str
    reason: str | None
    response_code: int | None
    response: str | None = Field(description="the response of the sink; null for a token that may only read")
    replay_id: int | None


class Replay(Representation):
    """A range of the event log that is published to a sink again; `progress` is the finished share, from 0 to 1."""

    id: int
    sink: str
    state: ReplayState
    after_position: int
    to_position: int
    position: int
    progress: float
    published: int
    dead_letters: int
    requested_time: Time = Field(validation_alias="requested_at")
    ended_time: Time | None = Field(validation_alias="ended_at")


class Sink(Representation):
    """A sink: its state and its backlog. `lag` counts the events after its cursor."""

    name: str
    type: str | None
    configured: bool
    state: SinkState
    paused: bool
    cursor: int
    lag: int
    oldest_time: Time | None = Field(validation_alias="oldest_at")
    oldest_seconds: float | None
    retries: dict[str, int]
    dead_letters: dict[str, int]
    failures: int
    down_since: Time | None = Field(validation_alias="down_since_at")
    last_success_time: Time | None = Field(validation_alias="last_success_at")
    last_error: str | None
    lease_until: Time | None
    replay: Replay | None


class SinkTest(Representation):
    """Whether a sink can be reached, and the error if not. Nothing is published to it."""

    ok: bool
    error: str | None
    seconds: float


def _since(value: Any) -> Any:
    if value == "beginning":
        return value
    if not isinstance(value, str):
        raise ValueError('must be "beginning" or a time')
    return moment(value)


Since = Annotated[
    Literal["beginning"] | datetime,
    BeforeValidator(_since),
    WithJsonSchema({"anyOf": [{"const": "beginning"}, {"type": "string", "format": "date-time-prefix"}]}),
]


class ReplayRequest(BaseModel):
    """A replay of the events that were received from a time on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    from_: Since = Field(
        alias="from", description="`beginning` (the oldest stored event), or a time: events received from then on"
    )


class ReplayResponse(Representation):
    """The events of a replay that was started, or of a dry run; those that the sink's filter accepts are published.

    `id` is null where no replay was started: after a dry run, or because there is no event.
    """

    id: int | None
    sink: str
    events: int
    after_position: int
    to_position: int
    first_time: Time | None
    dry_run: bool

    @classmethod
    def of(cls, sink: str, started: ReplayView | None, log_range: LogRange, *, dry_run: bool) -> Self:
        return cls(
            id=started.id if started is not None else None,
            sink=sink,
            events=log_range.events,
            after_position=log_range.after_position,
            to_position=log_range.to_position,
            first_time=log_range.first_at,
            dry_run=dry_run,
        )


class DeadLetter(Representation):
    """An event that is not published to a sink again unless it is requeued; `detail` is the last error."""

    id: int
    sink: str
    position: int
    event_id: str
    message_id: str
    recipient: str | None
    status: str
    reason: DeadLetterReason
    detail: str
    attempts: int
    response_code: int | None
    response: str | None = Field(description="the response of the sink; null for a token that may only read")
    first_time: Time = Field(validation_alias="first_at")
    died_time: Time = Field(validation_alias="died_at")


WithResponse = TypeVar("WithResponse", Attempt, DeadLetter)


def without_responses(items: Iterable[WithResponse]) -> list[WithResponse]:
    """The same without the responses of sinks, which may reveal details of a network that only an admin may see."""
    return [item.model_copy(update={"response": None}) for item in items]


class DeadLetterActionResult(Representation):
    """The number of dead letters that were requeued or dropped, or would be after a dry run.

    `left` counts the chosen dead letters that remain because the request ran out of time: send it again.
    """

    dead_letters: int
    left: int
    dry_run: bool


def _text_and_encoding(body: bytes) -> tuple[str, Literal["utf-8", "base64"]]:
    try:
        return body.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(body).decode("ascii"), "base64"
