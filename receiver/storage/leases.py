"""Leases: which process works on something, and until when, by the database's clock.

A table with a lease has the columns `epoch`, `lease_holder` and `lease_until`. The epoch rises with every change of the
holder. Each write of a holder names its epoch, so a process that was suspended beyond its lease changes nothing.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Generic, TypeVar
from uuid import uuid4

from sqlalchemy import ColumnElement, Update, literal, or_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.errors import StorageUnavailable
from receiver.storage.database import Database

# A lease is renewed after this part of it: a renewal or two may fail without its loss.
_RENEWED_AFTER: Final = 1 / 4

AnyLease = TypeVar("AnyLease")

# --- the statements ---


def is_free(database: Database, table: Any, holder: str, *, take_over: bool = False) -> ColumnElement[bool]:
    """Whether the holder may take a lease: it has lapsed, or is the holder's own; with `take_over` in any case.

    A lease of the same holder belongs to its dead predecessor.
    """
    if take_over:
        return literal(True)
    lapsed = or_(table.c.lease_until.is_(None), table.c.lease_until < database.clock())
    return or_(lapsed, table.c.lease_holder == holder)


def taken(
    database: Database, table: Any, *conditions: ColumnElement[bool], holder: str, seconds: float, take_over: bool
) -> Update:
    """The statement that takes a lease if it is free."""
    free = is_free(database, table, holder, take_over=take_over)
    lease = {"epoch": table.c.epoch + 1, "lease_holder": holder, "lease_until": database.clock(seconds)}
    return update(table).where(*conditions, free).values(**lease)


async def hold(
    connection: AsyncConnection, table: Any, *conditions: ColumnElement[bool], epoch: int, **values: Any
) -> bool:
    """Updates the row of a lease, which also locks it; False if another process has the lease."""
    mine = update(table).where(*conditions, table.c.epoch == epoch).values(**values)
    return bool((await connection.execute(mine)).rowcount)


async def release(database: Database, table: Any, *conditions: ColumnElement[bool], epoch: int, **values: Any) -> None:
    """Releases a lease; does nothing if it is lost already."""
    async with database.writing() as connection:
        await hold(connection, table, *conditions, epoch=epoch, lease_holder=None, lease_until=None, **values)


# --- the use ---


class Held(Generic[AnyLease]):
    """A lease of this process, which changes `lease` as its work goes on."""

    def __init__(self, lease: AnyLease, until: float) -> None:
        self.lease = lease
        # By the monotonic clock, from before the statement was sent; minus infinity: another process has the lease.
        self.until = until
        self.renewal: asyncio.Task[None] | None = None

    @property
    def is_held(self) -> bool:
        """Whether the lease is neither lost nor lapsed, as far as this process knows."""
        return time.monotonic() < self.until

    def check(self) -> None:
        """Raises the error of the renewal that found that another process has the lease."""
        if self.renewal is not None and self.renewal.done():
            self.renewal.result()

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Waits for an event, for the loss of the lease, or until some seconds have passed."""
        coming = asyncio.create_task(event.wait())
        renewal = () if self.renewal is None else (self.renewal,)
        try:
            await asyncio.wait((coming, *renewal), timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
        finally:
            coming.cancel()


class Leasing(Generic[AnyLease]):
    """How this process acquires, renews and releases a lease, with three functions of its table.

    `holder` is the name of this process in the lease; None: one of its own. With `take_over`, the first lease is taken
    from its holder on SQLite.
    """

    def __init__(
        self,
        database: Database,
        acquire: Callable[..., Awaitable[AnyLease | None]],
        renew: Callable[..., Awaitable[None]],
        release: Callable[..., Awaitable[None]],
        *,
        seconds: float,
        holder: str | None = None,
        take_over: bool = True,
    ) -> None:
        self._database = database
        self._acquire, self._renew, self._release = acquire, renew, release
        self._seconds = seconds
        self._holder = holder or uuid4().hex
        # SQLite has one worker, by the lock of its file: a lease found at the start belongs to a dead worker.
        self._take_over = take_over and database.is_sqlite

    async def acquire(self, **values: Any) -> Held[AnyLease] | None:
        """Takes the lease if no other process has it; `values` are further arguments of `acquire`."""
        until = time.monotonic() + self._seconds
        lease = await self._acquire(
            self._database, holder=self._holder, seconds=self._seconds, take_over=self._take_over, **values
        )
        if lease is None:
            return None
        self._take_over = False
        return Held(lease, until)

    @asynccontextmanager
    async def hold(self, **values: Any) -> AsyncIterator[Held[AnyLease] | None]:
        """Acquires the lease, renews it in the background, and releases it at the end; None: another process has it."""
        held = await self.acquire(**values)
        if held is None:
            yield None
            return
        try:
            async with self.renewed(held):
                yield held
        finally:
            await self.release(held.lease)

    @asynccontextmanager
    async def renewed(self, held: Held[AnyLease]) -> AsyncIterator[None]:
        """Renews a lease until the end, or until it is lost; in an outage of the database it lapses by itself."""
        held.renewal = asyncio.create_task(self._keep(held))
        try:
            yield
        finally:
            held.renewal.cancel()
            await asyncio.gather(held.renewal, return_exceptions=True)

    async def release(self, lease: AnyLease) -> None:
        """Releases a lease, so that the next holder need not wait; in an outage of the database it lapses by itself."""
        with suppress(StorageUnavailable):
            await self._release(self._database, lease)

    async def _keep(self, held: Held[AnyLease]) -> None:
        while True:
            await asyncio.sleep(self._seconds * _RENEWED_AFTER)
            until = time.monotonic() + self._seconds
            try:
                await self._renew(self._database, held.lease, seconds=self._seconds)
            except StorageUnavailable:
                continue
            except Exception:
                held.until = float("-inf")
                raise
            held.until = until
