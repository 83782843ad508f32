"""A migrated database is what the models say: tables, columns, indexes and the names of all constraints."""

import asyncio
import re
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel

from receiver.errors import SchemaError
from receiver.models import (  # noqa: F401  (declare the tables)
    alerts,
    callbacks,
    codes,
    events,
    messages,
    reconciliation,
    sinks,
)
from receiver.storage import journal, schema
from receiver.storage.database import Database
from tests.factories import callback, v2_event
from tests.processing import opened
from tests.servers import named_database, on_postgres, random_name

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
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


def sqlite_names(connection: Connection) -> set[str]:
    """Each index as SQLite stores it, and the name of each constraint with its table."""
    found = set()
    rows = connection.exec_driver_sql("SELECT type, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    for kind, table, statement in rows:
        if table in SQLModel.metadata.tables and table not in NOT_IN_SQLITE:
            if kind == "index":
                found.add(" ".join(statement.split()))
            found |= {f"{table}: {name}" for name in re.findall(r"CONSTRAINT (\w+)", statement)}
    return found


def postgresql_names(connection: Connection, schema: str) -> set[str]:
    """Each index and each constraint of a schema, as PostgreSQL prints it."""
    connection.exec_driver_sql(f"SET LOCAL search_path TO {schema}")
    indexes = connection.exec_driver_sql(
        "SELECT tablename, replace(indexdef, schemaname || '.', '') FROM pg_indexes WHERE schemaname = current_schema()"
    )
    constraints = connection.exec_driver_sql(
        "SELECT conrelid::regclass::text, conname || ': ' || pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE connamespace = current_schema()::regnamespace AND contype <> 'n'"
    )
    return {f"{table}: {text}" for table, text in (*indexes, *constraints) if table in SQLModel.metadata.tables}


def made_in_postgresql(connection: Connection) -> set[str]:
    connection.exec_driver_sql("CREATE SCHEMA made")
    connection.exec_driver_sql("SET LOCAL search_path TO made")
    SQLModel.metadata.create_all(connection)
    return postgresql_names(connection, "made")


async def test_migrated_schema_is_that_of_the_models(database: Database) -> None:
    async with database.reading() as connection:
        assert await connection.run_sync(differences) == []


async def test_migrated_indexes_and_constraints_are_those_of_the_models_on_sqlite(sqlite_url: str) -> None:
    async with opened(sqlite_url) as database, database.reading() as connection:
        migrated = await connection.run_sync(sqlite_names)
    engine = create_engine("sqlite://")
    with engine.begin() as made:
        SQLModel.metadata.create_all(made)
        assert migrated == sqlite_names(made)
    engine.dispose()


async def test_migrated_indexes_and_constraints_are_those_of_the_models_on_postgresql(postgres_url: str) -> None:
    async with opened(postgres_url) as database, database.reading() as connection:
        migrated = await connection.run_sync(postgresql_names, "public")
        assert migrated == await connection.run_sync(made_in_postgresql)
        await connection.rollback()


REPLAY = (
    "INSERT INTO replays (sink, state, after_position, to_position, position, published, dead_letters, requested_at) "
    "VALUES ('s', '{state}', 0, 1, 0, 0, 0, '2026-01-01T00:00:00.000000Z')"
)
FILLED = (
    (
        "INSERT INTO sinks (name, cursor, epoch, revision, paused, fingerprint, failures, seen_at) "
        "VALUES ('s', 0, 0, 0, 0, '', 0, '2026-01-01T00:00:00.000000Z')"
    ),
    (
        "INSERT INTO events (position, id, api, message_id, direction, type, status, received_at, tag_verdict, route, "
        "callback_id, changed, facts, delivery) VALUES (7, 'e', 'v2', 'm', 'out', 't', 'sending', "
        "'2026-01-01T00:00:00.000000Z', 'unchecked', 'primary', 'c', 1, '{}', '{}')"
    ),
    (
        "INSERT INTO retries (sink, position, ordering_key, state, attempts, first_at) "
        "VALUES ('s', 7, 'k', 'held', 3, '2026-01-01T00:00:00.000000Z')"
    ),
    REPLAY.format(state="finished"),
    REPLAY.format(state="running"),
    "DELETE FROM replays WHERE state = 'running'",
)


def upgrade_to_0005(connection: Connection) -> None:
    upgrade_to(connection, "0005")


def upgrade_to(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def rows(connection: Connection) -> list[Any]:
    # The columns that later revisions add come last.
    columns = {"retries": 8, "replays": 10}
    return [
        row[:number]
        for table, number in columns.items()
        for row in connection.exec_driver_sql(f"SELECT * FROM {table}")
    ]


async def test_names_of_an_existing_sqlite_database_are_mended_without_losing_a_row(tmp_path: Path) -> None:
    file = tmp_path / "receiver.db"
    file.touch()
    async with opened(f"sqlite:///{file}") as database:
        async with database.migrating() as connection:
            await connection.run_sync(upgrade_to_0005)
            for statement in FILLED:
                await connection.execute(text(statement))
            before = await connection.run_sync(rows)
        await schema.migrate(database)
        async with database.writing() as connection:
            assert await connection.run_sync(rows) == before
            assert not await connection.run_sync(differences)
            with pytest.raises(IntegrityError, match="ck_retries_state"):
                await connection.execute(text("UPDATE retries SET state = 'lost'"))
            await connection.execute(text(REPLAY.format(state="paused")))
            # Replay 2 was removed, and its number is given to no other.
            assert (await connection.execute(text("SELECT max(id) FROM replays"))).scalar_one() == 3


async def test_reporting_user_can_read_the_view_after_an_upgrade(postgres: str) -> None:
    name, role = random_name(), f"reporting_{random_name()}"
    await asyncio.to_thread(on_postgres, postgres, f"CREATE DATABASE {name}", f"CREATE ROLE {role}")
    try:
        async with opened(named_database(postgres, name)) as database:
            async with database.migrating() as connection:
                await connection.run_sync(upgrade_to_0005)
                await connection.execute(text(f"GRANT SELECT ON message_status TO {role}"))
                await connection.execute(text("CREATE VIEW failures AS SELECT status FROM message_status"))
            await schema.migrate(database)
            async with database.reading() as connection:
                may_read = text(f"SELECT has_table_privilege('{role}', 'message_status', 'SELECT')")
                assert await connection.scalar(may_read) is True
                assert await connection.scalar(text("SELECT count(delivered_received_at) FROM message_status")) == 0
    finally:
        await asyncio.to_thread(on_postgres, postgres, f"DROP DATABASE {name} WITH (FORCE)", f"DROP ROLE {role}")


@pytest.fixture
async def old(postgres: str) -> AsyncIterator[tuple[Database, str]]:
    """A PostgreSQL database before the migration that changes the view, and its URL."""
    url = named_database(postgres, random_name())
    name = url.rpartition("/")[2].partition("?")[0]
    await asyncio.to_thread(on_postgres, postgres, f"CREATE DATABASE {name}")
    try:
        async with opened(url) as database:
            async with database.migrating() as connection:
                await connection.run_sync(upgrade_to, "0008")
            yield database, url
    finally:
        await asyncio.to_thread(on_postgres, postgres, f"DROP DATABASE {name} WITH (FORCE)")


@asynccontextmanager
async def report(url: str, *statements: str) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """A transaction of a reporting tool that has run these statements and goes on; it runs more of them."""
    session = await asyncpg.connect(url)
    try:
        transaction = session.transaction()
        await transaction.start()

        async def run(statement: str) -> None:
            await session.fetch(statement)

        for statement in statements:
            await run(statement)
        yield run
        await transaction.commit()
    finally:
        await session.close(timeout=5)


VIEW, MESSAGES, DELIVERIES = (f"SELECT * FROM {name}" for name in ("message_status", "messages", "deliveries"))


@pytest.mark.parametrize(
    ("before", "later"),
    [
        pytest.param((VIEW,), DELIVERIES, id="view"),
        pytest.param((DELIVERIES,), MESSAGES, id="deliveries"),
        pytest.param((DELIVERIES,), VIEW, id="deliveries-view", marks=pytest.mark.slow),
        pytest.param((MESSAGES,), DELIVERIES, id="messages", marks=pytest.mark.slow),
    ],
)
async def test_migration_waits_for_a_report_without_a_deadlock_and_holds_up_no_callback(
    old: tuple[Database, str], before: tuple[str, ...], later: str
) -> None:
    database, url = old
    writer = journal.journal_writer(database)
    try:
        async with report(url, *before) as run:
            migrating, seconds = asyncio.create_task(schema.migrate(database)), list[float]()
            for number in range(20):
                begun = time.monotonic()
                await writer.append([callback([v2_event(f"m{number}")], received=number)])
                seconds.append(time.monotonic() - begun)
                await asyncio.sleep(0.25)
            assert not migrating.done()
            # The report goes on to tables that the migration wants too.
            async with asyncio.timeout(10):
                await run(later)
        async with asyncio.timeout(20):
            await migrating
        await schema.check(database)
        # A busy disk may hold up one or two; a lock of the migration would hold up most of them.
        assert sorted(seconds)[-3] < 1
    finally:
        await writer.close()


async def test_migration_gives_up_on_a_report_without_end_and_says_so(
    old: tuple[Database, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, url = old
    monkeypatch.setattr(schema, "LOCK_SECONDS", 2.0)
    async with report(url, VIEW):
        with pytest.raises(SchemaError, match=r"^messages, deliveries, .* are in use by the sessions \d+ of Post"):
            await schema.migrate(database)
        assert await schema.current(database) == "0008"
    await schema.migrate(database)
    await schema.check(database)
