"""The schema: brings it up to date by the migrations in the package, or says what it lacks."""

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.errors import SchemaError
from receiver.providers import bandwidth_codes
from receiver.storage.database import Database
from receiver.storage.tables import DeliveryCodeRow

_PACKAGE = Path(__file__).resolve().parent.parent


def _migrations() -> Path:
    """The migrations: beside the package's modules in a wheel, beside the package in a checkout."""
    shipped = _PACKAGE / "migrations"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "migrations"


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_migrations()).replace("%", "%%"))
    return config


def newest() -> str:
    """The revision this version works with."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None  # noqa: S101
    return head


async def current(database: Database) -> str | None:
    """The revision the database is at; None for an empty one."""

    def revision(connection: Connection) -> str | None:
        return MigrationContext.configure(connection).get_current_revision()

    async with database.reading() as connection:
        return await connection.run_sync(revision)


async def migrate(database: Database) -> None:
    """Brings the schema and the code catalogue up to date, in one transaction; one process at a time."""

    def upgrade(connection: Connection) -> None:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    _refuse_unknown(await current(database))
    async with database.writing() as connection:
        await database.lock_intake(connection)
        await connection.run_sync(upgrade)
        await _write_codes(database, connection)


async def check(database: Database) -> None:
    """Raises SchemaError, with the command to run, unless the schema is this version's."""
    revision = await current(database)
    if revision != newest():
        _refuse_unknown(revision)
        found = f"revision {revision}" if revision else "no tables"
        raise SchemaError(f"the database has {found}, this version needs {newest()}; run: receiver migrate")


def _refuse_unknown(revision: str | None) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision is not None and revision not in known:
        raise SchemaError(f"the database has revision {revision}, which a newer receiver made; this version is too old")


async def _write_codes(database: Database, connection: AsyncConnection) -> None:
    table: Any = DeliveryCodeRow.__table__  # type: ignore[attr-defined]
    insert = database.insert(table)
    values = {column.name: insert.excluded[column.name] for column in table.columns if not column.primary_key}
    rows = [
        {column.name: getattr(entry, column.name) for column in table.columns} for entry in bandwidth_codes.catalogue()
    ]
    await connection.execute(insert.on_conflict_do_update(index_elements=["api", "code"], set_=values), rows)
