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

PATIENT: dict[str, Any] = {"timeout": 60, "trust_env": False}
"""How another process is asked: whatever the proxy, and however busy the machine."""


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without its own settings of receiver, and with these."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RECEIVER_")}
    return inherited | {f"RECEIVER_{name}": value for name, value in settings.items()}


def receiver(folder: Path, *arguments: str, stdin: bytes = b"", **settings: str) -> subprocess.CompletedProcess[bytes]:
    """One command, run to its end in a folder."""
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
    """A `receiver serve` that has said where it listens."""

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
    """A server in a folder, on a free port; killed at the end if it still runs."""
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
        # the announcement is written at once: where its first line is, the others are
        if found:
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.02)  # between two looks at another process
    raise AssertionError(f"receiver serve did not start: {errors.read_text('utf-8')}")


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Waits until something that another process does has come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)  # between two looks at another process


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that another process writes: none while it is not there, nor one that is half written."""
    return path.read_text("utf-8", "replace").split("\n")[:-1] if path.exists() else []
