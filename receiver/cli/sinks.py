"""The commands `receiver sinks`: operations of the query API, whose parameters are their options."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from receiver.cli.options import Config, DryRun, Json, SinkName, group, with_query
from receiver.models.queries import DryRunQuery, ReplayQuery, SinkQuery

app = group("List, test, pause and resume sinks; replay old events to them.")


@app.command("list")
@with_query(SinkQuery)
def list_sinks(query: SinkQuery, config: Config = None, json: Json = False) -> int:
    """List the sinks with their state, lag, retries and dead letters."""
    from receiver.cli.calls import show_list

    return show_list("sinks.listSinks", config, query=query, json=json)


@app.command("show")
def show_sink(name: SinkName, config: Config = None, json: Json = False) -> int:
    """Show the state of one sink."""
    from receiver.cli.calls import show
    from receiver.cli.output import echo_fields, sink_fields

    return show("sinks.getSink", config, {"name": name}, json=json, text=lambda sink: echo_fields(sink_fields(sink)))


@app.command("test")
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


@app.command("pause")
def pause_sink(name: SinkName, config: Config = None, json: Json = False) -> int:
    """Stop publishing to a sink within about a second. Its events wait."""
    return _act(config, "sinks.pauseSink", name, lambda _: f"{name} is paused: its events wait", json=json)


@app.command("resume")
def resume_sink(name: SinkName, config: Config = None, json: Json = False) -> int:
    """Publish to a paused sink again, from its cursor on."""
    text = f"{name} is resumed: its events are published again"
    return _act(config, "sinks.resumeSink", name, lambda _: text, json=json)


def _act(config: Path | None, operation: str, name: str, text: Callable[[Any], str], *, json: bool, **call: Any) -> int:
    """Runs an operation on one sink; `text` is the line that says what it did."""
    from receiver.cli.calls import show
    from receiver.cli.output import echo

    return show(operation, config, {"name": name}, json=json, text=lambda result: echo(text(result)), **call)


@app.command("replay")
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

    at_least = "at least " if replay.at_least else ""
    events = f"{at_least}{replay.events} events, received from {time_text(replay.first_time)} on,"
    if replay.id is not None:
        return f"replay {replay.id}: {events} are published to {replay.sink} again"
    if replay.events or replay.at_least:
        return f"{events} would be published to {replay.sink} again"
    return f"there is no event to replay to {replay.sink}"


@app.command("replays")
@with_query(ReplayQuery)
def list_replays(name: SinkName, query: ReplayQuery, config: Config = None, json: Json = False) -> int:
    """List the replays to a sink and the progress of each."""
    from receiver.cli.calls import show_list

    return show_list("sinks.listReplays", config, query=query, json=json, path={"name": name})
