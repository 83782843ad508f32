"""The documentation topics: Markdown files in `receiver/docs`, their sections, and the search over them.

`receiver help` prints them and `/docs` serves them. The topics `codes`, `commands` and `settings` are rendered from the
code by `receiver.cli.reference`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).with_name("docs")

_HEADING: Final = re.compile(r"(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*")
_FENCE: Final = re.compile(r"[ \t]*(`{3,}|~{3,})")
_LINK: Final = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_MARKS: Final = re.compile(r"`+|\*\*|^[ \t]*(?:[*>-]|#+|\|)[ \t]+|^[ \t|:-]+$|[ \t]*\|[ \t]*$", re.MULTILINE)
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s")

# Limits on the words and the characters of a query: longer queries are slow.
_MOST_WORDS: Final = 8
_MOST_CHARACTERS: Final = 200
_MOST_HITS: Final = 20
_SNIPPET_CHARACTERS: Final = 200
_HEADING_WEIGHT: Final = 10
_MOST_COUNTED: Final = 5


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with the text up to the next heading. `part` ends at the next heading of the same level."""

    heading: str
    anchor: str
    level: int
    text: str
    part: str


@dataclass(frozen=True)
class Topic:
    """One page of the documentation. Its first line is `# Title`, its next paragraph begins with the summary."""

    name: str
    markdown: str

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        return tuple(_sections(self.markdown))

    @property
    def title(self) -> str:
        return self.sections[0].heading if self.sections else self.name

    @cached_property
    def summary(self) -> str:
        paragraphs = self.sections[0].text.strip().split("\n\n") if self.sections else [""]
        return _SENTENCE_END.split(" ".join(plain(paragraphs[0]).split()))[0]


@dataclass(frozen=True, slots=True)
class Hit:
    """A section that a search finds, with the text around the first match."""

    topic: Topic
    section: Section
    snippet: str


@cache
def topics() -> tuple[Topic, ...]:
    """Every topic, by name."""
    return tuple(Topic(file.stem, file.read_text("utf-8")) for file in sorted(FOLDER.glob("*.md")))


def exists(name: str) -> bool:
    return any(topic.name == name for topic in topics())


def find(words: Sequence[str], among: Sequence[Topic]) -> str | None:
    """The Markdown of a topic or of a section: `sinks`, `sinks retries`, `retries`, or the command `messages list`."""
    first, *rest = (word.lower() for word in words)
    name = "-".join([first, *rest])
    found = []
    for topic in among:
        if topic.name == name:
            return topic.markdown
        anchors = ("-".join(rest),) if topic.name == first else (name, f"receiver-{name}")
        found += [section for section in topic.sections if section.anchor in anchors]
    return min(found, key=lambda section: section.level).part if found else None


def suggestions(name: str, among: Sequence[Topic]) -> list[str]:
    """The names of topics with a spelling similar to a name."""
    return get_close_matches(name.lower(), [topic.name for topic in among], cutoff=0.6)


def search(query: str, among: Sequence[Topic]) -> list[Hit]:
    """The sections with the largest number of the words in the query, best match first."""
    words = _words(query)
    ranked = []
    for topic in among:
        for section in topic.sections:
            in_text = [len(word.findall(section.text)) for word in words]
            in_heading = [len(word.findall(section.heading)) for word in words]
            in_title = [len(word.findall(f"{topic.name} {topic.title}")) for word in words]
            if any(in_text) or any(in_heading):
                matched = sum(map(any, zip(in_text, in_heading, in_title, strict=True)))
                score = sum(min(count, _MOST_COUNTED) for count in in_text)
                score += _HEADING_WEIGHT * (sum(map(bool, in_heading)) + sum(map(bool, in_title)))
                ranked.append((matched, score, topic, section))
    most = max((matched for matched, *_ in ranked), default=0)
    best = sorted((hit for hit in ranked if hit[0] == most), key=lambda hit: -hit[1])
    return [Hit(topic, section, _snippet(section.text, words)) for _, _, topic, section in best[:_MOST_HITS]]


def marked(text: str, query: str) -> Iterator[tuple[str, bool]]:
    """The parts of a text, each with whether it matches a word of the query."""
    words = _words(query)
    end = 0
    any_word = "|".join(rf"{word.pattern}\w*" for word in words) or "(?!)"
    for found in re.finditer(any_word, text, re.IGNORECASE):
        yield text[end : found.start()], False
        yield found[0], True
        end = found.end()
    yield text[end:], False


def plain(markdown: str) -> str:
    """The text of Markdown without its markup."""
    return _MARKS.sub("", _LINK.sub(r"\1", markdown))


class Anchors:
    """Gives the headings of a page the same anchors as GitHub; a repeated heading gets a number."""

    def __init__(self) -> None:
        self._count: dict[str, int] = {}

    def add(self, heading: str) -> str:
        anchor = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        count = self._count.get(anchor, 0)
        self._count[anchor] = count + 1
        return f"{anchor}-{count}" if count else anchor


def _sections(markdown: str) -> Iterator[Section]:
    lines = markdown.splitlines(keepends=True)
    headings = [(place, *heading) for place, heading in _headings(lines)]
    anchors = Anchors()
    for number, (place, level, heading) in enumerate(headings):
        later = headings[number + 1 :]
        end = next((other for other, *_ in later), len(lines))
        part_end = next((other for other, depth, _ in later if depth <= level), len(lines))
        text, part = "".join(lines[place + 1 : end]), "".join(lines[place:part_end])
        yield Section(heading, anchors.add(heading), level, text, part)


def _headings(lines: Sequence[str]) -> Iterator[tuple[int, tuple[int, str]]]:
    """The headings with the numbers of their lines; a line of a code block is no heading."""
    fence = ""
    for place, line in enumerate(lines):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and line.strip().strip(fence[0]) == "" and len(mark[1]) >= len(fence):
            fence = ""
        elif not fence and (found := _HEADING.fullmatch(line.rstrip("\n"))):
            yield place, (len(found[1]), plain(found[2]))


def _words(query: str) -> list[re.Pattern[str]]:
    """A pattern for each word of a query, which matches words that begin with it. A plural matches its singular."""
    stems = (_stem(word) for word in query[:_MOST_CHARACTERS].lower().split()[:_MOST_WORDS])
    return [re.compile(rf"(?<![^\W_]){re.escape(stem)}", re.IGNORECASE) for stem in dict.fromkeys(stems)]


def _stem(word: str) -> str:
    for ending in ("ies", "y", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


_TABLE_LINES: Final = re.compile(r"^[|:\- ]+$|(?<!\\)\|", re.MULTILINE)


def _snippet(text: str, words: Sequence[re.Pattern[str]]) -> str:
    """The text around its first match, on one line, without the lines of tables."""
    line = " ".join(_TABLE_LINES.sub(" ", plain(text)).replace("\\|", "|").split())
    first = min((found.start() for word in words if (found := word.search(line))), default=0)
    start = line.rfind(" ", 0, max(first - _SNIPPET_CHARACTERS // 4, 0)) + 1
    cut = line[start : start + _SNIPPET_CHARACTERS]
    if start + len(cut) < len(line):
        cut = f"{cut.rpartition(' ')[0] or cut} …"
    return f"… {cut}" if start else cut
