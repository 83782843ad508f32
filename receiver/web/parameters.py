"""Query parameters, typed: one model per route; what is unknown or cannot be read is refused by name."""

import base64
import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar
from urllib.parse import parse_qsl

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic.alias_generators import to_camel

from receiver.domain.events import Api, Direction, Quarantine, TagVerdict, number_key
from receiver.domain.publication import Death
from receiver.domain.queries import (
    CallbackQuery,
    DeadLetterChoice,
    DeadLetterQuery,
    MessagePlace,
    MessageQuery,
    SortOrder,
)
from receiver.web.problems import BadValue, ProblemError, bad_values

_MAX_PARAMETERS: Final = 100
_MAX_NAME: Final = 60


def _digits(value: Any) -> Any:
    """Decimal digits as a number; pydantic itself would also read `1_000`, ` 5` and `1.0`."""
    if isinstance(value, str):
        if not re.fullmatch(r"[0-9]{1,19}", value):
            raise ValueError("must be a whole number")
        return int(value)
    return value


def _boolean(value: Any) -> Any:
    if isinstance(value, str):
        if value not in ("true", "false"):
            raise ValueError("must be true or false")
        return value == "true"
    return value


def _number(value: Any) -> Any:
    """A number as it is compared. The plus that an unescaped address turns into a space is a plus again."""
    return number_key(value.lstrip(" +")) if isinstance(value, str) else value


# The seed's form, parts left out from the right, and RFC 3339, whose plus may have become a space.
_MOMENT: Final = re.compile(
    r"(?P<year>\d{4})(?:-(?P<month>\d\d)(?:-(?P<day>\d\d)"
    r"(?:[ Tt](?P<hour>[01]\d|2[0-3])(?::(?P<minute>\d\d)(?::(?P<second>\d\d)(?P<fraction>\.\d{1,9})?)?)?"
    r"(?P<zone>[Zz]|[-+ ]\d\d:\d\d)?)?)?)?",
    re.ASCII,
)
_NOT_A_MOMENT: Final = "must be a time: yyyy-MM-dd hh:mm:ss, parts may be left out, or RFC 3339"


def moment(value: str) -> datetime:
    """A time as the seed API takes it (UTC, what is left out is the earliest), or as RFC 3339 has it."""
    parts = _MOMENT.fullmatch(value)
    if parts is None:
        raise ValueError(_NOT_A_MOMENT)
    date = f"{parts['year']}-{parts['month'] or '01'}-{parts['day'] or '01'}"
    clock = f"{parts['hour'] or '00'}:{parts['minute'] or '00'}:{parts['second'] or '00'}{parts['fraction'] or ''}"
    zone = (parts["zone"] or "Z").upper().replace(" ", "+")
    try:
        return datetime.fromisoformat(f"{date}T{clock}{zone}").astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(_NOT_A_MOMENT) from None


def _moment(value: Any) -> Any:
    return moment(value) if isinstance(value, str) else value


def encode_cursor(parts: Sequence[str]) -> str:
    """A place in a list as it is written into an address."""
    return base64.urlsafe_b64encode(orjson.dumps(list(parts))).rstrip(b"=").decode()


def _decode_cursor(cursor: str, length: int) -> list[str]:
    try:
        parts = orjson.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True))
    except ValueError:
        raise ValueError(_NOT_A_CURSOR) from None
    if not isinstance(parts, list) or len(parts) != length or not all(_is_storable(part) for part in parts):
        raise ValueError(_NOT_A_CURSOR)
    return parts


_NOT_A_CURSOR: Final = "is not a cursor that was given out here"


def _is_storable(part: Any) -> bool:
    return isinstance(part, str) and "\0" not in part


def message_cursor(place: MessagePlace) -> str:
    return encode_cursor([place.listed_at.astimezone(UTC).isoformat(), place.api, place.id])


def _message_place(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    listed_at, api, message_id = _decode_cursor(value, 3)
    try:
        place = MessagePlace(datetime.fromisoformat(listed_at).astimezone(UTC), Api(api), message_id)
    except (ValueError, OverflowError):
        raise ValueError(_NOT_A_CURSOR) from None
    return place


def _callback_id(value: Any) -> Any:
    return _decode_cursor(value, 1)[0] if isinstance(value, str) else value


def _number_id(value: Any) -> Any:
    return _digits(_decode_cursor(value, 1)[0]) if isinstance(value, str) else value


Number = Annotated[
    str,
    BeforeValidator(_number),
    Field(min_length=1),
    WithJsonSchema({"type": "string", "pattern": "[^ +]", "examples": ["+19195551212"]}),
]
PageNumber = Annotated[int, Field(ge=0, le=1_000_000_000), BeforeValidator(_digits)]
Size = Annotated[int, Field(ge=1, le=1000), BeforeValidator(_digits)]
# as large as the database's numbers are
Large = Annotated[int, Field(ge=0, le=2**63 - 1), BeforeValidator(_digits)]
Boolean = Annotated[bool, BeforeValidator(_boolean)]
Moment = Annotated[
    datetime,
    BeforeValidator(_moment),
    WithJsonSchema({"type": "string", "format": "seed-date-time", "examples": ["2014-05-25 12:00:00"]}),
]
MessageCursor = Annotated[
    MessagePlace, BeforeValidator(_message_place), WithJsonSchema({"type": "string", "format": "message-cursor"})
]
CallbackCursor = Annotated[
    str, BeforeValidator(_callback_id), WithJsonSchema({"type": "string", "format": "callback-cursor"})
]
# the place of what has a number as its id
NumberCursor = Annotated[
    int,
    Field(le=2**63 - 1),
    BeforeValidator(_number_id),
    WithJsonSchema({"type": "string", "format": "number-cursor"}),
]
Text = Annotated[str, Field(min_length=1)]


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


class _SeedMessages(Paged):
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


class CompatMessageParameters(_SeedMessages):
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


class MessageParameters(_SeedMessages):
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
    """Which generation's message is meant."""

    api: Api | None = Field(None, description="needed only where both generations have this id")


class OneCodeParameters(Parameters):
    """Which generation's code is meant."""

    api: Api | None = Field(None, description="needed only where both generations have this code")


Outcome = Literal["accepted", "quarantined"]


class CallbackParameters(Paged):
    """The parameters of the list of callbacks, newest first unless asked."""

    outcome: Outcome | None = None
    reason: Quarantine | None = Field(None, description="why a callback was quarantined")
    sort_order: SortOrder = Field(SortOrder.DESC, description="`desc`: newest first")
    cursor: CallbackCursor | None = Field(None, description="where the page begins; only from a `Link`")

    def query(self) -> CallbackQuery:
        return CallbackQuery(
            outcome=self.outcome,
            reason=self.reason,
            order=self.sort_order,
            after=self.cursor,
            skip=self.skip,
            size=self.size,
        )


class RereadParameters(CallbackParameters):
    """Which callbacks to read again: the quarantined ones, oldest first, unless asked otherwise."""

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
    """Which generation's message is meant, and which sink."""

    sink: Text | None = Field(None, description="none: all")


class _DeadLetters(Parameters):
    """Which dead letters are meant, but for whose."""

    reason: Death | None = Field(None, description="refused by the sink, or tried for too long")
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


def storable(text: str) -> str:
    """A text as the database has it: NUL, which PostgreSQL has no place for, is replaced there."""
    return text.replace("\0", "\ufffd")
