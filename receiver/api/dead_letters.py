"""Dead letters: a page of them, and making them due again or dropping them, counted first by a dry run."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from receiver.api.answers import json_answer, next_page
from receiver.api.auth import is_admin
from receiver.api.operations import Api, Operation
from receiver.api.parameter_kinds import encode_cursor
from receiver.api.parameters import DeadLetterActionParameters, DeadLetterParameters
from receiver.api.representations import DeadLetter, DeadLettersDone, without_responses
from receiver.storage import dead_letters

# no proxy gives up on a request within this
_SECONDS_PER_REQUEST: Final = 10.0


async def list_dead_letters(api: Api, request: Request, asked: DeadLetterParameters) -> Response:
    page = await dead_letters.find(api.database, asked.query())
    link = next_page(request, api.public_url, cursor=encode_cursor([str(page.items[-1].id)])) if page.more else None
    told = [DeadLetter.model_validate(letter) for letter in page.items]
    return json_answer(told if is_admin(request) else without_responses(told), link=link)


async def requeue_dead_letters(api: Api, _: Request, asked: DeadLetterActionParameters) -> Response:
    return await _done(api, asked, dead_letters.requeue)


async def drop_dead_letters(api: Api, _: Request, asked: DeadLetterActionParameters) -> Response:
    return await _done(api, asked, dead_letters.drop)


async def _done(api: Api, asked: DeadLetterActionParameters, act: dead_letters.Action) -> Response:
    choice = asked.choice()
    number, left = await dead_letters.count(api.database, choice), 0
    if not asked.dry_run:
        done = await _within_time(act(api.database, asked.sink, choice, now=api.clock()))
        number, left = done, max(0, number - done)
    return json_answer(DeadLettersDone(dead_letters=number, left=left, dry_run=asked.dry_run))


async def _within_time(bites: AsyncGenerator[int, None]) -> int:
    done, deadline = 0, time.monotonic() + _SECONDS_PER_REQUEST
    async with aclosing(bites):
        async for number in bites:
            done += number
            if time.monotonic() >= deadline:
                break
    return done


_ACTION_WORDS: Final = (
    "All of a sink, unless narrowed down. What a request does not come to in its time is told as `left`: ask again."
)

OPERATIONS: Final = (
    Operation(
        name="listDeadLetters",
        path="/api/dead-letters",
        summary="What sinks will not be given again by itself, in the order in which it died",
        handle=list_dead_letters,
        parameters=DeadLetterParameters,
        answer=list[DeadLetter],
        has_next=True,
    ),
    Operation(
        name="requeueDeadLetters",
        method="POST",
        path="/api/dead-letters/requeue",
        summary="Makes dead letters of a sink due again, with a fresh schedule and the same event ids",
        description=_ACTION_WORDS,
        handle=requeue_dead_letters,
        parameters=DeadLetterActionParameters,
        answer=DeadLettersDone,
        problems=(403, 404),
    ),
    Operation(
        name="dropDeadLetters",
        method="POST",
        path="/api/dead-letters/drop",
        summary="Gives dead letters of a sink up for good",
        description=_ACTION_WORDS,
        handle=drop_dead_letters,
        parameters=DeadLetterActionParameters,
        answer=DeadLettersDone,
        problems=(403, 404),
    ),
)
