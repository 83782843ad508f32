"""A server whose clock is set an hour while an event waits for its retry: libfaketime sets the clock of the process."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.factories import v2_event
from tests.processes import PATIENT, serving, until

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
CREDENTIALS, PAUSE = "bandwidth:secret", 6.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed (Debian package faketime)"),
]


@contextmanager
def consumer() -> Iterator[tuple[str, list[float]]]:
    """A webhook that fails once; yields its URL, and when it was posted to, in monotonic seconds."""
    posted: list[float] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            posted.append(time.monotonic())
            self.send_response(500 if len(posted) == 1 else 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", posted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("hours", [1, -1])
def test_retry_is_neither_early_nor_an_hour_late(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    offset = tmp_path / "offset"
    offset.write_text("+0\n")
    for name, value in {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with consumer() as (url, posted):
        sink = {"name": "crm", "type": "webhook", "url": url, "egress_allow": ["127.0.0.0/8"]}
        settings = {
            "DATABASE_URL": database_url,
            "CALLBACK_CREDENTIALS": json.dumps([CREDENTIALS]),
            "API_TOKENS": '["token"]',
            "SINKS": json.dumps([{**sink, "schedule": [f"{PAUSE:.0f}s"]}]),
        }
        with serving(tmp_path, settings=settings) as server:
            monkeypatch.undo()
            callbacks, account = f"{server.url}/callbacks/bandwidth/v2", tuple(CREDENTIALS.split(":"))
            assert httpx2.post(callbacks, json=[v2_event(message_id="m")], auth=account, **PATIENT).is_success
            until(lambda: posted)
            # The retry is stored within this second.
            time.sleep(1)
            offset.write_text(f"{3600 * hours:+d}\n")
            until(lambda: len(posted) > 1)
            # Not an hour late; a busy machine takes its time.
            assert PAUSE - 0.5 < posted[1] - posted[0] < PAUSE + 300
            # The process did see another time.
            is_own_clock = "sqlite" in database_url
            assert ("the clock was set" in server.errors.read_text()) == is_own_clock
            assert server.stop() == 0
