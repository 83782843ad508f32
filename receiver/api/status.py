"""The state of this installation, also while the database is broken."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Final, Literal

from pydantic import Field

from receiver.api.operations import Call, Operation
from receiver.explanation.installation import (
    AlertingRecord,
    Installation,
    ProcessorState,
    ReconcilerRecord,
    ReconcilerState,
    assess,
)
from receiver.models.columns import Read, Time
from receiver.models.sinks import SinkRead, SinkState
from receiver.storage.status import StatusReader


class JournalStatus(Read):
    """The backlog of the journal. `waiting` counts callbacks that are neither committed nor answered yet."""

    pending: int | None = Field(description="callbacks that are accepted and not yet processed; counted up to 100,000")
    oldest_pending_seconds: float | None
    waiting: int | None


class ProcessorStatus(Read):
    """The state of the processor; `failingSince` and `error` where it is stuck.

    `behind`: the oldest pending callback is older than 10 s. `missing`: no worker processes this database. `callbacks`
    counts all processed callbacks, `repeats` those among them that added no event.
    """

    state: ProcessorState | None
    failing_since: Time | None
    error: str | None
    callbacks: int | None
    repeats: int | None


class WorkerStatus(Read):
    """The worker of the web process that answers; `elsewhere`: `receiver work` runs it."""

    mode: str
    state: str
    process: int | None
    restarts: int
    since: Time | None


class SinkStatus(Read):
    """The state and the backlog of one sink."""

    name: str
    state: SinkState
    lag: int
    oldest_seconds: float | None
    dead_letters: int = Field(description="counted up to 100,000")
    last_error: str | None


class DatabaseStatus(Read):
    """The size of the database; null where its server does not report it."""

    type: Literal["sqlite", "postgresql"]
    bytes: int | None
    journal_bytes: int | None
    wal_bytes: int | None
    disk_free_bytes: int | None


class ReconciliationStatus(Read):
    """The reconciliation with one API, if it is on or was: requests of this day (UTC), the latest one.

    `refused`: Bandwidth does not accept the credentials. `paused`: requests fail; `failingSince`, `error` and
    `pausedUntil` say more. `exhausted`: the budget of the day is used up. `off`: no worker queries this API.
    """

    api: str
    state: ReconcilerState
    requests_today: int
    last_request_at: Time | None
    failing_since: Time | None
    error: str | None
    paused_until: Time | None


class AlertingStatus(Read):
    """The evaluation of alerts: the firing alerts by severity, when it last ran, and since when and why it fails."""

    firing: Mapping[str, int]
    evaluated_at: Time | None
    failing_since: Time | None
    error: str | None


class InstallationStatus(Read):
    """The state of this installation. A part that cannot be read is null, and `problems` has the reason."""

    version: str
    status: Literal["ok", "degraded"]
    problems: list[str] = Field(description="one sentence for each problem")
    journal: JournalStatus
    processor: ProcessorStatus
    worker: WorkerStatus | None
    sinks: list[SinkStatus] | None
    database: DatabaseStatus | None
    reconciliation: list[ReconciliationStatus] | None
    last_callbacks: Mapping[str, str] | None = Field(
        description="when the latest processed callback was received, by version and route: `v1/primary`, `v2/fallback`"
    )
    alerts: AlertingStatus | None


def status_of(installation: Installation) -> InstallationStatus:
    """The representation of the state of an installation."""
    return InstallationStatus(
        version=version("bandwidth-receiver"),
        status=installation.status,
        problems=list(installation.problems),
        journal=JournalStatus.model_validate(installation.journal),
        processor=ProcessorStatus.model_validate(installation.processor),
        worker=WorkerStatus.model_validate(installation.worker) if installation.worker is not None else None,
        sinks=[_sink(sink) for sink in installation.sinks] if installation.sinks is not None else None,
        database=DatabaseStatus.model_validate(installation.database) if installation.database is not None else None,
        reconciliation=_reconciliation(installation.reconciliation),
        last_callbacks=installation.last_callbacks,
        alerts=_alerting(installation.alerting),
    )


def _alerting(record: AlertingRecord | None) -> AlertingStatus | None:
    if record is None:
        return None
    return AlertingStatus(
        firing=record.firing,
        evaluated_at=record.evaluated_at,
        failing_since=record.failing_since_at,
        error=record.last_error,
    )


def _sink(view: SinkRead) -> SinkStatus:
    return SinkStatus(
        name=view.name,
        state=view.state,
        lag=view.lag,
        oldest_seconds=view.oldest_seconds,
        dead_letters=sum(view.dead_letters.values()),
        last_error=view.last_error,
    )


def _reconciliation(records: Sequence[ReconcilerRecord] | None) -> list[ReconciliationStatus] | None:
    if records is None:
        return None
    return [
        ReconciliationStatus(
            api=record.api,
            state=record.state,
            requests_today=record.requests_today,
            last_request_at=record.last_request_at,
            failing_since=record.health.since,
            error=record.health.error,
            paused_until=record.health.until,
        )
        for record in records
    ]


async def get_status(call: Call) -> InstallationStatus:
    context = call.context
    if context.findings is not None:
        found = await context.findings()
    else:
        found = await StatusReader(context.database).findings(context.sink_types, clock=context.clock)
    return status_of(assess(found, context.clock()))


OPERATIONS: Final = (
    Operation(
        name="getStatus",
        path="/api/status",
        summary="Get the state of this installation: journal, processor, worker, sinks, database, reconciliation",
        description="The response takes at most 2 s, also while the database is broken.",
        handle=get_status,
        answer=InstallationStatus,
    ),
)
