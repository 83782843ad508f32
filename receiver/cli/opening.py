"""What most commands begin with: the settings, the database at the right schema, an intake of their own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from receiver import logs
from receiver.app import judge, now
from receiver.errors import SchemaError
from receiver.intake import Intake
from receiver.metrics import Metrics
from receiver.settings import Settings, load
from receiver.storage import embedded, schema
from receiver.storage.database import Database, is_sqlite

_QUIET = {"debug": "debug", "error": "error"}


def read_settings(config: Path | None) -> Settings:
    """The settings, with the log set up so that a command's own output is not drowned in it."""
    settings = load(config)
    logs.configure(form=settings.log_format, level=_QUIET.get(settings.log_level, "warning"))
    return settings


def with_database(config: Path | None, work: Callable[[Settings, Database], Awaitable[int]]) -> int:
    """Does some work with the database, which must be there, at this version's schema."""

    async def run() -> int:
        settings = read_settings(config)
        refuse_absent(settings)
        database = Database(settings.database)
        try:
            await schema.check(database)
            return await work(settings, database)
        finally:
            await database.close()

    return asyncio.run(run())


def make_embedded(settings: Settings) -> Path:
    """The file of the embedded database, made for its owner alone if it is not there."""
    if settings.database_url is None:
        make_data_dir(settings)
    file = embedded.file_of(settings.database)
    embedded.refuse_network(file)
    embedded.make(file)
    return file


def make_data_dir(settings: Settings) -> None:
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)


def refuse_absent(settings: Settings) -> None:
    """Raises SchemaError where SQLite would make an empty database just because somebody looks."""
    if is_sqlite(settings.database) and not embedded.file_of(settings.database).exists():
        file = embedded.file_of(settings.database)
        raise SchemaError(f"there is no database {file}; `receiver serve` or `receiver migrate` makes it")


@asynccontextmanager
async def intake_for(settings: Settings, database: Database) -> AsyncIterator[Intake]:
    """An intake beside the one that may be running in a server: the database takes care that they take turns."""
    intake = Intake(database, judge=judge(settings), conflict=settings.final_conflict, observer=Metrics(), clock=now)
    await intake.start()
    try:
        yield intake
    finally:
        await intake.stop()
