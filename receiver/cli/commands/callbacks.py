"""Looking at the journal of callbacks, reprocessing and copying it."""

from pathlib import Path
from typing import Annotated

import typer

from receiver.cli.commands.options import Config, Json, OldestFirst, Page, Since, Size, Until, group
from receiver.domain.events import Quarantine

app = group("Look at the journal of callbacks, reprocess it, copy it.")

Outcome = Annotated[str | None, typer.Option(metavar="OUTCOME", help="pending, accepted or quarantined.")]
Reason = Annotated[Quarantine | None, typer.Option(help="Why an element of it was quarantined.")]
Message = Annotated[str | None, typer.Option("--message", metavar="ID", help="Callbacks that speak of this message.")]


@app.command("list")
def callbacks_list(
    outcome: Outcome = None,
    reason: Reason = None,
    message: Message = None,
    oldest_first: OldestFirst = False,
    size: Size = 25,
    page: Page = 0,
    config: Config = None,
    json: Json = False,
) -> int:
    """List the callbacks of the journal."""
    from receiver.cli.callbacks import list_callbacks

    order = "asc" if oldest_first else "desc"
    asked = {**_selection(outcome, reason, message), "sortOrder": order, "size": size, "page": page}
    return list_callbacks(config, asked, json=json)


def _selection(outcome: str | None, reason: Quarantine | None, message: str | None) -> dict[str, str | None]:
    """The parameters of the API that the options stand for."""
    return {"outcome": outcome, "reason": reason, "messageId": message}


@app.command("show")
def callbacks_show(
    id: Annotated[str, typer.Argument(help="The callback's id.")],  # noqa: A002
    config: Config = None,
    json: Json = False,
) -> int:
    """Show one callback as it came, without secrets."""
    from receiver.cli.callbacks import show_callback

    return show_callback(config, id, json=json)


@app.command("reprocess")
def callbacks_reprocess(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="The callbacks' ids.")] = None,
    outcome: Outcome = None,
    reason: Reason = None,
    message: Message = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Process callbacks of the journal again.

    With today's code and keys: those with these ids, or all with an outcome, a reason or a message.
    """
    from receiver.cli.callbacks import reprocess_callbacks

    return reprocess_callbacks(config, ids or [], _selection(outcome, reason, message), json=json)


@app.command("export")
def callbacks_export(
    since: Since = None,
    until: Until = None,
    outcome: Outcome = None,
    reason: Reason = None,
    message: Message = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Else standard output.")] = None,
    config: Config = None,
    json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
) -> int:
    """Write callbacks of the journal as lines of JSON.

    Oldest first, for `callbacks import`. They hold what the messages said.
    """
    from receiver.cli.callbacks import export_callbacks

    selection = _selection(outcome, reason, message)
    return export_callbacks(config, selection, since=since, until=until, output=output)


@app.command("import")
def callbacks_import(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What `callbacks export` wrote; -: standard input.")],
    config: Config = None,
    json: Json = False,
) -> int:
    """Append callbacks that `callbacks export` wrote, with their ids and times, and process them.

    An id that is in the journal already is left alone: an import that was interrupted is simply run again.
    """
    from receiver.cli.callbacks import import_callbacks

    return import_callbacks(config, file, json=json)
