"""Fixtures for all tests: a database of one's own on either engine, migrated."""

import asyncio
import logging
import math
import os
import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import settings

from receiver.pages import messages, statistics
from receiver.providers import published
from receiver.storage import postgresql, schema
from receiver.storage.database import Database, journal_file
from receiver.storage.message_search import Patience
from receiver.storage.status import StatusReader
from tests import event_schema
from tests.brokers.kafka import KafkaCluster
from tests.brokers.nats import nats_server
from tests.brokers.rabbitmq import rabbitmq_server
from tests.brokers.redis import redis_server
from tests.databases import DatabasePool
from tests.servers import named_database, on_postgres, postgres_server, random_name, shared_by_workers

# The same examples on every machine, however slow it is; --hypothesis-profile=default looks for new ones.
settings.register_profile("quick", settings.get_profile("ci"), max_examples=50)
settings.register_profile("thorough", settings.get_profile("ci"), max_examples=250)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# Else every process that a test starts compiles the modules of receiver again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Under nohup every program that a test starts would ignore SIGHUP, too. A handler is not inherited.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Three workers for two cores, because a test waits for other processes much of its time; a long trial even more.

    None for named files: they would take longer to start than to run.
    """
    if all(".py" in argument for argument in config.args):
        return 0
    share = 2.0 if config.option.markexpr.startswith("slow or faults") else 1.5
    return math.ceil(share * len(os.sched_getaffinity(0)))


def pytest_configure(config: pytest.Config) -> None:
    # A test that is named runs, whatever its marker, unless the command line has another `-m`.
    if all("::" in argument for argument in config.args) and config.option.markexpr == "not slow and not faults":
        config.option.markexpr = ""


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary folder that all workers of this run have in common."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def _events_are_as_their_schema_says() -> Iterator[None]:
    """Checks every event that a test publishes or pulls in this process; `tests/fault_servers.py` checks the others."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("cloud_event", "alert_cloud_event"):
            made = getattr(published, name)

            def checked(*arguments: Any, made: Any = made) -> dict[str, Any]:
                event: dict[str, Any] = made(*arguments)
                event_schema.check(event)
                return event

            patch.setattr(published, name, checked)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_limit_is_reached_by_a_busy_machine() -> Iterator[None]:
    """Lengthens limits that this process exceeds if the machine gives it no time for some seconds."""
    with pytest.MonkeyPatch.context() as patch:
        # PostgreSQL ends a session that waits that long for the next statement of its transaction; the driver then says
        # that it "cannot switch to state".
        patch.setitem(postgresql._SESSION, "idle_in_transaction_session_timeout", "60s")
        patch.setitem(StatusReader.findings.__kwdefaults__, "seconds", 20.0)
        # A page that is late comes without what it shows.
        patch.setattr(messages, "_OF_PAGE", Patience(whole=20.0, in_spans=20.0))
        patch.setattr(statistics, "_PATIENCE_SECONDS", 20.0)
        yield


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def _migrate(url: str) -> None:
    async def run() -> None:
        database = Database(url)
        await schema.migrate(database)
        await database.close()

    asyncio.run(run())


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "receiver.db"
    _migrate(f"sqlite:///{path}")
    for file in (path, journal_file(path)):
        with closing(sqlite3.connect(file)) as connection:
            # what is only in the -wal file would not be copied
            [busy, *_] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            assert not busy
    return path


@pytest.fixture(scope="session")
def postgres(shared_folder: Path) -> Iterator[str]:
    """The URL of a PostgreSQL server's own database, for creating others."""
    with shared_by_workers(shared_folder, "postgres", postgres_server()) as url:
        yield url


@pytest.fixture(scope="session")
def _postgres_template(postgres: str) -> Iterator[str]:
    name = random_name()
    on_postgres(postgres, f"CREATE DATABASE {name}")
    _migrate(named_database(postgres, name))
    yield name
    on_postgres(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def sqlite_url(tmp_path: Path, _sqlite_template: Path) -> str:
    """A migrated SQLite database of this test's own: both its files."""
    for file in (_sqlite_template, journal_file(_sqlite_template)):
        shutil.copy(file, tmp_path / file.name)
    return f"sqlite:///{tmp_path / 'receiver.db'}"


@pytest.fixture(scope="session")
def _postgres_pool(postgres: str, _postgres_template: str) -> Iterator[DatabasePool]:
    pool = DatabasePool(postgres, _postgres_template)
    yield pool
    pool.close()


@pytest.fixture
def postgres_url(postgres: str, _postgres_pool: DatabasePool) -> Iterator[str]:
    """A migrated PostgreSQL database that no other test uses meanwhile."""
    name = _postgres_pool.take()
    yield named_database(postgres, name)
    _postgres_pool.give_back(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated database of this test's own; the test runs once for each engine."""
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


@pytest.fixture(scope="session")
def nats_url(shared_folder: Path) -> Iterator[str]:
    """A NATS server with JetStream that all tests share: streams and subjects by random names."""
    with shared_by_workers(shared_folder, "nats", nats_server()) as url:
        yield url


@pytest.fixture(scope="session")
def redis_url(shared_folder: Path) -> Iterator[str]:
    """A Redis server that all tests share: keys by random names."""
    with shared_by_workers(shared_folder, "redis", redis_server()) as url:
        yield url


@pytest.fixture(scope="session")
def rabbitmq_url(shared_folder: Path) -> Iterator[str]:
    """A RabbitMQ server that all tests share: exchanges and queues by random names."""
    with shared_by_workers(shared_folder, "rabbitmq", rabbitmq_server()) as url:
        yield url


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaCluster]:
    """A Kafka cluster that all tests share: topics by random names, and no faults."""
    with KafkaCluster() as cluster:
        yield cluster


@pytest.fixture
def own_log() -> Iterator[None]:
    """Restores the log of the process, which a command that runs within it configures."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()
