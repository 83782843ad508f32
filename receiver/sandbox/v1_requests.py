"""What version 1 of the messages API (Catapult) may be asked, and what it refuses, in its own words."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from receiver.domain.events import number_key
from receiver.sandbox.messages import Destination
from receiver.sandbox.segments import is_gsm, not_gsm
from receiver.sandbox.timeline import Receipts

MOST_AT_ONCE: Final = 50
MOST_TEXT: Final = 2048
LONGEST_TIMEOUT: Final = 10_000

_E164: Final = re.compile(r"\+[1-9]\d{1,14}", re.ASCII)
_SHORT_CODE: Final = re.compile(r"\d{3,8}", re.ASCII)
_STATUSES: Final = {"bad-request": 400, "authorization": 401, "forbidden": 403, "limit": 403, "not-found": 404}
_CATEGORIES: Final = {"media-invalid-url": "forbidden", "number-access-denied": "authorization"}


@dataclass(eq=False)
class Refusal(Exception):
    """What v1 refuses a request or a message with."""

    category: str
    code: str
    message: str
    details: tuple[tuple[str, str], ...] = ()
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def answer_status(self) -> int:
        return self.status or _STATUSES[self.category]

    def body(self, *more: tuple[str, str]) -> dict[str, Any]:
        details = [{"name": name, "value": value} for name, value in (*self.details, *more)]
        return {"category": self.category, "code": self.code, "message": self.message, "details": details}


NO_ACCESS: Final = Refusal(
    "authorization",
    "access-denied",
    "The authenticated user does not have sufficient permissions to access this resource",
)


def not_found(message_id: str) -> Refusal:
    return Refusal(
        "not-found",
        "message-not-found",
        f"The message '{message_id}' could not be found",
        (("messageId", message_id),),
    )


def not_yours(user: str, number: str) -> Refusal:
    return Refusal(
        "authorization",
        "number-access-denied",
        f"User {user} does not have permission to use number {number}",
        (("userId", user), ("number", number)),
    )


def too_many(count: int) -> Refusal:
    words = f"The number of messages [{count}] in the multi message request is greater than the limit [{MOST_AT_ONCE}]."
    return Refusal("limit", "multi-message-limit", words)


def too_fast(number: str, per_second: float, free_at: datetime) -> Refusal:
    """The refusal of a message that comes too soon after another one from its number."""
    words = (
        f"You can send {per_second:g} messages per 1 seconds per telephone number, "
        f"calculated as the average over 1 seconds. Your rate is above that for telephone number {number}"
    )
    reset = str(-int(-free_at.timestamp() // 1))
    return Refusal(
        "limit",
        "message-rate-limit-per-tn",
        words,
        status=HTTPStatus.TOO_MANY_REQUESTS,
        headers=(("X-RateLimit-Reset", reset),),
    )


def unreadable(words: str) -> Refusal:
    return Refusal("bad-request", "validation-error", words)


def _named(info: ValidationInfo) -> str:
    assert info.field_name is not None  # noqa: S101
    return f"The 'message' resource property '{to_camel(info.field_name.rstrip('_'))}'"


def _wrong(code: str, words: str) -> PydanticCustomError:
    # the words may hold braces of the user's
    return PydanticCustomError(code, "{words}", {"words": words})


def _text(value: Any, info: ValidationInfo) -> str:
    if not isinstance(value, str):
        raise _wrong("validation-error", f"{_named(info)} must be a string")
    return value


def _filled(value: Any, info: ValidationInfo) -> str:
    text = _text(value, info)
    if not text.strip():
        raise _wrong("blank-property", f"{_named(info)} must contain at least one non-whitespace character")
    return text


def _number(value: Any, info: ValidationInfo) -> str:
    number = _filled(value, info)
    if not (_E164.fullmatch(number) or _SHORT_CODE.fullmatch(number)):
        raise _wrong("validation-error", "Invalid phone number")
    return number


def _sendable(value: Any, info: ValidationInfo) -> str:
    text = _filled(value, info)
    if len(text) > MOST_TEXT:
        raise _wrong("validation-error", f"The message text must be {MOST_TEXT:,} characters or less")
    if not is_gsm(text):
        listed = ", ".join(not_gsm(text)[:3])
        raise _wrong("validation-error", f"The message text has characters that GSM 03.38 does not have: {listed}")
    return text


def _media(value: Any, info: ValidationInfo) -> tuple[str, ...]:
    urls = value if isinstance(value, list) else [_filled(value, info)]
    for url in urls:
        if not (isinstance(url, str) and is_web_address(url)):
            raise _wrong("media-invalid-url", f"The media URL '{url}' is invalid.")
    return tuple(urls)


def _callback_url(value: Any, info: ValidationInfo) -> str:
    url = _filled(value, info)
    if not is_web_address(url):
        raise _wrong("callback-invalid-url", f"The URL '{url}' is not a valid callbackUrl/fallbackUrl")
    return url


def _one_of(*values: str) -> Callable[[Any, ValidationInfo], str]:
    def check(value: Any, info: ValidationInfo) -> str:
        told = _text(value, info).lower()
        if told not in values:
            raise _wrong("validation-error", f"{_named(info)} must be one of the following values: {', '.join(values)}")
        return told

    return check


def _timeout(value: Any, info: ValidationInfo) -> int:
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value, re.ASCII):
        value = int(value)
    if type(value) is not int:
        raise _wrong("validation-error", f"{_named(info)} must be a number")
    if value < 1:
        raise _wrong("validation-error", f"{_named(info)} must be greater than 0")
    if value > LONGEST_TIMEOUT:
        raise _wrong("validation-error", f"{_named(info)} exceeds the limit of {LONGEST_TIMEOUT}")
    return value


def is_web_address(url: str) -> bool:
    """Whether a text is the address of something on the web."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and " " not in url
    except ValueError:
        return False


class MessageRequest(BaseModel):
    """A message to be sent. What is null is absent; what is not known plays no part."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, hide_input_in_errors=True)

    from_: Annotated[str, BeforeValidator(_number), Field(alias="from")]
    to: Annotated[str, BeforeValidator(_number)]
    text: Annotated[str, BeforeValidator(_sendable)]
    media: Annotated[tuple[str, ...], BeforeValidator(_media)] = ()
    receipt_requested: Annotated[Receipts, BeforeValidator(_one_of("none", "all", "error"))] = Receipts.NONE
    callback_url: Annotated[str | None, BeforeValidator(_callback_url)] = None
    callback_http_method: Annotated[Literal["get", "post"], BeforeValidator(_one_of("get", "post"))] = "post"
    callback_timeout: Annotated[int, BeforeValidator(_timeout)] = LONGEST_TIMEOUT
    fallback_url: Annotated[str | None, BeforeValidator(_callback_url)] = None
    tag: Annotated[str | None, BeforeValidator(_text)] = None

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None}

    @model_validator(mode="after")
    def _fits_together(self) -> "MessageRequest":
        if self.media and self.receipt_requested is not Receipts.NONE:
            raise _wrong("validation-error", "receiptRequested is not supported for MMS")
        return self

    @property
    def destination(self) -> Destination:
        return Destination(
            url=self.callback_url,
            fallback=self.fallback_url,
            method=self.callback_http_method,
            seconds=self.callback_timeout / 1000,
        )


def read(given: object) -> MessageRequest:
    """A message to be sent out of JSON; raises Refusal with what is wrong first."""
    if not isinstance(given, dict):
        raise unreadable("The 'message' resource must be an object")
    try:
        return MessageRequest.model_validate(given)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> Refusal:
    first = error.errors()[0]
    if first["type"] == "missing":
        name = first["loc"][0]
        return Refusal(
            "bad-request",
            "missing-property",
            f"The 'message' resource property '{name}' is required but was not specified",
        )
    return Refusal(_CATEGORIES.get(first["type"], "bad-request"), first["type"], first["ctx"]["words"])


_DATE: Final = re.compile(
    r"(\d{4})(?:-(\d{1,2}))?(?:-(\d{1,2}))?(?:[ T](\d{1,2}))?(?::(\d{1,2}))?(?::(\d{1,2}))?(?:\.\d+)?Z?", re.ASCII
)


def _moment(value: Any, info: ValidationInfo) -> datetime:
    parts = _DATE.fullmatch(value.strip())
    try:
        if parts is None:
            raise ValueError
        year, month, day, hour, minute, second = (int(part or 0) for part in parts.groups())
        return datetime(year, month or 1, day or 1, hour, minute, second, tzinfo=UTC)
    except ValueError:
        raise _wrong("validation-error", f"{_named(info)} must be in yyyy-MM-dd hh:mm:ss format") from None


def _whole(least: int, most: int) -> Callable[[Any, ValidationInfo], int]:
    def check(value: Any, info: ValidationInfo) -> int:
        if not re.fullmatch(r"\d{1,30}", value, re.ASCII):
            raise _wrong("validation-error", f"{_named(info)} must be a number")
        if int(value) < least:
            raise _wrong("validation-error", f"{_named(info)} must be greater than {least - 1}")
        if int(value) > most:
            raise _wrong("validation-error", f"{_named(info)} exceeds the limit of {most}")
        return int(value)

    return check


def _key(value: Any) -> str:
    # an unescaped plus arrives as a space
    return number_key(value.strip())


class ListRequest(BaseModel):
    """Which messages to list; `sort_key_gt` and `sort_key_lt` are what the link to the next page asks for."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, hide_input_in_errors=True)

    from_: Annotated[str | None, BeforeValidator(_key), Field(alias="from")] = None
    to: Annotated[str | None, BeforeValidator(_key)] = None
    from_date_time: Annotated[datetime | None, BeforeValidator(_moment)] = None
    to_date_time: Annotated[datetime | None, BeforeValidator(_moment)] = None
    page: Annotated[int, BeforeValidator(_whole(0, 10**9))] = 0
    size: Annotated[int, BeforeValidator(_whole(1, 1000))] = 25
    direction: Annotated[str | None, BeforeValidator(_one_of("in", "out"))] = None
    state: Annotated[str | None, BeforeValidator(_one_of("received", "queued", "sending", "sent", "error"))] = None
    delivery_state: Annotated[str | None, BeforeValidator(_one_of("waiting", "delivered", "not-delivered"))] = None
    sort_order: Annotated[str, BeforeValidator(_one_of("asc", "desc"))] = "asc"
    sort_key_gt: Annotated[int | None, BeforeValidator(_whole(0, 10**30)), Field(alias="sortKeyGT")] = None
    sort_key_lt: Annotated[int | None, BeforeValidator(_whole(0, 10**30)), Field(alias="sortKeyLT")] = None


def read_list(given: Mapping[str, str]) -> ListRequest:
    """The parameters of a list; raises Refusal with what is wrong first. Empty ones are absent."""
    try:
        return ListRequest.model_validate({name: value for name, value in given.items() if value.strip()})
    except ValidationError as error:
        raise _refusal(error) from None
