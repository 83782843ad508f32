"""The fixture `receiver_sandbox`, also in another project as its page shows."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from receiver.sandbox.scenario_writer import magic_numbers
from receiver.sandbox.settings import Fault, Rates
from receiver.testing.sandbox import Sandbox, running_sandbox
from tests.pages import blocks, page, section
from tests.processes import PATIENT
from tests.sandboxes import V1, V2, v1_message, v2_message

CONFTEST, TESTS = blocks(page("testing"), "python")
NUMBERS, RATES = (section(page("sandbox"), name) for name in ("Recipients that decide the outcome", "Rates"))
SHOP = Path(__file__).parent / "own_application" / "shop.py"


@pytest.fixture(scope="module")
def shared() -> Iterator[Sandbox]:
    """A sandbox that tests may reset."""
    with running_sandbox() as box:
        yield box


@pytest.fixture
def box(shared: Sandbox) -> Sandbox:
    shared.reset()
    return shared


def send(box: Sandbox, path: str, body: Any) -> httpx2.Response:
    return httpx2.post(box.url + path, json=body, auth=box.auth, **PATIENT)


# --- in another project


def pytest_run(home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider", *options]
    environment = {**os.environ, "PYTHONPATH": str(home)}
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with the application and the files of the page."""
    shutil.copy(SHOP, tmp_path)
    (tmp_path / "conftest.py").write_text(CONFTEST, "utf-8")
    return tmp_path


def test_documented_tests_pass(home: Path) -> None:
    (home / "test_shop.py").write_text(TESTS, "utf-8")
    # Runs first because of its name.
    (home / "test_before.py").write_text(
        "import sys\n\n\ndef test_nothing_is_loaded_yet():\n"
        "    assert not {'starlette', 'httpx2', 'uvicorn', 'receiver.sandbox'} & {*sys.modules}\n",
        "utf-8",
    )
    ran = pytest_run(home, "-q")
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    assert f"{TESTS.count('def test_') + 1} passed" in ran.stdout


@pytest.mark.slow
def test_documented_tests_fail_for_a_broken_application(home: Path) -> None:
    (home / "test_shop.py").write_text(TESTS, "utf-8")
    shop = (home / "shop.py").read_text("utf-8")
    (home / "shop.py").write_text(
        shop.replace("in self._seen:\n            return", "in self._seen:\n            pass")
    )
    ran = pytest_run(home, "-q")
    assert (ran.returncode, "1 failed" in ran.stdout) == (1, True)
    assert "test_a_reply_is_filed_once" in ran.stdout


# --- documented numbers and rates


def test_documented_magic_numbers_are_complete() -> None:
    shown = dict(re.findall(r"^\| `(\+1555209\d{4})` \| (?:`(\w+)`)?", NUMBERS, re.M))
    numbers = {each.number: each.fault or "" for each in magic_numbers() if each.number.startswith("+1555209")}
    assert shown == numbers
    codes = {each.number for each in magic_numbers()} - numbers.keys()
    assert set(re.findall(r"\+155520[12]\d{4}", NUMBERS)) <= codes


def test_documented_rates_are_complete() -> None:
    assert set(Rates.model_fields) <= set(re.findall(r"`(\w+)`", NUMBERS + RATES))


# --- the fixture


@pytest.fixture
def receiver_sandbox_settings() -> Mapping[str, Any]:
    return {"credentials": ["user:with:colons"], "messages_per_second": 0.001}


def test_receiver_sandbox_settings_can_be_overridden(receiver_sandbox: Sandbox) -> None:
    assert receiver_sandbox.credentials == "user:with:colons"
    assert receiver_sandbox.auth == ("user", "with:colons")
    assert [send(receiver_sandbox, V1, v1_message()).status_code for _ in range(2)] == [201, 429]


def test_fixture_has_no_v1_rate_limit(box: Sandbox) -> None:
    assert [send(box, V1, v1_message()).status_code for _ in range(3)] == [201] * 3


def test_number_of_a_code() -> None:
    assert (Sandbox.number(4720), Sandbox.number(720, "v1")) == ("+15552024720", "+15552010720")
    for code, api in ((720, "v2"), (4720, "v1"), (4720, "v3"), (-1, "v2")):
        with pytest.raises(ValueError):
            Sandbox.number(code, api)


@pytest.mark.parametrize("fault", Fault)
def test_fault_number_of_every_fault(fault: Fault) -> None:
    [found] = [each for each in magic_numbers() if each.fault is fault]
    assert Sandbox.fault_number(str(fault)) == found.number


def test_errors_of_the_sandbox_are_value_errors(box: Sandbox) -> None:
    with pytest.raises(ValueError, match="boredom"):
        Sandbox.fault_number("boredom")
    with pytest.raises(ValueError, match="boredom: Extra inputs are not permitted"):
        box.set_rates(boredom=1)
    with pytest.raises(ValueError, match="v1 has no group messages"):
        box.send_inbound(sender="+19195554321", to=["+19195551234", "+19195551235"], text="x", api="v1")


def test_send_inbound_returns_an_id_for_each_own_number(box: Sandbox) -> None:
    ids = box.send_inbound(
        sender="+19195554321", to=["+19195551234", "+19195551235"], text="x", others=["+19195559999"]
    )
    assert len(set(ids)) == 2
    assert {expected["recipient"] for expected in box.expected(ids[0])} >= {"+19195551234"}
    assert {expected["messageId"] for expected in box.expected()} == set(ids)


def test_set_rates_takes_python_names(box: Sandbox) -> None:
    box.set_rates(unknown_type=0.5, failed=1)
    rates = httpx2.get(f"{box.url}/sandbox/rates", **PATIENT).json()
    assert {name for name, share in rates.items() if share} == {"unknownType", "failed"}


def test_wait_until_idle_raises_timeout_error() -> None:
    with running_sandbox(outbound_url="http://127.0.0.1:1/nobody", speed=1) as box:
        send(box, V2, v2_message())
        with pytest.raises(TimeoutError, match="1 callbacks are still due"):
            box.wait_until_idle(0.05)


def test_advance_moves_the_clock_and_reset_deletes_messages(box: Sandbox) -> None:
    def now() -> datetime:
        return datetime.fromisoformat(httpx2.get(f"{box.url}/sandbox/clock", **PATIENT).json()["now"])

    before, year = now(), timedelta(days=366)
    box.advance(year.total_seconds())
    assert now() >= before + year
    send(box, V2, v2_message())
    box.reset(seed=7)
    assert (box.expected(), box.posts()) == ([], [])
    assert now() < before + year


def test_running_sandbox_works_beside_another_event_loop() -> None:
    async def use() -> list[dict[str, Any]]:
        with running_sandbox() as box:
            await asyncio.to_thread(box.wait_until_idle)
            return box.posts()

    assert asyncio.run(use()) == []


def test_running_sandbox_leaves_no_thread_and_no_open_port() -> None:
    threads = {*threading.enumerate()}
    with running_sandbox() as box:
        url = box.url
        assert {*threading.enumerate()} - threads
    assert not {*threading.enumerate()} - threads
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{url}/sandbox/idle", **PATIENT)


def test_invalid_setting_is_rejected_before_the_start() -> None:
    threads = {*threading.enumerate()}
    with pytest.raises(ValueError, match="colour"), running_sandbox(colour="red"):
        pass
    assert not {*threading.enumerate()} - threads
