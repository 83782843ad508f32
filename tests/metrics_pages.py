"""A server with every kind of traffic behind it, for what is said about its page `/metrics`."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from tests.factories import v2_event
from tests.processes import PATIENT, Server, serving, until

V2 = "/callbacks/bandwidth/v2"
OPENMETRICS = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,*/*;q=0.1"
SINKS = ("file", "refusing", "failing", "gone", "closed")
PUBLISHED = {"file"}


class _Answers(BaseHTTPRequestHandler):
    """Answers each event with the status in the path, and with the request."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        answer = str(self.headers).encode() + self.rfile.read(int(self.headers["content-length"]))
        self.send_response(int(self.path.strip("/")))
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def answering_webhook() -> Iterator[int]:
    """The port of a webhook whose path is the status of its answers, which repeat the request."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server.server_port
        server.shutdown()


def hook(name: str, port: int, path: str, **more: Any) -> dict[str, Any]:
    """The table of a webhook sink on this machine."""
    return {
        "name": name,
        "type": "webhook",
        "url": f"http://127.0.0.1:{port}/{path}",
        "egress_allow": ["127.0.0.1/32"],
        "egress_ports": [port],
        "start": "beginning",
        **more,
    }


def text(server: Server, accept: str = "") -> httpx2.Response:
    return httpx2.get(f"{server.url}/metrics", headers={"Accept": accept}, **PATIENT)


def families(server: Server) -> dict[str, Metric]:
    """The metrics on the page by the names of their families in OpenMetrics, without `_total` and `_info`."""
    return {family.name: family for family in openmetrics_families(text(server, OPENMETRICS).text)}


def samples(server: Server) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The series of the page in the text format."""
    found = text_families(text(server).text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value for family in found for sample in family.samples
    }


@contextmanager
def busy_server(folder: Path) -> Iterator[Server]:
    """A server that has accepted, refused, processed and quarantined, and has sinks in each state."""
    with answering_webhook() as port, socket.create_server(("127.0.0.1", 0)) as closed:
        tables = [
            {"name": "file", "type": "jsonl", "path": "events.jsonl", "start": "beginning"},
            hook("refusing", port, "422"),
            hook("failing", port, "500"),
            hook("gone", port, "410"),
            hook("closed", closed.getsockname()[1], "200"),
        ]
        closed.close()
        settings = {
            "CALLBACK_CREDENTIALS": '["u:p"]',
            "METRICS_AUTH": "none",
            "TAG_KEYS": '["k1:secret"]',
            "SINKS": json.dumps(tables),
            "RECONCILIATION": json.dumps(
                {"v2_account_id": "1", "v2_credentials": "u:p", "v2_url": "http://127.0.0.1:9"}
            ),
            "ALERTS_EVERY": "1s",
        }
        with serving(folder, settings=settings) as server:
            _traffic(server)
            until(lambda: _is_settled(server))
            yield server


def _traffic(server: Server) -> None:
    with httpx2.Client(base_url=server.url, auth=("u", "p"), **PATIENT) as bandwidth:

        def post(*events: Any, path: str = V2) -> None:
            assert bandwidth.post(path, json=list(events)).status_code == 200

        post(v2_event("m1", "message-sending"), v2_event("m2", "message-failed", errorCode=4470))
        post(v2_event("m1"), v2_event("m3", "message-failed", errorCode=987654), v2_event("m4", "message-failed"))
        post(v2_event("m1"))
        post(v2_event("m5", tag="order~1~forged"), v2_event("m6", "message-surprise-by-a-stranger"))
        post(v2_event("m7"), path=f"{V2}/fallback")
        assert bandwidth.post(V2, content=b"garbage").status_code == 200
        assert bandwidth.post(V2, content=b"x" * 2_000_000).status_code == 413
        assert bandwidth.post(V2, content=b"[]", headers={"content-encoding": "gzip"}).status_code == 415
        assert bandwidth.put(V2).status_code == 405
        assert bandwidth.post("/callbacks/a-path-of-a-stranger").status_code == 404
    assert httpx2.post(server.url + V2, json=[], **PATIENT).status_code == 401
    assert httpx2.post(server.url + V2, json=[], auth=("stranger", "guess"), **PATIENT).status_code == 401
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection, suppress(ConnectionError):
        connection.sendall(b"GARBAGE\r\n\r\n")
        connection.recv(4096)


def _is_settled(server: Server) -> bool:
    """Whether every sink has had an event, and its backlog was measured."""
    found = samples(server)

    def value(name: str, **labels: str) -> float:
        return found.get((name, frozenset(labels.items())), -1)

    tried = {
        "file": ("published", 7),
        "refusing": ("refused", 1),
        "failing": ("retry", 1),
        "gone": ("refused", 1),
        "closed": ("sink_down", 1),
    }
    return (
        all(value("receiver_publish_attempts_total", sink=sink, outcome=o) >= n for sink, (o, n) in tried.items())
        and all(value("receiver_dead_letters", sink=sink, reason="refused") >= 0 for sink in tried)
        and value("receiver_prune_runs_total", result="done") >= 1
        and value("receiver_loop_lag_seconds_count") > 0
        and value("receiver_worker_loop_lag_seconds_count") > 0
    )
