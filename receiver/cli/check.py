"""`receiver check` and `receiver settings`: whether a start would succeed, and with which settings."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from receiver import credentials
from receiver.cli.context import check_schema, read_settings
from receiver.cli.output import echo_json, echo_table
from receiver.errors import SettingsError, line, see
from receiver.settings import Settings, load_valid, sources
from receiver.settings_sources import PREFIX
from receiver.sinks.registry import probe_sink
from receiver.storage import schema, sqlite_file
from receiver.storage.database import Database, driver_url, is_sqlite, journal_file, weaknesses
from receiver.worker import configured_rules, configured_sinks

_LATER: Final = "will be created at the first start"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check. A warning prevents no start."""

    what: str
    ok: bool
    detail: str
    warning: bool = False

    @property
    def result(self) -> str:
        return "WARNING" if self.warning else "ok" if self.ok else "FAILED"


def check(config: Path | None, *, json: bool) -> int:
    """Prints a line for each part of a start; the exit code is 1 if one fails, and 2 if a setting is wrong."""
    try:
        settings = read_settings(config)
    except SettingsError as error:
        wrong = [CheckResult("settings", ok=False, detail=problem) for problem in error.problems]
        _echo_results([*wrong, *asyncio.run(_wrong_tables(config))], json=json)
        return 2
    results = [CheckResult("settings", ok=True, detail="are valid"), *asyncio.run(_results(settings))]
    _echo_results(results, json=json)
    return 0 if all(one.ok for one in results) else 1


def _echo_results(results: Sequence[CheckResult], *, json: bool) -> None:
    if json:
        echo_json(results)
    else:
        echo_table(
            ("CHECK", "RESULT", "DETAIL"),
            [(one.what, one.result, one.detail) for one in results],
        )


_PROBE_SECONDS: Final = 5.0


async def _results(settings: Settings) -> list[CheckResult]:
    found = []
    for what, find in _CHECKS.items():
        found += await _found(what, find, settings)
        if what == "sinks" and found[-1].ok:
            found += await _probes(settings)
    return found


async def _wrong_tables(config: Path | None) -> list[CheckResult]:
    """What is wrong with sinks and rules, as far as it can be known while other settings are wrong."""
    try:
        found = load_valid(config)
    except SettingsError:
        return []
    if found is None:
        return []
    settings, wrong = found
    # Rules name sinks, and have numbers of this country.
    checked = {"sinks": _sinks} if wrong & {"sinks", "country_code"} else {"sinks": _sinks, "alerts": _alerts}
    results = [await _found(what, find, settings) for what, find in checked.items()]
    return [result for part in results for result in part if not result.ok]


async def _probes(settings: Settings) -> list[CheckResult]:
    """Whether each sink can be reached. The server starts without: the events of such a sink wait."""
    probed = await asyncio.gather(*(probe_sink(table, seconds=_PROBE_SECONDS) for table in settings.sinks))
    return [
        CheckResult(
            f"sink {table['name']}",
            ok=True,
            detail="can be reached" if probe.error is None else f"cannot be reached: {probe.error}",
            warning=not probe.ok,
        )
        for table, probe in zip(settings.sinks, probed, strict=True)
    ]


async def _found(what: str, find: Callable[[Settings], Awaitable[str]], settings: Settings) -> list[CheckResult]:
    """The result of a check, or a line for each fault that it finds."""
    try:
        return [CheckResult(what, ok=True, detail=await find(settings))]
    except SettingsError as error:
        problems = [problem + see(part.topic) for part in error.parts for problem in part.problems]
        return [CheckResult(what, ok=False, detail=problem) for problem in problems]
    except Exception as error:  # Any error here prevents the start of the server.
        return [CheckResult(what, ok=False, detail=line(error))]


async def _address(settings: Settings) -> str:
    if is_sqlite(settings.database):
        holder = sqlite_file.holder(sqlite_file.file_of(settings.database))
        if holder is not None:
            return f"{holder} serves this database already"
    from receiver.cli.serve import bind

    for listener in bind(settings.host, settings.port):
        listener.close()
    return f"{settings.listen_url} is free" if settings.port else "the start takes a free port"


async def _sinks(settings: Settings) -> str:
    return ", ".join(sink.name for sink in configured_sinks(settings)) or "none"


async def _alerts(settings: Settings) -> str:
    rules = configured_rules(settings)
    if not rules:
        return "are switched off"
    return ", ".join(rule.name for rule in rules) if settings.alerts else "the default rules"


async def _credentials(settings: Settings) -> str:
    missing = credentials.missing(settings)
    if not missing:
        return "in the settings"
    if not is_sqlite(settings.database):
        lines = "; ".join(credentials.what_to_set([name]) for name in missing)
        raise SettingsError(lines, topic=credentials.TOPIC)
    file = settings.data_dir / credentials.FILE
    return f"in {file}" if file.exists() else _LATER


async def _database(settings: Settings) -> str:
    if is_sqlite(settings.database):
        return _embedded(settings)
    database = Database(settings.database)
    try:
        found = await weaknesses(database)
    finally:
        await database.close()
    answers = "PostgreSQL answers through a connection pooler" if database.is_pooled else "PostgreSQL answers"
    return "; ".join(found) or answers


def _embedded(settings: Settings) -> str:
    file = sqlite_file.file_of(settings.database)
    sqlite_file.refuse_network(file)
    sqlite_file.refuse_half_restored(file)
    sqlite_file.refuse_unfit(file)
    both = (file, journal_file(file))
    if not any(path.exists() for path in both):
        return f"{' and '.join(map(str, both))} {_LATER}"
    return "; ".join(f"{path} is not damaged" if path.exists() else f"{path} does not exist" for path in both)


async def _schema(settings: Settings) -> str:
    if is_sqlite(settings.database) and not sqlite_file.file_of(settings.database).exists():
        return _LATER
    await check_schema(settings)
    return f"revision {schema.NEWEST}"


_CHECKS: Final[dict[str, Callable[[Settings], Awaitable[str]]]] = {
    "sinks": _sinks,
    "alerts": _alerts,
    "credentials": _credentials,
    "address": _address,
    "database": _database,
    "schema": _schema,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting that holds, without its secrets, and the variable or file that it comes from."""

    name: str
    value: str
    source: str


def show_settings(config: Path | None, *, json: bool) -> int:
    settings = read_settings(config)
    origins = sources(config)
    generated = settings.data_dir / credentials.FILE
    if is_sqlite(settings.database) and generated.exists():
        origins |= {(name,): str(generated) for name in credentials.missing(settings)}
        settings = credentials.secure(settings).settings
    shown = [
        Setting(f"{PREFIX}{'__'.join(path)}".upper(), _value(settings, path), source)
        for path, source in origins.items()
    ]
    if json:
        echo_json(shown)
    else:
        echo_table(("SETTING", "VALUE", "FROM"), [(one.name, one.value, one.source) for one in shown])
    return 0


def _value(settings: Settings, path: Sequence[str]) -> str:
    """A value as it is written in a variable of the environment, without its secrets."""
    value = reduce(getattr, path, settings)
    match path[0]:
        case "database_url":
            return _database_url(settings)
        case "sinks":
            # A field of a sink may be a password, whatever its name.
            return ", ".join(f"{table.get('name')} ({table.get('type')})" for table in settings.sinks)
        case "alerts":
            return ", ".join(str(table.get("name") or table.get("rule")) for table in settings.alerts)
        case "alerts_every":
            return f"{settings.alerts_every.total_seconds():g}s"
        case _:
            return "" if value is None else TypeAdapter(Any).dump_json(value).decode().strip('"')


def _database_url(settings: Settings) -> str:
    if settings.database_url is None:
        return ""
    url = driver_url(settings.database)
    if is_sqlite(settings.database):
        return f"sqlite:///{url.database}"
    hosts = url.host or str(url.query.get("host", ""))
    return f"postgresql://{url.username or ''}@{hosts}/{url.database or ''}, password and parameters hidden"
