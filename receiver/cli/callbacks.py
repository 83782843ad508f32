"""The commands `receiver callbacks`: operations of the query API, and export, import and replay of the journal."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from receiver.cli.options import Config, Json, group, with_query
from receiver.models.queries import CallbackFilter, CallbackQuery

if TYPE_CHECKING:
    from receiver.models.callbacks import CallbackRead

app = group("List, show, reprocess, replay, export and import the callbacks of the journal.")


@app.command("list")
@with_query(CallbackQuery)
def list_callbacks(query: CallbackQuery, config: Config = None, json: Json = False) -> int:
    """List the callbacks of the journal."""
    from receiver.cli.calls import show_list

    return show_list("callbacks.listCallbacks", config, query=query, json=json)


@app.command("show")
def show_callback(
    id: Annotated[str, typer.Argument(help="The id of the callback.")],  # noqa: A002
    config: Config = None,
    json: Json = False,
) -> int:
    """Show one callback as it was received, without secrets."""
    from receiver.cli.calls import show

    return show("callbacks.getCallback", config, {"id": id}, json=json, text=_echo_callback)


def _echo_callback(callback: "CallbackRead") -> None:
    from receiver.cli.output import echo, echo_fields

    fields = callback.model_dump(mode="json", by_alias=True, exclude={"headers", "problems"})
    body, encoding = fields.pop("body"), fields.pop("bodyEncoding")
    echo_fields(fields.items())
    echo("", "headers")
    echo_fields(sorted(callback.headers.items()), indent="  ")
    for problem in callback.problems:
        message = f" (message {problem.message_id})" if problem.message_id else ""
        echo("", f"element {problem.element}: {problem.reason} {problem.detail}{message}")
    echo("", f"body ({encoding})", *body.splitlines())


@app.command("reprocess")
@with_query(CallbackFilter)
def reprocess_callbacks(
    query: CallbackFilter,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="The ids of callbacks.")] = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Process callbacks of the journal again with today's code and keys.

    Choose them by their ids, or by outcome, reason, message or time.
    """
    from receiver.cli.callback_transfer import reprocess_callbacks

    return reprocess_callbacks(config, ids or [], query, json=json)


@app.command("export")
@with_query(CallbackFilter)
def export_callbacks(
    query: CallbackFilter,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The file to write; default: standard output.")
    ] = None,
    config: Config = None,
    json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
) -> int:
    """Write callbacks of the journal as lines of JSON, oldest first, for `callbacks import`.

    The lines contain the texts of the messages.
    """
    from receiver.cli.callback_transfer import export_callbacks

    return export_callbacks(config, query, output=output)


@app.command("import")
def import_callbacks(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The file that `callbacks export` wrote; - for standard input.")
    ],
    config: Config = None,
    json: Json = False,
) -> int:
    """Append the callbacks of an export to the journal, with their ids and times, and process them.

    A callback whose id is in the journal already is skipped, so an interrupted import can be run again.
    """
    from receiver.cli.callback_transfer import import_callbacks

    return import_callbacks(config, file, json=json)


@app.command("replay")
def replay_callbacks(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The ids of callbacks.")],
    to: Annotated[
        str, typer.Option("--to", metavar="URL", help="Where to send them; credentials as user:password@ in it.")
    ],
    config: Config = None,
    json: Json = False,
) -> int:
    """Send callbacks of the journal to a program of yours, as they came: method, query, headers, body.

    Headers with secrets are not stored, so they are not sent. Exit code 1 if an answer is not 2xx.
    """
    from receiver.cli.callback_replay import replay_callbacks

    return replay_callbacks(config, ids, to=to, json=json)
