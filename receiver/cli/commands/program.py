"""The program itself: serving, trying it out, and upkeep."""

from pathlib import Path
from typing import Annotated

import typer

from receiver.cli.commands.options import ApiVersion, Config, Json, group

app = group("Receives Bandwidth's message callbacks and tells what became of each message.")


def _tell_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"receiver {version('bandwidth-receiver')}")
        raise typer.Exit


@app.callback()
def receiver(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="Tell the version.")
    ] = False,
) -> None:
    # what belongs to no command; without a docstring, which would take the place of the program's help
    return


@app.command()
def serve(
    config: Config = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="The port to listen on; 0: any.")] = None,
) -> int:
    """Take callbacks in, until told to stop. Without any settings: on 127.0.0.1:8080, with SQLite."""
    from receiver.cli.serve import serve

    return serve(config, host=host, port=port)


@app.command()
def work(
    config: Config = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Serve /metrics and /healthz of the worker there.")
    ] = None,
) -> int:
    """Run a worker by itself: process callbacks, publish, prune.

    Until told to stop, beside web processes that have RECEIVER_WORKER=none; on as many machines as you like with
    PostgreSQL, on one with SQLite. SIGHUP has it read its settings again.
    """
    from receiver.cli.work import work

    return work(config, metrics=metrics)


@app.command()
def status(config: Config = None, json: Json = False) -> int:
    """Show how the installation is doing, by its database.

    Journal, processor, sinks, database, a line each, then what is wrong. Exit code 1 if something is.
    """
    from receiver.cli.status import status

    return status(config, json=json)


@app.command()
def backup(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The directory to make; it must not be there yet.")],
    config: Config = None,
    json: Json = False,
) -> int:
    """Back up both files of SQLite, beside a running server."""
    from receiver.cli.maintenance import backup

    return backup(config, folder, json=json)


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A directory that `receiver backup` made.")],
    config: Config = None,
    json: Json = False,
) -> int:
    """Put a backup in the place of the database, while no server runs.

    The files that it replaces are kept beside it under another name.
    """
    from receiver.cli.maintenance import restore

    return restore(config, folder, json=json)


@app.command()
def sandbox(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0: any.")] = 8090,
    outbound_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where the statuses of v2 messages are posted.")
    ] = None,
    inbound_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where inbound v2 messages are posted; else the outbound URL.")
    ] = None,
    v1_inbound_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where inbound v1 messages are told; may hold user and password.")
    ] = None,
    callback_credentials: Annotated[
        str | None,
        typer.Option(
            metavar="USER:PASSWORD",
            envvar="SANDBOX_CALLBACK_CREDENTIALS",
            help="For a v2 URL that asks for them.",
        ),
    ] = None,
    credentials: Annotated[
        list[str] | None,
        typer.Option(metavar="TOKEN:SECRET", help="Who may send; may be repeated; else token:secret."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="What every choice follows from; else 1.")] = None,
    speed: Annotated[float | None, typer.Option(help="What every delay is divided by; else 1.")] = None,
    rate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SHARE",
            help="How often something goes wrong, 0 to 1; may be repeated. Names: failed, unconfirmed, duplicate, "
            "reorder, delay, late, missing, silent, contradict, unknownType, batch.",
        ),
    ] = None,
    no_rate_limit: Annotated[
        bool, typer.Option("--no-rate-limit", help="More than one v1 message a second from a number.")
    ] = False,
    remote_callbacks: Annotated[
        bool, typer.Option("--remote-callbacks", help="Call back to other machines too, not to this one alone.")
    ] = False,
) -> int:
    """Play Bandwidth: take messages, call back, send nothing.

    It takes them by both generations of Bandwidth's API and calls back as Bandwidth does.
    """
    from receiver.cli.sandbox import sandbox

    asked = {
        "outbound_url": outbound_url,
        "inbound_url": inbound_url,
        "v1_inbound_url": v1_inbound_url,
        "callback_credentials": callback_credentials,
        "credentials": credentials or None,
        "seed": seed,
        "speed": speed,
        "messages_per_second": 0 if no_rate_limit else None,
        "remote_callbacks": remote_callbacks,
    }
    return sandbox(asked, rates=rate or [], host=host, port=port)


@app.command()
def demo(
    data_dir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to keep the data; else a folder that goes at the end.")
    ] = None,
    per_second: Annotated[float, typer.Option(min=0.01, max=200, help="Messages a second.")] = 2,
    messages: Annotated[int | None, typer.Option(min=1, help="End after so many messages.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="End after so many seconds.")] = None,
    seed: Annotated[int, typer.Option(help="What every choice follows from.")] = 1,
    speed: Annotated[float, typer.Option(min=0.01, max=1e6, help="What the delays of callbacks are divided by.")] = 1,
) -> int:
    """See it work: a receiver, a sandbox, and a stream of messages.

    On free ports of this machine, in a folder of its own, until Ctrl-C; the settings of a real receiver play no part.
    """
    from receiver.cli.demo import demo

    return demo(data_dir, per_second=per_second, messages=messages, seconds=seconds, seed=seed, speed=speed)


@app.command()
def migrate(
    config: Config = None,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail if there is something to do.")] = False,
    new_journal: Annotated[
        bool, typer.Option("--new-journal", help="SQLite: go on without the callbacks.db that was lost or is too old.")
    ] = False,
    json: Json = False,
) -> int:
    """Bring the database's schema up to date. `serve` does it by itself with SQLite, never with PostgreSQL."""
    from receiver.cli.maintenance import migrate

    if check and new_journal:
        raise typer.BadParameter("--new-journal changes the database, --check does not")
    return migrate(config, check=check, new_journal=new_journal, json=json)


@app.command()
def check(config: Config = None, json: Json = False) -> int:
    """Tell whether `serve` would start.

    Settings, sinks, credentials, database and schema, a line each.
    """
    from receiver.cli.check import check

    return check(config, json=json)


@app.command()
def rebuild(
    config: Config = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing, tell what differs.")] = False,
    json: Json = False,
) -> int:
    """Make the status of all messages anew from their events.

    By today's settings; `serve` may go on beside it.
    """
    from receiver.cli.maintenance import rebuild

    return rebuild(config, dry_run=dry_run, json=json)


@app.command()
def prune(
    config: Config = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing, count.")] = False,
    json: Json = False,
) -> int:
    """Forget now what is older than the settings keep.

    `serve` does it once an hour.
    """
    from receiver.cli.maintenance import prune

    return prune(config, dry_run=dry_run, json=json)


@app.command()
def codes(
    code: Annotated[int | None, typer.Argument(metavar="[CODE]", help="One code; else all.")] = None,
    api: ApiVersion = None,
    config: Annotated[Path | None, typer.Option(hidden=True)] = None,
    json: Json = False,
) -> int:
    """Tell what Bandwidth's delivery codes mean."""
    from receiver.cli.codes import codes

    return codes(code, api=api, json=json)


@app.command("help")
def help_(
    topic: Annotated[
        list[str] | None, typer.Argument(metavar="[TOPIC]", help="A topic, its section, or a command; else all topics.")
    ] = None,
    search: Annotated[
        str | None, typer.Option(metavar="WORDS", help="List the sections with these words, the best first.")
    ] = None,
) -> int:
    """Print the documentation: the list of topics, one topic, or one section of it."""
    from receiver.cli.help import help_

    return help_(topic or [], search=search)
