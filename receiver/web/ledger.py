"""Callbacks: a page of the raw ledger, one of them whole, and reading them again."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from receiver.domain.queries import CallbackView, Page
from receiver.storage import ledger
from receiver.web.answers import json_answer, next_page
from receiver.web.operations import Api, Operation, path_value
from receiver.web.parameter_kinds import encode_cursor
from receiver.web.parameters import CallbackParameters, Parameters, RereadParameters
from receiver.web.problems import ProblemError
from receiver.web.representations import Callback, CallbackSummary


async def list_callbacks(api: Api, request: Request, asked: CallbackParameters) -> Response:
    page = await ledger.find(api.database, asked.query())
    return json_answer(_summaries(page.items), link=_link(api, request, page))


async def get_callback(api: Api, request: Request, _: Parameters) -> Response:
    callback = await ledger.one(api.database, path_value(request, "id"))
    if callback is None:
        raise _not_kept()
    return json_answer(Callback.model_validate(callback))


async def reread_callback(api: Api, request: Request, _: Parameters) -> Response:
    callback_id = path_value(request, "id")
    if not await ledger.by_ids(api.database, [callback_id]):
        raise _not_kept()
    await api.reread([callback_id])
    read_again = await ledger.by_ids(api.database, [callback_id])
    if not read_again:
        raise _not_kept()
    return json_answer(CallbackSummary.model_validate(read_again[0]))


async def reread_callbacks(api: Api, request: Request, asked: RereadParameters) -> Response:
    page = await ledger.find(api.database, asked.query())
    ids = [callback.id for callback in page.items]
    await api.reread(ids)
    read_again = await ledger.by_ids(api.database, ids)
    return json_answer(_summaries(read_again), link=_link(api, request, page))


def _summaries(callbacks: list[CallbackView]) -> list[CallbackSummary]:
    return [CallbackSummary.model_validate(callback) for callback in callbacks]


def _link(api: Api, request: Request, page: Page[CallbackView]) -> dict[str, str]:
    return next_page(request, api.public_url, cursor=encode_cursor([page.items[-1].id])) if page.more else {}


def _not_kept() -> ProblemError:
    return ProblemError(404, "There is no callback with this id, or it is no longer kept.")


_ID: Final = {"id": "the callback's id"}

OPERATIONS: Final = (
    Operation(
        name="listCallbacks",
        path="/api/callbacks",
        summary="The raw ledger, newest first",
        handle=list_callbacks,
        parameters=CallbackParameters,
        answer=list[CallbackSummary],
        has_next=True,
    ),
    Operation(
        name="rereadCallbacks",
        method="POST",
        path="/api/callbacks/reread",
        summary="Reads a page of kept callbacks again, with today's code and keys",
        description="The quarantined ones, oldest first, unless asked otherwise; `POST` to the `Link` for the next.",
        handle=reread_callbacks,
        parameters=RereadParameters,
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
    ),
    Operation(
        name="rereadCallback",
        method="POST",
        path="/api/callbacks/{id}/reread",
        summary="Reads one kept callback again, all of its elements, with today's code and keys",
        handle=reread_callback,
        answer=CallbackSummary,
        problems=(403, 404),
        path_words=_ID,
    ),
)
