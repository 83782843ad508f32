"""The installed command `receiver` as a process of its own: one that ends, one that serves, one in the foreground."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.fork_server import fork_server

COMMAND = Path(sys.executable).with_name("receiver")
_LISTENS = re.compile(r"^receiver listens on (http://[^\s,]+)", re.MULTILINE)

PATIENT: dict[str, Any] = {"timeout": 60, "trust_env": False, "verify": False}
"""Options of requests to another process: without proxies, and with a timeout for a busy machine.

Without certificates too: loading them took more time than most tests.
"""


def environment(**settings: str) -> dict[str, str]:
    """The environment of this process with these settings of receiver and no others."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RECEIVER_")}
    return inherited | {f"RECEIVER_{name}": value for name, value in settings.items()}


def receiver(folder: Path, *arguments: str, stdin: bytes = b"", **settings: str) -> subprocess.CompletedProcess[bytes]:
    """Runs one command to its end in a folder."""
    if "TEST_FAILPOINT" not in settings:
        return fork_server().run(arguments, folder, environment(**settings), stdin, 120)
    # Failpoints are armed by the import.
    return subprocess.run(
        [COMMAND, *arguments],
        cwd=folder,
        env=environment(**settings),
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
    )


@dataclass(slots=True)
class Server:
    """A running `receiver serve`."""

    process: subprocess.Popen[bytes]
    output: Path
    errors: Path
    url: str

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def serving(folder: Path, *arguments: str, settings: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Starts a server in a folder, on a free port; kills it at the end if it still runs."""
    output, errors = folder / "stdout.txt", folder / "stderr.txt"
    with output.open("wb") as stdout, errors.open("wb") as stderr:
        process = subprocess.Popen(
            [COMMAND, "serve", "--port", "0", *arguments],
            cwd=folder,
            env=environment(**(settings or {})),
            stdout=stdout,
            stderr=stderr,
            stdin=subprocess.DEVNULL,
        )
    try:
        yield Server(process, output, errors, _address(process, output, errors))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
    check_log(errors)


def check_log(errors: Path) -> None:
    """Fails if a line of the log could not be formatted: no code of ours logs such a line."""
    assert [line for line in whole_lines(errors) if '"unformatted":' in line] == []


def _address(process: subprocess.Popen[bytes], output: Path, errors: Path, seconds: float = 180) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = _LISTENS.search(output.read_text("utf-8"))
        # The banner is written at once: after its first line the others are there too.
        if found:
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.02)  # between two polls of another process
    raise AssertionError(f"receiver serve did not start: {errors.read_text('utf-8')}")


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    """Waits until a condition about another process holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not hold in time"
        time.sleep(0.02)  # between two polls of another process


def whole_lines(path: Path) -> list[str]:
    """The complete lines of a file that another process writes; none while the file does not exist."""
    return path.read_text("utf-8", "replace").split("\n")[:-1] if path.exists() else []


@dataclass(slots=True)
class Foreground:
    """A running command."""

    process: subprocess.Popen[bytes]
    output: Path
    errors: Path

    def text(self) -> str:
        return self.output.read_text("utf-8")

    def address(self, name: str) -> str:
        """The address on which `name` listens, from its output."""
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            if found := re.search(rf"^{name} listens on (http://[^\s,]+)", self.text(), re.MULTILINE):
                return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.02)  # between two polls of another process
        raise AssertionError(f"{name} did not start: {self.errors.read_text('utf-8')}")

    def stop(self, number: int = signal.SIGINT) -> int:
        """Sends a signal and returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def members(self) -> list[int]:
        """The processes of its group."""
        return [int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if _group(stat) == self.process.pid]


def _group(stat: Path) -> int | None:
    with suppress(OSError):
        return int(stat.read_text("utf-8").rpartition(")")[2].split()[2])
    return None


@contextmanager
def foreground(folder: Path, *arguments: str, **variables: str) -> Iterator[Foreground]:
    """Starts a command in a folder, with these environment variables; kills its process group at the end."""
    output, errors = folder / "stdout.txt", folder / "stderr.txt"
    with output.open("wb") as stdout, errors.open("wb") as stderr:
        process = subprocess.Popen(
            [COMMAND, *arguments],
            cwd=folder,
            env=environment() | variables,
            stdout=stdout,
            stderr=stderr,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        yield Foreground(process, output, errors)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    check_log(errors)


def is_open(url: str) -> bool:
    """Whether a server listens at the address of a URL."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True
