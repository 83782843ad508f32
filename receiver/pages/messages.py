"""The pages for support: messages found as people type, and what became of one of them."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any, Final

from starlette.responses import Response

from receiver.api.messages import OPERATIONS, csv_table
from receiver.api.operations import Listed, named
from receiver.api.routing import CSV, StreamedResponse, absolute_times
from receiver.domain.cloudevents import rfc3339
from receiver.domain.events import Status, TagVerdict
from receiver.errors import Ambiguous, Busy
from receiver.explanation.message import Explanation, explain
from receiver.explanation.timeline import explain_publication
from receiver.explanation.words import time_text
from receiver.models.message_queries import MessageQuery
from receiver.models.messages import MessageRead
from receiver.models.queries import AttemptQuery, OneMessageQuery
from receiver.pages.visit import Visit
from receiver.storage import messages as stored
from receiver.storage.message_search import Patience
from receiver.storage.publications import publications_of_message

LIST: Final = named(OPERATIONS, "listMessages")
GET: Final = named(OPERATIONS, "getMessage")
ATTEMPTS: Final = named(OPERATIONS, "listMessageAttempts")

STATUSES: Final = (
    *(status.value for status in Status if status is not Status.UNKNOWN),
    "pending",
    "partial",
    "unknown",
)
# The first words of a page about a message: what a caller asks support.
_OUTCOMES: Final = {
    "delivered": "Delivered",
    "read": "Delivered and read",
    "failed": "Not delivered",
    "unconfirmed": "Sent, delivery unconfirmed",
    "partial": "Delivered to some recipients",
    "received": "Received",
    "unknown": "Nothing reported yet",
}
# Of a message with more recipients or events the page shows the first ones.
_MAX_SHOWN: Final = 300
_MAX_NEIGHBOURS: Final = 8
_NEIGHBOURHOOD: Final = timedelta(days=3)
# What is below this may still change, so the page looks again.
_OPEN: Final = frozenset({"unknown", "queued", "sending", "sent", "pending"})


# A page takes less than 200 ms with all of its work. Steps then search for what is not found yet.
_OF_PAGE: Final = Patience(whole=0.06, in_spans=0.05, one_span=0.06, whole_again=True)
_OF_STEP: Final = Patience(whole=1.0, in_spans=0.3)


async def list_page(visit: Visit) -> Response:
    """Messages, newest first. The filters are the parameters of the API, in the address.

    A search that takes long goes on in steps, each of which adds rows to the page: `found` is the number of messages
    that the steps before have found.
    """
    found: Listed[MessageRead] | None
    given = dict(visit.parameters)
    text = given.pop("found", "")
    is_step = re.fullmatch(r"[0-9]{1,4}", text) is not None
    before = int(text) if is_step else 0
    found, problem = await visit.filtered(
        LIST,
        {"found": ""} if is_step else {},
        patience=_OF_STEP if is_step else _OF_PAGE,
        narrowed=lambda query: query.model_copy(update={"size": max(1, query.size - before)}),
    )
    messages = found.items if found is not None else []
    total = len(messages) + before
    goes_on = found is not None and found.searched_to is not None
    return await visit.filtered_page(
        "messages.html",
        problem,
        found=found,
        messages=messages,
        total=total,
        is_long=is_step or goes_on,
        goes_on=goes_on,
        next_page=visit.next_page(found, found=str(total) if goes_on else None),
        given=given,
        filters={name: value for name, value in given.items() if value and name not in ("q", "cursor", "size")},
        statuses=STATUSES,
        verdicts=[verdict.value for verdict in TagVerdict],
    )


# --- export ---

_ROWS_AT_ONCE: Final = 200
_PAUSE_SECONDS: Final = 0.05


class _Export:
    """All messages of a query as CSV, read in parts as the browser takes them."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self.ended = asyncio.Event()
        visit.exports.add(self)

    def close(self) -> None:
        self._visit.exports.discard(self)
        self.ended.set()

    async def parts(self) -> AsyncIterator[bytes]:
        changes: dict[str, str] = {**absolute_times(self._visit.request), "size": str(_ROWS_AT_ONCE)}
        has_header = False
        while not self.ended.is_set():
            found = await self._visit.perform(LIST, query=self._visit.query(MessageQuery, **changes))
            yield await asyncio.to_thread(_encoded, found.items, header=not has_header)
            # Callbacks come first: an export takes at most half of the time.
            await asyncio.sleep(_PAUSE_SECONDS)
            has_header = True
            if found.next_page is None:
                return
            changes = {**changes, **found.next_page}


def _encoded(messages: Sequence[MessageRead], *, header: bool) -> bytes:
    return csv_table(messages, header=header).encode()


async def export(visit: Visit) -> Response:
    """The messages that the filters choose as a file for a spreadsheet, all of them; one export at a time."""
    visit.query(MessageQuery)
    if visit.exports:
        raise Busy("another export is under way; the next one can begin when it has ended")
    response = StreamedResponse(_Export(visit), f"{CSV}; charset=utf-8; header=present")
    response.headers["Content-Disposition"] = 'attachment; filename="messages.csv"'
    return response


# --- one message ---


async def message_page(visit: Visit) -> Response:
    """What became of one message: a sentence, the timeline by both clocks, the sinks, its neighbours."""
    message_id = visit.segment("id")
    try:
        message: MessageRead = await visit.perform(GET, query=visit.query(OneMessageQuery), path={"id": message_id})
    except Ambiguous as several:
        return visit.page("choose_message.html", status=409, message_id=message_id, choices=several.choices)
    database = visit.context.database
    events = await stored.events(database, message.key)
    async with database.reading() as connection:
        publications = await publications_of_message(connection, message.key)
    explanation = await asyncio.to_thread(explain, message, events, visit.now)
    attempts = await visit.perform(
        ATTEMPTS, query=AttemptQuery(api=message.api, direction=message.direction), path={"id": message_id}
    )
    configured = set(visit.context.sinks)
    return await visit.long_page(
        "message.html",
        message=message,
        outcome=_outcome(message),
        explanation=explanation,
        callbacks=list(dict.fromkeys(event.callback_id for event in events if not event.is_registration)),
        events={event.id: event for event in events},
        publications=[
            (publication, explain_publication(publication, is_configured=publication.sink in configured))
            for publication in publications
        ],
        attempts=attempts,
        neighbours=await _neighbours(visit, message),
        ticket=_ticket(message, explanation),
        is_open=message.status in _OPEN and len(events) <= _MAX_SHOWN,
        most=_MAX_SHOWN,
    )


def _outcome(message: MessageRead) -> str:
    """`Not delivered: 4720 invalid destination address`: the outcome, with the code if all recipients have it."""
    outcome = _OUTCOMES.get(message.status, "Not delivered yet")
    codes: set[tuple[int | None, Any]] = {
        (recipient.delivery_code, recipient.reason) for recipient in message.recipients
    }
    if message.status not in ("failed", "unconfirmed") or len(codes) != 1:
        return outcome
    [(code, reason)] = codes
    if code is None:
        return outcome
    return f"{outcome}: {code} {reason.name.replace('-', ' ') if reason is not None else ''}".rstrip()


async def _neighbours(visit: Visit, message: MessageRead) -> Sequence[MessageRead]:
    """Other messages between the same two numbers around the same time, oldest first."""
    if not message.sender or len(message.recipients) != 1 or not message.recipients[0].recipient:
        return []
    ends = message.sender, message.recipients[0].recipient
    found: dict[Any, MessageRead] = {}
    for sender, recipient in (ends, ends[::-1]):
        query = MessageQuery.model_validate(
            {
                "from": sender,
                "to": recipient,
                "fromDateTime": rfc3339(message.listed_at - _NEIGHBOURHOOD),
                "toDateTime": rfc3339(message.listed_at + _NEIGHBOURHOOD),
                "size": _MAX_NEIGHBOURS,
            },
            by_alias=True,
            by_name=False,
            context=visit.numbers,
        )
        result: Listed[MessageRead] = await visit.perform(LIST, query=query)
        found |= {other.key: other for other in result.items if other.key != message.key}
    return sorted(found.values(), key=lambda other: other.listed_at)[:_MAX_NEIGHBOURS]


def _ticket(message: MessageRead, explanation: Explanation) -> str:
    """The message as plain text, for a ticket."""
    lines = [f"Message {message.id} ({message.api}, {message.direction})", *explanation.lines]
    if len(explanation.recipients) > 1:
        lines += ["", "Recipients:", *(f"- {recipient.summary}" for recipient in explanation.recipients[:_MAX_SHOWN])]
    if explanation.notes:
        lines += ["", "Notes:", *(f"- {note}" for note in explanation.notes)]
    lines += ["", "Timeline:"]
    for entry in explanation.timeline[:_MAX_SHOWN]:
        moment = entry.occurred_at or entry.received_at
        lines.append(f"- {time_text(moment) if moment else 'time unknown'}: {entry.sentence} ({entry.clocks})")
    return "\n".join(lines)
