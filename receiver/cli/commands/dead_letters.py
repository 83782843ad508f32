"""The commands `receiver dead-letters …`."""

from typing import Annotated

import typer

from receiver.cli.commands.options import Config, DryRun, Json, Page, SinkName, Size, group
from receiver.domain.publication import DeadLetterReason

app = group("List, requeue and drop dead letters: events that a sink refused, or that expired.")

MessageId = Annotated[str | None, typer.Option("--message", metavar="ID", help="Only dead letters of this message.")]
EventId = Annotated[str | None, typer.Option("--event", metavar="ID", help="Only dead letters of this event.")]
Reason = Annotated[
    DeadLetterReason | None,
    typer.Option(
        "--reason", help="Only dead letters with this reason: refused by the sink, or older than its max_age."
    ),
]
Since = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="Became a dead letter at this time or later.")
]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Became a dead letter before this time.")]
LetterIds = Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="The ids of dead letters.")]
Every = Annotated[bool, typer.Option("--all", help="All dead letters of this sink.")]


@app.command("list")
def dead_letters_list(
    sink: Annotated[str | None, typer.Option(help="Only dead letters of this sink.")] = None,
    reason: Reason = None,
    message: MessageId = None,
    event: EventId = None,
    since: Since = None,
    until: Until = None,
    after: Annotated[int, typer.Option(min=0, metavar="ID", help="Only dead letters after this one.")] = 0,
    size: Size = 25,
    page: Page = 0,
    config: Config = None,
    json: Json = False,
) -> int:
    """List dead letters, oldest first."""
    from receiver.cli.dead_letters import list_dead_letters

    filters = _filters(sink, reason, message, event, since, until)
    return list_dead_letters(config, {**filters, "cursor": after, "size": size, "page": page}, json=json)


@app.command("requeue")
def dead_letters_requeue(
    sink: SinkName,
    ids: LetterIds = None,
    every: Every = False,
    reason: Reason = None,
    message: MessageId = None,
    event: EventId = None,
    since: Since = None,
    until: Until = None,
    dry_run: DryRun = False,
    config: Config = None,
    json: Json = False,
) -> int:
    """Publish dead letters of a sink again, with the same event ids and a new retry schedule."""
    from receiver.cli.dead_letters import requeue_dead_letters

    filters = _filters(sink, reason, message, event, since, until)
    return requeue_dead_letters(config, filters, ids or [], every=every, dry_run=dry_run, json=json)


@app.command("drop")
def dead_letters_drop(
    sink: SinkName,
    ids: LetterIds = None,
    every: Every = False,
    reason: Reason = None,
    message: MessageId = None,
    event: EventId = None,
    since: Since = None,
    until: Until = None,
    dry_run: DryRun = False,
    config: Config = None,
    json: Json = False,
) -> int:
    """Remove dead letters of a sink for good.

    They are never published to the sink. Events that were parked behind them are published.
    """
    from receiver.cli.dead_letters import drop_dead_letters

    filters = _filters(sink, reason, message, event, since, until)
    return drop_dead_letters(config, filters, ids or [], every=every, dry_run=dry_run, json=json)


def _filters(
    sink: str | None,
    reason: DeadLetterReason | None,
    message: str | None,
    event: str | None,
    since: str | None,
    until: str | None,
) -> dict[str, object]:
    """The options that choose dead letters, as parameters of the query API."""
    return {
        "sink": sink,
        "reason": reason,
        "messageId": message,
        "eventId": event,
        "fromDateTime": since,
        "toDateTime": until,
    }
