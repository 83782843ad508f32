"""The worker as a supervised process: the effects of its death, a freeze, a signal or a fault."""

import asyncio
import json
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from receiver.app import Receiver
from receiver.settings import Settings
from tests.factories import v2_event
from tests.faults.load import children, freeze, is_gone, worker_of
from tests.processes import PATIENT, Server, serving, until, whole_lines
from tests.processing import drain
from tests.web import serving as serving_here

GIVEN = {"CALLBACK_CREDENTIALS": '["u:p"]', "API_TOKENS": '["token"]'}
FILE = {"name": "file", "type": "jsonl", "path": "events.jsonl", "start": "beginning"}
SETTINGS = {**GIVEN, "SINKS": json.dumps([FILE])}
BEARER = {"Authorization": "Bearer token"}
# The delay that a busy machine may add to a promised time.
BUSY_SECONDS = 20

# Raises where the worker imports it, and nowhere else.
FAULTY = """
import __main__
from receiver.sinks.memory import MemorySink

if getattr(__main__.__spec__, "name", "") == "receiver.worker":
    raise RuntimeError("no such library")


class Sink(MemorySink): ...
"""
# Holds the worker's event loop for a minute, and then for ever a thread that an orderly exit waits for.
HANGING = """
import asyncio, threading, time
from pathlib import Path
from receiver.sinks.memory import MemorySink


class Sink(MemorySink):
    async def publish(self, batch):
        Path("hangs").touch()
        if Path("block").exists():
            time.sleep(60)
        await asyncio.to_thread(threading.Event().wait)
"""


def post(server: Server, *message_ids: str) -> None:
    with httpx2.Client(base_url=server.url, auth=("u", "p"), **PATIENT) as client:
        for id_ in message_ids:
            assert client.post("/callbacks/bandwidth/v2", json=[v2_event(id_)]).status_code == 200


def numbered(name: str, count: int) -> list[str]:
    return [f"{name}-{number}" for number in range(count)]


def published(folder: Path) -> set[str]:
    return {json.loads(line)["subject"] for line in whole_lines(folder / "events.jsonl")}


def status(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = httpx2.get(f"{server.url}/api/status", headers=BEARER, **PATIENT).json()
    return found


def log(server: Server) -> list[dict[str, Any]]:
    """The log of both processes; every line must be a whole JSON object."""
    return [json.loads(line) for line in whole_lines(server.errors)]


def said(server: Server, event: str) -> list[dict[str, Any]]:
    return [line for line in log(server) if line["message"] == event]


def page(server: Server) -> dict[str, dict[str, float]]:
    """The metrics page: the samples of each family, each of which must be unique."""
    answer = httpx2.get(f"{server.url}/metrics", headers=BEARER, **PATIENT)
    assert answer.status_code == 200
    families: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.name not in families, f"{family.name} is there twice"
        families[family.name] = {sample.name + str(sample.labels or ""): sample.value for sample in family.samples}
    return families


@contextmanager
def posting(server: Server) -> Iterator[list[float]]:
    """Posts without pause, and records the duration of each response."""
    seconds: list[float] = []
    ending = Event()

    def run() -> None:
        with httpx2.Client(base_url=server.url, auth=("u", "p"), **PATIENT) as client:
            while not ending.is_set():
                answer = client.post("/callbacks/bandwidth/v2", json=[v2_event(f"p-{len(seconds)}")])
                assert answer.status_code == 200
                seconds.append(answer.elapsed.total_seconds())

    thread = Thread(target=run)
    thread.start()
    try:
        yield seconds
    finally:
        ending.set()
        thread.join()


def take(seconds: list[float], done: Callable[[], Any]) -> list[float]:
    """The durations of the responses until a condition holds, at least a hundred."""
    start = len(seconds)
    until(lambda: len(seconds) >= start + 100 and done())
    return seconds[start:]


def p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


# --- killed and frozen


def test_killed_worker_is_restarted_while_callbacks_are_answered(tmp_path: Path) -> None:
    with serving(tmp_path, settings=SETTINGS) as server:
        post(server, "first")
        until(lambda: published(tmp_path) == {"first"})
        worker = worker_of(server)
        with posting(server) as seconds:
            take(seconds, lambda: True)
            os.kill(worker, signal.SIGKILL)
            killed_at, number = time.monotonic(), len(seconds)
            successor = worker_of(server, but=worker)
            beside = take(seconds, lambda: len(published(tmp_path)) > number + 100)
            took = time.monotonic() - killed_at
        print(f"p99 {p99(beside) * 1000:.0f} ms, the longest {max(beside) * 1000:.0f} of {took * 1000:.0f} ms")
        # A response that waited for the restart would take most of that time.
        assert max(beside) < max(0.25, took / 2)
        until(lambda: published(tmp_path) == {"first", *numbered("p", len(seconds))})
        until(lambda: status(server)["worker"]["process"] == successor)
        assert status(server)["worker"]["restarts"] == 1
        [ended] = said(server, "worker ended, restarting it")
        assert (ended["exit_code"], ended["level"]) == (-signal.SIGKILL, "error")
        assert ended["after_seconds"] == 0.1
        assert server.stop() == 0


@pytest.mark.faults
def test_frozen_worker_is_reported_and_processes_all_when_it_wakes(database_url: str, tmp_path: Path) -> None:
    with serving(tmp_path, settings={**SETTINGS, "DATABASE_URL": database_url}) as server:
        post(server, "first")
        until(lambda: published(tmp_path) == {"first"})
        until(lambda: page(server)["receiver_worker_up"] == {"receiver_worker_up": 1})
        worker = worker_of(server)
        freeze(worker)
        post(server, *numbered("m", 50))
        until(lambda: page(server)["receiver_worker_up"] == {"receiver_worker_up": 0})
        assert page(server)["receiver_pending_callbacks"]["receiver_pending_callbacks"] == 50
        assert status(server)["worker"]["state"] == "silent"
        os.kill(worker, signal.SIGCONT)
        until(lambda: published(tmp_path) == {"first", *numbered("m", 50)})
        until(lambda: page(server)["receiver_worker_up"] == {"receiver_worker_up": 1})
        assert worker_of(server) == worker
        assert server.stop() == 0


@pytest.mark.faults
@pytest.mark.parametrize("busy", ["idle", "loop blocked", "thread hangs"])
def test_worker_of_killed_web_process_ends_within_ten_seconds(
    tmp_path: Path, busy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hanging.py").write_text(HANGING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    sinks = [FILE, {"name": "own", "type": "hanging:Sink", "start": "beginning"}]
    with serving(tmp_path, settings={**GIVEN, "SINKS": json.dumps([FILE] if busy == "idle" else sinks)}) as server:
        if busy == "loop blocked":
            (tmp_path / "block").touch()
        worker = worker_of(server)
        post(server, "first")
        until((tmp_path / ("events.jsonl" if busy == "idle" else "hangs")).exists)
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    killed_at = time.monotonic()
    # the new worker waits for the lock of the old one
    with serving(tmp_path, settings=SETTINGS) as server:
        post(server, "second")
        until(lambda: is_gone(worker))
        assert time.monotonic() - killed_at < 10 + BUSY_SECONDS
        until(lambda: published(tmp_path) == {"first", "second"})
        assert server.stop() == 0


@pytest.mark.faults
def test_worker_processes_what_was_accepted_while_web_process_is_frozen(tmp_path: Path) -> None:
    with serving(tmp_path, settings=SETTINGS) as server:
        post(server, "first")
        until(lambda: published(tmp_path) == {"first"})
        worker = worker_of(server)
        freeze(worker)
        post(server, *numbered("m", 50))
        freeze(server.process.pid)
        os.kill(worker, signal.SIGCONT)
        until(lambda: published(tmp_path) == {"first", *numbered("m", 50)})
        server.process.send_signal(signal.SIGCONT)
        post(server, "last")
        until(lambda: "last" in published(tmp_path))
        assert server.stop() == 0


# --- signals and faults


def test_sigterm_to_the_worker_ends_it_cleanly_and_it_is_restarted(tmp_path: Path) -> None:
    with serving(tmp_path, settings=SETTINGS) as server:
        post(server, "first")
        until(lambda: published(tmp_path) == {"first"})
        worker = worker_of(server)
        os.kill(worker, signal.SIGTERM)
        worker_of(server, but=worker)
        post(server, "second")
        until(lambda: published(tmp_path) == {"first", "second"})
        assert [line["exit_code"] for line in said(server, "worker ended, restarting it")] == [0]
        assert server.stop() == 0
        until(lambda: not children(server.process.pid))


@pytest.mark.faults
def test_worker_that_cannot_start_is_restarted_with_backoff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    sinks = [{"name": "own", "type": "faulty:Sink"}]
    with serving(tmp_path, settings={**GIVEN, "SINKS": json.dumps(sinks)}) as server:
        until(lambda: len(said(server, "worker ended, restarting it")) >= 3)
        waits = [line["after_seconds"] for line in said(server, "worker ended, restarting it")][:3]
        assert waits == sorted(set(waits))
        reason = "RECEIVER_SINKS: own: type: faulty:Sink cannot be loaded: no such library"
        assert {line["error"] for line in said(server, "worker failed")} == {reason}
        post(server, "first")
        assert status(server)["journal"]["pending"] == 1
        began = time.monotonic()
        assert server.stop() == 0
        # not after the backoff
        assert time.monotonic() - began < 10


# --- log and metrics


def test_log_and_metrics_of_both_processes_are_one_stream_and_one_page(tmp_path: Path) -> None:
    # a sink that fails again and again, so that the worker logs
    hook = {"name": "hook", "type": "webhook", "url": "http://127.0.0.1:9/", "egress_allow": ["127.0.0.0/8"]}
    settings = {**GIVEN, "SINKS": json.dumps([FILE, hook]), "LOG_LEVEL": "debug"}
    with serving(tmp_path, settings=settings) as server:
        with posting(server) as seconds:
            until(lambda: len(seconds) > 50 and len(published(tmp_path)) > 50)
            worker = worker_of(server)
            os.kill(worker, signal.SIGTERM)
            # What is published from then on, the next worker has processed.
            worker_of(server, but=worker)
            number = len(published(tmp_path))
            until(lambda: len(published(tmp_path)) > number + 50)
        until(lambda: published(tmp_path) == set(numbered("p", len(seconds))))

        def is_complete() -> bool:
            families = page(server)
            accepted = families["receiver_accepted"]["receiver_accepted_total"]
            events = families.get("receiver_events", {})
            assert accepted == len(seconds)
            # those of the worker that was stopped are not among them
            return 0 < events.get("receiver_events_total{'type': 'message.delivered'}", 0) <= accepted

        until(is_complete)
        assert server.stop() == 0
        loggers = {line["logger"] for line in log(server)}
    assert loggers >= {"receiver.serve", "receiver.supervisor"}
    assert any(name.startswith(("receiver.dispatcher", "receiver.worker")) for name in loggers)


# --- one process, or none


def test_worker_inline_does_the_same_in_one_process(tmp_path: Path) -> None:
    with serving(tmp_path, settings={**SETTINGS, "WORKER": "inline"}) as server:
        post(server, *numbered("m", 20))
        until(lambda: published(tmp_path) == set(numbered("m", 20)))
        assert children(server.process.pid) == []
        assert status(server)["worker"]["mode"] == "inline"
        families = page(server)
        assert families["receiver_accepted"]["receiver_accepted_total"] == 20
        assert families["receiver_events"]["receiver_events_total{'type': 'message.delivered'}"] == 20
        assert families["receiver_worker_up"] == {"receiver_worker_up": 1}
        assert server.stop() == 0
        assert not [line for line in log(server) if line["level"] != "info"]


@pytest.mark.slow
def test_worker_none_accepts_and_another_worker_processes(tmp_path: Path) -> None:
    with serving(tmp_path, settings={**SETTINGS, "WORKER": "none"}) as server:
        post(server, *numbered("m", 20))
        assert children(server.process.pid) == []
        assert status(server)["journal"]["pending"] == 20
        assert "receiver_events" not in page(server)
        assert not (tmp_path / "events.jsonl").exists()
        assert server.stop() == 0
    with serving(tmp_path, settings=SETTINGS) as server:
        until(lambda: published(tmp_path) == set(numbered("m", 20)))
        assert server.stop() == 0


# --- two servers on one PostgreSQL


@pytest.mark.faults
@pytest.mark.anyio
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
async def test_another_server_takes_over_processor_and_sinks(
    postgres_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    sinks = json.dumps([{**FILE, "path": str(tmp_path / "events.jsonl")}])
    settings = {**GIVEN, "SINKS": sinks, "DATABASE_URL": postgres_url}
    with serving(tmp_path / "one", settings=settings) as one:
        post(one, "first")
        until(lambda: published(tmp_path) == {"first"})
        worker = worker_of(one)
        with serving(tmp_path / "two", settings=settings) as two:
            # its worker has started, and reports
            until(lambda: "receiver_processor_stuck" in page(two))
            for pid in (one.process.pid, worker):
                os.kill(pid, number)
            halted_at = time.monotonic()
            post(two, "second")
            until(lambda: status(two)["journal"]["pending"] == 0)
            processed = time.monotonic() - halted_at
            until(lambda: "second" in published(tmp_path))
            arrived = time.monotonic() - halted_at
            print(f"{number.name}: processed after {processed:.1f} s, at the sink after {arrived:.1f} s")
            assert processed < 10 + BUSY_SECONDS
            assert arrived < 20 + BUSY_SECONDS
            for pid in (one.process.pid, worker):
                os.kill(pid, signal.SIGCONT) if number is signal.SIGSTOP else None
            if number is signal.SIGSTOP:
                until(lambda: any("lease lost" in line for line in whole_lines(one.errors)))
                post(one, "third")
                until(lambda: published(tmp_path) == {"first", "second", "third"})
                assert one.stop() == 0
            assert two.stop() == 0


@pytest.mark.faults
def test_restarted_worker_on_postgresql_takes_over_leases_without_waiting(postgres_url: str, tmp_path: Path) -> None:
    with serving(tmp_path, settings={**SETTINGS, "DATABASE_URL": postgres_url}) as server:
        post(server, "first")
        until(lambda: published(tmp_path) == {"first"})
        worker = worker_of(server)
        os.kill(worker, signal.SIGKILL)
        killed_at = time.monotonic()
        post(server, "second")
        until(lambda: published(tmp_path) == {"first", "second"})
        waited = time.monotonic() - killed_at
        print(f"at the sink after {waited:.1f} s")
        # its successor has the same name in the leases, which last 15 s
        assert waited < 10
        assert server.stop() == 0


@pytest.mark.anyio
async def test_request_waits_for_a_worker_that_starts(sqlite_url: str) -> None:
    """Those who sent the first callback look for it at once."""
    settings = Settings(database_url=sqlite_url, callback_credentials=["u:p"], api_auth="none", worker="none")
    receiver = Receiver(settings)
    async with (
        serving_here(receiver.app) as url,
        httpx2.AsyncClient(base_url=url, auth=("u", "p"), **PATIENT) as client,
    ):
        receiver.worker.is_starting = True  # type: ignore[misc]
        assert (await client.post("/callbacks/bandwidth/v2", json=[v2_event("m1")])).status_code == 200
        answer = asyncio.create_task(client.get("/api/messages"))
        # longer than a request waits for a worker that has started
        await asyncio.sleep(1.2)
        await drain(receiver.database)
        assert [message["id"] for message in (await answer).json()] == ["m1"]
