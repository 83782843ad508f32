"""`receiver sinks list`, `show`, `test`, `pause`, `resume`, `replay` and `replays`."""

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from receiver.api.parameters import ReplayParameters, SinkParameters
from receiver.api.representations import Replay, ReplayResponse, Sink, SinkTest
from receiver.cli import options
from receiver.cli.context import read_settings, with_database
from receiver.cli.output import echo, echo_error, echo_fields, echo_json, echo_page
from receiver.clock import now
from receiver.domain.cloudevents import rfc3339
from receiver.domain.queries import ReplayAction, ReplayView, SinkView
from receiver.errors import Unknown
from receiver.settings import Settings
from receiver.sinks.registry import probe_sink
from receiver.storage import replays, sinks
from receiver.storage.database import Database
from receiver.storage.replays import Since


def list_sinks(config: Path | None, parameters: Mapping[str, Any], *, json: bool) -> int:
    query = options.parse(SinkParameters, parameters)

    async def work(settings: Settings, database: Database) -> int:
        page = await sinks.find(
            database, _types(settings), now=now(), order=query.sort_order, skip=query.skip, size=query.size
        )
        echo_page(page, _HEADINGS, _row, model=Sink, json=json, number=query.page)
        return 0

    return with_database(config, work)


_HEADINGS = ("NAME", "TYPE", "STATE", "LAG", "OLDEST", "RETRIES", "DEAD LETTERS", "LAST SUCCESS", "LAST ERROR")


def _row(view: SinkView) -> tuple[object, ...]:
    waiting, dead = sum(view.retries.values()), sum(view.dead_letters.values())
    oldest, success = _age(view.oldest_seconds), _time(view.last_success_at)
    return view.name, view.type, view.state, view.lag, oldest, waiting, dead, success, view.last_error


def show_sink(config: Path | None, name: str, *, json: bool) -> int:
    async def work(settings: Settings, database: Database) -> int:
        view = await sinks.one(database, name, _types(settings), now=now())
        if json:
            echo_json(Sink.model_validate(view))
        else:
            echo_fields(_fields(view))
        return 0

    return with_database(config, work)


def _fields(view: SinkView) -> list[tuple[str, object]]:
    replay = view.replay
    return [
        ("name", view.name),
        ("type", view.type),
        ("state", view.state),
        ("cursor", view.cursor),
        ("lag", f"{view.lag} events"),
        ("oldest", _age(view.oldest_seconds)),
        ("retries", _counts(view.retries)),
        ("dead letters", _counts(view.dead_letters)),
        ("failures in a row", view.failures),
        ("down since", _time(view.down_since_at)),
        ("last success", _time(view.last_success_at)),
        ("last error", view.last_error),
        ("lease until", _time(view.lease_until)),
        ("replay", f"{replay.id}, {replay.state}, {replay.progress:.0%} done" if replay is not None else None),
    ]


def test_sink(config: Path | None, name: str, *, json: bool) -> int:
    tables = _tables(read_settings(config))
    if name not in tables:
        raise Unknown(f"the settings have no sink {name}")
    result = asyncio.run(probe_sink(tables[name]))
    if json:
        echo_json(SinkTest.model_validate(result))
    elif result.error is None:
        echo(f"{name} can be reached ({result.seconds:.2f} s)")
    else:
        echo_error(f"{name} cannot be reached: {result.error}")
    return 0 if result.ok else 1


def pause_sink(config: Path | None, name: str, *, paused: bool, json: bool) -> int:
    async def work(settings: Settings, database: Database) -> int:
        await sinks.pause(database, name, paused=paused)
        if json:
            echo_json(Sink.model_validate(await sinks.one(database, name, _types(settings), now=now())))
        else:
            echo(
                f"{name} is paused: its events wait" if paused else f"{name} is resumed: its events are published again"
            )
        return 0

    return with_database(config, work)


def begin_replay(config: Path | None, name: str, *, since: str | None, dry_run: bool, json: bool) -> int:
    start: Since = options.time(since, "--since") or "beginning"

    async def work(_: Settings, database: Database) -> int:
        if dry_run:
            started, log_range = None, await replays.log_range(database, name, start)
        else:
            started, log_range = await replays.begin(database, name, start, now=now())
        if json:
            echo_json(ReplayResponse.of(name, started, log_range, dry_run=dry_run))
            return 0
        events = f"{log_range.events} events, received from {_time(log_range.first_at)} on,"
        if started is not None:
            echo(f"replay {started.id}: {events} are published to {name} again")
        else:
            echo(
                f"{events} would be published to {name} again"
                if log_range.events
                else f"there is no event to replay to {name}"
            )
        return 0

    return with_database(config, work)


def act_on_replay(config: Path | None, name: str, action: ReplayAction, *, json: bool) -> int:
    async def work(_: Settings, database: Database) -> int:
        replay = await replays.act(database, name, action, now=now())
        if json:
            echo_json(Replay.model_validate(replay))
        else:
            echo(f"replay {replay.id} to {name} is {replay.state}, {replay.progress:.0%} done")
        return 0

    return with_database(config, work)


def list_replays(config: Path | None, name: str, parameters: Mapping[str, Any], *, json: bool) -> int:
    query = options.parse(ReplayParameters, parameters)

    async def work(_: Settings, database: Database) -> int:
        async with database.reading() as connection:
            await sinks.row_of(connection, name)
            page = await replays.find(
                connection, name, order=query.sort_order, after=None, skip=query.skip, size=query.size
            )
        echo_page(page, _REPLAY_HEADINGS, _replay_row, model=Replay, json=json, number=query.page)
        return 0

    return with_database(config, work)


_REPLAY_HEADINGS = ("ID", "REQUESTED", "STATE", "DONE", "PUBLISHED", "DEAD LETTERS", "ENDED")


def _replay_row(view: ReplayView) -> tuple[object, ...]:
    done = f"{view.progress:.0%}"
    return view.id, _time(view.requested_at), view.state, done, view.published, view.dead_letters, _time(view.ended_at)


def _tables(settings: Settings) -> dict[str, dict[str, Any]]:
    return {str(table.get("name")): table for table in settings.sinks}


def _types(settings: Settings) -> dict[str, str]:
    return {name: str(table.get("type")) for name, table in _tables(settings).items()}


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items())) or "none"


def _age(seconds: float | None) -> str | None:
    return str(timedelta(seconds=round(seconds))) if seconds is not None else None


def _time(moment: datetime | None) -> str | None:
    return rfc3339(moment.replace(microsecond=0)) if moment is not None else None
