"""A receiver's database seen from outside: how much of what was accepted is processed, and what that cost to write."""

import asyncio
import sqlite3
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import asyncpg

# all of a primary key, that of today and the one with the direction in it
_VISIBLE: Final = "SELECT id FROM messages WHERE api = 'v2' AND direction = 'out' AND id"
_WAL_FRAME_HEADER: Final = 24


class Database(Protocol):
    def begin(self) -> None:
        """Counts events and the log from here on."""
        ...

    def events(self) -> int:
        """Events processed since `begin`."""
        ...

    def backlog(self) -> int | None:
        """Callbacks accepted and not yet processed; None if this version of receiver has no journal."""
        ...

    def visible(self, ids: Sequence[str]) -> set[str]:
        """Which of the messages have a row."""
        ...

    def look(self) -> None:
        """Looks at the log; to be called every few milliseconds."""
        ...

    def log_bytes(self) -> int | None:
        """Bytes of the write-ahead log written since `begin`; None if it cannot be seen."""
        ...

    def backends(self) -> list[int]:
        """The processes of a database server that serve this database."""
        ...

    def close(self) -> None: ...


class SqliteBacklog:
    """The processor's cursor against the journal, `callbacks.db` beside the main file."""

    def __init__(self, main: sqlite3.Connection, journal: Path) -> None:
        self._main, self._file = main, journal
        self._journal: sqlite3.Connection | None = None

    def size(self) -> int | None:
        if self._journal is None:
            if not self._file.exists():
                return None
            self._journal = _read_only(self._file)
        try:
            [accepted] = self._journal.execute("SELECT coalesce(max(sequence), 0) FROM callbacks").fetchone()
            found = self._main.execute("SELECT cursor FROM processor").fetchone()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return None
            raise
        return max(0, int(accepted) - (int(found[0]) if found else 0))

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()


class WalMeter:
    """Bytes appended to an SQLite write-ahead log, from the index beside it (`-shm`), which all its users share.

    The log starts again from its beginning now and then. What is written between the last look and that moment is
    missed: by estimate one hundredth, with a look every 3 ms.
    """

    def __init__(self, database: Path) -> None:
        self._index = database.with_name(f"{database.name}-shm")
        self._frames: dict[bytes, int] = {}
        self._page = 4096
        self.look()
        self._before = sum(self._frames.values())

    def look(self) -> None:
        try:
            with self._index.open("rb", buffering=0) as file:
                header = file.read(48)
        except OSError:
            return
        if len(header) == 48:
            size, frames = struct.unpack_from("=HI", header, 14)
            self._page = 65536 if size == 1 else size
            salt = header[32:40]
            self._frames[salt] = max(frames, self._frames.get(salt, 0))

    @property
    def bytes(self) -> int | None:
        if not self._frames:
            return None
        return (sum(self._frames.values()) - self._before) * (self._page + _WAL_FRAME_HEADER)


def _read_only(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{file}?mode=ro", uri=True, isolation_level=None, timeout=10)


class SqliteDatabase:
    """An SQLite database; its server must run, for the log's index is only there then."""

    def __init__(self, file: Path) -> None:
        self._files = (file, file.with_name("callbacks.db"))
        self._connection = _read_only(file)
        self._backlog = SqliteBacklog(self._connection, self._files[1])
        self.begin()

    def begin(self) -> None:
        [self._start] = self._connection.execute("SELECT coalesce(max(position), 0) FROM events").fetchone()
        self._logs = [WalMeter(file) for file in self._files]

    def events(self) -> int:
        counted = "SELECT count(*) FROM events WHERE position > ?"
        return int(self._connection.execute(counted, (self._start,)).fetchone()[0])

    def backlog(self) -> int | None:
        return self._backlog.size()

    def visible(self, ids: Sequence[str]) -> set[str]:
        marks = ", ".join("?" * len(ids))
        return {row[0] for row in self._connection.execute(f"{_VISIBLE} IN ({marks})", ids)}

    def look(self) -> None:
        for log in self._logs:
            log.look()

    def log_bytes(self) -> int | None:
        self.look()
        found = [log.bytes for log in self._logs if log.bytes is not None]
        return sum(found) if found else None

    def backends(self) -> list[int]:
        return []

    def close(self) -> None:
        self._backlog.close()
        self._connection.close()


class PostgresBacklog:
    """The journal's narrow table of what is not processed yet."""

    def __init__(self, database: "PostgresDatabase") -> None:
        self._database = database
        self._there = bool(database.value("SELECT to_regclass('pending_callbacks') IS NOT NULL"))

    def size(self) -> int | None:
        return int(self._database.value("SELECT count(*) FROM pending_callbacks")) if self._there else None


class PostgresDatabase:
    """A database of a PostgreSQL server. The log is the whole server's: others who write at the same time add to it."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        # without statistics, which a new database has none of, it would read all messages to find one
        settings = {"enable_seqscan": "off"}
        self._connection: Any = self._runner.run(asyncpg.connect(url, server_settings=settings))
        self._backlog = PostgresBacklog(self)
        self.begin()

    def value(self, statement: str, *arguments: Any) -> Any:
        return self._runner.run(self._connection.fetchval(statement, *arguments))

    def _column(self, statement: str, *arguments: Any) -> list[Any]:
        return [row[0] for row in self._runner.run(self._connection.fetch(statement, *arguments))]

    def begin(self) -> None:
        self._start = int(self.value("SELECT coalesce(max(position), 0) FROM events"))
        self._log = str(self.value("SELECT pg_current_wal_lsn()::text"))

    def events(self) -> int:
        return int(self.value("SELECT count(*) FROM events WHERE position > $1", self._start))

    def backlog(self) -> int | None:
        return self._backlog.size()

    def visible(self, ids: Sequence[str]) -> set[str]:
        return set(self._column(f"{_VISIBLE} = ANY($1::text[])", list(ids)))

    def look(self) -> None:
        pass

    def log_bytes(self) -> int | None:
        return int(self.value("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), $1::text::pg_lsn)::bigint", self._log))

    def backends(self) -> list[int]:
        found = self._column(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return [pid for pid in found if _is_postgres(pid)]

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()


def _is_postgres(pid: int) -> bool:
    """Whether the server's process ids are of this machine."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith("postgres")
    except OSError:
        return False
