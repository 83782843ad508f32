"""The commands, their options and their help. What each does is imported when it is called: `--help` must be quick."""

from pathlib import Path
from typing import Annotated

import typer

from receiver.domain.events import Api, Direction, Quarantine, TagVerdict
from receiver.domain.publication import Death
from receiver.domain.queries import ReplayAction


def _group(help: str) -> typer.Typer:  # noqa: A002
    # rich would cost more to import than all the rest
    return typer.Typer(help=help, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


app = _group("Receives Bandwidth's message callbacks and tells what became of each message.")
tag = _group("Sign and check the tags of messages.")
messages = _group("Look at messages.")
callbacks = _group("Look at the raw ledger of callbacks, read it again, copy it.")
sinks = _group("See how the sinks are doing, try them, pause them, give them old events again.")
dead_letters = _group("Look at events that a sink did not take; make them due again, or drop them.")
app.add_typer(tag, name="tag")
app.add_typer(messages, name="messages")
app.add_typer(callbacks, name="callbacks")
app.add_typer(sinks, name="sinks")
app.add_typer(dead_letters, name="dead-letters")

Config = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Settings as TOML; else RECEIVER_CONFIG, else ./receiver.toml.")
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
Size = Annotated[int, typer.Option(min=1, max=1000, help="How many on a page.")]
Page = Annotated[int, typer.Option(min=0, help="Which page, from 0.")]
OldestFirst = Annotated[bool, typer.Option("--oldest-first", help="Else the newest come first.")]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="From this time on: yyyy-MM-dd hh:mm:ss or RFC 3339.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Before this time.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing, count.")]
SinkName = Annotated[str, typer.Argument(metavar="SINK", help="The sink's name.")]
MessageId = Annotated[str | None, typer.Option("--message", metavar="ID", help="Of this message alone.")]
EventId = Annotated[str | None, typer.Option("--event", metavar="ID", help="Of this event alone.")]
DeathReason = Annotated[Death | None, typer.Option("--reason", help="Refused by the sink, or tried for too long.")]
DiedSince = Annotated[str | None, typer.Option("--since", metavar="TIME", help="Those that died from this time on.")]
DiedUntil = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Those that died before this time.")]
LetterIds = Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="Which ones.")]
Every = Annotated[bool, typer.Option("--all", help="All of this sink.")]
Outcome = Annotated[str | None, typer.Option(metavar="OUTCOME", help="accepted or quarantined.")]
Reason = Annotated[Quarantine | None, typer.Option(help="Why it was quarantined.")]
Generation = Annotated[Api | None, typer.Option("--api", help="The generation of Bandwidth's API.")]
Sender = Annotated[str | None, typer.Option("--from", metavar="NUMBER", help="The sender's number.")]
Recipients = Annotated[
    list[str] | None, typer.Option("--to", metavar="NUMBER", help="A recipient's number; may be repeated.")
]


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
    json: Json = False,
) -> int:
    """Bring the database's schema up to date. `serve` does it by itself with SQLite, never with PostgreSQL."""
    from receiver.cli.upkeep import migrate

    return migrate(config, check=check, json=json)


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
    from receiver.cli.upkeep import rebuild

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
    from receiver.cli.upkeep import prune

    return prune(config, dry_run=dry_run, json=json)


@app.command()
def codes(
    code: Annotated[int | None, typer.Argument(metavar="[CODE]", help="One code; else all.")] = None,
    api: Generation = None,
    config: Annotated[Path | None, typer.Option(hidden=True)] = None,
    json: Json = False,
) -> int:
    """Tell what Bandwidth's delivery codes mean."""
    from receiver.cli.codes import codes

    return codes(code, api=api, json=json)


@tag.command("sign")
def tag_sign(
    value: Annotated[str, typer.Argument(help="What the tag shall say.")],
    sender: Sender = None,
    to: Recipients = None,
    kid: Annotated[str | None, typer.Option(help="The id of the key; else the first one.")] = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Sign a tag. With --from or --to it is worthless for a message with other numbers."""
    from receiver.cli.tag import sign

    return sign(config, value, sender=sender, recipients=to, kid=kid, json=json)


@tag.command("verify")
def tag_verify(
    tag: Annotated[str, typer.Argument(help="The whole tag, signature included.")],
    sender: Sender = None,
    to: Recipients = None,
    kid: Annotated[str | None, typer.Option(help="The id of the only key to accept; else all are.")] = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Check a tag.

    As an event with these numbers is checked; exit code 1 if it is not valid.
    """
    from receiver.cli.tag import verify

    return verify(config, tag, sender=sender, recipients=to, kid=kid, json=json)


@messages.command("list")
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


@messages.command("show")
def messages_show(
    id: Annotated[str, typer.Argument(help="The message's id.")],  # noqa: A002
    api: Generation = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Show one message with its recipients and events."""
    from receiver.cli.messages import show_message

    return show_message(config, id, api=api, json=json)


@messages.command("attempts")
def messages_attempts(
    id: Annotated[str, typer.Argument(help="The message's id.")],  # noqa: A002
    sink: Annotated[str | None, typer.Option(help="To this sink alone.")] = None,
    api: Generation = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Tell what the sinks were told about one message.

    When, how long it took, what they said, and what was decided.
    """
    from receiver.cli.messages import list_attempts

    return list_attempts(config, id, api=api, sink=sink, json=json)


@callbacks.command("list")
def callbacks_list(
    outcome: Outcome = None,
    reason: Reason = None,
    oldest_first: OldestFirst = False,
    size: Size = 25,
    page: Page = 0,
    config: Config = None,
    json: Json = False,
) -> int:
    """List the callbacks that are kept."""
    from receiver.cli.callbacks import list_callbacks

    order = "asc" if oldest_first else "desc"
    asked = {"outcome": outcome, "reason": reason, "sortOrder": order, "size": size, "page": page}
    return list_callbacks(config, asked, json=json)


@callbacks.command("show")
def callbacks_show(
    id: Annotated[str, typer.Argument(help="The callback's id.")],  # noqa: A002
    config: Config = None,
    json: Json = False,
) -> int:
    """Show one callback as it came, without secrets."""
    from receiver.cli.callbacks import show_callback

    return show_callback(config, id, json=json)


@callbacks.command("reread")
def callbacks_reread(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="The callbacks' ids.")] = None,
    outcome: Outcome = None,
    reason: Reason = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Read kept callbacks again.

    With today's code and keys: those with these ids, or all with an outcome or reason.
    """
    from receiver.cli.callbacks import reread_callbacks

    return reread_callbacks(config, ids or [], outcome=outcome, reason=reason, json=json)


@callbacks.command("export")
def callbacks_export(
    since: Since = None,
    until: Until = None,
    outcome: Outcome = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Else standard output.")] = None,
    config: Config = None,
    json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
) -> int:
    """Write kept callbacks as lines of JSON.

    Oldest first, for `callbacks import`. They hold what the messages said.
    """
    from receiver.cli.callbacks import export_callbacks

    return export_callbacks(config, since=since, until=until, outcome=outcome, output=output)


@callbacks.command("import")
def callbacks_import(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What `callbacks export` wrote; -: standard input.")],
    config: Config = None,
    json: Json = False,
) -> int:
    """Take in callbacks that another receiver kept.

    With their ids and times; copies only count.
    """
    from receiver.cli.callbacks import import_callbacks

    return import_callbacks(config, file, json=json)


@sinks.command("list")
def sinks_list(size: Size = 25, page: Page = 0, config: Config = None, json: Json = False) -> int:
    """List the sinks, with what each still has before it."""
    from receiver.cli.sinks import list_sinks

    return list_sinks(config, {"size": size, "page": page}, json=json)


@sinks.command("show")
def sinks_show(name: SinkName, config: Config = None, json: Json = False) -> int:
    """Show how one sink is doing."""
    from receiver.cli.sinks import show_sink

    return show_sink(config, name, json=json)


@sinks.command("test")
def sinks_test(name: SinkName, config: Config = None, json: Json = False) -> int:
    """Tell whether a sink can be reached from here.

    By the settings; it is given nothing. Exit code 1 if not.
    """
    from receiver.cli.sinks import test_sink

    return test_sink(config, name, json=json)


@sinks.command("pause")
def sinks_pause(name: SinkName, config: Config = None, json: Json = False) -> int:
    """Have nothing more published to a sink.

    Within a second or so; what comes meanwhile waits.
    """
    from receiver.cli.sinks import pause_sink

    return pause_sink(config, name, paused=True, json=json)


@sinks.command("resume")
def sinks_resume(name: SinkName, config: Config = None, json: Json = False) -> int:
    """Have events published to a sink again, from where it was."""
    from receiver.cli.sinks import pause_sink

    return pause_sink(config, name, paused=False, json=json)


@sinks.command("replay")
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


@sinks.command("replays")
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


@dead_letters.command("list")
def dead_letters_list(
    sink: Annotated[str | None, typer.Option(help="Of this sink alone.")] = None,
    reason: DeathReason = None,
    message: MessageId = None,
    event: EventId = None,
    since: DiedSince = None,
    until: DiedUntil = None,
    after: Annotated[int, typer.Option(min=0, metavar="ID", help="Those that died after this one.")] = 0,
    size: Size = 25,
    page: Page = 0,
    config: Config = None,
    json: Json = False,
) -> int:
    """List dead letters in the order in which they died."""
    from receiver.cli.dead_letters import list_dead_letters

    narrowed = _narrowed(sink, reason, message, event, since, until)
    return list_dead_letters(config, {**narrowed, "cursor": after, "size": size, "page": page}, json=json)


@dead_letters.command("requeue")
def dead_letters_requeue(
    sink: SinkName,
    ids: LetterIds = None,
    every: Every = False,
    reason: DeathReason = None,
    message: MessageId = None,
    event: EventId = None,
    since: DiedSince = None,
    until: DiedUntil = None,
    dry_run: DryRun = False,
    config: Config = None,
    json: Json = False,
) -> int:
    """Make dead letters of a sink due again.

    With a fresh schedule and the same event ids.
    """
    from receiver.cli.dead_letters import requeue_dead_letters

    narrowed = _narrowed(sink, reason, message, event, since, until)
    return requeue_dead_letters(config, narrowed, ids or [], every=every, dry_run=dry_run, json=json)


@dead_letters.command("drop")
def dead_letters_drop(
    sink: SinkName,
    ids: LetterIds = None,
    every: Every = False,
    reason: DeathReason = None,
    message: MessageId = None,
    event: EventId = None,
    since: DiedSince = None,
    until: DiedUntil = None,
    dry_run: DryRun = False,
    config: Config = None,
    json: Json = False,
) -> int:
    """Give dead letters of a sink up for good.

    The sink is never given them; later events of a message that one of them held up go on.
    """
    from receiver.cli.dead_letters import drop_dead_letters

    narrowed = _narrowed(sink, reason, message, event, since, until)
    return drop_dead_letters(config, narrowed, ids or [], every=every, dry_run=dry_run, json=json)


def _narrowed(
    sink: str | None, reason: Death | None, message: str | None, event: str | None, since: str | None, until: str | None
) -> dict[str, object]:
    """The options that choose dead letters, as parameters of the query API."""
    return {
        "sink": sink,
        "reason": reason,
        "messageId": message,
        "eventId": event,
        "fromDateTime": since,
        "toDateTime": until,
    }
