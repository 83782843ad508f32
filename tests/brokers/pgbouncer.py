"""PgBouncer in front of a PostgreSQL server: few sessions, which its clients share."""

import os
import pwd
import shutil
import socket
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pytest

from tests.brokers.own import OwnServer

PoolMode = Literal["session", "transaction"]
_SESSIONS = 8
_MISSING = "no PgBouncer: apt-get install pgbouncer"


class OwnPgBouncer(OwnServer):
    """A PgBouncer before the server of a URL. Its folder must be open to other users: it refuses to run as root."""

    def __init__(self, folder: Path, postgres: str, mode: PoolMode, *, ignored: str = "") -> None:
        super().__init__(folder)
        # Debian installs it where only the PATH of root leads.
        self._binary = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin") or pytest.skip(_MISSING)
        self._target = urlsplit(postgres)
        self._user = pwd.getpwnam("nobody").pw_name if os.geteuid() == 0 else None
        sessions = _SESSIONS if mode == "transaction" else 100
        lines = (
            "[databases]",
            f"* = host={self._target.hostname} port={self._target.port or 5432}",
            "[pgbouncer]",
            f"listen_addr = {self.host}",
            f"listen_port = {self.port}",
            "unix_socket_dir =",
            "auth_type = trust",
            f"auth_file = {self.folder / 'users.txt'}",
            f"pool_mode = {mode}",
            f"default_pool_size = {sessions}",
            f"ignore_startup_parameters = {ignored}",
        )
        (self.folder / "pgbouncer.ini").write_text("\n".join(lines), "utf-8")
        password = self._target.password or ""
        (self.folder / "users.txt").write_text(f'"{self._target.username}" "{password}"\n', "utf-8")

    @property
    def url(self) -> str:
        return self._target._replace(
            netloc=f"{self._target.username}:{self._target.password or ''}@{self.host}:{self.port}"
        ).geturl()

    @property
    def _command(self) -> list[str]:
        return [self._binary, *(("-u", self._user) if self._user else ()), str(self.folder / "pgbouncer.ini")]

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self.host, self.port)) == 0
