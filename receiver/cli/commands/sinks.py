"""Operating the sinks."""

from typing import Annotated

import typer

from receiver.cli.commands.options import Config, DryRun, Json, OldestFirst, Page, SinkName, Size, group
from receiver.domain.queries import ReplayAction

app = group("See how the sinks are doing, try them, pause them, give them old events again.")


@app.command("list")
def sinks_list(size: Size = 25, page: Page = 0, config: Config = None, json: Json = False) -> int:
    """List the sinks, with what each still has before it."""
    from receiver.cli.sinks import list_sinks

    return list_sinks(config, {"size": size, "page": page}, json=json)


@app.command("show")
def sinks_show(name: SinkName, config: Config = None, json: Json = False) -> int:
    """Show how one sink is doing."""
    from receiver.cli.sinks import show_sink

    return show_sink(config, name, json=json)


@app.command("test")
def sinks_test(name: SinkName, config: Config = None, json: Json = False) -> int:
    """Tell whether a sink can be reached from here.

    By the settings; it is given nothing. Exit code 1 if not.
    """
    from receiver.cli.sinks import test_sink

    return test_sink(config, name, json=json)


@app.command("pause")
def sinks_pause(name: SinkName, config: Config = None, json: Json = False) -> int:
    """Have nothing more published to a sink.

    Within a second or so; what comes meanwhile waits.
    """
    from receiver.cli.sinks import pause_sink

    return pause_sink(config, name, paused=True, json=json)


@app.command("resume")
def sinks_resume(name: SinkName, config: Config = None, json: Json = False) -> int:
    """Have events published to a sink again, from where it was."""
    from receiver.cli.sinks import pause_sink

    return pause_sink(config, name, paused=False, json=json)


@app.command("replay")
def sinks_replay(
    name: SinkName,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Events received from this time on, up to where the sink is.")
    ] = None,
    beginning: Annotated[bool, typer.Option("--beginning", help="All events that are kept.")] = False,
    pause: Annotated[bool, typer.Option("--pause", help="Have the replay that is open wait.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Have it go on.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="End it for good.")] = False,
    dry_run: DryRun = False,
    config: Config = None,
    json: Json = False,
) -> int:
    """Give a sink old events again.

    With the same ids, beside those that are new; or pause, resume or cancel that.
    """
    from receiver.cli.sinks import act_on_replay, begin_replay

    asked: dict[ReplayAction, bool] = {"pause": pause, "resume": resume, "cancel": cancel}
    actions = [action for action in asked if asked[action]]
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
    """List the replays to a sink, and how far each has got."""
    from receiver.cli.sinks import list_replays

    asked = {"sortOrder": "asc" if oldest_first else "desc", "size": size, "page": page}
    return list_replays(config, name, asked, json=json)
