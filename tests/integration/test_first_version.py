"""A database of the first version comes along: every callback, event, status and dead letter, on both databases.

`fixtures/first_version.json` holds the rows that the first version's server wrote for 144 callbacks of every kind, with
a sink that refused some events.
"""

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Column, Connection, LargeBinary, MetaData, Table, inspect, text
from sqlalchemy.dialects.postgresql import BOOLEAN, BYTEA, JSONB, TIMESTAMP

from receiver.domain.delivery import FinalConflict
from receiver.storage import schema
from receiver.storage.database import Database
from receiver.storage.rebuild import Rebuild
from tests.factories import callback, v2_event
from tests.processing import process
from tests.servers import named_database, on_postgres, random_name

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
FIRST_VERSION: dict[str, list[dict[str, Any]]] = json.loads(
    (ROOT / "tests/fixtures/first_version.json").read_text("utf-8")
)
TABLES = ("callbacks", "events", "messages", "deliveries", "sinks", "retries", "attempts", "dead_letters", "replays")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def migrated_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database of the first version, migrated once for all tests: they must not change it."""

    async def migrate(url: str) -> None:
        await fill(url)
        database = Database(url)
        await schema.migrate(database)
        await database.close()

    if request.param == "sqlite":
        file = tmp_path_factory.mktemp("first_version") / "receiver.db"
        file.touch()
        asyncio.run(migrate(url := f"sqlite:///{file}"))
        yield url
        return
    server, name = request.getfixturevalue("postgres"), random_name()
    on_postgres(server, f"CREATE DATABASE {name}")
    asyncio.run(migrate(url := named_database(server, name)))
    yield url
    on_postgres(server, f"DROP DATABASE {name} WITH (FORCE)")


async def fill(url: str) -> None:
    """Makes the tables as the first version had them, and puts its rows in."""
    database = Database(url)

    def work(connection: Connection) -> None:
        config = Config(str(ROOT / "alembic.ini"))
        config.set_main_option("script_location", str(ROOT / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        found = inspect(connection)
        for name in TABLES:
            table = Table(name, MetaData(), *(Column(one["name"], one["type"]) for one in found.get_columns(name)))
            if rows := [stored(table, row) for row in FIRST_VERSION[name]]:
                connection.execute(table.insert(), rows)
        if connection.dialect.name == "postgresql":
            for name, column in (("events", "position"), ("attempts", "id"), ("dead_letters", "id")):
                connection.execute(
                    text(f"SELECT setval(pg_get_serial_sequence('{name}', '{column}'), max({column})) FROM {name}")
                )

    async with database.migrating() as connection:
        await connection.run_sync(work)
    await database.close()


CONVERTED: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (TIMESTAMP, datetime.fromisoformat),
    (JSONB, json.loads),
    (BOOLEAN, bool),
    (BYTEA, base64.b64decode),
    (LargeBinary, base64.b64decode),
)


def stored(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    """A row with its values as the table's database takes them."""
    return {name: value if value is None else converted(table.c[name].type, value) for name, value in row.items()}


def converted(kind: Any, value: Any) -> Any:
    return next((convert(value) for known, convert in CONVERTED if isinstance(kind, known)), value)


async def select(database: Database, statement: str) -> list[Any]:
    async with database.reading() as connection:
        return [tuple(row) for row in await connection.execute(text(statement))]


@pytest.fixture
async def migrated(migrated_url: str) -> AsyncIterator[Database]:
    database = Database(migrated_url)
    yield database
    await database.close()


@pytest.fixture
def copied_url(migrated_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    if migrated_url.startswith("sqlite"):
        for file in Path(migrated_url.removeprefix("sqlite:///")).parent.iterdir():
            shutil.copy(file, tmp_path)
        yield f"sqlite:///{tmp_path / 'receiver.db'}"
        return
    server, name = request.getfixturevalue("postgres"), random_name()
    on_postgres(server, f"CREATE DATABASE {name} TEMPLATE {urlsplit(migrated_url).path[1:]}")
    yield named_database(server, name)
    on_postgres(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def copied(copied_url: str) -> AsyncIterator[Database]:
    """A copy of the migrated database, for a test that changes it."""
    database = Database(copied_url)
    yield database
    await database.close()


async def test_migration_keeps_every_callback_byte_for_byte(migrated: Database) -> None:
    found = await select(migrated, "SELECT id, route, method, query, body FROM callbacks ORDER BY id")
    expected = [
        (row["id"], row["route"], row["method"], row["query"], base64.b64decode(row["body"]))
        for row in sorted(FIRST_VERSION["callbacks"], key=lambda row: str(row["id"]))
    ]
    assert [(*row[:4], bytes(row[4])) for row in found] == expected


async def test_migration_keeps_quarantined_elements_with_their_reasons(migrated: Database) -> None:
    found = await select(migrated, "SELECT callback_id, element, reason, detail FROM quarantine ORDER BY 1, 2")
    expected = [
        (row["id"], problem["index"], problem["reason"], problem["detail"])
        for row in FIRST_VERSION["callbacks"]
        for problem in json.loads(row["problems"] or "[]")
    ]
    assert found == sorted(expected)


async def test_migration_keeps_events_and_their_positions(migrated: Database) -> None:
    found = await select(migrated, "SELECT position, id, callback_id, status FROM events ORDER BY position")
    names = ("position", "id", "callback_id", "status")
    assert found == [tuple(row[name] for name in names) for row in FIRST_VERSION["events"]]


async def test_migration_keeps_statuses_equal(migrated: Database) -> None:
    names = [name for name in FIRST_VERSION["message_status"][0] if not name.endswith("_at")]
    found = await select(
        migrated, f"SELECT {', '.join(names)} FROM message_status ORDER BY api, message_id, direction, recipient"
    )
    key = names.index("message_id"), names.index("recipient")
    expected = [tuple(row[name] for name in names) for row in FIRST_VERSION["message_status"]]

    def by_key(row: tuple[Any, ...]) -> tuple[str, str]:
        return row[key[0]], row[key[1]] or ""

    assert sorted(found, key=by_key) == sorted(expected, key=by_key)


@pytest.mark.parametrize("table", ["sinks", "retries", "attempts", "dead_letters", "replays"])
async def test_migration_keeps_what_sinks_have_yet_to_get(migrated: Database, table: str) -> None:
    [(number,)] = await select(migrated, f"SELECT count(*) FROM {table}")
    assert number == len(FIRST_VERSION[table])
    assert number > 0 or table == "replays"


async def test_rebuild_splits_messages_that_mixed_inbound_and_outbound_and_changes_no_other(copied: Database) -> None:
    directions: dict[str, set[str]] = {}
    for event in FIRST_VERSION["events"]:
        directions.setdefault(event["message_id"], set()).add(event["direction"])
    mixed = {message_id for message_id, found in directions.items() if len(found) > 1}
    assert mixed
    before = await statuses(copied, mixed)
    assert (await Rebuild(copied, FinalConflict.FAILED_WINS).run()).differing > 0
    assert await statuses(copied, mixed) == before
    split = await select(copied, "SELECT id, direction FROM messages ORDER BY id, direction")
    assert {(message_id, direction) for message_id in mixed for direction in ("in", "out")} <= set(split)
    assert (await Rebuild(copied, FinalConflict.FAILED_WINS, writes=False).run()).differing == 0


async def statuses(database: Database, left_out: set[str]) -> list[Any]:
    """The status of each delivery, but for some messages."""
    rows = await select(database, "SELECT message_id, direction, recipient, status, message_status FROM message_status")
    return sorted((row for row in rows if row[0] not in left_out), key=str)


async def test_migrated_database_has_nothing_pending(copied: Database) -> None:
    before = await select(copied, "SELECT count(*) FROM events")
    await process(copied)
    assert await select(copied, "SELECT count(*) FROM events") == before


async def test_migrated_database_recognises_repeats_and_takes_new_callbacks(copied: Database) -> None:
    [old] = [row for row in FIRST_VERSION["callbacks"] if "plain-001" in base64.b64decode(row["body"]).decode()][:1]
    [(last,)] = await select(copied, "SELECT max(position) FROM events")
    await process(copied, callback(base64.b64decode(old["body"])), callback([v2_event("after-the-migration")]))
    found = await select(copied, f"SELECT position, message_id FROM events WHERE position > {last}")
    assert [message_id for _, message_id in found] == ["after-the-migration"]
    assert (await select(copied, "SELECT repeats FROM processor")) == [(1,)]


async def test_interrupted_migration_is_completed_by_the_next_one(tmp_path: Path) -> None:
    """The journal's file is written before the main file: a crash in between leaves both versions of the callbacks."""
    (tmp_path / "receiver.db").touch()
    url = f"sqlite:///{tmp_path / 'receiver.db'}"
    await fill(url)
    database = Database(url)
    await schema.copy_to_journal(database)
    await database.close()
    database = Database(url)
    await schema.migrate(database)
    assert await select(database, "SELECT count(*) FROM callbacks") == [(len(FIRST_VERSION["callbacks"]),)]
    await process(database)
    assert await select(database, "SELECT count(*) FROM events") == [(len(FIRST_VERSION["events"]),)]
    await database.close()
