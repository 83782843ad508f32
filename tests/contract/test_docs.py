"""The pages hold: their links, commands, options, settings, columns, fields and error lines are those of the code."""

import ast
import json
import re
import shlex
import sqlite3
import sys
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer.main

from receiver import settings, settings_sources
from receiver.alerts import rules
from receiver.api.openapi import document
from receiver.api.routes import GROUPS
from receiver.cli.program import app
from receiver.documents import FOLDER, Topic
from receiver.domain.alerts import RuleType, Severity
from receiver.domain.cloudevents import EVENT_TYPES
from receiver.domain.events import Status
from receiver.providers.registry import URLS
from receiver.settings import Settings
from receiver.sinks.base import SinkSettings
from receiver.sinks.registry import GROUP, configure
from tests.pages import README, ROOT, blocks, page, section

PAGES = sorted(FOLDER.glob("*.md"))
FILES = [README, *PAGES]
# rendered from the code; tests of `receiver.cli.reference` compare them with it
GENERATED = {"codes", "commands", "settings"}
WRITTEN = [file for file in FILES if file.stem not in GENERATED]

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
each_page = pytest.mark.parametrize("file", PAGES, ids=lambda file: file.stem)
each_written = pytest.mark.parametrize("file", WRITTEN, ids=lambda file: file.stem)


def text_of(file: Path) -> str:
    return file.read_text("utf-8")


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


# --- form


@each_page
def test_page_begins_with_its_title_and_a_summary_of_one_sentence(file: Path) -> None:
    topic = Topic(file.stem, text_of(file))
    title, blank, *_ = topic.markdown.splitlines()
    assert title == f"# {topic.title}"
    assert blank == ""
    first = " ".join(topic.sections[0].text.strip().partition("\n\n")[0].split())
    assert first.endswith(".")
    assert topic.summary == re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", first)


@each_written
def test_prose_has_at_most_120_columns(file: Path) -> None:
    prose = without_blocks(text_of(file)).splitlines()
    assert [line for line in prose if len(line) > 120 and not line.startswith("|")] == []


# --- links


@cache
def anchors(file: Path) -> frozenset[str]:
    return frozenset(part.anchor for part in Topic(file.stem, text_of(file)).sections)


def links(file: Path) -> Iterator[tuple[Path, str]]:
    """The files that a page links to, with the anchor or an empty text."""
    for address in re.findall(r"\]\(([^)\s]+)\)", without_blocks(text_of(file))):
        if not re.match(r"https?://", address):
            path, _, anchor = address.partition("#")
            yield (file.parent / path).resolve() if path else file, anchor


@each_file
def test_every_link_leads_to_a_file_and_a_heading(file: Path) -> None:
    for target, anchor in links(file):
        assert target.is_file(), f"{file.name} links to {target}"
        assert not anchor or anchor in anchors(target), f"{file.name} links to {target.name}#{anchor}"


@each_page
def test_pages_link_only_to_pages(file: Path) -> None:
    """Only these are installed."""
    assert {target.parent for target, _ in links(file)} <= {FOLDER}


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = {README}, [README]
    while waiting:
        for target, _ in links(waiting.pop()):
            if target not in reached and target in PAGES:
                reached.add(target)
                waiting.append(target)
    assert {*PAGES} <= reached


# --- commands

_PROGRAM = re.compile(r"(?:\S*/)?receiver")
_ENDS = {"|", "||", "&&", ";", ">", ">>", "&", "#"}


def shown_commands(text: str) -> Iterator[list[str]]:
    """The words after `receiver` of every command in inline code and in blocks."""
    for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", without_blocks(text)):
        words = " ".join(code.split())
        if _PROGRAM.fullmatch(words.partition(" ")[0]) and " " in words and not words.startswith("uv"):
            yield from _calls(words)
    for language in ("sh", "console", ""):
        for block in blocks(text, language):
            for line in block.replace("\\\n", " ").splitlines():
                yield from _calls(line)


def _calls(line: str) -> Iterator[list[str]]:
    words = _split(line)
    for place, word in enumerate(words[:-1]):
        if _PROGRAM.fullmatch(word) and words[place + 1] in _commands() and _begins(words[:place]):
            rest = words[place + 1 :]
            end = next((number for number, other in enumerate(rest) if other in _ENDS), len(rest))
            yield rest[:end]


def _begins(before: list[str]) -> bool:
    """Whether a command may stand after these words, and not an argument that happens to be called like us."""
    return not before or before[-1] in _ENDS | {"$", "fallback", "receiver-1", "run"} or "=" in before[-1]


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=line.lstrip()[:1] == "#")
    except ValueError:
        # a text of several lines, in quotes
        return line.split()


@cache
def _commands() -> dict[str, Any]:
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def _options(words: list[str]) -> tuple[set[str], list[str]]:
    """The options of the command that the words name, and the words that are left."""
    command, rest = _commands()[words[0]], words[1:]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"there is no command {' '.join(words)}"
        command, rest = command.commands[rest[0]], rest[1:]
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}, rest


@each_written
def test_every_command_shown_exists_with_its_options(file: Path) -> None:
    for words in shown_commands(text_of(file)):
        known, rest = _options(words)
        for word in rest:
            if word.startswith("--"):
                assert word.partition("=")[0] in known | {"--help"}, f"receiver {' '.join(words)}: {word}"


@each_written
def test_inline_code_that_looks_like_a_command_is_one(file: Path) -> None:
    for code in re.findall(r"(?<!`)`((?:\.venv/bin/)?receiver [^`]+)`(?!`)", without_blocks(text_of(file))):
        assert code.split()[1] in _commands(), code


def test_commands_are_found() -> None:
    """The tests above would pass if nothing were found."""
    shown = {" ".join(words[:2]) for file in WRITTEN for words in shown_commands(text_of(file))}
    assert {"serve", "messages list", "sinks replay", "callbacks export", "migrate --check"} <= shown


# --- settings


@each_written
def test_every_setting_named_exists(file: Path) -> None:
    nested = {f"{table}__{name}".upper() for table, model in settings.TABLES.items() for name in model.model_fields}
    known = {name.upper() for name in Settings.model_fields} | nested
    known |= {variable.removeprefix("RECEIVER_") for variable in settings_sources.SOURCES}
    known |= {f"TEST_{server}_URL" for server in ("POSTGRES", "NATS", "REDIS", "RABBITMQ")}
    named = set(re.findall(r"\bRECEIVER_([A-Z][A-Z0-9_]*[A-Z0-9])", text_of(file)))
    assert named <= known


# --- installing and deploying


def test_every_install_line_names_this_folder_or_a_package_of_somebody_else() -> None:
    """The distribution is in no package index: by its name it is found only where it is installed already."""
    files = [*FILES, ROOT / "deploy/receiver.service", ROOT / "deploy/Dockerfile"]
    lines = [line for file in files for line in re.findall(r"pip install [^`\n]+", text_of(file))]
    assert len(lines) > 5
    assert [line for line in lines if "bandwidth-receiver" in line] == []


def test_the_proxy_that_publishes_callbacks_alone_publishes_all_of_them() -> None:
    [prefix] = set(re.findall(r"handle (/\S+/)\*", section(page("deploy"), "Behind a reverse proxy")))
    assert [url.path for _, url in URLS if not url.path.startswith(prefix)] == []
    assert [path for path in document(GROUPS, "1")["paths"] if path.startswith(prefix)] == []


def test_what_a_sink_of_ones_own_may_do_is_said() -> None:
    assert "it can read every setting with its secrets" in section(page("own-sinks"), "Trust")


# --- the database


def test_the_columns_of_the_view_are_those_documented(sqlite_url: str) -> None:
    with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as connection:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(message_status)")}
    assert first_cells(section(page("sql"), "The view message_status")) == columns


def first_cells(text: str) -> set[str]:
    """The names in the first cells of all tables of a text."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    return {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}


# --- events


def test_every_field_of_an_event_is_documented() -> None:
    event, alert = map(json.loads, blocks(page("events"), "json"))
    assert first_cells(section(page("events"), "Alert events")) == alert["data"].keys()
    assert alert.keys() == event.keys()
    assert first_cells(section(page("events"), "The fields of data")) == event["data"].keys()
    attributes = first_cells(section(page("events"), "CloudEvents attributes"))
    assert attributes == event.keys() - {"specversion", "data"}


def test_every_event_type_is_documented() -> None:
    shown = first_cells(section(page("events"), "Types"))
    assert shown == EVENT_TYPES


def test_the_ranks_of_the_statuses_are_those_of_the_code() -> None:
    [line] = re.findall(r"`unknown` < .*?;", page("events"), re.DOTALL)
    shown = re.findall(r"`(\w+)`", line)
    assert shown == [status.value for status in Status if status is not Status.RECEIVED]


def test_every_status_is_explained_to_support() -> None:
    table = section(page("support"), "Read the answer")
    assert first_cells(table) == {status.value for status in Status}


# --- sinks


def sink_types() -> list[str]:
    return sorted(point.name for point in entry_points(group=GROUP) if point.name != "memory")


@pytest.mark.parametrize("type_name", sink_types())
def test_every_field_of_a_sink_is_on_its_page(type_name: str) -> None:
    [point] = [point for point in entry_points(group=GROUP) if point.name == type_name]
    fields = {*point.load().Settings.model_fields} - {*SinkSettings.model_fields}
    documented = {name.partition(".")[0] for name in first_cells(page(type_name))}
    assert fields <= documented


def test_every_field_of_all_sinks_is_documented() -> None:
    shown = first_cells(section(page("sinks"), "Fields of every sink")) | first_cells(section(page("sinks"), "Filters"))
    assert shown == {*SinkSettings.model_fields}


CREDENTIALS = "-----BEGIN NATS USER JWT-----\nx\n------END NATS USER JWT------\n-----BEGIN USER NKEY SEED-----\nx\n"


def sink_tables() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in WRITTEN:
        for block in blocks(text_of(file), "toml"):
            for table in tomllib.loads(block).get("sinks", []):
                yield f"{file.stem}: {table['name']}", table


@pytest.mark.parametrize("table", [pytest.param(table, id=name) for name, table in sink_tables()])
def test_every_sink_shown_can_be_configured(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ":" in table["type"]:
        pytest.skip("its class is on the page: test_docs_own_sink.py")
    if table["type"] == "python":
        monkeypatch.setitem(sys.modules, "shop.events", SimpleNamespace(handle=print))  # type: ignore[arg-type]
    for name, value in {"CRM_HOOK_SECRET": "s", "KAFKA_PASSWORD": "s"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AMQP_URL", "amqp://user:password@127.0.0.1/")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1/0")
    if "credentials" in table:
        (tmp_path / "receiver.creds").write_text(CREDENTIALS, "utf-8")
        table = {**table, "credentials": f"file:{tmp_path / 'receiver.creds'}"}
    [sink] = configure([table])
    assert sink.name == table["name"]


def test_the_settings_in_toml_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [block] = blocks(page("first-run"), "toml")
    (tmp_path / "receiver.toml").write_text(block, "utf-8")
    monkeypatch.chdir(tmp_path)
    assert settings.load().retention.text == 7


# --- error lines


@cache
def code_texts() -> str:
    """Every text constant of the code without backticks; what varies in a formatted one is left out."""
    texts = [
        node.value
        for file in (ROOT / "receiver").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return "\n".join(texts).replace("`", "")


def error_lines() -> list[str]:
    """The lines that the page explains: code at the beginning of an item."""
    text = page("troubleshooting").partition("\n## Settings\n")[2]
    items = re.findall(r"^\* (`.*(?:\n  .*)*)", text, re.MULTILINE)
    return [" ".join(code.split()) for item in items for code in re.findall(r"`([^`]+)`", _head(item))]


def _head(item: str) -> str:
    """The quoted lines at the beginning of an item, before the colon outside of code."""
    outside = re.sub(r"`[^`]+`", lambda found: "x" * len(found[0]), item)
    return item[: outside.find(":")] if ":" in outside else item


@pytest.mark.parametrize("line", error_lines())
def test_every_error_line_explained_is_in_the_code(line: str) -> None:
    parts = [part.strip(" :;,") for part in line.split("…")]
    longest = max(parts, key=len)
    assert longest in code_texts()


def test_error_lines_are_found() -> None:
    assert len(error_lines()) > 100


_RAISED = {"ReceiverError", "SettingsError", "SchemaError", "Unknown", "Conflict", "Expired"}
_RAISED |= {"UnfitDatabase", "UnusableBackup", "UnknownSink", "UnknownAlert"}
_LOGGED = {"warning", "error", "exception"}
# answered over HTTP alone, where the caller sees them as problem details
_NOT_ON_A_TERMINAL = {"api", "sandbox", "testing"}


def printed_lines() -> list[str]:
    """The lines that commands and the log print when something is wrong, without what varies."""
    found = set()
    for file in (ROOT / "receiver").rglob("*.py"):
        if file.relative_to(ROOT / "receiver").parts[0] in _NOT_ON_A_TERMINAL:
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and _name(node.exc.func) in _RAISED:
                found.add(_longest_text(node.exc.args))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _LOGGED:
                found.add(_longest_text(node.args))
            elif isinstance(node, ast.Call) and _name(node.func) == "Sampled":
                found.add(_longest_text(node.args[1:]))
    return sorted(text for text in found if len(text) > 3)


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _longest_text(arguments: list[ast.expr]) -> str:
    """The longest constant part of the first of these arguments."""
    if not arguments or not isinstance(arguments[0], ast.Constant | ast.JoinedStr):
        return ""
    parts = arguments[0].values if isinstance(arguments[0], ast.JoinedStr) else [arguments[0]]
    texts = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return max((text.replace("`", "").strip(" :;,.()") for text in texts), key=len, default="")


@pytest.mark.parametrize("text", printed_lines())
def test_every_error_line_is_explained(text: str) -> None:
    assert text in " ".join(page("troubleshooting").replace("…", " … ").replace("`", "").split())


def test_table_of_rules_has_the_fields_and_defaults_of_each() -> None:
    rows = {found[1]: found.groups()[1:] for found in re.finditer(_RULE, page("alerts"), re.MULTILINE)}
    assert rows == {
        type_.value: (_span(kind.window), _threshold(kind), ", ".join(_more(kind)))
        for type_, kind in rules.TYPES.items()
        if type_ is not RuleType.EXTERNAL
    }


_RULE = r"^\| \[([a-z-]+)\]\(#\1\) \| ?(.*?) ?\| ?(.*?) ?\| ?(.*?) ?\|$"


def _span(span: timedelta | None) -> str:
    if span is None:
        return ""
    minutes = span // timedelta(minutes=1)
    return f"{minutes // 60} h" if minutes % 60 == 0 else f"{minutes} min"


def _threshold(kind: Any) -> str:
    if kind.above is None:
        return ""
    return f"{100 * kind.above:.0f} %" if kind.is_share else f"{kind.above}"


def _more(kind: Any) -> Iterator[str]:
    if kind.minimum is not None:
        yield f"`minimum` {kind.minimum}"
    if kind.codes is not None:
        yield "`codes`: spam and blocked"
    if kind.longer_than is not None:
        yield f"`longer_than` {_span(kind.longer_than)}"
    if kind.holds_for:
        yield f"`for` {_span(kind.holds_for)}"
    if kind.severity is not Severity.WARNING:
        yield kind.severity.value
