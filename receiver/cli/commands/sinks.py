"""The commands `receiver sinks …`."""

from typing import Annotated

import typer

from receiver.cli.commands.options import Config, DryRun, Json, OldestFirst, Page, SinkName, Size, group
from receiver.models.sinks import ReplayAction

app = group("List, test, pause and resume sinks; replay old events to them.")


@app.command("list")
def sinks_list(size: Size = 25, page: Page = 0, config: Config = None, json: Json = False) -> int:
    """List the sinks with their state, lag, retries and dead letters."""
    from receiver.cli.sinks import list_sinks

    return list_sinks(config, {"size": size, "page": page}, json=json)


@app.command("show")
def sinks_show(name: SinkName, config: Config = None, json: Json = False) -> int:
    """Show the state of one sink."""
    from receiver.cli.sinks import show_sink

    return show_sink(config, name, json=json)


@app.command("test")
def sinks_test(name: SinkName, config: Config = None, json: Json = False) -> int:
    """Test whether a sink of the settings can be reached, without publishing to it. Exit code 1 if not."""
    from receiver.cli.sinks import test_sink

    return test_sink(config, name, json=json)


@app.command("pause")
def sinks_pause(name: SinkName, config: Config = None, json: Json = False) -> int:
    """Stop publishing to a sink within about a second. Its events wait."""
    from receiver.cli.sinks import pause_sink

    return pause_sink(config, name, paused=True, json=json)


@app.command("resume")
def sinks_resume(name: SinkName, config: Config = None, json: Json = False) -> int:
    """Publish to a paused sink again, from its cursor on."""
    from receiver.cli.sinks import pause_sink

    return pause_sink(config, name, paused=False, json=json)


@app.command("replay")
def sinks_replay(
    name: SinkName,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Replay events received from this time on, up to the cursor of the sink."),
    ] = None,
    beginning: Annotated[
        bool, typer.Option("--beginning", help="Replay all stored events, up to the cursor of the sink.")
    ] = False,
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
    from receiver.cli.sinks import act_on_replay, begin_replay

    flags: dict[ReplayAction, bool] = {"pause": pause, "resume": resume, "cancel": cancel}
    actions = [action for action, is_set in flags.items() if is_set]
    if len(actions) + beginning + (since is not None) != 1:
        raise typer.BadParameter("give one of --since, --beginning, --pause, --resume and --cancel")
    if not actions:
        return begin_replay(config, name, since=since, dry_run=dry_run, json=json)
    if dry_run:
        raise typer.BadParameter("--dry-run is for --since and --beginning")
    return act_on_replay(config, name, actions[0], json=json)


@app.command("replays")
def sinks_replays(
    name: SinkName,
    oldest_first: OldestFirst = False,
    size: Size = 25,
    page: Page = 0,
    config: Config = None,
    json: Json = False,
) -> int:
    """List the replays to a sink and the progress of each."""
    from receiver.cli.sinks import list_replays

    parameters = {"sortOrder": "asc" if oldest_first else "desc", "size": size, "page": page}
    return list_replays(config, name, parameters, json=json)
