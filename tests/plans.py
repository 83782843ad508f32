"""The query plan of a statement."""

from typing import Any

from sqlalchemy import ClauseElement, Executable
from sqlalchemy.ext.compiler import compiles

from receiver.models.queries import MessageQuery
from receiver.storage import messages
from receiver.storage.database import Database


class Explained(Executable, ClauseElement):
    """The query plan of a statement with bound parameters."""

    inherit_cache = False

    def __init__(self, statement: Any) -> None:
        self.statement = statement


@compiles(Explained, "sqlite")
def _(element: Explained, compiler: Any, **options: Any) -> str:
    return "EXPLAIN QUERY PLAN " + compiler.process(element.statement, **options)


@compiles(Explained, "postgresql")
def _(element: Explained, compiler: Any, **options: Any) -> str:
    return "EXPLAIN " + compiler.process(element.statement, **options)


async def plan(database: Database, query: MessageQuery) -> str:
    """The plan for a page of messages."""
    async with database.reading() as connection:
        return "\n".join(str(row) for row in await connection.execute(Explained(messages.statement(query))))
