"""The command `receiver`.

Exit codes: 0 success, 1 a failure or nothing found, 2 a wrong call or a wrong setting. An error is one line on standard
error.
"""

import gc
import os
import signal
from collections.abc import Sequence
from typing import Final

import typer

from receiver.cli.output import OutputClosed, echo_error
from receiver.cli.program import app
from receiver.errors import ReceiverError, SettingsError, StorageUnavailable, line


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    thresholds = gc.get_threshold()
    # Imports leave nothing to collect, and collections took a seventh of the CPU time of a short command.
    gc.set_threshold(_ALLOCATIONS_OF_IMPORTS)
    try:
        return int(app(args=arguments, prog_name="receiver", standalone_mode=False) or 0)
    except OutputClosed:
        return _end_by_sigpipe()
    except Exception as error:
        message, code = _message_and_exit_code(error)
        echo_error(message)
        if os.environ.get("RECEIVER_LOG_LEVEL") == "debug":
            raise
        return code
    finally:
        gc.set_threshold(*thresholds)


_ALLOCATIONS_OF_IMPORTS: Final = 200_000


def _message_and_exit_code(error: Exception) -> tuple[str, int]:
    match error:
        case SettingsError():
            return line(error), 2
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
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.raise_signal(signal.SIGPIPE)
    return 1
