"""Backs up both files of the embedded database, also while a server runs, and restores them.

The main file is copied before the journal, so the journal of a backup is never older than the cursor in its main file:
after a restore, the callbacks beyond that cursor are processed. Each copy is one snapshot. SQLite would restart the
copy whenever another connection writes, so a read transaction stays open during the copy; it blocks no writer, but the
write-ahead log grows meanwhile.
"""

import hashlib
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from receiver.errors import ReceiverError
from receiver.storage import schema, sqlite_file
from receiver.storage.database import journal_file

MANIFEST: Final = "manifest.json"
_FORMAT: Final = 1
_MAIN: Final = "receiver.db"
_JOURNAL: Final = "callbacks.db"
# A step of the copy, in pages of 4 KiB, and the pause after it: at most some 200 MB a second.
_STEP_PAGES: Final = 256
_PAUSE_SECONDS: Final = 0.005
# The copy is synced after this many bytes: a single sync of a gigabyte at the end would delay the journal's syncs.
_SYNC_BYTES: Final = 8 * 1024 * 1024
_READ_BYTES: Final = 1024 * 1024
_PARTIAL: Final = ".partial"
_BESIDE: Final = ("", "-wal", "-shm")


class UnusableBackup(ReceiverError):
    """A backup is missing, incomplete or changed, or its directory exists already."""


class BackupFile(BaseModel):
    """One file of a backup."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """The manifest of a backup. `time` is when the backup began, `journal_end` the largest sequence of the journal."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    format: int
    version: str
    revision: str
    time: datetime
    cursor: int
    journal_end: int
    files: Mapping[str, BackupFile]


# --- backing up ---


def back_up(file: Path, target: Path, *, now: datetime) -> Manifest:
    """Copies a database into the new directory `target`, which has that name only once the backup is complete.

    Raises UnusableBackup if the directory exists already, and UnfitDatabase if the database is damaged.
    """
    if target.exists():
        raise UnusableBackup(f"{target} exists already; name a directory that does not exist yet")
    if not target.parent.is_dir():
        raise UnusableBackup(f"there is no directory {target.parent}")
    with _draft(target) as draft:
        _copy_database(file, draft / _MAIN)
        _copy_database(journal_file(file), draft / _JOURNAL)
        manifest = _manifest(draft, now)
        _write(draft / MANIFEST, manifest.model_dump_json(by_alias=True, indent=2).encode() + b"\n")
        _sync(draft)
        # If another process made the directory meanwhile, this replaces it only if it is empty.
        draft.rename(target)
    _sync(target.parent)
    return manifest


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A directory beside the target, with access for its owner alone; it is removed unless it was renamed."""
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_PARTIAL, dir=target.parent))
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy_database(source: Path, target: Path) -> None:
    """Copies one snapshot of a database, in steps, synced to disk; raises UnfitDatabase if the copy is damaged."""
    if not source.exists():
        raise sqlite_file.UnfitDatabase(f"there is no {source}")
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    with ExitStack() as stack:
        stack.callback(os.close, descriptor)
        progress = _Pace(descriptor)
        try:
            _copy_snapshot(source, target, progress)
        except sqlite3.OperationalError as error:
            raise sqlite_file.UnfitDatabase(f"{source} cannot be copied: {error}") from None
        except sqlite3.DatabaseError as error:
            raise sqlite_file.UnfitDatabase(f"{source} is damaged ({error})") from None
        os.fsync(descriptor)
    _refuse_damaged_copy(target, source)


def _copy_snapshot(source: Path, target: Path, progress: "_Pace") -> None:
    uri = f"{source.absolute().as_uri()}?mode=ro"
    with (
        closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10)) as reading,
        closing(sqlite3.connect(target, isolation_level=None)) as writing,
    ):
        # An incomplete copy is removed with its directory, so it needs no rollback journal.
        writing.execute("PRAGMA journal_mode = OFF")
        writing.execute("PRAGMA synchronous = OFF")
        reading.execute("BEGIN")
        # The first read determines the snapshot.
        reading.execute("SELECT count(*) FROM sqlite_master").fetchone()
        reading.backup(writing, pages=_STEP_PAGES, progress=progress)
        reading.execute("ROLLBACK")


class _Pace:
    """Pauses after each step of a copy, and syncs often enough that no sync takes long."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._steps = 0

    def __call__(self, _status: int, _remaining: int, _total: int) -> None:
        self._steps += 1
        if self._steps * _STEP_PAGES * 4096 >= _SYNC_BYTES:
            os.fdatasync(self._descriptor)
            self._steps = 0
        time.sleep(_PAUSE_SECONDS)


def _refuse_damaged_copy(copy: Path, source: Path) -> None:
    try:
        with _unchanging(copy) as connection:
            [finding] = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        finding = str(error)
    if finding != "ok":
        raise sqlite_file.UnfitDatabase(f"{source} is damaged ({' '.join(finding.split())})")


def _unchanging(file: Path) -> Any:
    """A connection to a file of a backup that creates no file beside it and needs no permission to write."""
    return closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None))


def _manifest(folder: Path, now: datetime) -> Manifest:
    with _unchanging(folder / _MAIN) as main:
        found = main.execute("SELECT version_num FROM alembic_version").fetchone()
        [cursor] = main.execute("SELECT cursor FROM processor").fetchone()
    with _unchanging(folder / _JOURNAL) as journal:
        end = journal.execute("SELECT seq FROM sqlite_sequence WHERE name = 'callbacks'").fetchone()
    return Manifest(
        format=_FORMAT,
        version=version("bandwidth-receiver"),
        revision=found[0],
        time=now,
        cursor=cursor,
        journal_end=end[0] if end is not None else 0,
        files={
            name: BackupFile(bytes=(folder / name).stat().st_size, sha256=_digest(folder / name))
            for name in (_MAIN, _JOURNAL)
        },
    )


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- restoring ---


def check(folder: Path) -> Manifest:
    """The manifest of a backup; raises UnusableBackup unless its files have the recorded checksums."""
    manifest = _read_manifest(folder)
    for name in (_MAIN, _JOURNAL):
        if not (folder / name).is_file():
            raise UnusableBackup(f"the backup {folder} has no {name}")
        if _digest(folder / name) != manifest.files[name].sha256:
            raise UnusableBackup(f"{folder / name} was changed or is damaged: its SHA-256 differs from {MANIFEST}")
    if manifest.cursor > manifest.journal_end:
        raise UnusableBackup(f"the backup {folder} has a journal that is older than its main file")
    schema.refuse_unknown(manifest.revision)
    return manifest


def _read_manifest(folder: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise UnusableBackup(f"{folder} is not a backup: it has no {MANIFEST}") from None
    except ValidationError:
        raise UnusableBackup(f"{folder / MANIFEST} is damaged") from None
    if manifest.format != _FORMAT or not manifest.files.keys() >= {_MAIN, _JOURNAL}:
        raise UnusableBackup(f"{folder / MANIFEST} has a format that this version does not know")
    return manifest


def restore(folder: Path, file: Path, *, now: datetime) -> list[Path]:
    """Replaces a database by a backup, and returns the new paths of the replaced files.

    Raises UnfitDatabase if a server or a worker uses the database, and UnusableBackup for an incomplete backup; then
    nothing has changed. After an interruption no server starts with the database until the restore is run again.
    """
    check(folder)
    with sqlite_file.held(file), sqlite_file.held(file, sqlite_file.WORKER):
        _stage(folder, file)
        replaced = _set_aside(file, f"replaced-{now:%Y%m%dT%H%M%SZ}")
        staged = sqlite_file.staging(file)
        (staged / _MAIN).rename(file)
        (staged / _JOURNAL).rename(journal_file(file))
        _sync(file.parent)
        staged.rmdir()
        _sync(file.parent)
    return replaced


def _stage(folder: Path, file: Path) -> None:
    """Copies a backup beside the database. Once this returns, no server starts before the restore is complete."""
    staged = sqlite_file.staging(file)
    for left in staged.parent.glob(f".{staged.name}.*{_PARTIAL}"):
        # The directory of a restore that was killed.
        shutil.rmtree(left, ignore_errors=True)
    with _draft(staged) as draft:
        manifest = _read_manifest(folder)
        for name in (_MAIN, _JOURNAL):
            if _copy_file(folder / name, draft / name) != manifest.files[name].sha256:
                raise UnusableBackup(f"{folder / name} changed while it was read")
        _sync(draft)
        if staged.exists():
            # An earlier restore was interrupted. Its directory is emptied and replaced, so the name never disappears.
            for left in staged.iterdir():
                left.unlink()
        draft.rename(staged)
    _sync(file.parent)


def _copy_file(source: Path, target: Path) -> str:
    """Copies a file, synced to disk; returns its SHA-256."""
    digest = hashlib.sha256()
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with source.open("rb") as reading, os.fdopen(descriptor, "wb") as writing:
        while part := reading.read(_READ_BYTES):
            digest.update(part)
            writing.write(part)
        writing.flush()
        os.fsync(writing.fileno())
    return digest.hexdigest()


def _set_aside(file: Path, ending: str) -> list[Path]:
    """Renames the database's files, each with the files that SQLite has beside it; returns their new names."""
    aside: list[Path] = []
    for main in (file, journal_file(file)):
        name = _free_name(main, ending)
        for beside in _BESIDE:
            old = main.with_name(f"{main.name}{beside}")
            if old.exists():
                # SQLite finds a WAL by the name of its file, so both names change alike.
                aside.append(old.rename(main.with_name(f"{name}{beside}")))
    return aside


def _free_name(file: Path, ending: str) -> str:
    names = [f"{file.name}.{ending}", *(f"{file.name}.{ending}-{number}" for number in range(2, 100))]
    return next(name for name in names if not file.with_name(name).exists())


def _write(file: Path, content: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    """Syncs a directory, so that its file names survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
