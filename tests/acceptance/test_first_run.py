"""The first start and later ones: `receiver serve` as a process in an empty folder."""

import itertools
import json
import os
import pty
import re
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx2
import pytest

from tests.factories import v2_event
from tests.processes import COMMAND, PATIENT, environment, receiver, serving, until, whole_lines
from tests.servers import named_database, on_postgres, random_name

DATA = "receiver-data"
HALF_SENT = (
    b"POST /callbacks/bandwidth/v2 HTTP/1.1\r\nhost: x\r\nauthorization: Basic dTpw\r\ncontent-length: 500\r\n\r\n[{"
)


def credentials(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / DATA / "credentials.json").read_text("utf-8")))


def post(url: str, folder: Path, body: Any) -> httpx2.Response:
    user, _, password = credentials(folder)["callback_credentials"][0].partition(":")
    return httpx2.post(f"{url}/callbacks/bandwidth/v2", json=body, auth=(user, password), **PATIENT)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def messages(folder: Path) -> list[dict[str, Any]]:
    listed = receiver(folder, "messages", "list", "--json")
    assert listed.stderr == b""
    return list(json.loads(listed.stdout))


def test_first_start_creates_everything_and_accepts_a_callback(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert mode(tmp_path / DATA) == 0o700
        made = {path.name: mode(path) for path in (tmp_path / DATA).iterdir()}
        assert made.keys() >= {"receiver.db", "credentials.json"}
        assert set(made.values()) == {0o600}
        assert httpx2.get(f"{server.url}/readyz", **PATIENT).status_code == 200
        assert httpx2.post(f"{server.url}/callbacks/bandwidth/v2", json=[v2_event("m1")], **PATIENT).status_code == 401
        assert post(server.url, tmp_path, [v2_event("m1")]).status_code == 200
        assert [(message["id"], message["status"]) for message in messages(tmp_path)] == [("m1", "delivered")]
        assert server.stop() == 0
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".txt"] == [DATA]


def test_every_address_of_the_banner_is_answered(tmp_path: Path) -> None:
    settings = {"CALLBACK_CREDENTIALS": '["u:p"]', "API_TOKENS": '["t"]'}
    with serving(tmp_path, settings=settings) as server:
        addresses = re.findall(r"http://\S+", server.output.read_text("utf-8"))
        answers = {
            urlsplit(address).path: httpx2.get(f"{server.url}{urlsplit(address).path}", **PATIENT).status_code
            for address in addresses
        }
        assert f"Dashboard    {server.url}/\n" in server.output.read_text("utf-8")
        dashboard = httpx2.get(server.url, headers={"Accept": "text/html"}, follow_redirects=True, **PATIENT)
    assert "<h1>Sign in</h1>" in dashboard.text
    assert answers == {
        "": 200,
        "/": 200,
        "/callbacks/bandwidth/v1": 401,
        "/callbacks/bandwidth/v1/fallback": 401,
        "/callbacks/bandwidth/v2": 405,
        "/api/messages": 401,
        "/docs": 200,
        "/openapi.json": 200,
    }


@pytest.mark.slow
@pytest.mark.parametrize("level", ["info", "debug"])
def test_log_has_no_sql_statements_at_info(tmp_path: Path, level: str) -> None:
    with serving(tmp_path, settings={"LOG_LEVEL": level}) as server:
        assert post(server.url, tmp_path, [v2_event("m1")]).status_code == 200
        server.stop()
        lines = [json.loads(line) for line in server.errors.read_text("utf-8").splitlines()]
    assert "listening" in {line["message"] for line in lines}
    assert not [line for line in lines if line["logger"].partition(".")[0] in {"sqlalchemy", "aiosqlite", "httpx2"}]


def test_second_start_uses_the_same_credentials_and_database(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        post(server.url, tmp_path, [v2_event("m1")])
        made = credentials(tmp_path)
        server.stop()
    with serving(tmp_path) as server:
        assert credentials(tmp_path) == made
        assert post(server.url, tmp_path, [v2_event("m2")]).status_code == 200
        assert {message["id"] for message in messages(tmp_path)} == {"m1", "m2"}


@pytest.mark.slow
def test_settings_win_over_what_was_generated(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.stop()
    with serving(tmp_path, settings={"CALLBACK_CREDENTIALS": '["user:other"]'}) as server:
        url = f"{server.url}/callbacks/bandwidth/v2"
        assert httpx2.post(url, json=[], auth=("user", "other"), **PATIENT).status_code == 200
        assert post(server.url, tmp_path, []).status_code == 401


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_sigterm_and_sigint_stop_the_server_with_exit_code_0(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path) as server:
        assert server.stop(number) == 0
        assert "Traceback" not in server.errors.read_text("utf-8")
    with closing(sqlite3.connect(tmp_path / DATA / "receiver.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_sigterm_under_load_loses_no_answered_callback(tmp_path: Path) -> None:
    answered: list[str] = []

    def send(sender: int) -> None:
        with httpx2.Client(auth=("u", "p"), **PATIENT) as client:
            for number in itertools.count():
                id_ = f"m-{sender}-{number}"
                try:
                    answer = client.post(f"{server.url}/callbacks/bandwidth/v2", json=[v2_event(id_)])
                except httpx2.TransportError:
                    return
                if answer.status_code == 200:
                    answered.append(id_)

    with (
        # outside, because the senders end after the server
        ThreadPoolExecutor(max_workers=4) as senders,
        serving(tmp_path, settings={"CALLBACK_CREDENTIALS": '["u:p"]'}) as server,
    ):
        for sender in range(4):
            senders.submit(send, sender)
        until(lambda: len(answered) >= 100)
        assert server.stop() == 0
    # The worker may leave some for the next start.
    with closing(sqlite3.connect(tmp_path / DATA / "callbacks.db")) as connection:
        bodies = [json.loads(body) for (body,) in connection.execute("SELECT body FROM callbacks")]
    assert set(answered) <= {event["message"]["id"] for body in bodies for event in body}


def test_second_server_on_the_same_database_is_refused_with_the_process_id(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        second = receiver(tmp_path, "serve", "--port", "0")
        assert (second.returncode, second.stdout) == (1, b"")
        assert second.stderr.decode() == (
            f"receiver: process {server.process.pid} already serves the database {DATA}/receiver.db;"
            " an embedded database has one (see: receiver help troubleshooting)\n"
        )
        assert post(server.url, tmp_path, [v2_event("m1")]).status_code == 200


@pytest.mark.faults
def test_killed_server_leaves_no_lock(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        post(server.url, tmp_path, [v2_event("m1")])
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    with serving(tmp_path):
        assert [message["id"] for message in messages(tmp_path)] == ["m1"]


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = receiver(tmp_path, "serve", "--port", str(port))
    line = f"receiver: cannot listen on 127.0.0.1 port {port}: Address already in use\n"
    assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", line)


def test_host_of_another_machine_is_one_line(tmp_path: Path) -> None:
    done = receiver(tmp_path, "serve", "--port", "0", "--host", "192.0.2.1")
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert done.stderr.startswith(b"receiver: cannot listen on 192.0.2.1 port 0: ")


@pytest.mark.slow
def test_host_name_is_bound_at_all_its_addresses(tmp_path: Path) -> None:
    with serving(tmp_path, "--host", "localhost") as server:
        assert httpx2.get(f"{server.url}/healthz", **PATIENT).status_code == 200


def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / DATA).mkdir()
    (tmp_path / DATA / "receiver.db").write_bytes(b"SQLite format 3\0" + b"broken " * 1000)
    done = receiver(tmp_path, "serve", "--port", "0")
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert done.stderr.startswith(f"receiver: {DATA}/receiver.db is damaged (".encode())


def test_data_dir_that_cannot_be_created_is_one_line(tmp_path: Path) -> None:
    (tmp_path / DATA).write_text("in the way")
    done = receiver(tmp_path, "serve", "--port", "0")
    line = f"receiver: RECEIVER_DATA_DIR: {tmp_path / DATA} cannot be created (it is not a directory); name a directory"
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert done.stderr.decode().startswith(line)


@pytest.mark.parametrize("fault", ["port", "sink", "setting"])
def test_start_that_fails_creates_nothing(tmp_path: Path, fault: str) -> None:
    settings = {
        "port": {},
        "sink": {"SINKS": '[{"name": "crm", "type": "nonsense"}]'},
        "setting": {"LOG_LEVEL": "loud"},
    }[fault]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = receiver(tmp_path, "serve", "--port", str(taken.getsockname()[1]), **settings)
    assert done.returncode
    assert list(tmp_path.iterdir()) == []


def test_files_open_to_all_users_are_closed_and_it_is_logged(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.stop() == 0
    data = tmp_path / DATA
    data.chmod(0o777)
    files = [data / name for name in ("receiver.db", "callbacks.db", "credentials.json")]
    for file in files:
        file.chmod(0o666)
    with serving(tmp_path) as server:
        assert server.stop() == 0
    # The rights of the group stay: somebody gave it them.
    assert {file.stat().st_mode & 0o777 for file in files} == {0o660}
    lines = [json.loads(line) for line in server.errors.read_text("utf-8").splitlines()]
    corrected = [line["file"] for line in lines if line["message"].startswith("file was open to all users")]
    assert sorted(corrected) == sorted(f"{DATA}/{file.name}" for file in files)
    assert [line["mode"] for line in lines if line["message"].startswith("every user of this machine")] == ["0777"]


def test_a_public_address_without_authentication_is_refused(tmp_path: Path) -> None:
    done = receiver(tmp_path, "serve", "--host", "0.0.0.0", CALLBACK_AUTH="none")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert done.stderr.startswith(b"receiver: RECEIVER_CALLBACK_AUTH: authentication is off")
    assert list(tmp_path.iterdir()) == []


# --- the banner


@pytest.mark.slow
def test_secrets_are_not_written_into_a_file(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        output = server.output.read_text("utf-8") + server.errors.read_text("utf-8")
    made = credentials(tmp_path)
    for secret in (made["callback_credentials"][0].partition(":")[2], made["api_tokens"][0]):
        assert secret not in output
    assert output.count(f"in {DATA}/credentials.json") == 2
    assert f"{server.url}/callbacks/bandwidth/v2\n" in output
    assert f"{server.url.replace('//', '//USER:PASSWORD@')}/callbacks/bandwidth/v1\n" in output


@pytest.mark.slow
def test_banner_names_the_settings_that_hold_secrets(tmp_path: Path) -> None:
    settings = {"CALLBACK_CREDENTIALS": '["u:pass-word"]', "API_TOKENS": '["to-ken"]'}
    with serving(tmp_path, settings=settings) as server:
        output = server.output.read_text("utf-8") + server.errors.read_text("utf-8")
    assert "as set in RECEIVER_CALLBACK_CREDENTIALS" in output
    assert "as set in RECEIVER_API_TOKENS" in output
    assert "pass-word" not in output
    assert "to-ken" not in output
    assert not (tmp_path / DATA / "credentials.json").exists()


def on_a_terminal(folder: Path, **settings: str) -> Iterator[str]:
    """The output of `receiver serve` on a terminal, so far, after each read."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, "serve", "--port", "0"],
        cwd=folder,
        env=environment(**settings),
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    output, deadline = b"", time.monotonic() + 180
    try:
        while time.monotonic() < deadline:
            output += os.read(ours, 4096)
            # a read may end within a character, or between the two characters of a line end
            yield output.decode("utf-8", "replace").replace("\r\n", "\n")
    finally:
        process.kill()
        process.wait(10)
        os.close(ours)


def test_banner_on_a_terminal_has_secrets(tmp_path: Path) -> None:
    settings = {"CALLBACK_CREDENTIALS": '["us@er:pa ss/w:\u00f6rd"]', "API_TOKENS": '["ops:admin:to-ken"]'}
    output = next(output for output in on_a_terminal(tmp_path, **settings) if "to-ken" in output)
    v1 = next(line.strip() for line in output.splitlines() if line.endswith("/callbacks/bandwidth/v1"))
    url = urlsplit(v1)
    assert (unquote(url.username or ""), unquote(url.password or "")) == ("us@er", "pa ss/w:\u00f6rd")
    assert "us%40er:pa%20ss%2Fw%3A%C3%B6rd@127.0.0.1:" in v1
    assert "user      us@er\n" in output
    assert "password  pa ss/w:\u00f6rd\n" in output
    assert "API token    to-ken" in output


@pytest.mark.slow
def test_banner_urls_begin_with_public_url(tmp_path: Path) -> None:
    credentials = {"CALLBACK_CREDENTIALS": '["u:password"]', "API_TOKENS": '["token-of-16-chars"]'}
    settings = {"PUBLIC_URL": "https://sms.example.com/", **credentials}
    output = next(output for output in on_a_terminal(tmp_path, **settings) if "API token" in output)
    assert re.search(
        r"^receiver listens on http://127\.0\.0\.1:\d+, and is called https://sms\.example\.com$", output, re.M
    )
    assert "https://u:password@sms.example.com/callbacks/bandwidth/v1\n" in output
    assert "https://sms.example.com/callbacks/bandwidth/v2\n" in output
    assert "https://sms.example.com/openapi.json\n" in output
    assert "RECEIVER_PUBLIC_URL" not in output


@pytest.mark.slow
def test_closed_standard_output_does_not_stop_the_server(tmp_path: Path) -> None:
    command = f"({COMMAND} serve --port 0 2> log.txt; echo $? > code.txt) | true"
    shell = subprocess.Popen(["/bin/sh", "-c", command], cwd=tmp_path, env=environment())
    try:
        until(lambda: _logged_address(tmp_path / "log.txt"))
        address = _logged_address(tmp_path / "log.txt")
        assert httpx2.get(f"{address}/healthz", **PATIENT).status_code == 200
    finally:
        os.kill(int((tmp_path / DATA / "receiver.db.lock").read_text()), signal.SIGTERM)
        shell.wait(60)
    assert (tmp_path / "code.txt").read_text() == "0\n"


def _logged_address(log: Path) -> str | None:
    entries = (json.loads(line) for line in whole_lines(log))
    return next((entry["address"] for entry in entries if entry["message"] == "listening"), None)


# --- PostgreSQL


@pytest.fixture
def empty_postgres_url(postgres: str) -> Iterator[str]:
    """A PostgreSQL database without tables."""
    name = random_name()
    on_postgres(postgres, f"CREATE DATABASE {name}")
    yield named_database(postgres, name)
    on_postgres(postgres, f"DROP DATABASE {name} WITH (FORCE)")


GIVEN = {"CALLBACK_CREDENTIALS": '["u:p"]', "API_TOKENS": '["t"]'}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, 'receiver: set RECEIVER_CALLBACK_CREDENTIALS, for example ["user:password"]'),
        ({"CALLBACK_CREDENTIALS": '["u:p"]'}, 'receiver: set RECEIVER_API_TOKENS, for example ["token"]'),
    ],
    ids=["nothing set", "no token"],
)
def test_with_postgresql_missing_credentials_are_refused(tmp_path: Path, given: dict[str, str], line: str) -> None:
    done = receiver(tmp_path, "serve", DATABASE_URL="postgresql://receiver@127.0.0.1:9/receiver", **given)
    assert (done.returncode, done.stderr.decode()) == (2, f"{line} (see: receiver help first-run)\n")
    assert list(tmp_path.iterdir()) == []


def test_unreachable_postgresql_is_one_line(tmp_path: Path) -> None:
    url = "postgresql://receiver@127.0.0.1:9/receiver"
    done = receiver(tmp_path, "serve", "--port", "0", DATABASE_URL=url, **GIVEN)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert done.stderr.startswith(b"receiver: the database cannot be used now: ")


@pytest.mark.slow
def test_a_search_that_takes_postgresql_too_long_is_one_line(tmp_path: Path, empty_postgres_url: str) -> None:
    settings = {**GIVEN, "DATABASE_URL": empty_postgres_url}
    assert receiver(tmp_path, "migrate", **settings).returncode == 0
    slow = (
        "CREATE VIEW messages AS WITH slow AS MATERIALIZED (SELECT pg_sleep(60) IS NOT NULL AS has_slept) "
        "SELECT stored.* FROM slow LEFT JOIN stored ON slow.has_slept WHERE slow.has_slept"
    )
    on_postgres(empty_postgres_url, "ALTER TABLE messages RENAME TO stored", slow)
    done = receiver(tmp_path, "messages", "list", **settings)
    line = "the search takes too long: give a shorter time, or a filter that fewer match"
    assert (done.returncode, done.stdout, done.stderr.decode()) == (
        1,
        b"",
        f"receiver: {line} (see: receiver help troubleshooting)\n",
    )


def test_postgresql_without_schema_is_refused_with_the_command_to_run(tmp_path: Path, empty_postgres_url: str) -> None:
    settings = {**GIVEN, "DATABASE_URL": empty_postgres_url}
    done = receiver(tmp_path, "serve", "--port", "0", **settings)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.endswith(b"run: receiver migrate (see: receiver help backup-upgrade)\n")
    assert receiver(tmp_path, "migrate", **settings).returncode == 0
    with serving(tmp_path, settings=settings) as server:
        assert httpx2.get(f"{server.url}/readyz", **PATIENT).status_code == 200
        assert server.stop() == 0
    assert not (tmp_path / DATA).exists()


@pytest.mark.slow
def test_two_servers_share_a_postgresql(tmp_path: Path, postgres_url: str) -> None:
    settings = {**GIVEN, "DATABASE_URL": postgres_url}
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with serving(folders[0], settings=settings) as one, serving(folders[1], settings=settings) as two:
        for server in (one, two):
            url = f"{server.url}/callbacks/bandwidth/v2"
            answer = httpx2.post(url, json=[v2_event("m")], auth=("u", "p"), **PATIENT)
            assert answer.status_code == 200
        # the second one is a repeat, whoever of the two processes it: the log has the event once
        [event] = json.loads(receiver(tmp_path, "messages", "events", "m", "--json", **settings).stdout)
    assert event["type"] == "message-delivered"


@pytest.mark.slow
def test_postgresql_without_durability_is_a_warning(tmp_path: Path, postgres_url: str) -> None:
    settings = {**GIVEN, "DATABASE_URL": postgres_url}
    with serving(tmp_path, settings=settings) as server:
        errors = server.errors.read_text("utf-8")
    off = json.loads(receiver(tmp_path, "check", "--json", **settings).stdout)
    [database] = [finding for finding in off if finding["what"] == "database"]
    assert ("fsync = off" in errors) is ("fsync = off" in database["detail"])
    assert "synchronous_commit" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "check"])
def test_webhook_to_our_own_callback_url_is_refused(tmp_path: Path, command: str) -> None:
    loop = {"name": "crm", "type": "webhook", "url": "http://127.0.0.1:8099/callbacks/bandwidth/v2"}
    for settings in ({"PORT": "8099"}, {"PUBLIC_URL": "http://127.0.0.1:8099", "PORT": "8098"}):
        result = receiver(tmp_path, command, SINKS=json.dumps([loop]), **settings)
        assert result.returncode != 0
        assert (
            b"RECEIVER_SINKS: crm: url: is where this receiver takes callbacks itself" in result.stdout + result.stderr
        )


def test_idle_connections_are_closed_after_keep_alive(tmp_path: Path) -> None:
    with serving(tmp_path, settings={"KEEP_ALIVE": "1"}) as server:
        address = urlsplit(server.url)
        assert address.hostname
        assert address.port
        with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            received = b"".join(iter(lambda: connection.recv(4096), b""))
    assert received.startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_sigterm_with_idle_connections_and_a_half_sent_request_ends_in_time(tmp_path: Path) -> None:
    """In time is within the 30 s of the files for deployment."""
    with serving(tmp_path, settings={"CALLBACK_CREDENTIALS": '["u:p"]'}) as server, ExitStack() as stack:
        address = urlsplit(server.url)
        assert address.hostname
        assert address.port
        for request in (*[b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"] * 5, HALF_SENT):
            connection = socket.create_connection((address.hostname, address.port), timeout=20)
            stack.enter_context(connection)
            connection.sendall(request)
            if request is not HALF_SENT:
                assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 25


def test_data_lies_in_the_data_directory_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "data?v2 %41#x"
    with serving(tmp_path, settings={"DATA_DIR": str(folder)}) as server:
        assert httpx2.get(f"{server.url}/readyz", **PATIENT).status_code == 200
    assert {"receiver.db", "callbacks.db"} <= {file.name for file in folder.iterdir()}
    assert {entry.name for entry in tmp_path.iterdir()} == {folder.name, "stdout.txt", "stderr.txt"}
