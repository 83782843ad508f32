"""The program: its own commands, and the groups of commands.

A command imports its code when it runs, so that `--help` is fast.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from receiver.cli import alerts, callbacks, dead_letters, events, messages, sinks, tags
from receiver.cli.options import Config, Json, group, with_query, with_settings
from receiver.models.queries import CodeQuery, StreamQuery
from receiver.models.statistics_query import StatisticsQuery
from receiver.sandbox.settings import VARIABLES, SandboxSettings

app = group("Receives Bandwidth's message callbacks and shows the status of every message.")


def _echo_version(is_set: bool) -> None:
    if is_set:
        from importlib.metadata import version

        typer.echo(f"receiver {version('bandwidth-receiver')}")
        raise typer.Exit


@app.callback()
def receiver(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_echo_version, help="Print the version.")
    ] = False,
) -> None:
    # The options of the program itself. A docstring here would replace the help of the program.
    return


@app.command()
def serve(
    config: Config = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free port.")
    ] = None,
) -> int:
    """Accept and process callbacks until SIGTERM or Ctrl-C. Without settings on 127.0.0.1:8080 with SQLite."""
    from receiver.cli.serve import serve

    return serve(config, host=host, port=port)


@app.command()
def work(
    config: Config = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The address for /metrics and /healthz of this worker.")
    ] = None,
) -> int:
    """Run a separate worker until SIGTERM or Ctrl-C: process callbacks, publish events, remove old data.

    Its web processes have RECEIVER_WORKER=none. With PostgreSQL workers run on any number of machines, with SQLite on
    one. On SIGHUP it reads its settings again.
    """
    from receiver.cli.work import work

    return work(config, metrics=metrics)


@app.command()
def status(config: Config = None, json: Json = False) -> int:
    """Show the state of the installation: journal, processor, sinks, database, problems.

    It reads the database and needs no server. Exit code 1 if there is a problem.
    """
    from receiver.cli.status import status

    return status(config, json=json)


@app.command()
def backup(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The directory to create; it must not exist yet.")],
    config: Config = None,
    json: Json = False,
) -> int:
    """Back up both SQLite files, also while a server runs."""
    from receiver.cli.maintenance import backup

    return backup(config, folder, json=json)


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A directory that `receiver backup` created.")],
    config: Config = None,
    json: Json = False,
) -> int:
    """Restore both SQLite files from a backup, while no server runs.

    The replaced files stay beside them under another name.
    """
    from receiver.cli.maintenance import restore

    return restore(config, folder, json=json)


@app.command()
@with_settings(SandboxSettings, prefix=VARIABLES)
def sandbox(
    settings: dict[str, Any],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free port.")] = 8090,
    no_rate_limit: Annotated[bool, typer.Option("--no-rate-limit", help="Short for --messages-per-second 0.")] = False,
) -> int:
    """Simulate Bandwidth: accept messages through v1 and v2 of its API, post callbacks, send nothing."""
    from receiver.cli.sandbox import sandbox

    return sandbox({**settings, "messages_per_second": "0"} if no_rate_limit else settings, host=host, port=port)


@app.command()
def demo(
    data_dir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The folder for the data; default: a temporary folder.")
    ] = None,
    per_second: Annotated[float, typer.Option(min=0.01, max=200, help="Messages per second.")] = 2,
    messages: Annotated[int | None, typer.Option(min=1, help="Stop after this number of messages.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Stop after this number of seconds.")] = None,
    seed: Annotated[int, typer.Option(help="The random seed.")] = 1,
    speed: Annotated[float, typer.Option(min=0.01, max=1e6, help="The divisor of the delays of callbacks.")] = 1,
) -> int:
    """Run a demo: a receiver, a sandbox and a stream of messages, until Ctrl-C.

    It uses free ports of this machine and a folder of its own, and ignores the settings of a real receiver.
    """
    from receiver.cli.demo import demo

    return demo(data_dir, per_second=per_second, messages=messages, seconds=seconds, seed=seed, speed=speed)


@app.command()
def migrate(
    config: Config = None,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit code 1 if the schema is not up to date.")
    ] = False,
    new_journal: Annotated[
        bool,
        typer.Option(
            "--new-journal",
            help="SQLite: continue with an empty journal after callbacks.db was lost, or is older than receiver.db.",
        ),
    ] = False,
    json: Json = False,
) -> int:
    """Upgrade the schema of the database. With SQLite `serve` does it at its start, with PostgreSQL never."""
    from receiver.cli.maintenance import migrate

    if check and new_journal:
        raise typer.BadParameter("--new-journal changes the database, --check does not")
    return migrate(config, check=check, new_journal=new_journal, json=json)


@app.command()
def check(config: Config = None, json: Json = False) -> int:
    """Check whether `serve` would start: settings, sinks, credentials, address, database and schema."""
    from receiver.cli.check import check

    return check(config, json=json)


@app.command()
def settings(config: Config = None, json: Json = False) -> int:
    """Show every setting that holds, without its secrets, and the variable or file that it comes from."""
    from receiver.cli.check import show_settings

    return show_settings(config, json=json)


@app.command()
def rebuild(
    config: Config = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing, only count the rows that differ.")
    ] = False,
    json: Json = False,
) -> int:
    """Compute the status of all messages again from their events, with today's settings.

    `serve` may run meanwhile.
    """
    from receiver.cli.maintenance import rebuild

    return rebuild(config, dry_run=dry_run, json=json)


@app.command()
def prune(
    config: Config = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing, only count.")] = False,
    json: Json = False,
) -> int:
    """Remove data that is older than the retention settings. A worker does it once an hour."""
    from receiver.cli.maintenance import prune

    return prune(config, dry_run=dry_run, json=json)


@app.command()
@with_query(StreamQuery)
def listen(
    query: StreamQuery,
    forward: Annotated[str, typer.Option("--forward", metavar="URL", help="The URL that events are posted to.")],
    url: events.Url = None,
    token: events.Token = None,
    secret: Annotated[
        str | None,
        typer.Option(
            metavar="SECRET", help="What posts are signed with; also env:NAME or file:PATH; default: a new secret."
        ),
    ] = None,
    after: events.After = None,
    count: events.Count = None,
    config: Config = None,
) -> int:
    """Post events of a server to a program on this machine, signed as a webhook, until Ctrl-C. No sink is needed.

    Without --url the server is the one that runs here. Each event is posted once; the line of each has the answer.
    """
    from receiver.cli.live import listen

    chosen = query.model_copy(update={"after": after})
    return listen(config, chosen, forward=forward, url=url, token=token, secret=secret, count=count)


@app.command()
@with_query(CodeQuery, leave_out=frozenset({"code", "page", "size"}))
def codes(
    query: CodeQuery,
    code: Annotated[str | None, typer.Argument(metavar="[CODE]", help="A delivery code; default: all codes.")] = None,
    config: Annotated[Path | None, typer.Option(hidden=True)] = None,
    json: Json = False,
) -> int:
    """Show the meaning of Bandwidth's delivery codes."""
    from receiver.cli.calls import codes

    return codes(config, query, code=code, json=json)


@app.command()
@with_query(StatisticsQuery)
def stats(
    query: StatisticsQuery,
    csv: Annotated[bool, typer.Option("--csv", help="Write CSV.")] = False,
    config: Config = None,
    json: Json = False,
) -> int:
    """Count deliveries: how many were delivered, failed or wait, and how long delivery took. Default: of 30 days."""
    from receiver.cli.calls import show_statistics

    if csv and json:
        raise typer.BadParameter("give either --csv or --json, not both")
    return show_statistics(config, query, json=json, csv=csv)


@app.command("help")
def help_(
    topic: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TOPIC]", help="A topic, a topic and its section, or a command; default: the list of topics."
        ),
    ] = None,
    search: Annotated[
        str | None, typer.Option(metavar="WORDS", help="List the sections that contain these words, best match first.")
    ] = None,
) -> int:
    """Print the documentation: the list of topics, one topic, or one section of it."""
    from receiver.cli.help import help_

    return help_(topic or [], search=search)


app.add_typer(tags.app, name="tag")
app.add_typer(messages.app, name="messages")
app.add_typer(callbacks.app, name="callbacks")
app.add_typer(events.app, name="events")
app.add_typer(sinks.app, name="sinks")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(alerts.app, name="alerts")
