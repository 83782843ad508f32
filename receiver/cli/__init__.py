"""The command `receiver`.

Exit codes: 0 success, 1 a failure or nothing found, 2 a wrong call or a wrong setting. An error is one line on standard
error.
"""

import gc
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

import typer

from receiver.cli.output import OutputClosed, echo_error
from receiver.cli.program import app
from receiver.errors import ReceiverError, SettingsError, StorageUnavailable, TooSlow, line


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    _open_standard_streams()
    thresholds = gc.get_threshold()
    # Imports leave nothing to collect, and collections took a seventh of the CPU time of a short command.
    gc.set_threshold(_ALLOCATIONS_OF_IMPORTS)
    try:
        return int(app(args=arguments, prog_name="receiver", standalone_mode=False) or 0)
    except OutputClosed:
        return _end_by_sigpipe()
    except Exception as error:
        message, code = _message_and_exit_code(error)
        _flush_log()
        echo_error(message)
        if os.environ.get("RECEIVER_LOG_LEVEL") == "debug":
            raise
        return code
    finally:
        gc.set_threshold(*thresholds)


_ALLOCATIONS_OF_IMPORTS: Final = 200_000


def _open_standard_streams() -> None:
    """Opens the standard streams that the caller has closed (`2>&-`) on the null device.

    Otherwise the next file to be opened, a database perhaps, would be what libraries take for standard error.
    """
    for name, mode, flags in _STANDARD_STREAMS:
        if getattr(sys, name) is None:
            # The lowest free number is the one that is closed, since the lower ones are open.
            opened = os.open(os.devnull, flags)
            os.set_inheritable(opened, True)
            # Without a buffer, which Python could not empty at the end.
            setattr(sys, name, io.TextIOWrapper(os.fdopen(opened, mode, buffering=0), write_through=True))


# Standard output is for reading only: what is written to it is lost, so writing has to fail.
_STANDARD_STREAMS: Final = (
    ("stdin", "rb", os.O_RDONLY),
    ("stdout", "wb", os.O_RDONLY),
    ("stderr", "wb", os.O_WRONLY),
)


def _flush_log() -> None:
    """Writes the log out, so that its lines come before the error that they explain. Most commands have no log."""
    if "receiver.logs" in sys.modules:
        from receiver import logs

        logs.flush()


def _message_and_exit_code(error: Exception) -> tuple[str, int]:
    match error:
        case SettingsError():
            return line(error), 2
        case TooSlow():
            return line(error), 1
        case StorageUnavailable():
            return f"the database cannot be used now: {line(error)}", 1
        case ReceiverError():
            return line(error), 1
        case typer.TyperException():
            return _usage(error), 2
        case OSError() if error.strerror:
            return ": ".join(str(part) for part in (error.filename, error.strerror) if part), 1
        case _:
            # Only the first line: further lines may repeat the data that was processed.
            first = str(error).partition("\n")[0]
            return f"unexpected {type(error).__name__}: {first} (RECEIVER_LOG_LEVEL=debug shows where)", 1


def _usage(error: typer.TyperException) -> str:
    """What is wrong with a call, and the command that prints the help."""
    message = getattr(error, "format_message", error.__str__)()
    context = getattr(error, "ctx", None)
    return f"{message.rstrip('.')}; see {context.command_path} --help" if context else str(message)


def _end_by_sigpipe() -> int:
    """Ends without output, killed by SIGPIPE, as other commands end when the reader of their pipe has closed it."""
    _flush_log()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.raise_signal(signal.SIGPIPE)
    return 1
