"""Runs the migrations on the connection that `receiver.storage.schema` hands over, or on RECEIVER_DATABASE_URL."""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection
from sqlmodel import SQLModel

from receiver.models import alerts, callbacks, codes, events, messages, sinks
from receiver.storage.database import Database

# The imports fill the metadata.
assert alerts and callbacks and codes and events and messages and sinks  # noqa: PT018, S101


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def run_by_hand() -> None:
    database = Database(os.environ["RECEIVER_DATABASE_URL"])
    async with database.migrating() as connection:
        await connection.run_sync(run)
    await database.close()


handed_over = context.config.attributes.get("connection")
if handed_over is not None:
    run(handed_over)
else:
    asyncio.run(run_by_hand())
