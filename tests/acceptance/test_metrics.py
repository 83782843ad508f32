"""The page /metrics of a running server: what is there from the start, and what it counts."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from receiver.intake.endpoint import REASONS
from receiver.intake.server import Closed
from tests.factories import v2_event
from tests.processes import PATIENT, Server, receiver, serving, until

SINK = {"name": "file", "type": "jsonl", "path": "events.jsonl", "start": "beginning"}
SETTINGS = {"CALLBACK_CREDENTIALS": '["u:p"]', "METRICS_AUTH": "none", "SINKS": json.dumps([SINK])}
V2 = "/callbacks/bandwidth/v2"

Page = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, settings=SETTINGS) as server:
        until(lambda: value(page(server), "receiver_worker_build_info", version=version("bandwidth-receiver")))
        yield server


def page(server: Server) -> Page:
    text = httpx2.get(f"{server.url}/metrics", **PATIENT).text
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(names) == len(set(names)), "a metric of the web process and of its worker have one name"
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(page: Page, name: str, **labels: str) -> float | None:
    return page.get((name, frozenset(labels.items())))


def post(server: Server, path: str, *events: dict[str, Any]) -> None:
    answer = httpx2.post(server.url + path, json=list(events), auth=("u", "p"), **PATIENT)
    assert answer.status_code == 200


def test_series_are_there_with_zero_before_anything_happens(server: Server) -> None:
    until(lambda: value(page(server), "receiver_sink_held", sink="file"))
    found = page(server)
    for reason in REASONS:
        assert value(found, "receiver_refused_total", reason=reason) == 0
    for closed in Closed:
        assert value(found, "receiver_connections_closed_total", reason=closed) == 0
    for outcome in ("published", "retry", "refused", "sink_down"):
        assert value(found, "receiver_publish_attempts_total", sink="file", outcome=outcome) == 0
    until(lambda: value(page(server), "receiver_dead_letters", sink="file", reason="refused") == 0)
    found = page(server)
    assert value(found, "receiver_retries", sink="file", state="due") == 0
    assert value(found, "receiver_publish_seconds_count", sink="file") == 0
    assert value(found, "receiver_quarantined_total", reason="unreadable") == 0
    assert value(found, "receiver_events_total", type="message.failed") == 0
    assert value(found, "receiver_tag_verdicts_total", verdict="forged") == 0
    assert value(found, "receiver_failures_total", api="v2", code="4470") == 0
    for route in ("primary", "fallback"):
        assert value(found, "receiver_last_callback_timestamp_seconds", api="v1", route=route) == 0
    until(lambda: value(page(server), "receiver_prune_runs_total", result="done") == 1)
    assert value(found, "receiver_prune_runs_total", result="failed") == 0
    assert value(found, "receiver_build_info", version=version("bandwidth-receiver")) == 1


def test_use_of_the_fallback_is_seen(server: Server) -> None:
    before = time.time() - 1
    post(server, f"{V2}/fallback", v2_event("m1"))
    fallback = {"api": "v2", "route": "fallback"}
    until(lambda: value(page(server), "receiver_last_callback_timestamp_seconds", **fallback))
    stamp = value(page(server), "receiver_last_callback_timestamp_seconds", **fallback)
    assert stamp is not None
    assert before <= stamp <= time.time()
    assert value(page(server), "receiver_last_callback_timestamp_seconds", api="v2", route="primary") == 0


def test_failures_are_counted_by_listed_codes_alone(server: Server) -> None:
    failed = [
        v2_event(f"m{number}", "message-failed", errorCode=code)
        for number, code in enumerate([4470, 4470, 987654, 987653])
    ]
    post(server, V2, *failed, v2_event("m9"))
    until(lambda: value(page(server), "receiver_failures_total", api="v2", code="other") == 2)
    found = page(server)
    assert value(found, "receiver_failures_total", api="v2", code="4470") == 2
    assert value(found, "receiver_failures_total", api="v2", code="987654") is None


def test_deliveries_are_counted_by_the_status_that_they_reach(server: Server) -> None:
    post(server, V2, v2_event("m1", "message-sending"), v2_event("m2", "message-failed", errorCode=4470))
    post(server, V2, v2_event("m1"))
    # A late report changes no status.
    post(server, V2, v2_event("m1", "message-sending", time="2026-01-01T00:00:04.000Z"))
    until(lambda: value(page(server), "receiver_events_total", type="message.sending") == 2)
    found = page(server)
    reached = {status: value(found, "receiver_deliveries_total", status=status) for status in ("delivered", "failed")}
    assert reached == {"delivered": 1, "failed": 1}
    assert value(found, "receiver_deliveries_total", status="sending") == 1
    blocked = {"status": "failed", "category": "client"}
    assert value(found, "receiver_delivery_categories_total", **blocked) == 1


def test_batches_are_counted_as_batches(server: Server) -> None:
    post(server, V2, *(v2_event(f"m{number}") for number in range(200)))
    published = {"sink": "file", "outcome": "published"}
    until(lambda: value(page(server), "receiver_publish_attempts_total", **published) == 200)
    assert (value(page(server), "receiver_publish_seconds_count", sink="file") or 0) < 100
    assert value(page(server), "receiver_callback_to_sink_seconds_count", sink="file") == 200


def test_imported_callbacks_count_in_no_lag(server: Server, tmp_path: Path) -> None:
    post(server, V2, v2_event("live"))
    published = {"sink": "file", "outcome": "published"}
    until(lambda: value(page(server), "receiver_publish_attempts_total", **published) == 1)
    received_at = datetime.now(UTC) - timedelta(days=30)
    lines = [
        {
            "id": f"{round(received_at.timestamp() * 1_000_000):014x}{number:018x}",
            "receivedTime": received_at.isoformat(),
            "api": "v2",
            "route": "primary",
            "method": "POST",
            "body": json.dumps([v2_event(f"old-{number}")]),
        }
        for number in range(20)
    ]
    (tmp_path / "old.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    imported = receiver(tmp_path, "callbacks", "import", "old.jsonl", **SETTINGS)
    assert imported.returncode == 0, imported.stderr
    until(lambda: value(page(server), "receiver_publish_attempts_total", **published) == 21)
    found = page(server)
    assert value(found, "receiver_callbacks_total", result="accepted") == 21
    stamp = value(found, "receiver_last_callback_timestamp_seconds", api="v2", route="primary") or 0
    assert stamp > time.time() - 600
    for name, labels in (("processor_lag", {}), ("callback_to_sink", {"sink": "file"})):
        assert value(found, f"receiver_{name}_seconds_count", **labels) == 1
        assert (value(found, f"receiver_{name}_seconds_sum", **labels) or 0) < 120


def test_sizes_of_database_and_disk_are_measured(server: Server, tmp_path: Path) -> None:
    found = page(server)
    for part, name in (("database", "receiver.db"), ("journal", "callbacks.db")):
        size = (tmp_path / "receiver-data" / name).stat().st_size
        assert (value(found, "receiver_database_bytes", part=part) or 0) == pytest.approx(size, abs=2**20)
    logs = (tmp_path / "receiver-data").glob("*.db-wal")
    size = sum(log.stat().st_size for log in logs)
    assert (value(found, "receiver_wal_bytes") or 0) == pytest.approx(size, abs=2**20)
    assert (value(found, "receiver_disk_free_bytes", disk="database") or 0) > 0


def test_delay_of_both_event_loops_is_measured(server: Server) -> None:
    until(lambda: (value(page(server), "receiver_loop_lag_seconds_count") or 0) > 1)
    until(lambda: (value(page(server), "receiver_worker_loop_lag_seconds_count") or 0) > 1)
