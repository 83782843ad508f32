"""The commands `receiver messages …`."""

from typing import Annotated

import typer

from receiver.cli.commands.options import ApiVersion, Config, Json, OldestFirst, Page, Sender, Since, Size, Until, group
from receiver.domain.events import Direction, TagVerdict

app = group("List and show messages, their events and their delivery attempts.")

OneDirection = Annotated[
    Direction | None, typer.Option("--direction", help="Required where an inbound and an outbound message have the id.")
]


@app.command("list")
def messages_list(
    sender: Sender = None,
    to: Annotated[str | None, typer.Option(metavar="NUMBER", help="The number of a recipient.")] = None,
    since: Since = None,
    until: Until = None,
    direction: Annotated[Direction | None, typer.Option(help="in: received; out: sent.")] = None,
    status: Annotated[
        str | None, typer.Option(help="The status of the message: sent, delivered, failed, pending, …")
    ] = None,
    state: Annotated[str | None, typer.Option(help="The v1 state: received, queued, sending, sent or error.")] = None,
    delivery_state: Annotated[
        str | None, typer.Option(help="The v1 delivery state: waiting, delivered or not-delivered.")
    ] = None,
    code: Annotated[int | None, typer.Option(help="The delivery code of any recipient.")] = None,
    tag: Annotated[str | None, typer.Option(help="The whole tag, without signature.")] = None,
    tag_verdict: Annotated[TagVerdict | None, typer.Option(help="The result of the tag check.")] = None,
    application: Annotated[str | None, typer.Option(help="The id of the application at Bandwidth.")] = None,
    contradicted: Annotated[
        bool | None, typer.Option(help="Whether Bandwidth reported both delivered and failed.")
    ] = None,
    awaiting: Annotated[bool | None, typer.Option(help="Whether a final event is still expected.")] = None,
    oldest_first: OldestFirst = False,
    size: Size = 25,
    page: Page = 0,
    config: Config = None,
    json: Json = False,
) -> int:
    """List messages. With --json the list contains their texts too."""
    from receiver.cli.messages import list_messages

    parameters = {
        "from": sender,
        "to": to,
        "fromDateTime": since,
        "toDateTime": until,
        "direction": direction,
        "status": status,
        "state": state,
        "deliveryState": delivery_state,
        "deliveryCode": code,
        "tag": tag,
        "tagVerdict": tag_verdict,
        "applicationId": application,
        "contradicted": contradicted,
        "awaitingReceipt": awaiting,
        "sortOrder": "asc" if oldest_first else "desc",
        "size": size,
        "page": page,
    }
    return list_messages(config, parameters, json=json)


@app.command("show")
def messages_show(
    id: Annotated[str, typer.Argument(help="The id of the message.")],  # noqa: A002
    api: ApiVersion = None,
    direction: OneDirection = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Also print every column of the message and of its events.")
    ] = False,
    config: Config = None,
    json: Json = False,
) -> int:
    """Show the status of one message in words, its timeline, and the state of its events at the sinks."""
    from receiver.cli.messages import show_message

    return show_message(config, id, api=api, direction=direction, all_=all_, json=json)


@app.command("events")
def messages_events(
    id: Annotated[str, typer.Argument(help="The id of the message.")],  # noqa: A002
    api: ApiVersion = None,
    direction: OneDirection = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """List the events of one message in order of arrival."""
    from receiver.cli.messages import list_events

    return list_events(config, id, api=api, direction=direction, json=json)


@app.command("attempts")
def messages_attempts(
    id: Annotated[str, typer.Argument(help="The id of the message.")],  # noqa: A002
    sink: Annotated[str | None, typer.Option(help="Only attempts at this sink.")] = None,
    api: ApiVersion = None,
    direction: OneDirection = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """List the delivery attempts for one message: time, duration, response and decision."""
    from receiver.cli.messages import list_attempts

    return list_attempts(config, id, api=api, direction=direction, sink=sink, json=json)
