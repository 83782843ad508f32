"""Queries: one model per list or choice.

The fields of a query are the parameters of the API's operation, the options of the command, and what storage filters
by. A new field needs one more change, its condition in storage. Python uses a field's name, a request its alias.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import product
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from receiver.domain.cloudevents import Filter
from receiver.domain.events import Api, Direction, Quarantine, Status, TagVerdict
from receiver.domain.publication import DeadLetterReason
from receiver.models.parameters import (
    Age,
    Boolean,
    CallbackCursor,
    CommaSeparated,
    Large,
    MessageCursor,
    Moment,
    Number,
    NumberCursor,
    NumberPrefix,
    Option,
    PageNumber,
    Search,
    Size,
    Text,
)
from receiver.providers.states import DELIVERY_STATES

Item = TypeVar("Item")

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
PublishedType = Literal[
    "message.received",
    "message.queued",
    "message.sending",
    "message.sent",
    "message.unconfirmed",
    "message.delivered",
    "message.failed",
    "message.read",
]
CallbackOutcome = Literal["pending", "accepted", "quarantined"]


# An index entry of PostgreSQL has room for some 2700 bytes; a tag may be longer.
TAG_START_CHARACTERS: Final = 200


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


_CURSOR = "where the page begins; only from a `Link`"


# An empty list cannot be written into an address.
_NOT_EMPTY: Final[dict[str, Any]] = {"minItems": 1}


class MessageFilter(PagedQuery):
    """The parameters that the Catapult API's list of messages and ours have in common.

    `since` is inclusive, `until` exclusive; both compare the creation of the message, else its first receipt.
    """

    sender: Number | None = Field(None, alias="from", description="the number of the sender, in any usual spelling")
    recipient: Number | None = Field(None, alias="to", description="the number of a recipient, in any usual spelling")
    since: Annotated[Moment | None, Option("--since")] = Field(
        None,
        alias="fromDateTime",
        description="messages created at this time or later; without a creation time, first received",
    )
    until: Annotated[Moment | None, Option("--until")] = Field(
        None,
        alias="toDateTime",
        description="messages created before this time; without a creation time, first received",
    )
    direction: Direction | None = Field(None, description="`in` (received) or `out` (sent)")
    state: Literal["received", "queued", "sending", "sent", "error"] | None = Field(
        None, description="the `state` of the message, as in v1"
    )
    delivery_state: Literal["waiting", "delivered", "not-delivered"] | None = Field(
        None, description="the `deliveryState` of the message, as in v1"
    )
    after: MessageCursor | None = Field(None, alias="cursor", description=_CURSOR)


class CatapultMessageQuery(MessageFilter):
    """The parameters of the Catapult API's list of messages, oldest first by default.

    They are read as that API reads them: an empty one is absent, and the case of a word does not matter.
    """

    order: SortOrder = Field(SortOrder.ASC, alias="sortOrder", description="`asc`: oldest first")
    key_above: Large | None = Field(
        None, alias="sortKeyGT", description="messages created after this: the nanoseconds since 1970 in UTC"
    )
    key_below: Large | None = Field(
        None, alias="sortKeyLT", description="messages created before this; without `sortOrder`, newest first"
    )

    @model_validator(mode="before")
    @classmethod
    def _as_there(cls, values: dict[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in values.items() if value != ""}
        words = ("direction", "state", "deliveryState", "sortOrder")
        given |= {name: given[name].lower() for name in words if isinstance(given.get(name), str)}
        # The link in that API's documents has a key to go below, and no order: it leads to older messages.
        return {"sortOrder": "desc", **given} if "sortKeyLT" in given and "sortKeyGT" not in given else given

    def as_message_query(self) -> "MessageQuery":
        values = {name: value for name, value in self if not name.startswith("key_")}
        # A time is stored in microseconds: the first one above a key, and the first one not below it.
        since = self.since, _time_of(self.key_above // 1000 + 1) if self.key_above is not None else None
        until = self.until, _time_of(-(-self.key_below // 1000)) if self.key_below is not None else None
        values["since"] = max(filter(None, since), default=None)
        values["until"] = min(filter(None, until), default=None)
        return MessageQuery(**values)


def _time_of(microseconds: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds)


class MessageQuery(MessageFilter):
    """The parameters of the list of messages, newest first by default."""

    order: SortOrder = Field(SortOrder.DESC, alias="sortOrder", description="`desc`: newest first")
    number: Number | None = Field(
        None, description="the number at either end, sender or recipient, in any usual spelling"
    )
    q: Search | None = Field(None, description="a message id, a whole tag, or a number at either end")
    status: Annotated[tuple[MessageStatus, ...], CommaSeparated] = Field(
        (),
        json_schema_extra=_NOT_EMPTY,
        description="the status of the message as a whole; several values are separated by commas",
    )
    delivery_code: Annotated[tuple[Large, ...], CommaSeparated, Option("--code")] = Field(
        (),
        json_schema_extra=_NOT_EMPTY,
        max_length=20,
        description="the delivery code of any recipient; together with `to`, of that recipient; several values are "
        "separated by commas",
    )
    tag: Text | None = Field(None, description="the whole tag, without signature")
    tag_prefix: Annotated[Text, Field(max_length=TAG_START_CHARACTERS)] | None = Field(
        None, description="the beginning of the tag"
    )
    tag_verdict: Annotated[tuple[TagVerdict, ...], CommaSeparated] = Field(
        (),
        json_schema_extra=_NOT_EMPTY,
        description="the result of the tag check; several values are separated by commas",
    )
    application_id: Annotated[Text | None, Option("--application")] = Field(
        None, description="the id of the application at Bandwidth"
    )
    contradicted: Boolean | None = Field(None, description="whether both delivered and failed were reported")
    awaiting_receipt: Annotated[Boolean | None, Option("--awaiting")] = Field(
        None, description="whether a final event is still to be expected"
    )
    older_than: Annotated[Age | None, Option("--older-than", metavar="DURATION", understood="--until")] = Field(
        None,
        description="messages created longer ago than this: `90s`, `15m`, `2h`, `7d`; without a creation time, "
        "first received",
    )

    def alternatives(self) -> list["Alternative"]:
        """The queries whose union this query is, without those that no message can match."""
        expanded, kept = self._expanded()
        alternatives = (
            self._alternative(kept, dict(zip(expanded, values, strict=True)), *places)
            for values in product(*expanded.values())
            for places in product(self._number_places(), self._search_places())
        )
        return list(dict.fromkeys(found for found in alternatives if found is not None and not found.is_contradictory))

    def _expanded(self) -> tuple[dict[str, tuple[Any, ...]], dict[str, Any]]:
        """The filters with several values: those that become an alternative for each, and those that stay lists."""
        expanded: dict[str, tuple[Any, ...]] = {}
        kept: dict[str, Any] = {}
        combinations = 1
        for name, values in (
            ("delivery_code", self.delivery_code),
            ("status", self.status),
            ("tag_verdict", self.tag_verdict),
        ):
            different = tuple(dict.fromkeys(values)) or (None,)
            if combinations * len(different) <= _MOST_COMBINATIONS:
                expanded[name], combinations = different, combinations * len(different)
            else:
                expanded[name], kept[f"{name}_among"] = (None,), different
        return expanded, kept

    def _number_places(self) -> Iterator[dict[str, Any]]:
        yield from ({"sender": self.number}, {"recipient": self.number}) if self.number is not None else ({},)

    def _search_places(self) -> Iterator[dict[str, Any]]:
        if self.q is None:
            yield {}
            return
        yield from ({"message_id": self.q.text}, {"tag": self.q.text})
        if self.q.number is not None:
            yield from ({"sender": self.q.number}, {"recipient": self.q.number})

    def _alternative(self, *choices: dict[str, Any]) -> "Alternative | None":
        """The query with these values, None if two of them contradict each other."""
        values: dict[str, Any] = {
            "sender": self.sender,
            "recipient": self.recipient,
            "tag": self.tag,
            "direction": self.direction,
            "state": self.state,
            "delivery_state": self.delivery_state,
        }
        for choice in choices:
            for name, value in choice.items():
                if values.get(name) not in (None, value):
                    return None
                values[name] = value
        return Alternative(**values)


# Each combination is a SELECT of its own. 20 codes always are; beyond that the values of a filter stay a list, and the
# order of the index is lost.
_MOST_COMBINATIONS: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One value for each filter of a query that may have several, so that one index gives the matches in order."""

    sender: str | None
    recipient: str | None
    tag: str | None
    direction: Direction | None
    state: str | None
    delivery_state: str | None
    status: str | None
    delivery_code: int | None
    tag_verdict: TagVerdict | None
    message_id: str | None = None
    status_among: tuple[str, ...] = ()
    tag_verdict_among: tuple[TagVerdict, ...] = ()

    @property
    def is_contradictory(self) -> bool:
        """Whether no message can have all of these values; the database would search very many rows to find none."""
        filters = ((self.direction, "in"), (self.status, "received"), (self.state, "received"))
        is_inbound = {value == inbound for value, inbound in filters if value is not None}
        if self.tag_verdict is not None:
            is_inbound.add(self.tag_verdict is TagVerdict.NOT_APPLICABLE)
        if len(is_inbound) > 1:
            return True
        if self.status is None or self.delivery_state is None:
            return False
        return self.delivery_state not in DELIVERY_STATES.get(self.status, (self.delivery_state,))


class OneMessageQuery(Query):
    """The parameters that choose one of several messages with the same id."""

    api: Api | None = Field(None, description="required where a v1 message and a v2 message have this id")
    direction: Direction | None = Field(
        None, description="required where an inbound and an outbound message have this id"
    )


Dimension = Literal[
    "status",
    "deliveryCode",
    "category",
    "applicationId",
    "from",
    "carrierName",
    "direction",
    "api",
    "hour",
    "day",
]
# The dimensions of statistics, with the field that has each.
DIMENSIONS: Final[Mapping[Dimension, str]] = {
    "status": "status",
    "deliveryCode": "delivery_code",
    "category": "category",
    "applicationId": "application_id",
    "from": "sender",
    "carrierName": "carrier_name",
    "direction": "direction",
    "api": "api",
    "hour": "hour",
    "day": "day",
}


class StatisticsQuery(Query):
    """The parameters of statistics. A range is widened to whole hours, and covers 30 days unless it has a beginning."""

    by: Annotated[tuple[Dimension, ...], CommaSeparated, Option(metavar="DIMENSION,...")] = Field(
        (),
        json_schema_extra=_NOT_EMPTY,
        max_length=3,
        description="up to three dimensions, separated by commas: "
        + ", ".join(f"`{name}`" for name in DIMENSIONS)
        + "; without any there is one row",
    )
    since: Annotated[Moment | None, Option("--since")] = Field(
        None,
        alias="fromDateTime",
        description="messages created in the hour of this time or later; without a creation time, first received; "
        "default: 30 days before the end",
    )
    until: Annotated[Moment | None, Option("--until")] = Field(
        None, alias="toDateTime", description="messages created before the end of the hour of this time; default: now"
    )
    status: Annotated[tuple[Status, ...], CommaSeparated] = Field(
        (),
        json_schema_extra=_NOT_EMPTY,
        description="the status of the delivery; several values are separated by commas",
    )
    delivery_code: Annotated[tuple[Large, ...], CommaSeparated, Option("--code")] = Field(
        (),
        json_schema_extra=_NOT_EMPTY,
        max_length=20,
        description="the delivery code; several values are separated by commas",
    )
    sender: Number | None = Field(
        None, alias="from", description="the number of the sender of outbound messages, in any usual spelling"
    )
    application_id: Annotated[Text | None, Option("--application")] = Field(
        None, description="the id of the application at Bandwidth"
    )
    carrier_name: Annotated[Text | None, Option("--carrier")] = Field(None, description="the name of the carrier")
    direction: Direction | None = Field(None, description="`in` (received) or `out` (sent)")
    api: Api | None = Field(None, description="messages of this API version")


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


class CallbackQuery(PagedQuery, CallbackFilter):
    """The parameters of the list of callbacks, newest first by default."""

    order: SortOrder = Field(SortOrder.DESC, alias="sortOrder", description="`desc`: newest first")
    after: CallbackCursor | None = Field(None, alias="cursor", description=_CURSOR)


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
    after: NumberCursor | None = Field(None, alias="cursor", description=_CURSOR)


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


class DeadLetterQuery(PagedQuery, DeadLetterFilter):
    """The parameters of the list of dead letters, oldest first by default; their ids rise with `diedTime`."""

    order: SortOrder = Field(SortOrder.ASC, alias="sortOrder", description="`asc`: oldest first")
    after: NumberCursor | None = Field(None, alias="cursor", description=_CURSOR)


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
        json_schema_extra=_NOT_EMPTY,
        description="the types of events, such as message.failed; several values are separated by commas",
    )
    changes_only: Boolean = Field(False, description="only events that changed a status")
    direction: Direction | None = Field(None, description="only inbound or outbound messages")
    application_id: Annotated[tuple[Text, ...], CommaSeparated, Option("--application")] = Field(
        (),
        json_schema_extra=_NOT_EMPTY,
        description="the ids of applications; several values are separated by commas",
    )
    number_prefix: Annotated[tuple[NumberPrefix, ...], CommaSeparated] = Field(
        (),
        json_schema_extra=_NOT_EMPTY,
        description="the beginning of the number of sender or recipient, with the country code; several values are "
        "separated by commas",
    )
    tag_prefix: Annotated[tuple[Text, ...], CommaSeparated] = Field(
        (), json_schema_extra=_NOT_EMPTY, description="the beginning of the tag; several values are separated by commas"
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
