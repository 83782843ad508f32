"""Query parameters: one model per operation. Unknown parameters and invalid values are refused by name."""

from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Final, Literal, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from receiver.api.parameter_kinds import (
    Boolean,
    CallbackCursor,
    Large,
    MessageCursor,
    Moment,
    Number,
    NumberCursor,
    PageNumber,
    Size,
    Text,
)
from receiver.api.problems import InvalidValue, ProblemError, invalid_values_problem
from receiver.domain.events import Api, Direction, Quarantine, TagVerdict
from receiver.domain.publication import DeadLetterReason
from receiver.domain.queries import (
    CallbackOutcome,
    CallbackQuery,
    DeadLetterChoice,
    DeadLetterQuery,
    MessageQuery,
    SortOrder,
)
from receiver.providers.fields import storable

_MAX_PARAMETERS: Final = 100
_MAX_NAME: Final = 60


class Parameters(BaseModel):
    """The query parameters of an operation; this base class has none. Those in `repeatable` may be repeated."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel)
    repeatable: ClassVar[frozenset[str]] = frozenset()


class Paged(Parameters):
    """The parameters of every list."""

    page: PageNumber = Field(
        0, description="the number of the page, from 0 (counted from the cursor, if there is one); the `Link` is faster"
    )
    size: Size = Field(25, description="the number of items on a page")

    @property
    def skip(self) -> int:
        return self.page * self.size


class _CatapultMessages(Paged):
    """The parameters of the Catapult API's list of messages, but for the order."""

    from_: Number | None = Field(None, alias="from", description="the number of the sender, with or without plus")
    to: Number | None = Field(None, description="the number of a recipient, with or without plus")
    from_date_time: Moment | None = Field(
        None, description="messages created at this time or later; without a creation time, first received"
    )
    to_date_time: Moment | None = Field(
        None, description="messages created before this time; without a creation time, first received"
    )
    direction: Direction | None = Field(None, description="`in` (received) or `out` (sent)")
    state: Literal["received", "queued", "sending", "sent", "error"] | None = Field(
        None, description="the `state` of the message, as in v1"
    )
    delivery_state: Literal["waiting", "delivered", "not-delivered"] | None = Field(
        None, description="the `deliveryState` of the message, as in v1"
    )
    cursor: MessageCursor | None = Field(None, description="where the page begins; only from a `Link`")

    def message_query(self, order: SortOrder, **filters: Any) -> MessageQuery:
        return MessageQuery(
            sender=self.from_,
            recipient=self.to,
            since=self.from_date_time,
            until=self.to_date_time,
            direction=self.direction,
            state=self.state,
            delivery_state=self.delivery_state,
            order=order,
            after=self.cursor,
            skip=self.skip,
            size=self.size,
            **filters,
        )


class CatapultMessageParameters(_CatapultMessages):
    """The parameters of the Catapult API's list of messages, oldest first by default."""

    sort_order: SortOrder = Field(SortOrder.ASC, description="`asc`: oldest first")

    def query(self) -> MessageQuery:
        return self.message_query(self.sort_order)


MessageStatus = Literal[
    "unknown",
    "queued",
    "sending",
    "sent",
    "unconfirmed",
    "delivered",
    "failed",
    "read",
    "received",
    "pending",
    "partial",
]


class MessageParameters(_CatapultMessages):
    """The parameters of the list of messages, newest first by default."""

    sort_order: SortOrder = Field(SortOrder.DESC, description="`desc`: newest first")
    status: MessageStatus | None = Field(None, description="the status of the message as a whole")
    delivery_code: Large | None = Field(
        None, description="the delivery code of any recipient; together with `to`, of that recipient"
    )
    tag: Text | None = Field(None, description="the whole tag, without signature")
    tag_verdict: TagVerdict | None = None
    application_id: Text | None = None
    contradicted: Boolean | None = Field(None, description="whether both delivered and failed were reported")
    awaiting_receipt: Boolean | None = Field(None, description="whether a final event is still to be expected")

    def query(self) -> MessageQuery:
        return self.message_query(
            self.sort_order,
            status=self.status,
            delivery_code=self.delivery_code,
            tag=self.tag,
            tag_verdict=self.tag_verdict,
            application_id=self.application_id,
            contradicted=self.contradicted,
            awaiting_receipt=self.awaiting_receipt,
        )


class OneMessageParameters(Parameters):
    """The parameters that choose one of several messages with the same id."""

    api: Api | None = Field(None, description="required where a v1 message and a v2 message have this id")
    direction: Direction | None = Field(
        None, description="required where an inbound and an outbound message have this id"
    )


class OneCodeParameters(Parameters):
    """The parameter that chooses one of several codes with the same number."""

    api: Api | None = Field(None, description="required where v1 and v2 both have this code")


Outcome = CallbackOutcome


class CallbackParameters(Paged):
    """The parameters of the list of callbacks, newest first by default."""

    outcome: Outcome | None = Field(
        None, description="`pending` (accepted, not processed yet), `accepted` or `quarantined`"
    )
    reason: Quarantine | None = Field(
        None, description="callbacks with an element that was quarantined for this reason"
    )
    message_id: Text | None = Field(None, description="callbacks about this message")
    sort_order: SortOrder = Field(SortOrder.DESC, description="`desc`: newest first")
    cursor: CallbackCursor | None = Field(None, description="where the page begins; only from a `Link`")

    def query(self) -> CallbackQuery:
        return CallbackQuery(
            outcome=self.outcome,
            reason=self.reason,
            message_id=self.message_id,
            order=self.sort_order,
            after=self.cursor,
            skip=self.skip,
            size=self.size,
        )


class ReprocessParameters(CallbackParameters):
    """The parameters that choose the callbacks to reprocess: by default quarantined callbacks, oldest first."""

    outcome: Outcome = "quarantined"
    sort_order: SortOrder = Field(SortOrder.ASC, description="`asc`: oldest first")


class CodeParameters(Paged):
    """The parameters of the list of delivery codes."""

    api: Api | None = Field(None, description="codes of this API version")
    sort_order: SortOrder = Field(SortOrder.ASC, description="`asc`: v1 first, smallest code first")


class SinkParameters(Paged):
    """The parameters of the list of sinks."""

    sort_order: SortOrder = Field(SortOrder.ASC, description="`asc`: by name")


class ReplayParameters(Paged):
    """The parameters of the list of the replays to a sink, newest first by default."""

    sort_order: SortOrder = Field(SortOrder.DESC, description="`desc`: newest first")
    cursor: NumberCursor | None = Field(None, description="where the page begins; only from a `Link`")


class DryRunParameters(Parameters):
    """The parameter of actions that can be tried without a change."""

    dry_run: Boolean = Field(False, description="`true`: changes nothing and counts")


class AttemptParameters(OneMessageParameters):
    """The parameters of the delivery attempts for one message."""

    sink: Text | None = Field(None, description="attempts at this sink; default: all sinks")


class _DeadLetters(Parameters):
    """The parameters that choose dead letters, but for the sink."""

    reason: DeadLetterReason | None = Field(
        None, description="`refused` by the sink, or `expired`: older than the sink's `max_age`"
    )
    message_id: Text | None = Field(None, description="dead letters of this message")
    event_id: Text | None = Field(None, description="dead letters of this event")
    from_date_time: Moment | None = Field(None, description="became a dead letter at this time or later")
    to_date_time: Moment | None = Field(None, description="became a dead letter before this time")

    def chosen(self, sink: str | None, ids: Sequence[int] | None = None) -> DeadLetterChoice:
        return DeadLetterChoice(
            sink=sink,
            ids=ids,
            reason=self.reason,
            message_id=self.message_id,
            event_id=self.event_id,
            since=self.from_date_time,
            until=self.to_date_time,
        )


class DeadLetterParameters(Paged, _DeadLetters):
    """The parameters of the list of dead letters, oldest first by default."""

    sink: Text | None = Field(None, description="dead letters of this sink")
    sort_order: SortOrder = Field(SortOrder.ASC, description="`asc`: oldest first")
    cursor: NumberCursor | None = Field(None, description="where the page begins; only from a `Link`")

    def query(self) -> DeadLetterQuery:
        return DeadLetterQuery(
            choice=self.chosen(self.sink),
            order=self.sort_order,
            after=self.cursor,
            skip=self.skip,
            size=self.size,
        )


class DeadLetterActionParameters(DryRunParameters, _DeadLetters):
    """The parameters that choose dead letters of one sink: all of them, unless narrowed down."""

    repeatable = frozenset({"id"})

    sink: Text = Field(description="the name of the sink")
    ids: tuple[Large, ...] = Field(
        (), alias="id", max_length=50, description="the id of a dead letter; may be repeated; default: all"
    )

    def choice(self) -> DeadLetterChoice:
        return self.chosen(self.sink, self.ids or None)


class PullParameters(Parameters):
    """The parameters of a pull from the event log."""

    after: Large = Field(0, description="the position of the last event that was read; 0: from the oldest stored event")
    limit: Size = Field(100, description="the largest number of events in the response")


Model = TypeVar("Model", bound=Parameters)


def parse_parameters(model: type[Model], query_string: bytes) -> Model:
    """The parameters in a query string; raises a problem that names every invalid parameter."""
    values = _values(query_string, model.repeatable)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise invalid_values_problem(invalid_values(error)) from None


def invalid_values(error: ValidationError) -> list[InvalidValue]:
    """The values that a model refuses, by name. The values are left out: one may be a secret in the wrong field."""
    return [_invalid_value(item["loc"], item["type"], item["msg"]) for item in error.errors(include_url=False)]


def _invalid_value(location: tuple[int | str, ...], kind: str, message: str) -> InvalidValue:
    name = ".".join(str(part) for part in location) or "body"
    detail = "is not a known parameter or field" if kind == "extra_forbidden" else message.removeprefix("Value error, ")
    return InvalidValue(parameter=name[:_MAX_NAME], detail=detail)


def _values(query_string: bytes, repeatable: Collection[str]) -> dict[str, str | list[str]]:
    try:
        text = query_string.decode("utf-8")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        raise ProblemError(
            400, f"The query string is not UTF-8, or has more than {_MAX_PARAMETERS} parameters."
        ) from None
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(storable(value))
    repeated = [name for name, items in values.items() if len(items) > 1 and name not in repeatable]
    if repeated:
        errors = [InvalidValue(parameter=name[:_MAX_NAME], detail="is given more than once") for name in repeated]
        raise invalid_values_problem(errors)
    return {name: items if name in repeatable else items[0] for name, items in values.items()}
