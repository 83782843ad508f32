"""`receiver status`, `check`, `settings`, `backup`, `restore`, `migrate`, `rebuild` and `prune`."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import reduce
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from receiver import credentials
from receiver.api.status import (
    AlertingStatus,
    DatabaseStatus,
    InstallationStatus,
    JournalStatus,
    ProcessorStatus,
    ReconciliationStatus,
    SinkStatus,
    status_of,
)
from receiver.cli.context import check_schema, make_embedded, read_settings, refuse_absent, with_database
from receiver.cli.output import echo, echo_fields, echo_json, echo_table
from receiver.clock import now
from receiver.domain.cloudevents import rfc3339
from receiver.errors import SettingsError, line
from receiver.explanation.installation import Findings, assess
from receiver.settings import Settings, sources
from receiver.settings_sources import PREFIX
from receiver.sinks.registry import probe_sink
from receiver.storage import backup as backups
from receiver.storage import schema, sqlite_file
from receiver.storage.database import Database, driver_url, is_sqlite, journal_file, weaknesses
from receiver.storage.rebuild import Rebuild
from receiver.storage.retention import Pruner
from receiver.storage.status import StatusReader
from receiver.worker import configured_rules, configured_sinks

# Longer than the API waits: a database that is busy answers the command too, and an error of its own comes sooner.
_READ_SECONDS: Final = 10.0


def status(config: Path | None, *, json: bool) -> int:
    """Prints the state; the exit code is 1 if there is a problem."""
    settings = read_settings(config)
    refuse_absent(settings)
    found = status_of(assess(asyncio.run(_read_findings(settings)), now()))
    if json:
        echo_json(found)
    else:
        echo_fields(_lines(found))
        echo(*(f"! {problem}" for problem in found.problems))
    return 0 if found.status == "ok" else 1


async def _read_findings(settings: Settings) -> Findings:
    types = {str(table.get("name")): str(table.get("type")) for table in settings.sinks}
    database = Database(settings.database)
    try:
        return await StatusReader(database).findings(types, clock=now, seconds=_READ_SECONDS)
    finally:
        await database.close()


def _lines(found: InstallationStatus) -> Iterator[tuple[str, str]]:
    yield "receiver", f"{found.version}, {found.status}"
    yield "journal", _journal(found.journal)
    yield "processor", _processor(found.processor)
    for sink in found.sinks or ():
        yield f"sink {sink.name}", _sink(sink)
    if found.database is not None:
        yield "database", _database_line(found.database)
    for one in found.reconciliation or ():
        yield f"reconciliation {one.api}", _reconciliation(one)
    if found.alerts is not None:
        yield "alerts", _firing(found.alerts)
    if found.last_callbacks:
        yield "last callbacks", ", ".join(f"{route} {time}" for route, time in _by_route(found.last_callbacks))


def _journal(journal: JournalStatus) -> str:
    if journal.pending is None:
        return "unknown"
    if not journal.pending:
        return "every callback is processed"
    return f"{journal.pending:,} callbacks wait to be processed, the oldest for {_age(journal.oldest_pending_seconds)}"


def _processor(processor: ProcessorStatus) -> str:
    parts: list[str] = [processor.state or "unknown"]
    if processor.failing_since is not None:
        parts.append(f"since {rfc3339(processor.failing_since)}")
    if processor.error is not None:
        parts.append(processor.error)
    if processor.callbacks is not None:
        parts.append(f"{processor.callbacks:,} callbacks processed, {processor.repeats:,} of them repeats")
    return ", ".join(parts)


def _sink(sink: SinkStatus) -> str:
    parts = [sink.state, f"{sink.lag:,} events behind"]
    if sink.oldest_seconds is not None:
        parts.append(f"the oldest for {_age(sink.oldest_seconds)}")
    if sink.dead_letters:
        parts.append(f"{sink.dead_letters:,} dead letters")
    if sink.last_error is not None:
        parts.append(f"last error: {sink.last_error}")
    return ", ".join(parts)


def _reconciliation(found: ReconciliationStatus) -> str:
    parts = [found.state, f"{found.requests_today:,} requests today"]
    if found.last_request_at is not None:
        parts.append(f"the latest at {rfc3339(found.last_request_at)}")
    if found.error is not None:
        parts.append(f"last error: {found.error}")
    return ", ".join(parts)


def _database_line(database: DatabaseStatus) -> str:
    sizes = (
        ("", database.bytes),
        ("journal ", database.journal_bytes),
        ("write-ahead logs ", database.wal_bytes),
        ("free on its disk ", database.disk_free_bytes),
    )
    return ", ".join([database.type, *(f"{name}{_size(size)}" for name, size in sizes if size is not None)])


def _firing(alerts: AlertingStatus) -> str:
    firing = [f"{number} {severity}" for severity, number in alerts.firing.items() if number]
    return f"{', '.join(firing)} firing" if firing else "none firing"


def _by_route(times: Mapping[str, str]) -> list[tuple[str, str]]:
    return sorted(times.items())


def _age(seconds: float | None) -> str:
    return str(timedelta(seconds=round(seconds or 0)))


def _size(size: int) -> str:
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


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


_LATER: Final = "will be created at the first start"


@dataclass(frozen=True, slots=True)
class Finding:
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
        _echo_findings([Finding("settings", ok=False, detail=problem) for problem in error.problems], json=json)
        return 2
    findings = [Finding("settings", ok=True, detail="are valid"), *asyncio.run(_findings(settings))]
    _echo_findings(findings, json=json)
    return 0 if all(finding.ok for finding in findings) else 1


def _echo_findings(findings: Sequence[Finding], *, json: bool) -> None:
    if json:
        echo_json(findings)
    else:
        echo_table(
            ("CHECK", "RESULT", "DETAIL"),
            [(finding.what, finding.result, finding.detail) for finding in findings],
        )


_PROBE_SECONDS: Final = 5.0


async def _findings(settings: Settings) -> list[Finding]:
    sinks, *others = [await _finding(what, find, settings) for what, find in _CHECKS.items()]
    return [sinks, *(await _probes(settings) if sinks.ok else ()), *others]


async def _probes(settings: Settings) -> list[Finding]:
    """Whether each sink can be reached. The server starts without: the events of such a sink wait."""
    results = await asyncio.gather(*(probe_sink(table, seconds=_PROBE_SECONDS) for table in settings.sinks))
    return [
        Finding(
            f"sink {table['name']}",
            ok=True,
            detail="can be reached" if result.error is None else f"cannot be reached: {result.error}",
            warning=not result.ok,
        )
        for table, result in zip(settings.sinks, results, strict=True)
    ]


async def _finding(what: str, find: Callable[[Settings], Awaitable[str]], settings: Settings) -> Finding:
    try:
        return Finding(what, ok=True, detail=await find(settings))
    except Exception as error:  # Any error here prevents the start of the server.
        return Finding(what, ok=False, detail=line(error))


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


def migrate(config: Path | None, *, check: bool, new_journal: bool, json: bool) -> int:
    settings = read_settings(config)
    if new_journal and not is_sqlite(settings.database):
        raise SettingsError("--new-journal is for SQLite; with PostgreSQL the journal is in the database")
    if check:
        refuse_absent(settings)
    elif is_sqlite(settings.database):
        make_embedded(settings)
    before, after = asyncio.run(_migrate(settings.database, check=check, new_journal=new_journal))
    if json:
        echo_json({"before": before, "after": after})
    else:
        echo(f"at revision {after}, nothing to do" if before == after else f"now at revision {after}")
    return 0


async def _migrate(url: str, *, check: bool, new_journal: bool) -> tuple[str | None, str]:
    """The revisions before and after."""
    database = Database(url)
    try:
        before = await schema.current(database)
        if check:
            await schema.check(database)
            await schema.refuse_older_journal(database)
        else:
            await schema.migrate(database, new_journal=new_journal)
        return before, schema.NEWEST
    finally:
        await database.close()


def rebuild(config: Path | None, *, dry_run: bool, json: bool) -> int:
    async def work(settings: Settings, database: Database) -> int:
        rebuilt = await Rebuild(database, settings.final_conflict, writes=not dry_run).run()
        if json:
            echo_json(asdict(rebuilt))
            return 0
        differ = "differ" if dry_run else "differed and were corrected"
        echo(f"{rebuilt.messages} messages read, {rebuilt.differing} rows {differ}")
        if rebuilt.statistics:
            echo(f"{rebuilt.statistics} cells of the statistics {differ}")
        if rebuilt.forgotten:
            echo(f"{rebuilt.forgotten} messages left unchanged: some of their events are no longer stored")
        return 0

    return with_database(config, work)


def prune(config: Path | None, *, dry_run: bool, json: bool) -> int:
    async def work(settings: Settings, database: Database) -> int:
        sinks = [str(table.get("name")) for table in settings.sinks]
        pruner = Pruner(database, settings.retention.ages, clock=now, sinks=sinks)
        removed = await (pruner.count() if dry_run else pruner.prune())
        if json:
            echo_json(removed)
        else:
            echo("would be removed:" if dry_run else "removed:")
            echo_fields(removed.items(), indent="  ")
        return 0

    return with_database(config, work)


def backup(config: Path | None, folder: Path, *, json: bool) -> int:
    settings = read_settings(config)
    _refuse_postgresql(settings)
    refuse_absent(settings)
    manifest = backups.back_up(sqlite_file.file_of(settings.database), folder, now=now())
    if json:
        echo_json(manifest)
    else:
        size = sum(file.bytes for file in manifest.files.values())
        echo(f"backed up to {folder}: {size:,} bytes, callbacks up to number {manifest.journal_end}")
    return 0


def restore(config: Path | None, folder: Path, *, json: bool) -> int:
    settings = read_settings(config)
    _refuse_postgresql(settings)
    file = sqlite_file.file_of(settings.database)
    manifest = backups.check(folder)
    _make_directory(settings, file)
    replaced = backups.restore(folder, file, now=now())
    if json:
        echo_json({"restored": str(file), "replaced": [str(path) for path in replaced]})
        return 0
    echo(f"restored {file}, as it was at {rfc3339(manifest.time)}")
    if replaced:
        echo(f"the replaced files are {', '.join(map(str, replaced))}")
    return 0


def _make_directory(settings: Settings, file: Path) -> None:
    sqlite_file.refuse_network(file)
    if settings.database_url is None:
        credentials.make_data_dir(settings)
    elif not file.parent.is_dir():
        raise SettingsError(f"RECEIVER_DATABASE_URL: there is no directory {file.parent}")


def _refuse_postgresql(settings: Settings) -> None:
    if not is_sqlite(settings.database):
        raise SettingsError("backup and restore are for SQLite; with PostgreSQL use pg_dump or pg_basebackup")
