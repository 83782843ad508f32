"""Leases: which process works on something, and until when, by the database's clock.

A table with a lease has the columns `epoch`, `lease_holder` and `lease_until`. The epoch rises with every change of the
holder. Each write of a holder names its epoch, so a process that was suspended beyond its lease changes nothing.
"""

from typing import Any

from sqlalchemy import ColumnElement, Update, literal, or_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.storage.database import Database


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
