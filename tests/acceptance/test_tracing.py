"""`receiver serve` with traces: they are whole across its two processes, and no collector can disturb it."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.brokers.own import free_port
from tests.collectors import Collector, collector
from tests.factories import v2_event
from tests.processes import PATIENT, Server, receiver, serving, until, whole_lines

CANARIES = ("canary text", "canary-tag", "+15550001", "canary-password", "canary-key")


@pytest.fixture
def collecting() -> Iterator[Collector]:
    with collector() as running:
        yield running


def settings(folder: Path, endpoint: str | None, **more: str) -> dict[str, str]:
    sinks = [{"name": "file", "type": "jsonl", "path": str(folder / "events.jsonl")}]
    exported = {"TRACING__EXPORTER": "otlp", "TRACING__ENDPOINT": endpoint} if endpoint else {}
    return {
        "CALLBACK_CREDENTIALS": json.dumps(["user:canary-password"]),
        "API_AUTH": "none",
        "METRICS_AUTH": "none",
        "SINKS": json.dumps(sinks),
        "LOG_FORMAT": "json",
        **exported,
        **more,
    }


def post(server: Server, number: int = 1) -> float:
    """Posts a callback and returns the seconds until its answer."""
    event = v2_event(f"m{number}", message={"text": "canary text", "tag": "canary-tag"})
    started = time.monotonic()
    url = f"{server.url}/callbacks/bandwidth/v2"
    assert httpx2.post(url, json=[event], auth=("user", "canary-password"), **PATIENT).status_code == 200
    return time.monotonic() - started


def metric(server: Server, name: str) -> float:
    page = httpx2.get(f"{server.url}/metrics", **PATIENT).text
    return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(f"{name} "))


def log_lines(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in whole_lines(server.errors)]


def test_a_trace_is_whole_across_web_process_and_worker(tmp_path: Path, collecting: Collector) -> None:
    headers = json.dumps({"api-key": "canary-key"})
    with serving(tmp_path, settings=settings(tmp_path, collecting.url, TRACING__HEADERS=headers)) as server:
        post(server)
        until(lambda: len(collecting.spans) >= 3)
        assert server.stop() == 0
        spans = {span.name: span for span in collecting.spans}
    callback, process, publish = (
        spans[name] for name in ("POST /callbacks/bandwidth/v2", "process callbacks", "publish file")
    )
    assert len({span.trace for span in collecting.spans}) == 1
    assert (callback.parent, process.parent, publish.parent) == ("", callback.id, process.id)
    assert {span.resource["service.name"] for span in collecting.spans} == {"receiver"}
    web, worker, dispatcher = (span.resource["service.instance.id"] for span in (callback, process, publish))
    assert web != worker == dispatcher
    assert collecting.headers[0]["api-key"] == "canary-key"
    [line] = whole_lines(tmp_path / "events.jsonl")
    assert json.loads(line)["traceparent"] == f"00-{publish.trace}-{publish.id}-01"
    everything = b"".join(collecting.bodies)
    assert [canary for canary in CANARIES if canary.encode() in everything] == []


def test_the_last_spans_are_exported_at_the_stop(tmp_path: Path, collecting: Collector) -> None:
    file = tmp_path / "events.jsonl"
    with serving(tmp_path, settings=settings(tmp_path, collecting.url, TRACING__SERVICE_NAME="sms")) as server:
        for number in range(20):
            post(server, number)
        until(lambda: len(whole_lines(file)) == 20)
        assert server.stop() == 0
    assert len(collecting.spans) == 60
    assert {span.resource["service.name"] for span in collecting.spans} == {"sms"}


@pytest.mark.parametrize(
    "trouble", ["refuses", *(pytest.param(trouble, marks=pytest.mark.slow) for trouble in ("down", "hangs"))]
)
def test_a_collector_in_trouble_disturbs_nothing(tmp_path: Path, collecting: Collector, trouble: str) -> None:
    file = tmp_path / "events.jsonl"
    collecting.status = 0 if trouble == "hangs" else 403
    endpoint = f"http://127.0.0.1:{free_port()}" if trouble == "down" else collecting.url
    with serving(tmp_path, settings=settings(tmp_path, endpoint)) as server:
        seconds = [post(server, number) for number in range(30)]
        until(lambda: len(whole_lines(file)) == 30)
        if trouble == "refuses":
            until(lambda: metric(server, "receiver_spans_dropped_total") > 0)
            until(lambda: metric(server, "receiver_worker_spans_dropped_total") > 0)
        started = time.monotonic()
        assert server.stop(signal.SIGTERM) == 0
        # The worker stops within the stop of the web process: both wait two seconds for the export.
        assert time.monotonic() - started < 15
        assert max(seconds) < 5
    lines = [line for line in log_lines(server) if line["level"] in ("warning", "error")]
    lines = [line for line in lines if line["message"] != "authentication is switched off"]
    assert {line["message"] for line in lines} <= {"spans could not be exported"}, lines
    # One for each process, whatever the number of tries.
    assert len(lines) <= 2
    if trouble != "hangs":
        assert lines, "nobody was told"


def test_the_variables_of_opentelemetry_name_the_collector(
    tmp_path: Path, collecting: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collecting.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=of-the-environment")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "sms-of-the-environment")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    with serving(tmp_path, settings=settings(tmp_path, None, TRACING__EXPORTER="otlp")) as server:
        post(server)
        until(lambda: len(collecting.spans) >= 3)
    assert {span.resource["service.name"] for span in collecting.spans} == {"sms-of-the-environment"}
    assert collecting.headers[0]["api-key"] == "of-the-environment"


def test_the_provider_of_an_application_prevents_the_start_and_makes_no_file(tmp_path: Path) -> None:
    ended = receiver(tmp_path, "serve", "--port", "0", TRACING__EXPORTER="application")
    assert ended.returncode == 2
    assert b"RECEIVER_TRACING__EXPORTER: application reaches no worker process" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_settings_are_shown_without_the_headers_of_the_collector(tmp_path: Path) -> None:
    ended = receiver(tmp_path, "settings", TRACING__HEADERS='{"api-key": "canary-key"}')
    assert ended.returncode == 0
    assert b"RECEIVER_TRACING__HEADERS" in ended.stdout
    assert b"canary-key" not in ended.stdout
