"""v2 of the messages API: parses requests, and builds errors in v2's format and wording."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from receiver.sandbox.settings import is_http_url

MAX_RECIPIENTS: Final = 10
MAX_TEXT_LENGTH: Final = 2048
MAX_TAG_LENGTH: Final = 1024
MAX_LIST_SIZE: Final = 10_000

_E164: Final = re.compile(r"\+[1-9]\d{6,14}", re.ASCII)
_SHORT_CODE: Final = re.compile(r"\d{3,8}", re.ASCII)
_ALPHANUMERIC_SENDER: Final = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9 +_&-]{1,11}", re.ASCII)
_MAX_QUOTED_LENGTH: Final = 100


@dataclass(eq=False)
class V2Error(Exception):
    """An error that v2 answers a request with. `fields` are pairs of a field's name and its error."""

    status: int
    type: str
    description: str
    fields: tuple[tuple[str, str], ...] = ()

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {"type": self.type, "description": self.description}
        if self.fields:
            body["fieldErrors"] = [{"fieldName": name, "description": message} for name, message in self.fields]
        return body


UNAUTHORIZED: Final = V2Error(401, "unauthorized", "Authentication Failed")


def unsupported_content_type() -> V2Error:
    return V2Error(415, "unsupported-content-type", "Content-Type must be application/json")


def invalid(*fields: tuple[str, str]) -> V2Error:
    return V2Error(400, "request-validation", "Your request could not be accepted", fields)


def unknown_application(application_id: str) -> V2Error:
    return invalid(("applicationId", f"'{application_id[:_MAX_QUOTED_LENGTH]}' is not an application of this account"))


def _invalid(message: str) -> PydanticCustomError:
    # Pydantic formats the template, and the message may contain braces from the request.
    return PydanticCustomError("invalid", "{message}", {"message": message})


def _text(value: Any, info: ValidationInfo) -> str:
    if not isinstance(value, str):
        raise _invalid(f"'{_field_name(info)}' must be a string")
    return value


def _field_name(info: ValidationInfo) -> str:
    assert info.field_name is not None  # noqa: S101
    return to_camel(info.field_name.rstrip("_"))


def _sender(value: Any, info: ValidationInfo) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or not value.strip():
        raise _invalid("'from' must contain exactly one telephone number")
    if not any(form.fullmatch(value) for form in (_E164, _SHORT_CODE, _ALPHANUMERIC_SENDER)):
        raise _invalid(_not_a_number(value))
    return value


def _recipients(value: Any) -> tuple[str, ...]:
    numbers = value if isinstance(value, list) else [value]
    if not numbers or numbers == [""]:
        raise _invalid("'to' must contain at least one telephone number")
    for number in numbers:
        if not isinstance(number, str) or not _E164.fullmatch(number):
            raise _invalid(_not_a_number(number))
    if len(set(numbers)) < len(numbers):
        raise _invalid("'to' must not contain a telephone number twice")
    if len(numbers) > MAX_RECIPIENTS:
        raise _invalid(f"'to' must contain at most {MAX_RECIPIENTS} telephone numbers")
    return tuple(numbers)


def _not_a_number(value: object) -> str:
    return f"'{str(value)[:_MAX_QUOTED_LENGTH]}' must be replaced with a valid E164 formatted telephone number"


def _message_text(value: Any, info: ValidationInfo) -> str:
    if len(_text(value, info)) > MAX_TEXT_LENGTH:
        raise _invalid(f"'text' must be {MAX_TEXT_LENGTH} characters or less")
    return str(value)


def _application_id(value: Any, info: ValidationInfo) -> str:
    if not _text(value, info).strip():
        raise _invalid("'applicationId' must not be empty")
    return str(value)


def _media(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _invalid("'media' must be an array of URLs")
    for url in value:
        if not (isinstance(url, str) and is_http_url(url)):
            raise _invalid(f"'{str(url)[:_MAX_QUOTED_LENGTH]}' must be replaced with a valid URL")
    return tuple(value)


def _tag(value: Any, info: ValidationInfo) -> str:
    if len(_text(value, info)) > MAX_TAG_LENGTH:
        raise _invalid(f"'tag' must be {MAX_TAG_LENGTH} characters or less")
    return str(value)


def _priority(value: Any) -> str:
    if value not in ("default", "high"):
        raise _invalid("'priority' must be 'default' or 'high'")
    return str(value)


def _date_time(value: Any, info: ValidationInfo) -> datetime:
    try:
        time = datetime.fromisoformat(_text(value, info).strip().upper())
    except ValueError:
        raise _invalid(f"'{_field_name(info)}' must be an ISO 8601 date and time") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


class MessageRequest(BaseModel):
    """A message to send. Null fields count as absent, unknown ones are ignored."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, hide_input_in_errors=True)

    from_: Annotated[str, BeforeValidator(_sender), Field(alias="from")]
    to: Annotated[tuple[str, ...], BeforeValidator(_recipients)]
    text: Annotated[str, BeforeValidator(_message_text)] = ""
    application_id: Annotated[str, BeforeValidator(_application_id)]
    media: Annotated[tuple[str, ...], BeforeValidator(_media)] = ()
    tag: Annotated[str | None, BeforeValidator(_tag)] = None
    priority: Annotated[Literal["default", "high"] | None, BeforeValidator(_priority)] = None
    expiration: Annotated[datetime | None, BeforeValidator(_date_time)] = None

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, fields: Any) -> Any:
        return {name: value for name, value in fields.items() if value is not None}


_MISSING: Final = {
    "from": "'from' must contain exactly one telephone number",
    "to": "'to' must contain at least one telephone number",
    "applicationId": "'applicationId' is required",
}


def parse_message(value: object) -> MessageRequest:
    """Parses a message to send. Raises V2Error with every error."""
    if not isinstance(value, dict):
        raise invalid()
    errors: tuple[tuple[str, str], ...] = ()
    try:
        request = MessageRequest.model_validate(value)
    except ValidationError as error:
        errors = _field_errors(error)
    if not (value.get("text") or value.get("media")):
        errors = (*errors, ("text", "'text' is required unless media is included"))
    if errors:
        raise invalid(*errors)
    return request


def _field_errors(error: ValidationError) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, _MISSING[name] if details["type"] == "missing" else details["ctx"]["message"])
        for details in error.errors()
        for name in [str(details["loc"][0])]
    )


def _number_list(value: Any) -> tuple[str, ...]:
    # An unescaped plus arrives as a space.
    return tuple(number.strip().removeprefix("+") for number in value.split(","))


def _upper(value: Any) -> str:
    return str(value).upper()


def _limit(value: Any, info: ValidationInfo) -> int:
    if not re.fullmatch(r"\d{1,6}", value, re.ASCII) or int(value) > MAX_LIST_SIZE:
        raise _invalid(f"'{_field_name(info)}' must be a number up to {MAX_LIST_SIZE}")
    return int(value)


def _sort(value: Any) -> tuple[str, bool]:
    field, _, direction = value.partition(":")
    if direction not in ("asc", "desc"):
        raise _invalid("'sort' must be a field and asc or desc, combined with a colon")
    return field, direction == "desc"


class ListRequest(BaseModel):
    """The parameters of a list. Parameters for features that the sandbox does not have are ignored."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, hide_input_in_errors=True)

    message_id: str | None = None
    source_tn: Annotated[tuple[str, ...], BeforeValidator(_number_list)] = ()
    destination_tn: Annotated[tuple[str, ...], BeforeValidator(_number_list)] = ()
    message_status: Annotated[str | None, BeforeValidator(_upper)] = None
    message_direction: Annotated[str | None, BeforeValidator(_upper)] = None
    message_type: Annotated[str | None, BeforeValidator(str.lower)] = None
    error_code: Annotated[int | None, BeforeValidator(_limit)] = None
    from_date_time: Annotated[datetime | None, BeforeValidator(_date_time)] = None
    to_date_time: Annotated[datetime | None, BeforeValidator(_date_time)] = None
    sort: Annotated[tuple[str, bool], BeforeValidator(_sort)] = ("receiveTime", True)
    limit: Annotated[int, BeforeValidator(_limit)] = 100


def parse_list_parameters(parameters: Mapping[str, str]) -> ListRequest:
    """Parses the parameters of a list; at least one is required. Raises V2Error with every error."""
    if not parameters:
        raise V2Error(400, "request-validation", "At least one query parameter is required")
    try:
        return ListRequest.model_validate({name: value for name, value in parameters.items() if value})
    except ValidationError as error:
        raise invalid(*_field_errors(error)) from None
