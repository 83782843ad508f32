"""The right to work for a sink: one holder at a time, each fenced off from the one before."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, and_, literal, or_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.errors import ReceiverError
from receiver.storage.database import Database
from receiver.storage.sink_tables import SINKS


class LeaseLost(ReceiverError):
    """Another process works for this sink; nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a sink is doing: failures in a row, since when it is down, its last success and its last complaint."""

    failures: int = 0
    down_since_at: datetime | None = None
    last_success_at: datetime | None = None
    last_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to work for a sink; `epoch` fences off whoever held it before."""

    sink: str
    epoch: int
    cursor: int
    health: Health


async def acquire(
    database: Database, name: str, *, holder: str, fingerprint: str, seconds: float, take_over: bool = False
) -> Lease | None:
    """Takes the lease of a sink if nobody else holds it, by the database's clock; `take_over` takes it all the same.

    A lease of the same `holder` is that of a worker which died before this one.
    """
    lapsed = or_(SINKS.c.lease_until.is_(None), SINKS.c.lease_until < database.clock())
    free = or_(lapsed, SINKS.c.lease_holder == holder)
    statement = (
        update(SINKS)
        .where(SINKS.c.name == name, literal(True) if take_over else free)
        .values(epoch=SINKS.c.epoch + 1, lease_holder=holder, lease_until=database.clock(seconds))
        .values(fingerprint=fingerprint, seen_at=database.clock())
        .returning(*SINKS.c)
    )
    async with database.writing() as connection:
        row = (await connection.execute(statement)).one_or_none()
    return _lease(row) if row is not None else None


async def renew(database: Database, lease: Lease, *, seconds: float) -> None:
    """Prolongs a lease; raises LeaseLost if it is no longer ours."""
    values = {"lease_until": database.clock(seconds), "seen_at": database.clock()}
    async with database.writing() as connection:
        await hold(connection, lease, values)


async def release(database: Database, lease: Lease) -> None:
    """Gives a lease back; one that is lost already is let be."""
    mine = and_(SINKS.c.name == lease.sink, SINKS.c.epoch == lease.epoch)
    async with database.writing() as connection:
        await connection.execute(update(SINKS).where(mine).values(lease_holder=None, lease_until=None))


async def hold(connection: AsyncConnection, lease: Lease, values: dict[str, Any]) -> None:
    """Updates the sink's row, which also locks it; raises LeaseLost if the lease is no longer ours."""
    mine = and_(SINKS.c.name == lease.sink, SINKS.c.epoch == lease.epoch)
    if not (await connection.execute(update(SINKS).where(mine).values(**values))).rowcount:
        raise LeaseLost(f"another process works for sink {lease.sink}")


def _lease(row: Row[Any]) -> Lease:
    health = Health(
        failures=row.failures,
        down_since_at=row.down_since_at,
        last_success_at=row.last_success_at,
        last_error=row.last_error,
    )
    return Lease(sink=row.name, epoch=row.epoch, cursor=row.cursor, health=health)
