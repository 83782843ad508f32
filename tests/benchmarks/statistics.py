"""What statistics cost: `python -m tests.benchmarks.statistics`.

`reading` fills the cells of many messages and measures questions, medians of seven. `keeping` processes a journal in
turns with the statistics and without them, in one run, and prints the rates and the ratio of the CPU time.
"""

import argparse
import asyncio
import os
import statistics as mathematics
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import text

from receiver.domain.delivery import FinalConflict
from receiver.domain.events import Api, Callback
from receiver.intake.fold import TagChecker
from receiver.intake.processor import Processor
from receiver.models.statistics import CHANGES
from receiver.models.statistics_query import StatisticsQuery
from receiver.storage import schema, statistics, statistics_cells
from receiver.storage.bulk import InsertMany
from receiver.storage.database import Database
from tests.benchmarks.bodies import Bodies
from tests.processing import NoObserver, append, now
from tests.servers import named_database, on_postgres, postgres_server, random_name

DAYS: Final = 90
# Spread over 50 senders of five applications, four carriers and nine buckets of the time to delivery; one of twenty
# messages failed with one of twenty codes. SQL of both databases.
RANDOM: Final = "(n * 2654435761 % 4294967296)"
MESSAGE: Final = f"""
    SELECT {{first}} + n * {DAYS * 24} / {{number}} AS hour, {RANDOM} % 50 AS sender, {RANDOM} / 50 % 4 AS carrier,
        {RANDOM} / 200 % 20 AS outcome, {RANDOM} / 4000 % 20 AS code, {RANDOM} / 80000 % 9 AS bucket FROM numbers
"""
CELL: Final = f"""
    INSERT INTO statistics SELECT {statistics_cells.SENDER_HOUR}, hour, 'v2', 'out',
        CASE WHEN outcome = 0 THEN 'failed' ELSE 'delivered' END AS status,
        CASE WHEN outcome = 0 THEN 4700 + code ELSE {statistics_cells.NO_CODE} END AS delivery_code,
        'a-' || (sender % 5) AS application_id, 'carrier ' || carrier AS carrier_name,
        '+1919555' || (1000 + sender) AS sender, CASE WHEN outcome = 0 THEN -1 ELSE 8 + bucket END AS bucket,
        count(*), 0
    FROM ({MESSAGE}) AS messages GROUP BY 2, 5, 6, 7, 8, 9, 10 ORDER BY 2
"""
NUMBERS: Final = {
    True: "WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {number})",
    False: "WITH numbers AS (SELECT n FROM generate_series(0::bigint, {number} - 1) AS n)",
}
ALL_DETAILS: Final = "delivery_code, application_id, carrier_name"
TOTALS: Final = f"{statistics_cells.NO_CODE}, application_id, ''"
ALL: Final = f"{statistics_cells.NO_CODE}, '', ''"
# The grain, the grain it is made from, and the SQL of its hour, details, sender and time to delivery.
DERIVED: Final = (
    (statistics_cells.HOUR, statistics_cells.SENDER_HOUR, "hour", ALL_DETAILS, "''", "bucket"),
    (statistics_cells.DAY, statistics_cells.HOUR, "hour - hour % 24", ALL_DETAILS, "''", "bucket"),
    (statistics_cells.WEEK, statistics_cells.DAY, "hour - hour % 168", ALL_DETAILS, "''", "bucket"),
    (statistics_cells.SENDER_DAY, statistics_cells.SENDER_HOUR, "hour - hour % 24", ALL_DETAILS, "sender", "bucket"),
    (statistics_cells.TOTALS_DAY, statistics_cells.SENDER_DAY, "hour", TOTALS, "sender", "bucket"),
    (statistics_cells.TOTALS_WEEK, statistics_cells.TOTALS_DAY, "hour - hour % 168", TOTALS, "sender", "bucket"),
    (statistics_cells.ALL_HOUR, statistics_cells.HOUR, "hour", ALL, "''", "bucket"),
    (statistics_cells.ALL_DAY, statistics_cells.ALL_HOUR, "hour - hour % 24", ALL, "''", "bucket"),
    (statistics_cells.PLAIN_DAY, statistics_cells.TOTALS_DAY, "hour", TOTALS, "sender", "-1"),
    (statistics_cells.PLAIN_WEEK, statistics_cells.TOTALS_WEEK, "hour", TOTALS, "sender", "-1"),
)
END: Final = datetime(2026, 4, 1, tzinfo=UTC)
QUESTIONS: Final[dict[str, dict[str, Any]]] = {
    "no dimension": {},
    "by=status": {"by": "status"},
    "by=day": {"by": "day"},
    "by=category,carrierName": {"by": "category,carrierName"},
    "by=from": {"by": "from"},
    "by=from, limit=10": {"by": "from", "limit": 10},
    "by=from,carrierName,status": {"by": "from,carrierName,status"},
    "by=day, from=": {"by": "day", "sender": "+19195551007"},
    "by=hour, 24 hours": {"by": "hour", "since": END - timedelta(days=1)},
    "by=category": {"by": "category"},
    "by=carrierName": {"by": "carrierName"},
    "by=hour, 7 days": {"by": "hour", "since": END - timedelta(days=7)},
    "by=hour,status, 7 days": {"by": "hour,status", "since": END - timedelta(days=7)},
    "by=status, 90 days": {"by": "status", "since": END - timedelta(days=DAYS)},
    "by=day, 90 days": {"by": "day", "since": END - timedelta(days=DAYS)},
    "by=from, 90 days": {"by": "from", "since": END - timedelta(days=DAYS)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=("reading", "keeping"))
    parser.add_argument("--sqlite-messages", type=int, default=1_000_000)
    parser.add_argument("--postgresql-messages", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--callbacks", type=int, default=20_000, help="callbacks in one turn of `keeping`")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="receiver-bench-")))
        server, database = stack.enter_context(postgres_server()), random_name()
        on_postgres(server, f"CREATE DATABASE {database}")
        stack.callback(on_postgres, server, f"DROP DATABASE {database} WITH (FORCE)")
        urls = {
            "SQLite": (f"sqlite:///{folder}/receiver.db", options.sqlite_messages),
            "PostgreSQL": (named_database(server, database), options.postgresql_messages),
        }
        for name, (url, messages) in urls.items():
            if options.measure == "reading":
                asyncio.run(reading(name, url, messages))
            else:
                asyncio.run(keeping(name, url, options.callbacks, options.rounds))


async def reading(name: str, url: str, messages: int) -> None:
    database = Database(url)
    try:
        await schema.migrate(database)
        await fill(database, messages)
        async with database.reading() as connection:
            cells = await connection.execute(text("SELECT grain, count(*) FROM statistics GROUP BY grain"))
            listed = ", ".join(f"{count:,}" for _, count in sorted(map(tuple, cells)))
        print(f"{name}, {messages:,} messages of {DAYS} days, cells by grain: {listed}")
        for question, fields in QUESTIONS.items():
            query = StatisticsQuery(**{"until": END, **fields})
            seconds = []
            for _ in range(7):
                begun = time.perf_counter()
                found = await statistics.find(database, query, END)
                seconds.append(time.perf_counter() - begun)
            print(f"  {question:30} {mathematics.median(seconds) * 1000:6.0f} ms, {len(found.rows):,} rows", flush=True)
    finally:
        await database.close()


async def fill(database: Database, messages: int) -> None:
    """The cells of so many messages."""
    values = {"number": messages, "first": statistics_cells.hour_of(END) - DAYS * 24}
    cells = CELL.replace("INSERT INTO statistics", f"INSERT INTO statistics {NUMBERS[database.is_sqlite]}", 1)
    async with database.migrating() as connection:
        await connection.execute(text(cells.format(**values).replace("::bigint", "\\:\\:bigint")))
        for grain, source, hour, details, sender, bucket in DERIVED:
            await connection.execute(
                text(
                    f"INSERT INTO statistics SELECT {grain}, {hour}, api, direction, status, {details}, "
                    f"{sender}, {bucket}, sum(deliveries), 0 FROM statistics "
                    f"WHERE grain = {source} GROUP BY 2, 3, 4, 5, 6, 7, 8, 9, 10 ORDER BY 2"
                )
            )
    async with database.migrating() as connection:
        await connection.execute(text("ANALYZE statistics"))


async def keeping(name: str, url: str, callbacks: int, rounds: int) -> None:
    database, bodies, first = Database(url), Bodies(), 0
    counted: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    count = statistics_cells.count
    try:
        await schema.migrate(database)
        for turn in range(2 * rounds):
            # Pairs in alternating order: with, without; without, with.
            is_kept = (turn + turn // 2) % 2 == 0
            for _ in range(0, callbacks, 1000):
                await append(database, *(callback(bodies.body(first + number)) for number in range(1000)))
                first += 1000
            statistics_cells.count = count if is_kept else _nothing  # type: ignore[assignment]
            counted[is_kept].append(await _timed(database))
        for is_kept, times in counted.items():
            rate = callbacks / mathematics.median(seconds for seconds, _ in times)
            print(f"{name}, {'with' if is_kept else 'without'} statistics: {rate:,.0f} callbacks/s")
        for place, kind in enumerate(("time", "CPU time")):
            ratios = [a[place] / b[place] for a, b in zip(counted[True], counted[False], strict=True)]
            print(f"{name}, {kind} with statistics, of that without: {mathematics.median(ratios):.3f}", flush=True)
    finally:
        statistics_cells.count = count
        await database.close()


def callback(body: bytes, received_at: datetime | None = None) -> Callback:
    return Callback(
        id=uuid4().hex, received_at=received_at or now(), api=Api.V2, route="primary", method="POST", body=body
    )


def _nothing(_: object) -> InsertMany:
    return InsertMany(CHANGES, (), [])


async def _timed(database: Database) -> tuple[float, float]:
    """Processes what is pending; the seconds, and the CPU seconds of this process and of its session at the server."""
    processor = Processor(
        database, checker=TagChecker(), conflict=FinalConflict.FAILED_WINS, observer=NoObserver(), clock=now
    )
    begun, cpu = time.perf_counter(), time.process_time()
    before = await backends(database)
    assert await processor.drain()
    seconds, used = time.perf_counter() - begun, time.process_time() - cpu
    ticks = sum(ticks - before.get(pid, 0) for pid, ticks in (await backends(database)).items())
    await processor.stop()
    return seconds, used + ticks / os.sysconf("SC_CLK_TCK")


async def backends(database: Database) -> dict[int, int]:
    """The CPU ticks of the sessions in this database; none for SQLite."""
    if database.is_sqlite:
        return {}
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() ORDER BY pid"
    async with database.reading() as connection:
        return {pid: _ticks(pid) for (pid,) in await connection.execute(text(query))}


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


if __name__ == "__main__":
    main()
