"""The alerts of deploy/prometheus-rules.yml: what they are about, and when they fire, as promtool tries it."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from receiver.metrics import WebMetrics, WorkerMetrics
from tests.pages import ROOT, page, section

RULES_FILE = ROOT / "deploy/prometheus-rules.yml"
RULES: list[dict[str, Any]] = yaml.safe_load(RULES_FILE.read_text("utf-8"))["groups"][0]["rules"]
TRIALS = Path(__file__).with_name("prometheus")


def metrics_of(text: str) -> set[str]:
    return set(re.findall(r"\breceiver_[a-z_]+\b", text))


def known_metrics() -> set[str]:
    """The names of all series of web process and worker."""
    web, worker = WebMetrics(), WorkerMetrics(own_process=True)
    return {"receiver_wal_bytes"} | {
        name
        for metrics in (web, worker)
        for family in metrics.registry.collect()
        for name in (
            family.name,
            *(f"{family.name}_{suffix}" for suffix in ("total", "bucket", "sum", "count", "info")),
        )
    }


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_is_about_metrics_that_exist_and_says_what_is_wrong(rule: dict[str, Any]) -> None:
    used = metrics_of(rule["expr"])
    assert used
    assert used <= known_metrics()
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"].endswith(".")
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}


def test_alerts_have_names_of_their_own() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names))


def test_alerts_are_those_that_the_operations_page_names() -> None:
    table = "".join(re.findall(r"^\| `receiver_[a-z_]+.*$", section(page("operations"), "Alerts"), re.MULTILINE))
    alerted = {name.removesuffix("_bucket") for rule in RULES for name in metrics_of(rule["expr"])}
    assert metrics_of(table) == alerted - {"receiver_sink_held"}


def test_every_aggregation_tells_installations_apart() -> None:
    aggregations = [
        inner
        for rule in RULES
        for inner in re.findall(r"\b(?:sum|max|min|count)\b *(?:by *\(([^)]*)\))?", rule["expr"])
    ]
    assert len(aggregations) > 20
    assert [labels for labels in aggregations if "job" not in labels.split(", ")] == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_labels_of_a_summary_are_those_of_the_expression(rule: dict[str, Any]) -> None:
    named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    left = set(", ".join(re.findall(r"by \(([^)]*)\)", rule["expr"])).split(", "))
    # Without an aggregation every label of the target is left.
    assert named <= (left if left != {""} else {"job", "instance"})


def checks(file: str) -> list[dict[str, Any]]:
    document = yaml.safe_load((TRIALS / file).read_text("utf-8"))
    return [check for test in document["tests"] for check in test["alert_rule_test"]]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_is_tried_in_trouble_and_in_a_normal_day(rule: dict[str, Any]) -> None:
    trouble = [bool(check["exp_alerts"]) for check in checks("trouble.yml") if check["alertname"] == rule["alert"]]
    assert {*trouble} == {True, False}
    normal = [check["exp_alerts"] for check in checks("normal_day.yml") if check["alertname"] == rule["alert"]]
    assert len(normal) >= 5
    assert not any(normal)


def test_series_of_the_normal_day_are_those_of_the_rules() -> None:
    """An alert about a series that is not there would be silent for the wrong reason."""
    text = (TRIALS / "normal_day.yml").read_text("utf-8")
    used = {name for rule in RULES for name in metrics_of(rule["expr"])}
    assert used - metrics_of(text) == set()


def promtool(*arguments: str | Path, folder: Path = TRIALS) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("install Prometheus to check rules and dashboard with promtool")
    return subprocess.run(
        ["promtool", *arguments], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


def test_promtool_accepts_the_rules() -> None:
    checked = promtool("check", "rules", RULES_FILE)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("file", ["trouble.yml", "normal_day.yml"])
def test_alerts_fire_in_trouble_and_are_silent_in_a_normal_day(file: str) -> None:
    tried = promtool("test", "rules", file)
    assert tried.returncode == 0, tried.stdout + tried.stderr
