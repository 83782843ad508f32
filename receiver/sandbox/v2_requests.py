"""What version 2 of the messages API may be asked, and what it refuses, in its own words."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from receiver.sandbox.v1_requests import is_web_address

MOST_RECIPIENTS: Final = 10
MOST_TEXT: Final = 2048
MOST_TAG: Final = 1024
MOST_LISTED: Final = 10_000

_E164: Final = re.compile(r"\+[1-9]\d{6,14}", re.ASCII)
_SHORT_CODE: Final = re.compile(r"\d{3,8}", re.ASCII)
_NAME: Final = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9 +_&-]{1,11}", re.ASCII)
_LONGEST_QUOTED: Final = 100


@dataclass(eq=False)
class Refusal(Exception):
    """What v2 refuses a request with; `fields` are pairs of a field's name and what is wrong with it."""

    status: int
    type: str
    description: str
    fields: tuple[tuple[str, str], ...] = ()

    def body(self) -> dict[str, Any]:
        told: dict[str, Any] = {"type": self.type, "description": self.description}
        if self.fields:
            told["fieldErrors"] = [{"fieldName": name, "description": words} for name, words in self.fields]
        return told


UNAUTHORIZED: Final = Refusal(401, "unauthorized", "Authentication Failed")


def not_json() -> Refusal:
    return Refusal(415, "unsupported-content-type", "Content-Type must be application/json")


def invalid(*fields: tuple[str, str]) -> Refusal:
    return Refusal(400, "request-validation", "Your request could not be accepted", fields)


def not_yours(application_id: str) -> Refusal:
    return invalid(("applicationId", f"'{application_id[:_LONGEST_QUOTED]}' is not an application of this account"))


def _wrong(words: str) -> PydanticCustomError:
    # the words may hold braces of the user's
    return PydanticCustomError("refused", "{words}", {"words": words})


def _text(value: Any, info: ValidationInfo) -> str:
    if not isinstance(value, str):
        raise _wrong(f"'{_name(info)}' must be a string")
    return value


def _name(info: ValidationInfo) -> str:
    assert info.field_name is not None  # noqa: S101
    return to_camel(info.field_name.rstrip("_"))


def _sender(value: Any, info: ValidationInfo) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or not value.strip():
        raise _wrong("'from' must contain exactly one telephone number")
    if not any(form.fullmatch(value) for form in (_E164, _SHORT_CODE, _NAME)):
        raise _wrong(_not_a_number(value))
    return value


def _recipients(value: Any) -> tuple[str, ...]:
    listed = value if isinstance(value, list) else [value]
    if not listed or listed == [""]:
        raise _wrong("'to' must contain at least one telephone number")
    for number in listed:
        if not isinstance(number, str) or not _E164.fullmatch(number):
            raise _wrong(_not_a_number(number))
    if len(set(listed)) < len(listed):
        raise _wrong("'to' must not contain a telephone number twice")
    if len(listed) > MOST_RECIPIENTS:
        raise _wrong(f"'to' must contain at most {MOST_RECIPIENTS} telephone numbers")
    return tuple(listed)


def _not_a_number(value: object) -> str:
    return f"'{str(value)[:_LONGEST_QUOTED]}' must be replaced with a valid E164 formatted telephone number"


def _sendable(value: Any, info: ValidationInfo) -> str:
    if len(_text(value, info)) > MOST_TEXT:
        raise _wrong(f"'text' must be {MOST_TEXT} characters or less")
    return str(value)


def _application(value: Any, info: ValidationInfo) -> str:
    if not _text(value, info).strip():
        raise _wrong("'applicationId' must not be empty")
    return str(value)


def _media(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _wrong("'media' must be an array of URLs")
    for url in value:
        if not (isinstance(url, str) and is_web_address(url)):
            raise _wrong(f"'{str(url)[:_LONGEST_QUOTED]}' must be replaced with a valid URL")
    return tuple(value)


def _tag(value: Any, info: ValidationInfo) -> str:
    if len(_text(value, info)) > MOST_TAG:
        raise _wrong(f"'tag' must be {MOST_TAG} characters or less")
    return str(value)


def _priority(value: Any) -> str:
    if value not in ("default", "high"):
        raise _wrong("'priority' must be 'default' or 'high'")
    return str(value)


def _moment(value: Any, info: ValidationInfo) -> datetime:
    try:
        moment = datetime.fromisoformat(_text(value, info).strip().upper())
    except ValueError:
        raise _wrong(f"'{_name(info)}' must be an ISO 8601 date and time") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class MessageRequest(BaseModel):
    """A message to be sent. What is null is absent; what is not known plays no part."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, hide_input_in_errors=True)

    from_: Annotated[str, BeforeValidator(_sender), Field(alias="from")]
    to: Annotated[tuple[str, ...], BeforeValidator(_recipients)]
    text: Annotated[str, BeforeValidator(_sendable)] = ""
    application_id: Annotated[str, BeforeValidator(_application)]
    media: Annotated[tuple[str, ...], BeforeValidator(_media)] = ()
    tag: Annotated[str | None, BeforeValidator(_tag)] = None
    priority: Annotated[Literal["default", "high"] | None, BeforeValidator(_priority)] = None
    expiration: Annotated[datetime | None, BeforeValidator(_moment)] = None

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None}


_MISSING: Final = {
    "from": "'from' must contain exactly one telephone number",
    "to": "'to' must contain at least one telephone number",
    "applicationId": "'applicationId' is required",
}


def read(given: object) -> MessageRequest:
    """A message to be sent out of JSON; raises Refusal with everything that is wrong."""
    if not isinstance(given, dict):
        raise invalid()
    wrong: tuple[tuple[str, str], ...] = ()
    try:
        request = MessageRequest.model_validate(given)
    except ValidationError as error:
        wrong = _field_errors(error)
    if not (given.get("text") or given.get("media")):
        wrong = (*wrong, ("text", "'text' is required unless media is included"))
    if wrong:
        raise invalid(*wrong)
    return request


def _field_errors(error: ValidationError) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, _MISSING[name] if each["type"] == "missing" else each["ctx"]["words"])
        for each in error.errors()
        for name in [str(each["loc"][0])]
    )


def _numbers(value: Any) -> tuple[str, ...]:
    # an unescaped plus arrives as a space
    return tuple(number.strip().removeprefix("+") for number in value.split(","))


def _upper(value: Any) -> str:
    return str(value).upper()


def _limit(value: Any, info: ValidationInfo) -> int:
    if not re.fullmatch(r"\d{1,6}", value, re.ASCII) or int(value) > MOST_LISTED:
        raise _wrong(f"'{_name(info)}' must be a number up to {MOST_LISTED}")
    return int(value)


def _sort(value: Any) -> tuple[str, bool]:
    field, _, direction = value.partition(":")
    if direction not in ("asc", "desc"):
        raise _wrong("'sort' must be a field and asc or desc, combined with a colon")
    return field, direction == "desc"


class ListRequest(BaseModel):
    """Which messages to list. Parameters of the real API that concern what the sandbox does not have play no part."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, hide_input_in_errors=True)

    message_id: str | None = None
    source_tn: Annotated[tuple[str, ...], BeforeValidator(_numbers)] = ()
    destination_tn: Annotated[tuple[str, ...], BeforeValidator(_numbers)] = ()
    message_status: Annotated[str | None, BeforeValidator(_upper)] = None
    message_direction: Annotated[str | None, BeforeValidator(_upper)] = None
    message_type: Annotated[str | None, BeforeValidator(str.lower)] = None
    error_code: Annotated[int | None, BeforeValidator(_limit)] = None
    from_date_time: Annotated[datetime | None, BeforeValidator(_moment)] = None
    to_date_time: Annotated[datetime | None, BeforeValidator(_moment)] = None
    sort: Annotated[tuple[str, bool], BeforeValidator(_sort)] = ("receiveTime", True)
    limit: Annotated[int, BeforeValidator(_limit)] = 100


def read_list(given: Mapping[str, str]) -> ListRequest:
    """The parameters of a list, of which there must be one; raises Refusal with everything that is wrong."""
    if not given:
        raise Refusal(400, "request-validation", "At least one query parameter is required")
    try:
        return ListRequest.model_validate({name: value for name, value in given.items() if value})
    except ValidationError as error:
        raise invalid(*_field_errors(error)) from None
