"""The embedded database as a file: whose it is, which disk it is on, whether it is whole."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from receiver.errors import SettingsError
from receiver.storage import sqlite_file
from receiver.storage.sqlite_file import UnfitDatabase

MOUNTS = """\
/dev/vda1 / ext4 rw,relatime 0 0
tmpfs /run tmpfs rw 0 0
server:/export /mnt/nfs nfs4 rw,vers=4.2 0 0
//server/share /mnt/with\\040space cifs rw 0 0
me@server:/ /home/me/remote fuse.sshfs rw 0 0
/dev/vdb1 /mnt/nfs/local xfs rw 0 0
server:/over /srv nfs rw 0 0
/dev/vdc1 /srv ext4 rw 0 0
broken line
"""


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("/var/lib/receiver/receiver.db", "ext4"),
        ("/run/receiver.db", "tmpfs"),
        ("/runner/receiver.db", "ext4"),
        ("/mnt/nfs/receiver.db", "nfs4"),
        ("/mnt/nfs/local/receiver.db", "xfs"),
        ("/mnt/with space/receiver.db", "cifs"),
        ("/home/me/remote/data/receiver.db", "fuse.sshfs"),
        ("/srv/receiver.db", "ext4"),  # the later mount covers the earlier one
    ],
)
def test_a_file_is_on_the_filesystem_mounted_nearest_above_it(file: str, kind: str) -> None:
    assert sqlite_file.filesystem(Path(file), MOUNTS) == kind


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs"])
def test_a_network_filesystem_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    (tmp_path / "mounts").write_text(f"/dev/vda1 / ext4 rw 0 0\nserver:/x {tmp_path} {kind} rw 0 0\n")
    monkeypatch.setattr(sqlite_file, "_MOUNTS", tmp_path / "mounts")
    with pytest.raises(SettingsError, match=rf"network filesystem \({kind}\)"):
        sqlite_file.refuse_network(tmp_path / "receiver.db")


def test_a_link_does_not_hide_a_network_filesystem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "remote").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "remote")
    (tmp_path / "mounts").write_text(f"/dev/vda1 / ext4 rw 0 0\nserver:/x {tmp_path}/remote nfs rw 0 0\n")
    monkeypatch.setattr(sqlite_file, "_MOUNTS", tmp_path / "mounts")
    with pytest.raises(SettingsError, match="network filesystem"):
        sqlite_file.refuse_network(tmp_path / "data" / "receiver.db")


def test_a_machine_that_does_not_tell_its_mounts_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "_MOUNTS", tmp_path / "nowhere")
    sqlite_file.refuse_network(tmp_path / "receiver.db")


def test_a_new_file_is_for_its_owner_alone_and_an_old_one_stays_as_it_is(tmp_path: Path) -> None:
    sqlite_file.make(tmp_path / "receiver.db")
    assert (tmp_path / "receiver.db").stat().st_mode & 0o777 == 0o600
    (tmp_path / "receiver.db").write_bytes(b"kept")
    (tmp_path / "receiver.db").chmod(0o640)
    sqlite_file.make(tmp_path / "receiver.db")
    assert (tmp_path / "receiver.db").read_bytes() == b"kept"
    assert (tmp_path / "receiver.db").stat().st_mode & 0o777 == 0o640


def test_the_files_that_sqlite_puts_beside_it_have_the_same_mode(tmp_path: Path) -> None:
    sqlite_file.make(tmp_path / "receiver.db")
    with closing(sqlite3.connect(tmp_path / "receiver.db")) as connection:
        connection.executescript("PRAGMA journal_mode = WAL; CREATE TABLE a (b);")
        modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        assert len(list(tmp_path.iterdir())) == 3
    assert modes == {0o600}


def test_who_holds_a_database_is_named_and_nobody_else_gets_it(tmp_path: Path) -> None:
    file = tmp_path / "receiver.db"
    (tmp_path / "receiver.db.lock").write_text("of a process with a number that is a good deal longer\n")
    with sqlite_file.held(file):
        with pytest.raises(UnfitDatabase, match=f"^process {os.getpid()} already serves"), sqlite_file.held(file):
            pass
        # the one that was refused has not taken the name away
        assert (tmp_path / "receiver.db.lock").read_text() == f"{os.getpid()}\n"
    with sqlite_file.held(file):
        pass


def test_two_databases_in_one_folder_do_not_share_a_lock(tmp_path: Path) -> None:
    with sqlite_file.held(tmp_path / "a.db"), sqlite_file.held(tmp_path / "b.db"):
        pass


def whole(file: Path) -> Path:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE a (b)")
        connection.executemany("INSERT INTO a VALUES (?)", [("x" * 1000,)] * 100)
    return file


def test_a_whole_or_empty_file_is_taken(tmp_path: Path) -> None:
    sqlite_file.refuse_damaged(whole(tmp_path / "whole.db"))
    (tmp_path / "empty.db").touch()
    sqlite_file.refuse_damaged(tmp_path / "empty.db")


@pytest.mark.parametrize("place", [0, 8192], ids=["its head", "a page"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, place: int) -> None:
    file = whole(tmp_path / "receiver.db")
    content = file.read_bytes()
    file.write_bytes(content[:place] + b"\xff" * 4096 + content[place + 4096 :])
    with pytest.raises(UnfitDatabase, match="is damaged") as caught:
        sqlite_file.refuse_damaged(file)
    assert "\n" not in str(caught.value)


def test_a_large_file_is_not_looked_through(tmp_path: Path) -> None:
    file = tmp_path / "receiver.db"
    with file.open("wb") as stream:
        stream.truncate(sqlite_file.CHECKED_BYTES)
    sqlite_file.refuse_damaged(file)


@pytest.mark.parametrize("ending", ["", "-wal", "-shm"])
def test_a_file_that_is_not_ours_to_write_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    file = whole(tmp_path / "receiver.db")
    foreign = tmp_path / f"receiver.db{ending}"
    foreign.touch()
    sqlite_file.refuse_unwritable(file)
    # root may write everything, so the system's answer is put in its mouth
    monkeypatch.setattr(os, "access", lambda path, _mode: path != foreign)
    with pytest.raises(UnfitDatabase, match=f"{foreign} cannot be read and written"):
        sqlite_file.refuse_unwritable(file)
