"""The event log, pulled by a consumer that keeps its own cursor."""

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from receiver.api.answers import json_answer, next_page
from receiver.api.operations import Api, Operation, pending_header
from receiver.api.parameters import PullParameters
from receiver.api.problems import ProblemError
from receiver.api.representations import reason_of
from receiver.domain.cloudevents import cloud_event
from receiver.domain.publication import LogEntry
from receiver.storage import event_log
from receiver.storage.event_log import LogBounds

# the batch format of CloudEvents: an array of events
MEDIA_TYPE: Final = "application/cloudevents-batch+json"


async def pull_events(api: Api, request: Request, asked: PullParameters) -> Response:
    entries, log = await event_log.pull(api.database, asked.after, asked.limit)
    pending = 0
    if len(entries) < asked.limit:
        # A page that is full needs no wait: what is accepted now comes on a later one.
        pending = await api.settle()
        entries, log = await event_log.pull(api.database, asked.after, asked.limit)
    refuse_gap(asked.after, log)
    position = entries[-1].position if entries else asked.after
    link = next_page(request, api.public_url, after=str(position))
    response = json_answer([_published(entry) for entry in entries], link=link, media_type=MEDIA_TYPE)
    response.headers.update(pending_header(pending))
    return response


def refuse_gap(after: int, log: LogBounds) -> None:
    """Refuses a cursor with which events would be missed, or that is none of this log's.

    From 0, a cursor that has read nothing, the log is read from what it still holds.
    """
    if after > log.last:
        raise ProblemError(409, f"The event log ends at {log.last}: this position is of another log, or of a lost one.")
    if after and log.oldest is not None and after + 1 < log.oldest:
        raise ProblemError(410, f"Events after this position are no longer kept; the oldest is {log.oldest}.")


def _published(entry: LogEntry) -> dict[str, Any]:
    reason = reason_of(entry.event.api, entry.delivery.code)
    return cloud_event(entry, reason.model_dump() if reason else None)


OPERATIONS: Final = (
    Operation(
        name="pullEvents",
        path="/api/events",
        summary="The next events of the log, in the order of their positions, as CloudEvents",
        description="The `Link` is the address to ask next, also at the end of the log. Events come at least once.",
        handle=pull_events,
        parameters=PullParameters,
        answer=list[dict[str, Any]],
        media_type=MEDIA_TYPE,
        has_next=True,
        settles_itself=True,
        problems=(409, 410),
    ),
)
