"""The commands `receiver dead-letters`: operations of the query API, whose parameters are their options."""

from pathlib import Path
from typing import Annotated, Any

import typer

from receiver.cli.options import Config, DryRun, Json, SinkName, group, parse_query, with_query
from receiver.models.queries import DeadLetterChoice, DeadLetterFilter, DeadLetterQuery

app = group("List, requeue and drop dead letters: events that a sink refused, or that expired.")

LetterIds = Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="The ids of dead letters.")]
Every = Annotated[bool, typer.Option("--all", help="All dead letters of this sink.")]


@app.command("list")
@with_query(DeadLetterQuery)
def list_dead_letters(query: DeadLetterQuery, config: Config = None, json: Json = False) -> int:
    """List dead letters, oldest first."""
    from receiver.cli.calls import show_list

    return show_list("dead_letters.listDeadLetters", config, query=query, json=json)


@app.command("requeue")
@with_query(DeadLetterFilter, leave_out=frozenset({"sink"}))
def requeue_dead_letters(
    sink: SinkName,
    query: DeadLetterFilter,
    ids: LetterIds = None,
    every: Every = False,
    dry_run: DryRun = False,
    config: Config = None,
    json: Json = False,
) -> int:
    """Publish dead letters of a sink again, with the same event ids and a new retry schedule."""
    choice = _choice(sink, query, ids or [], every=every, dry_run=dry_run)
    return _act_on_dead_letters(config, "dead_letters.requeueDeadLetters", choice, "due again", json=json)


@app.command("drop")
@with_query(DeadLetterFilter, leave_out=frozenset({"sink"}))
def drop_dead_letters(
    sink: SinkName,
    query: DeadLetterFilter,
    ids: LetterIds = None,
    every: Every = False,
    dry_run: DryRun = False,
    config: Config = None,
    json: Json = False,
) -> int:
    """Remove dead letters of a sink for good.

    They are never published to the sink. Events that were parked behind them are published.
    """
    choice = _choice(sink, query, ids or [], every=every, dry_run=dry_run)
    return _act_on_dead_letters(config, "dead_letters.dropDeadLetters", choice, "dropped", json=json)


def _choice(sink: str, query: DeadLetterFilter, ids: list[int], *, every: bool, dry_run: bool) -> DeadLetterChoice:
    """The dead letters that the arguments choose: all of a sink only with --all."""
    filters: dict[str, Any] = query.model_dump(exclude_none=True)
    if [bool(ids), every, bool(filters)].count(True) != 1:
        raise typer.BadParameter("give one of: ids; --all; or --reason, --message, --event, --since or --until")
    return parse_query(DeadLetterChoice, {**filters, "sink": sink, "ids": sorted(set(ids)), "dry_run": dry_run})


def _act_on_dead_letters(
    config: Path | None, operation: str, choice: DeadLetterChoice, result: str, *, json: bool
) -> int:
    from receiver.cli.calls import Operations, named, with_operations
    from receiver.cli.output import echo, echo_json
    from receiver.errors import Unknown

    async def work(perform: Operations) -> int:
        done = await perform(named(operation), query=choice)
        number = done.dead_letters
        while done.left:
            done = await perform(named(operation), query=choice)
            number += done.dead_letters
        if json:
            echo_json(done.model_copy(update={"dead_letters": number}))
        else:
            echo(f"{number} dead letters of {choice.sink} {'would be' if choice.dry_run else 'are'} {result}")
        if number < len(choice.ids):
            raise Unknown(f"{len(choice.ids) - number} of these ids are not dead letters of {choice.sink}")
        return 0

    return with_operations(config, work)
