"""The commands `receiver callbacks …`."""

from pathlib import Path
from typing import Annotated

import typer

from receiver.cli.commands.options import Config, Json, OldestFirst, Page, Since, Size, Until, group
from receiver.domain.events import Quarantine

app = group("List, show, reprocess, export and import the callbacks of the journal.")

Outcome = Annotated[
    str | None,
    typer.Option(metavar="OUTCOME", help="Only callbacks with this outcome: pending, accepted or quarantined."),
]
Reason = Annotated[
    Quarantine | None, typer.Option(help="Only callbacks with an element that was quarantined for this reason.")
]
Message = Annotated[str | None, typer.Option("--message", metavar="ID", help="Only callbacks about this message.")]


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
    parameters = {**_selection(outcome, reason, message), "sortOrder": order, "size": size, "page": page}
    return list_callbacks(config, parameters, json=json)


def _selection(outcome: str | None, reason: Quarantine | None, message: str | None) -> dict[str, str | None]:
    """The parameters of the API that the options stand for."""
    return {"outcome": outcome, "reason": reason, "messageId": message}


@app.command("show")
def callbacks_show(
    id: Annotated[str, typer.Argument(help="The id of the callback.")],  # noqa: A002
    config: Config = None,
    json: Json = False,
) -> int:
    """Show one callback as it was received, without secrets."""
    from receiver.cli.callbacks import show_callback

    return show_callback(config, id, json=json)


@app.command("reprocess")
def callbacks_reprocess(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="The ids of callbacks.")] = None,
    outcome: Outcome = None,
    reason: Reason = None,
    message: Message = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Process callbacks of the journal again with today's code and keys.

    Choose them by their ids, or by outcome, reason or message.
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
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The file to write; default: standard output.")
    ] = None,
    config: Config = None,
    json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
) -> int:
    """Write callbacks of the journal as lines of JSON, oldest first, for `callbacks import`.

    The lines contain the texts of the messages.
    """
    from receiver.cli.callbacks import export_callbacks

    selection = _selection(outcome, reason, message)
    return export_callbacks(config, selection, since=since, until=until, output=output)


@app.command("import")
def callbacks_import(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The file that `callbacks export` wrote; - for standard input.")
    ],
    config: Config = None,
    json: Json = False,
) -> int:
    """Append the callbacks of an export to the journal, with their ids and times, and process them.

    A callback whose id is in the journal already is skipped, so an interrupted import can be run again.
    """
    from receiver.cli.callbacks import import_callbacks

    return import_callbacks(config, file, json=json)
