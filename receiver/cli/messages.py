"""The commands `receiver messages …`."""

from typing import Annotated

import typer

from receiver.cli.options import Config, Json, group, with_query
from receiver.models.queries import AttemptQuery, MessageQuery, OneMessageQuery

app = group("List and show messages, their events and their delivery attempts.")

MessageId = Annotated[str, typer.Argument(help="The id of the message.")]


@app.command("list")
@with_query(MessageQuery)
def list_messages(query: MessageQuery, config: Config = None, json: Json = False) -> int:
    """List messages. With --json the list contains their texts too."""
    from receiver.cli.calls import show_list

    return show_list("messages.listMessages", config, query=query, json=json)


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
    from receiver.cli.explanation import explain_message

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
