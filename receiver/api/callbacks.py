"""Operations on the journal: list callbacks, get one, reprocess one or a page of them."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from receiver.api.answers import json_answer, next_page
from receiver.api.operations import ApiContext, Operation, path_value
from receiver.api.parameter_kinds import encode_cursor
from receiver.api.parameters import CallbackParameters, Parameters, ReprocessParameters
from receiver.api.problems import ProblemError
from receiver.api.representations import Callback, CallbackSummary
from receiver.domain.queries import CallbackView, Page
from receiver.storage import callbacks

# Why the journal may not have a callback that was answered 200.
NOT_STORED: Final = "repeats are not stored, old ones are removed"


async def list_callbacks(context: ApiContext, request: Request, parameters: CallbackParameters) -> Response:
    page = await callbacks.find(context.database, parameters.query())
    return json_answer(_summaries(page.items), link=_link(context, request, page))


async def get_callback(context: ApiContext, request: Request, _: Parameters) -> Response:
    callback = await callbacks.one(context.database, path_value(request, "id"))
    if callback is None:
        raise _not_found()
    return json_answer(Callback.model_validate(callback))


async def reprocess_callback(context: ApiContext, request: Request, _: Parameters) -> Response:
    callback_id = path_value(request, "id")
    if not await callbacks.by_ids(context.database, [callback_id]):
        raise _not_found()
    await context.reprocess([callback_id])
    reprocessed = await callbacks.by_ids(context.database, [callback_id])
    if not reprocessed:
        raise _not_found()
    return json_answer(CallbackSummary.model_validate(reprocessed[0]))


async def reprocess_callbacks(context: ApiContext, request: Request, parameters: ReprocessParameters) -> Response:
    page = await callbacks.find(context.database, parameters.query())
    ids = [callback.id for callback in page.items]
    await context.reprocess(ids)
    reprocessed = await callbacks.by_ids(context.database, ids)
    return json_answer(_summaries(reprocessed), link=_link(context, request, page))


def _summaries(callbacks: list[CallbackView]) -> list[CallbackSummary]:
    return [CallbackSummary.model_validate(callback) for callback in callbacks]


def _link(context: ApiContext, request: Request, page: Page[CallbackView]) -> dict[str, str]:
    return next_page(request, context.public_url, cursor=encode_cursor([page.items[-1].id])) if page.more else {}


def _not_found() -> ProblemError:
    return ProblemError(404, f"The journal has no callback with this id; {NOT_STORED}.")


_ID: Final = {"id": "the id of the callback"}

OPERATIONS: Final = (
    Operation(
        name="listCallbacks",
        path="/api/callbacks",
        summary="List the callbacks of the journal, newest first",
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
        summary="Process a page of callbacks again with today's code and keys",
        description="By default quarantined callbacks, oldest first. `POST` to the address in `Link` for more.",
        handle=reprocess_callbacks,
        parameters=ReprocessParameters,
        answer=list[CallbackSummary],
        has_next=True,
        problems=(403,),
    ),
    Operation(
        name="getCallback",
        path="/api/callbacks/{id}",
        summary="Get one callback as it was received, byte for byte, without secrets",
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
        summary="Process one callback again, all of its elements, with today's code and keys",
        handle=reprocess_callback,
        answer=CallbackSummary,
        problems=(403, 404),
        path_words=_ID,
    ),
)
