"""How this installation is doing; answered also while the database is broken."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Final, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from receiver.api.answers import json_answer
from receiver.api.operations import Api, Operation
from receiver.api.parameters import Parameters
from receiver.api.representations import Representation, Time
from receiver.domain.installation import Installation, ProcessorState, assess
from receiver.domain.queries import SinkState, SinkView
from receiver.storage.status import StatusReader


class JournalStatus(Representation):
    """The journal's backlog; `waiting` are callbacks that are not committed yet, and not answered."""

    pending: int | None = Field(description="accepted and not yet processed; counted no further than 100,000")
    oldest_pending_seconds: float | None
    waiting: int | None


class ProcessorStatus(Representation):
    """Whether callbacks are processed, and since when and why not.

    `behind`: the oldest pending callback is older than 10 s. `missing`: no worker processes this database. Callbacks
    that brought nothing new are among `callbacks`, and are counted as `repeats` too.
    """

    state: ProcessorState | None
    failing_since: Time | None
    error: str | None
    callbacks: int | None
    repeats: int | None


class WorkerStatus(Representation):
    """The worker of the web process that answers: `elsewhere` where `receiver work` runs apart from it."""

    mode: str
    state: str
    process: int | None
    restarts: int
    since: Time | None


class SinkStatus(Representation):
    """What one sink still has before it."""

    name: str
    state: SinkState
    lag: int
    oldest_seconds: float | None
    dead_letters: int
    last_error: str | None


class DatabaseStatus(Representation):
    """What the database takes; null where its server does not say."""

    type: Literal["sqlite", "postgresql"]
    bytes: int | None
    journal_bytes: int | None
    wal_bytes: int | None
    disk_free_bytes: int | None


class Status(Representation):
    """How this installation is doing. What cannot be read is null, and `problems` says why."""

    version: str
    status: Literal["ok", "degraded"]
    problems: list[str] = Field(description="what is wrong, in sentences for people")
    journal: JournalStatus
    processor: ProcessorStatus
    worker: WorkerStatus | None
    sinks: list[SinkStatus] | None
    database: DatabaseStatus | None
    last_callbacks: Mapping[str, str] | None = Field(
        description="when the latest processed callback came, by version and route: `v1/primary`, `v2/fallback`"
    )


def status_of(installation: Installation) -> Status:
    """The state of an installation as it is shown."""
    return Status(
        version=version("bandwidth-receiver"),
        status=installation.status,
        problems=list(installation.problems),
        journal=JournalStatus.model_validate(installation.journal),
        processor=ProcessorStatus.model_validate(installation.processor),
        worker=WorkerStatus.model_validate(installation.worker) if installation.worker is not None else None,
        sinks=[_sink(sink) for sink in installation.sinks] if installation.sinks is not None else None,
        database=DatabaseStatus.model_validate(installation.database) if installation.database is not None else None,
        last_callbacks=installation.last_callbacks,
    )


def _sink(view: SinkView) -> SinkStatus:
    return SinkStatus(
        name=view.name,
        state=view.state,
        lag=view.lag,
        oldest_seconds=view.oldest_seconds,
        dead_letters=sum(view.dead_letters.values()),
        last_error=view.last_error,
    )


async def get_status(api: Api, _: Request, __: Parameters) -> Response:
    if api.findings is not None:
        found = await api.findings()
    else:
        types = {name: str(table.get("type")) for name, table in api.sinks.items()}
        found = await StatusReader(api.database).findings(types, clock=api.clock)
    return json_answer(status_of(assess(found, api.clock())))


OPERATIONS: Final = (
    Operation(
        name="getStatus",
        path="/api/status",
        summary="How this installation is doing: journal, processor, worker, sinks, database",
        description="Answered within 2 s, also while the database is broken.",
        handle=get_status,
        answer=Status,
    ),
)
