"""A command of `receiver` that runs until it is stopped, in a process group of its own."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.running import COMMAND, environment


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
        deadline = time.monotonic() + 60
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


def is_open(url: str) -> bool:
    """Whether a server listens at the address of a URL."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True
