"""`receiver sandbox` as a process."""

import json
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from receiver.sandbox.scenario_writer import fault_number
from receiver.sandbox.settings import Fault, Rates, SandboxSettings
from tests.pages import blocks, page, section
from tests.processes import PATIENT, foreground, is_open, receiver, serving, until
from tests.sandboxes import V1, V2, v1_message, v2_message

NEEDS_CURL = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl: what is printed is for it")


def post(url: str, body: Any, *credentials: str) -> httpx2.Response:
    auth = (credentials[0], credentials[1]) if credentials else ("token", "secret")
    return httpx2.post(url, json=body, auth=auth, **PATIENT)


def get(url: str) -> Any:
    return httpx2.get(url, **PATIENT).json()


def shell(script: str, folder: Path, **variables: str) -> str:
    ran = subprocess.run(
        ["sh", "-ec", script.replace("curl ", "curl -sSf ")],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@contextmanager
def waiting_until_idle(url: str) -> Iterator[socket.socket]:
    """A connection with a request that waits until the sandbox is idle."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as waiting:
        waiting.sendall(b"GET /sandbox/idle?wait=25 HTTP/1.1\r\nHost: sandbox\r\n\r\n")
        # The sandbox answers this later request, so it has read the first one.
        get(f"{url}/sandbox/clock")
        yield waiting


@NEEDS_CURL
def test_printed_examples_work(tmp_path: Path) -> None:
    with foreground(tmp_path, "sandbox", "--port", "0", "--speed", "1000") as running:
        url = running.address("sandbox")
        lines = [line.strip() for line in running.text().splitlines() if line.startswith("  curl ")]
        v2, v1, inbound, posts, numbers = (shell(line, tmp_path) for line in lines)
        assert json.loads(v2)["direction"] == "out"
        assert "location: /v1/users/u-1/messages/m-" in v1.lower()
        assert len(json.loads(inbound)["messages"]) == 1
        assert isinstance(json.loads(posts), list)
        assert len(json.loads(numbers)) > 100
        assert {expected["api"] for expected in get(f"{url}/sandbox/expected")} == {"v1", "v2"}
        assert "set --outbound-url" in running.text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signal_stops_the_sandbox(tmp_path: Path, number: signal.Signals) -> None:
    with foreground(tmp_path, "sandbox", "--port", "0") as running:
        url = running.address("sandbox")
        assert post(url + V2, v2_message()).status_code == 202
        assert running.stop(number) == 0
        assert running.errors.read_text("utf-8") == ""
        assert not is_open(url)


def test_client_that_disconnects_within_its_body_is_no_error(tmp_path: Path) -> None:
    with foreground(tmp_path, "sandbox", "--port", "0") as running:
        url = httpx2.URL(running.address("sandbox"))
        head = "POST /sandbox/inbound HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"
        with socket.create_connection((url.host, url.port or 0)) as connection:
            connection.sendall(head.encode())
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
        assert running.stop() == 0
        assert running.errors.read_text("utf-8") == ""


def test_idle_wait_does_not_delay_the_stop(tmp_path: Path) -> None:
    with foreground(tmp_path, "sandbox", "--port", "0", "--outbound-url", "http://127.0.0.1:1/") as running:
        url = running.address("sandbox")
        assert post(url + V2, v2_message(to=fault_number(Fault.LATE))).status_code == 202
        with waiting_until_idle(url) as waiting:
            assert running.stop() == 0
            assert waiting.recv(4096).startswith(b"HTTP/1.1 200 ")
        assert running.errors.read_text("utf-8") == ""


def test_options_set_the_settings(tmp_path: Path) -> None:
    options = ["--credentials", "me:hunter2", "--credentials", "you:hunter3", "--no-rate-limit", "--speed", "1000"]
    rates = ["--rate", "failed=0.25", "--rate", "unknownType=1"]
    with (
        socket.create_server(("127.0.0.1", 0)) as nobody,
        foreground(
            tmp_path,
            "sandbox",
            *("--port", "0", "--outbound-url", f"http://u:hunter4@127.0.0.1:{nobody.getsockname()[1]}/"),
            *options,
            *rates,
        ) as running,
    ):
        url = running.address("sandbox")
        assert post(url + V1, v1_message()).status_code == 401
        for user in (("me", "hunter2"), ("you", "hunter3")):
            assert post(url + V1, v1_message(), *user).status_code == 201
        assert post(url + V2, v2_message(), "me", "hunter2").status_code == 202
        given = {name: share for name, share in get(f"{url}/sandbox/rates").items() if share}
        assert given == {"failed": 0.25, "unknownType": 1}
        assert get(f"{url}/sandbox/idle")["idle"] is False
        assert "hunter" not in running.text()
        assert "TOKEN:SECRET" in running.text()
        assert "--outbound-url" not in running.text()


def test_default_v1_rate_limit_is_one_message_per_second(tmp_path: Path) -> None:
    with foreground(tmp_path, "sandbox", "--port", "0") as running:
        url = running.address("sandbox")
        assert post(url + V1, v1_message()).status_code == 201
        # On a busy machine two requests may be more than a second apart.
        until(lambda: post(url + V1, v1_message()).status_code == 429)


def test_host_that_other_machines_reach_needs_remote_clients(tmp_path: Path) -> None:
    opened = ["sandbox", "--port", "0", "--host", "0.0.0.0"]
    refused = receiver(tmp_path, *opened)
    assert (refused.returncode, refused.stdout, refused.stderr.count(b"\n")) == (2, b"", 1)
    assert b"Invalid value for --host: other machines can reach 0.0.0.0" in refused.stderr
    assert b"--remote-clients" in refused.stderr
    with foreground(tmp_path, *opened, SANDBOX_REMOTE_CLIENTS="1") as running:
        port = urlsplit(running.address("sandbox")).port
        assert get(f"http://127.0.0.1:{port}/sandbox/posts") == []
        assert running.errors.read_text("utf-8") == ""


# What another language has to be able to set, and two values other than the default: by option, and by variable.
GIVEN: dict[str, tuple[str, str]] = {
    "credentials": ("me:hunter2", "you:hunter3"),
    "users": ("u-1", "u-2"),
    "numbers": ("+19195551212", "+19195551213"),
    "application_ids": ("app-1", "app-2"),
    "remote_clients": ("true", "true"),
    "outbound_url": ("http://127.0.0.1:1/a", "http://127.0.0.1:1/b"),
    "inbound_url": ("http://127.0.0.1:1/a", "http://127.0.0.1:1/b"),
    "callback_credentials": ("user:hunter2", "user:hunter3"),
    "callback_types": ("message-failed", "message-read"),
    "callback_timeout": ("2", "2.5"),
    "v1_inbound_url": ("http://127.0.0.1:1/a", "http://127.0.0.1:1/b"),
    "v1_inbound_fallback_url": ("http://127.0.0.1:1/a", "http://127.0.0.1:1/b"),
    "v1_inbound_method": ("get", "get"),
    "v1_inbound_timeout": ("1000", "2000"),
    "remote_callbacks": ("true", "true"),
    "public_url": ("http://sms.example.com", "https://sms.example.com"),
    "seed": ("7", "8"),
    "speed": ("60", "0.5"),
    "messages_per_second": ("0", "2"),
    "rates": ("failed=0.25", "unknownType=1"),
    "mms_receipts": ("false", "false"),
    "sent_events": ("true", "true"),
    "connections": ("2", "3"),
    "max_messages": ("2", "3"),
    "max_posts": ("2", "3"),
}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[SandboxSettings]:
    """The settings of the sandboxes that the command would have started."""
    settings: list[SandboxSettings] = []

    async def serve(given: SandboxSettings, *_: Any) -> None:
        settings.append(given)

    monkeypatch.setattr("receiver.cli.sandbox._serve", serve)
    return settings


def as_given(name: str, text: str) -> SandboxSettings:
    """The settings with one value, as the fixture gets them."""
    value: Any = text
    if name == "rates":
        value = dict([text.split("=")])
    elif name in ("credentials", "users", "numbers", "application_ids", "callback_types"):
        value = [text]
    return SandboxSettings(**{name: value})


@pytest.mark.parametrize("name", SandboxSettings.model_fields)
def test_every_setting_of_the_fixture_is_an_option_and_a_variable(
    name: str, started: list[SandboxSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    from receiver import cli

    option, (first, second) = "--rate" if name == "rates" else f"--{name.replace('_', '-')}", GIVEN[name]
    flags = {"true": [option], "false": [f"--no-{option.removeprefix('--')}"]}
    assert cli.main(["sandbox", "--port", "0", *flags.get(first, [option, first])]) == 0
    monkeypatch.setenv(f"SANDBOX_{name.upper()}", second)
    assert cli.main(["sandbox", "--port", "0"]) == 0
    # An option wins over the variable.
    assert cli.main(["sandbox", "--port", "0", *flags.get(first, [option, first])]) == 0
    assert started == [as_given(name, first), as_given(name, second), as_given(name, first)]
    monkeypatch.setenv(f"SANDBOX_{name.upper()}", "")
    assert cli.main(["sandbox", "--port", "0"]) == 0
    assert started[-1] == SandboxSettings()


def test_lists_take_several_values_and_none(started: list[SandboxSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    from receiver import cli

    monkeypatch.setenv("SANDBOX_NUMBERS", "+19195551212 +19195551213")
    monkeypatch.setenv("SANDBOX_RATES", "failed=0.5 batch=1")
    assert cli.main(["sandbox", "--port", "0", "--credentials", "none", "--users", "u-1", "--users", "u-2"]) == 0
    [settings] = started
    assert settings.numbers == ("+19195551212", "+19195551213")
    assert (settings.rates.failed, settings.rates.batch) == (0.5, 1)
    assert (settings.credentials, settings.users) == ((), ("u-1", "u-2"))


def test_unknown_variable_is_refused_and_links_of_kubernetes_are_not(
    started: list[SandboxSettings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from receiver import cli

    monkeypatch.setenv("SANDBOX_PORT", "tcp://10.0.0.1:8090")
    monkeypatch.setenv("SANDBOX_SERVICE_HOST", "10.0.0.1")
    assert cli.main(["sandbox", "--port", "0"]) == 0
    monkeypatch.setenv("SANDBOX_NUMBER", "+19195551212")
    assert cli.main(["sandbox", "--port", "0"]) == 2
    assert "SANDBOX_NUMBER is not a setting of the sandbox" in capsys.readouterr().err
    assert len(started) == 1


def test_numbers_and_applications_are_refused_as_set_by_variables(tmp_path: Path) -> None:
    """What a test in another language needs: the documented refusals."""
    variables = {"SANDBOX_NUMBERS": "+19195551212", "SANDBOX_APPLICATION_IDS": "app-1", "SANDBOX_USERS": "u-1"}
    with foreground(tmp_path, "sandbox", "--port", "0", **variables) as running:
        url = running.address("sandbox")
        refused = post(url + V1, v1_message(**{"from": "+19195550000"}))
        assert (refused.status_code, refused.json()["code"]) == (401, "number-access-denied")
        assert post(url + V2, v2_message(applicationId="app-2")).status_code == 400
        assert post(url + V2.replace("u-1", "u-2"), v2_message()).status_code == 401
        assert post(url + V2, v2_message()).status_code == 202


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--outbound-url", "--inbound-url", "--v1-inbound-url"])
def test_warning_for_a_url_on_another_machine(tmp_path: Path, option: str) -> None:
    far, near = "http://u:hunter2@sms.example.com/", "http://localhost:1/"
    warning = f"receiver: {option} is not on this machine: callbacks are not sent there without --remote-callbacks\n"
    for arguments, errors in (([far], warning), ([far, "--remote-callbacks"], ""), ([near], "")):
        with foreground(tmp_path, "sandbox", "--port", "0", option, *arguments) as running:
            running.address("sandbox")
            assert running.errors.read_text("utf-8") == errors


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--rate", "failed"], "--rate: must be NAME=SHARE"),
        (["--rate", "failed=2"], "--rate: failed: Input should be less than or equal to 1"),
        (["--rate", "boredom=1"], "--rate: boredom: Extra inputs are not permitted"),
        (
            ["--rate", "failed=0.6", "--rate", "unconfirmed=0.6"],
            "--rate: the sum of failed and unconfirmed must be",
        ),
        (["--outbound-url", "u:hunter2@nowhere"], "--outbound-url: must begin with http"),
        (["--callback-credentials", "hunter2"], "--callback-credentials: must be USER:PASSWORD"),
        (["--credentials", "hunter2"], "--credentials: must be USER:PASSWORD"),
        (["--speed", "0"], "--speed: Input should be greater than 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_option_is_one_line_and_exit_code_2(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from receiver import cli

    assert cli.main(["sandbox", "--port", "0", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"receiver: Invalid value for {line}")
    assert "hunter2" not in err


def test_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = receiver(tmp_path, "sandbox", "--port", str(port))
    line = f"receiver: cannot listen on 127.0.0.1 port {port}: Address already in use\n"
    assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", line)


def test_help_lists_every_rate(tmp_path: Path) -> None:
    text = receiver(tmp_path, "sandbox", "--help").stdout.decode()
    assert [name for name in Rates().model_dump(by_alias=True) if name not in text] == []


@NEEDS_CURL
def test_documented_round_trip_works(tmp_path: Path) -> None:
    start, send = blocks(section(page("sandbox"), "Try it"), "sh")
    pair = "bandwidth:a-secret"
    with serving(tmp_path, settings={"CALLBACK_CREDENTIALS": json.dumps([pair])}) as server:
        [_, command, *options] = start.replace("http://127.0.0.1:8080", server.url).split()
        assert options[-1] == '"$USER_PASSWORD"'
        box_folder = tmp_path / "box"
        box_folder.mkdir()
        with foreground(box_folder, command, *options[:-1], pair, "--port", "0", "--speed", "100") as running:
            url = running.address("sandbox")
            script = send.replace("http://127.0.0.1:8090", url).replace(".venv/bin/receiver messages list", "")
            shell(script.replace("127.0.0.1:8080", server.url.removeprefix("http://")), tmp_path, USER_PASSWORD=pair)
            assert {post["status"] for post in get(f"{url}/sandbox/posts")} <= {200, 401}
        listed = json.loads(receiver(tmp_path, "messages", "list", "--json").stdout)
    assert {(each["api"], each["direction"], each["status"]) for each in listed} == {
        ("v2", "out", "failed"),
        ("v2", "in", "received"),
        ("v1", "out", "delivered"),
    }
