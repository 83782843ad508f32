"""The contestants of a benchmark, started and ended: each a server of its own, and what to look at while it works."""

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx2

from tests.benchmarks.databases import Database, PostgresDatabase, SqliteDatabase
from tests.benchmarks.load import ROOT, USER
from tests.benchmarks.processes import descendants
from tests.benchmarks.stored_messages import fill
from tests.brokers.own import free_port
from tests.processes import environment, serving, until
from tests.processes import receiver as command
from tests.servers import named_database, on_postgres, random_name

ENDPOINTS: Final = Path(__file__).with_name("endpoints.py")
ROUTE: Final = "/callbacks/bandwidth/v2"
SINK_FILE: Final = "events.jsonl"
NOOP: Final = "noop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A running server: its web process, and the processes and the database behind it."""

    port: int
    path: str
    web: int
    workers: Callable[[], list[int]] = field(default=list)
    backends: Callable[[], list[int]] = field(default=list)
    database: Database | None = None
    sink: Path | None = None


# --- beside receiver ---


@contextmanager
def endpoint(name: str, argument: str = "", backends: Callable[[], list[int]] = list) -> Iterator[Running]:
    """One of the small servers, in a process of its own."""
    port = free_port()
    process = subprocess.Popen([sys.executable, ENDPOINTS, name, str(port), argument], cwd=ROOT, env=environment())
    try:
        until(lambda: _answers(port) or process.poll() is not None)
        if process.poll() is not None:
            raise RuntimeError(f"the contestant {name} did not start")
        yield Running(port=port, path="/callbacks", web=process.pid, backends=backends)
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def redis_queue(folder: Path) -> Iterator[Running]:
    """FastAPI in front of a Redis that syncs each append to its disk."""
    port = free_port()
    options = {
        "port": port,
        "bind": "127.0.0.1",
        "dir": folder,
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    server = subprocess.Popen([str(redis_binary()), *arguments], stdout=subprocess.DEVNULL, cwd=folder)
    try:
        with endpoint("queue", f"redis://127.0.0.1:{port}/0", lambda: [server.pid]) as running:
            yield running
    finally:
        server.terminate()
        server.wait(20)


def redis_binary() -> str | None:
    return shutil.which("redis-server") or shutil.which("valkey-server")


def redis_queue_lacks() -> str | None:
    """What is missing for the contestant `redis_queue`."""
    missing = [f"the package {name}" for name in ("fastapi", "redis") if importlib.util.find_spec(name) is None]
    if redis_binary() is None:
        missing.append("redis-server")
    return " and ".join(missing) or None


def _answers(port: int) -> bool:
    try:
        httpx2.get(f"http://127.0.0.1:{port}/", trust_env=False)
    except httpx2.TransportError:
        return False
    return True


# --- receiver ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A migrated database, and a folder for its server."""

    folder: Path
    url: str
    view: Callable[[], Database]


@contextmanager
def sqlite_database(folder: Path, stored: int = 0) -> Iterator[Prepared]:
    own = folder / random_name("sqlite")
    own.mkdir()
    file = own / "receiver.db"
    try:
        yield _filled(Prepared(folder=own, url=f"sqlite:///{file}", view=lambda: SqliteDatabase(file)), stored)
    finally:
        shutil.rmtree(own, ignore_errors=True)


@contextmanager
def postgres_database(folder: Path, server: str, stored: int = 0) -> Iterator[Prepared]:
    """A database of its own with a random name, dropped at the end."""
    name = random_name("receiver_bench")
    url, own = named_database(server, name), folder / name
    own.mkdir()
    on_postgres(server, f"CREATE DATABASE {name}")
    try:
        yield _filled(Prepared(folder=own, url=url, view=lambda: PostgresDatabase(url)), stored)
    finally:
        on_postgres(server, f"DROP DATABASE {name} WITH (FORCE)")
        shutil.rmtree(own, ignore_errors=True)


def _filled(database: Prepared, stored: int) -> Prepared:
    migrated = command(database.folder, "migrate", DATABASE_URL=database.url)
    if migrated.returncode:
        raise RuntimeError(f"receiver migrate: {migrated.stderr.decode()}")
    if stored:
        started = time.monotonic()
        fill(database.url, stored)
        kind = database.url.partition(":")[0]
        print(f"{stored:,} messages stored on {kind} in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return database


@contextmanager
def receiver(database: Prepared, *, sink: bool = False, **more: str) -> Iterator[Running]:
    """A `receiver serve` on a prepared database, with a sink of lines in a file or none, and `more` settings."""
    file = database.folder / SINK_FILE
    settings = database.folder / "receiver.toml"
    settings.write_text(f'[[sinks]]\nname = "file"\ntype = "jsonl"\npath = {json.dumps(str(file))}\n' if sink else "")
    own = {"CALLBACK_CREDENTIALS": json.dumps([USER]), "API_TOKENS": '["t"]', "DATABASE_URL": database.url}
    with serving(database.folder, settings=own | more) as server, ExitStack() as stack:
        view = database.view()
        stack.callback(server.stop)
        stack.callback(view.close)
        yield Running(
            port=httpx2.URL(server.url).port or 0,
            path=ROUTE,
            web=server.process.pid,
            workers=lambda: descendants(server.process.pid),
            backends=view.backends,
            database=view,
            sink=file if sink else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """What is measured: a small server, or receiver on a database that `database` prepares for each round."""

    key: str
    name: str
    server: Callable[[], AbstractContextManager[Running]] | None = None
    database: Callable[[], AbstractContextManager[Prepared]] | None = None
    # of which contestant this is the one with many stored messages
    empty: str | None = None


def contestants(
    folder: Path, postgres: str | None, *, stored: int, chosen: Callable[[str], bool], stack: ExitStack
) -> list[Contestant]:
    """The chosen contestants; databases with stored messages are filled now and used in every round."""

    def of_receiver(
        key: str, name: str, prepare: Callable[[int], AbstractContextManager[Prepared]]
    ) -> list[Contestant]:
        if not chosen(key):
            return []
        found = [Contestant(key=key, name=name, database=lambda: prepare(0))]
        if stored:
            filled, many = stack.enter_context(prepare(stored)), f"{name}, {stored:,} stored"
            found.append(Contestant(key=f"{key}-stored", name=many, database=lambda: nullcontext(filled), empty=key))
        return found

    def of_file() -> AbstractContextManager[Running]:
        return endpoint("plain", str(folder / f"{random_name('plain')}.db"))

    def of_redis() -> AbstractContextManager[Running]:
        own = folder / random_name("redis")
        own.mkdir()
        return redis_queue(own)

    found = [Contestant(key=NOOP, name="no-op Starlette", server=lambda: endpoint("noop"))]
    if chosen("plain"):
        found.append(Contestant(key="plain", name="plain handler, SQLite", server=of_file))
    if chosen("redis"):
        if lacking := redis_queue_lacks():
            print(f"left out: FastAPI and Redis LPUSH, for {lacking} is not installed", file=sys.stderr)
        else:
            found.append(Contestant(key="redis", name="FastAPI, Redis LPUSH", server=of_redis))
    found += of_receiver("sqlite", "receiver, SQLite", lambda stored: sqlite_database(folder, stored))
    if chosen("postgresql") and postgres is None:
        print("left out: receiver on PostgreSQL, for there is no PostgreSQL", file=sys.stderr)
    elif postgres is not None:
        server = postgres
        found += of_receiver("postgresql", "receiver, PostgreSQL", lambda n: postgres_database(folder, server, n))
    return found
