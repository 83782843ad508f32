"""The installed command `receiver` as a process of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = Path(sys.executable).with_name("receiver")
_LISTENS = re.compile(r"^receiver listens on (http://\S+)$", re.MULTILINE)

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


def _address(process: subprocess.Popen[bytes], output: Path, errors: Path, seconds: float = 60) -> str:
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


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Waits until a condition about another process holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not hold in time"
        time.sleep(0.02)  # between two polls of another process


def whole_lines(path: Path) -> list[str]:
    """The complete lines of a file that another process writes; none while the file does not exist."""
    return path.read_text("utf-8", "replace").split("\n")[:-1] if path.exists() else []
