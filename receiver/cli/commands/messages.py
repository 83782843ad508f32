"""Looking at messages."""

from typing import Annotated

import typer

from receiver.cli.commands.options import ApiVersion, Config, Json, OldestFirst, Page, Sender, Since, Size, Until, group
from receiver.domain.events import Direction, TagVerdict

app = group("Look at messages.")

OneDirection = Annotated[
    Direction | None, typer.Option("--direction", help="Where an inbound and an outbound message have the id.")
]


@app.command("list")
def messages_list(
    sender: Sender = None,
    to: Annotated[str | None, typer.Option(metavar="NUMBER", help="A recipient's number.")] = None,
    since: Since = None,
    until: Until = None,
    direction: Annotated[Direction | None, typer.Option()] = None,
    status: Annotated[str | None, typer.Option(help="sent, delivered, failed, pending, …")] = None,
    state: Annotated[str | None, typer.Option(help="The first API's word.")] = None,
    delivery_state: Annotated[str | None, typer.Option(help="waiting, delivered or not-delivered.")] = None,
    code: Annotated[int | None, typer.Option(help="The delivery code of any recipient.")] = None,
    tag: Annotated[str | None, typer.Option(help="The whole tag, without signature.")] = None,
    tag_verdict: Annotated[TagVerdict | None, typer.Option()] = None,
    application: Annotated[str | None, typer.Option(help="The application's id.")] = None,
    contradicted: Annotated[bool | None, typer.Option(help="Both delivered and failed were reported.")] = None,
    awaiting: Annotated[bool | None, typer.Option(help="A final event is still to be expected.")] = None,
    oldest_first: OldestFirst = False,
    size: Size = 25,
    page: Page = 0,
    config: Config = None,
    json: Json = False,
) -> int:
    """List messages. What they say is only shown by `messages show` and with --json."""
    from receiver.cli.messages import list_messages

    asked = {
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
    return list_messages(config, asked, json=json)


@app.command("show")
def messages_show(
    id: Annotated[str, typer.Argument(help="The message's id.")],  # noqa: A002
    api: ApiVersion = None,
    direction: OneDirection = None,
    all_: Annotated[bool, typer.Option("--all", help="Every column of the message and its events, too.")] = False,
    config: Config = None,
    json: Json = False,
) -> int:
    """Show what became of one message in words, its timeline, and what the sinks were sent."""
    from receiver.cli.messages import show_message

    return show_message(config, id, api=api, direction=direction, all_=all_, json=json)


@app.command("events")
def messages_events(
    id: Annotated[str, typer.Argument(help="The message's id.")],  # noqa: A002
    api: ApiVersion = None,
    direction: OneDirection = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """List the events of one message, in order of arrival."""
    from receiver.cli.messages import list_events

    return list_events(config, id, api=api, direction=direction, json=json)


@app.command("attempts")
def messages_attempts(
    id: Annotated[str, typer.Argument(help="The message's id.")],  # noqa: A002
    sink: Annotated[str | None, typer.Option(help="To this sink alone.")] = None,
    api: ApiVersion = None,
    direction: OneDirection = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """List the delivery attempts for one message: when, how long, the response, and what was decided."""
    from receiver.cli.messages import list_attempts

    return list_attempts(config, id, api=api, direction=direction, sink=sink, json=json)
