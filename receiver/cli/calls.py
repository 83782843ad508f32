"""Runs operations of the query API within a command, and writes what they return."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import typer

from receiver.api.operations import ApiContext, Call, Listed, Operation
from receiver.cli.context import reprocessing, with_database
from receiver.cli.output import TABLES, echo, echo_error, echo_json, echo_table
from receiver.clock import now
from receiver.errors import Ambiguous
from receiver.models.queries import PagedQuery, Query
from receiver.settings import Settings
from receiver.storage.database import Database
from receiver.storage.processor import settle


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
        body: Mapping[str, Any] | None = None,
    ) -> Any:
        """The result of an operation; raises a usage error that names the options which choose one of several."""
        call = Call(
            context=ApiContext(
                database=self.database,
                reprocess=self._reprocess,
                tokens=None,
                clock=now,
                sinks={str(table.get("name")): table for table in self.settings.sinks},
                settle=self._settle,
            ),
            query=query if query is not None else operation.query(),
            path=path or {},
            body=operation.body.model_validate(body) if operation.body is not None else None,
        )
        try:
            return await operation(call)
        except Ambiguous as error:
            raise typer.BadParameter(str(error), param_hint=[f"--{name}" for name in error.choices]) from None

    async def _reprocess(self, ids: Sequence[str]) -> object:
        return await reprocessing(self.settings, self.database).ids(ids)

    async def _settle(self) -> int:
        """Waits up to a second for the processor; a line on standard error has the number of callbacks it left."""
        left = await settle(self.database)
        if left:
            echo_error(f"{left:,} callbacks are still pending and not shown yet")
        return left


def named(name: str) -> Operation:
    """The operation `module.name` of `receiver.api`. Only its module is imported, so that a command starts quickly."""
    module, _, operation_name = name.partition(".")
    operations: tuple[Operation, ...] = import_module(f"receiver.api.{module}").OPERATIONS
    return next(operation for operation in operations if operation.name == operation_name)


def with_operations(
    config: Path | None, work: Callable[[Operations], Awaitable[int]], *, needs_database: bool = True
) -> int:
    """Runs `work` with the operations of the API."""

    async def run(settings: Settings, database: Database) -> int:
        return await work(Operations(settings, database))

    return with_database(config, run, must_exist=needs_database)


def show_list(
    name: str, config: Path | None, *, query: Query, json: bool, path: Mapping[str, str] | None = None
) -> int:
    """Runs an operation that returns a list, and writes the list."""
    operation = named(name)

    async def work(perform: Operations) -> int:
        write_list(operation, await perform(operation, path, query=query), query=query, json=json)
        return 0

    return with_operations(config, work)


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


def write_list(operation: Operation, result: Any, *, query: Query | None = None, json: bool) -> None:
    """Writes a list: as JSON, or as a table with a hint at the next page."""
    items = result.items if isinstance(result, Listed) else result
    if json:
        echo_json(items)
        return
    [model] = get_args(operation.answer)
    table = TABLES[model.__name__]
    echo_table(table.headings, [table.row(item) for item in items])
    if isinstance(result, Listed) and result.next_page is not None and isinstance(query, PagedQuery):
        echo(f"(there are more: --page {query.page + 1})")
