"""The webhook against a real server that misbehaves in every way."""

import asyncio
import base64
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from standardwebhooks import Webhook

from receiver.domain.publication import Publication, Published, Refused, Result, Retry, SinkDown
from receiver.sinks.registry import configure
from receiver.sinks.webhook import wish
from receiver.storage.database import Database
from receiver.workers.dispatcher import Dispatchers
from receiver.workers.wakeup import Wakeup
from tests.event_log import Nobody, append, eventually, life, now
from tests.fault_server import FaultServer, fault_server
from tests.servers import free_port

pytestmark = pytest.mark.anyio

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()


def publication(number: int = 1, body: bytes = b'{"id":"e"}') -> Publication:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    return Publication(
        id=f"e{number}",
        position=number,
        lane=f"v2:{number}",
        type="message.sent",
        received_at=moment,
        event={},
        body=body,
    )


@asynccontextmanager
async def webhook(url: str, **fields: Any) -> AsyncIterator[Any]:
    [configured] = configure([{"name": "crm", "type": "webhook", "url": url, "timeout": "0.4s", **fields}])
    await configured.sink.start()
    try:
        yield configured.sink
    finally:
        await configured.sink.stop()


async def posted(url: str, **fields: Any) -> Result:
    async with webhook(url, **fields) as sink:
        [result] = await sink.publish([publication()])
        answer: Result = result
        return answer


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with fault_server() as served:
        yield served


@pytest.mark.parametrize(
    ("path", "result"),
    [
        ("/200", Published(response_code=200, response="body")),
        ("/202", Published(response_code=202, response="body")),
        ("/204", Published(response_code=204, response="")),
        ("/301", Retry(reason="redirect", response_code=301, response="body")),
        ("/400", Retry(reason="status 400", response_code=400, response="body")),
        ("/401", Retry(reason="status 401", response_code=401, response="body")),
        ("/404", Retry(reason="status 404", response_code=404, response="body")),
        ("/408", Retry(reason="status 408", response_code=408, response="body")),
        ("/410", Refused(reason="status 410", response_code=410, response="body")),
        ("/413", Refused(reason="status 413", response_code=413, response="body")),
        ("/415", Refused(reason="status 415", response_code=415, response="body")),
        ("/422", Refused(reason="status 422", response_code=422, response="body")),
        ("/425", Retry(reason="status 425", response_code=425, response="body")),
        (
            "/429",
            Retry(
                reason="status 429",
                after=timedelta(seconds=7),
                overloaded=True,
                response_code=429,
                response="body",
            ),
        ),
        ("/500", Retry(reason="status 500", response_code=500, response="body")),
        ("/503", Retry(reason="status 503", after=timedelta(seconds=7), response_code=503, response="body")),
        ("/reset", Retry(reason="connection broken")),
        ("/half", Retry(reason="connection broken")),
        ("/hang-up", Retry(reason="connection broken")),
        ("/mute", Retry(reason="timeout", overloaded=True)),
        ("/slow-headers", Retry(reason="timeout", overloaded=True)),
        ("/slow-endless-body", Retry(reason="timeout", overloaded=True)),
    ],
)
async def test_each_answer_has_its_result(server: FaultServer, path: str, result: Result) -> None:
    assert await posted(server.url(path)) == result


async def test_of_a_huge_answer_only_the_beginning_is_read(server: FaultServer) -> None:
    result = await posted(server.url("/huge-body"))
    assert isinstance(result, Published)
    assert result.response == "x" * 1000


async def test_nobody_listening_means_that_the_sink_is_down() -> None:
    result = await posted(f"http://127.0.0.1:{free_port()}/")
    assert isinstance(result, SinkDown)
    assert "ConnectError" in result.reason


async def test_a_host_that_does_not_exist_means_that_the_sink_is_down() -> None:
    result = await posted("http://nowhere.invalid/", timeout="15s")
    assert isinstance(result, SinkDown)


@pytest.fixture
def untrusted(tmp_path: Path) -> ssl.SSLContext:
    """A server's side of TLS with a certificate of its own making."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate]
    subprocess.run([*command, "-subj", "/CN=localhost"], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


async def test_a_certificate_nobody_trusts_means_that_the_sink_is_down(untrusted: ssl.SSLContext) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=untrusted)
    async with server:
        result = await posted(f"https://localhost:{server.sockets[0].getsockname()[1]}/", timeout="15s")
    assert isinstance(result, SinkDown)
    assert "CERTIFICATE" in result.reason.upper()


async def test_redirects_are_not_followed(server: FaultServer) -> None:
    await posted(server.url("/301"))
    assert [request.path for request in server.requests] == ["/301"]


async def test_proxies_from_the_environment_are_not_used(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port()}")
    assert isinstance(await posted(server.url("/200")), Published)


async def test_what_is_posted_is_a_signed_cloud_event(server: FaultServer) -> None:
    before = int(time.time())
    await posted(server.url("/200"), secrets=[SECRET, "an older secret"])
    [request] = server.requests
    assert (request.method, request.body) == ("POST", b'{"id":"e"}')
    assert request.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert request.headers["webhook-id"] == "e1"
    assert before <= int(request.headers["webhook-timestamp"]) <= time.time()
    assert request.headers["user-agent"].startswith("receiver/")
    assert request.headers["accept-encoding"] == "identity"
    for secret in (SECRET, b"an older secret"):
        assert Webhook(secret).verify(request.body, request.headers) == {"id": "e"}


async def test_without_a_secret_nothing_is_signed(server: FaultServer) -> None:
    await posted(server.url("/200"))
    assert "webhook-signature" not in server.requests[0].headers
    assert server.requests[0].headers["webhook-id"] == "e1"


async def test_any_text_survives_the_way(server: FaultServer) -> None:
    told = orjson.dumps({"data": {"text": 'Grüße \U0001f600 "\\ \x01'}})
    async with webhook(server.url("/200"), secrets=[SECRET]) as sink:
        await sink.publish([publication(body=told)])
    [request] = server.requests
    assert Webhook(SECRET).verify(request.body, request.headers) == orjson.loads(told)


async def test_connections_are_used_again(server: FaultServer) -> None:
    async with webhook(server.url("/200")) as sink:
        for number in range(5):
            await sink.publish([publication(number)])
    assert (len(server.requests), server.connections) == (5, 1)


async def test_check_tells_whether_somebody_answers(server: FaultServer) -> None:
    async with webhook(server.url("/500")) as sink:
        assert await sink.check() is None
    async with webhook(f"http://127.0.0.1:{free_port()}/secret-path") as sink:
        told = await sink.check()
    assert "ConnectError" in told
    assert "secret-path" not in told
    async with webhook(server.url("/mute")) as sink:
        assert await sink.check() == "TimeoutError"


async def test_from_the_log_to_a_webhook_several_messages_at_a_time(database: Database, server: FaultServer) -> None:
    entries = await append(database, [told for number in range(20) for told in life(f"m{number}")])
    table = {"name": "crm", "type": "webhook", "url": server.url("/hold"), "secrets": [SECRET], "start": "beginning"}
    dispatchers = Dispatchers(database, configure([table]), clock=now, wakeup=Wakeup(), observer=Nobody())
    await dispatchers.start()
    await eventually(lambda: server.under_way == 8)
    assert len({request.headers["webhook-id"] for request in server.requests}) == 8
    server.held.set()
    await eventually(lambda: len(server.requests) == len(entries))
    await dispatchers.stop()
    told = [Webhook(SECRET).verify(request.body, request.headers) for request in server.requests]
    assert {one["id"] for one in told} == {entry.event.id for entry in entries}
    for subject in {one["subject"] for one in told}:
        sequences = [one["data"]["sequence"] for one in told if one["subject"] == subject]
        assert sequences == sorted(sequences)


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("told", "pause"),
    [
        (None, None),
        ("120", timedelta(seconds=120)),
        (" 0 ", timedelta(0)),
        ("9" * 400, timedelta(seconds=10**7)),
        (format_datetime(NOON + timedelta(minutes=3), usegmt=True), timedelta(minutes=3)),
        ("Thu, 01 Jan 2026 12:03:00 -0000", timedelta(minutes=3)),
        (format_datetime(NOON - timedelta(days=1), usegmt=True), timedelta(0)),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("Thu, 99 Foo 2026 99:99:99 GMT", None),
        ("٣", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(told: str | None, pause: timedelta | None) -> None:
    assert wish(told, NOON.timestamp()) == pause
