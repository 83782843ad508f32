"""`receiver callbacks replay`: a callback of the journal reaches another program byte for byte."""

import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx2
import pytest

from tests.brokers.own import free_port
from tests.processes import PATIENT, receiver, serving, until


@dataclass
class Target:
    url: str
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    code: int = 200


@contextmanager
def target() -> Iterator[Target]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found.requests.append((self.command, self.path, dict(self.headers.items()), body))
            self.send_response(found.code)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Target(f"127.0.0.1:{listening.server_port}")
    thread = Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    listening.shutdown()
    listening.server_close()
    thread.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a server runs that has got two callbacks: bytes that are no text by POST, a v1 event by GET."""
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, settings={"CALLBACK_CREDENTIALS": '["u:p"]'}) as server:
        headers = {"Content-Type": "application/json", "X-Odd": "\xfc", "Cookie": "session=secret"}
        coded = {name: value.encode("latin-1") for name, value in headers.items()}
        url, options = f"{server.url}/callbacks/bandwidth", {"auth": ("u", "p"), **PATIENT}
        assert httpx2.post(f"{url}/v2?team=a&x=%41", content=BODY, headers=coded, **options).status_code == 200
        assert httpx2.get(f"{url}/v1?eventType=sms&text=a+b%2B", headers=coded, **options).status_code == 200
        until(lambda: len(listed(folder)) == 2)
        yield folder


BODY = b'[{"type": "message-delivered", \xff\x00\r\n "a": 1 }]'


def listed(folder: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(receiver(folder, "callbacks", "list", "--json").stdout)
    return found


def id_of(folder: Path, method: str) -> str:
    return next(one["id"] for one in listed(folder) if one["method"] == method)


def test_body_method_query_and_headers_arrive_as_they_came(folder: Path) -> None:
    with target() as program:
        url = f"http://me:secret@{program.url}/hook?own=1"
        ids = [id_of(folder, "POST"), id_of(folder, "GET")]
        ran = receiver(folder, "callbacks", "replay", *ids, "--to", url)
        assert (ran.returncode, ran.stderr) == (0, b"")
    (method, path, headers, body), (second_method, second_path, _, second_body) = program.requests
    assert (method, path, body) == ("POST", "/hook?own=1&team=a&x=%41", BODY)
    assert (second_method, second_path, second_body) == ("GET", "/hook?own=1&eventType=sms&text=a+b%2B", b"")
    lowered = {name.lower(): value for name, value in headers.items()}
    assert lowered["content-type"] == "application/json"
    assert lowered["x-odd"] == "\xfc"
    assert "cookie" not in lowered
    # that of the URL, not Bandwidth's
    assert lowered["authorization"] == f"Basic {b64encode(b'me:secret').decode()}"
    assert lowered["host"] == program.url
    assert [line.split()[:3] for line in ran.stdout.decode().splitlines()] == [
        [ids[0], "POST", "200"],
        [ids[1], "GET", "200"],
    ]
    assert b"secret" not in ran.stdout


@pytest.mark.parametrize("code", [302, 500])
def test_answer_that_is_not_2xx_is_exit_code_1_and_no_redirect_is_followed(folder: Path, code: int) -> None:
    with target() as program:
        program.code = code
        ran = receiver(folder, "callbacks", "replay", id_of(folder, "POST"), "--to", f"http://{program.url}/", "--json")
    assert ran.returncode == 1
    assert len(program.requests) == 1
    [answer] = json.loads(ran.stdout)
    assert (answer["status"], answer["error"]) == (code, None)


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("f" * 32, "--to", "http://127.0.0.1:9/"), 1, "there is no callback ffff"),
        (("f" * 32, "--to", "localhost:3000"), 2, "--to"),
        (("f" * 32,), 2, "--to"),
    ],
)
def test_wrong_calls_are_one_line(folder: Path, arguments: tuple[str, ...], code: int, line: str) -> None:
    ran = receiver(folder, "callbacks", "replay", *arguments)
    assert (ran.returncode, ran.stderr.count(b"\n")) == (code, 1)
    assert line in ran.stderr.decode()


def test_program_that_cannot_be_reached_is_exit_code_1(folder: Path) -> None:
    ran = receiver(folder, "callbacks", "replay", id_of(folder, "POST"), "--to", f"http://127.0.0.1:{free_port()}/")
    assert ran.returncode == 1
    assert b"  POST  " in ran.stdout
    assert ran.stderr == b""
