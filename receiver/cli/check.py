"""`receiver check`: whether `receiver serve` would start, with one line for each of its requirements."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from receiver import credentials
from receiver.cli.context import read_settings
from receiver.cli.output import echo_json, echo_table
from receiver.errors import SettingsError, line
from receiver.settings import Settings
from receiver.storage import schema, sqlite_file
from receiver.storage.database import Database, is_sqlite, journal_file, weaknesses
from receiver.worker import configured_sinks

_LATER: Final = "will be created at the first start"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    what: str
    ok: bool
    detail: str


def check(config: Path | None, *, json: bool) -> int:
    settings = read_settings(config)
    findings = [Finding("settings", ok=True, detail="are valid"), *asyncio.run(_findings(settings))]
    if json:
        echo_json(findings)
    else:
        echo_table(
            ("CHECK", "RESULT", "DETAIL"),
            [(finding.what, _RESULTS[finding.ok], finding.detail) for finding in findings],
        )
    return 0 if all(finding.ok for finding in findings) else 1


_RESULTS: Final = {True: "ok", False: "FAILED"}


async def _findings(settings: Settings) -> list[Finding]:
    return [await _finding(what, find, settings) for what, find in _CHECKS.items()]


async def _finding(what: str, find: Callable[[Settings], Awaitable[str]], settings: Settings) -> Finding:
    try:
        return Finding(what, ok=True, detail=await find(settings))
    except Exception as error:  # Any error here prevents the start of the server.
        return Finding(what, ok=False, detail=line(error))


async def _sinks(settings: Settings) -> str:
    return ", ".join(sink.name for sink in configured_sinks(settings)) or "none"


async def _credentials(settings: Settings) -> str:
    missing = credentials.missing(settings)
    if not missing:
        return "in the settings"
    if not is_sqlite(settings.database):
        raise SettingsError(credentials.what_to_set(missing), topic=credentials.TOPIC)
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
    return "; ".join(found) or "PostgreSQL answers"


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
    database = Database(settings.database)
    try:
        await schema.check(database)
        await schema.refuse_older_journal(database)
    finally:
        await database.close()
    return f"revision {schema.NEWEST}"


_CHECKS: Final[dict[str, Callable[[Settings], Awaitable[str]]]] = {
    "sinks": _sinks,
    "credentials": _credentials,
    "database": _database,
    "schema": _schema,
}
