"""Messages as in the Catapult API (v1): its addresses, parameters, representation and errors, for its clients."""

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Final

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
    computed_field,
    field_validator,
)
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from receiver.api.auth import BASIC
from receiver.api.messages import as_listed
from receiver.api.operations import JSON, Call, Listed, Operation
from receiver.api.problems import ProblemError, as_problem
from receiver.api.routing import Group
from receiver.domain.events import Direction
from receiver.models.columns import Read
from receiver.models.message_queries import CatapultMessageQuery
from receiver.models.messages import Media
from receiver.storage import messages
from receiver.storage.message_search import search


def catapult_time(time: datetime) -> str:
    """A time as the Catapult API writes it: with milliseconds and `Z`."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


CatapultTime = Annotated[
    datetime,
    PlainSerializer(catapult_time, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]


class CatapultMessage(Read):
    """A message as in the Catapult API. Unknown values are left out.

    `to` is a string. A group message, which the Catapult API does not have, has all its numbers in it, separated by
    commas.
    """

    id: str
    from_: str | None = Field(None, validation_alias="sender", serialization_alias="from")
    to: Annotated[str, BeforeValidator(",".join)] = Field(validation_alias="numbers")
    text: str | None = None
    time: CatapultTime = Field(validation_alias="listed_at")
    direction: Direction
    state: str | None = None
    media: Media
    tag: str | None = None
    delivery_state: str | None = None
    delivery_code: int | None = None
    delivery_description: str | None = None
    receipt_requested: str | None = Field(None, description="as the send was registered, like the fields after it")
    callback_url: str | None = Field(None, description="without user name and password")
    callback_timeout: int | None = None
    fallback_url: str | None = Field(None, description="without user name and password")

    @field_validator("delivery_description")
    @classmethod
    def _describes_a_code(cls, description: str | None, info: ValidationInfo) -> str | None:
        # A v2 event has a description of its type, which a v1 client would take for the meaning of a code.
        return description if info.data.get("delivery_code") is not None else None

    @computed_field
    def message_id(self) -> str:
        return self.id


class CatapultErrorDetail(BaseModel):
    """The parameter that caused an error (`name`), and what is wrong with it (`value`)."""

    name: str
    value: str


class CatapultError(BaseModel):
    """An error as in the Catapult API."""

    category: str
    code: str
    message: str
    details: list[CatapultErrorDetail]


# https://github.com/Bandwidth/ap-docs, errors.md
_WORDS: Final = {
    400: ("bad-request", "validation-error"),
    401: ("authorization", "user-access-denied"),
    404: ("not-found", "message-not-found"),
    503: ("unavailable", "service-unavailable"),
}


async def answer_error(_: Request, error: Exception) -> Response:
    """An error in the form of the Catapult API; an exception handler for Starlette."""
    problem = as_problem(error)
    phrase = HTTPStatus(problem.status).phrase
    category, code = _WORDS.get(problem.status, ("bad-request", phrase.lower().replace(" ", "-")))
    details = [CatapultErrorDetail(name=value.parameter, value=value.detail) for value in problem.errors]
    body = CatapultError(category=category, code=code, message=problem.detail or phrase, details=details)
    headers = {"Cache-Control": "no-store", **(problem.headers or {})}
    return Response(to_json(body) + b"\n", problem.status, headers, JSON)


async def list_messages(call: Call) -> Listed[CatapultMessage]:
    listed = as_listed(await search(call.database, call.query.as_message_query(), call.patience))
    return Listed(
        items=[CatapultMessage.model_validate(message) for message in listed.items], next_page=listed.next_page
    )


async def get_message(call: Call) -> CatapultMessage:
    found = await messages.with_id(call.database, call.path["messageId"])
    if not found:
        raise ProblemError(404, "The message could not be found")
    # The order of preference of a v1 client: outbound before inbound, then v1 before v2.
    return CatapultMessage.model_validate(
        min(found, key=lambda found: (found.direction is not Direction.OUT, found.api))
    )


_USER: Final = {"userId": "any value; it is ignored"}

GROUP: Final = Group(
    prefix="/v1",
    scheme=BASIC,
    error_handler=answer_error,
    error=CatapultError,
    error_media_type=JSON,
    operations=(
        Operation(
            name="listCatapultMessages",
            path="/v1/users/{userId}/messages",
            summary="List messages as in the Catapult API, oldest first",
            handle=list_messages,
            query=CatapultMessageQuery,
            answer=list[CatapultMessage],
            has_next=True,
            path_words=_USER,
            reads_processed=True,
            leaves_out_null=True,
        ),
        Operation(
            name="getCatapultMessage",
            path="/v1/users/{userId}/messages/{messageId}",
            summary="Get one message as in the Catapult API",
            handle=get_message,
            answer=CatapultMessage,
            problems=(404,),
            path_words={**_USER, "messageId": "the id of the message, percent-encoded"},
            reads_processed=True,
            leaves_out_null=True,
        ),
    ),
)
