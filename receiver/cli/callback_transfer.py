"""Reprocessing, export and import of the callbacks of the journal."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import typer

from receiver.cli.context import STALLED_SECONDS, process_pending, reprocessing, with_database
from receiver.cli.output import Progress, echo, echo_error, echo_fields, echo_json, written
from receiver.clock import now
from receiver.intake.transfer import Imported, Importing, ImportStopped, exported, import_lines
from receiver.models.queries import CallbackFilter, CallbackQuery
from receiver.settings import Settings
from receiver.storage import journal
from receiver.storage.database import Database


def reprocess_callbacks(config: Path | None, ids: Sequence[str], query: CallbackFilter, *, json: bool) -> int:
    filters = query.model_dump(exclude_none=True)
    if bool(ids) == bool(filters):
        raise typer.BadParameter("give either ids, or --outcome, --reason, --message, --since or --until, not both")

    async def work(settings: Settings, database: Database) -> int:
        reprocess = reprocessing(settings, database)
        done = await (reprocess.ids(ids) if ids else reprocess.query(CallbackQuery(**filters)))
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


def export_callbacks(config: Path | None, query: CallbackFilter, *, output: Path | None) -> int:
    async def work(_: Settings, database: Database) -> int:
        with written(output) as write_part:
            async for part in exported(database, CallbackQuery(**dict(query))):
                write_part(part)
        return 0

    return with_database(config, work)


def import_callbacks(config: Path | None, file: str, *, json: bool) -> int:
    async def work(settings: Settings, database: Database) -> int:
        try:
            done = await _append(database, file)
        except ImportStopped as error:
            echo_error(str(error))
            _echo_imported(error.done, pending=None, json=json)
            return 1
        progress = Progress("processed")
        pending = await process_pending(settings, database, on_progress=progress.show, stalled_seconds=STALLED_SECONDS)
        if pending:
            echo_error(
                f"{pending:,} callbacks are in the journal and not processed yet; `receiver status` has the reason"
            )
        _echo_imported(done, pending=pending, json=json)
        return 1 if done.broken or pending else 0

    return with_database(config, work)


async def _append(database: Database, file: str) -> Imported:
    progress = Progress("lines read")
    how = Importing(
        clock=now,
        on_broken=lambda number, detail: echo_error(f"line {number}: {detail}"),
        on_progress=lambda done: progress.show(done.lines),
    )
    writer = journal.journal_writer(database)
    try:
        with opened(file) as lines:
            return await import_lines(writer, lines, how)
    finally:
        await writer.close()


@contextmanager
def opened(file: str) -> Iterator[BinaryIO]:
    """The lines of a file; - is standard input."""
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
