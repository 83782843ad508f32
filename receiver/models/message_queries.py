"""Queries of messages: their filters, and the alternatives that an index serves each."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from receiver.domain.events import Direction, TagVerdict
from receiver.models.parameters import (
    Age,
    Boolean,
    CommaSeparated,
    Large,
    MessageCursor,
    Moment,
    Number,
    Option,
    Search,
    Text,
    not_before_since,
)
from receiver.models.queries import CURSOR, NOT_EMPTY, PagedQuery, SortOrder
from receiver.providers.states import DELIVERY_STATES

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

# An index entry of PostgreSQL has room for some 2700 bytes; a tag may be longer.
TAG_START_CHARACTERS: Final = 200


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
    after: MessageCursor | None = Field(None, alias="cursor", description=CURSOR)


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
        # That API says nothing of a range that ends before it begins; no message is in it.
        return MessageQuery.model_construct(**values)


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
        json_schema_extra=NOT_EMPTY,
        description="the status of the message as a whole; several values are separated by commas",
    )
    delivery_code: Annotated[tuple[Large, ...], CommaSeparated, Option("--code")] = Field(
        (),
        json_schema_extra=NOT_EMPTY,
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
        json_schema_extra=NOT_EMPTY,
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

    _until = field_validator("until")(not_before_since)

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
