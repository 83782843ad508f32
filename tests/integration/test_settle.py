"""Readers wait for what was accepted before they came, within bounds, on both databases."""

import asyncio

import pytest
from sqlalchemy import event

from receiver.storage import processor
from receiver.storage.database import Database
from receiver.storage.processor import Settling, backlog, settle
from tests.factories import callback, v2_event
from tests.processing import append, drain, process
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
def queries(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each query of the backlog."""
    made: list[None] = []

    async def counted(database: Database) -> processor.Backlog:
        found = await backlog(database)
        made.append(None)
        return found

    monkeypatch.setattr(processor, "backlog", counted)
    return made


async def test_settle_asks_once_where_nothing_is_pending(database: Database) -> None:
    await process(database, callback([v2_event("m1")]))
    statements: list[str] = []
    event.listen(
        database.engine.sync_engine,
        "before_cursor_execute",
        lambda *values: statements.append(values[2]),
        named=False,
    )
    assert await settle(database) == 0
    assert len([one for one in statements if one.startswith("SELECT")]) == 1


async def test_settle_waits_until_the_processor_has_passed_what_was_accepted(
    database: Database, queries: list[None]
) -> None:
    await append(database, callback([v2_event("m1")]))
    waiting = asyncio.create_task(settle(database, seconds=30))
    await eventually(lambda: len(queries) > 1)
    assert not waiting.done()
    await drain(database)
    assert await waiting == 0


async def test_settle_does_not_wait_for_what_is_accepted_later(database: Database, queries: list[None]) -> None:
    await append(database, callback([v2_event("m1")]))
    waiting = asyncio.create_task(settle(database, seconds=30))
    await eventually(lambda: queries)
    await drain(database)
    await append(database, callback([v2_event("m2")]))
    assert await waiting == 0


async def test_settle_says_how_many_are_left_when_the_time_is_over(database: Database) -> None:
    await append(database, *(callback([v2_event(f"m{number}")]) for number in range(3)))
    assert await settle(database, seconds=0.05) == 3


async def test_a_short_wait_does_not_take_the_processor_for_stuck(database: Database, queries: list[None]) -> None:
    settling = Settling(database, seconds=0.6)
    await append(database, callback([v2_event("m1")]))
    assert [await settling.wait(0.05) for _ in range(2)] == [1, 1]
    queries.clear()
    assert await settling.wait() == 1
    assert len(queries) > 10


async def test_settle_waits_once_for_a_processor_that_is_stuck(database: Database, queries: list[None]) -> None:
    settling = Settling(database, seconds=0.6)
    await append(database, callback([v2_event("m1")]))
    assert await settling.wait() == 1
    await append(database, callback([v2_event("m2")]))
    queries.clear()
    assert [await settling.wait() for _ in range(3)] == [2, 2, 2]
    # without a wait: each looks once
    assert len(queries) == 3
    await drain(database)
    await append(database, callback([v2_event("m3")]))
    queries.clear()
    assert await settling.wait() == 1
    assert len(queries) > 1


async def test_readers_that_wait_at_the_same_time_share_the_polling(database: Database, queries: list[None]) -> None:
    await append(database, callback([v2_event("m1")]))
    settling = Settling(database, seconds=0.15)
    assert await asyncio.gather(*(settling.wait() for _ in range(50))) == [1] * 50
    assert len(queries) < 50
