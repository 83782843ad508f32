"""A lease in use, on both databases: renewed in the background, released at the end, noticed when it is lost."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from receiver.errors import StorageUnavailable
from receiver.storage import processor
from receiver.storage.database import Database
from receiver.storage.leases import Held, Leasing
from receiver.storage.processor import ProcessorLease, ProcessorLeaseLost
from tests.processing import opened, select
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

# Long enough for a busy machine to renew it in time, short enough to see it lapse.
SECONDS = 2.0


def leasing(database: Database, holder: str | None = None, **more: Any) -> Leasing[ProcessorLease]:
    options = {"seconds": SECONDS, "take_over": False, **more}
    return Leasing(database, processor.acquire, processor.renew, processor.release, holder=holder, **options)


@asynccontextmanager
async def held_by(database: Database, holder: str, **more: Any) -> AsyncIterator[Held[ProcessorLease]]:
    async with leasing(database, holder, **more).hold() as held:
        assert held is not None
        yield held


async def holder_of(database: Database) -> Any:
    [row] = await select(database, "SELECT lease_holder FROM processor")
    return row.lease_holder


async def take(database: Database) -> None:
    """Takes the lease away from its holder."""
    assert await processor.acquire(database, holder="thief", seconds=60, take_over=True) is not None


@contextmanager
def outage(database: Database) -> Iterator[list[str]]:
    """No statement reaches the database; yields those that were tried."""
    tried: list[str] = []

    def fail(_: Any, __: Any, statement: str, *___: Any) -> None:
        tried.append(statement)
        raise OSError("the disk is away")

    engine = database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", fail)
    try:
        yield tried
    finally:
        event.remove(engine, "before_cursor_execute", fail)


async def test_another_process_gets_the_lease_only_when_the_holder_releases_it(
    database: Database, database_url: str
) -> None:
    async with opened(database_url) as elsewhere:
        other = leasing(elsewhere, "b")
        async with held_by(database, "a", seconds=60) as held:
            assert held.is_held
            held.check()
            async with other.hold() as none:
                assert none is None
            # An attempt that failed changes nothing.
            assert await holder_of(database) == "a"
        async with other.hold() as taken:
            assert taken is not None
            assert await holder_of(database) == "b"
        assert await holder_of(database) is None


async def test_lease_is_released_after_an_error(database: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        async with held_by(database, "a"):
            raise ZeroDivisionError
    assert await holder_of(database) is None


async def test_lease_is_renewed_beyond_its_time(database: Database, database_url: str) -> None:
    async with opened(database_url) as elsewhere, held_by(database, "a") as held:
        began_at, until = time.monotonic(), held.until
        assert until <= began_at + SECONDS
        await eventually(lambda: time.monotonic() > until)
        assert held.is_held
        assert await leasing(elsewhere, "b").acquire() is None


async def test_lease_of_a_dead_process_is_taken_over_when_it_lapses(database: Database, database_url: str) -> None:
    async with opened(database_url) as elsewhere:
        # It is not renewed.
        dead = await leasing(database, "a").acquire()
        other = leasing(elsewhere, "b")
        assert dead is not None
        assert await other.acquire() is None
        await eventually(other.acquire)
        # The process itself knows it no later.
        assert not dead.is_held


async def test_restarted_process_takes_over_the_lease_of_its_predecessor_by_its_name(database: Database) -> None:
    before = await leasing(database, "a", seconds=60).acquire()
    after = await leasing(database, "a", seconds=60).acquire()
    assert before is not None
    assert after is not None
    assert after.lease.epoch > before.lease.epoch


async def test_only_the_first_lease_is_taken_from_its_holder_and_only_on_sqlite(database: Database) -> None:
    await take(database)
    starting = leasing(database, "a", take_over=True)
    assert (await starting.acquire() is not None) is database.is_sqlite
    await take(database)
    assert (await starting.acquire() is not None) is False


async def test_lost_lease_is_noticed_and_not_released(database: Database) -> None:
    async with held_by(database, "a") as held:
        await take(database)
        # The wait ends with the loss.
        async with asyncio.timeout(45):
            await held.wait(asyncio.Event(), 600)
        assert not held.is_held
        with pytest.raises(ProcessorLeaseLost):
            held.check()
    assert await holder_of(database) == "thief"


async def test_wait_ends_with_the_event_and_after_its_time(database: Database) -> None:
    async with held_by(database, "a", seconds=60) as held:
        woken = asyncio.Event()
        await held.wait(woken, 0.01)
        await held.wait(woken, -1)
        asyncio.get_running_loop().call_soon(woken.set)
        async with asyncio.timeout(45):
            await held.wait(woken, 600)
        held.check()


async def test_outage_of_the_database_is_survived_or_the_lease_lapses_by_itself(database: Database) -> None:
    async with held_by(database, "a") as held:
        with outage(database) as tried:
            await eventually(lambda: not held.is_held)
            # It was tried again and again.
            assert len(tried) > 1
        # Nobody has taken it: the next renewal succeeds.
        held.check()
        await eventually(lambda: held.is_held)


async def test_lease_that_cannot_be_released_is_left_to_lapse(database: Database) -> None:
    held = await leasing(database, "a").acquire()
    assert held is not None
    with outage(database) as tried:
        await leasing(database, "a").release(held.lease)
        assert len(tried) == 1
        with pytest.raises(StorageUnavailable):
            await leasing(database, "b").acquire()
    assert await holder_of(database) == "a"
