"""The embedded database as a file: made for its owner alone, used by one server at a time, on a disk it can trust."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from receiver.errors import ReceiverError, SettingsError
from receiver.storage.database import driver_url, journal_file

# a larger file would make the start wait for minutes
CHECKED_BYTES: Final = 256 * 1024 * 1024
_MOUNTS: Final = Path("/proc/mounts")
# SQLite's locks and its shared memory do not work over a network, and nothing says so until rows are gone
_NETWORK_FILESYSTEMS: Final = frozenset(
    {
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "davfs",
        "fuse.blobfuse2",
        "fuse.ceph",
        "fuse.davfs",
        "fuse.gcsfuse",
        "fuse.glusterfs",
        "fuse.juicefs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.smbnetfs",
        "fuse.sshfs",
        "glusterfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "smb3",
        "smbfs",
    }
)


class UnfitDatabase(ReceiverError):
    """The embedded database cannot be used as it is: another server has it, or its file is damaged."""

    topic = "troubleshooting"


def file_of(url: str) -> Path:
    """The file that an SQLite URL names."""
    name = driver_url(url).database or ""
    if name.startswith("file:"):
        raise SettingsError(
            "RECEIVER_DATABASE_URL: give SQLite's file as a path, sqlite:///path, not as a file: URI", topic="settings"
        )
    return Path(name)


def make(file: Path) -> None:
    """Makes an empty file that only its owner can read; SQLite gives the files beside it the same mode."""
    if not file.parent.is_dir():
        raise SettingsError(f"RECEIVER_DATABASE_URL: there is no directory {file.parent}", topic="settings")
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


SERVER: Final = "serves"
WORKER: Final = "works for"


def prepare(url: str) -> Path:
    """The main file of an SQLite URL, made for its owner alone if it is not there, and known to be on a local disk."""
    file = file_of(url)
    refuse_network(file)
    refuse_half_restored(file)
    make(file)
    return file


def refuse_unfit(file: Path) -> None:
    """Raises UnfitDatabase where the main file or the journal beside it cannot be written, or is damaged."""
    for one in (file, journal_file(file)):
        if one.exists():
            refuse_unwritable(one)
            refuse_damaged(one)


@contextmanager
def held(file: Path, role: str = SERVER) -> Iterator[None]:
    """Makes this process the only one that serves a database, or works for it.

    Raises UnfitDatabase where another one does. The system releases the lock even if this process is killed.
    """
    lock = file.with_name(f"{file.name}.lock" if role == SERVER else f"{file.name}.worker.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(descriptor, file, role)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        # never removed: a process that had opened the old file would hold a lock that nobody else sees
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, file: Path, role: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
        process = f"process {holder}" if holder.isdigit() else "another process"
        raise UnfitDatabase(f"{process} already {role} the database {file}; an embedded database has one") from None


def refuse_network(file: Path) -> None:
    """Raises SettingsError for a file on a filesystem that is known to be reached over a network."""
    try:
        mounts = _MOUNTS.read_text("utf-8", "surrogateescape")
    except OSError:
        return
    kind = filesystem(file.resolve(), mounts)
    if kind in _NETWORK_FILESYSTEMS:
        raise SettingsError(
            f"RECEIVER_DATABASE_URL: {file} is on a network filesystem ({kind}), where SQLite loses data; "
            "use a local disk, or PostgreSQL",
            topic="first-run",
        )


def filesystem(file: Path, mounts: str) -> str | None:
    """The type of the filesystem a file is on, by a table like /proc/mounts; of two on one place, the later covers."""
    found, depth = None, -1
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        place = Path(_unescaped(fields[1]))
        if file.is_relative_to(place) and len(place.parts) >= depth:
            found, depth = fields[2], len(place.parts)
    return found


def _unescaped(place: str) -> str:
    for escaped, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        place = place.replace(escaped, character)
    return place


def staging(file: Path) -> Path:
    """The directory that is beside a database while `receiver restore` replaces its files."""
    return file.with_name(f"{file.name}.restoring")


def refuse_half_restored(file: Path) -> None:
    """Raises UnfitDatabase where a restore was interrupted while it replaced the files of a database."""
    if staging(file).exists():
        raise UnfitDatabase(f"a restore of {file} was interrupted; run receiver restore once more")


def refuse_unwritable(file: Path) -> None:
    """Raises UnfitDatabase where the file, or one that SQLite keeps beside it, is not ours to write."""
    for each in (file, *(file.with_name(file.name + ending) for ending in ("-wal", "-shm"))):
        if each.exists() and not os.access(each, os.R_OK | os.W_OK):
            raise UnfitDatabase(f"{each} cannot be read and written by this user; put its owner and mode right")


def refuse_damaged(file: Path) -> None:
    """Raises UnfitDatabase for a file that SQLite finds damaged; one that takes long to check is taken as it is."""
    if file.stat().st_size >= CHECKED_BYTES:
        return
    try:
        with closing(sqlite3.connect(file, timeout=5)) as connection:
            [finding] = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        raise UnfitDatabase(f"{file} cannot be opened: {error}") from None
    except sqlite3.DatabaseError as error:
        finding = str(error)
    if finding != "ok":
        # SQLite's findings have several lines
        raise UnfitDatabase(f"{file} is damaged ({' '.join(finding.split())}); restore a backup")
