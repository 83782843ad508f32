"""`receiver backup` and `receiver restore`: both files of the embedded database, as one."""

from pathlib import Path

from receiver import credentials
from receiver.cli.opening import read_settings, refuse_absent
from receiver.cli.output import say, say_json
from receiver.domain.cloudevents import rfc3339
from receiver.errors import SettingsError
from receiver.settings import Settings
from receiver.storage import backup as backups
from receiver.storage import embedded
from receiver.storage.database import is_sqlite
from receiver.worker import now


def backup(config: Path | None, folder: Path, *, json: bool) -> int:
    settings = read_settings(config)
    _refuse_postgresql(settings)
    refuse_absent(settings)
    manifest = backups.back_up(embedded.file_of(settings.database), folder, now=now())
    if json:
        say_json(manifest)
    else:
        size = sum(file.bytes for file in manifest.files.values())
        say(f"backed up to {folder}: {size:,} bytes, callbacks up to number {manifest.journal_end}")
    return 0


def restore(config: Path | None, folder: Path, *, json: bool) -> int:
    settings = read_settings(config)
    _refuse_postgresql(settings)
    file = embedded.file_of(settings.database)
    manifest = backups.check(folder)
    _make_place(settings, file)
    replaced = backups.restore(folder, file, now=now())
    if json:
        say_json({"restored": str(file), "replaced": [str(one) for one in replaced]})
        return 0
    say(f"restored {file}, as it was at {rfc3339(manifest.time)}")
    if replaced:
        say(f"what it replaced is in {', '.join(str(one) for one in replaced)}")
    return 0


def _make_place(settings: Settings, file: Path) -> None:
    embedded.refuse_network(file)
    if settings.database_url is None:
        credentials.make_data_dir(settings)
    elif not file.parent.is_dir():
        raise SettingsError(f"RECEIVER_DATABASE_URL: there is no directory {file.parent}")


def _refuse_postgresql(settings: Settings) -> None:
    if not is_sqlite(settings.database):
        raise SettingsError("backup and restore are for SQLite; with PostgreSQL use pg_dump or pg_basebackup")
