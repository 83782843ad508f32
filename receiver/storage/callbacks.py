"""Lists the callbacks of the journal and reads them in full, with the elements that are in quarantine."""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Select,
    Subquery,
    Text,
    UnaryExpression,
    false,
    func,
    literal_column,
    not_,
    select,
    true,
    union,
)
from sqlalchemy.engine import Row as SqlRow
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.events import Api, Callback
from receiver.models.callbacks import (
    CALLBACKS,
    PENDING,
    PROCESSOR,
    QUARANTINE,
    CallbackBase,
    CallbackRead,
    CallbackSummaryRead,
)
from receiver.models.events import EVENTS
from receiver.models.queries import CallbackQuery, Page, SortOrder
from receiver.storage.database import Database
from receiver.storage.journal import COLUMNS, first_id

_PAGE_CALLBACKS: Final = 100
_PAGE_BYTES: Final = 4 * 1024 * 1024
_LISTED: Final = tuple(CallbackBase.model_fields)
# An alias for look-ups by id: the statement of a page may select from `callbacks` itself.
_ROW: Final[Any] = CALLBACKS.alias("journal_row")


async def find(database: Database, query: CallbackQuery) -> Page[CallbackSummaryRead]:
    """A page of the callbacks that match a query, ordered by id; ids rise with the time of receipt."""
    async with database.searching() as connection:
        rows = list(await connection.execute(page_statement(database, query)))
    return Page(items=[_summary(row) for row in rows[: query.size]], more=len(rows) > query.size)


async def with_id(database: Database, callback_id: str) -> CallbackRead | None:
    """A callback in full, with its quarantined elements; None if the journal does not have it."""
    columns = [*_listed_columns(database), *(CALLBACKS.c[name] for name in ("query", "headers", "body"))]
    elements = select(QUARANTINE).where(QUARANTINE.c.callback_id == callback_id).order_by(QUARANTINE.c.element)
    async with database.reading() as connection:
        row = (await connection.execute(select(*columns).where(CALLBACKS.c.id == callback_id))).one_or_none()
        if row is None:
            return None
        problems = (await connection.execute(elements)).all()
    return CallbackRead.model_validate({**_listed(row), "problems": problems})


async def by_ids(database: Database, ids: Sequence[str]) -> list[CallbackSummaryRead]:
    """The callbacks with these ids, in the order of the ids; unknown ids are skipped."""
    statement = select(*_listed_columns(database)).where(database.one_of(CALLBACKS.c.id, ids))
    async with database.reading() as connection:
        rows = {row.id: row for row in await connection.execute(statement)}
    return [_summary(rows[id_]) for id_ in ids if id_ in rows]


async def headers_of(database: Database, ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """The headers of the callbacks with these ids, by id; unknown ids are left out."""
    statement = select(CALLBACKS.c.id, CALLBACKS.c.headers).where(database.one_of(CALLBACKS.c.id, ids))
    async with database.reading() as connection:
        return {row.id: row.headers for row in await connection.execute(statement)}


async def pages_with_ids(database: Database, ids: Sequence[str]) -> AsyncIterator[list[Callback]]:
    """The callbacks with these ids in full, oldest first, one page at a time; unknown ids are skipped.

    The bodies of a page have about 4 MiB at most, or are a single one.
    """
    listed = sorted(set(ids))
    while listed:
        async with database.reading() as connection:
            of_page = database.one_of(CALLBACKS.c.id, listed[:_PAGE_CALLBACKS])
            sized = await connection.execute(_sized(database).where(of_page))
            chosen = _that_fit(sized)
            page = await _whole(database, connection, chosen)
        yield page
        # Ids that the journal does not have are skipped.
        listed = [id_ for id_ in listed if id_ > chosen[-1]] if chosen else listed[_PAGE_CALLBACKS:]


async def pages(database: Database, query: CallbackQuery) -> AsyncIterator[list[Callback]]:
    """All callbacks that match a query, in full, oldest first, one page at a time.

    No transaction stays open between two pages. The order, place and size of the query are ignored.
    """
    place = query.model_copy(update={"order": SortOrder.ASC, "after": None, "page": 0, "size": _PAGE_CALLBACKS})
    while page := await _page(database, place):
        yield page
        place = place.model_copy(update={"after": page[-1].id})


async def _page(database: Database, query: CallbackQuery) -> list[Callback]:
    ids = _ids(database, query).limit(query.size).subquery()
    async with database.reading() as connection:
        sized = await connection.execute(_sized(database).where(_is_one_of(database, ids)))
        return await _whole(database, connection, _that_fit(sized))


def _sized(database: Database) -> Select[Any]:
    # octet_length does not read bodies that PostgreSQL stores outside of the row.
    length = func.length if database.is_sqlite else func.octet_length
    return select(CALLBACKS.c.id, length(CALLBACKS.c.body)).order_by(CALLBACKS.c.id)


def _that_fit(sized: Iterable[Any]) -> list[str]:
    """The first ids whose bodies fit into a page of `_PAGE_BYTES` (about); at least one."""
    ids: list[str] = []
    room = _PAGE_BYTES
    for id_, size in sized:
        ids.append(id_)
        room -= size
        if room <= 0:
            break
    return ids


async def _whole(database: Database, connection: AsyncConnection, ids: Sequence[str]) -> list[Callback]:
    columns = [CALLBACKS.c[name] for name in COLUMNS]
    statement = select(*columns).where(database.one_of(CALLBACKS.c.id, ids)).order_by(CALLBACKS.c.id)
    return [_callback(row) for row in await connection.execute(statement)]


def page_statement(database: Database, query: CallbackQuery) -> Select[Any]:
    """The SELECT for a page of callbacks and one row more, which tells whether the list goes on."""
    ids = _ids(database, query).limit(query.size + 1).offset(query.skip).subquery()
    page = select(*_listed_columns(database)).where(_is_one_of(database, ids))
    return page.order_by(_in_order(query, CALLBACKS.c.id))


def _is_one_of(database: Database, ids: Subquery) -> ColumnElement[bool]:
    """Whether a callback is one of those on a page."""
    found = select(ids.c.id)
    if database.is_sqlite:
        return CALLBACKS.c.id.in_(found)  # type: ignore[no-any-return]
    # With an array each id is looked up; with a join, PostgreSQL was seen to hash the ids and scan the whole journal.
    return CALLBACKS.c.id == func.any(func.array(found.scalar_subquery()))  # type: ignore[no-any-return]


def _ids(database: Database, query: CallbackQuery) -> Select[Any]:
    """The ids of the callbacks that match a query, in its order, as the column `id`.

    The most selective filter decides which table is searched. The other conditions are scalar subqueries, which no
    planner turns into a scan of the whole journal.
    """
    if query.message_id is not None:
        return _ids_of_message(database, query)
    if query.outcome == "quarantined" or query.reason is not None:
        return _quarantined_ids(database, query)
    if query.outcome == "pending":
        return _pending_ids(database, query)
    conditions = _of_place(query, CALLBACKS.c.id)
    if query.outcome == "accepted":
        conditions += [not_(_is_waiting(database, CALLBACKS.c.sequence)), not_(_is_quarantined(CALLBACKS.c.id))]
    return select(CALLBACKS.c.id).where(*conditions).order_by(_in_order(query, CALLBACKS.c.id))


def _ids_of_message(database: Database, query: CallbackQuery) -> Select[Any]:
    brought = select(EVENTS.c.callback_id.label("id")).where(EVENTS.c.message_id == query.message_id)
    quarantined = select(QUARANTINE.c.callback_id).where(QUARANTINE.c.message_id == query.message_id)
    found = union(brought, quarantined).subquery("found")
    conditions = [*_of_place(query, found.c.id), *_of_outcome(database, query, found.c.id)]
    return select(found.c.id).where(*conditions).order_by(_in_order(query, found.c.id))


def _of_outcome(database: Database, query: CallbackQuery, callback_id: ColumnElement[str]) -> list[ColumnElement[bool]]:
    """The conditions for a callback of the journal with the outcome and the reason of a query."""
    if query.outcome == "pending":
        return [_is_in_journal(database, callback_id, waiting=True), *([false()] if query.reason else [])]
    if query.outcome == "accepted":
        settled = _is_in_journal(database, callback_id, waiting=False)
        return [settled, not_(_is_quarantined(callback_id)), *([false()] if query.reason else [])]
    if query.outcome == "quarantined" or query.reason is not None:
        return [_is_in_journal(database, callback_id, waiting=False), _is_quarantined(callback_id, query.reason)]
    return [_is_in_journal(database, callback_id)]


def _quarantined_ids(database: Database, query: CallbackQuery) -> Select[Any]:
    callback_id = QUARANTINE.c.callback_id
    conditions = [*_of_place(query, callback_id), _is_in_journal(database, callback_id, waiting=False)]
    if query.reason is not None:
        conditions.append(QUARANTINE.c.reason == query.reason)
    if query.outcome in ("pending", "accepted"):
        conditions.append(false())
    return select(callback_id.label("id")).distinct().where(*conditions).order_by(_in_order(query, callback_id))


def _pending_ids(database: Database, query: CallbackQuery) -> Select[Any]:
    if database.is_sqlite:
        # The plus prevents SQLite from scanning the whole journal by id for the few pending callbacks.
        callback_id = literal_column("+callbacks.id", Text)
        conditions = [_is_waiting(database, CALLBACKS.c.sequence), *_of_place(query, callback_id)]
        return select(CALLBACKS.c.id).where(*conditions).order_by(_in_order(query, callback_id))
    row = select(CALLBACKS.c.id).where(CALLBACKS.c.sequence == PENDING.c.sequence, *_of_place(query, CALLBACKS.c.id))
    # OFFSET prevents the planner from scanning the journal for the pending callbacks.
    each = row.correlate(PENDING).offset(0).lateral("each_row")
    return select(each.c.id).join_from(PENDING, each, true()).order_by(_in_order(query, each.c.id))


def _is_waiting(database: Database, sequence: ColumnElement[int]) -> ColumnElement[bool]:
    """Whether the row of the journal with this sequence is pending."""
    if database.is_sqlite:
        return sequence > select(PROCESSOR.c.cursor).scalar_subquery()
    return _is_any(select(PENDING.c.sequence).where(PENDING.c.sequence == sequence))


def _is_in_journal(
    database: Database, callback_id: ColumnElement[str], *, waiting: bool | None = None
) -> ColumnElement[bool]:
    """Whether the journal has this callback, pending or processed (None: either)."""
    found = select(_ROW.c.id).where(_ROW.c.id == callback_id)
    if waiting is not None:
        is_waiting = _is_waiting(database, _ROW.c.sequence)
        found = found.where(is_waiting if waiting else not_(is_waiting))
    return _is_any(found)


def _is_quarantined(callback_id: ColumnElement[str], reason: str | None = None) -> ColumnElement[bool]:
    """Whether an element of this callback is quarantined for this reason (None: for any reason)."""
    found = select(QUARANTINE.c.element).where(QUARANTINE.c.callback_id == callback_id)
    if reason is not None:
        found = found.where(QUARANTINE.c.reason == reason)
    return _is_any(found)


def _is_any(found: Select[Any]) -> ColumnElement[bool]:
    """Whether a SELECT for one row finds it.

    PostgreSQL takes `IS NULL` for true once in 200 rows: for the callbacks with neither of two such rows, nearly all,
    it scanned and sorted the whole journal. It takes a boolean for true in every second row.
    """
    is_found = found.with_only_columns(literal_column("TRUE", Boolean)).limit(1).scalar_subquery()
    return func.coalesce(is_found, literal_column("FALSE", Boolean))


def _of_place(query: CallbackQuery, callback_id: ColumnElement[str]) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if query.since is not None:
        conditions.append(callback_id >= first_id(query.since))
    if query.until is not None:
        conditions.append(callback_id < first_id(query.until))
    if query.after is not None:
        ascending = query.order is SortOrder.ASC
        conditions.append(callback_id > query.after if ascending else callback_id < query.after)
    return conditions


def _in_order(query: CallbackQuery, column: ColumnElement[Any]) -> UnaryExpression[Any]:
    return column.asc() if query.order is SortOrder.ASC else column.desc()


def _listed_columns(database: Database) -> list[ColumnElement[Any]]:
    """The columns of a list: the callback's own, whether it is pending, and reason and time of its first element."""
    first = select(QUARANTINE).where(QUARANTINE.c.callback_id == CALLBACKS.c.id).order_by(QUARANTINE.c.element).limit(1)
    return [
        *(CALLBACKS.c[name] for name in _LISTED),
        _is_waiting(database, CALLBACKS.c.sequence).label("is_pending"),
        first.with_only_columns(QUARANTINE.c.reason).scalar_subquery().label("reason"),
        first.with_only_columns(QUARANTINE.c.reprocessed_at).scalar_subquery().label("reprocessed_at"),
    ]


def _summary(row: SqlRow[Any]) -> CallbackSummaryRead:
    return CallbackSummaryRead.model_validate(_listed(row))


def _listed(row: SqlRow[Any]) -> dict[str, Any]:
    if row.is_pending:
        return {**row._mapping, "outcome": "pending", "reason": None, "reprocessed_at": None}
    return {**row._mapping, "outcome": "accepted" if row.reason is None else "quarantined"}


def _callback(row: SqlRow[Any]) -> Callback:
    return Callback(**{**row._mapping, "api": Api(row.api), "body": bytes(row.body)})
