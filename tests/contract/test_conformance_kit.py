"""The conformance kit passes sound sinks and fails broken ones, in a project that is not ours."""

import fcntl
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest

from receiver.testing import SinkConformance, SinkTarget


class Report(NamedTuple):
    """The report of pytest on one test: passed, failure, error or skipped; the message; and the whole output."""

    outcome: str
    reason: str = ""
    output: str = ""


# By sink and test.
Reports = dict[tuple[str, str], Report]

PROCESSES = 4
OWN = Path(__file__).parent / "own_sinks"
TESTS = {name for name, _ in inspect.getmembers(SinkConformance, inspect.isfunction) if name.startswith("test_")}

BATCH = "test_every_event_of_a_batch_has_a_result_and_arrives"
DOWN = "test_sink_down_is_reported_and_recovers"
FROZEN = "test_timeout_is_kept_and_recovers"
RESTART = "test_stop_twice_and_start_again"
LEAKS = "test_stop_leaves_no_task_file_or_connection"
CHECK = "test_check_returns_none_and_publishes_nothing"
DOWN_AT_THE_START = "test_sink_down_at_the_start_costs_no_attempt"
DOWN_UNDER_LOAD = "test_sink_down_under_load_loses_nothing"
FROZEN_TARGET = "test_a_frozen_target_does_not_harm_other_sinks"
REFUSED = "test_a_refused_event_becomes_a_dead_letter"

# (broken sink, the test that fails for it, a part of the message)
FINDINGS = [
    ("WithoutTarget", "test_settings_model_and_limits_are_valid", "needs a fixture `target`"),
    ("TakesNone", "test_settings_model_and_limits_are_valid", "max_batch"),
    ("Forgets", BATCH, "did not arrive"),
    ("Invents", BATCH, "nobody had published"),
    ("TellsTooLittle", BATCH, "0 results for 1 events"),
    ("TellsTooMuch", BATCH, "2 results for 1 events"),
    ("TellsNothing", BATCH, "not iterable"),
    ("SaysOk", BATCH, "a str, which is not a result"),
    ("Raises", BATCH, "raised ValueError"),
    ("Hangs", BATCH, "raised TimeoutError"),
    ("Shuffles", "test_a_batch_keeps_the_order_of_each_message", "the order is broken"),
    ("Overtakes", "test_batches_arrive_in_order", "the order is broken"),
    ("WantsEachOnce", "test_a_duplicate_event_is_published", "it is here already"),
    ("WantsToBeAlone", "test_concurrent_batches_arrive", "RuntimeError"),
    ("Boasts", "test_an_event_of_max_event_bytes_arrives", "not wanted"),
    ("SplitsLines", "test_odd_text_arrives_as_one_event", "nobody had published"),
    ("Complains", CHECK, "it looks like rain"),
    ("Pings", CHECK, "nobody had published"),
    ("StartsOnce", RESTART, "threads can only be started once"),
    ("StopsOnlyWhatStarted", RESTART, "connection"),
    ("NeverStops", RESTART, "stop took longer"),
    ("LeavesTasks", LEAKS, "all tasks had ended"),
    ("LeavesFiles", LEAKS, "all files and connections were closed"),
    ("SaysPublishedToNobody", DOWN, "returned Published while the target was down"),
    ("SeesNothing", DOWN, "check returned None while the target was down"),
    ("BlamesTheEvent", DOWN, "costs the events an attempt"),
    ("Gossips", DOWN, "must not contain message text"),
    ("NeverRecovers", DOWN, "publish returned Published for the batch"),
    ("Persists", FROZEN, "goes on after it was cancelled"),
    ("Blocks", FROZEN, "blocks the event loop"),
    ("BlocksForEver", FROZEN, "blocks the event loop"),
    ("Overtakes", "test_everything_arrives_in_the_order_of_each_message", "the order is broken"),
    ("StoresEachOnce", "test_two_sinks_at_one_target_both_publish_everything", "arrived 1 times from 2 sinks"),
    ("BlamesTheEvent", DOWN_AT_THE_START, "costs events an attempt"),
    ("SeesNothing", DOWN_AT_THE_START, "costs events an attempt"),
    ("RefusesWhenDown", DOWN_UNDER_LOAD, "the breaker of the sink opened"),
    ("Persists", FROZEN_TARGET, "the attempt ended"),
    ("SwallowsPoison", REFUSED, "became a dead letter"),
    ("IsDownForPoison", REFUSED, "did not arrive"),
    ("GoesOnWithoutPoison", REFUSED, "did not wait"),
    ("Forgets", "test_an_event_above_max_event_bytes_becomes_a_dead_letter", "did not arrive"),
    ("Buffers", "test_stop_under_load_leaves_no_gap_and_no_duplicate", "did not arrive"),
    ("Buffers", "test_crash_under_load_loses_nothing", "did not arrive"),
]

# These tests of the kit, and these sinks in any test, wait for a timeout.
WAITING_TESTS = {DOWN_AT_THE_START, DOWN_UNDER_LOAD, FROZEN, FROZEN_TARGET, REFUSED}
WAITING_SINKS = {
    "Blocks",
    "BlocksForEver",
    "Buffers",
    "Forgets",
    "GoesOnWithoutPoison",
    "Hangs",
    "IsDownForPoison",
    "LeavesFiles",
    "LeavesTasks",
    "NeverRecovers",
    "NeverStops",
    "Persists",
    "RefusesWhenDown",
    "StoresEachOnce",
    "SwallowsPoison",
}

SKIPPED = {
    ("Sound", "test_a_batch_keeps_the_order_of_each_message"),
    ("Streaming", "test_concurrent_batches_arrive"),
}


@pytest.fixture(scope="module")
def reports(request: pytest.FixtureRequest, shared_folder: Path) -> Reports:
    """The reports of the selected conformance tests, which the first worker of pytest-xdist runs."""
    home = shared_folder / "own_sinks"
    home.mkdir(exist_ok=True)
    here = (item for item in request.session.items if item.path == request.path and isinstance(item, pytest.Function))
    chosen = [item.callspec.params for item in here if "reports" in item.fixturenames]
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(home.glob("*.xml")):
            _run_all(home, chosen)
    cases = (case for report in home.glob("*.xml") for case in ElementTree.parse(report).iter("testcase"))
    return {_name(case): _report(case) for case in cases}


def _run_all(home: Path, chosen: Sequence[dict[str, Any]]) -> None:
    """Runs conformance tests in a directory outside of this project, with the installed plug-in."""
    for module in OWN.glob("*.py"):
        shutil.copy(module, home)
    tests = [f"Test{one['sink']}::{one['test']}" for one in chosen]
    # These wait more than they compute.
    is_waiting = any(one["test"] in WAITING_TESTS or one["sink"] in WAITING_SINKS for one in chosen)
    processes = PROCESSES if is_waiting else 1
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(lambda part: _run(home, f"{part}.xml", tests[part::processes]), range(processes)))


def _run(home: Path, report: str, tests: Iterable[str]) -> None:
    command = [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider", f"--junit-xml={report}"]
    command += ["-o", "junit_logging=all"]
    environment = {**os.environ, "PYTHONPATH": str(home)}
    ran = subprocess.run(
        [*command, *(f"conformance.py::{test}" for test in tests)],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert (home / report).exists(), ran.stdout + ran.stderr


def _name(case: ElementTree.Element) -> tuple[str, str]:
    return case.attrib["classname"].removeprefix("conformance.Test"), case.attrib["name"].partition("[")[0]


def _report(case: ElementTree.Element) -> Report:
    problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
    if problem is None:
        return Report("passed")
    return Report(problem.tag, problem.attrib.get("message", ""), f"{problem.text}\n{case.findtext('system-out')}")


def case(sink: str, test: str, *words: str) -> Any:
    is_waiting = test in WAITING_TESTS or sink in WAITING_SINKS
    return pytest.param(sink, test, *words, id=f"{sink}-{test}", marks=[pytest.mark.slow] if is_waiting else [])


@pytest.mark.parametrize(("sink", "test", "words"), [case(*finding) for finding in FINDINGS])
def test_a_broken_sink_fails(reports: Reports, sink: str, test: str, words: str) -> None:
    report = reports[sink, test]
    assert report.outcome in ("failure", "error")
    assert words in report.reason


@pytest.mark.parametrize(
    ("sink", "test"), [case(sink, test) for sink in ("Sound", "Streaming") for test in sorted(TESTS)]
)
def test_a_sound_sink_passes(reports: Reports, sink: str, test: str) -> None:
    report = reports[sink, test]
    assert report.outcome == ("skipped" if (sink, test) in SKIPPED else "passed"), report.output


def test_every_conformance_test_fails_for_a_broken_sink() -> None:
    assert {test for _, test, _ in FINDINGS} == TESTS


@pytest.mark.parametrize("half", ["down", "up", "freeze", "thaw"])
def test_a_sink_target_with_half_a_fault_is_a_type_error(half: str) -> None:
    with pytest.raises(TypeError, match=f"{half}"):
        SinkTarget(settings={}, arrived=list, **{half: lambda: None})  # type: ignore[arg-type]


def test_the_plug_in_imports_only_itself() -> None:
    script = "import sys, pytest; a = {*sys.modules}; import receiver.testing.plugin; print(*{*sys.modules} - a)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) == {"receiver", "receiver.testing", "receiver.testing.plugin"}
