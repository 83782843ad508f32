"""Queries: one model per list or choice; those of messages and of statistics are in modules of their own.

The fields of a query are the parameters of the API's operation, the options of the command, and what storage filters
by. A new field needs one more change, its condition in storage. Python uses a field's name, a request its alias.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.alias_generators import to_camel

from receiver.domain.alerts import RuleType, Severity
from receiver.domain.cloudevents import Filter
from receiver.domain.events import Api, Direction, Quarantine
from receiver.domain.publication import DeadLetterReason
from receiver.models.parameters import (
    AlertCursor,
    Boolean,
    CallbackCursor,
    CommaSeparated,
    Large,
    Moment,
    NumberCursor,
    NumberPrefix,
    Option,
    PageNumber,
    Size,
    Text,
    not_before_since,
)

Item = TypeVar("Item")

PublishedType = Literal[
    "message.received",
    "message.queued",
    "message.sending",
    "message.sent",
    "message.unconfirmed",
    "message.delivered",
    "message.failed",
    "message.read",
    "alert.fired",
    "alert.resolved",
]
CallbackOutcome = Literal["pending", "accepted", "quarantined"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[Item]):
    """A page of a list, and whether the list has more items after it."""

    items: list[Item]
    more: bool


class SortOrder(StrEnum):
    ASC = "asc"
    DESC = "desc"


class Query(BaseModel):
    """The parameters of an operation; this base class has none. Those in `repeatable` may be repeated."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        # A command builds the validator of its own query alone.
        defer_build=True,
    )
    repeatable: ClassVar[frozenset[str]] = frozenset()


class PagedQuery(Query):
    """The parameters of every list."""

    page: Annotated[PageNumber, Option(help="the number of the page, from 0")] = Field(
        0, description="the number of the page, from 0 (counted from the cursor, if there is one); the `Link` is faster"
    )
    size: Size = Field(25, description="the number of items on a page")

    @property
    def skip(self) -> int:
        return self.page * self.size


CURSOR: Final = "where the page begins; only from a `Link`"


# An empty list cannot be written into an address.
NOT_EMPTY: Final[dict[str, Any]] = {"minItems": 1}


class OneMessageQuery(Query):
    """The parameters that choose one of several messages with the same id."""

    api: Api | None = Field(None, description="required where a v1 message and a v2 message have this id")
    direction: Direction | None = Field(
        None, description="required where an inbound and an outbound message have this id"
    )


class AttemptQuery(OneMessageQuery):
    """The parameters of the delivery attempts for one message."""

    sink: Text | None = Field(None, description="attempts at this sink; default: all sinks")


class CallbackFilter(Query):
    """The filters of callbacks. `since` is inclusive, `until` exclusive; both compare the time of receipt."""

    outcome: CallbackOutcome | None = Field(
        None, description="`pending` (accepted, not processed yet), `accepted` or `quarantined`"
    )
    reason: Quarantine | None = Field(
        None, description="callbacks with an element that was quarantined for this reason"
    )
    message_id: Annotated[Text | None, Option("--message")] = Field(
        None, description="callbacks with an event of this message, or with a quarantined element that names it"
    )
    since: Annotated[Moment | None, Option("--since")] = Field(
        None, alias="fromDateTime", description="callbacks received at this time or later"
    )
    until: Annotated[Moment | None, Option("--until")] = Field(
        None, alias="toDateTime", description="callbacks received before this time"
    )

    _until = field_validator("until")(not_before_since)


class CallbackQuery(PagedQuery, CallbackFilter):
    """The parameters of the list of callbacks, newest first by default."""

    order: SortOrder = Field(SortOrder.DESC, alias="sortOrder", description="`desc`: newest first")
    after: CallbackCursor | None = Field(None, alias="cursor", description=CURSOR)


class ReprocessQuery(CallbackQuery):
    """The parameters that choose the callbacks to reprocess: by default quarantined callbacks, oldest first."""

    outcome: CallbackOutcome | None = Field("quarantined", description="the outcome of the callbacks")
    order: SortOrder = Field(SortOrder.ASC, alias="sortOrder", description="`asc`: oldest first")


class OneCodeQuery(Query):
    """The parameter that chooses one of several codes with the same number."""

    api: Api | None = Field(None, description="required where v1 and v2 both have this code")


class CodeQuery(PagedQuery):
    """The parameters of the list of delivery codes."""

    api: Api | None = Field(None, description="codes of this API version")
    search: Annotated[Text | None, Option("--search", metavar="WORDS")] = Field(
        None, alias="q", description="codes with these words in their number, names, description or notes"
    )
    order: SortOrder = Field(SortOrder.ASC, alias="sortOrder", description="`asc`: v1 first, smallest code first")


class SinkQuery(PagedQuery):
    """The parameters of the list of sinks."""

    order: SortOrder = Field(SortOrder.ASC, alias="sortOrder", description="`asc`: by name")


class ReplayQuery(PagedQuery):
    """The parameters of the list of the replays to a sink, newest first by default."""

    order: SortOrder = Field(SortOrder.DESC, alias="sortOrder", description="`desc`: newest first")
    after: NumberCursor | None = Field(None, alias="cursor", description=CURSOR)


class AlertQuery(PagedQuery):
    """The parameters of the list of alerts, newest first by default; times compare when an alert fired."""

    status: Literal["firing", "resolved"] | None = Field(None, description="`firing` or `resolved`; default: both")
    rule: RuleType | None = Field(None, description="alerts of this kind of rule, such as `failure-rate`")
    name: Text | None = Field(None, description="alerts of the rule with this name")
    severity: Severity | None = Field(None, description="`info`, `warning` or `critical`")
    group: Text | None = Field(None, description="alerts of this value of the rule's `by`")
    since: Annotated[Moment | None, Option("--since")] = Field(
        None, alias="fromDateTime", description="alerts that fired at this time or later"
    )
    until: Annotated[Moment | None, Option("--until")] = Field(
        None, alias="toDateTime", description="alerts that fired before this time"
    )
    order: SortOrder = Field(SortOrder.DESC, alias="sortOrder", description="`desc`: newest first")
    after: AlertCursor | None = Field(None, alias="cursor", description=CURSOR)

    _until = field_validator("until")(not_before_since)


class DryRunQuery(Query):
    """The parameter of actions that can be tried without a change."""

    dry_run: Boolean = Field(False, description="`true`: changes nothing and counts")


class DeadLetterFilter(Query):
    """The filters of dead letters. `since` is inclusive, `until` exclusive."""

    sink: Text | None = Field(None, description="dead letters of this sink")
    reason: DeadLetterReason | None = Field(
        None, description="`refused` by the sink, or `expired`: older than the sink's `max_age`"
    )
    message_id: Annotated[Text | None, Option("--message")] = Field(None, description="dead letters of this message")
    event_id: Annotated[Text | None, Option("--event")] = Field(None, description="dead letters of this event")
    since: Annotated[Moment | None, Option("--since")] = Field(
        None, alias="fromDateTime", description="became a dead letter at this time or later"
    )
    until: Annotated[Moment | None, Option("--until")] = Field(
        None, alias="toDateTime", description="became a dead letter before this time"
    )

    _until = field_validator("until")(not_before_since)


class DeadLetterQuery(PagedQuery, DeadLetterFilter):
    """The parameters of the list of dead letters, oldest first by default; their ids rise with `diedTime`."""

    order: SortOrder = Field(SortOrder.ASC, alias="sortOrder", description="`asc`: oldest first")
    after: NumberCursor | None = Field(None, alias="cursor", description=CURSOR)


class DeadLetterChoice(DryRunQuery, DeadLetterFilter):
    """The parameters that choose dead letters of one sink: all of them, unless narrowed down."""

    repeatable = frozenset({"id"})

    sink: Text = Field(description="the name of the sink")
    ids: tuple[Large, ...] = Field(
        (), alias="id", max_length=90, description="the id of a dead letter; may be repeated; default: all"
    )


class PullQuery(Query):
    """The parameters of a pull from the event log."""

    after: Large = Field(0, description="the position of the last event that was read; 0: from the oldest stored event")
    limit: Size = Field(100, description="the largest number of events in the response")
    types: Annotated[tuple[PublishedType, ...], CommaSeparated] = Field(
        (),
        alias="type",
        json_schema_extra=NOT_EMPTY,
        description="the types of events, such as alert.fired; several values are separated by commas; default: all "
        "events of messages",
    )


class StreamQuery(Query):
    """The parameters of a stream of the event log: where it begins, and the filters of a sink."""

    after: Large | None = Field(
        None,
        description="the position of the last event that was read; 0: from the oldest stored event; default: only new "
        "events; `Last-Event-ID` wins",
    )
    since: Annotated[Moment | None, Option("--since")] = Field(
        None, alias="fromDateTime", description="begin with the events that were received at this time or later"
    )
    types: Annotated[tuple[PublishedType, ...], CommaSeparated, Option("--type", metavar="TYPE")] = Field(
        (),
        alias="type",
        json_schema_extra=NOT_EMPTY,
        description="the types of events, such as message.failed; several values are separated by commas; default: all "
        "events of messages",
    )
    changes_only: Boolean = Field(False, description="only events that changed a status")
    direction: Direction | None = Field(None, description="only inbound or outbound messages")
    application_id: Annotated[tuple[Text, ...], CommaSeparated, Option("--application")] = Field(
        (),
        json_schema_extra=NOT_EMPTY,
        description="the ids of applications; several values are separated by commas",
    )
    number_prefix: Annotated[tuple[NumberPrefix, ...], CommaSeparated] = Field(
        (),
        json_schema_extra=NOT_EMPTY,
        description="the beginning of the number of sender or recipient, with the country code; several values are "
        "separated by commas",
    )
    tag_prefix: Annotated[tuple[Text, ...], CommaSeparated] = Field(
        (), json_schema_extra=NOT_EMPTY, description="the beginning of the tag; several values are separated by commas"
    )

    @property
    def filter(self) -> Filter:
        return Filter(
            types=frozenset(self.types),
            changes_only=self.changes_only,
            direction=self.direction,
            applications=frozenset(self.application_id),
            number_prefixes=self.number_prefix,
            tag_prefixes=self.tag_prefix,
        )
