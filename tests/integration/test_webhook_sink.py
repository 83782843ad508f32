"""The webhook sink against a real server that misbehaves in every way."""

import base64
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from typing import Any

import orjson
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from receiver.dispatch.dispatcher import Dispatchers
from receiver.dispatch.reader import Wakeup
from receiver.domain.events import Api
from receiver.domain.publication import Published, Refused, Result, Retry, SinkDown
from receiver.sinks.encoding import Binding, bind
from receiver.sinks.registry import configure
from receiver.sinks.webhook import WebhookSettings, WebhookSink, parse_retry_after
from receiver.storage.database import Database
from tests import factories, webhooks
from tests.brokers.own import free_port
from tests.dispatching import Nobody, append, life, now
from tests.factories import TRACEPARENT, rejected_of
from tests.fault_servers import BOMB, FaultServer, Request, fault_server
from tests.metrics_pages import answering_webhook
from tests.waiting import eventually
from tests.webhooks import post, publication

pytestmark = pytest.mark.anyio

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()


# where the server is
webhook = partial(webhooks.webhook, egress_allow=["127.0.0.0/8"])
posted = partial(webhooks.posted, egress_allow=["127.0.0.0/8"])


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with fault_server() as served:
        yield served


@pytest.mark.parametrize(
    ("path", "result"),
    [
        ("/101", Retry(reason="connection broken")),
        ("/200", Published(response_code=200, response="body")),
        ("/202", Published(response_code=202, response="body")),
        ("/204", Published(response_code=204, response="")),
        ("/301", Retry(reason="redirect", response_code=301, response="body")),
        ("/400", Retry(reason="status 400", response_code=400, response="body")),
        ("/401", Retry(reason="status 401", response_code=401, response="body")),
        ("/404", Retry(reason="status 404", response_code=404, response="body")),
        ("/408", Retry(reason="status 408", response_code=408, response="body")),
        ("/410", Refused(reason="status 410", gone=True, response_code=410, response="body")),
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
        ("/many-headers", Retry(reason="answer too long")),
        ("/mute", Retry(reason="timeout", overloaded=True)),
        ("/slow-headers", Retry(reason="timeout", overloaded=True)),
        ("/slow-endless-body", Retry(reason="timeout", overloaded=True)),
    ],
)
async def test_status_code_decides_the_result(server: FaultServer, path: str, result: Result) -> None:
    timeout = "2s" if getattr(result, "reason", None) == "timeout" else "18s"
    assert await posted(server.url(path), timeout=timeout) == result


MALFORMED = {
    "a blank in a name": b"X Request Id: 7\r\nContent-Length: 2\r\n",
    "a blank after a name": b"Content-Length : 2\r\nX-Id : 7\r\n",
    "no colon": b"nonsense\r\nContent-Length: 2\r\n",
    "no name": b": 7\r\nContent-Length: 2\r\n",
    "an empty value": b"X-Id:\r\nContent-Length: 2\r\n",
    "control characters in a value": b"X-Id: a\x00b\x0bc\x1b[31m\r\nContent-Length: 2\r\n",
    "a control character in a length": b"Content-Length: 2\x00\r\n",
    "a lone carriage return": b"X-Id: a\rb\r\nContent-Length: 2\r\n",
    "a folded line": b"X-Id: a\r\n  b\r\n\tc\r\nContent-Length: 2\r\n",
    "a folded length": b"Content-Length:\r\n 2\r\n",
    "a folded line before any header": b" b: c\r\nContent-Length: 2\r\n",
    "a name that is not ASCII": "X-Größe: 1\r\nContent-Length: 2\r\n".encode(),
    "line feeds alone": b"X-Id: a\nContent-Length: 2\n",
    "the same length twice": b"Content-Length: 2\r\nContent-Length: 2\r\n",
    "two lengths": b"Content-Length: 2\r\nContent-Length: 200\r\n",
    "two lengths in one header": b"Content-Length: 200, 2\r\n",
    "a length with a sign": b"Content-Length: 2\r\nContent-Length: +7\r\n",
    "chunked twice": b"X: 1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
}


@pytest.mark.parametrize("headers", MALFORMED.values(), ids=MALFORMED)
async def test_malformed_header_does_not_hide_the_status(server: FaultServer, headers: bytes) -> None:
    """The consumer has the event: posted again, it would get the event again for as long as its header is malformed."""
    body = b"2\r\nok\r\n0\r\n\r\n" if b"chunked" in headers else b"ok"
    server.answer = b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n" + body
    async with webhook(server.url("/answer")) as sink:
        # The connection is still usable, or was closed.
        assert [await post(sink) for _ in range(2)] == [Published(response_code=200, response="ok")] * 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX Id: 7\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nok",
        b"HTTP/1.1 200\r\n\r\nok",
        b"HTTP/1.1 200 \x00\r\n\r\nok",
        b"HTTP/1.0 200 OK\nnonsense\n\nok",
        b"HTTP/1.1 103 Early Hints\r\nLink to: x\r\n\r\nHTTP/1.1 200 OK\r\nX Id: 7\r\n\r\nok",
    ],
)
async def test_response_without_a_length_ends_with_the_connection(server: FaultServer, answer: bytes) -> None:
    server.answer, server.closes = answer, True
    assert await posted(server.url("/answer")) == Published(response_code=200, response="ok")


async def test_length_that_is_no_number_does_not_hide_the_status(server: FaultServer) -> None:
    server.answer = b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok"
    assert await posted(server.url("/answer")) == Published(response_code=200, response="")


async def test_malformed_header_beside_retry_after(server: FaultServer) -> None:
    server.answer = b"HTTP/1.1 503 X\r\nX Id: 7\r\nRetry-After :\r\n 7\r\nContent-Length: 0\r\n\r\n"
    expected = Retry(reason="status 503", after=timedelta(seconds=7), response_code=503, response="")
    assert await posted(server.url("/answer")) == expected


@pytest.mark.parametrize("answer", [b"nonsense\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: 1\r\n"])
async def test_response_without_a_status_or_an_end_of_its_headers_is_a_retry(
    server: FaultServer, answer: bytes
) -> None:
    server.answer, server.closes = answer, True
    assert await posted(server.url("/answer")) == Retry(reason="connection broken")


async def test_huge_response_is_read_only_in_part(server: FaultServer) -> None:
    result = await posted(server.url("/huge-body"))
    assert isinstance(result, Published)
    assert result.response == "x" * 1000


async def test_compressed_response_is_not_decompressed(server: FaultServer) -> None:
    result = await posted(server.url("/packed"))
    assert result == Published(response_code=200, response=BOMB[:1000].decode("utf-8", "replace"))


@pytest.mark.parametrize("path", ["/interim-answers", "/short-chunks"])
async def test_endless_response_is_a_retry_before_the_timeout(server: FaultServer, path: str) -> None:
    assert await posted(server.url(path), timeout="18s") == Retry(reason="answer too long")


async def test_response_limit_counts_each_response(server: FaultServer) -> None:
    async with webhook(server.url("/long")) as sink:
        results = [await post(sink) for _ in range(5)]
    assert {type(result) for result in results} == {Published}
    assert server.connections == 1


async def test_connection_that_the_consumer_has_closed_is_not_used(server: FaultServer) -> None:
    async with webhook(server.url("/idle")) as sink:
        for number in range(1, 5):
            assert await post(sink) == Published(response_code=200, response="ok")
            await eventually(lambda: server.closed == number)  # noqa: B023
    assert (server.connections, len(server.requests)) == (4, 4)


async def test_a_cookie_is_not_sent_back(server: FaultServer) -> None:
    async with webhook(server.url("/cookie")) as sink:
        assert [type(await post(sink)) for _ in range(2)] == [Published, Published]
    assert not [request for request in server.requests if "cookie" in request.headers]


async def test_connection_refused_means_sink_down() -> None:
    assert await posted(f"http://127.0.0.1:{free_port()}/") == SinkDown(reason="Connection refused")


async def test_unknown_host_means_sink_down() -> None:
    result = await posted("http://nowhere.invalid/", timeout="15s")
    assert isinstance(result, SinkDown)


async def test_post_is_a_signed_cloud_event(server: FaultServer) -> None:
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


def verified(secret: str, request: Request) -> Any:
    return Webhook(secret if secret.startswith("whsec_") else secret.encode()).verify(request.body, request.headers)


async def test_secret_rotation_has_no_gap_and_a_removed_secret_is_invalid(server: FaultServer) -> None:
    old, new = "the old secret", SECRET
    for secrets in ([old], [new, old], [new]):
        assert isinstance(await posted(server.url("/200"), secrets=secrets), Published)
    before, between, after = server.requests
    for secret, request in ((old, before), (old, between), (new, between), (new, after)):
        assert verified(secret, request) == {"id": "e"}
    for secret, request in ((new, before), (old, after)):
        with pytest.raises(WebhookVerificationError):
            verified(secret, request)


async def test_recorded_post_fails_verification_later(server: FaultServer) -> None:
    fields = {"egress_allow": ["127.0.0.0/8"], "secrets": [SECRET]}
    settings = WebhookSettings.model_validate({"name": "crm", "type": "webhook", "url": server.url("/200"), **fields})
    sink = WebhookSink(settings, now=lambda: time.time() - 301)
    await sink.start()
    await post(sink)
    await sink.stop()
    with pytest.raises(WebhookVerificationError, match="too old"):
        verified(SECRET, server.requests[0])


EVENT = {
    "specversion": "1.0",
    "id": "e1",
    "source": "/bandwidth/v2",
    "type": "message.sent",
    "subject": "a\r\nwebhook-id: forged\r\n\r\nÜ%",
    "time": "2026-01-01T00:00:00Z",
    "datacontenttype": "application/json",
    "data": {"messageId": "a", "text": "Grüße"},
}


async def test_in_binary_form_the_attributes_are_headers_that_nothing_can_break_out_of(server: FaultServer) -> None:
    async with webhook(server.url("/200"), binding="binary", secrets=[SECRET]) as sink:
        await post(sink, event=EVENT, body=orjson.dumps(EVENT))
    [request] = server.requests
    assert request.headers["content-type"] == "application/json"
    attributes = {name: value for name, value in request.headers.items() if name.startswith("ce-")}
    assert attributes == {
        "ce-specversion": "1.0",
        "ce-id": "e1",
        "ce-source": "/bandwidth/v2",
        "ce-type": "message.sent",
        "ce-subject": "a%0D%0Awebhook-id:%20forged%0D%0A%0D%0A%C3%9C%25",
        "ce-time": "2026-01-01T00:00:00Z",
    }
    assert request.headers["webhook-id"] == "e1"
    assert verified(SECRET, request) == EVENT["data"]


@pytest.mark.parametrize("binding", ["structured", "binary"])
@pytest.mark.parametrize("replayed", [True, False])
async def test_replayed_event_is_marked(server: FaultServer, binding: str, replayed: bool) -> None:
    async with webhook(server.url("/200"), binding=binding) as sink:
        await post(sink, event=EVENT, replayed=replayed)
    assert server.requests[0].headers.get("receiver-replayed") == ("true" if replayed else None)


async def test_a_traced_event_names_the_span_of_its_attempt(server: FaultServer) -> None:
    async with webhook(server.url("/200")) as sink:
        await post(sink, event=EVENT, traceparent=TRACEPARENT)
        await post(sink, event=EVENT)
    traced, plain = server.requests
    assert traced.headers["traceparent"] == TRACEPARENT
    assert "traceparent" not in plain.headers
    assert traced.body == plain.body


async def test_custom_headers_are_sent(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_TOKEN", "Bearer t0ken")
    await posted(server.url("/200"), headers={"X-Env": "prod  1", "Authorization": "env:CRM_TOKEN"})
    [request] = server.requests
    assert (request.headers["x-env"], request.headers["authorization"]) == ("prod  1", "Bearer t0ken")


async def test_user_and_password_in_the_url_are_basic_credentials(server: FaultServer) -> None:
    url = server.url("/200").replace("http://", "http://us%40er:p%3Aß@")
    await posted(url)
    [request] = server.requests
    assert base64.b64decode(request.headers["authorization"].removeprefix("Basic ")).decode() == "us@er:p:ß"
    assert request.headers["host"] == f"127.0.0.1:{server.port}"


@pytest.mark.parametrize("binding", ["structured", "binary"])
def test_an_event_that_is_posted_to_our_own_callbacks_makes_no_other(binding: Binding) -> None:
    published = publication(event=EVENT, body=orjson.dumps(EVENT))
    for api in Api:
        rejected_of(factories.post(bind(published, binding, prefix="ce-").body, api))


async def test_any_text_survives(server: FaultServer) -> None:
    body = orjson.dumps({"data": {"text": 'Grüße \U0001f600 "\\ \x01'}})
    async with webhook(server.url("/200"), secrets=[SECRET]) as sink:
        await post(sink, body=body)
    [request] = server.requests
    assert Webhook(SECRET).verify(request.body, request.headers) == orjson.loads(body)


async def test_connections_are_reused(server: FaultServer) -> None:
    async with webhook(server.url("/200")) as sink:
        for number in range(5):
            await post(sink, id=f"e{number}")
    assert (len(server.requests), server.connections) == (5, 1)


async def test_check_returns_why_nothing_answers(server: FaultServer) -> None:
    async with webhook(server.url("/500")) as sink:
        assert await sink.check() is None
    async with webhook(f"http://127.0.0.1:{free_port()}/secret-path") as sink:
        error = await sink.check()
    assert error == "Connection refused"
    async with webhook(server.url("/mute"), timeout="2s") as sink:
        assert await sink.check() == "timeout"
    async with webhook(server.url("/hang-up")) as sink:
        assert await sink.check() == "connection broken"


async def test_probe_says_what_is_wrong_and_sends_nothing(server: FaultServer) -> None:
    """A consumer may count requests, or take any of them for an event."""
    async with webhook(server.url("/200")) as sink:
        assert await sink.probe() is None
    assert (server.connections, server.requests) == (1, [])
    async with webhook(f"http://127.0.0.1:{free_port()}/") as sink:
        assert await sink.probe() == "Connection refused"
    async with webhooks.webhook(server.url("/200")) as sink:
        assert "is not a public address" in await sink.probe()
    async with webhook(server.url("/200").replace("http:", "https:"), timeout="1s") as sink:
        assert await sink.probe() == "no TLS in time"


async def test_from_the_log_to_a_webhook_several_messages_at_a_time(database: Database, server: FaultServer) -> None:
    entries = await append(database, [event for number in range(20) for event in life(f"m{number}")])
    table = {"name": "crm", "type": "webhook", "url": server.url("/hold"), "secrets": [SECRET], "start": "beginning"}
    table["egress_allow"] = ["127.0.0.0/8"]
    dispatchers = Dispatchers(database, configure([table]), clock=now, wakeup=Wakeup(), observer=Nobody())
    await dispatchers.start()
    await eventually(lambda: server.under_way == 8)
    assert len({request.headers["webhook-id"] for request in server.requests}) == 8
    server.held.set()
    await eventually(lambda: len(server.requests) == len(entries))
    await dispatchers.stop()
    received = [Webhook(SECRET).verify(request.body, request.headers) for request in server.requests]
    assert {one["id"] for one in received} == {entry.event.id for entry in entries}
    for subject in {one["subject"] for one in received}:
        sequences = [one["data"]["sequence"] for one in received if one["subject"] == subject]
        assert sequences == sorted(sequences)


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("retry_after", "pause"),
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
def test_retry_after_is_seconds_or_a_date(retry_after: str | None, pause: timedelta | None) -> None:
    assert parse_retry_after(retry_after, NOON.timestamp()) == pause


@pytest.mark.parametrize("time", ["{} 00:00:00 GMT", "2026 {}:00:00 GMT", "2026 00:00:00 +{}"])
def test_retry_after_with_an_invalid_date_is_ignored(time: str) -> None:
    assert parse_retry_after(f"Thu, 01 Jan {time.format('9' * 30)}", NOON.timestamp()) is None


async def test_response_that_repeats_the_request_is_stored_without_what_authenticates_it() -> None:
    with answering_webhook() as port:
        headers = {"X-Api-Key": "a-secret-of-the-crm", "X-Token": f"Bearer {'t' * 2000}", "X-Env": "prod"}
        url = f"http://crm-user:crm-password@127.0.0.1:{port}/422"
        result = await posted(url, headers=headers, egress_allow=["127.0.0.1/32"])
    assert result.response is not None
    assert "authorization: Basic ***" in result.response
    assert "X-Env: prod" in result.response
    encoded = base64.b64encode(b"crm-user:crm-password").decode()
    # Also where the secret would be longer than what is stored.
    for secret in ("a-secret-of-the-crm", "tttttttt", "crm-password", encoded):
        assert secret not in result.response
