"""The event log, pulled by a consumer that stores its own cursor."""

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from receiver.api.answers import json_answer, next_page
from receiver.api.operations import ApiContext, Operation, pending_header
from receiver.api.parameters import PullParameters
from receiver.api.problems import ProblemError
from receiver.api.representations import reason_of
from receiver.domain.cloudevents import cloud_event
from receiver.domain.publication import LogEntry
from receiver.providers import PROVIDERS
from receiver.storage import event_log
from receiver.storage.event_log import LogBounds

# The batch format of CloudEvents: an array of events.
MEDIA_TYPE: Final = "application/cloudevents-batch+json"


async def pull_events(context: ApiContext, request: Request, parameters: PullParameters) -> Response:
    entries, log = await event_log.pull(context.database, parameters.after, parameters.limit)
    pending = 0
    if len(entries) < parameters.limit:
        # A full page needs no wait: callbacks accepted just now are on a later page.
        pending = await context.settle()
        entries, log = await event_log.pull(context.database, parameters.after, parameters.limit)
    refuse_gap(parameters.after, log)
    position = entries[-1].position if entries else parameters.after
    link = next_page(request, context.public_url, after=str(position))
    response = json_answer([_published(entry) for entry in entries], link=link, media_type=MEDIA_TYPE)
    response.headers.update(pending_header(pending))
    return response


def refuse_gap(after: int, log: LogBounds) -> None:
    """Refuses a cursor beyond the end of the log, and a cursor whose next events retention has removed.

    0, the cursor of a new consumer, reads from the oldest stored event.
    """
    if after > log.last:
        raise ProblemError(
            409, f"The event log ends at {log.last}: this position is of another database, or from before a restore."
        )
    if after and log.oldest is not None and after + 1 < log.oldest:
        raise ProblemError(
            410, f"Events after this position are no longer stored; the oldest stored event has position {log.oldest}."
        )


def _published(entry: LogEntry) -> dict[str, Any]:
    api = entry.event.api
    reason = reason_of(api, entry.delivery.code)
    return cloud_event(entry, PROVIDERS[api].source, reason.model_dump() if reason else None)


OPERATIONS: Final = (
    Operation(
        name="pullEvents",
        path="/api/events",
        summary="Pull the next events of the event log, in the order of their positions, as CloudEvents",
        description="`Link` has the address of the next request, also at the end of the log.",
        handle=pull_events,
        parameters=PullParameters,
        answer=list[dict[str, Any]],
        media_type=MEDIA_TYPE,
        has_next=True,
        settles_itself=True,
        problems=(409, 410),
    ),
)
