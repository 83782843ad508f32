"""The pages of the journal: quarantined callbacks first, one callback byte for byte, and processing it again."""

import base64
from typing import Any, Final

import orjson
from starlette.responses import Response

from receiver.api.callbacks import OPERATIONS
from receiver.api.operations import Listed, named
from receiver.api.routing import absolute_times
from receiver.domain.events import REGISTERED, Callback, Event, Quarantine
from receiver.models.callbacks import CallbackRead, CallbackSummaryRead
from receiver.models.queries import ReprocessQuery
from receiver.pages.steps import Work, count_of, fixed_times
from receiver.pages.visit import Visit
from receiver.providers.registry import parse

LIST: Final = named(OPERATIONS, "listCallbacks")
GET: Final = named(OPERATIONS, "getCallback")
REPROCESS_ALL: Final = named(OPERATIONS, "reprocessCallbacks")
REPROCESS: Final = named(OPERATIONS, "reprocessCallback")

_CHOSEN_BY: Final = ("reason", "messageId", "fromDateTime", "toDateTime")
OUTCOMES: Final = ("quarantined", "pending", "accepted")
_MAX_MESSAGES: Final = 100
# How many callbacks are processed again before the page shows how far the work is.
STEP_SIZE: Final = 100
# What follows is in the whole body, which the page links to.
_MAX_SHOWN: Final = 100_000


async def list_page(visit: Visit) -> Response:
    """Callbacks, newest first; without a filter those in quarantine."""
    return await _listed(visit)


async def _listed(visit: Visit, work: Work | None = None) -> Response:
    given = {name: value for name, value in visit.parameters if value}
    shown = given if given.keys() & {"outcome", "reason", "messageId"} else {"outcome": "quarantined", **given}
    filters = {name: "" if value == "any" else value for name, value in shown.items()}
    found: Listed[CallbackSummaryRead] | None
    found, problem = await visit.filtered(LIST, filters)
    return await visit.filtered_page(
        "callbacks.html",
        problem,
        callbacks=found.items if found is not None else [],
        next_page=visit.next_page(found),
        given=shown,
        choice={name: value for name, value in {**shown, **absolute_times(visit.request)}.items() if name in _CHOSEN_BY}
        if problem is None
        else {},
        work=work,
        outcomes=OUTCOMES,
        reasons=[reason.value for reason in Quarantine],
    )


async def reprocess_chosen(visit: Visit) -> Response:
    """Processes quarantined callbacks again that the filters choose, a step with the oldest of them."""
    form = visit.form
    given = {name: value for name in (*_CHOSEN_BY, "cursor") if (value := form.get(name, "").strip())}
    query = ReprocessQuery.model_validate({**given, "size": STEP_SIZE}, by_alias=True)
    chosen = {**given, **fixed_times(query.since, query.until, visit.now)}
    result: Listed[CallbackSummaryRead] = await visit.perform(REPROCESS_ALL, query=query)
    done = count_of(form, "done") + len(result.items)
    kept = count_of(form, "kept") + sum(callback.outcome == "quarantined" for callback in result.items)
    work = Work(
        sentence=f"processed again; {kept:,} of them stay in quarantine",
        done=done,
        total=None,
        fields={**chosen, "done": str(done), "kept": str(kept), **result.next_page} if result.next_page else None,
    )
    return await _listed(visit, work)


# --- one callback ---


async def callback_page(visit: Visit) -> Response:
    """One callback as it was received, and what was made of it."""
    return await _shown(visit)


async def _shown(visit: Visit, done: str | None = None) -> Response:
    callback: CallbackRead = await visit.perform(GET, path={"id": visit.segment("id")})
    return visit.page(
        "callback.html",
        callback=callback,
        body=_body_text(callback.raw),
        is_cut=len(callback.raw) > _MAX_SHOWN,
        messages=_messages(callback),
        done=done,
    )


async def reprocess(visit: Visit) -> Response:
    """Processes the callback again with today's code and keys."""
    result: CallbackSummaryRead = await visit.perform(REPROCESS, path={"id": visit.segment("id")})
    if result.outcome == "quarantined":
        return await _shown(visit, f"It was processed again, and stays in quarantine: {result.reason}.")
    return await _shown(visit, "It was processed again, and is accepted.")


async def raw_body(visit: Visit) -> Response:
    """The body byte for byte, as a file: a browser must not render what strangers wrote."""
    callback: CallbackRead = await visit.perform(GET, path={"id": visit.segment("id")})
    response = Response(callback.raw, media_type="application/octet-stream")
    response.headers["Content-Disposition"] = 'attachment; filename="callback"'
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _body_text(body: bytes) -> str:
    """The body for people: JSON with line breaks, other text as it is, bytes that are no text as base64."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        return base64.b64encode(body[:_MAX_SHOWN]).decode("ascii")
    if len(body) <= _MAX_SHOWN:
        try:
            # Indented, a small body can be a hundred times as long.
            return orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2)[:_MAX_SHOWN].decode("utf-8", "ignore")
        except (orjson.JSONDecodeError, orjson.JSONEncodeError, RecursionError):
            pass
    return text[:_MAX_SHOWN]


def _messages(callback: CallbackRead) -> list[dict[str, Any]]:
    """The messages that the callback names, as today's code parses it."""
    if callback.route == REGISTERED or len(callback.raw) > _MAX_SHOWN:
        return []
    raw = Callback(
        id=callback.id,
        received_at=callback.received_at,
        api=callback.api,
        route=callback.route,
        method=callback.method,
        query=callback.query,
        body=callback.raw,
    )
    events = (element for element in parse(raw) if isinstance(element, Event))
    named = {event.key: {"id": event.message_id, "api": event.api, "direction": event.direction} for event in events}
    return list(named.values())[:_MAX_MESSAGES]
