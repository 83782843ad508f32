"""Operations on messages: list them, get one, list its events and its delivery attempts; messages as CSV."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from receiver.api.operations import Call, Listed, Operation
from receiver.api.tables import csv_text
from receiver.errors import Ambiguous, Unknown
from receiver.models.codes import ReasonRead
from receiver.models.columns import shown_names
from receiver.models.events import MessageEventRead
from receiver.models.message_queries import MessageQuery
from receiver.models.messages import MessageRead, RecipientRead
from receiver.models.parameters import message_cursor
from receiver.models.queries import AttemptQuery, CallbackQuery, OneMessageQuery
from receiver.models.sinks import AttemptRead, without_responses
from receiver.storage import callbacks, messages, publications
from receiver.storage.message_search import Found, search

_OF_RECIPIENT: Final = tuple(name for name in shown_names(RecipientRead) if name != "reason")
# The values of a single recipient are in the columns of the recipient, the list of numbers is its rows.
_OF_MESSAGE: Final = tuple(name for name in shown_names(MessageRead) if name not in (*_OF_RECIPIENT, "recipients"))
_OF_REASON: Final = shown_names(ReasonRead)

COLUMNS: Final = (
    *_OF_MESSAGE,
    "messageStatus",
    *_OF_RECIPIENT,
    *(f"reason{name.capitalize()}" for name in _OF_REASON),
)


def csv_table(messages: Iterable[MessageRead], *, header: bool = True) -> str:
    """The messages as CSV, by default with a header line."""
    return csv_text(COLUMNS, (row for message in messages for row in _rows(message)), header=header)


def _rows(message: MessageRead) -> Iterator[dict[str, Any]]:
    fields = message.model_dump(mode="json", by_alias=True)
    of_message = {name: fields[name] for name in _OF_MESSAGE} | {"messageStatus": fields["status"]}
    for recipient in fields["recipients"]:
        reason = recipient["reason"] or {}
        of_recipient = {name: recipient[name] for name in _OF_RECIPIENT}
        yield of_message | of_recipient | {f"reason{name.capitalize()}": reason.get(name) for name in _OF_REASON}


async def list_messages(call: Call) -> Listed[MessageRead]:
    return as_listed(await search(call.database, call.query, call.patience))


def as_listed(found: Found) -> Listed[MessageRead]:
    return Listed(
        items=found.items,
        next_page={"cursor": message_cursor(found.after)} if found.after is not None else None,
        searched_to=found.searched_to,
        share=found.share,
    )


async def get_message(call: Call) -> MessageRead:
    found = await messages.with_id(call.database, call.path["id"], call.query.api, call.query.direction)
    if not found:
        raise await _unknown(call)
    if len(found) > 1:
        raise Ambiguous(f"{len(found)} messages have this id", choices=_choices(found))
    return found[0]


async def _unknown(call: Call) -> Unknown:
    """The error about a message that is not there, with what that can mean."""
    id_ = call.path["id"]
    query = CallbackQuery(message_id=id_, outcome="quarantined", size=1)
    quarantined = (await callbacks.find(call.database, query)).items
    if quarantined:
        return Unknown(
            f"there is no message {id_}, but the quarantined callback {quarantined[0].id} names it", topic="support"
        )
    return Unknown(f"there is no message {id_}: no callback about it came, or retention removed it", topic="support")


def _choices(found: Sequence[MessageRead]) -> dict[str, list[str]]:
    """The parameters that choose one of the messages with the same id, and their values."""
    values: dict[str, set[str]] = {
        "api": {message.api for message in found},
        "direction": {message.direction for message in found},
    }
    return {name: sorted(different) for name, different in values.items() if len(different) > 1}


async def list_message_events(call: Call) -> list[MessageEventRead]:
    message = await get_message(call)
    return [MessageEventRead.model_validate(event) for event in await messages.events(call.database, message.key)]


async def list_message_attempts(call: Call) -> list[AttemptRead]:
    message = await get_message(call)
    async with call.database.reading() as connection:
        attempts = await publications.attempts_of_message(connection, message.key, call.query.sink)
    return attempts if call.is_admin else without_responses(attempts)


_ID: Final = {"id": "the id of the message, percent-encoded"}

OPERATIONS: Final = (
    Operation(
        name="listMessages",
        path="/api/messages",
        summary="List messages, newest first",
        description="`Accept: text/csv` gives a table with one row per recipient.",
        handle=list_messages,
        query=MessageQuery,
        answer=list[MessageRead],
        csv=lambda found, _: csv_table(found),
        has_next=True,
        reads_processed=True,
    ),
    Operation(
        name="getMessage",
        path="/api/messages/{id}",
        summary="Get one message",
        handle=get_message,
        query=OneMessageQuery,
        answer=MessageRead,
        problems=(404, 409),
        path_words=_ID,
        reads_processed=True,
    ),
    Operation(
        name="listMessageEvents",
        path="/api/messages/{id}/events",
        summary="List the events of one message in order of arrival",
        handle=list_message_events,
        query=OneMessageQuery,
        answer=list[MessageEventRead],
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
        query=AttemptQuery,
        answer=list[AttemptRead],
        problems=(404, 409),
        path_words=_ID,
        reads_processed=True,
    ),
)
