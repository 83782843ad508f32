"""What the query API shows, as models: the JSON is made from them, and so is its description."""

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
from receiver.providers import bandwidth_codes
from receiver.storage.replays import LogRange

# All times are UTC. pydantic writes them as `rfc3339` does, without a call of Python for each.
Time = Annotated[datetime, WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization")]


def _listed(value: Any) -> Any:
    return [] if value is None else value


Media = Annotated[list[str], BeforeValidator(_listed)]


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
    """A callback of the journal, without headers and body.

    `reason` is that of its first quarantined element, `reprocessedTime` when that was last processed again.
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
    """A callback of the journal as it came: `body` is text, or base64 where the bytes are not UTF-8."""

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


class Attempt(Representation):
    """One try to publish an event to a sink: what the sink said, and what was decided about the event."""

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
    response: str | None = Field(description="null, too, for a token that may only read")
    replay_id: int | None


class Replay(Representation):
    """A stretch of the log that a sink is given again; `progress` is the part of it that is done, from 0 to 1."""

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
    """A sink: how it is doing, and what it still has before it."""

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
    """Whether a sink can be reached, and if not, why; it was given nothing."""

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
    WithJsonSchema({"anyOf": [{"const": "beginning"}, {"type": "string", "format": "seed-date-time"}]}),
]


class ReplayRequest(BaseModel):
    """From when on a sink is to be given again what it was given already."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    from_: Since = Field(alias="from", description="`beginning`: the oldest event kept; or when events were received")


class BegunReplay(Representation):
    """What a replay is of, or with a dry run would be: events of the log, of which the sink gets those it wants.

    `id` is null where nothing was begun: after a dry run, or because there is no event.
    """

    id: int | None
    sink: str
    events: int
    after_position: int
    to_position: int
    first_time: Time | None
    dry_run: bool

    @classmethod
    def of(cls, sink: str, begun: ReplayView | None, log_range: LogRange, *, dry_run: bool) -> Self:
        return cls(
            id=begun.id if begun is not None else None,
            sink=sink,
            events=log_range.events,
            after_position=log_range.after_position,
            to_position=log_range.to_position,
            first_time=log_range.first_at,
            dry_run=dry_run,
        )


class DeadLetter(Representation):
    """An event that a sink will not be given again by itself; `detail` are the sink's last words."""

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
    response: str | None = Field(description="null, too, for a token that may only read")
    first_time: Time = Field(validation_alias="first_at")
    died_time: Time = Field(validation_alias="died_at")


Answered = TypeVar("Answered", Attempt, DeadLetter)


def without_responses(told: Iterable[Answered]) -> list[Answered]:
    """The same without the sinks' own words: they may hold what only an admin may see of a network."""
    return [one.model_copy(update={"response": None}) for one in told]


class DeadLettersDone(Representation):
    """How many dead letters were requeued or dropped, or with a dry run would be.

    `left` are those that were chosen too and not come to in the time a request has: ask again for them.
    """

    dead_letters: int
    left: int
    dry_run: bool


def _shown(body: bytes) -> tuple[str, Literal["utf-8", "base64"]]:
    try:
        return body.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(body).decode("ascii"), "base64"
