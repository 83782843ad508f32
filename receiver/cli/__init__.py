"""The command `receiver`: what a person at a terminal, or a script, can ask for.

Exit codes: 0 fine, 1 it failed or was not found, 2 the call or a setting was wrong. What goes wrong is one line on
standard error.
"""

import os
import signal
from collections.abc import Sequence

import typer

from receiver.cli.commands import app
from receiver.cli.output import OutputClosed, echo_error
from receiver.errors import ReceiverError, SettingsError, StorageUnavailable, line


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    try:
        return int(app(args=arguments, prog_name="receiver", standalone_mode=False) or 0)
    except OutputClosed:
        return _end_as_unread()
    except Exception as error:
        message, code = _judged(error)
        echo_error(message)
        if os.environ.get("RECEIVER_LOG_LEVEL") == "debug":
            raise
        return code


def _judged(error: Exception) -> tuple[str, int]:
    """An error as a line for people, and the exit code."""
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
            # only the first line: further ones may repeat the data that was handled
            first = str(error).partition("\n")[0]
            return f"unexpected {type(error).__name__}: {first} (RECEIVER_LOG_LEVEL=debug tells where)", 1


def _usage(error: typer.TyperException) -> str:
    """What was wrong with a call, and where the right ones are told."""
    message = getattr(error, "format_message", error.__str__)()
    context = getattr(error, "ctx", None)
    return f"{message.rstrip('.')}; see {context.command_path} --help" if context else str(message)


def _end_as_unread() -> int:
    """Ends as other commands do when the reader of a pipe has seen enough: killed by SIGPIPE, without a word."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.raise_signal(signal.SIGPIPE)
    return 1
