"""What alerts cost: `python -m tests.benchmarks.alerts`.

`rounds` evaluates the default rules over many stored messages and the counts of a busy day, and counts events of the
log; medians. `keeping` posts callbacks at a constant rate to a `receiver serve` with alerts and to one without, in
turns, and compares the CPU time of their workers. CPU time is that of the process and of its sessions at PostgreSQL.
"""

import argparse
import asyncio
import logging
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

import structlog

from receiver.alerts.evaluator import Evaluator, LogWatch, Rulebook
from receiver.alerts.rules import configure
from receiver.storage import event_counts
from receiver.storage.database import Database
from tests.benchmarks.bodies import Bodies
from tests.benchmarks.contestants import Prepared, Running, postgres_database, receiver, sqlite_database
from tests.benchmarks.load import Load, run
from tests.benchmarks.processes import Meter
from tests.benchmarks.statistics import backends, callback
from tests.evaluating import Measured
from tests.integration.test_alerts_at_scale import NOW, fill, fill_counts
from tests.processes import until
from tests.processing import process
from tests.servers import postgres_server

EVERY: Final = timedelta(seconds=30)
# A hundred events a second.
BETWEEN_ROUNDS: Final = 3_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=("rounds", "keeping"))
    parser.add_argument("--only", choices=("SQLite", "PostgreSQL"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--empty", action="store_true", help="`rounds` without stored messages")
    parser.add_argument("--rate", type=float, default=100, help="callbacks a second in `keeping`; 0: none")
    parser.add_argument("--seconds", type=float, default=90, help="length of a turn of `keeping`")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="receiver-bench-")))
        server = stack.enter_context(postgres_server())
        databases = {
            "SQLite": lambda: sqlite_database(folder),
            "PostgreSQL": lambda: postgres_database(folder, server),
        }
        for name, database in databases.items():
            if options.only in (None, name):
                with database() as prepared:
                    if options.measure == "rounds":
                        asyncio.run(rounds(name, prepared.url, options.rounds, is_empty=options.empty))
                    else:
                        keeping(name, prepared, options.rounds, options.rate, options.seconds)


# --- rounds ---


async def rounds(name: str, url: str, number: int, *, is_empty: bool) -> None:
    database = Database(url)
    now = NOW
    watch = LogWatch(database)
    rulebook = Rulebook(rules=configure([]), every=EVERY)
    evaluator = Evaluator(database, rulebook, watch, observer=Measured(), clock=lambda: now)
    try:
        await (fill_counts if is_empty else fill)(database)
        lease = await evaluator.acquire()
        assert lease is not None
        spent: dict[str, list[float]] = {"round": [], "count": [], "process": []}
        bodies = Bodies(10)
        for turn in range(number):
            now += EVERY
            first = turn * BETWEEN_ROUNDS
            received = [callback(bodies.body(first + place), now) for place in range(0, BETWEEN_ROUNDS, 10)]
            async with measured(database, spent["process"]):
                await process(database, *received)
            async with measured(database, spent["count"]):
                while (await event_counts.count(database, lease.epoch, now)).left:
                    pass
            async with measured(database, spent["round"]):
                await evaluator.evaluate(lease)
        counting, processing = (statistics.median(spent[what]) / BETWEEN_ROUNDS * 1e6 for what in ("count", "process"))
        listed = ", ".join(f"{seconds * 1000:.0f}" for seconds in spent["round"])
        print(f"{name}: CPU ms of rounds without new events: {listed}", flush=True)
        print(f"{name}: counting {counting:.0f}, journal and processing {processing:.0f} us an event", flush=True)
    finally:
        await database.close()


@asynccontextmanager
async def measured(database: Database, spent: list[float]) -> AsyncIterator[None]:
    """Adds the CPU seconds that a block takes, here and at the server."""
    before, cpu = await backends(database), time.process_time()
    yield
    used = time.process_time() - cpu
    ticks = sum(ticks - before.get(pid, 0) for pid, ticks in (await backends(database)).items())
    spent.append(used + ticks / os.sysconf("SC_CLK_TCK"))


# --- keeping ---


def keeping(name: str, database: Prepared, pairs: int, rate: float, seconds: float) -> None:
    spent: dict[bool, list[float]] = {True: [], False: []}
    first = 0
    for turn in range(2 * pairs):
        # Pairs in alternating order: with, without; without, with.
        is_kept = (turn + turn // 2) % 2 == 0
        with receiver(database, ALERTS_EVERY="30" if is_kept else "0") as running:
            # The worker starts, and imports what it needs, in the first.
            first += post(running, first, 3.0, rate or 10)
            meters = [Meter(running.workers), Meter(running.backends)]
            first += post(running, first, seconds, rate)
            for meter in meters:
                meter.look()
            used = [(meter.risen or 0.0) / seconds * 1000 for meter in meters]
        spent[is_kept].append(sum(used))
        what = "with" if is_kept else "without"
        print(f"{name}, {what} alerts: worker {used[0]:.1f}, sessions {used[1]:.1f} ms a second", flush=True)
    ratios = ", ".join(f"{a / b:.2f}" for a, b in zip(spent[True], spent[False], strict=True))
    print(f"{name}, CPU time with alerts, of that without: {ratios}", flush=True)


def post(running: Running, first: int, seconds: float, rate: float) -> int:
    """Posts at a constant rate until all is processed, or waits at a rate of 0; returns the number of callbacks."""
    database = running.database
    assert database is not None
    if not rate:
        time.sleep(seconds)
        return 0
    load = Load(port=running.port, path=running.path, connections=8, seconds=seconds, first=first, rate=rate)
    found = run(load, lambda: None)
    until(lambda: database.backlog() == 0)
    return found.sent


if __name__ == "__main__":
    main()
