"""The page /metrics of a server with every kind of traffic: its form, and what the documentation says of it."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from receiver.domain.alerts import RuleType, Severity
from receiver.domain.events import Quarantine, Status, TagVerdict
from receiver.domain.publication import DeadLetterReason, Outcome
from receiver.domain.reconciliation import Answer
from receiver.intake.endpoint import REASONS
from receiver.intake.server import Closed
from receiver.providers.registry import catalogue
from receiver.settings import Retention
from tests.metrics_pages import OPENMETRICS, SINKS, busy_server, families, samples, text
from tests.pages import page, section
from tests.processes import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with busy_server(tmp_path_factory.mktemp("metrics")) as server:
        yield server


class Documented(NamedTuple):
    type: str
    labels: frozenset[str]
    scope: str


def documented() -> dict[str, Documented]:
    """The metrics in the table of the operations page, by the names of their families."""
    rows = re.findall(
        r"^\| `(receiver_\w+?)(?:_total|_info)?(?:\{([\w,]+)\})?` \| (\w+) \| ([\w ]+) \| \S.*\|$",
        section(page("operations"), "Every metric"),
        re.MULTILINE,
    )
    return {name: Documented(kind, frozenset(filter(None, labels.split(","))), of) for name, labels, kind, of in rows}


def own(found: dict[str, Metric]) -> dict[str, Metric]:
    """The metrics that are not those of every Python process."""
    generic = ("process_", "receiver_worker_process_", "python_")
    return {name: family for name, family in found.items() if not name.startswith(generic)}


def test_every_metric_exposed_is_documented_with_its_type_and_labels(server: Server) -> None:
    shown = documented()
    exposed = own(families(server))
    assert shown.keys() == exposed.keys()
    for name, family in exposed.items():
        labels = {frozenset(sample.labels.keys() - {"le"}) for sample in family.samples}
        assert labels == {shown[name].labels}, name
        assert family.type == shown[name].type, name


def test_every_name_in_the_table_is_one_of_the_page(server: Server) -> None:
    """The names with their suffixes, as they are written in expressions."""
    names = re.findall(r"^\| `(\w+)", section(page("operations"), "Every metric"), re.MULTILINE)
    series = {name for name, _ in samples(server)}
    histograms = {name for name, family in families(server).items() if family.type == "histogram"}
    assert set(names) <= series | histograms


def test_generic_metrics_are_those_of_a_python_process(server: Server) -> None:
    generic = families(server).keys() - own(families(server)).keys()
    own_process = {name.removeprefix("receiver_worker_") for name in generic if name.startswith("receiver_worker_")}
    assert own_process | {"python_info"} == {name for name in generic if not name.startswith("receiver_worker_")}
    assert {"process_cpu_seconds", "process_resident_memory_bytes", "process_open_fds"} <= own_process


UNITLESS_GAUGES = re.compile(r"_(up|stuck|held|state|callbacks|events|retries|letters|streams|alerts|failing)$")


def test_names_follow_the_conventions_of_prometheus(server: Server) -> None:
    """Base units as suffixes, `_total` on counters alone, and a help text for each."""
    in_text = {family.name for family in text_families(text(server).text)}
    for name, family in own(families(server)).items():
        assert re.fullmatch(r"receiver(_[a-z]+)+", name)
        assert family.documentation
        assert not family.documentation.endswith(".")
        assert not re.search(r"_(total|count|sum|bucket|milliseconds|ms|minutes|kilobytes|mb)$", name)
        if family.type == "histogram":
            assert name.endswith(("_seconds", "_size")), name
        if family.type == "gauge":
            assert name.endswith(("_seconds", "_bytes")) or UNITLESS_GAUGES.search(name), name
        if name.endswith(("_seconds", "_bytes")):
            assert family.unit == name.rpartition("_")[2]
    assert not any(name.endswith("_created") for name in in_text)


def test_metrics_that_the_design_asks_for_are_there(server: Server) -> None:
    required = {
        "receiver_callbacks": {"result"},
        "receiver_ack_seconds": set(),
        "receiver_commit_batch_size": set(),
        "receiver_commit_seconds": set(),
        "receiver_refused": {"reason"},
        "receiver_duplicates": set(),
        "receiver_quarantined": {"reason"},
        "receiver_events": {"type"},
        "receiver_sink_lag_events": {"sink"},
        "receiver_sink_oldest_seconds": {"sink"},
        "receiver_publish_attempts": {"sink", "outcome"},
        "receiver_publish_seconds": {"sink"},
        "receiver_callback_to_sink_seconds": {"sink"},
        "receiver_retries": {"sink", "state"},
        "receiver_lease_lost": {"sink"},
        "receiver_breaker_state": {"sink"},
        "receiver_dead_letters": {"sink", "reason"},
        "receiver_wal_bytes": set(),
        "receiver_loop_lag_seconds": set(),
    }
    shown = documented()
    assert {name: set(shown[name].labels) for name in required} == required
    assert "receiver_database_bytes" in shown


# --- labels

CODES = {str(entry.code) for entry in catalogue()} | {"other", "none"}
VALUES: dict[str, set[str]] = {
    "sink": set(SINKS),
    "outcome": {*Outcome, "sent", "retry", "failed", "withdrawn"},
    "rule": set(RuleType),
    "severity": set(Severity),
    "answer": set(Answer),
    "status": set(Status),
    "type": {f"message.{status}" for status in Status},
    "verdict": set(TagVerdict),
    "category": {entry.category for entry in catalogue()} | {"other"},
    "api": {"v1", "v2"},
    "route": {"primary", "fallback"},
    "code": CODES,
    "state": {"due", "held", "parked"},
    "kind": {*Retention.model_fields, "alerts"},
    "part": {"database", "journal"},
    "disk": {"database"},
    "result": {"accepted", "duplicate", "quarantined", "done", "failed"},
    "reason": {*REASONS, *Closed, *Quarantine, *DeadLetterReason},
}


def test_no_label_has_a_value_that_a_stranger_chose(server: Server) -> None:
    for name, family in own(families(server)).items():
        for sample in family.samples:
            for label, value in sample.labels.items():
                assert label in ("le", "version") or value in VALUES[label], f"{name}: {label}={value}"


def test_traffic_is_counted(server: Server) -> None:
    """What the other tests look at is not only the series that are there from the start."""
    found = samples(server)
    moved = {name for (name, _), value in found.items() if value > 0}
    still = {
        "receiver_lease_lost_total",
        "receiver_superseded_total",
        "receiver_unexpected_duplicates_total",
        "receiver_log_lines_dropped_total",
        "receiver_worker_log_lines_dropped_total",
        "receiver_spans_dropped_total",
        "receiver_worker_spans_dropped_total",
        "receiver_event_streams",
        "receiver_reconciliation_requests_total",
        "receiver_reconciliation_failing",
        "receiver_notifications_total",
        "receiver_alert_evaluation_failures_total",
        "receiver_alerts",
        "receiver_processor_stuck",
        "receiver_pending_callbacks",
        "receiver_pending_oldest_seconds",
        "receiver_pruned_rows_total",
        # measured every ten seconds
        "receiver_retries",
        "receiver_dead_letters",
    }
    assert {name for name, _ in found if name.startswith("receiver_")} - moved - still == set()


# --- OpenMetrics


def test_openmetrics_is_one_page_with_one_end(server: Server) -> None:
    answer = text(server, OPENMETRICS)
    assert answer.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert answer.text.count("# EOF") == 1
    assert answer.text.endswith("\n# EOF\n")
    found = list(openmetrics_families(answer.text))
    names = [family.name for family in found]
    assert len(names) == len(set(names))
    assert {"receiver_build", "receiver_worker_build"} <= set(names)
    created = {sample.name for family in found for sample in family.samples if sample.name.endswith("_created")}
    assert "receiver_accepted_created" in created


def test_both_formats_have_the_same_series(server: Server) -> None:
    openmetrics = {
        (sample.name, frozenset(sample.labels.items()))
        for family in families(server).values()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    assert openmetrics == samples(server).keys()


@pytest.mark.parametrize(
    ("accept", "is_openmetrics"),
    [
        pytest.param("", False, id="nothing"),
        pytest.param("*/*", False, id="anything"),
        pytest.param("text/plain;version=0.0.4", False, id="text"),
        pytest.param("text/html,application/xhtml+xml,*/*;q=0.8", False, id="browser"),
        pytest.param("application/openmetrics-text", True, id="openmetrics"),
        pytest.param("Application/OpenMetrics-Text; Version=1.0.0; charset=utf-8", True, id="upper case"),
        pytest.param("application/openmetrics-text;version=2.0.0", False, id="a version that nobody here knows"),
        pytest.param("application/openmetrics-text;q=0.2,text/plain;q=0.9", False, id="text preferred"),
        pytest.param("application/openmetrics-text;q=0", False, id="refused"),
        pytest.param("application/openmetrics-text;q=x", False, id="no quality"),
        pytest.param(
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
            "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
            "text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            True,
            id="Prometheus 3",
        ),
    ],
)
def test_format_is_the_one_that_the_client_prefers(server: Server, accept: str, is_openmetrics: bool) -> None:
    answer = text(server, accept)
    expected = "application/openmetrics-text" if is_openmetrics else "text/plain; version=0.0.4"
    assert answer.headers["content-type"].startswith(expected)
    assert answer.headers["vary"] == "Accept"
    assert ("# EOF" in answer.text) is is_openmetrics


def test_promtool_finds_no_fault_with_the_page(server: Server) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("install Prometheus to check the page of metrics with promtool")
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text(server).content, capture_output=True, timeout=60, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


# --- several processes


def test_gauges_of_the_database_and_of_sinks_are_never_summed_in_the_rules() -> None:
    rules = (Path(__file__).parents[2] / "deploy/prometheus-rules.yml").read_text("utf-8")
    shared = [name for name, metric in documented().items() if metric.scope in ("database", "sink")]
    assert len(shared) == 11
    for name in shared:
        for expression in re.findall(rf"^ *expr: (.*\b{name}\b.*)$", rules, re.MULTILINE):
            assert re.search(rf"(?:max|min) by \(job[\w, ]*\) \({name}\b", expression), expression
