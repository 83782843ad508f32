"""The schema: migrates the database, or checks its revision."""

import asyncio
import os
import sqlite3
import time
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import URL, Connection, create_engine, inspect, select, update
from sqlalchemy import text as sql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import SQLModel

from receiver.errors import SchemaError
from receiver.models.callbacks import CALLBACKS, PROCESSOR
from receiver.models.codes import DELIVERY_CODES
from receiver.providers import registry
from receiver.storage import sqlite_file
from receiver.storage.database import Database

if TYPE_CHECKING:
    from alembic.config import Config

_PACKAGE = Path(__file__).resolve().parent.parent


def _migrations() -> Path:
    """The directory of the migrations: inside the package in a wheel, beside the package in a checkout."""
    shipped = _PACKAGE / "migrations"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "migrations"


NEWEST: Final = max(file.name.partition("_")[0] for file in _migrations().glob("versions/[0-9]*.py"))
"""The revision that this version needs. The files begin with their revision, as a test checks with Alembic."""


def _config() -> "Config":
    # Commands that only read start without Alembic, whose import takes 0.1 s of CPU time.
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_migrations()).replace("%", "%%"))
    return config


async def current(database: Database) -> str | None:
    """The revision of the database; None for an empty database. Raises SchemaError if it cannot hold every text."""

    def revision(connection: Connection) -> str | None:
        if connection.dialect.name == "postgresql":
            encoding = connection.scalar(sql("SHOW server_encoding"))
            if encoding != "UTF8":
                raise SchemaError(
                    f"the database has the encoding {encoding}, which lacks characters of messages; create one with "
                    "ENCODING 'UTF8' TEMPLATE template0"
                )
        if not inspect(connection).has_table("alembic_version"):
            return None
        found: str | None = connection.scalar(sql("SELECT version_num FROM alembic_version"))
        return found

    async with database.reading() as connection:
        return await connection.run_sync(revision)


async def migrate(database: Database, *, new_journal: bool = False) -> None:
    """Brings the schema and the code catalogue up to date, in one transaction; one process at a time.

    On SQLite the journal's file is made first. After an interruption, running it again completes it. Raises SchemaError
    if the journal is missing or older than the main file, unless `new_journal` asks for an empty one.
    """
    if database.file is not None:
        sqlite_file.make(database.file)
    before = await current(database)
    refuse_unknown(before)
    if database.is_sqlite:
        cursor = await _cursor(database, before)
        if not new_journal:
            _refuse_older_journal(database, before, cursor)
        await copy_to_journal(database, before)
        if new_journal and database.journal_file is not None:
            await asyncio.to_thread(_begin_behind, database.journal_file, cursor)
        # Connections that were opened before the journal existed have not attached it.
        await database.engine.dispose()

    def upgrade(connection: Connection) -> None:
        from alembic import command

        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    async with database.migrating() as connection:
        await database.lock_log(connection)
        await connection.run_sync(upgrade)
        await _write_codes(database, connection)
        if database.is_sqlite and before in _WITHOUT_JOURNAL:
            # The first version processed callbacks before it answered, so all of them are processed.
            await connection.execute(update(PROCESSOR).values(cursor=await journal_end(database)))


_WITHOUT_JOURNAL: Final = (None, "0001", "0002")

LOCK_SECONDS: Final = 30.0
# Longer than `deadlock_timeout`, after which PostgreSQL ends an autovacuum that is in the way. Whoever wants the table
# meanwhile waits behind us.
_LOCK_WAIT_SECONDS: Final = 1.5
_LOCK_PAUSE_SECONDS: Final = 0.5
_LOCK_NOT_AVAILABLE: Final = "55P03"


def lock_tables(connection: Connection, *tables: str, views: tuple[str, ...] = ()) -> None:
    """Locks tables, and views of them, for a migration on PostgreSQL, however long a report reads them.

    It never waits while it holds a lock that a report may want, so no deadlock is possible: it waits a moment for one
    of the tables, and takes the others only if they are free. Else it releases all of them, so that those who wait
    behind it get their turn, and tries again. Raises SchemaError after `LOCK_SECONDS`.
    """
    if connection.dialect.name != "postgresql":
        return
    timeout = connection.scalar(sql("SHOW lock_timeout"))
    begun = time.monotonic()
    for attempt in count():
        turn = attempt % len(tables)
        first, *others = (*tables[turn:], *tables[:turn])
        try:
            with connection.begin_nested():
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_WAIT_SECONDS * 1000:.0f}ms'")
                connection.exec_driver_sql(f"LOCK TABLE {first} IN ACCESS EXCLUSIVE MODE")
                for other in (*others, *views):
                    connection.exec_driver_sql(f"LOCK TABLE {other} IN ACCESS EXCLUSIVE MODE NOWAIT")
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                raise
            if time.monotonic() - begun > LOCK_SECONDS:
                raise SchemaError(_in_use(connection, (*tables, *views))) from None
            connection.exec_driver_sql(f"SELECT pg_sleep({_LOCK_PAUSE_SECONDS})")
        else:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{timeout}'")
            return


def _in_use(connection: Connection, names: tuple[str, ...]) -> str:
    found = connection.scalars(_USERS, {"names": list(names)}).all()
    pids = f"the sessions {', '.join(map(str, found))}" if found else "sessions"
    return (
        f"{', '.join(names)} are in use by {pids} of PostgreSQL; let these reports end, or end them "
        "(SELECT pg_terminate_backend(pid)), and run again: receiver migrate"
    )


_USERS: Final = sql(
    "SELECT DISTINCT pid FROM pg_locks WHERE granted AND pid <> pg_backend_pid() AND locktype = 'relation' "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND relation = ANY (SELECT to_regclass(name) FROM unnest(CAST(:names AS text[])) AS name) ORDER BY pid"
)


async def copy_to_journal(database: Database, revision: str | None = "0002") -> None:
    """Makes the journal's file, and copies the callbacks of the first version's main file into it."""
    assert database.file is not None  # noqa: S101
    assert database.journal_file is not None  # noqa: S101
    create_journal(database.journal_file)
    if revision in ("0001", "0002"):
        await asyncio.to_thread(_copy_callbacks, database.file, database.journal_file)


async def refuse_older_journal(database: Database) -> None:
    """Raises SchemaError if the journal's file is missing or older than the main file."""
    if database.is_sqlite:
        revision = await current(database)
        _refuse_older_journal(database, revision, await _cursor(database, revision))


def _refuse_older_journal(database: Database, revision: str | None, cursor: int) -> None:
    journal = database.journal_file
    assert journal is not None  # noqa: S101
    given = _given_sequence(journal)
    if given and revision is None:
        raise SchemaError(
            f"{database.file} is missing, but {journal} beside it has callbacks; restore both files from one backup "
            f"(receiver restore), or move {journal} away to start with an empty database"
        )
    if given is not None and given >= cursor:
        return
    if given is None and not cursor:
        # The main file is empty, or the first version made it.
        return
    fault = f"is missing beside {database.file}" if given is None else f"is older than {database.file}"
    raise SchemaError(
        f"{journal} {fault}, which has processed {cursor} of its callbacks; restore both files from one backup "
        "(receiver restore), or continue with an empty journal: receiver migrate --new-journal"
    )


async def _cursor(database: Database, revision: str | None) -> int:
    """The processor's cursor in the main file; 0 for a revision without a journal."""
    if revision in _WITHOUT_JOURNAL:
        return 0
    async with database.reading() as connection:
        return await connection.scalar(select(PROCESSOR.c.cursor)) or 0


def _given_sequence(file: Path) -> int | None:
    """The largest sequence that a journal ever assigned, read without changing the file; None without a journal."""
    if not file.exists():
        return None
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
            row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'callbacks'").fetchone()
    except sqlite3.OperationalError as error:
        # The file is empty: it was made for the journal and has no table yet.
        if "no such table" in str(error):
            return 0 if file.stat().st_size else None
        raise SchemaError(f"{file} cannot be read: {error}") from None
    except sqlite3.DatabaseError as error:
        raise SchemaError(f"{file} is damaged ({error}); restore a backup") from None
    return int(row[0]) if row is not None else 0


def _begin_behind(journal: Path, cursor: int) -> None:
    """Makes a journal assign only sequences after the processor's cursor."""
    with closing(sqlite3.connect(journal, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "INSERT INTO sqlite_sequence (name, seq) SELECT 'callbacks', 0 "
            "WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'callbacks')"
        )
        connection.execute("UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'callbacks'", (cursor,))
        connection.execute("COMMIT")


def create_journal(file: Path) -> None:
    """Creates the journal of an SQLite database if it is missing: a file with mode 0600, with the table."""
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    engine = create_engine(URL.create("sqlite", database=str(file)))
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        with engine.begin() as connection:
            SQLModel.metadata.create_all(connection, tables=[CALLBACKS])
    finally:
        engine.dispose()


def _copy_callbacks(main: Path, journal: Path) -> None:
    columns = ", ".join(column.name for column in CALLBACKS.columns if column.name != "sequence")
    with closing(sqlite3.connect(journal, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("ATTACH ? AS main_file", (str(main),))
        connection.execute(
            f"INSERT INTO main.callbacks ({columns}) SELECT {columns} FROM main_file.callbacks ORDER BY id "  # noqa: S608
            "ON CONFLICT (id) DO NOTHING"
        )


async def journal_end(database: Database) -> int:
    """The largest sequence that the journal of an SQLite database ever assigned."""
    async with database.writing_journal() as connection:
        return await connection.scalar(sql("SELECT seq FROM sqlite_sequence WHERE name = 'callbacks'")) or 0


async def check(database: Database) -> None:
    """Raises SchemaError, with the command to run, unless the schema has this version's revision."""
    revision = await current(database)
    if revision != NEWEST:
        refuse_unknown(revision)
        found = f"revision {revision}" if revision else "no tables"
        raise SchemaError(f"the database has {found}, this version needs {NEWEST}; run: receiver migrate")


def refuse_unknown(revision: str | None) -> None:
    """Raises SchemaError for a revision of a newer version."""
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision is not None and revision not in known:
        raise SchemaError(f"the database has revision {revision}, which a newer receiver made; this version is too old")


async def _write_codes(database: Database, connection: AsyncConnection) -> None:
    insert = database.insert(DELIVERY_CODES)
    values = {column.name: insert.excluded[column.name] for column in DELIVERY_CODES.columns if not column.primary_key}
    rows = [
        {column.name: getattr(entry, column.name) for column in DELIVERY_CODES.columns}
        for entry in registry.catalogue()
    ]
    await connection.execute(insert.on_conflict_do_update(index_elements=["api", "code"], set_=values), rows)
