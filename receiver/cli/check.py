"""`receiver check`: whether `receiver serve` would start, a line for each thing it needs."""

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

_LATER: Final = "will be made at the first start"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    what: str
    ok: bool
    detail: str


def check(config: Path | None, *, json: bool) -> int:
    settings = read_settings(config)
    findings = [Finding("settings", ok=True, detail="can be read"), *asyncio.run(_findings(settings))]
    if json:
        echo_json(findings)
    else:
        echo_table(("CHECK", "RESULT", "DETAIL"), [(one.what, _WORDS[one.ok], one.detail) for one in findings])
    return 0 if all(one.ok for one in findings) else 1


_WORDS: Final = {True: "ok", False: "FAILED"}


async def _findings(settings: Settings) -> list[Finding]:
    return [await _finding(what, find, settings) for what, find in _CHECKS.items()]


async def _finding(what: str, find: Callable[[Settings], Awaitable[str]], settings: Settings) -> Finding:
    try:
        return Finding(what, ok=True, detail=await find(settings))
    except Exception as error:  # whatever it is, it would keep the server from starting
        return Finding(what, ok=False, detail=line(error))


async def _sinks(settings: Settings) -> str:
    return ", ".join(sink.name for sink in configured_sinks(settings)) or "none"


async def _credentials(settings: Settings) -> str:
    wanted = credentials.missing(settings)
    if not wanted:
        return "in the settings"
    if not is_sqlite(settings.database):
        raise SettingsError(credentials.what_to_set(wanted), topic=credentials.TOPIC)
    file = settings.data_dir / credentials.FILE
    return f"in {file}" if file.exists() else _LATER


async def _database(settings: Settings) -> str:
    if is_sqlite(settings.database):
        return _embedded(settings)
    database = Database(settings.database)
    try:
        weak = await weaknesses(database)
    finally:
        await database.close()
    return "; ".join(weak) or "PostgreSQL answers"


def _embedded(settings: Settings) -> str:
    file = sqlite_file.file_of(settings.database)
    sqlite_file.refuse_network(file)
    sqlite_file.refuse_half_restored(file)
    sqlite_file.refuse_unfit(file)
    both = (file, journal_file(file))
    if not any(one.exists() for one in both):
        return f"{' and '.join(map(str, both))} {_LATER}"
    return "; ".join(f"{one} is whole" if one.exists() else f"{one} is not there" for one in both)


async def _schema(settings: Settings) -> str:
    if is_sqlite(settings.database) and not sqlite_file.file_of(settings.database).exists():
        return _LATER
    database = Database(settings.database)
    try:
        await schema.check(database)
        await schema.refuse_older_journal(database)
    finally:
        await database.close()
    return f"revision {schema.newest()}"


_CHECKS: Final[dict[str, Callable[[Settings], Awaitable[str]]]] = {
    "sinks": _sinks,
    "credentials": _credentials,
    "database": _database,
    "schema": _schema,
}
