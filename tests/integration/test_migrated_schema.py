"""A migrated database is what the models say: tables, columns, indexes and the names of all constraints."""

import warnings
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, Connection, inspect
from sqlmodel import SQLModel

from receiver.models import callbacks, codes, events, messages, sinks  # noqa: F401  (declare the tables)
from receiver.storage.database import Database
from tests.processing import opened

pytestmark = pytest.mark.anyio

# SQLite has the journal in a file of its own, and needs no list of what is pending.
NOT_IN_SQLITE = {callbacks.CallbackRow.__tablename__, callbacks.PendingCallbackRow.__tablename__}


def differences(connection: Connection) -> list[Any]:
    is_sqlite = connection.dialect.name == "sqlite"

    def is_compared(_: Any, name: str | None, kind: str, __: bool, ___: Any) -> bool:
        return not (is_sqlite and kind == "table" and name in NOT_IN_SQLITE)

    options = {"compare_type": True, "compare_server_default": True, "include_object": is_compared}
    with warnings.catch_warnings():
        # SQLAlchemy reflects no index on an expression in SQLite.
        warnings.filterwarnings("ignore", message=".*expression-based index")
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), SQLModel.metadata))


def constraint_names(connection: Connection) -> tuple[set[str | None], set[str | None]]:
    """The names of constraints as the models have them, and as the database has them."""
    inspector = inspect(connection)
    modelled, found = set(), set()
    for name in inspector.get_table_names():
        if (table := SQLModel.metadata.tables.get(name)) is None:
            continue
        modelled |= {
            str(constraint.name) for constraint in table.constraints if isinstance(constraint, CheckConstraint)
        }
        modelled |= {str(constraint.name) for constraint in (table.primary_key, *table.foreign_key_constraints)}
        found |= {constraint["name"] for constraint in inspector.get_check_constraints(name)}
        found |= {inspector.get_pk_constraint(name)["name"]}
        found |= {constraint["name"] for constraint in inspector.get_foreign_keys(name)}
    return modelled, found


async def test_migrated_schema_is_that_of_the_models(database: Database) -> None:
    async with database.reading() as connection:
        assert await connection.run_sync(differences) == []


async def test_migrated_constraints_have_the_names_of_the_models(postgres_url: str) -> None:
    # SQLite does not rename constraints, and nothing there depends on their names.
    async with opened(postgres_url) as database, database.reading() as connection:
        modelled, found = await connection.run_sync(constraint_names)
    assert found == modelled
