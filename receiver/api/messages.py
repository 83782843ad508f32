"""Messages: a page of them, one of them, the events of one."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from receiver.api.answers import csv_answer, json_answer, next_page, prefers_csv
from receiver.api.auth import is_admin
from receiver.api.operations import Api, Operation, path_value
from receiver.api.parameter_kinds import message_cursor
from receiver.api.parameters import AttemptParameters, MessageParameters, OneMessageParameters
from receiver.api.problems import ProblemError
from receiver.api.representations import Attempt, Message, MessageEvent, without_responses
from receiver.domain.queries import MessageView
from receiver.storage import messages, retries

_OF_MESSAGE: Final = (
    "id",
    "api",
    "direction",
    "from",
    "owner",
    "applicationId",
    "text",
    "media",
    "tag",
    "tagVerdict",
    "segmentCount",
    "channel",
    "carrierName",
    "priority",
    "time",
    "firstReceivedTime",
    "awaitingReceipt",
)
_OF_RECIPIENT: Final = (
    "to",
    "status",
    "state",
    "deliveryState",
    "deliveryCode",
    "deliveryDescription",
    "sentTime",
    "deliveredTime",
    "failedTime",
    "readTime",
    "contradicted",
    "updatedTime",
)
_OF_REASON: Final = ("name", "description", "category", "retryable", "billable")

COLUMNS: Final = (
    *_OF_MESSAGE,
    "messageStatus",
    *_OF_RECIPIENT,
    *(f"reason{name.capitalize()}" for name in _OF_REASON),
)

# line breaks and other control characters, also those that only some programs take for line breaks
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
# what begins a formula, also in its full-width form and behind blanks or characters that nobody sees
_FORMULA: Final = re.compile(r"[\s\u200b-\u200f\u2060\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]")
# a number alone is no formula, and programs compare it as it is
_PHONE_NUMBER: Final = re.compile(r"\+[0-9]{1,15}", re.ASCII)


def csv_table(messages: Iterable[Message]) -> str:
    """The messages as CSV (RFC 4180, with a header line, every cell in quotes)."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writeheader()
    for message in messages:
        writer.writerows({name: cell(value) for name, value in row.items()} for row in _rows(message))
    return text.getvalue()


def cell(value: Any) -> str:
    """A value as a cell: on one line, and an apostrophe before what a spreadsheet would take for a formula."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case list():
            return cell(" ".join(value))
    text = _CONTROLS.sub(" ", str(value))
    return f"'{text}" if _FORMULA.match(text) and not _PHONE_NUMBER.fullmatch(text) else text


def _rows(message: Message) -> Iterator[dict[str, Any]]:
    shown = message.model_dump(mode="json", by_alias=True)
    of_message = {name: shown[name] for name in _OF_MESSAGE} | {"messageStatus": shown["status"]}
    for recipient in shown["recipients"]:
        reason = recipient["reason"] or {}
        of_recipient = {name: recipient[name] for name in _OF_RECIPIENT}
        yield of_message | of_recipient | {f"reason{name.capitalize()}": reason.get(name) for name in _OF_REASON}


async def list_messages(api: Api, request: Request, asked: MessageParameters) -> Response:
    page = await messages.find(api.database, asked.query())
    link = next_page(request, api.public_url, cursor=message_cursor(page.items[-1].place)) if page.more else {}
    shown = [Message.model_validate(view) for view in page.items]
    if prefers_csv(request.headers.get("accept", "")):
        return csv_answer(csv_table(shown), name="messages", link=link)
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
        found = await retries.attempts_of_message(connection, view.key, asked.sink)
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
