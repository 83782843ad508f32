"""The commands `receiver messages`, `callbacks`, `sinks`, `dead-letters` and `alerts`: operations of the query API.

Their options are the parameters of the operations' queries.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from receiver.cli.options import Config, DryRun, Json, SinkName, group, parse_query, with_query
from receiver.models.message_queries import MessageQuery
from receiver.models.queries import (
    AlertQuery,
    AttemptQuery,
    CallbackFilter,
    CallbackQuery,
    DeadLetterChoice,
    DeadLetterFilter,
    DeadLetterQuery,
    DryRunQuery,
    OneMessageQuery,
    ReplayQuery,
    SinkQuery,
)

if TYPE_CHECKING:
    from receiver.models.callbacks import CallbackRead

messages = group("List, show, export and register messages; list their events and their delivery attempts.")

MessageId = Annotated[str, typer.Argument(help="The id of the message.")]


@messages.command("list")
@with_query(MessageQuery)
def list_messages(query: MessageQuery, config: Config = None, json: Json = False) -> int:
    """List messages. With --json the list contains their texts too."""
    from receiver.cli.calls import show_list

    return show_list("messages.listMessages", config, query=query, json=json)


@messages.command("export")
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


@messages.command("register")
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


@messages.command("show")
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


@messages.command("events")
@with_query(OneMessageQuery)
def list_events(id: MessageId, query: OneMessageQuery, config: Config = None, json: Json = False) -> int:  # noqa: A002
    """List the events of one message in order of arrival."""
    from receiver.cli.calls import show_list

    return show_list("messages.listMessageEvents", config, query=query, json=json, path={"id": id})


@messages.command("attempts")
@with_query(AttemptQuery)
def list_attempts(id: MessageId, query: AttemptQuery, config: Config = None, json: Json = False) -> int:  # noqa: A002
    """List the delivery attempts for one message: time, duration, response and decision."""
    from receiver.cli.calls import show_list

    return show_list("messages.listMessageAttempts", config, query=query, json=json, path={"id": id})


callbacks = group("List, show, reprocess, replay, export and import the callbacks of the journal.")


@callbacks.command("list")
@with_query(CallbackQuery)
def list_callbacks(query: CallbackQuery, config: Config = None, json: Json = False) -> int:
    """List the callbacks of the journal."""
    from receiver.cli.calls import show_list

    return show_list("callbacks.listCallbacks", config, query=query, json=json)


@callbacks.command("show")
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


@callbacks.command("reprocess")
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


@callbacks.command("export")
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


@callbacks.command("import")
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


@callbacks.command("replay")
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


sinks = group("List, test, pause and resume sinks; replay old events to them.")


@sinks.command("list")
@with_query(SinkQuery)
def list_sinks(query: SinkQuery, config: Config = None, json: Json = False) -> int:
    """List the sinks with their state, lag, retries and dead letters."""
    from receiver.cli.calls import show_list

    return show_list("sinks.listSinks", config, query=query, json=json)


@sinks.command("show")
def show_sink(name: SinkName, config: Config = None, json: Json = False) -> int:
    """Show the state of one sink."""
    from receiver.cli.calls import show
    from receiver.cli.output import echo_fields, sink_fields

    return show("sinks.getSink", config, {"name": name}, json=json, text=lambda sink: echo_fields(sink_fields(sink)))


@sinks.command("test")
def check_sink(
    name: Annotated[str | None, typer.Argument(metavar="[SINK]", help="The name of the sink.")] = None,
    all_sinks: Annotated[bool, typer.Option("--all", help="Test every sink of the settings.")] = False,
    config: Config = None,
    json: Json = False,
) -> int:
    """Test whether a sink of the settings can be reached, without publishing to it. Exit code 1 if not."""
    from receiver.cli.calls import Operations, named, with_operations
    from receiver.cli.output import echo, echo_error, echo_json

    if (name is None) is not all_sinks:
        raise typer.BadParameter("give the name of a sink, or --all")
    if name is None:
        return _test_all_sinks(config, json=json)

    async def work(perform: Operations) -> int:
        result = await perform(named("sinks.testSink"), {"name": name})
        if json:
            echo_json(result)
        elif result.error is None:
            echo(f"{name} can be reached ({result.seconds:.2f} s)")
        else:
            echo_error(f"{name} cannot be reached: {result.error}")
        return 0 if result.ok else 1

    return with_operations(config, work, needs_database=False)


def _test_all_sinks(config: Path | None, *, json: bool) -> int:
    import asyncio

    from receiver.cli.calls import Operations, named, with_operations
    from receiver.cli.output import echo_json, echo_table

    async def work(perform: Operations) -> int:
        names = [str(table.get("name")) for table in perform.settings.sinks]
        operation = named("sinks.testSink")
        results = await asyncio.gather(*(perform(operation, {"name": name}) for name in names))
        tested = list(zip(names, results, strict=True))
        if json:
            echo_json([{"sink": name, **one.model_dump()} for name, one in tested])
        else:
            rows = [(name, "ok" if one.ok else "FAILED", f"{one.seconds:.2f}", one.error) for name, one in tested]
            echo_table(("SINK", "RESULT", "SECONDS", "ERROR"), rows)
        return 0 if all(one.ok for one in results) else 1

    return with_operations(config, work, needs_database=False)


@sinks.command("pause")
def pause_sink(name: SinkName, config: Config = None, json: Json = False) -> int:
    """Stop publishing to a sink within about a second. Its events wait."""
    return _act(config, "sinks.pauseSink", name, lambda _: f"{name} is paused: its events wait", json=json)


@sinks.command("resume")
def resume_sink(name: SinkName, config: Config = None, json: Json = False) -> int:
    """Publish to a paused sink again, from its cursor on."""
    text = f"{name} is resumed: its events are published again"
    return _act(config, "sinks.resumeSink", name, lambda _: text, json=json)


def _act(config: Path | None, operation: str, name: str, text: Callable[[Any], str], *, json: bool, **call: Any) -> int:
    """Runs an operation on one sink; `text` is the line that says what it did."""
    from receiver.cli.calls import show
    from receiver.cli.output import echo

    return show(operation, config, {"name": name}, json=json, text=lambda result: echo(text(result)), **call)


@sinks.command("replay")
def replay_sink(
    name: SinkName,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Replay events received from this time on, up to the cursor of the sink."),
    ] = None,
    beginning: Annotated[
        bool, typer.Option("--beginning", help="Replay all stored events, up to the cursor of the sink.")
    ] = False,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Only events received before this time.")] = None,
    message_ids: Annotated[
        list[str] | None,
        typer.Option("--message", metavar="ID", help="Only the events of this message. May be repeated."),
    ] = None,
    pause: Annotated[bool, typer.Option("--pause", help="Pause the open replay.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the paused replay.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel the open replay for good.")] = False,
    dry_run: DryRun = False,
    config: Config = None,
    json: Json = False,
) -> int:
    """Publish old events to a sink again, with the same ids, beside new events.

    Or pause, resume or cancel such a replay.
    """
    flags = {"pause": pause, "resume": resume, "cancel": cancel}
    actions = [action for action, is_set in flags.items() if is_set]
    begun = bool(beginning + (since is not None) or message_ids)
    if len(actions) + begun != 1 or (beginning and since is not None):
        raise typer.BadParameter("give one of --since, --beginning, --message, --pause, --resume and --cancel")
    if not actions:
        body = {"from": since or "beginning", "until": until, "messageIds": message_ids or []}
        return _begin_replay(config, name, body, dry_run=dry_run, json=json)
    if dry_run or until is not None:
        option = "--dry-run" if dry_run else "--until"
        raise typer.BadParameter(f"{option} is for --since, --beginning and --message")
    return _act(
        config,
        f"sinks.{actions[0]}Replay",
        name,
        lambda replay: f"replay {replay.id} to {name} is {replay.state}, {replay.progress:.0%} done",
        json=json,
    )


def _begin_replay(config: Path | None, name: str, body: dict[str, Any], *, dry_run: bool, json: bool) -> int:
    from pydantic import ValidationError

    from receiver.api.sinks import ReplayRequest

    try:
        ReplayRequest.model_validate(body)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = str(problem["loc"][0]) if problem["loc"] else "until"
        message = problem["msg"].removeprefix("Value error, ").replace("than from", "than --since")
        raise typer.BadParameter(message, param_hint=_REPLAY_OPTIONS[field]) from None
    query = DryRunQuery(dry_run=dry_run)
    return _act(config, "sinks.replaySink", name, _replay_text, json=json, query=query, body=body)


_REPLAY_OPTIONS = {"from": "--since", "until": "--until", "messageIds": "--message"}


def _replay_text(replay: Any) -> str:
    from receiver.cli.output import time_text

    events = f"{replay.events} events, received from {time_text(replay.first_time)} on,"
    if replay.id is not None:
        return f"replay {replay.id}: {events} are published to {replay.sink} again"
    if replay.events:
        return f"{events} would be published to {replay.sink} again"
    return f"there is no event to replay to {replay.sink}"


@sinks.command("replays")
@with_query(ReplayQuery)
def list_replays(name: SinkName, query: ReplayQuery, config: Config = None, json: Json = False) -> int:
    """List the replays to a sink and the progress of each."""
    from receiver.cli.calls import show_list

    return show_list("sinks.listReplays", config, query=query, json=json, path={"name": name})


dead_letters = group("List, requeue and drop dead letters: events that a sink refused, or that expired.")

LetterIds = Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="The ids of dead letters.")]
Every = Annotated[bool, typer.Option("--all", help="All dead letters of this sink.")]


@dead_letters.command("list")
@with_query(DeadLetterQuery)
def list_dead_letters(query: DeadLetterQuery, config: Config = None, json: Json = False) -> int:
    """List dead letters, oldest first."""
    from receiver.cli.calls import show_list

    return show_list("dead_letters.listDeadLetters", config, query=query, json=json)


@dead_letters.command("requeue")
@with_query(DeadLetterFilter, leave_out=frozenset({"sink"}))
def requeue_dead_letters(
    sink: SinkName,
    query: DeadLetterFilter,
    ids: LetterIds = None,
    every: Every = False,
    dry_run: DryRun = False,
    config: Config = None,
    json: Json = False,
) -> int:
    """Publish dead letters of a sink again, with the same event ids and a new retry schedule."""
    choice = _choice(sink, query, ids or [], every=every, dry_run=dry_run)
    return _act_on_dead_letters(config, "dead_letters.requeueDeadLetters", choice, "due again", json=json)


@dead_letters.command("drop")
@with_query(DeadLetterFilter, leave_out=frozenset({"sink"}))
def drop_dead_letters(
    sink: SinkName,
    query: DeadLetterFilter,
    ids: LetterIds = None,
    every: Every = False,
    dry_run: DryRun = False,
    config: Config = None,
    json: Json = False,
) -> int:
    """Remove dead letters of a sink for good.

    They are never published to the sink. Events that were parked behind them are published.
    """
    choice = _choice(sink, query, ids or [], every=every, dry_run=dry_run)
    return _act_on_dead_letters(config, "dead_letters.dropDeadLetters", choice, "dropped", json=json)


def _choice(sink: str, query: DeadLetterFilter, ids: list[int], *, every: bool, dry_run: bool) -> DeadLetterChoice:
    """The dead letters that the arguments choose: all of a sink only with --all."""
    filters: dict[str, Any] = query.model_dump(exclude_none=True)
    if [bool(ids), every, bool(filters)].count(True) != 1:
        raise typer.BadParameter("give one of: ids; --all; or --reason, --message, --event, --since or --until")
    return parse_query(DeadLetterChoice, {**filters, "sink": sink, "ids": sorted(set(ids)), "dry_run": dry_run})


def _act_on_dead_letters(
    config: Path | None, operation: str, choice: DeadLetterChoice, result: str, *, json: bool
) -> int:
    from receiver.cli.calls import Operations, named, with_operations
    from receiver.cli.output import echo, echo_json
    from receiver.errors import Unknown

    async def work(perform: Operations) -> int:
        done = await perform(named(operation), query=choice)
        number = done.dead_letters
        while done.left:
            done = await perform(named(operation), query=choice)
            number += done.dead_letters
        if json:
            echo_json(done.model_copy(update={"dead_letters": number}))
        else:
            echo(f"{number} dead letters of {choice.sink} {'would be' if choice.dry_run else 'are'} {result}")
        if number < len(choice.ids):
            raise Unknown(f"{len(choice.ids) - number} of these ids are not dead letters of {choice.sink}")
        return 0

    return with_operations(config, work)


alerts = group("List, show, acknowledge, mute and resolve alerts.")

AlertId = Annotated[str, typer.Argument(help="The id of the alert.")]


@alerts.command("list")
@with_query(AlertQuery)
def list_alerts(query: AlertQuery, config: Config = None, json: Json = False) -> int:
    """List the alerts that fire and those that are resolved, newest first."""
    from receiver.cli.calls import show_list

    return show_list("alerts.listAlerts", config, query=query, json=json)


@alerts.command("show")
def show_alert(id: AlertId, config: Config = None, json: Json = False) -> int:  # noqa: A002
    """Show one alert with its evidence, the messages it is about, and what to do."""
    return _act_on_alert(config, "alerts.getAlert", id, json=json)


@alerts.command("acknowledge")
def acknowledge_alert(id: AlertId, config: Config = None, json: Json = False) -> int:  # noqa: A002
    """Record that somebody looks after an alert that fires."""
    return _act_on_alert(config, "alerts.acknowledgeAlert", id, json=json)


@alerts.command("resolve")
def resolve_alert(id: AlertId, config: Config = None, json: Json = False) -> int:  # noqa: A002
    """Resolve an alert of another program, which will not do it itself any more."""
    return _act_on_alert(config, "alerts.resolveAlert", id, json=json)


@alerts.command("mute")
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


@alerts.command("notifications")
def list_notifications(id: AlertId, config: Config = None, json: Json = False) -> int:  # noqa: A002
    """List who was notified of an alert, and who could not be."""
    from receiver.cli.calls import show_list
    from receiver.models.queries import Query

    return show_list("notifications.listNotifications", config, query=Query(), json=json, path={"id": id})


@alerts.command("test")
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
