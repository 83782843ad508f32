"""Operations on the journal: list callbacks, get one, reprocess one or a page of them."""

from dataclasses import replace
from typing import Final

from receiver.api.operations import Call, Listed, Operation, by_cursor
from receiver.errors import Unknown
from receiver.models.callbacks import CallbackRead, CallbackSummaryRead
from receiver.models.parameters import encode_cursor
from receiver.models.queries import CallbackQuery, ReprocessQuery
from receiver.storage import callbacks


async def list_callbacks(call: Call) -> Listed[CallbackSummaryRead]:
    return by_cursor(await callbacks.find(call.database, call.query), lambda callback: encode_cursor([callback.id]))


async def get_callback(call: Call) -> CallbackRead:
    callback = await callbacks.with_id(call.database, call.path["id"])
    if callback is None:
        raise _unknown(call.path["id"])
    return callback


async def reprocess_callback(call: Call) -> CallbackSummaryRead:
    callback_id = call.path["id"]
    if not await callbacks.by_ids(call.database, [callback_id]):
        raise _unknown(callback_id)
    await call.context.reprocess([callback_id])
    reprocessed = await callbacks.by_ids(call.database, [callback_id])
    if not reprocessed:
        raise _unknown(callback_id)
    return reprocessed[0]


async def reprocess_callbacks(call: Call) -> Listed[CallbackSummaryRead]:
    page = by_cursor(await callbacks.find(call.database, call.query), lambda callback: encode_cursor([callback.id]))
    ids = [callback.id for callback in page.items]
    await call.context.reprocess(ids)
    return replace(page, items=await callbacks.by_ids(call.database, ids))


def _unknown(callback_id: str) -> Unknown:
    # A callback that was answered 200 may still be missing.
    return Unknown(f"the journal has no callback {callback_id}; repeats are not stored, old ones are removed")


_ID: Final = {"id": "the id of the callback"}

OPERATIONS: Final = (
    Operation(
        name="listCallbacks",
        path="/api/callbacks",
        summary="List the callbacks of the journal, newest first",
        handle=list_callbacks,
        query=CallbackQuery,
        answer=list[CallbackSummaryRead],
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
        query=ReprocessQuery,
        answer=list[CallbackSummaryRead],
        has_next=True,
        problems=(403,),
    ),
    Operation(
        name="getCallback",
        path="/api/callbacks/{id}",
        summary="Get one callback as it was received, byte for byte, without secrets",
        handle=get_callback,
        answer=CallbackRead,
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
        answer=CallbackSummaryRead,
        problems=(403, 404),
        path_words=_ID,
    ),
)
