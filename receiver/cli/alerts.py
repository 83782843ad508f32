"""The commands `receiver alerts`: operations of the query API, whose parameters are their options."""

from pathlib import Path
from typing import Annotated, Any

import typer

from receiver.cli.options import Config, Json, group, with_query
from receiver.models.queries import AlertQuery

app = group("List, show, acknowledge, mute and resolve alerts.")

AlertId = Annotated[str, typer.Argument(help="The id of the alert.")]


@app.command("list")
@with_query(AlertQuery)
def list_alerts(query: AlertQuery, config: Config = None, json: Json = False) -> int:
    """List the alerts that fire and those that are resolved, newest first."""
    from receiver.cli.calls import show_list

    return show_list("alerts.listAlerts", config, query=query, json=json)


@app.command("show")
def show_alert(id: AlertId, config: Config = None, json: Json = False) -> int:  # noqa: A002
    """Show one alert with its evidence, the messages it is about, and what to do."""
    return _act_on_alert(config, "alerts.getAlert", id, json=json)


@app.command("acknowledge")
def acknowledge_alert(id: AlertId, config: Config = None, json: Json = False) -> int:  # noqa: A002
    """Record that somebody looks after an alert that fires."""
    return _act_on_alert(config, "alerts.acknowledgeAlert", id, json=json)


@app.command("resolve")
def resolve_alert(id: AlertId, config: Config = None, json: Json = False) -> int:  # noqa: A002
    """Resolve an alert of another program, which will not do it itself any more."""
    return _act_on_alert(config, "alerts.resolveAlert", id, json=json)


@app.command("mute")
def mute_alert(
    id: AlertId,  # noqa: A002
    for_: Annotated[str | None, typer.Option("--for", metavar="DURATION", help="How long: 90s, 15m, 2h, 7d.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Until when.")] = None,
    off: Annotated[bool, typer.Option("--off", help="End the mute.")] = False,
    config: Config = None,
    json: Json = False,
) -> int:
    """Mute an alert, and later alerts of its rule and group: nobody is notified of them meanwhile.

    Those who heard that the alert fires still hear that it is resolved.
    """
    from pydantic import ValidationError

    from receiver.api.alerts import MuteRequest
    from receiver.clock import now

    if [for_ is not None, until is not None, off].count(True) != 1:
        raise typer.BadParameter("give one of --for, --until and --off")
    body = {"for": for_} if for_ is not None else {"until": until}
    try:
        request = MuteRequest.model_validate(body)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise typer.BadParameter(problem, param_hint="--for" if for_ is not None else "--until") from None
    if request.until is not None and request.until <= now():
        raise typer.BadParameter("must be a time that is to come; for a duration use --for", param_hint="--until")
    return _act_on_alert(config, "alerts.muteAlert", id, json=json, body=body)


def _act_on_alert(config: Path | None, operation: str, alert_id: str, *, json: bool, **call: Any) -> int:
    from receiver.cli.calls import show
    from receiver.cli.output import alert_fields, echo_fields

    return show(operation, config, {"id": alert_id}, json=json, text=lambda it: echo_fields(alert_fields(it)), **call)


@app.command("notifications")
def list_notifications(id: AlertId, config: Config = None, json: Json = False) -> int:  # noqa: A002
    """List who was notified of an alert, and who could not be."""
    from receiver.cli.calls import show_list
    from receiver.models.queries import Query

    return show_list("notifications.listNotifications", config, query=Query(), json=json, path={"id": id})


@app.command("test")
def send_test_alert(
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="TARGET", help="Only this target: a URL, env:NAME or file:/path, in the settings or not."
        ),
    ] = None,
    rule: Annotated[str | None, typer.Option("--rule", metavar="NAME", help="Only the targets of this rule.")] = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Send a test alert to the targets for people, and report each. Exit code 1 if one does not accept it.

    A target that opens an incident also closes it. A sink is tested with `receiver sinks test`.
    """
    from receiver.cli.alert_test import test

    if to is not None and rule is not None:
        raise typer.BadParameter("give --to or --rule, not both")
    return test(config, to=to, rule=rule, json=json)
