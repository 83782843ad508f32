"""The event log, pulled by a consumer that stores its own cursor."""

import time
from collections.abc import AsyncIterator
from typing import Any, Final

import orjson

from receiver.api.operations import ApiContext, Call, Listed, Operation
from receiver.api.problems import BEARER_CHALLENGE, InvalidValue, ProblemError, invalid_values_problem
from receiver.api.streams import Subscription
from receiver.domain.cloudevents import Filter
from receiver.domain.publication import Entry
from receiver.errors import Conflict, Expired, StorageUnavailable
from receiver.models.published import AlertCloudEvent, CloudEvent
from receiver.models.queries import PullQuery, StreamQuery
from receiver.providers.published import published as as_published
from receiver.storage import event_log
from receiver.storage.event_log import LogBounds

# The batch format of CloudEvents: an array of events.
MEDIA_TYPE: Final = "application/cloudevents-batch+json"


async def pull_events(call: Call) -> Listed[dict[str, Any]]:
    query: PullQuery = call.query
    pulled = await event_log.pull_types(call.database, query.after, query.limit, query.types)
    if len(pulled.entries) < query.limit:
        # A full page needs no wait: callbacks accepted just now are on a later page.
        call.pending = await call.context.settle(None)
        pulled = await event_log.pull_types(call.database, query.after, query.limit, query.types)
    refuse_gap(query.after, pulled.log)
    items = [published(entry, call.context) for entry in pulled.entries]
    return Listed(items=items, next_page={"after": str(pulled.read_to)})


def refuse_gap(after: int, log: LogBounds) -> None:
    """Refuses a cursor beyond the end of the log, and a cursor whose next events retention has removed.

    0, the cursor of a new consumer, reads from the oldest stored event.
    """
    if after > log.last:
        raise Conflict(
            f"the event log ends at {log.last}: this position is of another database, or from before a restore"
        )
    if after and log.oldest is not None and after + 1 < log.oldest:
        raise Expired(
            f"events after this position are no longer stored; the oldest stored event has position {log.oldest}"
        )


def published(entry: Entry, context: ApiContext) -> dict[str, Any]:
    """The CloudEvent of an entry, as sinks get it."""
    return as_published(entry, context.source, context.public_url)


HEARTBEAT_SECONDS: Final = 15.0
_LAST_EVENT_ID: Final = "Last-Event-ID"
# Read and sent at once: a client that reads slowly costs no more memory than that.
_AT_ONCE: Final = 50
_RETRY_SECONDS: Final = 1.0


async def stream_events(call: Call) -> "EventStream":
    query: StreamQuery = call.query
    after = _last_event_id(call.headers.get(_LAST_EVENT_ID))
    after = after if after is not None else query.after
    if after is None and query.since is not None:
        after = await event_log.position_before(call.database, query.since)
    log = await event_log.log_bounds(call.database)
    if after is not None:
        refuse_gap(after, log)
    # Nothing waits from here on, so no token can be revoked between this check and its stream.
    if not call.context.streams.accepts(call.token):
        raise ProblemError(401, "This token is not accepted.", headers={"WWW-Authenticate": BEARER_CHALLENGE})
    subscription = call.context.streams.open(call.database, call.token)
    return EventStream(call.context, query.filter, log.last if after is None else after, subscription)


def _last_event_id(value: str | None) -> int | None:
    # An empty one is what a client has before its first event.
    if not value:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) < _DIGITS):
        detail = "must be the id of an event of this stream, a whole number"
        raise invalid_values_problem([InvalidValue(parameter=_LAST_EVENT_ID, detail=detail)])
    return int(value)


# The largest position has 19 digits.
_DIGITS: Final = 19


class EventStream:
    """The events after a position that a filter lets pass, as server-sent events; the id of each is its position.

    Each client reads the log from a cursor of its own. https://html.spec.whatwg.org/multipage/server-sent-events.html
    """

    def __init__(self, context: ApiContext, filter_: Filter, position: int, subscription: Subscription) -> None:
        self._context = context
        self._filter = filter_
        self._position = position
        self._subscription = subscription
        self.ended = subscription.ended

    async def parts(self) -> AsyncIterator[bytes]:
        # The client knows its place from the beginning: if it comes again before the first event, nothing is lost.
        yield f"retry: {1000 * _RETRY_SECONDS:.0f}\nid: {self._position}\n\n".encode()
        sent_at = time.monotonic()
        while not self.ended.is_set():
            try:
                pulled = await event_log.pull(self._context.database, self._position, _AT_ONCE)
                refuse_gap(self._position, pulled.log)
                entries, self._position = pulled.entries, pulled.read_to
            except StorageUnavailable:
                entries = []
            except (Conflict, Expired) as error:
                yield f"event: gap\ndata: {error}\n\n".encode()
                return
            part = b"".join(
                server_sent(one.position, published(one, self._context)) for one in entries if self._filter.passes(one)
            )
            if not part and time.monotonic() - sent_at >= HEARTBEAT_SECONDS:
                # Moves the client's place too, beyond what its filter leaves out, and beyond registrations.
                part = f": heartbeat\nid: {self._position}\n\n".encode()
            if part:
                yield part
                sent_at = time.monotonic()
            if len(entries) < _AT_ONCE:
                await self._subscription.wait(max(0.0, sent_at + HEARTBEAT_SECONDS - time.monotonic()))

    def close(self) -> None:
        self._context.streams.close(self._subscription)


def server_sent(position: int, event: dict[str, Any]) -> bytes:
    """An event as a block of server-sent events, one line each for its position and for itself."""
    # JSON has no line feed outside of a text, and there it is escaped. So are here the characters that many clients
    # take for the end of a line too.
    data = orjson.dumps(event)
    for character, escape in _LINE_ENDS:
        data = data.replace(character, escape)
    return b"id: %d\ndata: %b\n\n" % (position, data)


_LINE_ENDS: Final = tuple((chr(code).encode(), b"\\u%04x" % code) for code in (0x85, 0x2028, 0x2029))


OPERATIONS: Final = (
    Operation(
        name="pullEvents",
        path="/api/events",
        summary="Pull the next events of the event log, in the order of their positions, as CloudEvents",
        description="`Link` has the address of the next request, also at the end of the log. Alerts come only if "
        "`type` names them. With rare types a page may be short, or empty, before the end of the log: follow `Link`.",
        handle=pull_events,
        query=PullQuery,
        answer=list[CloudEvent | AlertCloudEvent],
        media_type=MEDIA_TYPE,
        has_next=True,
        settles_itself=True,
        problems=(409, 410),
    ),
    Operation(
        name="streamEvents",
        path="/api/events/stream",
        summary="Follow the event log: every event as it is appended, as server-sent events",
        description="The data of each is a CloudEvent, its id the position. Alerts come only if `type` names them. The "
        "response ends when the server stops or the token is removed; a client that connects again with "
        "`Last-Event-ID` misses nothing.",
        handle=stream_events,
        query=StreamQuery,
        answer=str,
        media_type="text/event-stream",
        is_stream=True,
        headers={_LAST_EVENT_ID: "the id of the last event that was read"},
        problems=(409, 410),
    ),
)
