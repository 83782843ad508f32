"""Callbacks: a page of the journal, one of them whole, and reprocessing them."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from receiver.api.answers import json_answer, next_page
from receiver.api.operations import Api, Operation, path_value
from receiver.api.parameter_kinds import encode_cursor
from receiver.api.parameters import CallbackParameters, Parameters, ReprocessParameters
from receiver.api.problems import ProblemError
from receiver.api.representations import Callback, CallbackSummary
from receiver.domain.queries import CallbackView, Page
from receiver.storage import journal

# why the journal may lack a callback that was answered 200
NOT_STORED: Final = "repeats are not stored, old ones are removed"


async def list_callbacks(api: Api, request: Request, asked: CallbackParameters) -> Response:
    page = await journal.find(api.database, asked.query())
    return json_answer(_summaries(page.items), link=_link(api, request, page))


async def get_callback(api: Api, request: Request, _: Parameters) -> Response:
    callback = await journal.one(api.database, path_value(request, "id"))
    if callback is None:
        raise _not_found()
    return json_answer(Callback.model_validate(callback))


async def reprocess_callback(api: Api, request: Request, _: Parameters) -> Response:
    callback_id = path_value(request, "id")
    if not await journal.by_ids(api.database, [callback_id]):
        raise _not_found()
    await api.reprocess([callback_id])
    reprocessed = await journal.by_ids(api.database, [callback_id])
    if not reprocessed:
        raise _not_found()
    return json_answer(CallbackSummary.model_validate(reprocessed[0]))


async def reprocess_callbacks(api: Api, request: Request, asked: ReprocessParameters) -> Response:
    page = await journal.find(api.database, asked.query())
    ids = [callback.id for callback in page.items]
    await api.reprocess(ids)
    reprocessed = await journal.by_ids(api.database, ids)
    return json_answer(_summaries(reprocessed), link=_link(api, request, page))


def _summaries(callbacks: list[CallbackView]) -> list[CallbackSummary]:
    return [CallbackSummary.model_validate(callback) for callback in callbacks]


def _link(api: Api, request: Request, page: Page[CallbackView]) -> dict[str, str]:
    return next_page(request, api.public_url, cursor=encode_cursor([page.items[-1].id])) if page.more else {}


def _not_found() -> ProblemError:
    return ProblemError(404, f"The journal has no callback with this id; {NOT_STORED}.")


_ID: Final = {"id": "the callback's id"}

OPERATIONS: Final = (
    Operation(
        name="listCallbacks",
        path="/api/callbacks",
        summary="The journal, newest callback first",
        handle=list_callbacks,
        parameters=CallbackParameters,
        answer=list[CallbackSummary],
        has_next=True,
        reads_processed=True,
    ),
    Operation(
        name="reprocessCallbacks",
        method="POST",
        path="/api/callbacks/reprocess",
        summary="Reprocesses a page of callbacks, with today's code and keys",
        description="The quarantined ones, oldest first, unless asked otherwise; `POST` to the `Link` for the next.",
        handle=reprocess_callbacks,
        parameters=ReprocessParameters,
        answer=list[CallbackSummary],
        has_next=True,
        problems=(403,),
    ),
    Operation(
        name="getCallback",
        path="/api/callbacks/{id}",
        summary="One callback as it came, byte for byte, without secrets",
        handle=get_callback,
        answer=Callback,
        problems=(404,),
        path_words=_ID,
        reads_processed=True,
    ),
    Operation(
        name="reprocessCallback",
        method="POST",
        path="/api/callbacks/{id}/reprocess",
        summary="Reprocesses one callback, all of its elements, with today's code and keys",
        handle=reprocess_callback,
        answer=CallbackSummary,
        problems=(403, 404),
        path_words=_ID,
    ),
)
