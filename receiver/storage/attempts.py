"""The record of attempts: what each sink was told about a message, when, and what it said to that."""

from typing import Final

from sqlalchemy import and_, select, true
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.events import MessageKey
from receiver.domain.queries import AttemptView
from receiver.storage.event_log import EVENTS
from receiver.storage.sink_tables import ATTEMPTS

_COLUMNS: Final = (*ATTEMPTS.c, EVENTS.c.recipient, EVENTS.c.status)


async def of_message(connection: AsyncConnection, key: MessageKey, sink: str | None) -> list[AttemptView]:
    """All attempts to publish a message's events, perhaps to one sink alone, in the order in which they ended."""
    api, direction, message_id = key
    statement = (
        select(*_COLUMNS)
        .join(EVENTS, EVENTS.c.position == ATTEMPTS.c.position)
        .where(and_(EVENTS.c.message_id == message_id, EVENTS.c.api == api, EVENTS.c.direction == direction))
        .where(ATTEMPTS.c.sink == sink if sink is not None else true())
        .order_by(ATTEMPTS.c.id)
    )
    return [AttemptView(**row._mapping) for row in await connection.execute(statement)]
