"""The log of a running server: what it tells, what strangers can make it say, and a pipe that nobody reads."""

import json
import re
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import pytest

from tests.brokers.own import free_port
from tests.factories import v2_event
from tests.faults.load import children
from tests.processes import COMMAND, PATIENT, Server, environment, foreground, receiver, serving, until, whole_lines

GIVEN = {"CALLBACK_CREDENTIALS": '["u:p"]', "API_TOKENS": '["token"]'}
V2 = "/callbacks/bandwidth/v2"
BEARER = {"Authorization": "Bearer token"}
# Half of what a container's runtime waits before it kills.
STOP_SECONDS = 15


def log(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in whole_lines(server.errors)]


def logged(server: Server, message: str) -> list[dict[str, Any]]:
    return [line for line in log(server) if line["message"] == message]


@contextmanager
def client(url: str, password: str = "p") -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, auth=("u", password), **PATIENT) as client:
        yield client


def metric(url: str, name: str) -> float:
    page = httpx2.get(f"{url}/metrics", headers=BEARER, **PATIENT).text
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0


# --- what it tells


def test_log_tells_of_wrong_credentials_wrong_paths_and_quarantine(tmp_path: Path) -> None:
    with serving(tmp_path, settings=GIVEN) as server:
        with client(server.url, "wrong") as stranger:
            assert {stranger.post(V2, json=[]).status_code for _ in range(20)} == {401}
        with client(server.url) as bandwidth:
            for path in ("/callbacks", "/callbacks/bandwidth/v3"):
                assert bandwidth.post(path, json=[]).status_code == 404
            assert bandwidth.post(V2, content=b"garbage").status_code == 200
            assert bandwidth.post(V2, content=b"garbage too").status_code == 200
            assert bandwidth.post(V2, json=[v2_event("m1")]).status_code == 200
        until(lambda: metric(server.url, 'receiver_callbacks_total{result="accepted"}') == 1)
        assert metric(server.url, 'receiver_refused_total{reason="wrong-credentials"}') == 20
        assert metric(server.url, 'receiver_refused_total{reason="unknown-path"}') == 2
        assert server.stop() == 0
        [wrong] = logged(server, "callbacks with wrong credentials are refused")
        assert (wrong["level"], wrong["path"], wrong["remote"], wrong["times"]) == ("warning", V2, "127.0.0.1", 1)
        [unknown] = logged(server, "requests to unknown callback URLs are refused")
        assert (unknown["method"], unknown["path"]) == ("POST", "/callbacks")
        quarantined = logged(server, "callbacks are quarantined")
        assert len(quarantined) == 1
        assert quarantined[0]["reason"] == "unreadable"
        assert len(quarantined[0]["callback"]) == 32
        # What came since the last line of a minute is logged at the end.
        [came] = logged(server, "callbacks came in")
        assert (came["accepted"], came["wrong-credentials"], came["unknown-path"]) == (3, 20, 2)
        [processed] = logged(server, "callbacks were processed")
        assert (processed["accepted"], processed["quarantined"]) == (1, 2)


def test_nothing_is_logged_of_a_minute_without_callbacks(tmp_path: Path) -> None:
    with serving(tmp_path, settings=GIVEN) as server:
        assert httpx2.get(f"{server.url}/healthz", **PATIENT).status_code == 200
        server.stop()
        assert [line["message"] for line in log(server)] == ["listening", "stopped"]


def test_first_try_of_a_v2_callback_is_no_warning(tmp_path: Path) -> None:
    with serving(tmp_path, settings=GIVEN) as server:
        assert httpx2.post(server.url + V2, json=[], **PATIENT).status_code == 401
        assert metric(server.url, 'receiver_refused_total{reason="no-credentials"}') == 1
        server.stop()
        assert {line["level"] for line in log(server)} == {"info"}


def test_debug_level_has_a_line_for_each_refused_request(tmp_path: Path) -> None:
    with serving(tmp_path, settings={**GIVEN, "LOG_LEVEL": "debug"}) as server:
        for _ in range(3):
            assert httpx2.post(server.url + V2, json=[], **PATIENT).status_code == 401
        until(lambda: len(logged(server, "a request was refused")) == 3)
        assert {line["reason"] for line in logged(server, "a request was refused")} == {"no-credentials"}


def test_authentication_that_is_off_is_logged_at_every_start(tmp_path: Path) -> None:
    everything_off = {"CALLBACK_AUTH": "none", "API_AUTH": "none", "METRICS_AUTH": "none"}
    for off in (everything_off, everything_off, {"CALLBACK_AUTH": "none"}):
        with serving(tmp_path, settings=off) as server:
            server.stop()
            lines = logged(server, "authentication is switched off")
            assert [(line["setting"], line["level"]) for line in lines] == [
                (f"RECEIVER_{name}", "warning") for name in off
            ]


def test_worker_whose_metrics_need_no_token_logs_that(tmp_path: Path) -> None:
    assert receiver(tmp_path, "migrate").returncode == 0
    settings = {"RECEIVER_METRICS_AUTH": "none"}
    with foreground(tmp_path, "work", "--metrics", "127.0.0.1:0", **settings) as worker:
        until(lambda: '"working"' in worker.errors.read_text("utf-8") or worker.process.poll() is not None)
        assert worker.stop(signal.SIGTERM) == 0
        lines = [json.loads(line) for line in whole_lines(worker.errors)]
    assert [line["message"] for line in lines] == ["authentication is switched off", "working", "stopped"]
    assert lines[0]["setting"] == "RECEIVER_METRICS_AUTH"


# --- strangers


GARBAGE = b"GARBAGE\r\n\r\n"
LONG_HEAD = b"GET /healthz HTTP/1.1\r\na: " + b"x" * 70_000
UPGRADE = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n\r\n"
TUNNEL = b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize("level", ["info", "warning"])
def test_strangers_who_send_garbage_get_one_line_and_are_counted(tmp_path: Path, level: str) -> None:
    with serving(tmp_path, settings={**GIVEN, "LOG_LEVEL": level}) as server:
        host, port = server.url.removeprefix("http://").split(":")
        for content in [GARBAGE] * 50 + [LONG_HEAD] * 5 + [UPGRADE] * 5 + [TUNNEL] * 5:
            with socket.create_connection((host, int(port)), timeout=30) as connection, suppress(ConnectionError):
                connection.sendall(content)
                while connection.recv(4096):
                    pass
        assert metric(server.url, 'receiver_connections_closed_total{reason="not-http"}') == 55
        assert metric(server.url, 'receiver_connections_closed_total{reason="long-head"}') == 5
        server.stop()
        assert len(logged(server, "a connection was closed: what it sent is not HTTP")) == 1
        assert len(logged(server, "a connection was closed: the head of its request is too long")) == 1
        assert len(log(server)) == (4 if level == "info" else 2)


# --- a pipe that nobody reads


@contextmanager
def serving_into_a_pipe(folder: Path, **settings: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server whose standard error is a pipe that nobody reads, and its URL."""
    output = folder / "stdout.txt"
    with output.open("wb") as stdout:
        process = subprocess.Popen(
            [COMMAND, "serve", "--port", "0"],
            cwd=folder,
            env=environment(**settings),
            stdout=stdout,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
    try:
        until(lambda: re.search(rb"^receiver listens on (\S+)$", output.read_bytes(), re.MULTILINE))
        found = re.search(rb"^receiver listens on (\S+)$", output.read_bytes(), re.MULTILINE)
        assert found is not None
        yield process, found[1].decode()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
        assert process.stderr is not None
        process.stderr.close()


@contextmanager
def refusing_webhook() -> Iterator[int]:
    """The port of a webhook that refuses every event, so that each event is a line of the worker's log."""

    class Refuses(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(422)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.faults
def test_log_pipe_that_nobody_reads_holds_neither_server_nor_worker(tmp_path: Path) -> None:
    with refusing_webhook() as port:
        hook = {
            "name": "crm",
            "type": "webhook",
            "url": f"http://127.0.0.1:{port}/",
            "egress_allow": ["127.0.0.1/32"],
            "egress_ports": [port],
            "start": "beginning",
        }
        settings = {**GIVEN, "LOG_LEVEL": "debug", "SINKS": json.dumps([hook])}
        with serving_into_a_pipe(tmp_path, **settings) as (process, url), client(url) as bandwidth:
            with client(url, "wrong") as stranger:
                for _ in range(8000):
                    assert stranger.post(V2, json=[]).status_code == 401
            for number in range(30):
                body = [v2_event(f"m{number}-{place}") for place in range(200)]
                assert bandwidth.post(V2, json=body).status_code == 200
            # 6,000 lines of the worker, 8,000 of the web process.
            dead = 'receiver_publish_attempts_total{outcome="refused",sink="crm"}'
            until(lambda: metric(url, dead) == 6000, 120)
            until(lambda: metric(url, "receiver_worker_log_lines_dropped_total") > 0)
            assert metric(url, "receiver_log_lines_dropped_total") > 0
            assert httpx2.get(f"{url}/healthz", **PATIENT).status_code == 200
            assert bandwidth.post(V2, json=[v2_event("last")]).status_code == 200
            [worker] = children(process.pid)
            process.terminate()
            assert process.wait(STOP_SECONDS) == 0
            until(lambda: not Path(f"/proc/{worker}").exists(), STOP_SECONDS)


def test_log_goes_on_with_the_number_of_lost_lines_once_the_pipe_is_read(tmp_path: Path) -> None:
    with serving_into_a_pipe(tmp_path, **GIVEN) as (process, url):
        with client(url) as bandwidth:
            assert bandwidth.post(V2, json=[v2_event("m1")]).status_code == 200

        def shown() -> int:
            return httpx2.get(f"{url}/api/messages/m1", headers=BEARER, **PATIENT).status_code

        until(lambda: shown() == 200)
        with closing(sqlite3.connect(tmp_path / "receiver-data/receiver.db", timeout=30)) as database, database:
            database.execute("UPDATE messages SET direction = 'sideways'")
        # Each of these answers is a line with a traceback.
        until(lambda: {shown() for _ in range(20)} == {500} and metric(url, "receiver_log_lines_dropped_total"))
        lost = metric(url, "receiver_log_lines_dropped_total")
        assert process.stderr is not None
        found: dict[str, Any] = {}
        while found.get("message") != "log lines were dropped, because nobody read them":
            found = json.loads(process.stderr.readline())
        assert found["lines"] == lost
        process.terminate()
        rest = process.stderr.read().splitlines()
        assert json.loads(rest[-1])["message"] == "stopped"


def test_server_runs_with_closed_standard_streams_and_the_sink_stdout_keeps_its_events(tmp_path: Path) -> None:
    port = free_port()
    shell = subprocess.Popen(
        ["/bin/sh", "-c", f'exec "$0" serve --port {port} <&- >&- 2>&-', COMMAND],
        cwd=tmp_path,
        env=environment(**GIVEN, SINKS='[{"name": "out", "type": "stdout", "start": "beginning"}]'),
    )
    try:

        def answers() -> bool:
            try:
                return httpx2.get(f"http://127.0.0.1:{port}/readyz", **PATIENT).status_code == 200
            except httpx2.TransportError:
                return False

        until(answers)
        # No file of the database is what a library takes for standard output or standard error.
        assert {Path(f"/proc/{shell.pid}/fd/{number}").readlink() for number in (0, 1, 2)} == {Path("/dev/null")}
        url = f"http://127.0.0.1:{port}"
        assert httpx2.post(url + V2, json=[v2_event("m1")], auth=("u", "p"), **PATIENT).status_code == 200

        def sinks() -> list[tuple[str, int]]:
            listed = httpx2.get(f"{url}/api/sinks", headers=BEARER, **PATIENT).json()
            return [(sink["state"], sink["lag"]) for sink in listed]

        until(lambda: sinks() == [("down", 1)])
        shell.terminate()
        assert shell.wait(STOP_SECONDS) == 0
    finally:
        if shell.poll() is None:
            shell.kill()
            shell.wait(10)
