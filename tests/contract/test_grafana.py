"""deploy/grafana-dashboard.json: its form, and that a real server has every metric and label of its panels."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.test_prometheus import promtool
from tests.metrics_pages import busy_server, samples
from tests.pages import ROOT, page, section
from tests.processes import until

DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
# A label of Prometheus' own, of each target.
TARGET = {"job", "instance"}


def expressions() -> list[str]:
    return [target["expr"] for panel in PANELS for target in panel["targets"]] + [
        annotation["expr"] for annotation in DASHBOARD["annotations"]["list"] if "expr" in annotation
    ]


def selectors(expression: str) -> list[tuple[str, dict[str, str]]]:
    """The names of the metrics in an expression, each with its matchers."""
    found = re.findall(r"\b((?:receiver|process|python)_\w+)(?:\{([^}]*)\})?", expression)
    return [(name, dict(re.findall(r'(\w+)=~?"([^"]*)"', matchers))) for name, matchers in found]


def grouped(expression: str) -> set[str]:
    return {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")} - {"le"}


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, set[tuple[str, str]]]]:
    """For each series of a server its labels, with all their values."""
    with busy_server(tmp_path_factory.mktemp("dashboard")) as server:
        until(lambda: any(name == "receiver_dead_letters" for name, _ in samples(server)))
        found: dict[str, set[tuple[str, str]]] = {}
        for name, pairs in samples(server):
            found.setdefault(name, set()).update(pairs)
        yield found


# --- form


def test_dashboard_has_a_recent_schema_and_no_host_of_its_author() -> None:
    assert DASHBOARD["schemaVersion"] >= 39
    assert DASHBOARD["id"] is None
    assert DASHBOARD["uid"]
    assert DASHBOARD["title"] == "receiver"


def test_every_panel_asks_the_data_source_of_the_variable() -> None:
    assert VARIABLES["datasource"]["type"] == "datasource"
    assert VARIABLES["datasource"]["query"] == "prometheus"
    source = {"type": "prometheus", "uid": "${datasource}"}
    queries = [variable for variable in VARIABLES.values() if variable["type"] == "query"]
    targets = [target for panel in PANELS for target in panel["targets"]]
    assert [one for one in (*PANELS, *targets, *queries) if one["datasource"] != source] == []


def test_panels_have_ids_and_places_of_their_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["type"] in ("timeseries", "stat")
    references = [target["refId"] for target in panel["targets"]]
    assert len(references) == len(set(references))


# --- expressions


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_metrics_and_labels_of_an_expression_are_on_a_real_page(
    labels: dict[str, set[tuple[str, str]]], expression: str
) -> None:
    used = selectors(expression)
    assert used
    known: set[str] = set(TARGET)
    for name, matchers in used:
        assert name in labels
        names = {label for label, _ in labels[name]}
        known |= names
        for label, wanted in matchers.items():
            assert label in names | TARGET, f"{name} has no label {label}"
            if not wanted.startswith("$"):
                values = {value for key, value in labels[name] if key == label}
                assert set(wanted.split("|")) <= values, f"{name}: {wanted}"
    assert grouped(expression) <= known


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_legends_name_labels_that_are_left(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        left = grouped(target["expr"])
        named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        aggregates = re.search(r"\b(sum|max|min|count|histogram_quantile|topk)\b", target["expr"])
        assert named <= (left if aggregates else TARGET), target["expr"]


def test_every_metric_of_the_operations_page_is_shown() -> None:
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for one in expressions() for name, _ in selectors(one)}
    documented = set(re.findall(r"^\| `(\w+)", section(page("operations"), "Every metric"), re.MULTILINE))
    assert documented - shown == {"receiver_worker_build_info"}


def test_gauges_of_the_database_and_of_sinks_are_not_summed() -> None:
    rows = re.findall(
        r"^\| `(\w+).*?\| gauge \| (?:database|sink) \|", section(page("operations"), "Every metric"), re.MULTILINE
    )
    assert len(rows) == 11
    for expression in expressions():
        for name in rows:
            for before in re.findall(rf"(.{{0,40}})\b{name}\b", expression):
                assert re.search(r"(max|min)( by \([\w, ]+\))? ?\($", before), expression


def test_variables_are_those_of_the_expressions() -> None:
    used = {name for one in expressions() for name in re.findall(r"\$(\w+)", one)}
    assert used - {"__rate_interval", "__range"} == VARIABLES.keys() - {"datasource"}
    for variable in VARIABLES.values():
        if variable["type"] == "query":
            assert re.fullmatch(r'label_values\(receiver_\w+(\{job=~"\$job"\})?, \w+\)', variable["definition"])


def test_promtool_parses_every_expression(tmp_path: Path) -> None:
    """As expressions of recording rules: every version of promtool checks those."""
    records = []
    for place, expression in enumerate(expressions()):
        plain = expression.replace("$__rate_interval", "5m").replace("$__range", "6h")
        plain = re.sub(r"\$(job|instance|sink)", ".*", plain)
        assert "$" not in plain
        records.append({"record": f"dashboard:expression:{place}", "expr": plain})
    groups = {"groups": [{"name": "dashboard", "rules": records}]}
    (tmp_path / "dashboard.yml").write_text(yaml.safe_dump(groups), "utf-8")
    checked = promtool("check", "rules", tmp_path / "dashboard.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(records)} rules found" in checked.stdout


def test_dashboard_is_in_the_documentation() -> None:
    assert "grafana-dashboard.json" in section(page("deploy"), "Monitoring")
    assert "grafana-dashboard.json" in section(page("operations"), "Metrics")
