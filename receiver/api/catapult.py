"""The seed API's messages: its addresses, its parameters, its representation, its errors, for clients made for it."""

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer, WithJsonSchema, computed_field
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from receiver.api.answers import JSON, json_answer, next_page
from receiver.api.auth import BASIC
from receiver.api.operations import Api, Group, Operation, path_value
from receiver.api.parameter_kinds import message_cursor
from receiver.api.parameters import CatapultMessageParameters, Parameters
from receiver.api.problems import ProblemError, as_problem
from receiver.api.representations import Media, Representation
from receiver.domain.events import Direction
from receiver.storage import messages


def catapult_time(time: datetime) -> str:
    """A time as the seed writes it: milliseconds and `Z`."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


CatapultTime = Annotated[
    datetime,
    PlainSerializer(catapult_time, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]


class CatapultMessage(Representation):
    """A message as the seed shows it; what there is nothing to say of is left out.

    `to` is a string: of a group message, which the seed did not know, all numbers with commas between them.
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

    @computed_field
    def message_id(self) -> str:
        return self.id


class CatapultDetail(BaseModel):
    """What an error is about: a parameter's name, and what is wrong with it."""

    name: str
    value: str


class CatapultError(BaseModel):
    """An error as the seed shows it."""

    category: str
    code: str
    message: str
    details: list[CatapultDetail]


# https://github.com/Bandwidth/ap-docs, errors.md
_WORDS: Final = {
    400: ("bad-request", "validation-error"),
    401: ("authorization", "user-access-denied"),
    404: ("not-found", "message-not-found"),
    503: ("unavailable", "service-unavailable"),
}


async def refuse(_: Request, error: Exception) -> Response:
    """The seed's form of an error; an exception handler for Starlette."""
    problem = as_problem(error)
    phrase = HTTPStatus(problem.status).phrase
    category, code = _WORDS.get(problem.status, ("bad-request", phrase.lower().replace(" ", "-")))
    details = [CatapultDetail(name=one.parameter, value=one.detail) for one in problem.errors]
    body = CatapultError(category=category, code=code, message=problem.detail or phrase, details=details)
    headers = {"Cache-Control": "no-store", **(problem.headers or {})}
    return Response(to_json(body), problem.status, headers, JSON)


async def list_messages(api: Api, request: Request, asked: CatapultMessageParameters) -> Response:
    page = await messages.find(api.database, asked.query())
    link = next_page(request, api.public_url, cursor=message_cursor(page.items[-1].place)) if page.more else {}
    return json_answer([CatapultMessage.model_validate(view) for view in page.items], link=link, leave_out_null=True)


async def get_message(api: Api, request: Request, _: Parameters) -> Response:
    found = await messages.with_id(api.database, path_value(request, "messageId"))
    if not found:
        raise ProblemError(404, "The message could not be found")
    # A client of v1 means its own message, v1 before v2, and the one it sent before one it received.
    found.sort(key=lambda view: (view.direction is not Direction.OUT, view.api))
    return json_answer(CatapultMessage.model_validate(found[0]), leave_out_null=True)


_USER: Final = {"userId": "anything; it plays no part"}

GROUP: Final = Group(
    prefix="/v1",
    scheme=BASIC,
    refuse=refuse,
    error=CatapultError,
    error_media_type=JSON,
    operations=(
        Operation(
            name="listSeedMessages",
            path="/v1/users/{userId}/messages",
            summary="Messages as the seed API shows them, oldest first",
            handle=list_messages,
            parameters=CatapultMessageParameters,
            answer=list[CatapultMessage],
            has_next=True,
            path_words=_USER,
            reads_processed=True,
        ),
        Operation(
            name="getSeedMessage",
            path="/v1/users/{userId}/messages/{messageId}",
            summary="One message as the seed API shows it",
            handle=get_message,
            answer=CatapultMessage,
            problems=(404,),
            path_words={**_USER, "messageId": "the message's id, percent-encoded"},
            reads_processed=True,
        ),
    ),
)
