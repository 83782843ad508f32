"""The files of the embedded database: accessible to the owner alone, used by one server at a time, on a local disk."""

import fcntl
import os
import re
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog

from receiver.errors import ReceiverError, SettingsError
from receiver.storage.database import driver_url, journal_file

# Checking a larger file would delay the start by minutes.
CHECKED_BYTES: Final = 256 * 1024 * 1024
_MOUNTS: Final = Path("/proc/mounts")
# SQLite's locks and shared memory do not work over a network, and no error shows that until rows are lost.
_NETWORK_FILESYSTEM: Final = re.compile(
    r"afs|beegfs|ceph|cifs|davfs|glusterfs|lustre|ncpfs|nfs4?|smb3|smbfs"
    r"|fuse\.(blobfuse2|ceph|davfs|gcsfuse|glusterfs|juicefs|rclone|s3fs|smbnetfs|sshfs)"
)

log = structlog.get_logger("receiver.database")


class UnfitDatabase(ReceiverError):
    """The embedded database cannot be used: another server uses it, or its file is damaged."""

    topic = "troubleshooting"


def file_of(url: str) -> Path:
    """The file that an SQLite URL names."""
    return Path(driver_url(url).database or "")


def make(file: Path) -> None:
    """Creates an empty file with mode 0600 if it is missing; SQLite gives the files beside it the same mode."""
    if not file.parent.is_dir():
        raise SettingsError(f"RECEIVER_DATABASE_URL: there is no directory {file.parent.absolute()}", topic="settings")
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def files(file: Path) -> list[Path]:
    """The files of a database that exist: main file and journal, and those that SQLite has beside each."""
    named = (one.with_name(one.name + ending) for one in (file, journal_file(file)) for ending in ("", "-wal", "-shm"))
    return [one for one in named if one.exists()]


def close_to_others(file: Path) -> None:
    """Takes the rights of all other users from a file, and says so; rights of its group stay, which somebody gave it.

    A database holds message text and phone numbers, the file of credentials passwords.
    """
    mode = stat.S_IMODE(file.stat().st_mode)
    if not mode & stat.S_IRWXO:
        return
    try:
        file.chmod(mode & ~stat.S_IRWXO)
    except OSError as error:
        log.warning(
            "file is open to all users of this machine", file=str(file), mode=f"{mode:04o}", error=error.strerror
        )
    else:
        log.warning(
            "file was open to all users of this machine, its mode is corrected", file=str(file), mode=f"{mode:04o}"
        )


def warn_of_open_directory(directory: Path) -> None:
    """Says that every user of this machine can replace the files of a directory. Its mode may have a reason."""
    mode = stat.S_IMODE(directory.stat().st_mode)
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        log.warning("every user of this machine can replace files here", directory=str(directory), mode=f"{mode:04o}")


SERVER: Final = "serves"
WORKER: Final = "works for"


def prepare(url: str) -> Path:
    """The main file of an SQLite URL: checked to be on a local disk, and created with mode 0600 if it is missing."""
    file = file_of(url)
    refuse_network(file)
    refuse_half_restored(file)
    make(file)
    return file


def refuse_unfit(file: Path) -> None:
    """Raises UnfitDatabase if the main file or the journal beside it cannot be written, or is damaged."""
    for existing in filter(Path.exists, (file, journal_file(file))):
        refuse_unwritable(existing)
        refuse_damaged(existing)


def close(file: Path) -> None:
    """Closes the files of a database to other users of the machine, and warns of an open directory."""
    for existing in files(file):
        close_to_others(existing)
    warn_of_open_directory(file.absolute().parent)


@contextmanager
def held(file: Path, role: str = SERVER) -> Iterator[None]:
    """Makes this process the only one that serves a database, or works for it.

    Raises UnfitDatabase if another process does. The system releases the lock even if this process is killed.
    """
    descriptor = os.open(_lock_file(file, role), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(descriptor, file, role)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        # The lock file is never removed: a process that had opened the old one would hold a lock without effect.
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, file: Path, role: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        process = _process(descriptor)
        raise UnfitDatabase(f"{process} already {role} the database {file}; an embedded database has one") from None


def _process(descriptor: int) -> str:
    number = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
    return f"process {number}" if number.isdigit() else "another process"


def holder(file: Path) -> str | None:
    """The process that serves a database now; None: none does."""
    try:
        descriptor = os.open(_lock_file(file, SERVER), os.O_RDONLY)
    except OSError:
        return None
    try:
        # Shared and given back at once, so that it hardly ever is in the way of a server that starts.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _process(descriptor)
    finally:
        os.close(descriptor)
    return None


def _lock_file(file: Path, role: str) -> Path:
    return file.with_name(f"{file.name}.lock" if role == SERVER else f"{file.name}.worker.lock")


def refuse_network(file: Path) -> None:
    """Raises SettingsError for a file on a known network filesystem."""
    try:
        mounts = _MOUNTS.read_text("utf-8", "surrogateescape")
    except OSError:
        return
    kind = filesystem(file.resolve(), mounts)
    if kind is not None and _NETWORK_FILESYSTEM.fullmatch(kind):
        raise SettingsError(
            f"RECEIVER_DATABASE_URL: {file} is on a network filesystem ({kind}), where SQLite loses data; "
            "use a local disk, or PostgreSQL",
            topic="first-run",
        )


def filesystem(file: Path, mounts: str) -> str | None:
    """The type of a file's filesystem, by a table like /proc/mounts; a later mount covers an earlier one."""
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
    """The directory that exists beside a database while `receiver restore` replaces its files."""
    return file.with_name(f"{file.name}.restoring")


def refuse_half_restored(file: Path) -> None:
    """Raises UnfitDatabase if a restore was interrupted while it replaced the files of a database."""
    if staging(file).exists():
        raise UnfitDatabase(f"a restore of {file} was interrupted; run receiver restore again")


def refuse_unwritable(file: Path) -> None:
    """Raises UnfitDatabase if this user cannot write the file or one that SQLite has beside it."""
    for each in (file, *(file.with_name(file.name + ending) for ending in ("-wal", "-shm"))):
        if each.exists() and not os.access(each, os.R_OK | os.W_OK):
            raise UnfitDatabase(f"{each} cannot be read and written by this user; correct its owner and mode")


def refuse_damaged(file: Path) -> None:
    """Raises UnfitDatabase if SQLite finds the file damaged; files of 256 MiB and more are not checked."""
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
        # A finding of SQLite may have several lines.
        raise UnfitDatabase(f"{file} is damaged ({' '.join(finding.split())}); restore a backup")
