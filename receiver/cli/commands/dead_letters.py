"""Operating the dead letters."""

from typing import Annotated

import typer

from receiver.cli.commands.options import Config, DryRun, Json, Page, SinkName, Size, group
from receiver.domain.publication import DeadLetterReason

app = group("Look at events that a sink did not take; make them due again, or drop them.")

MessageId = Annotated[str | None, typer.Option("--message", metavar="ID", help="Of this message alone.")]
EventId = Annotated[str | None, typer.Option("--event", metavar="ID", help="Of this event alone.")]
DeathReason = Annotated[
    DeadLetterReason | None, typer.Option("--reason", help="Refused by the sink, or tried for too long.")
]
DiedSince = Annotated[str | None, typer.Option("--since", metavar="TIME", help="Those that died from this time on.")]
DiedUntil = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Those that died before this time.")]
LetterIds = Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="Which ones.")]
Every = Annotated[bool, typer.Option("--all", help="All of this sink.")]


@app.command("list")
def dead_letters_list(
    sink: Annotated[str | None, typer.Option(help="Of this sink alone.")] = None,
    reason: DeathReason = None,
    message: MessageId = None,
    event: EventId = None,
    since: DiedSince = None,
    until: DiedUntil = None,
    after: Annotated[int, typer.Option(min=0, metavar="ID", help="Those that died after this one.")] = 0,
    size: Size = 25,
    page: Page = 0,
    config: Config = None,
    json: Json = False,
) -> int:
    """List dead letters in the order in which they died."""
    from receiver.cli.dead_letters import list_dead_letters

    narrowed = _narrowed(sink, reason, message, event, since, until)
    return list_dead_letters(config, {**narrowed, "cursor": after, "size": size, "page": page}, json=json)


@app.command("requeue")
def dead_letters_requeue(
    sink: SinkName,
    ids: LetterIds = None,
    every: Every = False,
    reason: DeathReason = None,
    message: MessageId = None,
    event: EventId = None,
    since: DiedSince = None,
    until: DiedUntil = None,
    dry_run: DryRun = False,
    config: Config = None,
    json: Json = False,
) -> int:
    """Make dead letters of a sink due again.

    With a fresh schedule and the same event ids.
    """
    from receiver.cli.dead_letters import requeue_dead_letters

    narrowed = _narrowed(sink, reason, message, event, since, until)
    return requeue_dead_letters(config, narrowed, ids or [], every=every, dry_run=dry_run, json=json)


@app.command("drop")
def dead_letters_drop(
    sink: SinkName,
    ids: LetterIds = None,
    every: Every = False,
    reason: DeathReason = None,
    message: MessageId = None,
    event: EventId = None,
    since: DiedSince = None,
    until: DiedUntil = None,
    dry_run: DryRun = False,
    config: Config = None,
    json: Json = False,
) -> int:
    """Give dead letters of a sink up for good.

    The sink is never given them; later events of a message that one of them held up go on.
    """
    from receiver.cli.dead_letters import drop_dead_letters

    narrowed = _narrowed(sink, reason, message, event, since, until)
    return drop_dead_letters(config, narrowed, ids or [], every=every, dry_run=dry_run, json=json)


def _narrowed(
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
