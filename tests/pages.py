"""The README and the pages of `receiver/docs`, as tests read them."""

import re
from pathlib import Path

from receiver.documents import FOLDER, Topic

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def readme() -> str:
    return README.read_text("utf-8")


def page(topic: str) -> str:
    return (FOLDER / f"{topic}.md").read_text("utf-8")


def section(text: str, heading: str) -> str:
    """A section with its heading, up to the next heading of the same or a higher level."""
    found = [part for part in Topic("", text).sections if part.heading == heading]
    assert len(found) == 1, f"{len(found)} sections are called {heading}"
    return found[0].part


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks in a language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [content for named, content in fenced if named == language]
