"""`receiver dead-letters list` and `receiver dead-letters requeue`."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import typer
from pydantic import Field

from receiver.app import now
from receiver.cli.opening import with_database
from receiver.cli.output import say, say_json, say_table
from receiver.domain.cloudevents import rfc3339
from receiver.errors import ReceiverError
from receiver.settings import Settings
from receiver.storage import dead_letters
from receiver.storage.database import Database
from receiver.storage.dead_letters import DeadLetter
from receiver.web.representations import Representation, Time

_PAGE = 1000


class DeadLetterLine(Representation):
    """An event that one sink will not be given again by itself, as it is shown."""

    id: int
    sink: str
    position: int
    event_id: str
    message_id: str
    status: str
    reason: str
    detail: str
    attempts: int
    response_code: int | None
    response: str | None
    first_time: Time = Field(validation_alias="first_at")
    died_time: Time = Field(validation_alias="died_at")


def list_dead_letters(
    config: Path | None, *, sink: str | None, reason: str | None, after: int, size: int, json: bool
) -> int:
    async def work(_: Settings, database: Database) -> int:
        async with database.reading() as connection:
            letters = await dead_letters.find(connection, sink=sink, reason=reason, after=after, limit=size)
        if json:
            say_json([DeadLetterLine.model_validate(letter) for letter in letters])
        else:
            say_table(_HEADINGS, [_row(letter) for letter in letters])
        return 0

    return with_database(config, work)


_HEADINGS = ("ID", "SINK", "DIED", "MESSAGE", "STATUS", "REASON", "ATTEMPTS", "DETAIL")


def _row(letter: DeadLetter) -> tuple[object, ...]:
    died = rfc3339(letter.died_at.replace(microsecond=0))
    return (
        letter.id,
        letter.sink,
        died,
        letter.message_id,
        letter.status,
        letter.reason,
        letter.attempts,
        letter.detail,
    )


def requeue_dead_letters(
    config: Path | None, sink: str, *, ids: Sequence[int], every: bool, dry_run: bool, json: bool
) -> int:
    if bool(ids) == every:
        raise typer.BadParameter("give either ids, or --all")

    async def work(_: Settings, database: Database) -> int:
        chosen = None if every else frozenset(ids)
        if dry_run:
            number = sum([chosen is None or id_ in chosen async for id_ in _ids(database, sink)])
        else:
            number = await dead_letters.requeue(database, sink, now=now(), ids=sorted(chosen) if chosen else None)
        if json:
            say_json({"deadLetters": number, "dryRun": dry_run})
        else:
            say(f"{number} dead letters of {sink} {'would be' if dry_run else 'are'} due again")
        if chosen is not None and number < len(chosen):
            raise ReceiverError(f"{len(chosen) - number} of these ids are no dead letters of {sink}")
        return 0

    return with_database(config, work)


async def _ids(database: Database, sink: str) -> AsyncIterator[int]:
    after = 0
    while True:
        async with database.reading() as connection:
            letters = await dead_letters.find(connection, sink=sink, after=after, limit=_PAGE)
        for letter in letters:
            yield letter.id
        if len(letters) < _PAGE:
            return
        after = letters[-1].id
