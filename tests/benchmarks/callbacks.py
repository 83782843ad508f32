"""Callbacks accepted and processed per second, side by side in one run: `python -m tests.benchmarks.callbacks`.

Contestants run one after another, each in processes of its own, in several rounds that begin with the no-op: a ratio is
taken within its round, the figures are medians of the rounds. Each callback has its own message id, only a 200 counts,
and what each database of receiver holds at the end is compared with what was answered. Prints the tables of
`receiver/docs/speed.md`.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from tests.benchmarks.contestants import NOOP, Contestant, contestants
from tests.benchmarks.measuring import Measured, Numbers, Plan, measure
from tests.benchmarks.report import (
    Figures,
    arrays_table,
    delays_table,
    disk_and_memory_table,
    goals_table,
    single_table,
)
from tests.servers import postgres_server

KEYS: Final = ("plain", "redis", "sqlite", "postgresql")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each load")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--stored", type=int, default=0, help="measure receiver also with so many stored messages")
    parser.add_argument("--only", nargs="+", choices=KEYS, default=KEYS, help="contestants beside the no-op")
    parser.add_argument("--folder", type=Path, help="where databases are made; a temporary folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures of all rounds to a file")
    options = parser.parse_args()
    plan = Plan(connections=options.connections, seconds=options.seconds)
    busy = os.getloadavg()[0]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="receiver-bench-", dir=options.folder)))
        postgres = _postgres(stack) if "postgresql" in options.only else None
        chosen = contestants(
            folder, postgres, stored=options.stored, chosen=lambda key: key in options.only, stack=stack
        )
        conditions = _conditions(folder, postgres, busy)
        rounds = _run(chosen, plan, options.rounds)
    load = f"{plan.connections} connections, medians of {options.rounds} rounds of {plan.seconds:g} s"
    print(f"{conditions}{load}.\n\n{_report(rounds, chosen)}")
    if options.json:
        figures = {key: [dataclasses.asdict(measured) for measured in measures] for key, measures in rounds.items()}
        content = {"conditions": conditions, "options": vars(options), "contestants": figures}
        options.json.write_text(json.dumps(content, indent=1, default=str))


def _postgres(stack: ExitStack) -> str | None:
    try:
        return stack.enter_context(postgres_server())
    except pytest.skip.Exception as missing:
        print(missing.msg, file=sys.stderr)
        return None


def _run(chosen: Sequence[Contestant], plan: Plan, rounds: int) -> dict[str, list[Measured]]:
    numbers = Numbers()
    found: dict[str, list[Measured]] = {one.key: [] for one in chosen}
    for number in range(1, rounds + 1):
        for one in chosen:
            measured = measure(one, plan, numbers)
            found[one.key].append(measured)
            print(f"round {number}: {one.name}: {_progress(measured, found[NOOP][-1])}", file=sys.stderr, flush=True)
    return found


def _progress(measured: Measured, noop: Measured) -> str:
    single = measured.single
    accept = f"accept {single.accept:,.0f}/s ({single.accept / noop.single.accept:.2f})"
    if single.sustained is None:
        return accept
    return f"{accept}, sustained {single.sustained:,.0f}/s ({single.sustained / noop.single.accept:.2f})"


def _report(rounds: dict[str, list[Measured]], chosen: Sequence[Contestant]) -> str:
    figures = Figures(rounds)
    receivers = [one for one in chosen if one.database is not None]
    parts = [single_table(figures, chosen)]
    if receivers:
        tables = (arrays_table, delays_table, disk_and_memory_table, goals_table)
        parts += [table(figures, receivers) for table in tables]
    parts += [
        f"{one.name}: answers other than 200: {refused}" for one in chosen if (refused := figures.refusals(one.key))
    ]
    return "\n\n".join(parts)


# --- conditions ---


def _conditions(folder: Path, postgres: str | None, busy: float) -> str:
    """What the figures depend on: the day, the machine, the versions, and how long its disk takes to sync."""
    packages = ", ".join(f"{name} {_version(name)}" for name in ("uvicorn", "starlette", "uvloop", "fastapi"))
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {_cpu()}, {os.cpu_count()} cores shared by server, client and database,",
        f"load average {busy:.1f} before the run, a sync of 4 KB {_sync_ms(folder):.2f} ms.",
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {packages}.",
    ]
    if postgres is not None:
        lines.append(f"PostgreSQL {asyncio.run(_postgres_settings(postgres))}.")
    return "\n".join([*lines, ""])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(none)"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _sync_ms(folder: Path) -> float:
    """The median time of a write that is synced, where the databases lie."""
    times = []
    with (folder / "sync").open("wb", buffering=0) as file:
        for _ in range(50):
            started = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


async def _postgres_settings(url: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        found = {
            name: await connection.fetchval("SELECT current_setting($1)", name)
            for name in ("server_version", "fsync", "synchronous_commit", "shared_buffers", "max_wal_size")
        }
    finally:
        await connection.close()
    settings = ", ".join(f"{name} = {value}" for name, value in found.items() if name != "server_version")
    warning = "" if found["fsync"] == "on" else " (nothing is safe on disk: do not publish these figures)"
    return f"{found['server_version'].split()[0]}, {settings}{warning}"


if __name__ == "__main__":
    main()
