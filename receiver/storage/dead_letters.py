"""The dead letters: events that are not published to a sink again by themselves. Lists, requeues and drops them."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Final, Protocol

from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, Row, and_, delete, func, literal, null, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.models.columns import UTCDateTime
from receiver.models.events import EVENTS
from receiver.models.queries import DeadLetterChoice, DeadLetterFilter, DeadLetterQuery, Page, SortOrder
from receiver.models.sinks import DEAD_LETTERS, RETRIES, DeadLetterBase, DeadLetterRead
from receiver.storage import sinks
from receiver.storage.database import Database
from receiver.storage.retries import promote

_BATCH: Final = 500
# About as long as a batch takes, which leaves at least half of the database's time to the intake.
_PAUSE_SECONDS: Final = 0.02

_READ: Final = TypeAdapter(list[DeadLetterRead])
_FIRST_PAGE: Final = DeadLetterQuery()


async def find(database: Database, query: DeadLetterQuery = _FIRST_PAGE) -> Page[DeadLetterRead]:
    """A page of dead letters, ordered by id; ids rise with `died_at`."""
    async with database.searching() as connection:
        rows = (await connection.execute(statement(query))).all()
    return Page(items=_READ.validate_python(rows[: query.size]), more=len(rows) > query.size)


def statement(query: DeadLetterQuery) -> Any:
    """The SELECT for a page of dead letters and one row more, which tells whether the list goes on."""
    ascending = query.order is SortOrder.ASC
    conditions = _conditions(query)
    if query.after is not None:
        conditions.append(DEAD_LETTERS.c.id > query.after if ascending else DEAD_LETTERS.c.id < query.after)
    is_about_few = query.message_id is not None or query.event_id is not None
    # The few of a message or event are sorted quickly; `+ 0` stops the planner from scanning all of the sink in order.
    place = DEAD_LETTERS.c.id + 0 if is_about_few else DEAD_LETTERS.c.id
    return (
        select(*_SHOWN)
        .join(EVENTS, EVENTS.c.position == DEAD_LETTERS.c.position)
        .where(*conditions)
        .order_by(place.asc() if ascending else place.desc())
        .limit(query.size + 1)
        .offset(query.skip)
    )


_SHOWN: Final = (
    *(DEAD_LETTERS.c[name] for name in ("id", *DeadLetterBase.model_fields)),
    EVENTS.c.message_id,
    EVENTS.c.recipient,
    EVENTS.c.status,
)


async def count(database: Database, choice: DeadLetterChoice) -> int:
    """How many dead letters match; raises UnknownSink if `choice` names a sink that does not exist."""
    async with database.reading() as connection:
        await sinks.row_of(connection, choice.sink)
        number = select(func.count()).select_from(DEAD_LETTERS).where(*_chosen(choice))
        return await connection.scalar(number) or 0


async def requeue(database: Database, choice: DeadLetterChoice, *, now: datetime) -> AsyncGenerator[int, None]:
    """Makes dead letters of a sink due again, with a new retry schedule, and yields the number of each batch.

    Each batch is committed; a caller stops by not asking for the next one. Raises UnknownSink.
    """

    async def act(connection: AsyncConnection, positions: Sequence[int]) -> None:
        chosen = _at(DEAD_LETTERS, choice.sink, positions)
        await connection.execute(_as_retries(database, chosen, now))
        await connection.execute(delete(DEAD_LETTERS).where(chosen))

    async for number in _batches(database, choice, act, now):
        yield number


async def drop(database: Database, choice: DeadLetterChoice, *, now: datetime) -> AsyncGenerator[int, None]:
    """Removes dead letters of a sink for good, in batches as `requeue`, and releases the ordering keys they hold."""

    async def act(connection: AsyncConnection, positions: Sequence[int]) -> None:
        await connection.execute(delete(RETRIES).where(_at(RETRIES, choice.sink, positions)))
        await connection.execute(delete(DEAD_LETTERS).where(_at(DEAD_LETTERS, choice.sink, positions)))

    async for number in _batches(database, choice, act, now):
        yield number


class Action(Protocol):
    """`requeue` or `drop`."""

    def __call__(self, database: Database, choice: DeadLetterChoice, *, now: datetime) -> AsyncGenerator[int, None]: ...


_Act = Callable[[AsyncConnection, Sequence[int]], Awaitable[None]]


async def _batches(database: Database, choice: DeadLetterChoice, act: _Act, now: datetime) -> AsyncGenerator[int, None]:
    """Acts on the dead letters that exist at the start, in the order of the log; not on those that are added later."""
    async with database.reading() as connection:
        newest = await connection.scalar(select(func.max(DEAD_LETTERS.c.id))) or 0
    chosen = [DEAD_LETTERS.c.id <= newest, *_chosen(choice)]
    place = 0
    while True:
        rows = await _batch(database, choice.sink, [*chosen, DEAD_LETTERS.c.position > place], act, now)
        if rows:
            yield len(rows)
        if len(rows) < _BATCH:
            return
        place = rows[-1].position
        await asyncio.sleep(_PAUSE_SECONDS)


async def _batch(
    database: Database, sink: str, chosen: Sequence[ColumnElement[bool]], act: _Act, now: datetime
) -> Sequence[Row[Any]]:
    found = (
        select(DEAD_LETTERS.c.position, DEAD_LETTERS.c.ordering_key).where(*chosen).order_by(DEAD_LETTERS.c.position)
    )
    async with database.writing() as connection:
        await sinks.lock_row(connection, sink)
        rows = (await connection.execute(found.limit(_BATCH))).all()
        if rows:
            ordering_keys = sorted({row.ordering_key for row in rows})
            await act(connection, [row.position for row in rows])
            await _park_heads(database, connection, sink, ordering_keys)
            await promote(database, connection, sink, ordering_keys, now)
    return rows


def _chosen(choice: DeadLetterChoice) -> list[ColumnElement[bool]]:
    of_ids = [DEAD_LETTERS.c.id.in_(choice.ids)] if choice.ids else []
    return [*_conditions(choice), *of_ids]


def _conditions(choice: DeadLetterFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if choice.sink is not None:
        conditions.append(DEAD_LETTERS.c.sink == choice.sink)
    if choice.reason is not None:
        conditions.append(DEAD_LETTERS.c.reason == choice.reason)
    if choice.message_id is not None:
        conditions.append(_is_of_message(choice.message_id))
    if choice.event_id is not None:
        conditions.append(DEAD_LETTERS.c.event_id == choice.event_id)
    if choice.since is not None:
        conditions.append(DEAD_LETTERS.c.died_at >= choice.since)
    if choice.until is not None:
        conditions.append(DEAD_LETTERS.c.died_at < choice.until)
    return conditions


def _is_of_message(message_id: str) -> ColumnElement[bool]:
    # A subquery instead of the joined columns: the search then always begins with the log's index on the message.
    of_it: ColumnElement[bool] = DEAD_LETTERS.c.position.in_(
        select(EVENTS.c.position).where(EVENTS.c.message_id == message_id)
    )
    return of_it


def _at(table: Any, sink: str, positions: Sequence[int]) -> ColumnElement[bool]:
    return and_(table.c.sink == sink, table.c.position.in_(positions))


_COPIED: Final = ("sink", "position", "ordering_key", "state", "attempts", "due_at", "first_at", "reason")


def _as_retries(database: Database, chosen: ColumnElement[bool], now: datetime) -> Any:
    """Inserts dead letters as retries; one that still has a retry, because it holds its ordering key, replaces it."""
    letters = select(
        DEAD_LETTERS.c.sink,
        DEAD_LETTERS.c.position,
        DEAD_LETTERS.c.ordering_key,
        literal("parked"),
        literal(0),
        null(),
        literal(now, UTCDateTime),
        literal("requeued"),
    ).where(chosen)
    insert = database.insert(RETRIES).from_select(_COPIED, letters)
    replaced = {name: insert.excluded[name] for name in ("state", "attempts", "due_at", "first_at", "reason")}
    return insert.on_conflict_do_update(index_elements=["sink", "position"], set_=replaced)


async def _park_heads(database: Database, connection: AsyncConnection, sink: str, ordering_keys: Sequence[str]) -> None:
    """Parks the heads of ordering keys, because a requeued event may be earlier than the head."""
    of_keys = database.one_of(RETRIES.c.ordering_key, ordering_keys)
    heads = and_(RETRIES.c.sink == sink, RETRIES.c.state != "parked", of_keys)
    await connection.execute(update(RETRIES).where(heads).values(state="parked"))
