"""Shared servers, and servers of one test that can be killed, frozen and restarted on the same port with their data."""

import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import Self

import pytest

HOST = "127.0.0.1"
# Workers of pytest-xdist share out the ports by their numbers.
_WORKERS = 16


def _ports() -> Iterator[int]:
    """The ports of this process, below those that the system uses for outgoing connections; each once in a round."""
    found = re.search(r"\d+$", os.environ.get("PYTEST_XDIST_WORKER", ""))
    own = range(20_000 + (int(found[0]) if found else 0) % _WORKERS, 32_000, _WORKERS)
    begin = random.randrange(len(own))
    return cycle((*own[begin:], *own[:begin]))


_own_ports = _ports()


def free_port() -> int:
    """A port that stays free until a server takes it, and while that is down: nobody else is given it."""
    while True:
        port = next(_own_ports)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port


def freeze(process: subprocess.Popen[bytes]) -> None:
    """Stops a process with SIGSTOP, and waits until all its threads have stopped or ended."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


@contextmanager
def shared_server(
    variable: str, standard: str, answers: Callable[[str], bool], own: Callable[[Path], "OwnServer"], missing: str
) -> Iterator[str]:
    """The URL of the server in the environment variable, else on the standard port, else of one started here."""
    given = os.environ.get(variable)
    url = given or standard
    if answers(url):
        yield url
        return
    if given:
        pytest.skip(missing)
    with tempfile.TemporaryDirectory(prefix="receiver-") as folder, own(Path(folder)) as server:
        yield server.url


class OwnServer(ABC):
    """A process with its own port. It runs inside `with` and is killed at the end."""

    seconds_to_start = 60.0

    def __init__(self, folder: Path) -> None:
        self.host = HOST
        self.port = free_port()
        self.folder = folder / f"{type(self).__name__}-{self.port}"
        self.folder.mkdir(parents=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str: ...

    @property
    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server accepts work now. Does not raise."""

    @property
    def _environment(self) -> dict[str, str] | None:
        """The environment of the process; None: that of the tests."""
        return None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops everything that was started."""
        self.kill()

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        self.kill()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + self.seconds_to_start
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{type(self).__name__} did not start: {self._log.read_text('utf-8')[-2000:]}")
            time.sleep(0.01)  # between two checks of another process

    def kill(self) -> None:
        """Kills the server, as a crash does. Does nothing if it is dead already."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Terminates the server and waits until it has ended."""
        self.thaw()
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """Freezes the process: its port accepts connections and never answers."""
        if self._process is not None:
            freeze(self._process)

    def thaw(self) -> None:
        """Continues a frozen process."""
        self._signal(signal.SIGCONT)

    @property
    def _log(self) -> Path:
        return self.folder / "server.log"

    def _end(self, number: signal.Signals) -> None:
        self._signal(number)
        if self._process is not None:
            self._process.wait(60)
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
