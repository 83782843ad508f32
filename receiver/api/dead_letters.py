"""Operations on dead letters: list them, requeue them, drop them; a dry run counts them."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from receiver.api.answers import json_answer, next_page
from receiver.api.auth import is_admin
from receiver.api.operations import ApiContext, Operation
from receiver.api.parameter_kinds import encode_cursor
from receiver.api.parameters import DeadLetterActionParameters, DeadLetterParameters
from receiver.api.representations import DeadLetter, DeadLetterActionResult, without_responses
from receiver.storage import dead_letters

# Shorter than the timeout of the usual proxies.
_SECONDS_PER_REQUEST: Final = 10.0


async def list_dead_letters(context: ApiContext, request: Request, parameters: DeadLetterParameters) -> Response:
    page = await dead_letters.find(context.database, parameters.query())
    link = next_page(request, context.public_url, cursor=encode_cursor([str(page.items[-1].id)])) if page.more else None
    letters = [DeadLetter.model_validate(view) for view in page.items]
    return json_answer(letters if is_admin(request) else without_responses(letters), link=link)


async def requeue_dead_letters(context: ApiContext, _: Request, parameters: DeadLetterActionParameters) -> Response:
    return await _act(context, parameters, dead_letters.requeue)


async def drop_dead_letters(context: ApiContext, _: Request, parameters: DeadLetterActionParameters) -> Response:
    return await _act(context, parameters, dead_letters.drop)


async def _act(context: ApiContext, parameters: DeadLetterActionParameters, action: dead_letters.Action) -> Response:
    choice = parameters.choice()
    number, left = await dead_letters.count(context.database, choice), 0
    if not parameters.dry_run:
        done = await _within_time(action(context.database, parameters.sink, choice, now=context.clock()))
        number, left = done, max(0, number - done)
    return json_answer(DeadLetterActionResult(dead_letters=number, left=left, dry_run=parameters.dry_run))


async def _within_time(batches: AsyncGenerator[int, None]) -> int:
    """Runs batches until the time of a request is over; returns the number of dead letters they handled."""
    done, deadline = 0, time.monotonic() + _SECONDS_PER_REQUEST
    async with aclosing(batches):
        async for number in batches:
            done += number
            if time.monotonic() >= deadline:
                break
    return done


_ACTION_WORDS: Final = (
    "All dead letters of the sink, unless other parameters narrow them down. A request stops after 10 s; `left` is the "
    "number of dead letters that remain: send it again."
)

OPERATIONS: Final = (
    Operation(
        name="listDeadLetters",
        path="/api/dead-letters",
        summary="List dead letters, oldest first",
        handle=list_dead_letters,
        parameters=DeadLetterParameters,
        answer=list[DeadLetter],
        has_next=True,
    ),
    Operation(
        name="requeueDeadLetters",
        method="POST",
        path="/api/dead-letters/requeue",
        summary="Publish dead letters of a sink again, with the same event ids and a new retry schedule",
        description=_ACTION_WORDS,
        handle=requeue_dead_letters,
        parameters=DeadLetterActionParameters,
        answer=DeadLetterActionResult,
        problems=(403, 404),
    ),
    Operation(
        name="dropDeadLetters",
        method="POST",
        path="/api/dead-letters/drop",
        summary="Remove dead letters of a sink for good",
        description=_ACTION_WORDS,
        handle=drop_dead_letters,
        parameters=DeadLetterActionParameters,
        answer=DeadLetterActionResult,
        problems=(403, 404),
    ),
)
