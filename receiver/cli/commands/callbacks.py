"""Looking at the ledger of callbacks."""

from pathlib import Path
from typing import Annotated

import typer

from receiver.cli.commands.options import Config, Json, OldestFirst, Page, Since, Size, Until, group
from receiver.domain.events import Quarantine

app = group("Look at the raw ledger of callbacks, read it again, copy it.")

Outcome = Annotated[str | None, typer.Option(metavar="OUTCOME", help="accepted or quarantined.")]
Reason = Annotated[Quarantine | None, typer.Option(help="Why it was quarantined.")]


@app.command("list")
def callbacks_list(
    outcome: Outcome = None,
    reason: Reason = None,
    oldest_first: OldestFirst = False,
    size: Size = 25,
    page: Page = 0,
    config: Config = None,
    json: Json = False,
) -> int:
    """List the callbacks that are kept."""
    from receiver.cli.callbacks import list_callbacks

    order = "asc" if oldest_first else "desc"
    asked = {"outcome": outcome, "reason": reason, "sortOrder": order, "size": size, "page": page}
    return list_callbacks(config, asked, json=json)


@app.command("show")
def callbacks_show(
    id: Annotated[str, typer.Argument(help="The callback's id.")],  # noqa: A002
    config: Config = None,
    json: Json = False,
) -> int:
    """Show one callback as it came, without secrets."""
    from receiver.cli.callbacks import show_callback

    return show_callback(config, id, json=json)


@app.command("reread")
def callbacks_reread(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="The callbacks' ids.")] = None,
    outcome: Outcome = None,
    reason: Reason = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Read kept callbacks again.

    With today's code and keys: those with these ids, or all with an outcome or reason.
    """
    from receiver.cli.callbacks import reread_callbacks

    return reread_callbacks(config, ids or [], outcome=outcome, reason=reason, json=json)


@app.command("export")
def callbacks_export(
    since: Since = None,
    until: Until = None,
    outcome: Outcome = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Else standard output.")] = None,
    config: Config = None,
    json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
) -> int:
    """Write kept callbacks as lines of JSON.

    Oldest first, for `callbacks import`. They hold what the messages said.
    """
    from receiver.cli.callbacks import export_callbacks

    return export_callbacks(config, since=since, until=until, outcome=outcome, output=output)


@app.command("import")
def callbacks_import(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What `callbacks export` wrote; -: standard input.")],
    config: Config = None,
    json: Json = False,
) -> int:
    """Take in callbacks that another receiver kept.

    With their ids and times; copies only count.
    """
    from receiver.cli.callbacks import import_callbacks

    return import_callbacks(config, file, json=json)
