"""A large backlog beside many retries, on databases without statistics: it drains evenly, and nothing is scanned."""

import asyncio
import re
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection

from receiver.domain.publication import Publication, Published, Result, SinkDown
from receiver.models.sinks import RETRIES, SINKS
from receiver.sinks.base import Sink
from receiver.storage import event_log, retries, sinks
from receiver.storage.database import Database
from tests.benchmarks.filled_log import event_rows, message_rows, retry_rows, write
from tests.dispatching import now, private, running
from tests.servers import named_database, on_postgres, random_name
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

SINK = "crm"
LANES = 25_000
EACH = 4
# The position in the log after all events of these ordering keys.
RETRIES_END = (LANES + 64) * EACH
BACKLOGS = {"sqlite": 50_000, "postgresql": 100_000}
WANTED = range(5_000, 5_256)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def filled_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database with retries of many ordering keys, after them a backlog of events, and no statistics of them."""
    if request.param == "sqlite":
        path = tmp_path_factory.mktemp("filled") / "receiver.db"
        shutil.copy(request.getfixturevalue("_sqlite_template"), path)
        fill(url := f"sqlite:///{path}", BACKLOGS["sqlite"])
        yield url
        return
    server, name = request.getfixturevalue("postgres"), random_name()
    on_postgres(server, f"CREATE DATABASE {name} TEMPLATE {request.getfixturevalue('_postgres_template')}")
    url = named_database(server, name)
    tables = ("events", "messages", "retries", "dead_letters")
    on_postgres(url, *(f"ALTER TABLE {table} SET (autovacuum_enabled = off)" for table in tables))
    fill(url, BACKLOGS["postgresql"])
    yield url
    on_postgres(server, f"DROP DATABASE {name} WITH (FORCE)")


def fill(url: str, backlog: int) -> None:
    async def register() -> None:
        database = Database(url)
        await sinks.register(database, SINK, start="beginning", fingerprint="")
        async with database.writing() as connection:
            await connection.execute(SINKS.update().values(cursor=RETRIES_END))
        await database.close()

    asyncio.run(register())
    write(url, "events", event_rows(RETRIES_END + backlog), analyze=False)
    write(url, "messages", message_rows(RETRIES_END + backlog), analyze=False)
    write(url, "retries", retry_rows(SINK, LANES, EACH), analyze=False)


@pytest.fixture
async def filled(filled_url: str) -> AsyncIterator[Database]:
    database = Database(filled_url)
    yield database
    await database.close()


class Searches:
    """Every search of the dispatcher, by name."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.ordering_keys = [f"v2:m{number}" for number in WANTED]
        self.messages = [f"m{number}" for number in WANTED[:64]]

    async def read_after(self, connection: AsyncConnection) -> Any:
        return await event_log.read_after(connection, RETRIES_END, len(WANTED))

    async def read_at(self, connection: AsyncConnection) -> Any:
        return await event_log.read_at(connection, list(WANTED))

    async def later_of_messages(self, connection: AsyncConnection) -> Any:
        return await event_log.later_of_messages(self.database, connection, self.messages, WANTED[0] * EACH)

    async def bounds(self, connection: AsyncConnection) -> Any:
        return await event_log.bounds(connection)

    async def blocked_keys(self, connection: AsyncConnection) -> Any:
        return await retries.blocked_keys(self.database, connection, SINK, self.ordering_keys)

    async def due_retries(self, connection: AsyncConnection) -> Any:
        later = now() + timedelta(hours=2)
        return await retries.due(connection, SINK, now=later, limit=len(WANTED))

    async def waiting_in(self, connection: AsyncConnection) -> Any:
        return await retries.waiting_in(self.database, connection, SINK, self.ordering_keys, limit=1000)

    async def awaited(self, connection: AsyncConnection) -> Any:
        return await retries.awaited(connection, SINK, WANTED[0], WANTED[-1])

    async def promote(self, connection: AsyncConnection) -> Any:
        return await retries.promote(self.database, connection, SINK, self.ordering_keys, now())


SEARCHES = [name for name in vars(Searches) if not name.startswith("_")]


@pytest.mark.parametrize("search", SEARCHES)
async def test_every_search_reads_little_more_than_it_finds(filled: Database, search: str) -> None:
    searches, statements = Searches(filled), list[tuple[str, Any]]()

    def note(_: Any, __: Any, statement: str, parameters: Any, ___: Any, many: bool) -> None:
        statements.append((statement, parameters[0] if many else parameters))

    async with filled.engine.connect() as connection:
        # Gives `promote` rows to update.
        await connection.execute(
            RETRIES.update().where(RETRIES.c.ordering_key.in_(searches.ordering_keys)).values(state="parked")
        )
        event.listen(filled.engine.sync_engine, "before_cursor_execute", note)
        began = time.perf_counter()
        await getattr(searches, search)(connection)
        print(f"{search}: {(time.perf_counter() - began) * 1000:.1f} ms")
        event.remove(filled.engine.sync_engine, "before_cursor_execute", note)
        for statement, parameters in statements:
            await (_sqlite_searches if filled.is_sqlite else _postgresql_searches)(connection, statement, parameters)
        await connection.rollback()


async def _sqlite_searches(connection: AsyncConnection, statement: str, parameters: Any) -> None:
    """No query plan scans a table, or all index entries of a sink."""
    for row in await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters):
        assert not re.search(r"SCAN (?!anon_|CONSTANT)|\(sink=\?\)$", row[-1]), row[-1]


async def _postgresql_searches(connection: AsyncConnection, statement: str, parameters: Any) -> None:
    """The query reads few more rows than it returns, rows that it filters out included."""
    explain = f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}"
    [plan] = (await connection.exec_driver_sql(explain, parameters)).one()[0]
    for node in _nodes(plan["Plan"]):
        passed = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        assert passed <= 10 * len(WANTED), f"{node['Node Type']} of {passed} rows: {statement}"


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)


class Broker(Sink):
    """Is down until the test sets it up; records each event and the CPU time that this process has used by then."""

    max_batch = 256

    def __init__(self, backlog: int) -> None:
        self.backlog = backlog
        self.is_down = True
        self.tried = 0
        self.arrived: list[tuple[str, int]] = []
        self.used: list[tuple[int, float]] = []

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        self.tried += 1
        if self.is_down:
            return [SinkDown(reason="connection refused")] * len(batch)
        self.arrived += [(one.ordering_key, one.position) for one in batch]
        self.used.append((len(self.arrived), time.process_time()))
        return [Published()] * len(batch)

    def rate(self, quarter: int) -> float:
        """Events per second of CPU time in the least disturbed part of a quarter of the backlog.

        Of a second of its time a processor gives less when others use its caches and its core.
        """
        return max(self._rate_of(5 * quarter + part) for part in range(5))

    def _rate_of(self, twentieth: int) -> float:
        start, end = (edge * self.backlog / 20 for edge in (twentieth, twentieth + 1))
        (events, began), *_, (more, ended) = [one for one in self.used if start <= one[0] <= end]
        return (more - events) / (ended - began)


async def test_a_large_backlog_drains_as_fast_at_its_end_as_at_its_beginning(filled: Database) -> None:
    backlog = BACKLOGS["sqlite" if filled.is_sqlite else "postgresql"]
    broker = Broker(backlog)
    async with running(filled, private(broker, max_age="9000h"), poll_seconds=1):
        await eventually(lambda: broker.tried)
        broker.is_down, began = False, time.monotonic()
        await eventually(lambda: len(broker.arrived) == backlog, seconds=300)
        seconds = time.monotonic() - began
    positions = [position for _, position in broker.arrived]
    assert sorted(positions) == list(range(RETRIES_END + 1, RETRIES_END + backlog + 1))
    last: dict[str, int] = {}
    for ordering_key, position in broker.arrived:
        assert position > last.get(ordering_key, 0)
        last[ordering_key] = position
    first, end = broker.rate(0), broker.rate(3)
    print(f"{backlog / seconds:,.0f} events/s; for each second of CPU {first:,.0f} at first, {end:,.0f} at the end")
    # A search from the beginning of the log takes seven times as long at its end.
    assert end > 0.5 * first
