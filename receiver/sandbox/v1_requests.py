"""v1 (Catapult) of the messages API: parses requests, and builds errors in v1's format and wording."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from receiver.domain.events import number_key
from receiver.sandbox.messages import CallbackTarget, is_gsm, not_gsm
from receiver.sandbox.scenario import Receipts
from receiver.sandbox.settings import MAX_TIMEOUT_MS, is_http_url

MAX_MESSAGES_PER_REQUEST: Final = 50
MAX_TEXT_LENGTH: Final = 2048

_E164: Final = re.compile(r"\+[1-9]\d{1,14}", re.ASCII)
_SHORT_CODE: Final = re.compile(r"\d{3,8}", re.ASCII)
_STATUSES: Final = {"bad-request": 400, "authorization": 401, "forbidden": 403, "limit": 403, "not-found": 404}
_CATEGORIES: Final = {"media-invalid-url": "forbidden", "number-access-denied": "authorization"}


@dataclass(eq=False)
class V1Error(Exception):
    """An error that v1 answers a request or a message with. `status` 0 stands for the status of the category."""

    category: str
    code: str
    message: str
    details: tuple[tuple[str, str], ...] = ()
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def http_status(self) -> int:
        return self.status or _STATUSES[self.category]

    def body(self, *more_details: tuple[str, str]) -> dict[str, Any]:
        details = [{"name": name, "value": value} for name, value in (*self.details, *more_details)]
        return {"category": self.category, "code": self.code, "message": self.message, "details": details}


ACCESS_DENIED: Final = V1Error(
    "authorization",
    "access-denied",
    "The authenticated user does not have sufficient permissions to access this resource",
)


def not_found(message_id: str) -> V1Error:
    return V1Error(
        "not-found",
        "message-not-found",
        f"The message '{message_id}' could not be found",
        (("messageId", message_id),),
    )


def number_access_denied(user: str, number: str) -> V1Error:
    return V1Error(
        "authorization",
        "number-access-denied",
        f"User {user} does not have permission to use number {number}",
        (("userId", user), ("number", number)),
    )


def multi_message_limit(count: int) -> V1Error:
    limit = MAX_MESSAGES_PER_REQUEST
    message = f"The number of messages [{count}] in the multi message request is greater than the limit [{limit}]."
    return V1Error("limit", "multi-message-limit", message)


def rate_limited(number: str, per_second: float, free_at: datetime) -> V1Error:
    """The sending number exceeds its rate limit, which is cleared at `free_at`."""
    message = (
        f"You can send {per_second:g} messages per 1 seconds per telephone number, "
        f"calculated as the average over 1 seconds. Your rate is above that for telephone number {number}"
    )
    reset = str(-int(-free_at.timestamp() // 1))
    return V1Error(
        "limit",
        "message-rate-limit-per-tn",
        message,
        status=HTTPStatus.TOO_MANY_REQUESTS,
        headers=(("X-RateLimit-Reset", reset),),
    )


def validation_error(message: str) -> V1Error:
    return V1Error("bad-request", "validation-error", message)


def _property(info: ValidationInfo) -> str:
    assert info.field_name is not None  # noqa: S101
    return f"The 'message' resource property '{to_camel(info.field_name.rstrip('_'))}'"


def _invalid(code: str, message: str) -> PydanticCustomError:
    # Pydantic formats the template, and the message may contain braces from the request.
    return PydanticCustomError(code, "{message}", {"message": message})


def _text(value: Any, info: ValidationInfo) -> str:
    if not isinstance(value, str):
        raise _invalid("validation-error", f"{_property(info)} must be a string")
    return value


def _non_blank(value: Any, info: ValidationInfo) -> str:
    text = _text(value, info)
    if not text.strip():
        raise _invalid("blank-property", f"{_property(info)} must contain at least one non-whitespace character")
    return text


def _number(value: Any, info: ValidationInfo) -> str:
    number = _non_blank(value, info)
    if not (_E164.fullmatch(number) or _SHORT_CODE.fullmatch(number)):
        raise _invalid("validation-error", "Invalid phone number")
    return number


def _message_text(value: Any, info: ValidationInfo) -> str:
    text = _non_blank(value, info)
    if len(text) > MAX_TEXT_LENGTH:
        raise _invalid("validation-error", f"The message text must be {MAX_TEXT_LENGTH:,} characters or less")
    if not is_gsm(text):
        listed = ", ".join(not_gsm(text)[:3])
        raise _invalid("validation-error", f"The message text has characters that GSM 03.38 does not have: {listed}")
    return text


def _media(value: Any, info: ValidationInfo) -> tuple[str, ...]:
    urls = value if isinstance(value, list) else [_non_blank(value, info)]
    for url in urls:
        if not (isinstance(url, str) and is_http_url(url)):
            raise _invalid("media-invalid-url", f"The media URL '{url}' is invalid.")
    return tuple(urls)


def _callback_url(value: Any, info: ValidationInfo) -> str:
    url = _non_blank(value, info)
    if not is_http_url(url):
        raise _invalid("callback-invalid-url", f"The URL '{url}' is not a valid callbackUrl/fallbackUrl")
    return url


def _one_of(*values: str) -> Callable[[Any, ValidationInfo], str]:
    def check(value: Any, info: ValidationInfo) -> str:
        text = _text(value, info).lower()
        if text not in values:
            raise _invalid(
                "validation-error", f"{_property(info)} must be one of the following values: {', '.join(values)}"
            )
        return text

    return check


def _timeout(value: Any, info: ValidationInfo) -> int:
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value, re.ASCII):
        value = int(value)
    if type(value) is not int:
        raise _invalid("validation-error", f"{_property(info)} must be a number")
    if value < 1:
        raise _invalid("validation-error", f"{_property(info)} must be greater than 0")
    if value > MAX_TIMEOUT_MS:
        raise _invalid("validation-error", f"{_property(info)} exceeds the limit of {MAX_TIMEOUT_MS}")
    return value


class MessageRequest(BaseModel):
    """A message to send. Null properties count as absent, unknown ones are ignored."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, hide_input_in_errors=True)

    from_: Annotated[str, BeforeValidator(_number), Field(alias="from")]
    to: Annotated[str, BeforeValidator(_number)]
    text: Annotated[str, BeforeValidator(_message_text)]
    media: Annotated[tuple[str, ...], BeforeValidator(_media)] = ()
    receipt_requested: Annotated[Receipts, BeforeValidator(_one_of("none", "all", "error"))] = Receipts.NONE
    callback_url: Annotated[str | None, BeforeValidator(_callback_url)] = None
    callback_http_method: Annotated[Literal["get", "post"], BeforeValidator(_one_of("get", "post"))] = "post"
    callback_timeout: Annotated[int, BeforeValidator(_timeout)] = MAX_TIMEOUT_MS
    fallback_url: Annotated[str | None, BeforeValidator(_callback_url)] = None
    tag: Annotated[str | None, BeforeValidator(_text)] = None

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, properties: Any) -> Any:
        return {name: value for name, value in properties.items() if value is not None}

    @model_validator(mode="after")
    def _is_consistent(self) -> "MessageRequest":
        if self.media and self.receipt_requested is not Receipts.NONE:
            raise _invalid("validation-error", "receiptRequested is not supported for MMS")
        return self

    @property
    def target(self) -> CallbackTarget:
        return CallbackTarget(
            url=self.callback_url,
            fallback_url=self.fallback_url,
            method=self.callback_http_method,
            timeout=self.callback_timeout / 1000,
        )


def parse_message(value: object) -> MessageRequest:
    """Parses a message to send. Raises V1Error with the first error."""
    if not isinstance(value, dict):
        raise validation_error("The 'message' resource must be an object")
    try:
        return MessageRequest.model_validate(value)
    except ValidationError as error:
        raise _v1_error(error) from None


def _v1_error(error: ValidationError) -> V1Error:
    first = error.errors()[0]
    if first["type"] == "missing":
        name = first["loc"][0]
        return V1Error(
            "bad-request",
            "missing-property",
            f"The 'message' resource property '{name}' is required but was not specified",
        )
    return V1Error(_CATEGORIES.get(first["type"], "bad-request"), first["type"], first["ctx"]["message"])


_DATE: Final = re.compile(
    r"(\d{4})(?:-(\d{1,2}))?(?:-(\d{1,2}))?(?:[ T](\d{1,2}))?(?::(\d{1,2}))?(?::(\d{1,2}))?(?:\.\d+)?Z?", re.ASCII
)


def _date_time(value: Any, info: ValidationInfo) -> datetime:
    """Parses a date of which all parts after the year may be missing."""
    parts = _DATE.fullmatch(value.strip())
    try:
        if parts is None:
            raise ValueError
        year, month, day, hour, minute, second = (int(part or 0) for part in parts.groups())
        return datetime(year, month or 1, day or 1, hour, minute, second, tzinfo=UTC)
    except ValueError:
        raise _invalid("validation-error", f"{_property(info)} must be in yyyy-MM-dd hh:mm:ss format") from None


def _integer(minimum: int, maximum: int) -> Callable[[Any, ValidationInfo], int]:
    def check(value: Any, info: ValidationInfo) -> int:
        if not re.fullmatch(r"\d{1,30}", value, re.ASCII):
            raise _invalid("validation-error", f"{_property(info)} must be a number")
        if int(value) < minimum:
            raise _invalid("validation-error", f"{_property(info)} must be greater than {minimum - 1}")
        if int(value) > maximum:
            raise _invalid("validation-error", f"{_property(info)} exceeds the limit of {maximum}")
        return int(value)

    return check


def _key(value: Any) -> str:
    # An unescaped plus arrives as a space.
    return number_key(value.strip())


class ListRequest(BaseModel):
    """The parameters of a list. The link to the next page has `sort_key_gt` or `sort_key_lt`.

    A link with `sort_key_lt` and no order, as in v1's documents, leads to older messages: it means newest first.
    """

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, hide_input_in_errors=True)

    from_: Annotated[str | None, BeforeValidator(_key), Field(alias="from")] = None
    to: Annotated[str | None, BeforeValidator(_key)] = None
    from_date_time: Annotated[datetime | None, BeforeValidator(_date_time)] = None
    to_date_time: Annotated[datetime | None, BeforeValidator(_date_time)] = None
    page: Annotated[int, BeforeValidator(_integer(0, 10**9))] = 0
    size: Annotated[int, BeforeValidator(_integer(1, 1000))] = 25
    direction: Annotated[str | None, BeforeValidator(_one_of("in", "out"))] = None
    state: Annotated[str | None, BeforeValidator(_one_of("received", "queued", "sending", "sent", "error"))] = None
    delivery_state: Annotated[str | None, BeforeValidator(_one_of("waiting", "delivered", "not-delivered"))] = None
    sort_order: Annotated[str, BeforeValidator(_one_of("asc", "desc"))] = "asc"
    sort_key_gt: Annotated[int | None, BeforeValidator(_integer(0, 10**30)), Field(alias="sortKeyGT")] = None
    sort_key_lt: Annotated[int | None, BeforeValidator(_integer(0, 10**30)), Field(alias="sortKeyLT")] = None

    @model_validator(mode="before")
    @classmethod
    def _descends_below_a_key(cls, parameters: Any) -> Any:
        is_below = "sortKeyLT" in parameters and "sortKeyGT" not in parameters
        return {"sortOrder": "desc", **parameters} if is_below else parameters


def parse_list_parameters(parameters: Mapping[str, str]) -> ListRequest:
    """Parses the parameters of a list. Raises V1Error with the first error. Empty parameters count as absent."""
    try:
        return ListRequest.model_validate({name: value for name, value in parameters.items() if value.strip()})
    except ValidationError as error:
        raise _v1_error(error) from None
