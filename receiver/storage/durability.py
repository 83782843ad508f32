"""What a PostgreSQL server is told about durability, where that could lose what was acknowledged."""

from typing import Final

from sqlalchemy import text as sql

from receiver.storage.database import Database

_COST: Final = {
    "fsync": "a crash of the machine can destroy the database",
    "full_page_writes": "a crash of the machine can damage the database",
    "synchronous_commit": "callbacks that were answered 200 can be lost when the server crashes",
}
_SHOW: Final = sql(
    "SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit')"
)


async def weaknesses(database: Database) -> list[str]:
    """A line for each of the server's settings that is off and should not be; SQLite is told by us, so it has none."""
    if database.is_sqlite:
        return []
    async with database.reading() as connection:
        rows = (await connection.execute(_SHOW)).all()
    return [f"PostgreSQL runs with {row.name} = off: {_COST[row.name]}" for row in sorted(rows) if row.setting == "off"]
