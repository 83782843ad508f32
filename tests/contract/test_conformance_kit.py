"""The conformance kit: it passes sound sinks and finds out broken ones, in a project that is not ours."""

import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

from receiver.testing import Place, SinkConformance


class Decided(NamedTuple):
    """What pytest says of one test: passed, failure, error or skipped, why, and all it printed."""

    outcome: str
    reason: str = ""
    report: str = ""


# by sink and test
Verdicts = dict[tuple[str, str], Decided]

PROCESSES = 4
OWN = Path(__file__).parent / "own_sinks"
TESTS = {name for name, _ in inspect.getmembers(SinkConformance, inspect.isfunction) if name.startswith("test_")}

BATCH = "test_every_event_of_a_batch_has_a_result_and_arrives"
DOWN = "test_it_says_that_the_place_is_down_and_recovers"
FROZEN = "test_it_gives_up_in_time_and_recovers"
RESTART = "test_it_can_be_stopped_twice_and_started_again"
LEFT = "test_it_leaves_nothing_running_or_open"
CHECK = "test_a_check_finds_nothing_wrong_and_publishes_nothing"
AT_THE_START = "test_a_place_that_is_down_at_the_start_costs_no_attempt"
UNDER_LOAD = "test_a_place_that_goes_down_under_load_loses_nothing"
NO_ANSWER = "test_a_place_that_does_not_answer_harms_nobody_else"
POISON = "test_an_event_that_the_place_refuses_harms_no_other_message"

# which test finds out which sink, and what it says
FINDINGS = [
    ("Homeless", "test_it_declares_what_it_can_be_given", "needs a fixture `place`"),
    ("TakesNone", "test_it_declares_what_it_can_be_given", "max_batch"),
    ("Forgets", BATCH, "did not arrive"),
    ("Invents", BATCH, "nobody had published"),
    ("TellsTooLittle", BATCH, "0 results for 1 events"),
    ("TellsTooMuch", BATCH, "2 results for 1 events"),
    ("TellsNothing", BATCH, "not iterable"),
    ("SaysOk", BATCH, "a str, which is not a result"),
    ("Raises", BATCH, "raised ValueError"),
    ("Hangs", BATCH, "raised TimeoutError"),
    ("Shuffles", "test_a_batch_keeps_the_order_of_each_message", "the order is broken"),
    ("Overtakes", "test_one_batch_follows_the_other", "the order is broken"),
    ("WantsEachOnce", "test_an_event_may_come_twice", "it is here already"),
    ("WantsToBeAlone", "test_as_many_batches_as_it_allows_may_be_under_way", "RuntimeError"),
    ("Boasts", "test_an_event_as_large_as_it_allows_arrives", "not wanted"),
    ("SplitsLines", "test_odd_text_arrives_as_one_event", "nobody had published"),
    ("Complains", CHECK, "it looks like rain"),
    ("Pings", CHECK, "nobody had published"),
    ("StartsOnce", RESTART, "threads can only be started once"),
    ("StopsOnlyWhatStarted", RESTART, "connection"),
    ("NeverStops", RESTART, "stop took longer"),
    ("LeavesTasks", LEFT, "all tasks had ended"),
    ("LeavesFiles", LEFT, "all files and connections were closed"),
    ("SaysPublishedToNobody", DOWN, "published where nobody is"),
    ("SeesNothing", DOWN, "check finds nothing wrong where nobody is"),
    ("BlamesTheEvent", DOWN, "costs the events an attempt"),
    ("Gossips", DOWN, "does not tell what the message said"),
    ("NeverRecovers", DOWN, "it took what it was given"),
    ("Persists", FROZEN, "goes on after it was cancelled"),
    ("Blocks", FROZEN, "blocks the event loop"),
    ("BlocksForEver", FROZEN, "blocks the event loop"),
    ("Overtakes", "test_everything_arrives_in_the_order_of_each_message", "the order is broken"),
    ("BlamesTheEvent", AT_THE_START, "costs events an attempt"),
    ("SeesNothing", AT_THE_START, "costs events an attempt"),
    ("RefusesWhenDown", UNDER_LOAD, "took the sink for down"),
    ("Persists", NO_ANSWER, "the attempt ended"),
    ("SwallowsPoison", POISON, "became a dead letter"),
    ("IsDownForPoison", POISON, "did not arrive"),
    ("GoesOnWithoutPoison", POISON, "did not wait"),
    ("Forgets", "test_an_event_too_large_for_it_becomes_a_dead_letter", "did not arrive"),
    ("Buffers", "test_a_stop_in_the_middle_leaves_no_gap_and_repeats_nothing", "did not arrive"),
    ("Buffers", "test_a_crash_in_the_middle_loses_nothing", "did not arrive"),
]

NOT_FOR_IT = {
    ("Sound", "test_a_batch_keeps_the_order_of_each_message"),
    ("Streaming", "test_as_many_batches_as_it_allows_may_be_under_way"),
}


@pytest.fixture(scope="session")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    """What pytest says in a directory of somebody else, with the plug-in as it is installed."""
    home = tmp_path_factory.mktemp("own_sinks")
    for module in OWN.glob("*.py"):
        shutil.copy(module, home)
    tests = ["TestSound", "TestStreaming", *(f"Test{sink}::{test}" for sink, test, _ in FINDINGS)]
    # they wait more than they work
    with ThreadPoolExecutor(PROCESSES) as pool:
        parts = pool.map(lambda part: _tried(home, f"{part}.xml", tests[part::PROCESSES]), range(PROCESSES))
        return {name: verdict for part in parts for name, verdict in part.items()}


def _tried(home: Path, report: str, tests: Iterable[str]) -> Verdicts:
    command = [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider", f"--junit-xml={report}"]
    command += ["-o", "junit_logging=all"]
    environment = {**os.environ, "PYTHONPATH": str(home)}
    ran = subprocess.run(
        [*command, *(f"trials.py::{test}" for test in tests)],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert (home / report).exists(), ran.stdout + ran.stderr
    return {_name(case): _verdict(case) for case in ElementTree.parse(home / report).iter("testcase")}


def _name(case: ElementTree.Element) -> tuple[str, str]:
    return case.attrib["classname"].removeprefix("trials.Test"), case.attrib["name"].partition("[")[0]


def _verdict(case: ElementTree.Element) -> Decided:
    told = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
    if told is None:
        return Decided("passed")
    return Decided(told.tag, told.attrib.get("message", ""), f"{told.text}\n{case.findtext('system-out')}")


@pytest.mark.parametrize(("sink", "test", "words"), FINDINGS, ids=[f"{sink}-{test}" for sink, test, _ in FINDINGS])
def test_a_broken_sink_is_found_out(verdicts: Verdicts, sink: str, test: str, words: str) -> None:
    verdict = verdicts[sink, test]
    assert verdict.outcome in ("failure", "error")
    assert words in verdict.reason


@pytest.mark.parametrize("test", sorted(TESTS))
@pytest.mark.parametrize("sink", ["Sound", "Streaming"])
def test_a_sound_sink_passes(verdicts: Verdicts, sink: str, test: str) -> None:
    verdict = verdicts[sink, test]
    assert verdict.outcome == ("skipped" if (sink, test) in NOT_FOR_IT else "passed"), verdict.report


def test_every_test_finds_something() -> None:
    assert {test for _, test, _ in FINDINGS} == TESTS


@pytest.mark.parametrize("half", ["down", "up", "freeze", "thaw"])
def test_a_place_that_is_made_halfway_is_an_error(half: str) -> None:
    with pytest.raises(TypeError, match=f"{half}"):
        Place(settings={}, arrived=list, **{half: lambda: None})  # type: ignore[arg-type]


def test_the_plug_in_loads_nothing_that_is_not_asked_for() -> None:
    script = "import sys, pytest; a = {*sys.modules}; import receiver.testing.plugin; print(*{*sys.modules} - a)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) == {"receiver", "receiver.testing", "receiver.testing.plugin"}
