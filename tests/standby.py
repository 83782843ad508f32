"""A PostgreSQL primary and its streaming standby, which can be promoted: two servers of one test."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.brokers.own import HOST, free_port
from tests.servers import answers, postgres_binaries, unprivileged_user

_SETTINGS = ("fsync=off", f"listen_addresses={HOST}", "max_connections=100", "wal_level=replica", "hot_standby=on")


class OwnPostgres:
    """A PostgreSQL server with a folder and a port of its own."""

    def __init__(self, binaries: Path, home: Path) -> None:
        self.port = free_port()
        self.data = home / f"data-{self.port}"
        self._binaries = binaries
        self._home = home
        self._user = unprivileged_user()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://postgres@{HOST}:{self.port}/postgres"

    def initialise(self) -> None:
        self._run(
            "initdb",
            "-D",
            str(self.data),
            "-U",
            "postgres",
            "--auth=trust",
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C",
        )

    def copy(self, primary: "OwnPostgres") -> None:
        """Makes this server a standby that streams from a primary."""
        source = f"host={HOST} port={primary.port} user=postgres"
        self._run("pg_basebackup", "-D", str(self.data), "-d", source, "-R", "-X", "stream", "-c", "fast", "--no-sync")

    def start(self) -> None:
        settings = (*_SETTINGS, f"port={self.port}", f"unix_socket_directories={self._home}")
        command = [self._binaries / "postgres", "-D", self.data, *(part for one in settings for part in ("-c", one))]
        with (self._home / f"log-{self.port}").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, user=self._user, cwd=self._home)
        deadline = time.monotonic() + 60
        while not answers(self.url):
            assert self._process.poll() is None, (self._home / f"log-{self.port}").read_text("utf-8")[-2000:]
            assert time.monotonic() < deadline, "PostgreSQL did not start in time"
            time.sleep(0.05)  # between two looks at another process

    def promote(self) -> None:
        self._run("pg_ctl", "promote", "-D", str(self.data), "-w")

    def kill(self) -> None:
        """Ends the server at once, with all its connections, as a crash does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(60)
            self._process = None

    def freeze(self) -> None:
        """Stops all processes of the server: its port takes connections, and nobody answers."""
        for pid in self._processes():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in self._processes():
            os.kill(pid, signal.SIGCONT)

    def _processes(self) -> list[int]:
        if self._process is None:
            return []
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text("ascii").split()
        return [self._process.pid, *map(int, children)]

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._binaries / program, *arguments], check=True, capture_output=True, user=self._user, cwd=self._home
        )


@contextmanager
def primary_and_standby() -> Iterator[tuple[OwnPostgres, OwnPostgres]]:
    """A primary, and a standby that streams from it."""
    binaries = next((place for place in postgres_binaries() if (place / "pg_basebackup").exists()), None)
    if binaries is None:
        pytest.skip("no pg_basebackup: apt-get install postgresql")
    home = Path(tempfile.mkdtemp(prefix="receiver-standby-"))
    user = unprivileged_user()
    if user is not None:
        os.chown(home, user, -1)
    primary, standby = OwnPostgres(binaries, home), OwnPostgres(binaries, home)
    try:
        primary.initialise()
        primary.start()
        standby.copy(primary)
        standby.start()
        yield primary, standby
    finally:
        for server in (primary, standby):
            server.thaw()
            server.kill()
        shutil.rmtree(home, ignore_errors=True)
