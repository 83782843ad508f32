"""The connection to the database: the URLs users write, and which errors mean "not now"."""

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from sqlalchemy import event, text

from receiver.errors import SchemaError, SettingsError, StorageUnavailable, TooSlow
from receiver.storage import schema
from receiver.storage.database import WAL_BYTES, Database, driver_url, is_sqlite
from receiver.storage.journal import journal_writer
from tests.factories import callback, v2_event
from tests.processing import append, process
from tests.servers import named_database, on_postgres, random_name
from tests.waiting import eventually

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
        (
            "postgresql://u@db/receiver?options=endpoint%3Dx",
            "postgresql+asyncpg",
            {"dsn": "postgresql://?options=endpoint%3Dx"},
        ),
        ("postgresql://u:p@db:6543/receiver?pgbouncer=true", "postgresql+asyncpg", {"pgbouncer": "true"}),
    ],
)
def test_the_driver_is_ours_to_name(url: str, driver: str, query: dict[str, str]) -> None:
    made = driver_url(url)
    assert (made.drivername, dict(made.query)) == (driver, query)
    assert is_sqlite(url) is url.startswith("sqlite")


@pytest.mark.parametrize(
    ("url", "host", "port", "user", "password", "name"),
    [
        ("postgresql://u:p@db:6000/receiver", "db", 6000, "u", "p", "receiver"),
        ("postgresql://u:p%40ss%2F@db/receiver", "db", None, "u", "p@ss/", "receiver"),
        ("postgresql://u:p@ss:word@db/receiver", "db", None, "u", "p@ss:word", "receiver"),
        ("postgresql://u:p@[::1]:6000/receiver", "::1", 6000, "u", "p", "receiver"),
        ("postgresql:///receiver?host=/var/run/postgresql", "/var/run/postgresql", None, None, None, "receiver"),
        ("postgresql://%2Fvar%2Frun%2Fpostgresql/receiver", "/var/run/postgresql", None, None, None, "receiver"),
        ("postgresql://db/receiver?user=me%40azure&password=p&port=6000", "db", 6000, "me@azure", "p", "receiver"),
        (" postgresql://u:p@db/receiver\n", "db", None, "u", "p", "receiver"),
    ],
)
def test_parts_of_a_url(
    url: str, host: str, port: int | None, user: str | None, password: str | None, name: str
) -> None:
    made = driver_url(url)
    assert (made.host, made.port, made.username, made.password, made.database) == (host, port, user, password, name)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p@one,two:6000/receiver",
        "postgresql://u:p@/receiver?host=one,two&port=5432,6000",
        "postgresql://u:p@one,two/receiver?port=5432,6000&target_session_attrs=read-write",
    ],
)
def test_several_hosts_of_a_url_must_take_writes(url: str) -> None:
    assert driver_url(url).query == {"host": "one,two", "port": "5432,6000", "target_session_attrs": "read-write"}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "no url",
        "hunter2",
        "hunter2://db/receiver",
        "u:hunter2@db/receiver",
        "host=db user=u password=hunter2",
        "mysql://u:hunter2@db/receiver",
        "mysql://u:p@ss:hunter2@db/receiver",
        "postgresql+psycopg://u:hunter2@db/receiver",
        "postgresql:/u:hunter2@db/receiver",
        "postgres//u:hunter2@db/receiver",
        "postgresql://u:hunter2",
        "postgresql://u:hunter2/x@db/receiver",
        "postgresql://u:5432/hunter2@db/receiver",
        "postgresql://u:p?hunter2=x@db/receiver",
        "postgresql://u:5432?hunter=1@db/receiver",
        "postgresql://u:hunter2@db:port/receiver",
        "postgresql://u:hunter2@db:99999/receiver",
        "postgresql://u:hunter2@[::1/receiver",
        "postgresql://u:hunter2@one host/receiver",
        "postgresql://u:hunter2@one,two/receiver?port=1,2,3",
        "postgresql://u:p@db/receiver?sslmode=hunter2",
        "postgresql://u:hunter2@db/receiver?target_session_attrs=standby",
        "postgresql://u:hunter2@db/receiver?sslrootcert=/nowhere/root.crt",
        "postgresql://db/receiver?password=hunter2&colour=1",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite://u:hunter2@db/receiver",
        "sqlite:///receiver.db?key=hunter2",
    ],
)
def test_wrong_url_is_one_line_with_the_setting_and_without_the_password(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^RECEIVER_DATABASE_URL\b.*") as caught:
        driver_url(url)
    assert "\n" not in str(caught.value)
    assert "hunter" not in str(caught.value)


def test_unknown_parameter_of_a_url_is_refused_without_its_password() -> None:
    with pytest.raises(SettingsError, match=r"^RECEIVER_DATABASE_URL: parameter 2 after the \? is not supported$"):
        driver_url("postgresql://u:hunter2@db/receiver?sslmode=require&colour=hunter2")


def removed(file: Path) -> None:
    file.unlink()


def removed_with_its_wal(file: Path) -> None:
    for one in file.parent.glob(f"{file.name}*"):
        one.unlink()


def replaced(file: Path) -> None:
    """As a restore by hand does it: another file takes the name."""
    copy = file.with_name("copy")
    copy.write_bytes(file.read_bytes())
    copy.rename(file)


def truncated(file: Path) -> None:
    os.truncate(file, 4096)


@pytest.mark.parametrize("changed", [removed, removed_with_its_wal, replaced, truncated])
@pytest.mark.parametrize("name", ["receiver.db", "callbacks.db"])
async def test_reads_notice_that_a_file_is_not_the_one_they_have_open(
    sqlite_url: str, tmp_path: Path, name: str, changed: Callable[[Path], None]
) -> None:
    database = Database(sqlite_url)
    try:
        for _ in range(2):
            async with database.reading() as connection:
                assert await connection.scalar(text("SELECT count(*) FROM messages")) == 0
                assert await connection.scalar(text("SELECT count(*) FROM journal.callbacks")) == 0
        changed(tmp_path / name)
        for use in (database.reading, database.writing):
            with pytest.raises(StorageUnavailable, match=f"{name} was removed, replaced or truncated"):
                async with use() as connection:
                    await connection.execute(text("SELECT 1"))
    finally:
        await database.close()


async def test_reads_go_on_while_others_open_and_close_the_files(sqlite_url: str) -> None:
    """The last one who closes a file removes its WAL; who has it open must not take that for a replacement."""
    database = Database(sqlite_url)
    try:
        for number in range(3):
            async with database.reading() as connection:
                assert await connection.scalar(text("SELECT count(*) FROM journal.callbacks")) == number
            other = Database(sqlite_url)
            await append(other, callback([], received=number))
            async with other.reading() as connection:
                assert await connection.scalar(text("SELECT count(*) FROM messages")) == 0
            await other.close()
    finally:
        await database.close()


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


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("postgresql://u@127.0.0.1:1/d", "database server 127.0.0.1 port 1: Connection refused"),
        (
            "postgresql://u@127.0.0.1:1,127.0.0.1:2/d",
            "database server 127.0.0.1 port 1: Connection refused; database server 127.0.0.1 port 2: Connection",
        ),
        ("postgresql://u@/d?host=/nowhere", "database server at /nowhere: No such file or directory"),
        ("postgresql://u@nowhere.invalid/d", "database server nowhere.invalid port 5432: "),
    ],
)
async def test_unreachable_server_is_named_with_host_and_port(url: str, line: str) -> None:
    database = Database(url)
    with pytest.raises(StorageUnavailable) as caught:
        async with database.reading():
            pass
    assert str(caught.value).startswith(line)
    await database.close()


async def test_missing_database_is_named_with_the_remedy(postgres_url: str) -> None:
    database = Database(named_database(postgres_url, "receiver_test_nowhere"))
    with pytest.raises(
        StorageUnavailable, match=r'^database "receiver_test_nowhere" does not exist; create it \(createdb\)'
    ):
        async with database.reading():
            pass
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


async def test_url_with_pgbouncer_leaves_nothing_behind_in_a_session(postgres_url: str) -> None:
    """Behind a pooler the next transaction, perhaps of another program, has the same session."""
    database = Database(f"{postgres_url}?pgbouncer=true")
    await process(database, callback([v2_event()]))
    writer = journal_writer(database)
    await writer.probe()
    async with database.reading() as connection:
        assert (await connection.execute(text("SELECT id FROM messages"))).all()
        assert not (await connection.execute(text("SELECT name FROM pg_prepared_statements"))).all()
        assert (await connection.execute(text("SHOW lock_timeout"))).scalar_one() == "4s"
        await connection.rollback()
        driver = (await connection.get_raw_connection()).driver_connection
        assert await driver.fetchval("SHOW lock_timeout") == "0"
    async with database.searching(3.0) as connection:
        assert (await connection.execute(text("SHOW statement_timeout"))).scalar_one() == "3s"
        assert (await connection.execute(text("SHOW lock_timeout"))).scalar_one() == "4s"
        await connection.rollback()
        driver = (await connection.get_raw_connection()).driver_connection
        assert await driver.fetchval("SHOW statement_timeout") == "0"
    await writer.close()
    await database.close()


LONG = {
    "sqlite": "WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 1000000) SELECT max(n) FROM c",
    "postgresql": "SELECT 1000000 FROM pg_sleep(0.3)",
}


async def test_a_search_ends_after_its_time_and_its_connection_is_used_again(database: Database) -> None:
    statement, opened = text(LONG[database.engine.dialect.name]), []
    event.listen(database.engine.sync_engine, "connect", lambda *_: opened.append(1))
    for seconds in (0.02, 9.0, None):
        async with database.reading() as connection:
            # Nothing of the limit outlives the search.
            assert await connection.scalar(statement) == 1_000_000
        if seconds == 0.02:
            began = time.monotonic()
            with pytest.raises(TooSlow, match="give a shorter time"):
                async with database.searching(seconds) as connection:
                    await connection.scalar(statement)
            assert time.monotonic() - began < 9
        else:
            async with database.searching(seconds) as connection:
                assert await connection.scalar(statement) == 1_000_000
    assert len(opened) <= 1


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


async def test_write_ahead_log_is_shortened_after_a_long_reader(sqlite_url: str) -> None:
    file = Path(sqlite_url.removeprefix("sqlite:///"))
    database = Database(sqlite_url)

    async def write(number: int) -> None:
        for _ in range(number):
            async with database.writing() as connection:
                await connection.execute(text("INSERT INTO filler VALUES (randomblob(8000000))"))

    try:
        async with database.writing() as connection:
            await connection.execute(text("CREATE TABLE filler (body BLOB)"))
        with closing(sqlite3.connect(file, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM filler").fetchone()
            await write(10)
            grown = file.with_name("receiver.db-wal").stat().st_size
        await write(2)
        assert file.with_name("receiver.db-wal").stat().st_size <= WAL_BYTES < grown
    finally:
        await database.close()


async def test_session_of_a_client_that_leaves_while_it_is_opened_is_closed(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_asked = asyncio.Event()

    async def never(*_: Any) -> str:
        is_asked.set()
        await asyncio.Event().wait()
        return ""

    async def read() -> None:
        async with database.reading():
            pass

    async def there_is_no_session() -> bool:
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        return bool(await watching.fetchval(f"{sessions} AND application_name = 'receiver'") == 0)

    database, watching = Database(postgres_url), await asyncpg.connect(postgres_url)
    with monkeypatch.context() as patch:
        patch.setattr(asyncpg.Connection, "execute", never)
        reading = asyncio.create_task(read())
        await is_asked.wait()
        reading.cancel()
        # The traceback has the connection, which nothing else would close.
        with pytest.raises(asyncio.CancelledError) as left:
            await reading
    await eventually(there_is_no_session)
    assert left.value is not None
    await watching.close()
    await database.close()
