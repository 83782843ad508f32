"""Backups of SQLite: complete or not there, restored complete or refused, and nothing that was replaced is lost."""

import asyncio
import json
import os
import shutil
import sqlite3
import stat
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from receiver.domain.delivery import FinalConflict
from receiver.errors import ReceiverError
from receiver.storage import backup, schema, sqlite_file
from receiver.storage.backup import UnusableBackup
from receiver.storage.database import Database
from receiver.storage.rebuild import Rebuild
from receiver.storage.sqlite_file import UnfitDatabase
from tests.factories import callback, v2_event
from tests.processing import append, drain, process

TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def using(url: str, work: Callable[[Database], Awaitable[Any]]) -> Any:
    """What some work with a database gives."""

    async def run() -> Any:
        opened = Database(url)
        try:
            return await work(opened)
        finally:
            await opened.close()

    return asyncio.run(run())


async def recompute(database: Database) -> int:
    """Processes what is pending; how many rows then differ from a recomputation."""
    await drain(database)
    return (await Rebuild(database, FinalConflict.FAILED_WINS, writes=False).run()).differing


@pytest.fixture
def main_file(sqlite_url: str, tmp_path: Path) -> Path:
    """A database with two callbacks processed and one pending."""

    async def fill(database: Database) -> None:
        await process(database, callback([v2_event("m1")]), callback([v2_event("m2")]))
        await append(database, callback([v2_event("pending")]))

    using(sqlite_url, fill)
    return tmp_path / "receiver.db"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "backup"


def messages(file: Path) -> set[str]:
    with closing(sqlite3.connect(file)) as connection:
        return {row[0] for row in connection.execute("SELECT id FROM messages")}


def contents(folder: Path) -> dict[str, bytes]:
    """What is there, without the files that SQLite keeps beside an open database."""
    return {
        file.name: file.read_bytes() if file.is_file() else b""
        for file in folder.iterdir()
        if not file.name.endswith(("-wal", "-shm", ".lock"))
    }


def damage(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(file.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    file.write_bytes(content)


# --- backing up ---


def test_a_backup_holds_both_files_for_its_owner_alone(main_file: Path, target: Path) -> None:
    manifest = backup.back_up(main_file, target, now=TIME)
    assert sorted(contents(target)) == ["callbacks.db", "manifest.json", "receiver.db"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in target.iterdir()} == {0o600}
    assert (manifest.cursor, manifest.journal_end, manifest.revision) == (2, 3, schema.NEWEST)
    payload = json.loads((target / "manifest.json").read_text())
    assert (payload["time"], payload["journalEnd"]) == ("2026-01-02T03:04:05Z", 3)
    assert backup.check(target) == manifest


def test_a_backup_does_not_replace_another(main_file: Path, target: Path) -> None:
    target.mkdir()
    with pytest.raises(UnusableBackup, match="exists already"):
        backup.back_up(main_file, target, now=TIME)


def test_a_failed_backup_leaves_nothing(main_file: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(main_file.parent)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup, "_write", fail)
    with pytest.raises(OSError, match="No space"):
        backup.back_up(main_file, target, now=TIME)
    assert contents(main_file.parent) == before


@pytest.mark.parametrize("name", ["receiver.db", "callbacks.db"])
def test_a_damaged_database_gives_no_backup(main_file: Path, target: Path, name: str) -> None:
    damage(main_file.with_name(name))
    with pytest.raises(UnfitDatabase, match=f"{name} is damaged"):
        backup.back_up(main_file, target, now=TIME)
    assert not target.exists()


def test_a_database_that_is_not_there_gives_no_backup(tmp_path: Path, target: Path) -> None:
    with pytest.raises(UnfitDatabase, match=r"there is no .*receiver.db"):
        backup.back_up(tmp_path / "receiver.db", target, now=TIME)


def test_a_backup_ends_although_others_write_all_the_time(
    main_file: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So small that writers come between the steps of the copy.
    monkeypatch.setattr(backup, "_STEP_PAGES", 1)
    ending, written = threading.Event(), [0]

    def write() -> None:
        with closing(sqlite3.connect(main_file, isolation_level=None, timeout=10)) as connection:
            while not ending.is_set():
                connection.execute("UPDATE processor SET callbacks = callbacks + 1")
                written[0] += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        backup.back_up(main_file, target, now=TIME)
    finally:
        ending.set()
        thread.join()
    assert written[0]
    backup.check(target)


# --- restoring ---


def test_a_restored_database_goes_on_where_the_backup_was(main_file: Path, target: Path, tmp_path: Path) -> None:
    backup.back_up(main_file, target, now=TIME)
    file = tmp_path / "elsewhere" / "sms.db"
    file.parent.mkdir()
    assert backup.restore(target, file, now=TIME) == []
    assert {stat.S_IMODE(one.stat().st_mode) for one in file.parent.glob("*.db")} == {0o600}
    assert using(f"sqlite:///{file}", recompute) == 0
    using(f"sqlite:///{file}", lambda database: process(database, callback([v2_event("after")])))
    assert messages(file) == {"m1", "m2", "pending", "after"}


def test_what_a_restore_replaces_is_kept_with_its_write_ahead_log(
    main_file: Path, target: Path, sqlite_url: str
) -> None:
    backup.back_up(main_file, target, now=TIME)
    killed = main_file.parent / "killed" / "receiver.db"
    killed.parent.mkdir()

    async def process_and_copy(database: Database) -> None:
        await process(database, callback([v2_event("later")]))
        # Not checkpointed, as a killed server leaves it.
        for file in list(main_file.parent.glob("*.db*")):
            shutil.copy(file, killed.parent)

    using(sqlite_url, process_and_copy)
    replaced = {path.name for path in backup.restore(target, killed, now=TIME)}
    assert {f"receiver.db.replaced-20260102T030405Z{beside}" for beside in ("", "-wal")} <= replaced
    assert messages(killed) == {"m1", "m2"}
    saved = killed.with_name("receiver.db.replaced-20260102T030405Z")
    assert messages(saved) == {"m1", "m2", "pending", "later"}
    backup.restore(target, killed, now=TIME)
    assert saved.with_name(f"{saved.name}-2").exists()


@pytest.mark.parametrize("role", [sqlite_file.SERVER, sqlite_file.WORKER])
def test_restore_is_refused_while_somebody_has_the_database(main_file: Path, target: Path, role: str) -> None:
    backup.back_up(main_file, target, now=TIME)
    before = contents(main_file.parent)
    with sqlite_file.held(main_file, role), pytest.raises(UnfitDatabase, match=f"process {os.getpid()} already {role}"):
        backup.restore(target, main_file, now=TIME)
    assert contents(main_file.parent) == before


def change(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(5000)
        stream.write(b"\xff")


def change_manifest(folder: Path, **values: object) -> None:
    payload = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(payload | values))


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda folder: change(folder / "receiver.db"), "SHA-256 differs"),
        (lambda folder: (folder / "callbacks.db").unlink(), "has no callbacks.db"),
        (lambda folder: (folder / "manifest.json").unlink(), "is not a backup"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda folder: change_manifest(folder, format=2), "has a format that this version does not know"),
        (lambda folder: change_manifest(folder, cursor=4), "older than its main file"),
        (lambda folder: change_manifest(folder, revision="9999"), "a newer receiver made"),
    ],
    ids=["changed", "no-journal", "no-manifest", "damaged-manifest", "format", "older-journal", "newer-revision"],
)
def test_a_backup_that_is_not_whole_is_refused_and_nothing_changes(
    main_file: Path, target: Path, spoil: Callable[[Path], object], error: str
) -> None:
    backup.back_up(main_file, target, now=TIME)
    spoil(target)
    before = contents(main_file.parent)
    with pytest.raises(ReceiverError, match=error):
        backup.restore(target, main_file, now=TIME)
    assert contents(main_file.parent) == before


class Killed(BaseException):
    """The process has ended here."""


def restore_and_die(folder: Path, file: Path, renames: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Ends the process before one of the renames of a restore; False where there are no more of them."""
    rename, left = Path.rename, [renames]

    def rename_or_die(self: Path, name: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return rename(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_or_die)
        try:
            backup.restore(folder, file, now=TIME)
        except Killed:
            return True
    return False


def test_an_interrupted_restore_is_refused_at_the_start_until_it_is_run_again(
    main_file: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup.back_up(main_file, target, now=TIME)
    url, renames = f"sqlite:///{main_file}", 0
    while restore_and_die(target, main_file, renames, monkeypatch):
        renames += 1
        if sqlite_file.staging(main_file).exists():
            with pytest.raises(UnfitDatabase, match="run receiver restore again"):
                sqlite_file.prepare(url)
        else:
            # Nothing was replaced yet.
            assert messages(sqlite_file.prepare(url)) == {"m1", "m2"}
    assert renames >= 3
    sqlite_file.prepare(url)
    assert using(url, recompute) == 0
    assert messages(main_file) == {"m1", "m2", "pending"}
