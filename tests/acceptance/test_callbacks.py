"""The callback routes over a real socket: the answer to each situation, and what is stored."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from receiver.app import Receiver
from receiver.intake import server as web_server
from receiver.settings import Settings
from receiver.storage import journal
from receiver.storage.database import Database
from tests.factories import v1_event, v2_event
from tests.processes import PATIENT
from tests.waiting import eventually
from tests.web import serving

pytestmark = pytest.mark.anyio

V1, V2 = "/callbacks/bandwidth/v1", "/callbacks/bandwidth/v2"
CREDENTIALS = ["bandwidth:old:with:colons", "bandwidth:nëw"]
AUTH = httpx2.BasicAuth("bandwidth", "old:with:colons")


@asynccontextmanager
async def receiving(url: str, **settings: Any) -> AsyncIterator[httpx2.AsyncClient]:
    configured = Settings(
        **{
            "database_url": url,
            "callback_credentials": CREDENTIALS,
            "api_auth": "none",
            "metrics_auth": "none",
            "worker": "inline",
            **settings,
        }
    )
    async with (
        serving(Receiver(configured).app) as base,
        httpx2.AsyncClient(base_url=base, auth=AUTH, **PATIENT) as client,
    ):
        yield client


@pytest.fixture
async def client(database_url: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with receiving(database_url) as client:
        yield client


@pytest.fixture
async def sqlite_client(sqlite_url: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A client for requests that do not reach the database."""
    async with receiving(sqlite_url) as client:
        yield client


async def select(url: str, statement: str) -> list[Any]:
    database = Database(url)
    async with database.reading() as connection:
        found = list(await connection.execute(text(statement)))
    await database.close()
    return found


async def processed(url: str, statement: str) -> list[Any]:
    """The result of a statement after the processor has processed all accepted callbacks."""
    database = Database(url)

    async def nothing_is_pending() -> bool:
        async with database.reading() as connection:
            return not await journal.pending(database, connection)

    await eventually(nothing_is_pending)
    await database.close()
    return await select(url, statement)


async def counter(client: httpx2.AsyncClient, line: str) -> float:
    exposition = (await client.get("/metrics")).text
    return float(next((one.rpartition(" ")[2] for one in exposition.splitlines() if one.startswith(line)), "0"))


@pytest.mark.parametrize(
    ("path", "route"),
    [(V1, "primary"), (f"{V1}/fallback", "fallback"), (V2, "primary"), (f"{V2}/fallback", "fallback")],
)
async def test_every_callback_url_accepts_v1_and_v2(
    client: httpx2.AsyncClient, database_url: str, path: str, route: str
) -> None:
    for body in (v1_event("m-1"), [v2_event("m2")]):
        answer = await client.post(path, json=body)
        assert (answer.status_code, answer.content) == (200, b"")
    assert await processed(database_url, "SELECT api, route FROM events ORDER BY position") == [
        ("v1", route),
        ("v2", route),
    ]


async def test_v1_callback_by_get_with_unescaped_plus(client: httpx2.AsyncClient, database_url: str) -> None:
    query = (
        "eventType=sms&messageId=m-1&from=+15559999&to=%2B15550001&direction=out"
        "&state=sent&deliveryState=delivered&deliveryCode=0&time=2026-01-01T00:00:00Z"
    )
    assert (await client.get(f"{V1}?{query}")).status_code == 200
    assert await processed(database_url, "SELECT sender, status, delivery_code FROM message_status") == [
        ("+15559999", "delivered", 0)
    ]


async def test_bare_object_and_empty_array_are_accepted(client: httpx2.AsyncClient) -> None:
    for body in (v2_event(), []):
        assert (await client.post(V2, json=body)).status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Basic", "Basic !!!", "Bearer abc", "Basic YmFuZHdpZHRoOndyb25n", "Basic bm9jb2xvbg=="],
    ids=["missing", "empty", "bare", "garbage", "bearer", "wrong", "no-colon"],
)
async def test_wrong_credentials_are_401_with_challenge_and_nothing_is_stored(
    sqlite_client: httpx2.AsyncClient, sqlite_url: str, authorization: str | None
) -> None:
    headers = {"authorization": authorization} if authorization is not None else {}
    answer = await sqlite_client.post(V2, json=[v2_event()], headers=headers, auth=None)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith('Basic realm="')
    assert await select(sqlite_url, "SELECT count(*) FROM callbacks") == [(0,)]
    reason = "wrong-credentials" if authorization else "no-credentials"
    assert await counter(sqlite_client, f'receiver_refused_total{{reason="{reason}"}}') == 1


@pytest.mark.parametrize("password", ["old:with:colons", "nëw"])
async def test_every_configured_password_is_accepted(sqlite_client: httpx2.AsyncClient, password: str) -> None:
    auth = httpx2.BasicAuth("bandwidth", password)
    assert (await sqlite_client.post(V2, json=[], auth=auth)).status_code == 200


async def test_401_is_sent_before_the_body_is_read(sqlite_client: httpx2.AsyncClient) -> None:
    answer = await sqlite_client.post(V2, content=b"x" * 5_000_000, auth=None)
    assert answer.status_code == 401


async def chunks(size: int) -> AsyncIterator[bytes]:
    for _ in range(0, size, 65_536):
        yield b" " * 65_536


async def test_body_over_the_limit_is_413_declared_or_streamed(sqlite_client: httpx2.AsyncClient) -> None:
    assert (await sqlite_client.post(V2, content=b" " * 1_048_577)).status_code == 413
    assert (await sqlite_client.post(V2, content=chunks(2_000_000))).status_code == 413
    assert (await sqlite_client.post(V2, content=b"[" + b" " * 1_048_574 + b"]")).status_code == 200
    assert await counter(sqlite_client, 'receiver_refused_total{reason="too-large"}') == 2


async def test_compressed_body_is_415(sqlite_client: httpx2.AsyncClient) -> None:
    answer = await sqlite_client.post(V2, content=gzip.compress(b"[]"), headers={"content-encoding": "gzip"})
    assert answer.status_code == 415


@pytest.mark.parametrize("charset", ["UTF-8", "utf8", "iso-8859-1"])
async def test_charset_as_content_encoding_is_no_compression(
    sqlite_client: httpx2.AsyncClient, sqlite_url: str, charset: str
) -> None:
    body = json.dumps([v2_event()]).encode()
    answer = await sqlite_client.post(V2, content=body, headers={"content-encoding": charset})
    assert answer.status_code == 200
    assert await select(sqlite_url, "SELECT body FROM callbacks") == [(body,)]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("GET", V2, "POST"), ("PUT", V2, "POST"), ("HEAD", V1, "GET, POST"), ("DELETE", V1, "GET, POST")],
)
async def test_other_method_is_405_with_allow(
    sqlite_client: httpx2.AsyncClient, method: str, path: str, allow: str
) -> None:
    answer = await sqlite_client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allow)


@pytest.mark.parametrize(
    "path", [f"{V2}/", f"/{V2}", f"{V2}/..;/v1", "/callbacks//bandwidth/v2", "/CALLBACKS/bandwidth/v2"]
)
async def test_trailing_slash_is_404_without_redirect(sqlite_client: httpx2.AsyncClient, path: str) -> None:
    url = str(sqlite_client.base_url).rstrip("/") + path
    assert (await sqlite_client.post(url, json=[v2_event()])).status_code == 404


async def test_callback_from_outside_callback_networks_is_403(sqlite_url: str) -> None:
    async with receiving(sqlite_url, callback_networks=["192.0.2.0/24"]) as client:
        assert (await client.post(V2, json=[])).status_code == 403
        spoofed = await client.post(V2, json=[], headers={"x-forwarded-for": "192.0.2.7"})
        assert spoofed.status_code == 403
    proxied = {"callback_networks": ["192.0.2.0/24"], "trusted_proxies": ["127.0.0.1/32"]}
    async with receiving(sqlite_url, **proxied) as client:
        assert (await client.post(V2, json=[], headers={"x-forwarded-for": "192.0.2.7"})).status_code == 200
        chained = {"x-forwarded-for": "192.0.2.7, 198.51.100.1"}
        assert (await client.post(V2, json=[], headers=chained)).status_code == 403


@pytest.mark.parametrize(
    ("forwarded", "scheme"), [("https, http", "https"), ("http,https", "http"), ("https", "https"), ("wrong", "http")]
)
async def test_links_begin_with_the_protocol_that_the_client_used(sqlite_url: str, forwarded: str, scheme: str) -> None:
    async with receiving(sqlite_url, trusted_proxies=["127.0.0.1/32"], api_auth="none") as client:
        for number in range(2):
            header = {"x-forwarded-proto": forwarded}
            assert (await client.post(V2, json=[v2_event(f"m{number}")], headers=header)).status_code == 200
        listed = await client.get("/api/messages?size=1", headers={"x-forwarded-proto": forwarded})
        assert listed.headers["link"].startswith(f"<{scheme}://")
        [(headers,), _] = await select(sqlite_url, "SELECT headers FROM callbacks")
        assert json.loads(headers)["x-forwarded-proto"] == forwarded


@asynccontextmanager
async def connections(client: httpx2.AsyncClient, number: int, sent: bytes = b"") -> AsyncIterator[list[Any]]:
    """Connections that have sent this and nothing else."""
    base = client.base_url
    opened = []
    try:
        for _ in range(number):
            reader, writer = await asyncio.open_connection(base.host, base.port)
            writer.write(sent)
            await writer.drain()
            opened.append((reader, writer))
        yield opened
    finally:
        for _, writer in opened:
            writer.close()


@pytest.mark.parametrize("sent", [b"", b"POST /callbacks HTTP/1.1\r\nx-slow: "], ids=["nothing", "half a head"])
async def test_waiting_connections_shut_nobody_out(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(web_server, "MAX_CONNECTIONS", 8)
    async with receiving(sqlite_url) as client, connections(client, 30, sent) as opened:
        for number in range(3):
            assert (await client.post(V2, json=[v2_event(f"m{number}")])).status_code == 200
        assert (await client.get("/healthz")).status_code == 200
        first, last = opened[0][0], opened[-1][0]
        async with asyncio.timeout(10):
            with suppress(ConnectionError):
                assert await first.read() == b""
        assert not last.at_eof()
        assert await counter(client, 'receiver_connections_closed_total{reason="limit"}') >= 22


async def test_request_in_progress_outlives_idle_connections(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "MAX_CONNECTIONS", 8)
    body = json.dumps([v2_event("slow")]).encode()
    head = b"POST " + V2.encode() + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: " + authorization()
    begun = head + b"\r\ncontent-length: %d\r\n\r\n[" % len(body)
    async with (
        receiving(sqlite_url) as client,
        connections(client, 1, begun) as [(reader, writer)],
        connections(client, 30),
    ):
        writer.write(body[1:])
        async with asyncio.timeout(10):
            assert (await reader.read()).startswith(b"HTTP/1.1 200")


NASTY: dict[str, bytes] = {
    "nothing": b"",
    "not json": b"<xml/>",
    "half": b'[{"type": "message-deliv',
    "invalid utf-8": b'[{"type":"message-delivered","message":{"id":"m\xff\xfe"}}]',
    "bom": b"\xef\xbb\xbf" + json.dumps([v2_event("bom")]).encode(),
    "utf-16": json.dumps([v2_event("utf16")]).encode("utf-16"),
    "nul": json.dumps([v2_event("nul", message={"text": "a\x00b", "tag": "\x00"})]).encode(),
    "surrogate": json.dumps([v2_event("s", message={"text": "\ud800", "from": "\udfff"})]).encode(),
    "nan": b'[{"type":"message-delivered","errorCode":NaN,"message":{"id":"nan","segmentCount":Infinity}}]',
    "huge integer": b'[{"type":"message-failed","errorCode":' + b"9" * 5000 + b',"message":{"id":"huge"}}]',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "duplicate keys": b'[{"type":"message-failed","type":"message-delivered","message":{"id":"dup","id":"dup2"}}]',
    "a million keys": b"{" + b",".join(b'"%d":1' % n for n in range(80_000)) + b"}",
    "scalars": b'[1,null,true,"x",[],{}]',
    "voice": b'{"eventType":"answer","callId":"c-1"}',
    "international": b'{"msgId":"1","event":"DELIVERED"}',
    "without id": b'[{"type":"message-delivered","message":{}}]',
    "unknown type": b'[{"type":"message-pondered","message":{"id":"m"}}]',
}


@pytest.mark.parametrize("body", NASTY.values(), ids=NASTY)
async def test_any_authenticated_body_is_stored_and_answered_200(
    client: httpx2.AsyncClient, database_url: str, body: bytes
) -> None:
    assert (await client.post(V2, content=body)).status_code == 200
    [(stored,)] = await select(database_url, "SELECT body FROM callbacks")
    assert bytes(stored) == body
    assert (await client.post(V2, json=[v2_event("next")])).status_code == 200
    assert await processed(database_url, "SELECT status FROM messages WHERE id = 'next'") == [("delivered",)]
    assert await select(database_url, "SELECT last_error FROM processor") == [(None,)]


@pytest.mark.parametrize("query", ["", "eventType=sms", "eventType=answer&callId=1", "%ff%00=%00", "a" * 5000])
async def test_get_without_event_is_quarantined(client: httpx2.AsyncClient, database_url: str, query: str) -> None:
    assert (await client.get(f"{V1}?{query}")).status_code == 200
    [(reason,)] = await processed(database_url, "SELECT reason FROM quarantine")
    assert reason in ("unreadable", "foreign-product", "no-message-id", "unknown-type")


async def test_credentials_are_not_stored_with_the_headers(sqlite_client: httpx2.AsyncClient, sqlite_url: str) -> None:
    await sqlite_client.post(V2, json=[v2_event()], headers={"cookie": "session=1", "user-agent": "BandwidthAPI/v2"})
    [(headers,)] = await select(sqlite_url, "SELECT headers FROM callbacks")
    stored = json.loads(headers)
    assert stored["user-agent"] == "BandwidthAPI/v2"
    assert not {"authorization", "cookie"} & stored.keys()


@pytest.mark.slow
async def test_while_the_journal_cannot_commit_the_answer_is_503_and_not_ready(sqlite_url: str) -> None:
    async with receiving(sqlite_url) as client:
        holder = Database(sqlite_url)
        async with holder.writing_journal(), asyncio.timeout(10):  # then Bandwidth waits no longer
            answers = await asyncio.gather(
                client.post(V2, json=[v2_event()]), client.get("/readyz"), client.get("/healthz")
            )
        await holder.close()
        assert [answer.status_code for answer in answers] == [503, 503, 200]
        assert int(answers[0].headers["retry-after"]) > 0
        assert (await client.post(V2, json=[v2_event()])).status_code == 200


async def test_locked_status_table_delays_no_answer_and_readyz_stays_ready(sqlite_url: str) -> None:
    async with receiving(sqlite_url) as client:
        holder = Database(sqlite_url)
        async with holder.writing():
            answers = [await client.post(V2, json=[v2_event()]), await client.get("/readyz")]
        await holder.close()
        assert [answer.status_code for answer in answers] == [200, 200]
        assert await processed(sqlite_url, "SELECT status FROM messages") == [("delivered",)]


async def test_root_has_links_in_one_line(sqlite_client: httpx2.AsyncClient) -> None:
    shown = await sqlite_client.get("/", auth=None)
    assert shown.headers["content-type"].startswith("text/plain")
    links = [word.strip(",\n") for word in shown.text.split(" ") if word.startswith("http")]
    assert (len(links), shown.text.count("\n")) == (3, 1)
    for link in links:
        assert (await sqlite_client.get(link, auth=None)).status_code == 200


def remove(folder: Path, name: str) -> None:
    """Removes a file of the database with what SQLite has beside it."""
    for file in folder.glob(f"{name}*"):
        file.unlink()


async def test_removed_journal_file_is_503_and_not_ready(sqlite_url: str, tmp_path: Path) -> None:
    async with receiving(sqlite_url) as client:
        assert (await client.post(V2, json=[v2_event()])).status_code == 200
        remove(tmp_path, "callbacks.db")
        assert (await client.post(V2, json=[v2_event()])).status_code == 503

        async def is_not_ready() -> bool:
            return (await client.get("/readyz")).status_code == 503

        await eventually(is_not_ready)


async def test_removed_status_file_is_503_for_the_api(sqlite_url: str, tmp_path: Path) -> None:
    async with receiving(sqlite_url) as client:
        assert (await client.post(V2, json=[v2_event()])).status_code == 200
        answer = await client.get("/api/messages")
        assert (answer.status_code, len(answer.json())) == (200, 1)
        remove(tmp_path, "receiver.db")
        answer = await client.get("/api/messages")
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        assert int(answer.headers["retry-after"]) > 0
        # Accepting goes on: the journal is another file.
        assert (await client.post(V2, json=[v2_event("m2")])).status_code == 200


def authorization() -> bytes:
    return next(AUTH.sync_auth_flow(httpx2.Request("POST", "http://x"))).headers["authorization"].encode()


async def raw(client: httpx2.AsyncClient, *parts: bytes, pause: float = 0) -> bytes:
    """The response of the server to raw bytes, until it closes the connection."""
    base = client.base_url
    reader, writer = await asyncio.open_connection(base.host, base.port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        async with asyncio.timeout(30):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_slow_headers_and_bodies_close_the_connection(
    sqlite_client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_slow = b"HTTP/1.1 408"
    head = b"POST " + V2.encode() + b" HTTP/1.1\r\nhost: x\r\nauthorization: " + authorization()
    with monkeypatch.context() as short:
        short.setattr(web_server, "REQUEST_SECONDS", 1.0)
        assert (await raw(sqlite_client, b"POST ", b"/callb")).startswith(too_slow)
        assert (await raw(sqlite_client)).startswith(too_slow)
        assert (await raw(sqlite_client, head + b"\r\ncontent-length: 10\r\n\r\n", b"[")).startswith(too_slow)
    assert (await sqlite_client.post(V2, json=[v2_event()])).status_code == 200
    assert await counter(sqlite_client, 'receiver_connections_closed_total{reason="slow"}') == 3


H2C = b"connection: Upgrade, HTTP2-Settings, close\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
WEBSOCKET = b"Connection: close, upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"


def offering(offer: bytes, *, chunked: bool, message_id: str = "m1") -> bytes:
    """A callback whose client offers another protocol."""
    body = json.dumps([v2_event(message_id)]).encode()
    head = b"POST " + V2.encode() + b" HTTP/1.1\r\nhost: x\r\nauthorization: " + authorization() + b"\r\n" + offer
    if chunked:
        return head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return head + b"content-length: %d\r\n\r\n%s" % (len(body), body)


def in_pieces(request: bytes, pieces: str) -> list[bytes]:
    places = {
        "one packet": [],
        "head and body": [request.index(b"\r\n\r\n") + 4],
        "within the name of the header": [request.lower().index(b"upgrade:") + 3],
        "within the end of the head": [request.index(b"\r\n\r\n") + 2],
        "within the body": [len(request) - 20],
    }[pieces]
    edges = [0, *places, len(request)]
    return [request[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize(
    "pieces",
    ["one packet", "head and body", "within the name of the header", "within the end of the head", "within the body"],
)
async def test_offered_upgrade_is_ignored_and_the_body_is_kept(
    sqlite_client: httpx2.AsyncClient, sqlite_url: str, offer: bytes, chunked: bool, pieces: str
) -> None:
    request = offering(offer, chunked=chunked)
    answer = await raw(sqlite_client, *in_pieces(request, pieces), pause=0.02)
    assert answer.startswith(b"HTTP/1.1 200")
    assert await select(sqlite_url, "SELECT body FROM callbacks") == [(json.dumps([v2_event()]).encode(),)]


async def test_offers_in_pipelined_requests_are_ignored(sqlite_client: httpx2.AsyncClient, sqlite_url: str) -> None:
    offer = H2C.replace(b", close", b"")
    requests = [offering(offer, chunked=number == 1, message_id=f"m{number}") for number in range(3)]
    last = b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + WEBSOCKET + b"\r\n"
    answer = await raw(sqlite_client, b"".join(requests) + last)
    assert answer.count(b"HTTP/1.1 200") == 4
    bodies = [json.loads(body) for (body,) in await select(sqlite_url, "SELECT body FROM callbacks ORDER BY sequence")]
    assert [event["message"]["id"] for [event] in bodies] == ["m0", "m1", "m2"]


async def test_flood_of_offers_closes_the_connection(
    sqlite_client: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    offer = b"GET /healthz HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    await raw(sqlite_client, offer * 2000)
    assert (await sqlite_client.get("/healthz")).status_code == 200
    assert [record for record in caplog.records if record.exc_info] == []


async def test_get_with_an_offer_leaves_the_connection_in_use(sqlite_client: httpx2.AsyncClient) -> None:
    offer = WEBSOCKET.replace(b"close, ", b"")
    get = b"GET /healthz HTTP/1.1\r\nhost: x\r\n"
    answer = await raw(sqlite_client, get + offer + b"\r\n", get + b"connection: close\r\n\r\n", pause=0.05)
    assert answer.count(b"HTTP/1.1 200") == 2


async def test_head_with_an_offer_is_bounded_as_any(sqlite_client: httpx2.AsyncClient) -> None:
    endless = (
        b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + WEBSOCKET + b"x-long: " + b"x" * (2 * web_server.MAX_HEADER_BYTES)
    )
    assert await raw(sqlite_client, endless) == b""


async def test_trailers_of_a_chunked_body_are_ignored(sqlite_client: httpx2.AsyncClient, sqlite_url: str) -> None:
    head = b"POST " + V2.encode() + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n"
    body = json.dumps([v2_event()]).encode()
    chunk = b"\r\n%x\r\n%s\r\n0\r\n" % (len(body), body)
    credentials = b"authorization: " + authorization() + b"\r\n"
    late = await raw(sqlite_client, head, chunk + credentials + b"\r\n")
    assert late.startswith(b"HTTP/1.1 401")
    answer = await raw(sqlite_client, head + credentials + chunk + b"x-forwarded-for: 192.0.2.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    [(headers,)] = await select(sqlite_url, "SELECT headers FROM callbacks")
    assert "x-forwarded-for" not in headers


async def test_expect_100_continue_with_too_large_a_body_is_413_at_once(sqlite_client: httpx2.AsyncClient) -> None:
    head = b"POST " + V2.encode() + b" HTTP/1.1\r\nhost: x\r\nauthorization: " + authorization()
    asking = head + b"\r\ncontent-length: 2000000\r\nexpect: 100-continue\r\n\r\n"
    assert (await raw(sqlite_client, asking)).startswith(b"HTTP/1.1 413")


async def test_repeated_headers_are_joined(sqlite_client: httpx2.AsyncClient, sqlite_url: str) -> None:
    head = b"POST " + V2.encode() + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n"
    valid = b"authorization: " + authorization() + b"\r\n"
    wrong = b"authorization: Basic eDp5\r\n"
    for credentials in (valid + wrong, wrong + valid, valid + valid):
        assert (await raw(sqlite_client, head + credentials + b"\r\n[]")).startswith(b"HTTP/1.1 401")
    for encodings in ((b"gzip", b"identity"), (b"identity", b"gzip")):
        lines = b"".join(b"content-encoding: %b\r\n" % encoding for encoding in encodings)
        assert (await raw(sqlite_client, head + valid + lines + b"\r\n[]")).startswith(b"HTTP/1.1 415")
    twice = b"x-carrier: a\r\nx-carrier: b\r\n"
    assert (await raw(sqlite_client, head + valid + twice + b"\r\n[]")).startswith(b"HTTP/1.1 200")
    [(headers,)] = await select(sqlite_url, "SELECT headers FROM callbacks")
    assert json.loads(headers)["x-carrier"] == "a, b"


@pytest.mark.parametrize("pause", [0, 0.01], ids=["at once", "in pieces"])
@pytest.mark.parametrize(
    "flood",
    [
        b"".join(b"x-%d: %s\r\n" % (n, b"a" * 1000) for n in range(100)),
        b"x-endless: " + b"a" * 100_000,
        b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"x-trailer: a\r\n" * 40_000,
    ],
    ids=["headers", "one header", "trailers"],
)
async def test_endless_headers_and_trailers_close_the_connection(
    sqlite_client: httpx2.AsyncClient, flood: bytes, pause: float
) -> None:
    head = b"POST " + V2.encode() + b" HTTP/1.1\r\nhost: x\r\nauthorization: " + authorization() + b"\r\n"
    request = head + flood
    pieces = [request[place : place + 16_384] for place in range(0, len(request), 16_384)]
    assert await raw(sqlite_client, *(pieces if pause else [request]), pause=pause) == b""


async def test_body_in_many_chunks_is_accepted(sqlite_client: httpx2.AsyncClient, sqlite_url: str) -> None:
    body = json.dumps([v2_event(text="a" * 500_000)]).encode()
    head = b"POST " + V2.encode() + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: " + authorization()
    request = head + b"\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    pieces = [request[place : place + 100_000] for place in range(0, len(request), 100_000)]
    assert (await raw(sqlite_client, *pieces, pause=0.01)).startswith(b"HTTP/1.1 200")
    assert await select(sqlite_url, "SELECT length(body) FROM callbacks") == [(len(body),)]


async def test_flood_of_pipelined_requests_closes_the_connection(
    sqlite_client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    request = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    assert (await raw(sqlite_client, request * 10, request[:-4] + b"\r\nconnection: close\r\n\r\n")).count(
        b"HTTP/1.1 200"
    ) == 11
    begun = web_server.HttpToolsProtocol.on_headers_complete
    parsed = 0

    def counted(protocol: Any) -> None:
        nonlocal parsed
        parsed += 1
        begun(protocol)

    monkeypatch.setattr(web_server.HttpToolsProtocol, "on_headers_complete", counted)
    assert (await raw(sqlite_client, request * 4000)).count(b"HTTP/1.1 200") < 1000
    assert parsed <= web_server.MAX_PIPELINED + 10
    assert caplog.text.count("Invalid HTTP request") == 0


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 2\r\ntransfer-encoding: chunked\r\n",
        b"content-length: 2\r\ncontent-length: 3\r\n",
        b"transfer-encoding: chunked, identity\r\n",
        b"content-length: +2\r\n",
    ],
    ids=["CL.TE", "two lengths", "odd coding", "signed length"],
)
async def test_ambiguous_lengths_are_refused(sqlite_client: httpx2.AsyncClient, head: bytes) -> None:
    request = b"POST " + V2.encode() + b" HTTP/1.1\r\nhost: x\r\n" + head + b"\r\n2\r\n[]\r\n0\r\n\r\n"
    assert (await raw(sqlite_client, request)).startswith(b"HTTP/1.1 400")


async def test_huge_content_length_is_not_a_500(sqlite_client: httpx2.AsyncClient) -> None:
    head = b"POST " + V2.encode() + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: " + authorization()
    assert not (await raw(sqlite_client, head + b"\r\ncontent-length: " + b"0" * 5000 + b"2\r\n\r\n[]")).startswith(
        b"HTTP/1.1 5"
    )
    assert not (await raw(sqlite_client, head + b"\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n[]")).startswith(
        b"HTTP/1.1 5"
    )


async def test_callback_is_stored_when_the_client_disconnects_after_its_body(
    client: httpx2.AsyncClient, database_url: str
) -> None:
    body = json.dumps([v2_event("gone")]).encode()
    head = b"POST " + V2.encode() + b" HTTP/1.1\r\nhost: x\r\nauthorization: " + authorization()
    _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(head + b"\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()

    async def is_processed() -> bool:
        return await select(database_url, "SELECT message_id FROM events") == [("gone",)]

    await eventually(is_processed)


async def test_metrics_count_accepted_and_processed_callbacks(client: httpx2.AsyncClient, database_url: str) -> None:
    for body in ([v2_event("m1")], [v2_event("m1")], [1]):
        await client.post(V2, json=body)
    assert await counter(client, "receiver_accepted_total") == 3
    assert await counter(client, "receiver_ack_seconds_count") == 3

    async def all_are_counted() -> bool:
        return await counter(client, "receiver_processor_lag_seconds_count") == 3

    await eventually(all_are_counted)
    for result in ("accepted", "duplicate", "quarantined"):
        assert await counter(client, f'receiver_callbacks_total{{result="{result}"}}') == 1
    assert await counter(client, 'receiver_events_total{type="message.delivered"}') == 1
    assert await counter(client, 'receiver_tag_verdicts_total{verdict="unchecked"}') == 1
    assert await counter(client, 'receiver_quarantined_total{reason="unreadable"}') == 1
    assert await counter(client, "receiver_processor_stuck") == 0


def test_no_proxy_middleware_without_trusted_proxies(sqlite_url: str) -> None:
    receiver = Receiver(Settings(database_url=sqlite_url))
    assert receiver.app.user_middleware == []
