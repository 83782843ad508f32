"""`receiver migrate`, `rebuild` and `prune`."""

import asyncio
from pathlib import Path

from receiver.cli.opening import make_embedded, read_settings, refuse_absent, with_database
from receiver.cli.output import say, say_fields, say_json
from receiver.errors import SettingsError
from receiver.settings import Settings
from receiver.storage import schema
from receiver.storage.database import Database, is_sqlite
from receiver.storage.rebuild import Rebuild
from receiver.worker import now
from receiver.workers.pruner import Pruner


def migrate(config: Path | None, *, check: bool, new_journal: bool, json: bool) -> int:
    settings = read_settings(config)
    if new_journal and not is_sqlite(settings.database):
        raise SettingsError("--new-journal is for SQLite; PostgreSQL has the journal in the database")
    if check:
        refuse_absent(settings)
    elif is_sqlite(settings.database):
        make_embedded(settings)
    before, after = asyncio.run(_migrate(settings.database, check=check, new_journal=new_journal))
    if json:
        say_json({"before": before, "after": after})
    else:
        say(f"at revision {after}, nothing to do" if before == after else f"now at revision {after}")
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
        return before, schema.newest()
    finally:
        await database.close()


def rebuild(config: Path | None, *, dry_run: bool, json: bool) -> int:
    async def work(settings: Settings, database: Database) -> int:
        rebuilt = await Rebuild(database, settings.final_conflict, writes=not dry_run).run()
        if json:
            say_json({"messages": rebuilt.messages, "forgotten": rebuilt.forgotten, "differing": rebuilt.differing})
            return 0
        differ = "differ" if dry_run else "differed and were put right"
        say(f"{rebuilt.messages} messages read, {rebuilt.differing} rows {differ}")
        if rebuilt.forgotten:
            say(f"{rebuilt.forgotten} messages left alone: some of their events are no longer kept")
        return 0

    return with_database(config, work)


def prune(config: Path | None, *, dry_run: bool, json: bool) -> int:
    async def work(settings: Settings, database: Database) -> int:
        sinks = [str(table.get("name")) for table in settings.sinks]
        pruner = Pruner(database, settings.retention.ages, clock=now, sinks=sinks)
        forgotten = await (pruner.count() if dry_run else pruner.prune())
        if json:
            say_json(forgotten)
        else:
            say("would be forgotten:" if dry_run else "forgotten:")
            say_fields(forgotten.items(), indent="  ")
        return 0

    return with_database(config, work)
