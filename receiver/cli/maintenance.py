"""`receiver backup`, `restore`, `migrate`, `rebuild` and `prune`."""

import asyncio
from dataclasses import asdict
from pathlib import Path

from receiver import credentials
from receiver.cli.context import make_embedded, read_settings, refuse_absent, with_database
from receiver.cli.output import echo, echo_fields, echo_json
from receiver.clock import now
from receiver.domain.cloudevents import rfc3339
from receiver.errors import SettingsError
from receiver.settings import Settings
from receiver.storage import backup as backups
from receiver.storage import schema, sqlite_file
from receiver.storage.database import Database, is_sqlite
from receiver.storage.rebuild import Rebuild
from receiver.storage.retention import Pruner


def migrate(config: Path | None, *, check: bool, new_journal: bool, json: bool) -> int:
    settings = read_settings(config)
    if new_journal and not is_sqlite(settings.database):
        raise SettingsError("--new-journal is for SQLite; with PostgreSQL the journal is in the database")
    if check:
        refuse_absent(settings)
    elif is_sqlite(settings.database):
        make_embedded(settings)
    before, after = asyncio.run(_migrate(settings.database, check=check, new_journal=new_journal))
    if json:
        echo_json({"before": before, "after": after})
    else:
        echo(f"at revision {after}, nothing to do" if before == after else f"now at revision {after}")
    return 0


async def _migrate(url: str, *, check: bool, new_journal: bool) -> tuple[str | None, str]:
    """The revisions before and after."""
    database = Database(url)
    try:
        before = await schema.current(database)
        if check:
            await schema.check(database)
            await schema.refuse_older_journal(database)
        else:
            await schema.migrate(database, new_journal=new_journal)
        return before, schema.NEWEST
    finally:
        await database.close()


def rebuild(config: Path | None, *, dry_run: bool, json: bool) -> int:
    async def work(settings: Settings, database: Database) -> int:
        rebuilt = await Rebuild(database, settings.final_conflict, writes=not dry_run).run()
        if json:
            echo_json(asdict(rebuilt))
            return 0
        differ = "differ" if dry_run else "differed and were corrected"
        echo(f"{rebuilt.messages} messages read, {rebuilt.differing} rows {differ}")
        if rebuilt.statistics:
            echo(f"{rebuilt.statistics} cells of the statistics {differ}")
        if rebuilt.forgotten:
            echo(f"{rebuilt.forgotten} messages left unchanged: some of their events are no longer stored")
        return 0

    return with_database(config, work)


def prune(config: Path | None, *, dry_run: bool, json: bool) -> int:
    async def work(settings: Settings, database: Database) -> int:
        sinks = [str(table.get("name")) for table in settings.sinks]
        pruner = Pruner(database, settings.retention.ages, clock=now, sinks=sinks)
        removed = await (pruner.count() if dry_run else pruner.prune())
        if json:
            echo_json(removed)
        else:
            echo("would be removed:" if dry_run else "removed:")
            echo_fields(removed.items(), indent="  ")
        return 0

    return with_database(config, work)


def backup(config: Path | None, folder: Path, *, json: bool) -> int:
    settings = read_settings(config)
    _refuse_postgresql(settings)
    refuse_absent(settings)
    manifest = backups.back_up(sqlite_file.file_of(settings.database), folder, now=now())
    if json:
        echo_json(manifest)
    else:
        size = sum(file.bytes for file in manifest.files.values())
        echo(f"backed up to {folder}: {size:,} bytes, callbacks up to number {manifest.journal_end}")
    return 0


def restore(config: Path | None, folder: Path, *, json: bool) -> int:
    settings = read_settings(config)
    _refuse_postgresql(settings)
    file = sqlite_file.file_of(settings.database)
    manifest = backups.check(folder)
    _make_directory(settings, file)
    replaced = backups.restore(folder, file, now=now())
    if json:
        echo_json({"restored": str(file), "replaced": [str(path) for path in replaced]})
        return 0
    echo(f"restored {file}, as it was at {rfc3339(manifest.time)}")
    if replaced:
        echo(f"the replaced files are {', '.join(map(str, replaced))}")
    return 0


def _make_directory(settings: Settings, file: Path) -> None:
    sqlite_file.refuse_network(file)
    if settings.database_url is None:
        credentials.make_data_dir(settings)
    elif not file.parent.is_dir():
        raise SettingsError(f"RECEIVER_DATABASE_URL: there is no directory {file.parent}")


def _refuse_postgresql(settings: Settings) -> None:
    if not is_sqlite(settings.database):
        raise SettingsError("backup and restore are for SQLite; with PostgreSQL use pg_dump or pg_basebackup")
