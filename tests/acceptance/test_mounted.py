"""The application inside another application, as its page shows it, and started by uvicorn alone."""

import asyncio
import json
import signal
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest
import uvicorn

from receiver.app import create_app
from receiver.settings import GivenSettings
from tests.brokers.own import free_port
from tests.factories import v2_event
from tests.pages import blocks, page
from tests.processes import PATIENT, environment, until
from tests.web import serving

pytestmark = pytest.mark.anyio

CREDENTIALS = ("user", "password")
TOKEN = {"Authorization": "Bearer token-of-a-test"}


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECEIVER_CALLBACK_CREDENTIALS", json.dumps([":".join(CREDENTIALS)]))
    monkeypatch.setenv("RECEIVER_API_TOKENS", '["token-of-a-test"]')


@pytest.mark.usefixtures("configured")
async def test_mounted_application_serves_callbacks_api_and_links_under_its_prefix() -> None:
    [shown] = blocks(page("mounting"), "python")
    names: dict[str, Any] = {}
    exec(compile(shown, "mounting.md", "exec"), names)
    async with (
        serving(names["app"]) as base,
        httpx2.AsyncClient(base_url=f"{base}/sms", **PATIENT) as client,
    ):
        for number in range(3):
            body = json.dumps([v2_event(f"of/{number}")])
            answer = await client.post("/callbacks/bandwidth/v2", content=body, auth=CREDENTIALS)
            assert answer.status_code == 200
        # the lifespan has started journal and worker: what was accepted is processed
        first = await client.get("/api/messages", params={"size": 2}, headers=TOKEN)
        assert len(first.json()) == 2
        link = first.links["next"]["url"]
        assert link.startswith(f"{base}/sms/api/messages?")
        assert len((await client.get(link, headers=TOKEN)).json()) == 1
        one = await client.get("/api/messages/of%2F1", headers=TOKEN)
        assert one.json()["status"] == "delivered"
        assert (await client.get("/readyz")).text == "ready\n"
        assert f" {base}/sms/docs, " in (await client.get("/")).text
        assert (await client.post("/callbacks/bandwidth/v2", content=b"[]")).status_code == 401


@pytest.mark.usefixtures("configured")
async def test_links_of_a_mounted_application_begin_with_the_public_url(tmp_path: Path) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    receiver = create_app(
        GivenSettings(
            data_dir=tmp_path / "data",
            public_url="https://sms.example.com/hooks",
            api_auth="none",
            callback_auth="none",
            insecure_no_auth=True,
            metrics_auth="none",
        )
    )
    app = Starlette(routes=[Mount("/sms", receiver)], lifespan=lambda _: receiver.router.lifespan_context(receiver))
    async with (
        serving(app) as base,
        httpx2.AsyncClient(base_url=f"{base}/sms", **PATIENT) as client,
    ):
        body = json.dumps([v2_event("m1"), v2_event("m2")])
        assert (await client.post("/callbacks/bandwidth/v2", content=body)).status_code == 200
        page = await client.get("/api/messages", params={"size": 1})
        assert " https://sms.example.com/hooks/docs, " in (await client.get("/")).text
    assert page.links["next"]["url"].startswith("https://sms.example.com/hooks/api/messages?")


def test_uvicorn_starts_the_application_as_a_factory(tmp_path: Path) -> None:
    port = free_port()
    given = {"CALLBACK_CREDENTIALS": json.dumps([":".join(CREDENTIALS)]), "API_TOKENS": '["token-of-a-test"]'}
    with (tmp_path / "stderr.txt").open("wb") as stderr, (tmp_path / "stdout.txt").open("wb") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "--factory", "receiver.app:create_app", "--port", str(port)],
            cwd=tmp_path,
            env=environment(**given, METRICS_AUTH="none"),
            stdout=stdout,
            stderr=stderr,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx2.Client(base_url=url, **PATIENT) as client:

            def is_ready() -> bool:
                try:
                    return client.get("/readyz").status_code == 200
                except httpx2.TransportError:
                    assert process.poll() is None, (tmp_path / "stderr.txt").read_text("utf-8")
                    return False

            until(is_ready)
            body = json.dumps([v2_event("m1")])
            assert client.post("/callbacks/bandwidth/v2", content=body, auth=CREDENTIALS).status_code == 200

            def statuses() -> list[str]:
                return [message["status"] for message in client.get("/api/messages", headers=TOKEN).json()]

            until(lambda: statuses() == ["delivered"])
    finally:
        process.terminate()
        # uvicorn raises the signal once more when all is done
        assert process.wait(60) in (0, -signal.SIGTERM)
    assert (tmp_path / "receiver-data/callbacks.db").exists()
    assert "authentication" not in (tmp_path / "stdout.txt").read_text("utf-8")
    logged = (tmp_path / "stderr.txt").read_text("utf-8")
    assert "authentication is switched off setting=RECEIVER_METRICS_AUTH effect=" in logged


def test_log_of_a_mounted_application_is_that_of_its_host() -> None:
    program = """
import logging
from receiver import logs

logs.use_logging()
import structlog

logging.basicConfig(format="%(name)s %(levelname)s %(message)s", level="INFO")
log = structlog.get_logger("receiver.app")
log.debug("not wanted")
log.info("100% of it", url="postgresql://user:hunter2@host/name", lines="a\\nb")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == ""
    first, second, *traceback = found.stderr.splitlines()
    assert first == "receiver.app INFO 100% of it url=postgresql://user:***@host/name lines=a\\nb"
    assert second == "receiver.app ERROR failed"
    assert traceback[-1].startswith("ZeroDivisionError")


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_413_arrives_from_any_server_after_the_whole_body(
    tmp_path: Path, http: Literal["httptools", "h11"]
) -> None:
    """The server that mounts the application may close a connection with the unread body, and lose the answer."""
    settings = GivenSettings(
        data_dir=tmp_path, callback_credentials=[":".join(CREDENTIALS)], api_auth="none", metrics_auth="none"
    )
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=port, http=http, log_config=None))
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        credentials = b64encode(":".join(CREDENTIALS).encode()).decode()
        head = f"POST /callbacks/bandwidth/v2 HTTP/1.1\r\nhost: x\r\nauthorization: Basic {credentials}\r\n"
        writer.write(head.encode() + b"content-length: 4000000\r\n\r\n")
        for _ in range(40):
            writer.write(b" " * 100_000)
            await writer.drain()
        async with asyncio.timeout(45):
            assert (await reader.read()).startswith(b"HTTP/1.1 413")
        writer.close()
    finally:
        server.should_exit = True
        await running


async def test_two_applications_for_one_sqlite_database_are_refused(tmp_path: Path) -> None:
    settings = GivenSettings(data_dir=tmp_path, callback_auth="none", api_auth="none", metrics_auth="none")
    first, second = create_app(settings), create_app(settings)
    async with first.router.lifespan_context(first):
        with pytest.raises(Exception, match="already serves the database"):
            async with second.router.lifespan_context(second):
                pass
    async with asyncio.timeout(45), second.router.lifespan_context(second):
        pass
