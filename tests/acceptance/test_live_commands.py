"""`receiver events tail` and `receiver listen`: what a developer sees on a machine without database and sink."""

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import httpx2
import pytest
from standardwebhooks import Webhook

from tests import event_schema
from tests.brokers.own import free_port
from tests.factories import v2_event
from tests.processes import COMMAND, PATIENT, Server, environment, foreground, receiver, serving, until, whole_lines

TOKEN = "token-of-this-long-test"
SECRET = "whsec_dGhpcyBpcyBub3QgYSBzZWNyZXQgYXQgYWxs"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    with serving(folder, settings=SETTINGS) as server:
        yield server


@pytest.fixture(scope="module")
def empty_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server to which no test posts anything."""
    with serving(tmp_path_factory.mktemp("empty"), settings=SETTINGS) as server:
        yield server


SETTINGS = {"CALLBACK_AUTH": "none", "API_TOKENS": json.dumps([f"tools:read:{TOKEN}"])}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder without a database, as on another machine."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def post(server: Server, *events: dict[str, object]) -> None:
    answer = httpx2.post(f"{server.url}/callbacks/bandwidth/v2", json=list(events), **PATIENT)
    assert answer.status_code == 200


@dataclass
class Program:
    """The program of a developer: a server that keeps what is posted to it."""

    url: str
    posts: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    code: int = 204


@contextmanager
def program() -> Iterator[Program]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            running.posts.append((dict(self.headers.items()), body))
            self.send_response(running.code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running = Program(f"http://localhost:{listening.server_port}/hook")
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    listening.shutdown()
    listening.server_close()
    thread.join()


def test_listen_posts_signed_events_and_prints_the_answers(server: Server, elsewhere: Path) -> None:
    arguments = ("--url", server.url, "--token", "env:TOOLS_TOKEN", "--after", "0", "--type", "message.delivered")
    with (
        program() as target,
        foreground(elsewhere, "listen", "--forward", target.url, *arguments, TOOLS_TOKEN=TOKEN) as run,
    ):
        until(lambda: "signed with whsec_" in run.text())
        post(server, v2_event("m1", "message-sent"), v2_event("m1"))
        until(lambda: len(target.posts) == 1)
        target.code = 500
        post(server, v2_event("m2"))
        until(lambda: " m2  500 (" in run.text())
        secret = run.text().partition("signed with ")[2].split()[0]
        assert run.stop() == 0
    headers, body = target.posts[0]
    event = Webhook(secret).verify(body, headers)
    event_schema.check(event)
    assert (event["type"], event["subject"]) == ("message.delivered", "m1")
    # each once, whatever the program answers
    assert len(target.posts) == 2
    assert "  m1  204 (" in run.text()
    assert run.errors.read_text("utf-8") == ""


def test_listen_uses_the_server_of_its_settings_and_a_secret_that_is_given(tmp_path: Path) -> None:
    """Where `receiver serve` runs without any setting, the command needs none either."""
    with program() as target, serving(tmp_path, settings={"CALLBACK_AUTH": "none"}) as server:
        port = server.url.rpartition(":")[2]
        post(server, v2_event("m1"))
        ran = receiver(
            tmp_path, "listen", "--forward", target.url, "--after", "0", "--count", "1", "--secret", SECRET, PORT=port
        )
        assert (ran.returncode, ran.stderr) == (0, b"")
    assert SECRET not in ran.stdout.decode()
    headers, body = target.posts[0]
    assert Webhook(SECRET).verify(body, headers)["subject"] == "m1"


def test_listen_goes_on_after_the_server_was_away_and_misses_nothing(tmp_path: Path, elsewhere: Path) -> None:
    port = str(free_port())
    folder = tmp_path / "server"
    folder.mkdir()
    arguments = ("listen", "--url", f"http://127.0.0.1:{port}", "--token", TOKEN)
    with program() as target, ExitStack() as stack:
        server = stack.enter_context(serving(folder, "--port", port, settings=SETTINGS))
        run = stack.enter_context(foreground(elsewhere, *arguments, "--forward", target.url))
        numbers = count()

        def is_connected() -> bool:
            post(server, v2_event(f"m{next(numbers)}"))
            return bool(target.posts)

        until(is_connected)
        server.stop()
        until(lambda: "connecting again" in run.errors.read_text("utf-8"))
        again = stack.enter_context(serving(folder, "--port", port, settings=SETTINGS))
        post(again, v2_event("last"))
        until(lambda: json.loads(target.posts[-1][1])["subject"] == "last")
        assert run.stop() == 0
    sequences = [json.loads(body)["data"]["sequence"] for _, body in target.posts]
    assert sequences == list(range(sequences[0], sequences[-1] + 1))


def test_listen_says_that_nothing_listens_at_the_forward_url(server: Server, elsewhere: Path) -> None:
    post(server, v2_event("m1"))
    forward = f"http://127.0.0.1:{free_port()}/"
    common = ("--url", server.url, "--token", TOKEN, "--after", "0", "--count", "1")
    ran = receiver(elsewhere, "listen", "--forward", forward, *common)
    assert ran.returncode == 0
    assert b"  m1  " in ran.stdout
    assert b"refused" in ran.stdout.lower() or b"connect" in ran.stdout.lower()


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("--token", "wrong-token-of-this-test"), 1, "answered 401: This token is not accepted."),
        ((), 1, "answered 401: A token is required."),
        (("--token", "env:NO_SUCH"), 2, "there is no environment variable NO_SUCH"),
        (("--token", TOKEN, "--after", "99"), 1, "answered 409: The event log ends at 0"),
        (("--token", TOKEN, "--type", "message.lost"), 2, "--type"),
    ],
)
def test_errors_are_one_line(
    empty_server: Server, elsewhere: Path, arguments: tuple[str, ...], code: int, line: str
) -> None:
    for command in (("events", "tail"), ("listen", "--forward", "http://127.0.0.1:9/")):
        ran = receiver(elsewhere, *command, "--url", empty_server.url, *arguments)
        assert (ran.returncode, ran.stderr.count(b"\n")) == (code, 1)
        assert line in ran.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--forward", "localhost:3000"), "--forward"),
        (("--forward", "http://127.0.0.1:9/", "--url", "example.com"), "--url"),
        (("--forward", "http://127.0.0.1:9/"), "give --url and --token"),
        (("--forward", "http://127.0.0.1:9/", "--url", "http://127.0.0.1:9", "--secret", "whsec_"), "--secret"),
    ],
)
def test_wrong_calls_of_listen_are_one_line(elsewhere: Path, arguments: tuple[str, ...], line: str) -> None:
    ran = receiver(elsewhere, "listen", *arguments)
    assert (ran.returncode, ran.stderr.count(b"\n")) == (2, 1)
    assert line in ran.stderr.decode()


def test_tail_prints_lines_and_json_from_the_database_and_from_a_server(tmp_path: Path, elsewhere: Path) -> None:
    with serving(tmp_path, settings=SETTINGS) as server:
        with foreground(tmp_path, "events", "tail", "--after", "0") as run:
            post(server, v2_event("m1", "message-failed", errorCode=4720), v2_event("m2"))
            until(lambda: len(whole_lines(run.output)) == 2)
            assert run.stop(signal.SIGTERM) == 0
        common = ("events", "tail", "--after", "0", "--count", "1", "--json", "--type", "message.failed")
        here = receiver(tmp_path, *common)
        there = receiver(elsewhere, *common, "--url", server.url, "--token", TOKEN)
    first, second = whole_lines(run.output)
    assert first.split() == ["2026-01-01T00:00:05Z", "message.failed", "4720", "+15550001", "m1"]
    assert second.split() == ["2026-01-01T00:00:05Z", "message.delivered", "+15550001", "m2"]
    assert here.stdout == there.stdout
    [event] = map(json.loads, here.stdout.splitlines())
    event_schema.check(event)
    assert event["subject"] == "m1"


def test_tail_begins_with_new_events_or_a_time_and_ends_with_its_reader(server: Server, tmp_path: Path) -> None:
    post(server, v2_event("old"))
    folder = tmp_path / "server"
    until(lambda: b"old" in receiver(folder, "events", "tail", "--since", "1h", "--count", "1").stdout)
    with foreground(folder, "events", "tail") as run:

        def is_printed() -> bool:
            post(server, v2_event(f"new{len(seen)}"))
            seen.append(1)
            return "new" in run.text()

        seen: list[int] = []
        until(is_printed)
        assert "old" not in run.text()
        assert run.stop() == 0
    ended = subprocess.run(
        f"{COMMAND} events tail --after 0 | head -n 1",
        shell=True,
        cwd=folder,
        env=environment(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.stderr == b""
