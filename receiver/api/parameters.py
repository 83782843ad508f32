"""Query parameters, typed: one model per route; what is unknown or cannot be read is refused by name."""

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
from receiver.api.problems import BadValue, ProblemError, bad_values
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
    """The query parameters of a route; this one takes none. Those in `repeatable` may be given several times."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel)
    repeatable: ClassVar[frozenset[str]] = frozenset()


class Paged(Parameters):
    """What every list takes."""

    page: PageNumber = Field(0, description="which page, from 0 (at the cursor, if there is one); the `Link` is faster")
    size: Size = Field(25, description="how many on a page")

    @property
    def skip(self) -> int:
        return self.page * self.size


class _CatapultMessages(Paged):
    """What the seed API's GET messages takes."""

    from_: Number | None = Field(None, alias="from", description="the sender's number, with or without plus")
    to: Number | None = Field(None, description="a recipient's number, with or without plus")
    from_date_time: Moment | None = Field(None, description="created then or later (else first received)")
    to_date_time: Moment | None = Field(None, description="created before then (else first received)")
    direction: Direction | None = Field(None, description="`in` or `out`")
    state: Literal["received", "queued", "sending", "sent", "error"] | None = None
    delivery_state: Literal["waiting", "delivered", "not-delivered"] | None = None
    cursor: MessageCursor | None = Field(None, description="where the page begins; only from a `Link`")

    def seed_query(self, order: SortOrder, **further: Any) -> MessageQuery:
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
            **further,
        )


class CatapultMessageParameters(_CatapultMessages):
    """The parameters of the seed API's list of messages, oldest first unless asked."""

    sort_order: SortOrder = Field(SortOrder.ASC, description="`asc`: oldest first")

    def query(self) -> MessageQuery:
        return self.seed_query(self.sort_order)


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
    """The parameters of the list of messages, newest first unless asked."""

    sort_order: SortOrder = Field(SortOrder.DESC, description="`desc`: newest first")
    status: MessageStatus | None = Field(None, description="the message's own status")
    delivery_code: Large | None = Field(None, description="the code of any recipient; with `to`, of that one")
    tag: Text | None = Field(None, description="the whole tag, without signature")
    tag_verdict: TagVerdict | None = None
    application_id: Text | None = None
    contradicted: Boolean | None = Field(None, description="whether both delivered and failed were reported")
    awaiting_receipt: Boolean | None = Field(None, description="whether a final event is still to be expected")

    def query(self) -> MessageQuery:
        return self.seed_query(
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
    """Which of the messages with one id is meant."""

    api: Api | None = Field(None, description="needed only where messages of both versions have this id")
    direction: Direction | None = Field(
        None, description="needed only where an inbound and an outbound message have this id"
    )


class OneCodeParameters(Parameters):
    """Which generation's code is meant."""

    api: Api | None = Field(None, description="needed only where both generations have this code")


Outcome = CallbackOutcome


class CallbackParameters(Paged):
    """The parameters of the list of callbacks, newest first unless asked."""

    outcome: Outcome | None = Field(None, description="`pending`: accepted and not processed yet")
    reason: Quarantine | None = Field(None, description="why an element of a callback was quarantined")
    message_id: Text | None = Field(None, description="callbacks that speak of this message")
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
    """Which callbacks to reprocess: the quarantined ones, oldest first, unless asked otherwise."""

    outcome: Outcome = "quarantined"
    sort_order: SortOrder = Field(SortOrder.ASC, description="`asc`: oldest first")


class CodeParameters(Paged):
    """The parameters of the code catalogue."""

    api: Api | None = None
    sort_order: SortOrder = Field(SortOrder.ASC, description="`asc`: v1 first, smallest code first")


class SinkParameters(Paged):
    """The parameters of the list of sinks."""

    sort_order: SortOrder = Field(SortOrder.ASC, description="`asc`: by name")


class ReplayParameters(Paged):
    """The parameters of the list of a sink's replays, newest first unless asked."""

    sort_order: SortOrder = Field(SortOrder.DESC, description="`desc`: newest first")
    cursor: NumberCursor | None = Field(None, description="where the page begins; only from a `Link`")


class DryRunParameters(Parameters):
    """Whether to act, or only to tell what would come of it."""

    dry_run: Boolean = Field(False, description="`true`: change nothing, count")


class AttemptParameters(OneMessageParameters):
    """Which of the messages with one id is meant, and which sink."""

    sink: Text | None = Field(None, description="none: all")


class _DeadLetters(Parameters):
    """Which dead letters are meant, but for whose."""

    reason: DeadLetterReason | None = Field(None, description="refused by the sink, or tried for too long")
    message_id: Text | None = None
    event_id: Text | None = None
    from_date_time: Moment | None = Field(None, description="those that died from then on")
    to_date_time: Moment | None = Field(None, description="those that died before")

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
    """The parameters of the list of dead letters, in the order in which they died unless asked."""

    sink: Text | None = None
    sort_order: SortOrder = Field(SortOrder.ASC, description="`asc`: in the order in which they died")
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
    """Of which sink, and which of its dead letters: all, unless they are narrowed down."""

    repeatable = frozenset({"id"})

    sink: Text
    ids: tuple[Large, ...] = Field((), alias="id", max_length=50, description="may be repeated; none: all")

    def choice(self) -> DeadLetterChoice:
        return self.chosen(self.sink, self.ids or None)


class PullParameters(Parameters):
    """From where on a consumer reads the event log, and how much at once."""

    after: Large = Field(0, description="the last position read; 0: from the oldest event kept")
    limit: Size = Field(100, description="how many at most")


Model = TypeVar("Model", bound=Parameters)


def read(model: type[Model], query_string: bytes) -> Model:
    """The parameters in a query string; raises a problem that names every one that is wrong."""
    values = _values(query_string, model.repeatable)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise bad_values(blamed(error)) from None


def blamed(error: ValidationError) -> list[BadValue]:
    """What pydantic refused, by name, without the values: they may be secrets in the wrong place."""
    return [_bad_value(one["loc"], one["type"], one["msg"]) for one in error.errors(include_url=False)]


def _bad_value(place: tuple[int | str, ...], kind: str, message: str) -> BadValue:
    name = ".".join(str(part) for part in place) or "body"
    detail = "is not known here" if kind == "extra_forbidden" else message.removeprefix("Value error, ")
    return BadValue(parameter=name[:_MAX_NAME], detail=detail)


def _values(query_string: bytes, repeatable: Collection[str]) -> dict[str, str | list[str]]:
    try:
        text = query_string.decode("utf-8")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        raise ProblemError(400, "The query string is not UTF-8, or has too many parameters.") from None
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(storable(value))
    twice = [name for name, given in values.items() if len(given) > 1 and name not in repeatable]
    if twice:
        raise bad_values([BadValue(parameter=name[:_MAX_NAME], detail="is given more than once") for name in twice])
    return {name: given if name in repeatable else given[0] for name, given in values.items()}
