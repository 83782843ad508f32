"""The journal on both databases: what an accepted callback is worth, and what happens where none can be accepted."""

import asyncio
import json
import os
import re
import resource
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from starlette.types import Message
from structlog.testing import capture_logs

from receiver.domain.events import Callback
from receiver.errors import StorageUnavailable
from receiver.intake.endpoint import Admission, CallbackEndpoints
from receiver.intake.journal import Journal
from receiver.providers.registry import URLS
from receiver.storage.database import Database, journal_file
from receiver.storage.journal import journal_writer
from tests.factories import at, callback, v2_event
from tests.processing import append, drain, now, opened, select
from tests.servers import on_postgres

pytestmark = pytest.mark.anyio

# An example is a callback on its way through a database.
EXAMPLES = settings.default.max_examples // 5

# Bandwidth waits for ten seconds; the journal promises an answer within five. The rest is for a busy machine.
PATIENCE_SECONDS = 8


class Groups:
    """An observer that remembers the sizes of the groups."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def appended(self, callbacks: int, commit_seconds: float, waited_seconds: Iterable[float]) -> None:
        self.sizes.append(callbacks)


@asynccontextmanager
async def running(database: Database, observer: Groups | None = None) -> AsyncIterator[Journal]:
    journal = Journal(journal_writer(database), observer=observer or Groups())
    await journal.start()
    try:
        yield journal
    finally:
        await journal.stop()


@pytest.fixture
async def journal(database: Database) -> AsyncIterator[Journal]:
    async with running(database) as journal:
        yield journal


async def in_journal(url: str) -> set[str]:
    async with opened(url) as database:
        return {id_ for (id_,) in await select(database, "SELECT id FROM callbacks")}


def files(url: str) -> tuple[Path, Path]:
    """The main file and the journal's file of an SQLite URL."""
    file = Path(url.removeprefix("sqlite:///"))
    return file, journal_file(file)


def endings(file: Path) -> list[Path]:
    """A file of SQLite and those beside it."""
    return [file, file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")]


# --- accepted ---


async def test_accepted_callback_is_in_the_journal_as_it_came(database: Database, journal: Journal) -> None:
    sent = callback(b"\x00\xff[", remote="192.0.2.1", query="a=%00", headers={"user-agent": "BandwidthAPI/v2"})
    await journal.append(sent)
    [row] = await select(database, "SELECT id, api, route, method, remote, query, headers, body FROM callbacks")
    assert row[:6] == (sent.id, "v2", "primary", "POST", "192.0.2.1", "a=%00")
    assert bytes(row[7]) == sent.body


async def test_group_commit_takes_a_thousand_appends_in_a_few_commits(database: Database) -> None:
    groups = Groups()
    async with running(database, groups) as journal:
        await asyncio.gather(*(journal.append(callback([v2_event(f"m{n}")])) for n in range(1000)))
    assert sum(groups.sizes) == 1000
    assert len(groups.sizes) < 20
    assert await select(database, "SELECT count(*) FROM callbacks") == [(1000,)]


async def test_known_id_is_left_alone_and_not_counted(database: Database) -> None:
    first, second = callback(b"1"), callback(b"2")
    assert await append(database, first) == 1
    again = Callback(id=first.id, received_at=at(0), api=first.api, route="primary", method="POST", body=b"other")
    assert await append(database, again, second) == 1
    assert await select(database, "SELECT count(*) FROM callbacks") == [(2,)]
    [(body,)] = await select(database, f"SELECT body FROM callbacks WHERE id = '{first.id}'")
    assert bytes(body) == b"1"


async def test_probe_leaves_nothing_behind(database: Database, journal: Journal) -> None:
    await asyncio.gather(*(journal.probe() for _ in range(5)))
    assert await select(database, "SELECT count(*) FROM callbacks") == [(0,)]
    if not database.is_sqlite:
        assert await select(database, "SELECT count(*) FROM pending_callbacks") == [(0,)]


async def test_stop_commits_what_was_accepted(database: Database) -> None:
    async with running(database) as journal:
        accepted = [journal.append(callback(b"[]")) for _ in range(50)]
    await asyncio.gather(*accepted)
    assert await select(database, "SELECT count(*) FROM callbacks") == [(50,)]


# --- any bytes ---

_HEADERS = st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=30)), max_size=4)
_NASTY_BODIES = (
    b"",
    b"\x00" * 1000,
    b"\xff\xfe\xfd",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'[{"type":"message-delivered","time":"\x00","message":{"id":"\xed\xa0\x80"}}]',
    b'[{"type":"message-failed","errorCode":' + b"9" * 5000 + b',"message":{"id":"huge"}}]',
    b"x" * 1_048_576,
)


async def posted(endpoints: CallbackEndpoints, body: bytes, query: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    """Posts bytes to the endpoint as a server would hand them over; the status of the answer."""
    answers: list[Message] = []
    scope = {"type": "http", "method": "POST", "client": ("192.0.2.1", 1), "query_string": query, "headers": headers}

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        answers.append(message)

    await endpoints.answer(*URLS[0], scope, receive, send)
    return int(answers[0]["status"])


class NoObserver:
    def rejected(self, reason: str) -> None: ...


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=100), _HEADERS), min_size=1, max_size=8))
@example([(body, b"\x00\xff%00=\xf0", [(b"x-\x00", b"\x00\\u0000\xff")]) for body in _NASTY_BODIES])
async def test_any_bytes_are_accepted_as_they_came_and_processed(
    database: Database, posts: list[tuple[bytes, bytes, list[tuple[bytes, bytes]]]]
) -> None:
    admission = Admission(credentials=None, networks=[], max_body_bytes=2_000_000)
    _, before = (await select(database, "SELECT count(*), coalesce(max(sequence), 0) FROM callbacks"))[0]
    async with running(database) as journal:
        endpoints = CallbackEndpoints(journal, admission=admission, observer=NoObserver(), clock=now)
        wanted = []
        for body, query, headers in posts:
            sent = [(name, value) for name, value in headers if name.lower() != b"content-encoding"]
            assert await posted(endpoints, body, query, sent) == 200
            wanted.append((body, query.decode("utf-8", "replace").replace("\x00", "\ufffd")))
    found = await select(database, f"SELECT body, query FROM callbacks WHERE sequence > {before} ORDER BY sequence")
    assert [(bytes(row.body), row.query) for row in found] == wanted
    await drain(database)
    assert await select(database, "SELECT last_error FROM processor") == [(None,)]


class _BrokenJournal:
    def append(self, callback: Callback) -> asyncio.Future[None]:
        raise ValueError("a bug")


async def test_unexpected_error_of_a_callback_request_is_answered_503() -> None:
    admission = Admission(credentials=None, networks=[], max_body_bytes=100)
    endpoints = CallbackEndpoints(_BrokenJournal(), admission=admission, observer=NoObserver(), clock=now)
    assert await posted(endpoints, b"[]", b"", []) == 503


async def test_nul_in_a_header_is_replaced_and_nothing_else(database: Database) -> None:
    await append(database, callback(b"", headers={"x\x00": "a\x00b", "y": r"\u0000"}))
    as_text = "headers" if database.is_sqlite else "headers::text"
    [(headers,)] = await select(database, f"SELECT {as_text} FROM callbacks")
    assert json.loads(headers) == {"x\ufffd": "a\ufffdb", "y": r"\u0000"}


# --- durability ---


async def test_sqlite_writer_syncs_every_commit(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connections: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def recording(*arguments: Any, **more: Any) -> sqlite3.Connection:
        connections.append(connect(*arguments, **more, check_same_thread=False))
        return connections[-1]

    async with opened(sqlite_url) as database, running(database) as journal:
        with monkeypatch.context() as patched:
            patched.setattr(sqlite3, "connect", recording)
            await journal.append(callback(b"[]"))
        [connection] = connections
        pragmas = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")]
        assert pragmas == [2, "wal"]


async def test_postgresql_writer_commits_synchronously_whatever_the_database_s_default(
    postgres: str, postgres_url: str
) -> None:
    name = postgres_url.rpartition("/")[2]
    await asyncio.to_thread(on_postgres, postgres, f"ALTER DATABASE {name} SET synchronous_commit = off")
    function = (
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NEW; END $$"
    )
    trigger = "CREATE TRIGGER note BEFORE INSERT ON callbacks FOR EACH ROW EXECUTE FUNCTION note()"
    await asyncio.to_thread(on_postgres, postgres_url, "CREATE TABLE seen (setting text)", function, trigger)
    async with opened(postgres_url) as database, running(database) as journal:
        await journal.append(callback(b"[]"))
        assert await select(database, "SELECT setting FROM seen") == [("on",)]


_TRACED = """
import asyncio, sys
from receiver.app import create_app
from receiver.settings import Settings
from receiver.intake.server import server

settings = Settings(database_url=sys.argv[1], callback_credentials=["u:p"], api_auth="none", worker="none")
running = server(create_app(settings), host="127.0.0.1", port=0)

async def main():
    task = asyncio.create_task(running.serve())
    while not running.started:
        await asyncio.sleep(0.01)
        if task.done():
            await task
    print(running.servers[0].sockets[0].getsockname()[1], flush=True)
    await task

asyncio.run(main())
"""


@pytest.fixture
def strace() -> str:
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed")
    if subprocess.run([found, "-f", "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace may not trace here")
    return found


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


async def test_fdatasync_of_the_journal_comes_before_every_200(strace: str, sqlite_url: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    calls = "trace=fdatasync,fsync,read,recvfrom,recvmsg,write,writev,sendto,sendmsg"
    process = await asyncio.create_subprocess_exec(
        *(strace, "-f", "-y", "-s", "60", "-o", trace, "-e", calls, sys.executable, "-c", _TRACED, sqlite_url),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            port = int(await process.stdout.readline())
        url = f"http://127.0.0.1:{port}/callbacks/bandwidth/v2"
        async with httpx2.AsyncClient(auth=("u", "p"), trust_env=False, verify=False, timeout=60) as client:

            async def send(sender: int) -> list[int]:
                return [(await client.post(url, json=[v2_event(f"m{sender}-{n}")])).status_code for n in range(10)]

            answers = [status for some in await asyncio.gather(*map(send, range(8))) for status in some]
        assert answers == [200] * 80
    finally:
        for child in children(process.pid):
            os.kill(child, signal.SIGTERM)
        await process.wait()
    assert unsynced(trace.read_text("utf-8", "replace").splitlines()) == (80, 0)


def unsynced(lines: list[str]) -> tuple[int, int]:
    """How many 200s a trace holds, and before how many of them the journal was not synced.

    For each a sync of callbacks.db-wal must have begun after its request was read and ended before it is sent.
    """
    read_at: dict[str, int] = {}
    began: dict[str, int] = {}
    synced_from = -1
    answers = late = 0
    for place, line in enumerate(lines):
        thread, _, call = line.partition(" ")
        call = call.strip()
        socket = re.search(r"^\w+\(\d+<([^>]*socket:[^>]*)>", call)
        if "POST /callbacks" in call and socket:
            read_at[socket[1]] = place
        elif call.startswith(("fdatasync(", "fsync(")) and "callbacks.db-wal" in call:
            began[thread] = place
            if call.endswith("= 0"):
                synced_from = began[thread]
        elif re.match(r"<\.\.\. f(data)?sync resumed>.*= 0$", call) and thread in began:
            synced_from = max(synced_from, began[thread])
        elif "HTTP/1.1 200" in call and socket:
            answers += 1
            late += synced_from < read_at[socket[1]]
    return answers, late


# --- faults: no callback is accepted, and readiness says so ---

Fault = Callable[[str], AbstractAsyncContextManager[None]]


async def assert_down(url: str, journal: Journal, probing: Journal) -> None:
    """No append and no probe succeeds, and both say so in time."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        appended, probed = await asyncio.gather(
            journal.append(callback([v2_event("lost")])), probing.probe(), return_exceptions=True
        )
    assert isinstance(appended, StorageUnavailable), appended
    assert isinstance(probed, StorageUnavailable), probed


async def assert_heals(journal: Journal, probing: Journal) -> Callback:
    """Callbacks are accepted again, by itself."""
    sent = callback([v2_event("after")])
    async with asyncio.timeout(30):
        while True:
            with suppress(StorageUnavailable):
                await journal.append(sent)
                break
        while True:
            with suppress(StorageUnavailable):
                await probing.probe()
                break
    return sent


async def assert_fault_is_survived(url: str, fault: Fault) -> None:
    async with opened(url) as database, running(database) as journal, running(database) as probing:
        before = callback([v2_event("before")])
        await journal.append(before)
        await probing.probe()
        async with fault(url):
            await assert_down(url, journal, probing)
        after = await assert_heals(journal, probing)
    stored = await in_journal(url)
    assert {before.id, after.id} <= stored
    # a callback answered 503 may be stored after all, but never twice
    assert len(stored) <= 3


def on_file(during: str, after: str) -> Fault:
    """A fault by statements on the journal's file."""

    @asynccontextmanager
    async def fault(url: str) -> AsyncIterator[None]:
        with closing(sqlite3.connect(files(url)[1], isolation_level=None, timeout=30)) as connection:
            connection.execute(during)
            yield
            connection.execute(after)

    return fault


@asynccontextmanager
async def full_disk(url: str) -> AsyncIterator[None]:
    """No file may grow further, as on a full disk."""
    wal = endings(files(url)[1])[1]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


SQLITE_FAULTS: dict[str, Fault] = {
    "locked": on_file("BEGIN IMMEDIATE", "ROLLBACK"),
    "renamed table": on_file("ALTER TABLE callbacks RENAME TO gone", "ALTER TABLE gone RENAME TO callbacks"),
    "full disk": full_disk,
}


@pytest.mark.parametrize("fault", SQLITE_FAULTS.values(), ids=SQLITE_FAULTS)
async def test_fault_of_the_journal_file_is_unavailable_and_heals(sqlite_url: str, fault: Fault) -> None:
    await assert_fault_is_survived(sqlite_url, fault)


@contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """Nobody may write into the files of a folder, not even the superuser's process."""
    for file in folder.iterdir():
        file.chmod(0o444)
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)
        for file in folder.iterdir():
            file.chmod(0o644)


async def test_read_only_file_is_unavailable_and_heals(sqlite_url: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in files(sqlite_url):
            shutil.copy(file, folder / file.name)
        url = f"sqlite:///{folder / 'receiver.db'}"
        async with opened(url) as database, running(database) as journal, running(database) as probing:
            with unprivileged(folder):
                await assert_down(url, journal, probing)
            after = await assert_heals(journal, probing)
        assert after.id in await in_journal(url)


def on_server(during: list[str], after: list[str]) -> Fault:
    """A fault by statements on the database."""

    @asynccontextmanager
    async def fault(url: str) -> AsyncIterator[None]:
        connection = await asyncpg.connect(url)
        for statement in during:
            await connection.execute(statement)
        try:
            yield
            for statement in after:
                await connection.execute(statement)
        finally:
            await connection.close()

    return fault


def refusing(sqlstate: str) -> Fault:
    """A database that refuses every callback with an error of this SQLSTATE."""
    function = (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{sqlstate}'; END $$"
    )
    trigger = "CREATE TRIGGER refuse BEFORE INSERT ON callbacks FOR EACH ROW EXECUTE FUNCTION refuse()"
    return on_server([function, trigger], ["DROP TRIGGER refuse ON callbacks"])


@asynccontextmanager
async def no_connections(url: str) -> AsyncIterator[None]:
    """The database lets nobody in, and those who are in out."""
    server, name = urlunsplit(urlsplit(url)._replace(path="/postgres")), urlsplit(url).path[1:]
    cut = f"SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity WHERE datname = '{name}'"
    await asyncio.to_thread(on_postgres, server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false", cut)
    try:
        yield
    finally:
        await asyncio.to_thread(on_postgres, server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


@asynccontextmanager
async def sequence_set_back(url: str) -> AsyncIterator[None]:
    # as many as the attempts may use up
    rows = "SELECT 'x' || n, now(), 'v2', 'primary', 'POST', '', '{}', '' FROM generate_series(1, 5000) AS n"
    columns = "id, received_at, api, route, method, query, headers, body"
    connection = await asyncpg.connect(url)
    await connection.execute(f"INSERT INTO callbacks ({columns}) {rows}")
    await connection.execute("SELECT setval('callbacks_sequence_seq', 10)")
    yield
    await connection.execute("SELECT setval('callbacks_sequence_seq', (SELECT max(sequence) FROM callbacks))")
    await connection.execute("DELETE FROM callbacks WHERE id LIKE 'x%'")
    await connection.close()


POSTGRESQL_FAULTS: dict[str, Fault] = {
    "locked": on_server(["BEGIN", "LOCK TABLE callbacks IN EXCLUSIVE MODE"], ["ROLLBACK"]),
    "renamed callbacks": on_server(["ALTER TABLE callbacks RENAME TO gone"], ["ALTER TABLE gone RENAME TO callbacks"]),
    "renamed pending_callbacks": on_server(
        ["ALTER TABLE pending_callbacks RENAME TO gone"], ["ALTER TABLE gone RENAME TO pending_callbacks"]
    ),
    "disk full": refusing("53100"),
    "damaged": refusing("XX001"),
    "data exception": refusing("22021"),
    "check violation": refusing("23514"),
    "no connections": no_connections,
    "sequence set back": sequence_set_back,
}


@pytest.mark.parametrize("fault", POSTGRESQL_FAULTS.values(), ids=POSTGRESQL_FAULTS)
async def test_fault_of_the_postgresql_journal_is_unavailable_and_heals(postgres_url: str, fault: Fault) -> None:
    await assert_fault_is_survived(postgres_url, fault)


async def test_role_without_insert_is_unavailable_and_heals(postgres: str, postgres_url: str) -> None:
    role, password = f"receiver_test_{secrets.token_hex(6)}", secrets.token_hex(8)
    tables = "callbacks, pending_callbacks"
    grants = [
        f"CREATE ROLE {role} LOGIN PASSWORD '{password}'",
        f"GRANT SELECT, INSERT, DELETE ON {tables} TO {role}",
        f"GRANT USAGE ON SEQUENCE callbacks_sequence_seq TO {role}",
    ]
    await asyncio.to_thread(on_postgres, postgres_url, *grants)
    address = urlsplit(postgres_url)
    place = address.netloc.rpartition("@")[2]
    fault = on_server([f"REVOKE INSERT ON {tables} FROM {role}"], [f"GRANT INSERT ON {tables} TO {role}"])
    try:
        as_role = urlunsplit(address._replace(netloc=f"{role}:{password}@{place}"))
        await assert_fault_is_survived(as_role, lambda _: fault(postgres_url))
    finally:
        await asyncio.to_thread(on_postgres, postgres_url, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


@pytest.mark.faults
async def test_cut_connections_lose_no_accepted_callback(postgres: str, postgres_url: str) -> None:
    name = postgres_url.rpartition("/")[2]
    cut = (
        "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity "
        f"WHERE datname = '{name}' AND application_name = 'receiver'"
    )
    accepted: list[str] = []
    async with opened(postgres_url) as database, running(database) as journal:
        cutting = asyncio.create_task(asyncio.to_thread(on_postgres, postgres, *[cut] * 30))

        async def send() -> None:
            while not cutting.done():
                sent = callback(b"[]")
                try:
                    await journal.append(sent)
                    accepted.append(sent.id)
                except StorageUnavailable:
                    await asyncio.sleep(0)

        await asyncio.gather(*(send() for _ in range(16)))
        after = await assert_heals(journal, journal)
    assert accepted
    assert {*accepted, after.id} <= await in_journal(postgres_url)


async def test_connection_lost_while_idle_costs_no_callback(postgres: str, postgres_url: str) -> None:
    name = postgres_url.rpartition("/")[2]
    cut = f"SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity WHERE datname = '{name}'"
    async with opened(postgres_url) as database, running(database) as journal:
        for _ in range(3):
            await journal.append(callback(b"[]"))
            await asyncio.to_thread(on_postgres, postgres, cut)
        await journal.probe()


async def test_readers_do_not_use_up_the_connection_of_the_journal(postgres_url: str) -> None:
    database = Database(postgres_url, pool_size=1)
    async with running(database) as journal, database.reading() as connection:
        await connection.execute(text("SELECT 1"))
        await journal.append(callback(b"[]"))
    await database.close()


def removed(file: Path) -> None:
    for one in endings(file):
        one.unlink(missing_ok=True)


def replaced(file: Path) -> None:
    copy = file.with_name("copy.db")
    shutil.copy(file, copy)
    copy.replace(file)


def truncated(file: Path) -> None:
    os.truncate(file, 8192)


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def without_wal(file: Path) -> None:
    endings(file)[1].unlink()


@pytest.mark.parametrize("accident", [removed, replaced, truncated, emptied, without_wal])
async def test_file_removed_replaced_or_truncated_is_unavailable_until_restart(
    sqlite_url: str, accident: Callable[[Path], None]
) -> None:
    file = files(sqlite_url)[1]
    async with opened(sqlite_url) as database, running(database) as journal:
        await asyncio.gather(*(journal.append(callback([v2_event(f"m{n}")])) for n in range(100)))
        await journal.probe()
        accident(file)
        for _ in range(3):
            with pytest.raises(StorageUnavailable, match=r"callbacks\.db.*restart"):
                await journal.append(callback([v2_event()]))
            with pytest.raises(StorageUnavailable, match=r"callbacks\.db.*restart"):
                await journal.probe()


async def test_failing_probe_is_logged_once_without_any_callback(sqlite_url: str) -> None:
    with capture_logs() as lines:
        async with opened(sqlite_url) as database, running(database) as journal:
            await journal.probe()
            removed(files(sqlite_url)[1])
            for _ in range(3):
                with pytest.raises(StorageUnavailable):
                    await journal.probe()
    [line] = [line for line in lines if line["event"] == "callbacks could not be committed"]
    assert "callbacks.db was removed, replaced or truncated" in line["error"]


async def test_missing_file_is_not_made_again_by_an_append(sqlite_url: str) -> None:
    file = files(sqlite_url)[1]
    hidden = file.with_name("hidden.db")
    file.rename(hidden)
    async with opened(sqlite_url) as database, running(database) as journal:
        for _ in range(2):
            with pytest.raises(StorageUnavailable):
                await journal.append(callback(b"[]"))
        assert not file.exists()
        hidden.rename(file)
        await journal.append(callback(b"[]"))


async def test_file_that_is_no_database_is_unavailable(sqlite_url: str) -> None:
    file = files(sqlite_url)[1]
    file.write_bytes(b"no database " * 1000)
    async with opened(sqlite_url) as database, running(database) as journal:
        for _ in range(2):
            with pytest.raises(StorageUnavailable):
                await journal.append(callback(b"[]"))
            with pytest.raises(StorageUnavailable):
                await journal.probe()


async def test_probe_fails_wherever_a_damaged_page_makes_appends_fail(sqlite_url: str) -> None:
    """Otherwise a balancer would go on sending callbacks to a server that answers each of them 503."""
    file = files(sqlite_url)[1]
    async with opened(sqlite_url) as database, running(database) as journal:
        for number in range(60):
            await journal.append(callback([v2_event(f"m{number}")]))
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [size] = connection.execute("PRAGMA page_size").fetchone()
    whole = file.read_bytes()
    failed = 0
    for page in range(1, len(whole) // size):
        removed(file)
        file.write_bytes(whole[: page * size] + b"\xff" * size + whole[(page + 1) * size :])
        async with opened(sqlite_url) as database, running(database) as journal:
            try:
                await journal.append(callback([v2_event()]))
            except StorageUnavailable:
                failed += 1
                with pytest.raises(StorageUnavailable):
                    await journal.probe()
    assert failed


# --- faults that are none of the journal's ---


@pytest.mark.parametrize("lock", ["LOCK TABLE events", "SELECT pg_advisory_xact_lock(8243108420253738354)"])
async def test_lock_of_the_event_log_does_not_hold_up_the_journal(postgres_url: str, lock: str) -> None:
    locked = on_server(["BEGIN", lock], ["ROLLBACK"])
    async with opened(postgres_url) as database, running(database) as journal, locked(postgres_url):
        async with asyncio.timeout(PATIENCE_SECONDS):
            await journal.append(callback([v2_event()]))
            await journal.probe()


async def test_fault_of_the_main_file_does_not_hold_up_the_journal(sqlite_url: str) -> None:
    main = files(sqlite_url)[0]
    async with opened(sqlite_url) as database, running(database) as journal:
        with closing(sqlite3.connect(main, isolation_level=None, timeout=30)) as other:
            other.execute("BEGIN EXCLUSIVE")
            await journal.append(callback([v2_event()]))
            await journal.probe()
            other.execute("ROLLBACK")
        main.write_bytes(b"\xff" * main.stat().st_size)
        await journal.append(callback([v2_event()]))
        await journal.probe()
        removed(main)
        await journal.append(callback([v2_event()]))
        await journal.probe()
