"""The raw ledger, read back: kept callbacks as they came, in the order of their ids, for who reads or copies them."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, select

from receiver.domain.callbacks import Callback
from receiver.domain.events import Api
from receiver.storage.callbacks import CALLBACKS, judged_as
from receiver.storage.database import Database

_COLUMNS: Final = ("id", "received_at", "api", "route", "method", "remote", "query", "headers", "body")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which kept callbacks. What is None does not filter; `since` is inclusive, `until` exclusive."""

    since: datetime | None = None
    until: datetime | None = None
    outcome: str | None = None
    reason: str | None = None


def first_id(moment: datetime) -> str:
    """What comes before the id of every callback received from then on: ids begin with microseconds since 1970."""
    return f"{max(0, round(moment.timestamp() * 1_000_000)):014x}"


async def pages(database: Database, selection: Selection, *, size: int) -> AsyncIterator[list[Callback]]:
    """The selected callbacks, so many at a time. Nothing is held open between two pages."""
    page = await _page(database, selection, after="", size=size)
    while page:
        yield page
        page = await _page(database, selection, after=page[-1].id, size=size)


async def with_ids(database: Database, ids: Sequence[str]) -> list[Callback]:
    """The callbacks with these ids, oldest first; one that is not kept is left out."""
    statement = _statement.where(database.among(CALLBACKS.c.id, "ids"))
    async with database.reading() as connection:
        rows = await connection.execute(statement, {"ids": database.texts(ids)})
        return [_callback(row) for row in rows]


async def _page(database: Database, selection: Selection, *, after: str, size: int) -> list[Callback]:
    statement = _statement.where(CALLBACKS.c.id > after, *_conditions(selection)).limit(size)
    async with database.reading() as connection:
        return [_callback(row) for row in await connection.execute(statement)]


_statement: Final = select(*(CALLBACKS.c[name] for name in _COLUMNS)).order_by(CALLBACKS.c.id)


def _conditions(selection: Selection) -> list[ColumnElement[bool]]:
    conditions = judged_as(selection.outcome, selection.reason)
    if selection.since is not None:
        conditions.append(CALLBACKS.c.id >= first_id(selection.since))
    if selection.until is not None:
        conditions.append(CALLBACKS.c.id < first_id(selection.until))
    return conditions


def _callback(row: Row[Any]) -> Callback:
    columns = row._mapping
    return Callback(**{**{name: columns[name] for name in _COLUMNS}, "api": Api(row.api)})
