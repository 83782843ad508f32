"""The documentation topics: sections, anchors, search, the rendered pages, and that what they name exists."""

import re
from pathlib import Path
from typing import Any

import pytest

from receiver import documents
from receiver.api import docs
from receiver.api.openapi import api_reference, type_words
from receiver.api.routes import _document
from receiver.cli import reference
from receiver.documents import Anchors, Topic, find, marked, search, suggestions
from receiver.errors import ReceiverError, SettingsError, StorageUnavailable, line
from receiver.sinks.registry import configure

ROOT = Path(__file__).resolve().parents[2]
TOPICS = documents.topics()
NAMES = {topic.name for topic in TOPICS}

SINKS = Topic(
    "sinks",
    """# Sinks

For operators: where events go. A second sentence.

## Retries and `max_age`

A retry comes later, see [the webhook](webhook.md).

```sh
# not a heading
```

### Backoff

Pauses grow.

## Retries and `max_age`

Again.
""",
)
WEBHOOK = Topic("webhook", "# The webhook sink\n\nPosts events.\n\n## Timeout\n\nRetries follow a timeout of 15 s.\n")
COMMANDS = Topic("commands", "# Commands\n\nAll.\n\n## receiver messages list\n\nLists messages.\n")
SOME = (COMMANDS, SINKS, WEBHOOK)


def test_a_topic_has_a_title_and_a_summary() -> None:
    assert (SINKS.title, SINKS.summary) == ("Sinks", "For operators: where events go.")


@pytest.mark.parametrize("markdown", ["", "no heading", "# Title"])
def test_an_incomplete_topic_is_no_error(markdown: str) -> None:
    topic = Topic("draft", markdown)
    assert topic.title in ("draft", "Title")
    assert topic.summary == ""
    assert search("title", [topic]) or not markdown.startswith("#")


def test_sections_end_at_headings_and_ignore_code_blocks() -> None:
    assert [(section.level, section.heading, section.anchor) for section in SINKS.sections] == [
        (1, "Sinks", "sinks"),
        (2, "Retries and max_age", "retries-and-max_age"),
        (3, "Backoff", "backoff"),
        (2, "Retries and max_age", "retries-and-max_age-1"),
    ]
    assert "# not a heading" in SINKS.sections[1].text
    assert "Pauses grow." in SINKS.sections[1].part
    assert "Again." not in SINKS.sections[1].part


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("What is answered", "what-is-answered"),
        ("v2 (Messaging)", "v2-messaging"),
        ("GET /api/messages/{id}", "get-apimessagesid"),
        ("RECEIVER_TAG_KEYS", "receiver_tag_keys"),
        ("`jsonl` and `stdout`", "jsonl-and-stdout"),
        ("Dead-letters: what, why?", "dead-letters-what-why"),
        ("Größe", "größe"),
    ],
)
def test_anchors_are_those_of_github(heading: str, anchor: str) -> None:
    assert Topic("t", f"# T\n\n## {heading}\n").sections[1].anchor == anchor


def test_repeated_headings_get_numbered_anchors() -> None:
    anchors = Anchors()
    assert [anchors.add("Pages") for _ in range(3)] == ["pages", "pages-1", "pages-2"]


@pytest.mark.parametrize(
    ("words", "beginning"),
    [
        (["sinks"], "# Sinks\n"),
        (["WEBHOOK"], "# The webhook sink\n"),
        (["sinks", "backoff"], "### Backoff\n"),
        (["timeout"], "## Timeout\n"),
        (["messages", "list"], "## receiver messages list\n"),
    ],
)
def test_find_returns_a_topic_a_section_or_a_command(words: list[str], beginning: str) -> None:
    found = find(words, SOME)
    assert found is not None
    assert found.startswith(beginning)


@pytest.mark.parametrize("words", [["sinsk"], ["sinks", "timeout"], ["../sinks"], [""]])
def test_find_returns_nothing_for_an_unknown_name(words: list[str]) -> None:
    assert find(words, SOME) is None


def test_suggestions_are_names_spelled_alike() -> None:
    assert suggestions("Webhok", SOME) == ["webhook"]
    assert suggestions("zzz", SOME) == []


def hits(query: str) -> list[tuple[str, str]]:
    return [(hit.topic.name, hit.section.anchor) for hit in search(query, SOME)]


def test_search_ranks_headings_before_text() -> None:
    assert hits("retry")[:2] == [("sinks", "retries-and-max_age"), ("sinks", "retries-and-max_age-1")]
    assert hits("retry")[2] == ("webhook", "timeout")


def test_search_prefers_sections_with_all_words() -> None:
    assert hits("timeout retries") == [("webhook", "timeout")]
    assert hits("backoff unheard-of") == [("sinks", "backoff")]


@pytest.mark.parametrize("query", ["", "   ", "unheard-of", "(", "\\", "[a", "*" * 1000, "z " * 1000])
def test_search_takes_any_query(query: str) -> None:
    assert search(query, (WEBHOOK,)) == []


def test_snippet_has_the_cells_of_a_table_without_its_lines() -> None:
    table = "# Table\n\nFor tests.\n\n| option | meaning |\n|---|:---:|\n| `--sink` | one of `a\\|b`, a retry |\n"
    [found] = search("retry", [Topic("table", table)])
    assert found.snippet.endswith("option meaning --sink one of a|b, a retry")


def test_snippet_is_one_line_of_plain_text_around_the_match() -> None:
    long = Topic("long", f"# Long\n\n{'word ' * 200}**needle** [link](x.md)\n{'word ' * 200}\n")
    [hit] = search("needle", [long])
    assert hit.snippet.startswith("… word")
    assert "needle link word" in hit.snippet
    assert hit.snippet.endswith(" …")
    assert len(hit.snippet) < 210


def test_marked_separates_matches_from_the_rest() -> None:
    assert list(marked("A retry, retries.", "retry")) == [
        ("A ", False),
        ("retry", True),
        (", ", False),
        ("retries", True),
        (".", False),
    ]
    assert list(marked("nothing", "")) == [("nothing", False)]


# --- the topics of the package


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_every_topic_begins_with_a_title_and_a_summary(topic: Topic) -> None:
    assert topic.markdown.startswith("# ")
    assert [section.level for section in topic.sections].count(1) == 1
    assert topic.summary.endswith(".")


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_every_link_of_a_topic_leads_to_a_topic_and_an_anchor(topic: Topic) -> None:
    anchors = {other.name: {section.anchor for section in other.sections} for other in TOPICS}
    links = re.findall(r"\]\(([\w-]+\.md)?(?:#([^)]+))?\)", re.sub(r"`[^`]*`", "", topic.markdown))
    for file, anchor in links:
        name = file.removesuffix(".md") or topic.name
        assert name in NAMES
        assert not anchor or anchor in anchors[name], f"{file}#{anchor}"


@pytest.mark.parametrize("name", reference.TOPICS)
def test_generated_topics_are_up_to_date(name: str) -> None:
    written = (documents.FOLDER / f"{name}.md").read_text("utf-8")
    assert written == reference.rendered(name), "run: python -m receiver.cli.reference"


@pytest.mark.parametrize("name", reference.SCHEMAS)
def test_schema_of_events_in_the_package_is_up_to_date(name: str) -> None:
    written = (reference.SCHEMA_FOLDER / name).read_text("utf-8")
    assert written == reference.rendered_schema(name), "run: python -m receiver.cli.reference"


def test_every_error_names_a_topic_that_exists() -> None:
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "receiver").rglob("*.py"))
    named = set(re.findall(r'\btopic ?= ?"([\w-]+)"|\b_?TOPIC: Final = "([\w-]+)"', sources))
    assert named
    assert {first or second for first, second in named} <= NAMES


# --- errors that name a topic


def test_an_error_line_names_its_topic() -> None:
    assert line(SettingsError("x is wrong", topic="sinks")) == "x is wrong (see: receiver help sinks)"
    assert line(StorageUnavailable("x")) == "x (see: receiver help troubleshooting)"
    assert line(ReceiverError("x")) == "x"
    assert line(ValueError("x\nthe data")) == "x"


@pytest.mark.parametrize(
    ("table", "topic"),
    [
        ({"type": "webhook"}, "webhook"),
        ({"type": "kafka"}, "kafka"),
        ({"type": "memory", "what": 1}, "sinks"),
        ({"type": "events"}, "sinks"),
        ({"type": "no_such_module:Sink"}, "sinks"),
        ({"type": ["webhook"]}, "sinks"),
        ({}, "sinks"),
    ],
)
def test_an_error_of_a_sink_names_the_topic_of_its_type(table: dict[str, Any], topic: str) -> None:
    with pytest.raises(SettingsError) as caught:
        configure([{"name": "x", **table}])
    assert caught.value.topic == topic


# --- HTML


@pytest.mark.parametrize("topic", [*TOPICS, *SOME], ids=lambda topic: topic.name)
def test_rendered_anchors_are_those_of_the_sections(topic: Topic) -> None:
    anchors = re.findall(r'<h\d id="([^"]*)"', docs._rendered(topic))
    assert anchors == [section.anchor for section in topic.sections]


def rendered(markdown: str) -> str:
    return docs._rendered(Topic("t", markdown))


def test_raw_html_is_shown_as_text() -> None:
    html = rendered("<script>alert(1)</script>\n\n<b onclick=x>y</b> [z](javascript:alert(1)) [s](data:text/html,x)\n")
    assert "<script" not in html
    assert "<b" not in html
    assert 'href="' not in html


def test_tables_scroll_and_are_aligned_without_inline_styles() -> None:
    html = rendered("| a | b |\n|---|--:|\n| 1 | 2 |\n")
    assert html.startswith('<div class="table" tabindex="0"><table>')
    assert '<td class="align-right">2</td>' in html
    assert "style=" not in html


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("sinks.md", "sinks"),
        ("sinks.md#retries", "sinks#retries"),
        ("#here", "#here"),
        ("https://example.com/x.md", "https://example.com/x.md"),
        ("/openapi.json", "../openapi.json"),
        ("/docs/openapi", "../docs/openapi"),
    ],
)
def test_links_between_files_become_links_between_pages(target: str, address: str) -> None:
    assert rendered(f"[x]({target})") == f'<p><a href="{address}">x</a></p>\n'


def test_a_link_to_a_file_that_is_not_installed_is_text() -> None:
    assert rendered("[x](../../LICENSE), [y](sinks.md)") == '<p>x, <a href="sinks">y</a></p>\n'


def test_api_reference_describes_every_operation_and_schema() -> None:
    document = _document()
    topic = Topic("openapi", api_reference(document))
    headings = {section.heading for section in topic.sections}
    operations = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    assert operations | document["components"]["schemas"].keys() <= headings
    assert topic.name not in NAMES


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "string"}, "string"),
        ({"type": "string", "format": "date-time"}, "string (date-time)"),
        ({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]}, "integer, at least 0 or null"),
        ({"type": "array", "items": {"$ref": "#/components/schemas/Sink"}}, "list of [Sink](#sink)"),
        ({"enum": ["a", "b", "c"]}, "`a`, `b` or `c`"),
        ({"enum": ["a"]}, "`a`"),
        ({"const": "v1"}, "`v1`"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "object, each value integer"),
        ({}, "any value"),
    ],
)
def test_type_words_describe_a_schema(schema: dict[str, Any], words: str) -> None:
    assert type_words(schema) == words
