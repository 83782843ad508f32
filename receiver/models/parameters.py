"""The types of query parameters: numbers, times, cursors, and the name of an option that differs from the field."""

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import orjson
from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema

from receiver.clock import now
from receiver.domain.events import Api, Direction
from receiver.models.numbers import typed_number_key


@dataclass(frozen=True, slots=True)
class Option:
    """The name, the help and the metavar of the command's option, where they are not the parameter's own.

    `understood` is the option that takes the value as it was understood, where that is another.
    """

    name: str = ""
    help: str = ""
    metavar: str = ""
    understood: str = ""


@dataclass(frozen=True, slots=True)
class MessagePlace:
    """A place in the list of messages, often that of a message: the next page begins after it.

    `span` is the length of the next span of time, where a search that takes long goes on after this place.
    """

    listed_at: datetime
    api: Api
    direction: Direction
    id: str
    span: timedelta | None = None

    @classmethod
    def at(cls, moment: datetime, span: timedelta | None = None) -> "MessagePlace":
        """The place between earlier messages and those of this moment: the smallest values, and no message's id."""
        return cls(moment, Api.V1, Direction.IN, "", span)


@dataclass(frozen=True, slots=True)
class AlertPlace:
    """An alert's place in the list of alerts."""

    fired_at: datetime
    id: str


def _digits(value: Any) -> Any:
    """Decimal digits as a number; pydantic itself also accepts `1_000`, ` 5` and `1.0`."""
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


@dataclass(frozen=True, slots=True)
class SearchText:
    """What a person types into the one box: the text, and the key of the number that it may be."""

    text: str
    number: str | None


NumberContext = dict[str, Callable[[], str]]
"""The validation context of queries: `country_code` returns the country code of a number typed without one."""


def _number(value: Any, info: ValidationInfo) -> Any:
    """A telephone number in the form in which numbers are compared. A space in front is an unescaped plus."""
    if not isinstance(value, str):
        return value
    text = f"+{value.lstrip(' +')}" if value[:1] in (" ", "+") else value
    return typed_number_key(text, (info.context or _NO_CONTEXT)["country_code"])


_NO_CONTEXT: Final[NumberContext] = {"country_code": lambda: "1"}


def _search_text(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        number = _number(value, info)
    except ValueError:
        number = None
    return SearchText(value.strip(), number)


def _comma_separated(value: Any) -> Any:
    """The values of a list that is one parameter; a single value is a list of one."""
    if isinstance(value, str):
        return value.split(",")
    return value if value is None or isinstance(value, list | tuple) else [value]


# The form of the Catapult API, with parts left out from the right, and RFC 3339, whose plus may arrive as a space.
_MOMENT: Final = re.compile(
    r"(?P<year>\d{4})(?:-(?P<month>\d\d)(?:-(?P<day>\d\d)"
    r"(?:[ Tt](?P<hour>[01]\d|2[0-3])(?::(?P<minute>\d\d)(?::(?P<second>\d\d)(?P<fraction>\.\d{1,9})?)?)?"
    r"(?P<zone>[Zz]|[-+ ]\d\d:\d\d)?)?)?)?",
    re.ASCII,
)
_NOT_A_MOMENT: Final = (
    "must be a time: yyyy-MM-dd hh:mm:ss (the last parts may be left out), RFC 3339, or back from now: 30m, 2h, 7d, "
    "today, yesterday"
)
_BACK_FROM_NOW: Final = re.compile(r"(?P<number>\d{1,5})(?P<unit>[smhdw])", re.ASCII)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DAYS: Final = {"today": 0, "yesterday": 1}


def is_relative(value: str) -> bool:
    """Whether a time depends on now."""
    return value in ("now", *_DAYS) or _BACK_FROM_NOW.fullmatch(value) is not None


def _relative(value: str, now: datetime) -> datetime:
    """A time before now: `2h` is two hours ago, `yesterday` begins at midnight UTC, as a date alone does."""
    if value == "now":
        return now
    if value in _DAYS:
        return now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=_DAYS[value])
    parts = _BACK_FROM_NOW.fullmatch(value)
    assert parts is not None  # noqa: S101
    return now - timedelta(**{_UNITS[parts["unit"]]: int(parts["number"])})


def moment(value: str, clock: Callable[[], datetime] = now) -> datetime:
    """A time as in the Catapult API (UTC; a part left out has its earliest value), of RFC 3339, or back from now."""
    if is_relative(value):
        try:
            return _relative(value, clock())
        except OverflowError:
            raise ValueError(_NOT_A_MOMENT) from None
    parts = _MOMENT.fullmatch(value)
    if parts is None:
        raise ValueError(_NOT_A_MOMENT)
    date = f"{parts['year']}-{parts['month'] or '01'}-{parts['day'] or '01'}"
    hours = f"{parts['hour'] or '00'}:{parts['minute'] or '00'}:{parts['second'] or '00'}{parts['fraction'] or ''}"
    zone = (parts["zone"] or "Z").upper().replace(" ", "+")
    try:
        return datetime.fromisoformat(f"{date}T{hours}{zone}").astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(_NOT_A_MOMENT) from None


def _age(value: Any) -> Any:
    """The time before which something is older than a duration."""
    if not isinstance(value, str):
        return value
    if _BACK_FROM_NOW.fullmatch(value) is None:
        raise ValueError("must be a duration: 90s, 15m, 2h, 7d")
    return moment(value)


def _moment(value: Any) -> Any:
    return moment(value) if isinstance(value, str) else value


def not_before_since(until: datetime | None, info: ValidationInfo) -> datetime | None:
    """The end of a range, which nothing can be in if it lies before the beginning."""
    since = info.data.get("since")
    if until is not None and since is not None and until < since:
        raise ValueError("must not be before the beginning of the range")
    return until


def encode_cursor(parts: Sequence[str]) -> str:
    """A cursor as it is written into an address."""
    return base64.urlsafe_b64encode(orjson.dumps(list(parts))).rstrip(b"=").decode()


def _decode_cursor(cursor: str, *lengths: int) -> list[str]:
    try:
        parts = orjson.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True))
    except ValueError:
        raise ValueError(_NOT_A_CURSOR) from None
    if not isinstance(parts, list) or len(parts) not in lengths or not all(_is_storable(part) for part in parts):
        raise ValueError(_NOT_A_CURSOR)
    return parts


_NOT_A_CURSOR: Final = "is not a cursor from a Link header of this list"


def _is_storable(part: Any) -> bool:
    return isinstance(part, str) and "\0" not in part


def message_cursor(place: MessagePlace) -> str:
    parts = [place.listed_at.astimezone(UTC).isoformat(), place.api, place.direction, place.id]
    if place.span is not None:
        parts.append(str(round(place.span.total_seconds())))
    return encode_cursor(parts)


def _message_place(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    listed_at, api, direction, message_id, *spans = _decode_cursor(value, 4, 5)
    try:
        time = datetime.fromisoformat(listed_at).astimezone(UTC)
        span = timedelta(seconds=_digits(spans[0])) if spans else None
        place = MessagePlace(time, Api(api), Direction(direction), message_id, span)
    except (ValueError, OverflowError):
        raise ValueError(_NOT_A_CURSOR) from None
    return place


def alert_cursor(place: AlertPlace) -> str:
    return encode_cursor([place.fired_at.astimezone(UTC).isoformat(), place.id])


def _alert_place(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    fired_at, alert_id = _decode_cursor(value, 2)
    try:
        return AlertPlace(datetime.fromisoformat(fired_at).astimezone(UTC), alert_id)
    except (ValueError, OverflowError):
        raise ValueError(_NOT_A_CURSOR) from None


def _span(value: Any) -> Any:
    """A time span that is not empty."""
    if not isinstance(value, str):
        return value
    parts = _BACK_FROM_NOW.fullmatch(value)
    if parts is None or value.startswith("0"):
        raise ValueError("must be a duration: 90s, 15m, 2h, 7d")
    return timedelta(**{_UNITS[parts["unit"]]: int(parts["number"])})


def _callback_id(value: Any) -> Any:
    return _decode_cursor(value, 1)[0] if isinstance(value, str) else value


def _number_id(value: Any) -> Any:
    return _digits(_decode_cursor(value, 1)[0]) if isinstance(value, str) else value


Number = Annotated[
    str,
    BeforeValidator(_number),
    Field(min_length=1),
    WithJsonSchema({"type": "string", "format": "telephone-number", "examples": ["+19195551212"]}),
]
NumberPrefix = Annotated[
    str,
    # A plus may arrive as a space.
    BeforeValidator(lambda value: value.lstrip(" +") if isinstance(value, str) else value),
    Field(pattern=r"^[0-9]+$"),
    WithJsonSchema({"type": "string", "pattern": r"^\+?[0-9]+$", "examples": ["1919"]}),
]
Search = Annotated[
    SearchText,
    BeforeValidator(_search_text),
    WithJsonSchema({"type": "string", "pattern": r"\S", "examples": ["(919) 555-1212"]}),
]
CommaSeparated = BeforeValidator(_comma_separated)
PageNumber = Annotated[int, Field(ge=0, le=1_000_000_000), BeforeValidator(_digits)]
Size = Annotated[int, Field(ge=1, le=1000), BeforeValidator(_digits)]
Rows = Annotated[int, Field(ge=1, le=10_000), BeforeValidator(_digits)]
# Up to the largest number of the database.
Large = Annotated[int, Field(ge=0, le=2**63 - 1), BeforeValidator(_digits)]
Boolean = Annotated[bool, BeforeValidator(_boolean)]
Moment = Annotated[
    datetime,
    BeforeValidator(_moment),
    WithJsonSchema({"type": "string", "format": "date-time-prefix", "examples": ["2014-05-25 12:00:00"]}),
]
# How old something has to be, as the time that lies so long before now.
Age = Annotated[
    datetime,
    BeforeValidator(_age),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]{1,5}[smhdw]$", "examples": ["15m"]}),
]
MessageCursor = Annotated[
    MessagePlace, BeforeValidator(_message_place), WithJsonSchema({"type": "string", "format": "message-cursor"})
]
AlertCursor = Annotated[
    AlertPlace, BeforeValidator(_alert_place), WithJsonSchema({"type": "string", "format": "alert-cursor"})
]
Span = Annotated[
    timedelta,
    BeforeValidator(_span),
    WithJsonSchema({"type": "string", "pattern": "^[1-9][0-9]{0,4}[smhdw]$", "examples": ["2h"]}),
]
CallbackCursor = Annotated[
    str, BeforeValidator(_callback_id), WithJsonSchema({"type": "string", "format": "callback-cursor"})
]
# The cursor of a list whose ids are numbers.
NumberCursor = Annotated[
    int,
    Field(le=2**63 - 1),
    BeforeValidator(_number_id),
    WithJsonSchema({"type": "string", "format": "number-cursor"}),
]
Text = Annotated[str, Field(min_length=1)]
