"""RabbitMQ servers."""

import asyncio
import os
import shutil
import socket
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

import aio_pika
import pytest

from tests.brokers.own import OwnServer, free_port, shared_server

_STANDARD = "amqp://guest:guest@127.0.0.1:5672/"
_MISSING = "no RabbitMQ: set RECEIVER_TEST_RABBITMQ_URL, or apt-get install rabbitmq-server"
_SCRIPT = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
# A declaration waits two seconds for the disk; this stores it within milliseconds, so that a killed node keeps it.
_SAVING = "Save=fun(Again)->timer:sleep(5),catch(mnesia:sync_log()),Again(Again)end,spawn(fun()->Save(Save)end)."
_AMQP = b"AMQP\x00\x00\x09\x01"


def rabbitmq_server() -> AbstractContextManager[str]:
    """The URL of a RabbitMQ server, shared by all tests."""
    return shared_server("RECEIVER_TEST_RABBITMQ_URL", _STANDARD, _lets_in, OwnRabbitmq, _MISSING)


class OwnRabbitmq(OwnServer):
    """A separate RabbitMQ node; `config` is its `rabbitmq.conf`. It starts in two seconds."""

    seconds_to_start = 240.0

    def __init__(self, folder: Path, config: str = "") -> None:
        epmd = shutil.which("epmd")
        if epmd is None or not _SCRIPT.exists():
            pytest.skip(_MISSING)
        super().__init__(folder)
        self._epmd_port = free_port()
        self._epmd_command = [epmd, "-port", str(self._epmd_port), "-address", self.host]
        self._distribution_port = free_port()
        if config:
            (self.folder / "rabbitmq.conf").write_text(config, "utf-8")

    def __enter__(self) -> Self:
        self._epmd = subprocess.Popen(self._epmd_command, stdin=subprocess.DEVNULL)
        return super().__enter__()

    def close(self) -> None:
        super().close()
        self._epmd.kill()
        self._epmd.wait(30)

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{self.host}:{self.port}/"

    @property
    def _command(self) -> list[str]:
        return [str(_SCRIPT), "-noinput"]

    @property
    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder),  # the Erlang cookie is there
            # Without this, the node starts a port mapper that outlives it.
            "ERL_AFLAGS": f"-start_epmd false -eval {_SAVING}",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": self.host,
            "RABBITMQ_NODENAME": f"receiver{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": self.host,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "config"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            # The script execs the node: its process is the one to kill.
            "RABBITMQ_ALLOW_INPUT": "1",
            # By default schedulers sleep at once, which makes the start three times as long.
            "RABBITMQ_SERVER_ERL_ARGS": "+sbwt short",
        }

    def _answers(self) -> bool:
        """Whether the node answers with AMQP."""
        try:
            with socket.create_connection((self.host, self.port), timeout=2) as connection:
                connection.sendall(_AMQP)
                return connection.recv(1) == b"\x01"
        except OSError:
            return False


def _lets_in(url: str) -> bool:
    async def connect() -> None:
        await (await aio_pika.connect(url, timeout=5)).close()

    try:
        asyncio.run(connect())
    except (OSError, aio_pika.exceptions.AMQPError, TimeoutError):
        return False
    return True
