"""Operations on messages: list them, get one, list its events and its delivery attempts; messages as CSV."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from receiver.api.answers import csv_answer, json_answer, next_page, prefers_csv
from receiver.api.auth import is_admin
from receiver.api.operations import ApiContext, Operation, path_value
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

# Control characters and line breaks, including those that only some programs treat as line breaks.
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
# The beginning of a formula, also in its full-width form and after blanks or invisible characters.
_FORMULA: Final = re.compile(r"[\s\u200b-\u200f\u2060\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]")
# A telephone number alone is not a formula. It stays as it is, because programs compare it.
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
    """A value as a cell: on one line, with an apostrophe in front where a spreadsheet would see a formula."""
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
    fields = message.model_dump(mode="json", by_alias=True)
    of_message = {name: fields[name] for name in _OF_MESSAGE} | {"messageStatus": fields["status"]}
    for recipient in fields["recipients"]:
        reason = recipient["reason"] or {}
        of_recipient = {name: recipient[name] for name in _OF_RECIPIENT}
        yield of_message | of_recipient | {f"reason{name.capitalize()}": reason.get(name) for name in _OF_REASON}


async def list_messages(context: ApiContext, request: Request, parameters: MessageParameters) -> Response:
    page = await messages.find(context.database, parameters.query())
    link = next_page(request, context.public_url, cursor=message_cursor(page.items[-1].place)) if page.more else {}
    listed = [Message.model_validate(view) for view in page.items]
    if prefers_csv(request.headers.get("accept", "")):
        return csv_answer(csv_table(listed), name="messages", link=link)
    return json_answer(listed, link=link)


async def get_message(context: ApiContext, request: Request, parameters: OneMessageParameters) -> Response:
    return json_answer(Message.model_validate(await _find_one(context, request, parameters)))


async def list_message_events(context: ApiContext, request: Request, parameters: OneMessageParameters) -> Response:
    view = await _find_one(context, request, parameters)
    events = await messages.events(context.database, view.key)
    return json_answer([MessageEvent.model_validate(event) for event in events])


async def list_message_attempts(context: ApiContext, request: Request, parameters: AttemptParameters) -> Response:
    view = await _find_one(context, request, parameters)
    async with context.database.reading() as connection:
        found = await retries.attempts_of_message(connection, view.key, parameters.sink)
    attempts = [Attempt.model_validate(attempt) for attempt in found]
    return json_answer(attempts if is_admin(request) else without_responses(attempts))


async def _find_one(context: ApiContext, request: Request, parameters: OneMessageParameters) -> MessageView:
    """The message with the id in the path; raises a problem where there is none, or more than one."""
    found = await messages.with_id(context.database, path_value(request, "id"), parameters.api, parameters.direction)
    if not found:
        raise ProblemError(404, "There is no message with this id.")
    if len(found) > 1:
        raise ProblemError(409, f"{len(found)} messages have this id: add {_parameters_to_add(found)}.")
    return found[0]


def _parameters_to_add(found: Sequence[MessageView]) -> str:
    """The parameters that choose one of the messages with the same id."""
    hints = []
    if len({view.api for view in found}) > 1:
        hints.append("?api=v1 or ?api=v2")
    if len({view.direction for view in found}) > 1:
        hints.append("?direction=in or ?direction=out")
    return ", and ".join(hints)


_ID: Final = {"id": "the id of the message, percent-encoded"}

OPERATIONS: Final = (
    Operation(
        name="listMessages",
        path="/api/messages",
        summary="List messages, newest first",
        description="`Accept: text/csv` gives a table with one row per recipient.",
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
        summary="Get one message",
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
        summary="List the events of one message in order of arrival",
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
        summary="List the delivery attempts for one message to the sinks, oldest first",
        description="Successful attempts are stored only for sinks that record them, such as webhooks.",
        handle=list_message_attempts,
        parameters=AttemptParameters,
        answer=list[Attempt],
        problems=(404, 409),
        path_words=_ID,
        reads_processed=True,
    ),
)
