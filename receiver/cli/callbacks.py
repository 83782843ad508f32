"""`receiver callbacks list`, `show`, `reprocess`, `export` and `import`."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import typer

from receiver.api.callbacks import NOT_STORED
from receiver.api.parameters import CallbackParameters
from receiver.api.representations import Callback, CallbackSummary
from receiver.cli import options
from receiver.cli.context import STALLED_SECONDS, process_pending, reprocessing, with_database
from receiver.cli.output import echo, echo_error, echo_fields, echo_json, echo_page, write
from receiver.clock import now
from receiver.domain.cloudevents import rfc3339
from receiver.domain.queries import CallbackView
from receiver.errors import ReceiverError
from receiver.intake.transfer import Imported, Importing, ImportStopped, exported, import_lines
from receiver.settings import Settings
from receiver.storage import callbacks, journal
from receiver.storage.database import Database

_PROGRESS_SECONDS: Final = 2.0


def list_callbacks(config: Path | None, parameters: Mapping[str, Any], *, json: bool) -> int:
    query = options.parse(CallbackParameters, parameters).query()

    async def work(_: Settings, database: Database) -> int:
        page = await callbacks.find(database, query)
        echo_page(page, _HEADINGS, _row, model=CallbackSummary, json=json, number=parameters["page"])
        return 0

    return with_database(config, work, reads_processed=True)


_HEADINGS = ("ID", "RECEIVED", "API", "ROUTE", "OUTCOME", "REASON")


def _row(view: CallbackView) -> tuple[object, ...]:
    return view.id, rfc3339(view.received_at), view.api, view.route, view.outcome, view.reason


def show_callback(config: Path | None, callback_id: str, *, json: bool) -> int:
    async def work(_: Settings, database: Database) -> int:
        whole = await callbacks.one(database, callback_id)
        if whole is None:
            raise ReceiverError(f"the journal has no callback {callback_id}; {NOT_STORED}")
        callback = Callback.model_validate(whole)
        if json:
            echo_json(callback)
        else:
            _echo_callback(callback)
        return 0

    return with_database(config, work, reads_processed=True)


def _echo_callback(callback: Callback) -> None:
    fields = callback.model_dump(mode="json", by_alias=True, exclude={"headers", "problems"})
    body, encoding = fields.pop("body"), fields.pop("bodyEncoding")
    echo_fields(fields.items())
    echo("", "headers")
    echo_fields(sorted(callback.headers.items()), indent="  ")
    for problem in callback.problems:
        message = f" (message {problem.message_id})" if problem.message_id else ""
        echo("", f"element {problem.index}: {problem.reason} {problem.detail}{message}")
    echo("", f"body ({encoding})", *body.splitlines())


def reprocess_callbacks(config: Path | None, ids: Sequence[str], selection: Mapping[str, Any], *, json: bool) -> int:
    query = options.parse(CallbackParameters, selection).query()
    if bool(ids) == any(selection.values()):
        raise typer.BadParameter("give either ids, or --outcome, --reason or --message, not both")

    async def work(settings: Settings, database: Database) -> int:
        reprocess = reprocessing(settings, database)
        done = await (reprocess.ids(ids) if ids else reprocess.query(query))
        if json:
            echo_json(done)
        else:
            echo(
                f"{done.callbacks:,} callbacks reprocessed, {done.events:,} new events, "
                f"{done.quarantined:,} callbacks still quarantined"
            )
        # A named id that the journal does not have is a failure.
        return 1 if done.callbacks < len(set(ids)) else 0

    return with_database(config, work)


def export_callbacks(
    config: Path | None, selection: Mapping[str, Any], *, since: str | None, until: str | None, output: Path | None
) -> int:
    query = replace(
        options.parse(CallbackParameters, selection).query(),
        since=options.time(since, "--since"),
        until=options.time(until, "--until"),
    )

    async def work(_: Settings, database: Database) -> int:
        with _written(output) as write_part:
            async for part in exported(database, query):
                write_part(part)
        return 0

    return with_database(config, work)


@contextmanager
def _written(output: Path | None) -> Iterator[Callable[[bytes], object]]:
    """Writes an export to a file with mode 0600, all of it or nothing, or to standard output."""
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
        try:
            done = await _append(database, file)
        except ImportStopped as error:
            echo_error(str(error))
            _echo_imported(error.done, pending=None, json=json)
            return 1
        progress = _Progress("processed")
        pending = await process_pending(settings, database, on_progress=progress.show, stalled_seconds=STALLED_SECONDS)
        if pending:
            echo_error(
                f"{pending:,} callbacks are in the journal and not processed yet; `receiver status` has the reason"
            )
        _echo_imported(done, pending=pending, json=json)
        return 1 if done.broken or pending else 0

    return with_database(config, work)


async def _append(database: Database, file: str) -> Imported:
    progress = _Progress("lines read")
    how = Importing(
        clock=now,
        on_broken=lambda number, detail: echo_error(f"line {number}: {detail}"),
        on_progress=lambda done: progress.show(done.lines),
    )
    writer = journal.journal_writer(database)
    try:
        with _opened(file) as lines:
            return await import_lines(writer, lines, how)
    finally:
        await writer.close()


class _Progress:
    """Reports progress on standard error every few seconds."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._shown_at = time.monotonic()

    def show(self, number: int) -> None:
        if time.monotonic() - self._shown_at >= _PROGRESS_SECONDS:
            self._shown_at = time.monotonic()
            echo_error(f"{number:,} {self._label}")


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    with Path(file).open("rb") as stream:
        yield stream


def _echo_imported(done: Imported, *, pending: int | None, json: bool) -> None:
    counts = {"callbacks": done.callbacks, "known": done.known, "broken": done.broken}
    if pending is not None:
        counts["pending"] = pending
    if json:
        echo_json(counts)
    else:
        echo_fields(counts.items())
