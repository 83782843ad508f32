"""The documentation topics `settings`, `codes` and `commands`, and the schema of events, rendered from the code.

They are files, so that links to them work wherever the files are read, and programs find the schema in the package.
After a change of a setting, a code, a command or a field of an event `python -m receiver.cli.reference` writes them; a
test fails until then.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from textwrap import wrap
from typing import Any, Final

import typer
from typer.main import get_command

from receiver import documents
from receiver.api.openapi import alert_schema, event_schema, table, type_words
from receiver.app import RELOADED
from receiver.cli.program import app
from receiver.domain.events import Api
from receiver.providers import PROVIDERS, registry
from receiver.providers.base import CodeEntry
from receiver.settings import Settings
from receiver.settings_sources import PREFIX, SOURCES

_COLUMNS: Final = 118
_NULL: Final = {"type": "null"}
_YES_OR_NO: Final = {True: "yes", False: "no", None: "not documented"}


def settings() -> Iterator[str]:
    yield from ("# Settings", "")
    yield from ("For operators: every setting of `receiver` with its type and its default.", "")
    yield "Environment variables win over the TOML file, which wins over the directory of secrets; see"
    yield "[Where settings come from](first-run.md#where-settings-come-from). Lists and tables are JSON in the"
    yield from ("environment. A wrong or unknown setting prevents the start, and one line names it.", "")
    schema = Settings.model_json_schema()
    for name, described in schema["properties"].items():
        definition = schema["$defs"].get(described.get("$ref", "").rpartition("/")[2], {})
        if "properties" in definition:
            for inner, inner_schema in definition["properties"].items():
                yield from _setting((name, inner), inner_schema)
        else:
            yield from _setting((name,), {**definition, **described})
    for variable, description in SOURCES.items():
        yield from (f"## {variable}", "", description, "", "* A variable of the environment only.", "")


def _setting(path: tuple[str, ...], schema: dict[str, Any]) -> Iterator[str]:
    yield from (f"## {PREFIX}{'__'.join(path).upper()}", "", *wrap(schema["description"], _COLUMNS), "")
    yield f"* Type: {_setting_type(schema)}"
    default = schema.get("default")
    yield f"* Default: {'none' if default in (None, []) else f'`{_toml(default)}`'}"
    *table_name, name = path
    yield f"* In TOML: `{name}`{f' in the table `[{table_name[0]}]`' if table_name else ''}"
    reload = "applied on SIGHUP" if path[0] in RELOADED else "applied by a restart"
    yield from (f"* A change is {reload}.", "")


def _setting_type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return type_words({"enum": schema["enum"]})
    if "anyOf" in schema:
        return " or ".join(type_words(choice) for choice in schema["anyOf"] if choice != _NULL)
    return type_words(schema)


def _toml(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def codes() -> Iterator[str]:
    yield from ("# Delivery codes", "")
    yield from ("For support staff and developers: every delivery code that Bandwidth documents.", "")
    yield "A failure is `refused` where Bandwidth rejects the message before the network, `network` where a carrier"
    yield "or the handset fails, and `other` where the code does not say. `receiver codes CODE` prints more"
    yield "about one code, `receiver codes --search WORDS` finds codes by their names, also by those of"
    yield "Bandwidth's first documents. Whether a retry helps is documented for v2 only; a v1 code has the"
    yield "entry of its v2 code."
    yield ""
    for provider in PROVIDERS.values():
        if not (listed := provider.codes.listed()):
            continue
        yield from (f"## {provider.title}", "")
        headings = ("Code", "Name", "Meaning", "Failure side", "Retry helps?")
        more = ("v2 code",) if provider.api is Api.V1 else ()
        yield from table((*headings, *more), map(_code, listed))


def _code(entry: CodeEntry) -> tuple[str, ...]:
    side = registry.failure_side(entry.api, entry.code).value if entry.outcome == "failed" else entry.outcome
    # v1 documents no retries, but its codes have the meaning of a v2 code.
    known = registry.entry(Api.V2, entry.v2_analogue) if entry.v2_analogue is not None else entry
    retry = _YES_OR_NO[known.retryable if known else None] if entry.outcome != "delivered" else "no"
    limit = f", {'once' if entry.retry_limit == 1 else f'{entry.retry_limit} times'}" if entry.retry_limit else ""
    analogue = (str(entry.v2_analogue or "-"),) if entry.api is Api.V1 else ()
    earlier = entry.earlier_name or entry.name
    name = entry.name if earlier.casefold() == entry.name.casefold() else f"{entry.name} (earlier: {earlier})"
    return f"`{entry.code}`", name, entry.description, side, f"{retry}{limit}", *analogue


def commands() -> Iterator[str]:
    yield from ("# Commands", "")
    yield from ("For users of the command line: every command of `receiver` with its arguments and options.", "")
    yield "Exit codes: 0 means success, 1 a failure or nothing found, 2 a wrong call or a wrong setting. An error is"
    yield from ("one line on standard error.", "")
    yield "A `TIME` is `2026-01-31 12:00:00` in UTC, of which the last parts may be left out, a time of RFC 3339, or"
    yield from ("back from now: `30m`, `2h`, `7d`, `today`, `yesterday`.", "")
    root: Any = get_command(app)
    yield from _commands(typer.Context(root, info_name="receiver"))


def _commands(context: typer.Context) -> Iterator[str]:
    command: Any = context.command
    children = getattr(command, "commands", {})
    if not children:
        yield from _command(context)
    for name, child in children.items():
        if not child.hidden:
            yield from _commands(typer.Context(child, info_name=name, parent=context))


def _command(context: typer.Context) -> Iterator[str]:
    command: Any = context.command
    yield from (f"## {context.command_path}", "", command.help or "", "")
    records = [parameter.get_help_record(context) for parameter in command.params]
    yield from table(("Argument or option", "Meaning"), ((f"`{names}`", text) for names, text in filter(None, records)))


TOPICS: Final[Mapping[str, Callable[[], Iterator[str]]]] = {"codes": codes, "commands": commands, "settings": settings}


SCHEMAS: Final[Mapping[str, Callable[[], dict[str, Any]]]] = {
    "message-event-1.json": event_schema,
    "alert-1.json": alert_schema,
}
SCHEMA_FOLDER: Final = documents.FOLDER.parent / "schemas"


def rendered_schema(name: str) -> str:
    """A JSON Schema of the `data` of events, as it is in the package."""
    return json.dumps(SCHEMAS[name](), indent=2) + "\n"


def rendered(name: str) -> str:
    """The Markdown of a topic."""
    return "\n".join(TOPICS[name]()).strip() + "\n"


if __name__ == "__main__":
    for name in TOPICS:
        (documents.FOLDER / f"{name}.md").write_text(rendered(name), "utf-8")
    for name in SCHEMAS:
        (SCHEMA_FOLDER / name).write_text(rendered_schema(name), "utf-8")
