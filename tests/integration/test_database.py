"""The connection to the database: the URLs users write, and which errors mean "not now"."""

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text

from receiver.errors import SchemaError, SettingsError, StorageUnavailable
from receiver.storage import schema
from receiver.storage.database import Database, driver_url, is_sqlite
from receiver.storage.journal import journal_writer
from tests.factories import callback, v2_event
from tests.servers import named_database, on_postgres, random_name

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("url", "driver", "query"),
    [
        ("sqlite:////data/receiver.db", "sqlite+aiosqlite", {}),
        ("postgresql://u:p@db/receiver", "postgresql+asyncpg", {}),
        ("postgresql://u:p@db/receiver?sslmode=require", "postgresql+asyncpg", {"ssl": "require"}),
        ("postgres://u:p@db/receiver", "postgresql+asyncpg", {}),
        (
            "postgresql://u:p@db/receiver?sslmode=require&channel_binding=require&connect_timeout=10",
            "postgresql+asyncpg",
            {"ssl": "require"},
        ),
        ("postgresql:///receiver?host=/var/run/postgresql", "postgresql+asyncpg", {"host": "/var/run/postgresql"}),
    ],
)
def test_the_driver_is_ours_to_name(url: str, driver: str, query: dict[str, str]) -> None:
    made = driver_url(url)
    assert (made.drivername, dict(made.query)) == (driver, query)
    assert is_sqlite(url) is url.startswith("sqlite")


@pytest.mark.parametrize("url", ["", "no url", "sqlite://", "sqlite:///:memory:", "mysql://u@h/d"])
def test_what_cannot_be_a_database_is_refused_by_name(url: str) -> None:
    with pytest.raises(SettingsError, match="RECEIVER_DATABASE_URL"):
        driver_url(url)


def test_unknown_parameter_of_a_url_is_refused_without_its_password() -> None:
    with pytest.raises(SettingsError, match=r"^RECEIVER_DATABASE_URL: the parameter colour is not supported$"):
        driver_url("postgresql://u:hunter2@db/receiver?sslmode=require&colour=hunter2")


@pytest.mark.parametrize("wrong", ["database", "port"])
async def test_a_server_that_does_not_let_us_in_is_unavailable(postgres_url: str, wrong: str) -> None:
    away = (
        named_database(postgres_url, "receiver_test_nowhere") if wrong == "database" else "postgresql://u@127.0.0.1:1/d"
    )
    database = Database(away)
    for use in (database.reading, database.writing, database.appending):
        with pytest.raises(StorageUnavailable) as caught:
            async with use():
                pass
        assert "\n" not in str(caught.value)
        assert "sqlalche" not in str(caught.value)
    await database.close()


async def test_migrating_twice_changes_nothing_and_check_is_content(database_url: str) -> None:
    database = Database(database_url)
    await schema.migrate(database)
    await schema.check(database)
    assert await schema.current(database) == schema.NEWEST
    await database.close()


async def appended(database: Database) -> None:
    async with database.appending() as transaction:
        await transaction.execute("UPDATE processor SET repeats = repeats + 1")


async def written(database: Database) -> None:
    async with database.writing() as connection:
        await connection.execute(text("UPDATE processor SET repeats = repeats + 1"))


@pytest.mark.parametrize("kind", ["journal", "appending", "writing"])
async def test_connection_made_to_a_read_only_server_is_thrown_away(
    postgres: str, postgres_url: str, kind: str
) -> None:
    """After a failover a new connection leads to the new primary, while an old one never takes a write again."""
    name = urlsplit(postgres_url).path.removeprefix("/")
    database = Database(postgres_url)
    writer = journal_writer(database)
    uses = {
        "journal": lambda: writer.append([callback([v2_event()])]),
        "appending": lambda: appended(database),
        "writing": lambda: written(database),
    }
    await asyncio.to_thread(on_postgres, postgres, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            await uses[kind]()
    await asyncio.to_thread(on_postgres, postgres, f"ALTER DATABASE {name} RESET default_transaction_read_only")
    with suppress(StorageUnavailable):
        # The connection that was open in between may be found out by this use.
        await uses[kind]()
    await uses[kind]()
    await writer.close()
    await database.close()


async def test_database_that_is_not_utf_8_is_refused(postgres: str) -> None:
    name = random_name()
    await asyncio.to_thread(
        on_postgres,
        postgres,
        f"CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
    )
    database = Database(named_database(postgres, name))
    try:
        for use in (schema.migrate, schema.check):
            with pytest.raises(SchemaError, match=r"^the database has the encoding LATIN1, "):
                await use(database)
    finally:
        await database.close()
        await asyncio.to_thread(on_postgres, postgres, f"DROP DATABASE {name} WITH (FORCE)")
