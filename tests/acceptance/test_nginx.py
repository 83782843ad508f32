"""deploy/nginx.conf with the real nginx in front of a real server: the callback URLs are published, nothing else is."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.brokers.own import free_port
from tests.factories import v2_event
from tests.processes import PATIENT, serving, until
from tests.servers import Authority

CONFIGURATION = Path(__file__).resolve().parents[2] / "deploy/nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
HOST = "sms.example.com"
SETTINGS = {
    "CALLBACK_CREDENTIALS": '["u:p"]',
    "API_AUTH": "none",
    "METRICS_AUTH": "none",
    "PUBLIC_URL": f"https://{HOST}",
    "TRUSTED_PROXIES": '["127.0.0.1/32"]',
}
V2 = "/callbacks/bandwidth/v2"

pytestmark = pytest.mark.skipif(NGINX is None, reason="install nginx to try deploy/nginx.conf with it")


@contextmanager
def nginx(folder: Path, *upstreams: int) -> Iterator[httpx2.Client]:
    """A client of nginx with our configuration, changed as its head says: names, certificate, servers; and the port."""
    Authority(folder).server(HOST)
    port = free_port()
    text = CONFIGURATION.read_text("utf-8")
    changes = {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        f"/etc/letsencrypt/live/{HOST}/fullchain.pem": str(folder / f"{HOST}1.pem"),
        f"/etc/letsencrypt/live/{HOST}/privkey.pem": str(folder / f"{HOST}1.key"),
        "server 127.0.0.1:8080;": "".join(f"server 127.0.0.1:{upstream};" for upstream in upstreams),
    }
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    places = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # Started by root, nginx works as another user, who cannot write into the folder of a test.
    user = "user root; " if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user}daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;\n"
        f"events {{}}\nhttp {{ access_log off; {places}\n{text}\n}}\n",
        "utf-8",
    )
    process = subprocess.Popen([str(NGINX), "-p", folder, "-c", folder / "nginx.conf"], stderr=subprocess.DEVNULL)
    try:
        until(lambda: answers(port))
        # Who has no resolver for the name connects to the address and names the host.
        with httpx2.Client(base_url=f"https://127.0.0.1:{port}", headers={"host": HOST}, **PATIENT) as client:
            yield client
    finally:
        process.terminate()
        process.wait(60)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


@contextmanager
def behind_nginx(folder: Path, **settings: str) -> Iterator[tuple[httpx2.Client, httpx2.Client]]:
    """A client from outside, and one that reaches the server itself."""
    port = free_port()
    proxy = folder / "nginx"
    proxy.mkdir()
    with (
        server_at(folder, port, **settings) as url,
        nginx(proxy, port) as outside,
        httpx2.Client(base_url=url, **PATIENT) as inside,
    ):
        yield outside, inside


@contextmanager
def server_at(folder: Path, port: int, **settings: str) -> Iterator[str]:
    # The banner has the public URL, which `serving` waits for as an http:// URL.
    given = {**SETTINGS, **settings, "PUBLIC_URL": f"http://127.0.0.1:{port}"}
    with serving(folder, "--port", str(port), settings=given):
        yield f"http://127.0.0.1:{port}"


def stored(inside: httpx2.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = inside.get("/api/callbacks").json()
    return found


def test_callbacks_come_through_with_the_address_of_their_sender(tmp_path: Path) -> None:
    with behind_nginx(tmp_path) as (outside, inside):
        assert outside.post(V2, json=[v2_event("m1")]).status_code == 401
        spoofed = {"x-forwarded-for": "203.0.113.9", "x-forwarded-proto": "http"}
        assert outside.post(V2, json=[v2_event("m1")], auth=("u", "p"), headers=spoofed).status_code == 200
        for path in ("/callbacks/bandwidth/v1", "/callbacks/bandwidth/v2/fallback"):
            assert outside.post(path, json=[v2_event("m2")], auth=("u", "p")).status_code == 200
        until(lambda: len(stored(inside)) >= 2)
        callback = inside.get(f"/api/callbacks/{stored(inside)[-1]['id']}").json()
        assert callback["remote"] == "127.0.0.1"
        assert callback["headers"]["host"] == HOST
        assert callback["headers"]["x-forwarded-proto"] == "https"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api/messages",
        "/api/status",
        "/metrics",
        "/healthz",
        "/readyz",
        "/docs",
        "/openapi.json",
        "/callbacks",
        "/callbacks/../api/messages",
        "/callbacks/%2e%2e/metrics",
        "//api/messages",
    ],
)
def test_nothing_but_callbacks_is_published(shared: httpx2.Client, path: str) -> None:
    request = shared.build_request("GET", "/")
    request.url = request.url.copy_with(raw_path=path.encode())
    answer = shared.send(request)
    assert answer.status_code == 404
    assert "location" not in answer.headers


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    with behind_nginx(tmp_path_factory.mktemp("shared")) as (outside, _):
        yield outside


def test_body_over_the_limit_is_refused_by_receiver(shared: httpx2.Client) -> None:
    assert shared.post(V2, content=b" " * 1_048_577, auth=("u", "p")).status_code == 413
    assert shared.post(V2, content=b"[" + b" " * 1_048_574 + b"]", auth=("u", "p")).status_code == 200


def test_callback_goes_to_the_next_server_when_one_is_gone(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    proxy, folder = tmp_path / "nginx", tmp_path / "receiver"
    proxy.mkdir()
    folder.mkdir()
    with server_at(folder, ports[1]), nginx(proxy, *ports) as outside:
        codes = {outside.post(V2, json=[v2_event(f"m{number}")], auth=("u", "p")).status_code for number in range(10)}
    assert codes == {200}


def test_nothing_listens_without_tls(tmp_path: Path) -> None:
    with nginx(tmp_path, free_port()) as client:
        port = client.base_url.port
        plain = httpx2.post(f"http://127.0.0.1:{port}{V2}", json=[], auth=("u", "p"), **PATIENT)
        # nginx says 400 to plain HTTP, and redirects nobody.
        assert plain.status_code == 400
        assert "location" not in plain.headers
    assert re.findall(r"^\s*listen (.+);$", CONFIGURATION.read_text("utf-8"), re.MULTILINE) == ["443 ssl"]
