"""The problems of an installation, assessed from findings."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from receiver.explanation.installation import (
    LARGE_WAL_BYTES,
    LOW_DISK_BYTES,
    Backlog,
    DatabaseSize,
    Findings,
    Installation,
    ProcessorRecord,
    WorkerRecord,
    assess,
)
from receiver.models.sinks import SinkRead
from tests.rows import NOON

PROCESSOR = ProcessorRecord(
    lease_is_held=True,
    failing_since_at=None,
    last_error=None,
    callbacks=12,
    repeats=3,
    last_callbacks={"v2/primary": "2024-06-12T12:00:00.000000Z"},
)
SIZE = DatabaseSize(type="sqlite", bytes=4096, journal_bytes=4096, wal_bytes=0, disk_free_bytes=LOW_DISK_BYTES)
WORKER = WorkerRecord(mode="process", state="running", process=7, since=NOON, processor="working")


def sink(**more: Any) -> SinkRead:
    return SinkRead(
        **{
            "name": "crm",
            "type": "webhook",
            "paused": False,
            "cursor": 0,
            "lag": 0,
            "oldest_at": None,
            "oldest_seconds": None,
            "retries": {},
            "dead_letters": {},
            "failures": 0,
            "down_since_at": None,
            "last_success_at": None,
            "last_error": None,
            "lease_until": None,
            "is_attended": True,
            "replay": None,
            **more,
        }
    )


HEALTHY = Findings(
    backlog=Backlog(pending=0, oldest_at=None),
    processor=PROCESSOR,
    sinks=[sink()],
    database=SIZE,
    worker=WORKER,
    waiting=0,
)


def assessed(**changes: Any) -> Installation:
    return assess(replace(HEALTHY, **changes), NOON)


def test_a_healthy_installation_has_no_problems() -> None:
    installation = assessed()
    assert (installation.status, installation.processor.state, installation.problems) == ("ok", "working", [])
    assert installation.last_callbacks == PROCESSOR.last_callbacks


@pytest.mark.parametrize(("age", "state"), [(9.9, "working"), (10.1, "behind")])
def test_processor_is_behind_when_the_oldest_pending_callback_is_older_than_ten_seconds(age: float, state: str) -> None:
    installation = assessed(backlog=Backlog(pending=1200, oldest_at=NOON - timedelta(seconds=age)))
    assert installation.processor.state == state
    assert installation.journal.oldest_pending_seconds == age
    assert [problem for problem in installation.problems if "1,200 callbacks" in problem] == list(installation.problems)
    assert (installation.status == "degraded") is (state == "behind")


def test_clock_skew_gives_no_negative_age() -> None:
    backlog = Backlog(pending=1, oldest_at=NOON + timedelta(seconds=5))
    assert assessed(backlog=backlog).journal.oldest_pending_seconds == 0


def test_processor_is_stuck_when_the_database_says_so() -> None:
    record = replace(PROCESSOR, failing_since_at=NOON, last_error="no such table: events")
    installation = assessed(processor=record, worker=None)
    assert (installation.processor.state, installation.processor.error) == ("stuck", "no such table: events")
    [problem] = installation.problems
    assert "2024-06-12T12:00:00Z: no such table: events" in problem


def test_processor_is_stuck_when_its_worker_says_so_and_the_database_says_nothing() -> None:
    worker = replace(WORKER, processor="stuck", failing_since_at=NOON, error="disk I/O error")
    installation = assessed(processor=None, backlog=None, worker=worker, unreadable={"processor": "disk I/O error"})
    assert (installation.processor.state, installation.processor.failing_since) == ("stuck", NOON)
    assert len(installation.problems) == 2


def test_a_worker_that_works_again_is_believed_before_an_old_entry_of_the_database() -> None:
    record = replace(PROCESSOR, failing_since_at=NOON, last_error="database is locked")
    assert assessed(processor=record).problems == []


@pytest.mark.parametrize(
    ("worker", "state"),
    [
        (None, "missing"),
        (WorkerRecord(mode="none", state="elsewhere"), "missing"),
        (replace(WORKER, state="down", processor=None), "missing"),
        (WORKER, "working"),
    ],
)
def test_processor_is_missing_when_nobody_holds_its_lease(worker: WorkerRecord | None, state: str) -> None:
    installation = assessed(processor=replace(PROCESSOR, lease_is_held=False), worker=worker)
    assert installation.processor.state == state
    assert any("No worker processes callbacks" in problem for problem in installation.problems) is (state == "missing")


def test_missing_processor_is_one_problem_and_not_one_per_sink() -> None:
    unattended = [sink(name=name, is_attended=False) for name in ("crm", "bus")]
    record = replace(PROCESSOR, lease_is_held=False)
    assert len(assessed(processor=record, worker=None, sinks=unattended).problems) == 1
    assert len(assessed(sinks=unattended).problems) == 2


@pytest.mark.parametrize(
    ("worker", "problem"),
    [
        (replace(WORKER, state="down", restarts=4, processor=None), "restarted 4 times"),
        (replace(WORKER, state="silent"), "process 7"),
    ],
)
def test_a_worker_that_is_down_or_silent_is_a_problem(worker: WorkerRecord, problem: str) -> None:
    [said] = assessed(worker=worker).problems
    assert problem in said


def test_a_sink_that_is_down_is_a_problem_and_dead_letters_paused_and_removed_sinks_are_none() -> None:
    calm = [sink(name="a", dead_letters={"refused": 2}), sink(name="b", paused=True), sink(name="c", type=None)]
    down = sink(name="d", down_since_at=NOON, last_error="connection refused")
    [problem] = assessed(sinks=[*calm, down]).problems
    assert problem == "Sink d is down since 2024-06-12T12:00:00Z: connection refused."


def test_a_write_ahead_log_that_is_not_emptied_is_a_problem() -> None:
    assert assessed(database=replace(SIZE, wal_bytes=LARGE_WAL_BYTES)).problems == []
    [problem] = assessed(database=replace(SIZE, wal_bytes=1_200_000_000)).problems
    assert "have 1,200 MB" in problem


def test_a_full_disk_is_a_problem() -> None:
    [problem] = assessed(database=replace(SIZE, disk_free_bytes=LOW_DISK_BYTES - 1)).problems
    assert "MB left" in problem


def test_a_part_that_cannot_be_read_is_null_and_a_problem() -> None:
    installation = assess(
        Findings(
            unreadable={"journal": "no", "processor": "no", "sinks": "no such table: sinks", "database": "no"},
        ),
        NOON,
    )
    assert (installation.journal.pending, installation.processor.state, installation.sinks) == (None, None, None)
    assert "The state of the sinks cannot be read: no such table: sinks." in installation.problems
    assert (len(installation.problems), installation.status) == (4, "degraded")
