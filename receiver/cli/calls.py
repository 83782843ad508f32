"""Runs operations of the query API within a command, and writes what they return: lists, codes, explained messages."""

import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, get_args

import typer

from receiver.api import operations
from receiver.api.messages import csv_table
from receiver.api.operations import ApiContext, Call, Listed, Operation
from receiver.api.statistics import csv_table as statistics_table
from receiver.cli.context import reprocessing, with_database
from receiver.cli.options import filter_options
from receiver.cli.output import (
    STATISTICS_HEADINGS,
    TABLES,
    Progress,
    code_fields,
    echo,
    echo_error,
    echo_fields,
    echo_json,
    echo_table,
    set_fields,
    statistic_cells,
    written,
)
from receiver.clock import now
from receiver.domain.events import Callback
from receiver.errors import Ambiguous, Unknown
from receiver.explanation.message import Explanation, explain
from receiver.explanation.timeline import TimelineEntry, explain_publication
from receiver.explanation.words import time_text
from receiver.models.events import MessageEventRead
from receiver.models.message_queries import MessageQuery
from receiver.models.messages import MessageRead
from receiver.models.queries import CodeQuery, OneMessageQuery, PagedQuery, Query
from receiver.models.sinks import PublicationRead
from receiver.models.statistics import StatisticsRead
from receiver.models.statistics_query import DIMENSIONS, StatisticsQuery
from receiver.settings import Settings
from receiver.storage import messages
from receiver.storage.database import Database
from receiver.storage.journal import journal_writer
from receiver.storage.message_search import UNLIMITED, search
from receiver.storage.processor import settle
from receiver.storage.publications import publications_of_message


@dataclass(frozen=True, slots=True)
class Operations:
    """The operations of the query API, for the database and the sinks of these settings."""

    settings: Settings
    database: Database

    async def __call__(
        self,
        operation: Operation,
        path: Mapping[str, str] | None = None,
        *,
        query: Query | None = None,
        body: Any = None,
    ) -> Any:
        """The result of an operation; raises a usage error that names the options which choose one of several."""
        call = Call(
            context=ApiContext(
                database=self.database,
                reprocess=self._reprocess,
                tokens=None,
                clock=now,
                base_url=self.settings.base_url,
                sinks={str(table.get("name")): table for table in self.settings.sinks},
                append=self._append,
                settle=self._settle,
            ),
            query=query if query is not None else operation.query(),
            path=path or {},
            body=operation.body.model_validate(body) if operation.body is not None else None,
            patience=UNLIMITED,
        )
        try:
            return await operation(call)
        except Ambiguous as error:
            raise typer.BadParameter(str(error), param_hint=[f"--{name}" for name in error.choices]) from None

    async def _reprocess(self, ids: Sequence[str]) -> object:
        return await reprocessing(self.settings, self.database).ids(ids)

    async def _append(self, callback: Callback) -> None:
        writer = journal_writer(self.database)
        try:
            await writer.append([callback])
        finally:
            await writer.close()

    async def _settle(self, _: float | None) -> int:
        """Waits up to a second for the processor; a line on standard error has the number of callbacks it left."""
        left = await settle(self.database)
        if left:
            echo_error(f"{left:,} callbacks are still pending and not shown yet")
        return left


def with_operations(
    config: Path | None, work: Callable[[Operations], Awaitable[int]], *, needs_database: bool = True
) -> int:
    """Runs `work` with the operations of the API."""

    async def run(settings: Settings, database: Database) -> int:
        return await work(Operations(settings, database))

    return with_database(config, run, must_exist=needs_database)


def named(name: str) -> Operation:
    """The operation `module.name` of `receiver.api`. Only its module is imported, so that a command starts quickly."""
    module, _, operation_name = name.partition(".")
    of_module: tuple[Operation, ...] = import_module(f"receiver.api.{module}").OPERATIONS
    return operations.named(of_module, operation_name)


def show(
    name: str,
    config: Path | None,
    path: Mapping[str, str],
    *,
    json: bool,
    text: Callable[[Any], None],
    query: Query | None = None,
    body: Mapping[str, Any] | None = None,
) -> int:
    """Runs an operation that returns a single thing, and writes it: as JSON, or by `text`."""

    async def work(perform: Operations) -> int:
        result = await perform(named(name), path, query=query, body=body)
        if json:
            echo_json(result)
        else:
            text(result)
        return 0

    return with_operations(config, work)


def show_list(
    name: str, config: Path | None, *, query: Query, json: bool, path: Mapping[str, str] | None = None
) -> int:
    """Runs an operation that returns a list, and writes the list."""
    operation = named(name)

    async def work(perform: Operations) -> int:
        write_list(operation, await perform(operation, path, query=query), query=query, json=json)
        return 0

    return with_operations(config, work)


def write_list(operation: Operation, result: Any, *, query: Query | None = None, json: bool) -> None:
    """Writes a list: as JSON, or as a table with a hint at the next page."""
    items = result.items if isinstance(result, Listed) else result
    if json:
        echo_json(items)
        return
    [model] = get_args(operation.answer)
    table = TABLES[model.__name__]
    if not items and query is not None and (filters := filter_options(query)):
        echo(f"nothing matches {filters}")
        return
    echo_table(table.headings, [table.row(item) for item in items])
    if isinstance(result, Listed) and result.next_page is not None and isinstance(query, PagedQuery):
        echo(f"(there are more: --page {query.page + 1})")


def show_statistics(config: Path | None, query: StatisticsQuery, *, json: bool, csv: bool) -> int:
    """Shows the statistics: the dimensions, then the counts."""

    def write_csv(found: StatisticsRead) -> None:
        with written(None) as write_part:
            write_part(statistics_table(found, query).encode())

    def write(found: StatisticsRead) -> None:
        echo(f"deliveries of messages from {time_text(found.since)} to {time_text(found.until)}")
        fields = [DIMENSIONS[dimension] for dimension in dict.fromkeys(query.by)]
        headings = [re.sub(r"(?<=[a-z])(?=[A-Z])", " ", dimension).upper() for dimension in dict.fromkeys(query.by)]
        echo_table((*headings, *STATISTICS_HEADINGS), [statistic_cells(row, fields) for row in found.rows])

    return show("statistics.getStatistics", config, {}, json=json, text=write_csv if csv else write, query=query)


def export_messages(config: Path | None, query: MessageQuery, *, lines: bool, output: Path | None) -> int:
    """Writes all messages that match a query: as CSV, or as lines of JSON."""

    async def work(_: Settings, database: Database) -> int:
        page_query = query.model_copy(update={"size": _EXPORT_SIZE, "page": 0})
        count, progress = 0, Progress("messages")
        await settle(database)
        with written(output) as write_part:
            more = True
            while more:
                found = await search(database, page_query, UNLIMITED)
                write_part(_json_lines(found.items) if lines else csv_table(found.items, header=not count).encode())
                count, more = count + len(found.items), found.after is not None
                progress.show(count)
                page_query = page_query.model_copy(update={"after": found.after})
        return 0

    return with_database(config, work)


_EXPORT_SIZE = 1000


def _json_lines(found: Sequence[MessageRead]) -> bytes:
    return b"".join(message.model_dump_json(by_alias=True).encode() + b"\n" for message in found)


def explain_message(config: Path | None, message_id: str, query: OneMessageQuery, *, all_: bool, json: bool) -> int:
    """Shows one message in words; with `all_` also every column."""

    async def work(perform: Operations) -> int:
        message: MessageRead = await perform(named("messages.getMessage"), {"id": message_id}, query=query)
        events = await messages.events(perform.database, message.key)
        explanation = explain(message, events, now())
        listed = [MessageEventRead.model_validate(event) for event in events]
        if json:
            fields = message.model_dump(mode="json", by_alias=True)
            echo_json({**fields, "events": listed, "explanation": explanation})
            return 0
        async with perform.database.reading() as connection:
            publications = await publications_of_message(connection, message.key)
        echo_explanation(explanation, publications, {str(sink.get("name")) for sink in perform.settings.sinks})
        if all_:
            echo("")
            _echo_columns(message, listed)
        return 0

    return with_operations(config, work)


def echo_explanation(
    explanation: Explanation, publications: Sequence[PublicationRead], configured: Collection[str]
) -> None:
    """Writes the status of a message, its timeline, and the state of its events at the sinks.

    `configured` are the names of the sinks in the settings.
    """
    echo(*explanation.lines)
    if len(explanation.recipients) > 1:
        echo("", "recipients", *(f"- {recipient.summary}" for recipient in explanation.recipients))
    if explanation.notes:
        echo("", "notes", *(f"- {note}" for note in explanation.notes))
    if explanation.timeline:
        echo("", "timeline")
        echo_table(_TIMELINE, [_timeline_row(entry) for entry in explanation.timeline])
    if publications:
        echo("", "sinks")
        echo_table(_SINKS, [_sink_row(publication, configured) for publication in publications])


_TIMELINE: Final = ("BANDWIDTH'S TIME", "OUR TIME", "APART", "TYPE", "EVENT")


def _timeline_row(entry: TimelineEntry) -> tuple[object, ...]:
    times = (time_text(time) if time else None for time in (entry.occurred_at, entry.received_at))
    return *times, entry.clocks, entry.type, entry.sentence


_SINKS: Final = ("SINK", "EVENT", "RECIPIENT", "STATE")


def _sink_row(publication: PublicationRead, configured: Collection[str]) -> tuple[object, ...]:
    state = explain_publication(publication, is_configured=publication.sink in configured)
    return publication.sink, f"message.{publication.status}", publication.recipient, state


def _echo_columns(message: MessageRead, events: Sequence[MessageEventRead]) -> None:
    echo_fields(set_fields(message.model_dump(mode="json", by_alias=True, exclude={"recipients"})))
    for recipient in message.recipients:
        echo("", f"to {recipient.recipient or 'an unknown number'}")
        values = recipient.model_dump(mode="json", by_alias=True, exclude={"recipient"})
        reason = values.pop("reason")
        meaning = f"{reason['name']}: {reason['description']}" if reason else None
        echo_fields([*set_fields(values), ("meaning", meaning)], indent="  ")
    echo("", "events, in order of arrival")
    table = TABLES["MessageEventRead"]
    echo_table(table.headings, [table.row(event) for event in events])


# More than the documents list.
_ALL: Final = 1000


def codes(config: Path | None, query: CodeQuery, *, code: str | None, json: bool) -> int:
    operation = named("reference.listCodes")

    async def work(perform: Operations) -> int:
        found = await perform(operation, query=query.model_copy(update={"size": _ALL}))
        if code is None:
            write_list(operation, found, json=json)
            return 0
        entries = [entry for entry in found.items if str(entry.code) == code]
        if not entries:
            raise Unknown(f"Bandwidth's documents list no code {code}")
        if json:
            echo_json(entries)
        else:
            for entry in entries:
                echo_fields(code_fields(entry))
        return 0

    return with_operations(config, work, needs_database=False)
