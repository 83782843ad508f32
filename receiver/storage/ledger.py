"""The raw ledger, read: a page of callbacks without what came in them, one callback with all of it."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, select

from receiver.domain.events import Api
from receiver.domain.queries import CallbackQuery, CallbackView, Page, SortOrder, WholeCallback
from receiver.storage.callbacks import CALLBACKS, judged_as
from receiver.storage.database import Database

_LISTED: Final = (
    "id",
    "received_at",
    "api",
    "route",
    "method",
    "remote",
    "outcome",
    "reason",
    "events",
    "duplicates",
    "reread_at",
)


async def find(database: Database, query: CallbackQuery) -> Page[CallbackView]:
    """The callbacks a query asks for. Ids rise with the time received, so they are the order."""
    async with database.reading() as connection:
        rows = list(await connection.execute(statement(query)))
    return Page(items=[CallbackView(**_listed(row)) for row in rows[: query.size]], more=len(rows) > query.size)


async def one(database: Database, callback_id: str) -> WholeCallback | None:
    async with database.reading() as connection:
        found = await connection.execute(select(CALLBACKS).where(CALLBACKS.c.id == callback_id))
        row = found.one_or_none()
    return _whole(row) if row else None


async def by_ids(database: Database, ids: Sequence[str]) -> list[CallbackView]:
    """The callbacks with these ids, in the order of the ids; one that is no longer kept is left out."""
    statement = select(*_LISTED_COLUMNS).where(database.among(CALLBACKS.c.id, "ids"))
    async with database.reading() as connection:
        rows = {row.id: row for row in await connection.execute(statement, {"ids": database.texts(ids)})}
    return [CallbackView(**_listed(rows[id_])) for id_ in ids if id_ in rows]


def statement(query: CallbackQuery) -> Select[Any]:
    """The SELECT for a page of callbacks and one row more, which tells whether the list goes on."""
    ascending = query.order is SortOrder.ASC
    order = CALLBACKS.c.id.asc() if ascending else CALLBACKS.c.id.desc()
    page = select(*_LISTED_COLUMNS).where(*_conditions(query)).order_by(order)
    return page.limit(query.size + 1).offset(query.skip)


_LISTED_COLUMNS: Final = [CALLBACKS.c[name] for name in _LISTED]


def _conditions(query: CallbackQuery) -> list[ColumnElement[bool]]:
    conditions = judged_as(query.outcome, query.reason)
    if query.after is not None:
        ascending = query.order is SortOrder.ASC
        conditions.append(CALLBACKS.c.id > query.after if ascending else CALLBACKS.c.id < query.after)
    return conditions


def _listed(row: Row[Any]) -> dict[str, Any]:
    columns = row._mapping
    return {**{name: columns[name] for name in _LISTED}, "api": Api(row.api)}


def _whole(row: Row[Any]) -> WholeCallback:
    return WholeCallback(
        **_listed(row), query=row.query, headers=row.headers, body=row.body, problems=row.problems or []
    )
