"""A fork server for the commands of `receiver`: a process that has imported them, and runs each in a fork of itself.

The imports are most of the CPU time of a short command. `tests/acceptance/test_command_start.py` and the tests that
start servers run the installed program itself.
"""

import atexit
import contextlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NoReturn

_MOST_BYTES = 128 * 1024
_PROGRAM = Path(sys.executable).with_name("receiver")


class ForkServer:
    """The end of the tests: runs commands one at a time or several at once."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(other.fileno())], pass_fds=[other.fileno()], stdin=subprocess.DEVNULL
            )
        atexit.register(self.close)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(60)

    def run(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], stdin: bytes, seconds: float
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs one command to its end in a folder, with this environment."""
        request = json.dumps([list(arguments), str(folder), dict(environment)]).encode()
        with contextlib.ExitStack() as stack:
            given, output, errors = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
            given.write(stdin)
            given.seek(0)
            reading, writing = os.pipe()
            result = stack.enter_context(os.fdopen(reading, "rb"))
            try:
                socket.send_fds(self._socket, [request], [given.fileno(), output.fileno(), errors.fileno(), writing])
            finally:
                os.close(writing)
            process = int(result.readline())
            if not select.select([result], [], [], seconds)[0]:
                os.kill(process, signal.SIGKILL)
                raise subprocess.TimeoutExpired(["receiver", *arguments], seconds)
            code = int(result.readline())
            output.seek(0)
            errors.seek(0)
            return subprocess.CompletedProcess(["receiver", *arguments], code, output.read(), errors.read())


@cache
def fork_server() -> ForkServer:
    """The fork server of this process, which is started at the first use."""
    return ForkServer()


# --- the other process ---


def _serve(requests: socket.socket) -> None:
    """Forks for each request until the tests end."""
    import receiver.cli

    for module in pkgutil.iter_modules(receiver.cli.__path__, "receiver.cli."):
        import_module(module.name)
    # Nobody waits for those who wait for commands.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, files, _, _ = socket.recv_fds(requests, _MOST_BYTES, 4)
        if not request:
            return
        if os.fork() == 0:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _run_and_report(*json.loads(request), files)
        for file in files:
            os.close(file)


def _run_and_report(arguments: list[str], folder: str, environment: dict[str, str], files: list[int]) -> NoReturn:
    """Runs a command in a process of its own, and reports the id of the process and how it ended."""
    *streams, result = files
    if (process := os.fork()) == 0:
        os.close(result)
        for number, file in enumerate(streams):
            os.dup2(file, number)
            os.close(file)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = [str(_PROGRAM), *arguments]
        sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))

        _run()
    os.write(result, b"%d\n" % process)
    _, status = os.waitpid(process, 0)
    os.write(result, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _run() -> NoReturn:
    """Runs the command of `sys.argv`, and ends the process."""
    from receiver.cli import main

    code = 1
    try:
        code = main()
    except Exception:
        traceback.print_exc()
    # What the end of an interpreter does, except for freeing the memory, which takes longer than a short command.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    # As the installed program has it.
    sys.path[0] = str(_PROGRAM.parent)
    _serve(socket.socket(fileno=int(sys.argv[1])))
