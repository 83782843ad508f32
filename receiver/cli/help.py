"""`receiver help`: the documentation topics on a terminal."""

import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Final

import typer

from receiver import documents
from receiver.cli.output import write
from receiver.errors import Unknown

# Longer lines are hard to read on any terminal.
_MOST_COLUMNS: Final = 100
_INDENT: Final = "    "
_TOPIC_LINK: Final = re.compile(r"\[([^\]]+)\]\(([\w-]+)\.md[^)]*\)")


def help_(words: Sequence[str], *, search: str | None) -> int:
    """Lists the topics, prints one of them, or lists the sections that a search finds."""
    if search is not None:
        _write_lines(_search_results(" ".join([search, *words])))
    elif words:
        _write_markdown(_topic(words))
    else:
        _write_lines(_topic_list())
    return 0


def _topic(words: Sequence[str]) -> str:
    found = documents.find(words, documents.topics())
    if found is None:
        raise typer.BadParameter(_unknown(" ".join(words)))
    return found


def _unknown(name: str) -> str:
    similar = documents.suggestions(name, documents.topics())
    question = f" (did you mean {' or '.join(similar)}?)" if similar else ""
    return f"there is no topic {name!r}{question}"


def _topic_list() -> Iterator[str]:
    topics = documents.topics()
    width = max(len(topic.name) for topic in topics) + 2
    for topic in topics:
        yield from _wrapped(topic.summary, topic.name.ljust(width), " " * width)
    yield from ("", "receiver help TOPIC prints a topic, receiver help --search WORDS searches all of them.")


def _search_results(query: str) -> Iterator[str]:
    hits = documents.search(query, documents.topics())
    if not hits:
        raise Unknown(f"no topic mentions {query!r}")
    for hit in hits:
        section = "" if hit.section.level == 1 else f" {hit.section.anchor}"
        yield f"receiver help {hit.topic.name}{section}"
        yield from _wrapped(hit.snippet, _INDENT, _INDENT)


def _wrapped(text: str, first: str, indent: str) -> list[str]:
    return wrap(text, _columns(), initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)


def _columns() -> int:
    return min(shutil.get_terminal_size().columns, _MOST_COLUMNS)


def _write_lines(lines: Iterator[str]) -> None:
    _write("".join(f"{line}\n" for line in lines))


def _write_markdown(markdown: str) -> None:
    """Writes Markdown unchanged, or formatted on a terminal."""
    if not sys.stdout.isatty():
        _write(markdown)
        return
    # The import takes 120 ms of CPU time, more than the rest of the command.
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(width=_columns())
    with console.capture() as captured:
        console.print(Markdown(_TOPIC_LINK.sub(r"\1 (`receiver help \2`)", markdown), hyperlinks=False))
    _write(captured.get())


def _write(text: str) -> None:
    write(text.encode(sys.stdout.encoding, "backslashreplace"))
