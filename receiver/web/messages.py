"""Messages: a page of them, one of them, the events of one."""

from collections.abc import Sequence
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from receiver.domain.queries import MessageView
from receiver.storage import attempts, messages
from receiver.web import csv_export
from receiver.web.answers import csv_answer, json_answer, next_page, prefers_csv
from receiver.web.auth import is_admin
from receiver.web.operations import Api, Operation, path_value
from receiver.web.parameter_kinds import message_cursor
from receiver.web.parameters import AttemptParameters, MessageParameters, OneMessageParameters
from receiver.web.problems import ProblemError
from receiver.web.representations import Attempt, Message, MessageEvent, without_responses


async def list_messages(api: Api, request: Request, asked: MessageParameters) -> Response:
    page = await messages.find(api.database, asked.query())
    link = next_page(request, api.public_url, cursor=message_cursor(page.items[-1].place)) if page.more else {}
    shown = [Message.model_validate(view) for view in page.items]
    if prefers_csv(request.headers.get("accept", "")):
        return csv_answer(csv_export.table(shown), name="messages", link=link)
    return json_answer(shown, link=link)


async def get_message(api: Api, request: Request, asked: OneMessageParameters) -> Response:
    return json_answer(Message.model_validate(await _meant(api, request, asked)))


async def list_message_events(api: Api, request: Request, asked: OneMessageParameters) -> Response:
    view = await _meant(api, request, asked)
    events = await messages.events(api.database, view.key)
    return json_answer([MessageEvent.model_validate(event) for event in events])


async def list_message_attempts(api: Api, request: Request, asked: AttemptParameters) -> Response:
    view = await _meant(api, request, asked)
    async with api.database.reading() as connection:
        found = await attempts.of_message(connection, view.key, asked.sink)
    told = [Attempt.model_validate(attempt) for attempt in found]
    return json_answer(told if is_admin(request) else without_responses(told))


async def _meant(api: Api, request: Request, asked: OneMessageParameters) -> MessageView:
    """The message whose id is in the path."""
    found = await messages.with_id(api.database, path_value(request, "id"), asked.api, asked.direction)
    if not found:
        raise ProblemError(404, "There is no message with this id.")
    if len(found) > 1:
        raise ProblemError(409, f"{len(found)} messages have this id: add {_what_to_add(found)}.")
    return found[0]


def _what_to_add(found: Sequence[MessageView]) -> str:
    """The parameters that tell messages with the same id apart."""
    parameters = []
    if len({view.api for view in found}) > 1:
        parameters.append("?api=v1 or ?api=v2")
    if len({view.direction for view in found}) > 1:
        parameters.append("?direction=in or ?direction=out")
    return ", and ".join(parameters)


_ID: Final = {"id": "the message's id, percent-encoded"}

OPERATIONS: Final = (
    Operation(
        name="listMessages",
        path="/api/messages",
        summary="Messages, newest first",
        description="With `Accept: text/csv` a table with one row per recipient.",
        handle=list_messages,
        parameters=MessageParameters,
        answer=list[Message],
        has_csv=True,
        has_next=True,
        reads_processed=True,
    ),
    Operation(
        name="getMessage",
        path="/api/messages/{id}",
        summary="One message",
        handle=get_message,
        parameters=OneMessageParameters,
        answer=Message,
        problems=(404, 409),
        path_words=_ID,
        reads_processed=True,
    ),
    Operation(
        name="listMessageEvents",
        path="/api/messages/{id}/events",
        summary="The events of one message, in order of arrival",
        handle=list_message_events,
        parameters=OneMessageParameters,
        answer=list[MessageEvent],
        problems=(404, 409),
        path_words=_ID,
        reads_processed=True,
    ),
    Operation(
        name="listMessageAttempts",
        path="/api/messages/{id}/attempts",
        summary="What the sinks were told about one message, when, and what they said, in order",
        description="Of sinks that record failures alone, the attempts that failed.",
        handle=list_message_attempts,
        parameters=AttemptParameters,
        answer=list[Attempt],
        problems=(404, 409),
        path_words=_ID,
        reads_processed=True,
    ),
)
