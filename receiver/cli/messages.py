"""The commands `receiver messages`: operations of the query API, whose parameters are their options."""

from pathlib import Path
from typing import Annotated

import typer

from receiver.cli.options import Config, Json, group, with_query
from receiver.models.message_queries import MessageQuery
from receiver.models.queries import AttemptQuery, OneMessageQuery

app = group("List, show, export and register messages; list their events and their delivery attempts.")

MessageId = Annotated[str, typer.Argument(help="The id of the message.")]


@app.command("list")
@with_query(MessageQuery)
def list_messages(query: MessageQuery, config: Config = None, json: Json = False) -> int:
    """List messages. With --json the list contains their texts too."""
    from receiver.cli.calls import show_list

    return show_list("messages.listMessages", config, query=query, json=json)


@app.command("export")
@with_query(MessageQuery, leave_out=frozenset({"page", "size"}))
def export_messages(
    query: MessageQuery,
    csv: Annotated[bool, typer.Option("--csv", help="Write CSV, one row per recipient; the default.")] = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Write lines of JSON, one per message.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The file to write; default: standard output.")
    ] = None,
    config: Config = None,
) -> int:
    """Write all messages that the options choose, with their texts. Long exports report their progress."""
    from receiver.cli.calls import export_messages

    if csv and jsonl:
        raise typer.BadParameter("give either --csv or --jsonl, not both")
    return export_messages(config, query, lines=jsonl, output=output)


@app.command("register")
def register_sends(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Lines of JSON; - for standard input.")],
    config: Config = None,
    json: Json = False,
) -> int:
    """Register messages that were sent, so that silence about them is visible: `messages list --awaiting`.

    Each line has what Bandwidth answered to a send (see `receiver help registered-sends`). A wrong line is named and
    does not stop the others. A send that is registered already is skipped, so that the command can be run again.
    """
    from receiver.cli.sends import register_sends

    return register_sends(config, file, json=json)


@app.command("show")
@with_query(OneMessageQuery)
def show_message(
    id: MessageId,  # noqa: A002
    query: OneMessageQuery,
    all_: Annotated[
        bool, typer.Option("--all", help="Also print every column of the message and of its events.")
    ] = False,
    config: Config = None,
    json: Json = False,
) -> int:
    """Show the status of one message in words, its timeline, and the state of its events at the sinks."""
    from receiver.cli.calls import explain_message

    return explain_message(config, id, query, all_=all_, json=json)


@app.command("events")
@with_query(OneMessageQuery)
def list_events(id: MessageId, query: OneMessageQuery, config: Config = None, json: Json = False) -> int:  # noqa: A002
    """List the events of one message in order of arrival."""
    from receiver.cli.calls import show_list

    return show_list("messages.listMessageEvents", config, query=query, json=json, path={"id": id})


@app.command("attempts")
@with_query(AttemptQuery)
def list_attempts(id: MessageId, query: AttemptQuery, config: Config = None, json: Json = False) -> int:  # noqa: A002
    """List the delivery attempts for one message: time, duration, response and decision."""
    from receiver.cli.calls import show_list

    return show_list("messages.listMessageAttempts", config, query=query, json=json, path={"id": id})
