"""Operations on dead letters: list them, requeue them, drop them; a dry run counts them."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Final

from receiver.api.operations import Call, Listed, Operation, by_cursor
from receiver.models.columns import Read
from receiver.models.parameters import encode_cursor
from receiver.models.queries import DeadLetterChoice, DeadLetterQuery
from receiver.models.sinks import DeadLetterRead, without_responses
from receiver.storage import dead_letters

# Shorter than the timeout of the usual proxies.
_SECONDS_PER_REQUEST: Final = 10.0


class DeadLetterActionResult(Read):
    """The number of dead letters that were requeued or dropped, or would be after a dry run.

    `left` counts the chosen dead letters that remain because the request ran out of time: send it again.
    """

    dead_letters: int
    left: int
    dry_run: bool


async def list_dead_letters(call: Call) -> Listed[DeadLetterRead]:
    page = by_cursor(await dead_letters.find(call.database, call.query), lambda letter: encode_cursor([str(letter.id)]))
    return page if call.is_admin else replace(page, items=without_responses(page.items))


async def act_on_dead_letters(
    call: Call, *, action: dead_letters.Action, seconds: float | None = None
) -> DeadLetterActionResult:
    choice: DeadLetterChoice = call.query
    number, left = await dead_letters.count(call.database, choice), 0
    if not choice.dry_run:
        async with call.database.reading() as connection:
            # Retries are due by this clock, and the clock of this machine may differ.
            now = await call.database.reference_time(connection, call.context.clock)
        done = await _within_time(
            action(call.database, choice, now=now), _SECONDS_PER_REQUEST if seconds is None else seconds
        )
        number, left = done, max(0, number - done)
    return DeadLetterActionResult(dead_letters=number, left=left, dry_run=choice.dry_run)


async def _within_time(batches: AsyncGenerator[int, None], seconds: float) -> int:
    """Runs batches until the time of a request is over; returns the number of dead letters they handled."""
    done, deadline = 0, time.monotonic() + seconds
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
        query=DeadLetterQuery,
        answer=list[DeadLetterRead],
        has_next=True,
    ),
    Operation(
        name="requeueDeadLetters",
        method="POST",
        path="/api/dead-letters/requeue",
        summary="Publish dead letters of a sink again, with the same event ids and a new retry schedule",
        description=_ACTION_WORDS,
        handle=partial(act_on_dead_letters, action=dead_letters.requeue),
        query=DeadLetterChoice,
        answer=DeadLetterActionResult,
        problems=(403, 404),
    ),
    Operation(
        name="dropDeadLetters",
        method="POST",
        path="/api/dead-letters/drop",
        summary="Remove dead letters of a sink for good",
        description=_ACTION_WORDS,
        handle=partial(act_on_dead_letters, action=dead_letters.drop),
        query=DeadLetterChoice,
        answer=DeadLetterActionResult,
        problems=(403, 404),
    ),
)
