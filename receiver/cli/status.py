"""`receiver status`: the state of the installation, from its database."""

import asyncio
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final

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
from receiver.cli.context import read_settings, refuse_absent
from receiver.cli.output import echo, echo_fields, echo_json
from receiver.clock import now
from receiver.domain.cloudevents import rfc3339
from receiver.domain.counts import count_text
from receiver.explanation.installation import Findings, assess
from receiver.settings import Settings
from receiver.storage.database import Database
from receiver.storage.status import StatusReader

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
    pending, age = count_text(journal.pending), _age(journal.oldest_pending_seconds)
    return f"{pending} callbacks wait to be processed, the oldest for {age}"


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
        parts.append(f"{count_text(sink.dead_letters)} dead letters")
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
