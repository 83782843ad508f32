"""Output of the commands: text that is safe for a terminal, tables, JSON."""

import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar

View = TypeVar("View")

# Characters that control a terminal: control characters, line separators, and those that change the text direction.
_CONTROLS: Final = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_NOT_PLAIN: Final = re.compile(f"[{_CONTROLS}]|[\ud800-\udfff]")
_NOT_PLAIN_JSON: Final = re.compile(f"(?![\n])[{_CONTROLS}]")


class OutputClosed(Exception):
    """The other end of the pipe on standard output is closed."""


def plain(text: str) -> str:
    """Text on one line, with the characters that control a terminal escaped."""
    return _NOT_PLAIN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def write(content: bytes) -> None:
    """Writes all of the content to standard output, and flushes it."""
    stream, rest = sys.stdout.buffer, memoryview(content)
    try:
        # Not through the text layer: with PYTHONUNBUFFERED it silently drops what a closing pipe did not accept.
        while rest:
            rest = rest[stream.write(rest) :]
        stream.flush()
    except BrokenPipeError:
        raise OutputClosed from None


def _write_text(text: str) -> None:
    """Writes text; characters that the encoding of standard output lacks are escaped."""
    write(text.encode(sys.stdout.encoding, "backslashreplace"))


def echo(*lines: str) -> None:
    """Writes lines of safe text."""
    _write_text("".join(f"{plain(line)}\n" for line in lines))


def echo_error(text: str) -> None:
    """Writes one line to standard error, after the name of the program."""
    sys.stderr.write(f"receiver: {plain(text)}\n")


def echo_json(value: Any) -> None:
    """Writes models, dataclasses or plain values as JSON."""
    from pydantic_core import to_json

    text = to_json(value, by_alias=True, indent=2).decode()
    _write_text(_NOT_PLAIN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def echo_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes rows under headings, in columns of the necessary width."""
    cells = [list(headings), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    echo(*(line.rstrip() for line in padded))


def echo_fields(fields: Iterable[tuple[str, object]], *, indent: str = "") -> None:
    """Writes one name and value per line; empty values are left out."""
    present = [(name, cell(value)) for name, value in fields if value not in (None, "", [])]
    width = max((len(name) for name, _ in present), default=0)
    echo(*(f"{indent}{name.ljust(width)}  {value}" for name, value in present))


def cell(value: object) -> str:
    """A value as text for people."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ", ".join(map(str, value)) or "-"
        case _:
            return plain(str(value)) or "-"
