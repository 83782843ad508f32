"""`receiver callbacks list`, `show`, `reread`, `export` and `import`."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import typer

from receiver.cli import asking
from receiver.cli.opening import intake_for, with_database
from receiver.cli.output import complain, say, say_fields, say_json, say_page, write
from receiver.domain.cloudevents import rfc3339
from receiver.domain.queries import CallbackView
from receiver.errors import ReceiverError
from receiver.reread import reread_ids, reread_selected
from receiver.settings import Settings
from receiver.storage import ledger
from receiver.storage.database import Database
from receiver.storage.kept import Selection
from receiver.transfer import Imported, exported, import_lines
from receiver.web.parameters import CallbackParameters
from receiver.web.representations import Callback, CallbackSummary


def list_callbacks(config: Path | None, asked: Mapping[str, Any], *, json: bool) -> int:
    query = asking.read(CallbackParameters, asked).query()

    async def work(_: Settings, database: Database) -> int:
        page = await ledger.find(database, query)
        say_page(page, _HEADINGS, _row, model=CallbackSummary, json=json, number=asked["page"])
        return 0

    return with_database(config, work)


_HEADINGS = ("ID", "RECEIVED", "API", "ROUTE", "OUTCOME", "REASON", "EVENTS", "DUPLICATES")


def _row(view: CallbackView) -> tuple[object, ...]:
    received = rfc3339(view.received_at)
    return view.id, received, view.api, view.route, view.outcome, view.reason, view.events, view.duplicates


def show_callback(config: Path | None, callback_id: str, *, json: bool) -> int:
    async def work(_: Settings, database: Database) -> int:
        whole = await ledger.one(database, callback_id)
        if whole is None:
            raise ReceiverError(f"there is no callback {callback_id}, or it is no longer kept")
        callback = Callback.model_validate(whole)
        if json:
            say_json(callback)
        else:
            _say(callback)
        return 0

    return with_database(config, work)


def _say(callback: Callback) -> None:
    told = callback.model_dump(mode="json", by_alias=True, exclude={"headers", "problems"})
    body, encoding = told.pop("body"), told.pop("bodyEncoding")
    say_fields(told.items())
    say("", "headers")
    say_fields(sorted(callback.headers.items()), indent="  ")
    for problem in callback.problems:
        say("", f"element {problem.index}: {problem.reason} {problem.detail}")
    say("", f"body ({encoding})", *body.splitlines())


def reread_callbacks(
    config: Path | None, ids: Sequence[str], *, outcome: str | None, reason: str | None, json: bool
) -> int:
    _refuse_outcome(outcome)
    if bool(ids) == bool(outcome or reason):
        raise typer.BadParameter("give either ids, or --outcome or --reason")

    async def work(settings: Settings, database: Database) -> int:
        async with intake_for(settings, database) as intake:
            if ids:
                done = await reread_ids(database, intake, ids)
            else:
                done = await reread_selected(database, intake, Selection(outcome=outcome, reason=reason))
        if json:
            say_json({"callbacks": done.callbacks, "events": done.events, "quarantined": done.quarantined})
        else:
            say(f"{done.callbacks} callbacks read, {done.events} new events, {done.quarantined} still quarantined")
        # of ids that were named, one that is not kept is a failure
        return 1 if done.callbacks < len(set(ids)) else 0

    return with_database(config, work)


def _refuse_outcome(outcome: str | None) -> None:
    asking.read(CallbackParameters, {"outcome": outcome})


def export_callbacks(
    config: Path | None, *, since: str | None, until: str | None, outcome: str | None, output: Path | None
) -> int:
    _refuse_outcome(outcome)
    selection = Selection(since=asking.time(since, "--since"), until=asking.time(until, "--until"), outcome=outcome)

    async def work(_: Settings, database: Database) -> int:
        with _written(output) as write_part:
            async for part in exported(database, selection):
                write_part(part)
        return 0

    return with_database(config, work)


@contextmanager
def _written(output: Path | None) -> Iterator[Callable[[bytes], object]]:
    """How an export is written: to a file for its owner alone, whole or not at all, or to standard output."""
    if output is None:
        yield write
        return
    draft = output.with_name(f"{output.name}.new")
    draft.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            yield stream.write
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)


def import_callbacks(config: Path | None, file: str, *, json: bool) -> int:
    async def work(settings: Settings, database: Database) -> int:
        with _opened(file) as lines:
            async with intake_for(settings, database) as intake:
                done = await import_lines(intake, lines)
        for problem in done.problems:
            complain(f"line {problem.line}: {problem.detail}")
        _say_imported(done, json=json)
        return 1 if done.problems else 0

    return with_database(config, work)


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    with Path(file).open("rb") as stream:
        yield stream


def _say_imported(done: Imported, *, json: bool) -> None:
    counts = {
        "callbacks": done.callbacks,
        "events": done.events,
        "duplicates": done.duplicates,
        "quarantined": done.quarantined,
        "broken": len(done.problems),
    }
    if json:
        say_json(counts)
    else:
        say_fields(counts.items())
