"""Counts refused requests to the callback routes by minute and reason; every web process adds its own."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from receiver.models.alerts import REFUSALS
from receiver.storage.database import Database

KEPT: Final = timedelta(hours=25)
"""Rules look back a day at most."""
_AHEAD: Final = timedelta(minutes=5)


def minute_of(moment: datetime) -> int:
    """The minute of a time, counted from 1970 in UTC."""
    return int(moment.timestamp() // 60)


async def add(database: Database, requests: Mapping[tuple[int, str], int], now: datetime) -> None:
    """Adds requests by minute and reason, and removes the minutes that are no longer needed.

    Minutes that are still to come were counted by a clock that was ahead: they would be recent once these have come.
    """
    insert = database.insert(REFUSALS)
    added = insert.on_conflict_do_update(
        index_elements=["minute", "reason"], set_={"requests": REFUSALS.c.requests + insert.excluded.requests}
    )
    rows = [
        {"minute": minute, "reason": reason, "requests": number}
        for (minute, reason), number in sorted(requests.items())
    ]
    async with database.writing() as connection:
        oldest, newest = minute_of(now - KEPT), minute_of(now + _AHEAD)
        await connection.execute(REFUSALS.delete().where(~REFUSALS.c.minute.between(oldest, newest)))
        await connection.execute(added, rows)
