"""A journal that is missing, or older than the main file, stops the start and says what to do."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from receiver.errors import SchemaError
from receiver.storage import schema
from receiver.storage.database import Database
from tests.factories import callback, v2_event
from tests.processing import append, drain, process

pytestmark = pytest.mark.anyio


@pytest.fixture
async def processed(sqlite_url: str) -> str:
    """The URL of a database of which three callbacks are processed."""
    database = Database(sqlite_url)
    await process(database, *(callback([v2_event(f"m{number}")]) for number in range(3)))
    await database.close()
    return sqlite_url


async def migrate(url: str, *, new_journal: bool = False) -> None:
    database = Database(url)
    try:
        await schema.migrate(database, new_journal=new_journal)
    finally:
        await database.close()


def sequence(file: Path) -> int:
    with closing(sqlite3.connect(file)) as connection:
        [row] = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'callbacks'").fetchall()
        return int(row[0])


async def test_two_files_that_belong_together_are_fine(processed: str, tmp_path: Path) -> None:
    await migrate(processed)
    await migrate(processed, new_journal=True)
    assert sequence(tmp_path / "callbacks.db") == 3


async def test_a_missing_journal_stops_the_start_and_is_not_made(processed: str, tmp_path: Path) -> None:
    (tmp_path / "callbacks.db").unlink()
    with pytest.raises(
        SchemaError, match=r"is missing beside .*receiver.db, which has processed 3 .*receiver migrate --new-journal"
    ):
        await migrate(processed)
    assert not (tmp_path / "callbacks.db").exists()


async def test_an_empty_file_is_a_missing_journal(processed: str, tmp_path: Path) -> None:
    (tmp_path / "callbacks.db").write_bytes(b"")
    with pytest.raises(SchemaError, match=r"callbacks.db is missing"):
        await migrate(processed)


async def test_an_older_journal_stops_the_start(processed: str, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "callbacks.db", tmp_path / "old.db")
    database = Database(processed)
    await process(database, callback([v2_event("m4")]))
    await database.close()
    (tmp_path / "old.db").replace(tmp_path / "callbacks.db")
    with pytest.raises(SchemaError, match=r"callbacks.db is older than .*receiver.db, which has processed 4 "):
        await migrate(processed)


async def test_a_missing_main_file_stops_the_start(processed: str, tmp_path: Path) -> None:
    (tmp_path / "receiver.db").unlink()
    with pytest.raises(SchemaError, match=r"receiver.db is missing, but .*callbacks.db beside it has callbacks"):
        await migrate(processed)


async def test_a_fresh_database_whose_journal_is_missing_gets_one(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "callbacks.db").unlink()
    await migrate(sqlite_url)
    assert (tmp_path / "callbacks.db").exists()


@pytest.mark.parametrize("is_there", [False, True])
async def test_a_new_journal_begins_behind_the_cursor_and_nothing_is_skipped(
    processed: str, tmp_path: Path, is_there: bool
) -> None:
    (tmp_path / "callbacks.db").unlink()
    if is_there:
        schema.create_journal(tmp_path / "callbacks.db")
    await migrate(processed, new_journal=True)
    await migrate(processed)
    database = Database(processed)
    try:
        await append(database, callback([v2_event("after")]))
        assert sequence(tmp_path / "callbacks.db") == 4
        await drain(database)
    finally:
        await database.close()
    with closing(sqlite3.connect(tmp_path / "receiver.db")) as connection:
        assert connection.execute("SELECT count(*) FROM messages").fetchone() == (4,)
