"""`receiver dead-letters list`, `requeue` and `drop`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from receiver.models.queries import DeadLetterChoice, DeadLetterQuery
from receiver.api.representations import DeadLetterActionResult
from receiver.models.sinks import DeadLetter
from receiver.cli import options
from receiver.cli.context import with_database
from receiver.cli.output import echo, echo_json, echo_page
from receiver.clock import now
from receiver.domain.cloudevents import rfc3339
from receiver.models.sinks import DeadLetter
from receiver.errors import Unknown
from receiver.settings import Settings
from receiver.storage import dead_letters
from receiver.storage.database import Database
from receiver.storage.dead_letters import Action


def list_dead_letters(config: Path | None, parameters: Mapping[str, Any], *, json: bool) -> int:
    query = options.parse(DeadLetterQuery, parameters).query()

    async def work(_: Settings, database: Database) -> int:
        page = await dead_letters.find(database, query)
        echo_page(page, _HEADINGS, _row, model=DeadLetter, json=json, number=parameters["page"])
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
    config: Path | None, parameters: Mapping[str, Any], ids: Sequence[int], **options: bool
) -> int:
    return _act(config, parameters, ids, dead_letters.requeue, "due again", **options)


def drop_dead_letters(config: Path | None, parameters: Mapping[str, Any], ids: Sequence[int], **options: bool) -> int:
    return _act(config, parameters, ids, dead_letters.drop, "dropped", **options)


def _act(
    config: Path | None,
    parameters: Mapping[str, Any],
    ids: Sequence[int],
    action: Action,
    result: str,
    *,
    every: bool,
    dry_run: bool,
    json: bool,
) -> int:
    query = options.parse(DeadLetterChoice, parameters)
    is_narrowed = any(value is not None for name, value in parameters.items() if name != "sink")
    if [bool(ids), every, is_narrowed].count(True) != 1:
        raise typer.BadParameter("give one of: ids; --all; or --reason, --message, --event, --since or --until")
    sink, choice = query.sink, replace(query.choice(), ids=sorted(set(ids)) or None)

    async def work(_: Settings, database: Database) -> int:
        number = await dead_letters.count(database, choice)
        if not dry_run:
            number = sum([done async for done in action(database, sink, choice, now=now())])
        if json:
            echo_json(DeadLetterActionResult(dead_letters=number, left=0, dry_run=dry_run))
        else:
            echo(f"{number} dead letters of {sink} {'would be' if dry_run else 'are'} {result}")
        if choice.ids is not None and number < len(choice.ids):
            raise Unknown(f"{len(choice.ids) - number} of these ids are not dead letters of {sink}")
        return 0

    return with_database(config, work)
