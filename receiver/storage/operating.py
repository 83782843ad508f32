"""What an operator does to a sink. Each action takes the sink's row first, as its holder does before it settles."""

from typing import Any

from sqlalchemy import Row, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.errors import Unknown
from receiver.storage.database import Database
from receiver.storage.sink_tables import SINKS


class UnknownSink(Unknown):
    """No sink of this name was ever registered in this database."""


async def lock(connection: AsyncConnection, sink: str, **changes: Any) -> Row[Any]:
    """Takes the sink's row until the transaction ends, and returns it.

    Everyone who writes its retries, dead letters or replays does so; the revision counts the operators' actions.
    """
    raised = update(SINKS).where(SINKS.c.name == sink).values(revision=SINKS.c.revision + 1, **changes)
    return _known(sink, (await connection.execute(raised.returning(*SINKS.c))).one_or_none())


async def row_of(connection: AsyncConnection, sink: str) -> Row[Any]:
    """The sink's row, just to look at."""
    return _known(sink, (await connection.execute(select(SINKS).where(SINKS.c.name == sink))).one_or_none())


async def pause(database: Database, sink: str, *, paused: bool) -> None:
    """Has nothing more published to a sink, or goes on from where it was; what comes meanwhile waits in the log."""
    async with database.writing() as connection:
        await lock(connection, sink, paused=paused)


def _known(sink: str, row: Row[Any] | None) -> Row[Any]:
    if row is None:
        raise UnknownSink(f"there is no sink {sink}")
    return row
