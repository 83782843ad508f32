"""The health of an installation: the findings about its parts, and the problems that follow from them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal

from receiver.domain import cloudevents
from receiver.domain.counts import count_text
from receiver.domain.reconciliation import HEALTHY, Answer, ApiHealth

if TYPE_CHECKING:
    # Commands that read messages start without the tables of the sinks.
    from receiver.models.sinks import SinkRead

BEHIND_SECONDS: Final = 10.0
# Below this, the write-ahead logs alone can fill the disk within minutes.
LOW_DISK_BYTES: Final = 256 * 1024 * 1024
# SQLite empties a write-ahead log after some megabytes, unless somebody still reads in it.
LARGE_WAL_BYTES: Final = 1024 * 1024 * 1024
# Longer than the longest time between two evaluations, and a takeover.
NOT_EVALUATED_SECONDS: Final = 900.0

# One request that fails is no problem of the installation: the next one follows after seconds.
FAILURES_TO_REPORT: Final = 3

ProcessorState = Literal["working", "behind", "stuck", "missing"]
Part = Literal["journal", "processor", "sinks", "database", "reconciliation", "alerts"]
ReconcilerState = Literal["working", "paused", "refused", "exhausted", "off"]


# --- findings ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The number of pending callbacks, and when the oldest of them was received."""

    pending: int
    oldest_at: datetime | None

    def oldest_seconds(self, now: datetime) -> float:
        return max(0.0, (now - self.oldest_at).total_seconds()) if self.oldest_at is not None else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorRecord:
    """The state of the processor in the database; `last_callbacks` are times by version and route."""

    lease_is_held: bool
    failing_since_at: datetime | None
    last_error: str | None
    callbacks: int
    repeats: int
    last_callbacks: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertingRecord:
    """The state of the evaluation of alerts in the database; `firing` counts alerts by severity, the worst first."""

    firing: Mapping[str, int]
    evaluated_at: datetime | None
    failing_since_at: datetime | None
    last_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """The state of a worker as its web process sees it.

    `state` is `running`, `silent` (no report for a while), `down` (being restarted) or `elsewhere` (`receiver work`).
    `processor`, `failing_since_at` and `error` come from the latest report.
    """

    mode: str
    state: str
    process: int | None = None
    restarts: int = 0
    since: datetime | None = None
    processor: str | None = None
    failing_since_at: datetime | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSize:
    """The size of the database in bytes; None if the server does not report it."""

    type: Literal["sqlite", "postgresql"]
    bytes: int | None
    journal_bytes: int | None
    wal_bytes: int | None
    disk_free_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcilerRecord:
    """The reconciliation with one API. Its lease is held while a worker queries, or waits to query, this API."""

    api: str
    lease_is_held: bool
    requests_today: int
    last_request_at: datetime | None
    is_exhausted: bool = False
    health: ApiHealth = HEALTHY

    @property
    def state(self) -> ReconcilerState:
        """`refused`: the credentials are wrong. `paused`: it failed. `exhausted`: the budget of the day is used up."""
        if not self.lease_is_held:
            return "off"
        if self.health.answer is Answer.REFUSED:
            return "refused"
        if self.health.failures:
            return "paused"
        return "exhausted" if self.is_exhausted else "working"


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The findings about each part. None: the part cannot be read (`unreadable` says why), or is not known here."""

    backlog: Backlog | None = None
    processor: ProcessorRecord | None = None
    sinks: Sequence["SinkRead"] | None = None
    database: DatabaseSize | None = None
    reconciliation: Sequence[ReconcilerRecord] | None = None
    worker: WorkerRecord | None = None
    waiting: int | None = None
    alerting: AlertingRecord | None = None
    unreadable: Mapping[Part, str] = field(default_factory=dict)


# --- health ---


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalHealth:
    """The callbacks that are accepted and not processed (`pending`), and those that wait for commit (`waiting`)."""

    pending: int | None
    oldest_pending_seconds: float | None
    waiting: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorHealth:
    """The state of the processor. `repeats` are callbacks without a new event, which are dropped."""

    state: ProcessorState | None
    failing_since: datetime | None
    error: str | None
    callbacks: int | None
    repeats: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """The health of an installation; `problems` are sentences for people."""

    journal: JournalHealth
    processor: ProcessorHealth
    worker: WorkerRecord | None
    sinks: Sequence["SinkRead"] | None
    database: DatabaseSize | None
    reconciliation: Sequence[ReconcilerRecord] | None
    last_callbacks: Mapping[str, str] | None
    alerting: AlertingRecord | None
    problems: Sequence[str]

    @property
    def status(self) -> Literal["ok", "degraded"]:
        return "degraded" if self.problems else "ok"


def assess(found: Findings, now: datetime) -> Installation:
    """The health of the installation, from what was found at `now`."""
    journal = _journal(found, now)
    processor = _processor(found, journal)
    return Installation(
        journal=journal,
        processor=processor,
        worker=found.worker,
        sinks=found.sinks,
        database=found.database,
        reconciliation=found.reconciliation,
        last_callbacks=found.processor.last_callbacks if found.processor is not None else None,
        alerting=found.alerting,
        problems=[
            *_unreadable(found),
            *_processor_problems(journal, processor),
            *_worker_problems(found.worker),
            *_sink_problems(found.sinks or (), is_processed=processor.state != "missing"),
            *_reconciliation_problems(found.reconciliation or ()),
            *disk_problems(found.database),
            *_alerting_problems(found.alerting, now),
        ],
    )


def _journal(found: Findings, now: datetime) -> JournalHealth:
    backlog = found.backlog
    return JournalHealth(
        pending=backlog.pending if backlog is not None else None,
        oldest_pending_seconds=round(backlog.oldest_seconds(now), 3) if backlog is not None else None,
        waiting=found.waiting,
    )


def _processor(found: Findings, journal: JournalHealth) -> ProcessorHealth:
    record, worker = found.processor, found.worker
    since, error = _failure(found)
    return ProcessorHealth(
        state=_state(record, worker, journal, is_stuck=since is not None or _reports(worker, "stuck")),
        failing_since=since,
        error=error,
        callbacks=record.callbacks if record is not None else None,
        repeats=record.repeats if record is not None else None,
    )


def _failure(found: Findings) -> tuple[datetime | None, str | None]:
    """Since when the processor is stuck and why: from the worker of this process, else from the database."""
    worker, record = found.worker, found.processor
    if worker is not None and _reports(worker, "stuck"):
        return worker.failing_since_at, worker.error
    # A working worker has cleared the failure in the database, or is about to.
    if record is None or _reports(worker, "working"):
        return None, None
    return record.failing_since_at, record.last_error


def _state(
    record: ProcessorRecord | None, worker: WorkerRecord | None, journal: JournalHealth, *, is_stuck: bool
) -> ProcessorState | None:
    if is_stuck:
        return "stuck"
    is_running = worker is not None and worker.state == "running"
    if record is not None and not record.lease_is_held and not is_running:
        return "missing"
    if journal.oldest_pending_seconds is not None and journal.oldest_pending_seconds > BEHIND_SECONDS:
        return "behind"
    return "working" if record is not None or _reports(worker, "working") else None


def _reports(worker: WorkerRecord | None, processor: str) -> bool:
    return worker is not None and worker.state == "running" and worker.processor == processor


# --- problems ---

_PARTS: Final[Mapping[Part, str]] = {
    "journal": "The journal's backlog",
    "processor": "The state of the processor",
    "sinks": "The state of the sinks",
    "database": "The size of the database",
    "reconciliation": "The state of reconciliation",
    "alerts": "The state of the alerts",
}


def _unreadable(found: Findings) -> Iterator[str]:
    for part, reason in found.unreadable.items():
        yield f"{_PARTS[part]} cannot be read: {reason}."


def _processor_problems(journal: JournalHealth, processor: ProcessorHealth) -> Iterator[str]:
    if processor.state == "stuck":
        since = f" since {_time(processor.failing_since)}" if processor.failing_since is not None else ""
        yield f"Callbacks cannot be processed{since}: {processor.error or 'the error is not known'}."
    elif processor.state == "missing":
        yield "No worker processes callbacks: start receiver serve, or receiver work."
    elif processor.state == "behind":
        yield (
            f"The processor is behind: {count_text(journal.pending or 0)} callbacks wait to be processed, "
            f"the oldest for {journal.oldest_pending_seconds:.0f} s."
        )


def _worker_problems(worker: WorkerRecord | None) -> Iterator[str]:
    if worker is None:
        return
    if worker.state == "down":
        yield f"The worker is not running; it was restarted {worker.restarts} times."
    elif worker.state == "silent":
        yield f"The worker (process {worker.process}) does not report."


def _alerting_problems(record: AlertingRecord | None, now: datetime) -> Iterator[str]:
    """What keeps alerts from being evaluated. An alert that fires is no problem of the installation by itself."""
    if record is None:
        return
    if record.failing_since_at is not None:
        since = _time(record.failing_since_at)
        yield f"Alerts cannot be evaluated since {since}: {record.last_error or 'the error is not known'}."
    elif record.evaluated_at is not None and (now - record.evaluated_at).total_seconds() > NOT_EVALUATED_SECONDS:
        yield f"Alerts were last evaluated at {_time(record.evaluated_at)}: no worker evaluates them."


def _sink_problems(sinks: Sequence["SinkRead"], *, is_processed: bool) -> Iterator[str]:
    for sink in sinks:
        if sink.state == "down":
            since = f" since {_time(sink.down_since_at)}" if sink.down_since_at is not None else ""
            yield f"Sink {sink.name} is down{since}: {sink.last_error or 'the error is not known'}."
        elif sink.state == "unattended" and is_processed:
            yield f"No worker publishes to sink {sink.name}."


def _reconciliation_problems(records: Sequence[ReconcilerRecord]) -> Iterator[str]:
    for record in records:
        error, since = record.health.error or "the error is not known", record.health.since
        time = f" since {_time(since)}" if since is not None else ""
        if record.state == "refused":
            setting = f"RECEIVER_RECONCILIATION__{record.api.upper()}_CREDENTIALS"
            yield (
                f"Bandwidth refuses reconciliation with {record.api}{time} ({error}): correct {setting}, and restart "
                "the receiver."
            )
        elif record.state == "paused" and record.health.failures >= FAILURES_TO_REPORT:
            yield f"Reconciliation with {record.api} fails{time}: {error}."


def disk_problems(database: DatabaseSize | None) -> Iterator[str]:
    """What is wrong with the space that the database takes, and has left."""
    free = database.disk_free_bytes if database is not None else None
    if free is not None and free < LOW_DISK_BYTES:
        yield f"The disk of the database has {free // 1_000_000} MB left."
    log_bytes = database.wal_bytes if database is not None else None
    if log_bytes is not None and log_bytes > LARGE_WAL_BYTES:
        yield (
            f"The write-ahead logs of the database have {log_bytes // 1_000_000:,} MB: a reader, or a backup under "
            "way, prevents that they are emptied."
        )


def _time(moment: datetime) -> str:
    """A time in a sentence, in whole seconds."""
    return cloudevents.rfc3339(moment.replace(microsecond=0))
