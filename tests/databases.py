"""Migrated PostgreSQL databases that tests use one after the other.

Creating and dropping a database takes more than half a second, emptying one takes some milliseconds. A database is
emptied only if its schema, its settings and its statistics are as they were; else it is dropped.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import asyncpg
from sqlalchemy import ClauseElement, Executable
from sqlalchemy.ext.compiler import compiles

from receiver.models.message_queries import MessageQuery
from receiver.storage import messages
from receiver.storage.database import Database
from tests.servers import named_database, on_postgres, random_name

# The planner takes a table without statistics for one of ten pages until it has more. An emptied database must not
# lead it to other plans than a new one does.
_MAX_PAGES = 8

# In-place updates by VACUUM and ANALYZE change no xmin of the catalog, but `reltuples`.
_FINGERPRINT = """
SELECT md5(string_agg(line, ';' ORDER BY line)) FROM (
    SELECT concat_ws(' ', 'class', oid, xmin, CASE WHEN relkind = 'r' THEN reltuples END) AS line
    FROM pg_class WHERE oid >= 16384
    UNION ALL SELECT concat_ws(' ', 'attribute', attrelid, attnum, xmin) FROM pg_attribute WHERE attrelid >= 16384
    UNION ALL SELECT concat_ws(' ', 'constraint', oid, xmin) FROM pg_constraint WHERE oid >= 16384
    UNION ALL SELECT concat_ws(' ', 'index', indexrelid, xmin) FROM pg_index WHERE indexrelid >= 16384
    UNION ALL SELECT concat_ws(' ', 'trigger', oid, xmin) FROM pg_trigger WHERE oid >= 16384
    UNION ALL SELECT concat_ws(' ', 'function', oid, xmin) FROM pg_proc WHERE oid >= 16384
    UNION ALL SELECT concat_ws(' ', 'schema', oid, xmin) FROM pg_namespace WHERE oid >= 16384
    UNION ALL SELECT concat_ws(' ', 'statistics', starelid, staattnum) FROM pg_statistic WHERE starelid >= 16384
    UNION ALL SELECT concat_ws(' ', 'setting', setrole, setconfig::text) FROM pg_db_role_setting
        WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
    UNION ALL SELECT concat_ws(' ', 'database', datallowconn, datconnlimit, datacl::text) FROM pg_database
        WHERE datname = current_database()
) AS lines
"""
_TABLES = "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
_LARGEST = "SELECT max(pg_relation_size(oid)) / 8192 FROM pg_class WHERE oid >= 16384 AND relkind = 'r'"
_SEQUENCES = """
SELECT format('%I.%I', schemaname, sequencename) AS name, coalesce(last_value, start_value) AS value,
    last_value IS NOT NULL AS is_called
FROM pg_sequences
"""
_END_OTHERS = """
SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@dataclass(slots=True)
class _Template:
    """The migrated state: the rows of the tables that have some, as JSON, and the sequences."""

    name: str
    tables: list[str]
    rows: dict[str, str]
    sequences: list[tuple[str, int, bool]]


class DatabasePool:
    """Databases of one process of the tests, on one server."""

    def __init__(self, server: str, template: str) -> None:
        self._server = server
        self._template = asyncio.run(_read_template(named_database(server, template), template))
        self._fingerprints: dict[str, str] = {}
        self._free: list[str] = []

    def take(self) -> str:
        """A migrated database without data, for one test."""
        if self._free:
            return self._free.pop()
        name = random_name()
        on_postgres(self._server, f"CREATE DATABASE {name} TEMPLATE {self._template.name}")
        self._fingerprints[name] = asyncio.run(_fingerprint(named_database(self._server, name)))
        return name

    def give_back(self, name: str) -> None:
        """Empties a database for the next test, or drops it if the test has changed more than its rows."""
        fingerprint = None
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            fingerprint = asyncio.run(
                _empty(named_database(self._server, name), self._template, self._fingerprints[name])
            )
        if fingerprint is None:
            self._drop(name)
            return
        self._fingerprints[name] = fingerprint
        self._free.append(name)

    def close(self) -> None:
        for name in list(self._fingerprints):
            self._drop(name)

    def _drop(self, name: str) -> None:
        on_postgres(self._server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        del self._fingerprints[name]


def with_slow_rows(url: str, table: str, seconds: float) -> None:
    """Makes the server take so many seconds longer for each row of a table that a statement reads."""
    on_postgres(
        url,
        # The cost keeps the planner from reading rows that an index can leave out.
        "CREATE FUNCTION takes_long() RETURNS boolean LANGUAGE plpgsql VOLATILE COST 1000000 "
        f"AS 'BEGIN PERFORM pg_sleep({seconds}); RETURN TRUE; END'",
        f"ALTER TABLE {table} RENAME TO stored",
        f"CREATE VIEW {table} AS SELECT * FROM stored WHERE takes_long()",
    )


@asynccontextmanager
async def locked(url: str, table: str) -> AsyncIterator[None]:
    """Holds a lock on a table while the block runs, so that nobody can read it."""
    connection: Any = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


async def _read_template(url: str, name: str) -> _Template:
    connection = await asyncpg.connect(url, timeout=60)
    try:
        tables = [row[0] for row in await connection.fetch(_TABLES)]
        rows = {table: await connection.fetchval(_rows(table)) for table in tables}
        sequences = [tuple(row) for row in await connection.fetch(_SEQUENCES)]
        return _Template(name, tables, {table: found for table, found in rows.items() if found}, sequences)
    finally:
        await connection.close()


def _rows(table: str) -> str:
    return f"SELECT json_agg(t ORDER BY t::text)::text FROM {table} AS t"


async def _fingerprint(url: str) -> str:
    connection = await asyncpg.connect(url, timeout=60)
    try:
        return str(await connection.fetchval(_FINGERPRINT))
    finally:
        await connection.close()


async def _empty(url: str, template: _Template, fingerprint: str) -> str | None:
    """Brings a database back to the state of its template; returns its fingerprint, None if it must be dropped."""
    connection = await asyncpg.connect(url, timeout=60, server_settings={"synchronous_commit": "off"})
    try:
        await connection.execute(_END_OTHERS)
        if await connection.fetchval(_FINGERPRINT) != fingerprint:
            return None
        is_large = await connection.fetchval(_LARGEST) > _MAX_PAGES
        async with connection.transaction():
            # no foreign key is checked, no trigger runs
            await connection.execute("SET LOCAL session_replication_role = replica")
            if is_large:
                await connection.execute(f"TRUNCATE {', '.join(template.tables)}")
            for table in template.tables:
                wanted = template.rows.get(table)
                if wanted is None or await connection.fetchval(_rows(table)) != wanted:
                    await connection.execute(f"DELETE FROM {table}")
                    if wanted is not None:
                        restore = f"INSERT INTO {table} SELECT * FROM json_populate_recordset(null::{table}, $1)"
                        await connection.execute(restore, wanted)
            for sequence in template.sequences:
                await connection.execute("SELECT setval($1::text::regclass, $2, $3)", *sequence)
        return str(await connection.fetchval(_FINGERPRINT)) if is_large else fingerprint
    finally:
        await connection.close()


class Explained(Executable, ClauseElement):
    """The query plan of a statement with bound parameters."""

    inherit_cache = False

    def __init__(self, statement: Any) -> None:
        self.statement = statement


@compiles(Explained, "sqlite")
def _(element: Explained, compiler: Any, **options: Any) -> str:
    return "EXPLAIN QUERY PLAN " + compiler.process(element.statement, **options)


@compiles(Explained, "postgresql")
def _(element: Explained, compiler: Any, **options: Any) -> str:
    return "EXPLAIN " + compiler.process(element.statement, **options)


async def plan(database: Database, query: MessageQuery) -> str:
    """The plan for a page of messages."""
    async with database.reading() as connection:
        statement = await messages.statement(connection, query)
        return "\n".join(str(row) for row in await connection.execute(Explained(statement)))
