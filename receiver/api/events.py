"""The event log, pulled by a consumer that stores its own cursor."""

from typing import Any, Final

from receiver.api.operations import ApiContext, Call, Listed, Operation
from receiver.domain.cloudevents import cloud_event, schema_uri
from receiver.domain.publication import LogEntry
from receiver.errors import Conflict, Expired
from receiver.models.codes import reason_of
from receiver.models.published import CloudEvent
from receiver.models.queries import PullQuery
from receiver.providers import registry
from receiver.storage import event_log
from receiver.storage.event_log import LogBounds

# The batch format of CloudEvents: an array of events.
MEDIA_TYPE: Final = "application/cloudevents-batch+json"


async def pull_events(call: Call) -> Listed[dict[str, Any]]:
    query: PullQuery = call.query
    entries, log = await event_log.pull(call.database, query.after, query.limit)
    if len(entries) < query.limit:
        # A full page needs no wait: callbacks accepted just now are on a later page.
        call.pending = await call.context.settle()
        entries, log = await event_log.pull(call.database, query.after, query.limit)
    refuse_gap(query.after, log)
    position = entries[-1].position if entries else query.after
    return Listed(items=[published(entry, call.context) for entry in entries], next_page={"after": str(position)})


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


def published(entry: LogEntry, context: ApiContext) -> dict[str, Any]:
    """The CloudEvent of an entry, as sinks get it."""
    api = entry.event.api
    reason, schema = reason_of(api, entry.delivery.code), schema_uri(context.public_url)
    return cloud_event(entry, registry.source(api, context.source), reason.model_dump() if reason else None, schema)


OPERATIONS: Final = (
    Operation(
        name="pullEvents",
        path="/api/events",
        summary="Pull the next events of the event log, in the order of their positions, as CloudEvents",
        description="`Link` has the address of the next request, also at the end of the log.",
        handle=pull_events,
        query=PullQuery,
        answer=list[CloudEvent],
        media_type=MEDIA_TYPE,
        has_next=True,
        settles_itself=True,
        problems=(409, 410),
    ),
)
