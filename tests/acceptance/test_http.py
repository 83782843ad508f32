"""Raw sockets against the real server: what strangers send to every kind of route, of the receiver and the sandbox."""

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route as StarletteRoute

from receiver.app import Receiver
from receiver.intake import server as web_server
from receiver.intake.server import Closed
from receiver.sandbox.app import application
from receiver.sandbox.settings import SandboxSettings
from receiver.settings import Settings
from tests.factories import v2_event
from tests.sandboxes import v1_message, v2_message
from tests.waiting import eventually
from tests.web import serving

pytestmark = pytest.mark.anyio

TOKEN = "token-of-a-test"
BASIC = b"authorization: Basic " + b64encode(b"token:secret") + b"\r\n"
BEARER = b"authorization: Bearer " + TOKEN.encode() + b"\r\n"
JSON = b"content-type: application/json\r\n"
V1_USER = b"authorization: Basic " + b64encode(b"anyone:" + TOKEN.encode()) + b"\r\n"


@dataclass(frozen=True, slots=True)
class Route:
    """A request to one kind of route: its head without the end, its body, and the status of its answer."""

    method: bytes
    path: bytes
    status: int
    headers: bytes = b""
    body: bytes = b""

    def head(self, *more: bytes, length: bytes | None = None) -> bytes:
        length = str(len(self.body)).encode() if length is None else length
        described = b"content-length: " + length + b"\r\n" if length else b""
        return b"%s %s HTTP/1.1\r\nhost: x\r\n%s%s%s" % (
            self.method,
            self.path,
            self.headers,
            described,
            b"".join(more),
        )

    def __str__(self) -> str:
        return f"{self.method.decode()} {self.path.decode()} {self.status}"


EVENT = json.dumps([v2_event()]).encode()
RECEIVER = [
    Route(b"POST", b"/callbacks/bandwidth/v2", 200, BASIC + JSON, EVENT),
    Route(b"POST", b"/callbacks/bandwidth/v2", 401, JSON, EVENT),
    Route(b"DELETE", b"/callbacks/bandwidth/v2", 405, BASIC, b"x"),
    Route(b"GET", b"/healthz", 200),
    Route(b"GET", b"/metrics", 401),
    Route(b"GET", b"/docs", 200),
    Route(b"GET", b"/api/messages", 200, BEARER),
    Route(b"POST", b"/api/tags", 200, BEARER + JSON, b'{"value": "order 1"}'),
    Route(b"POST", b"/api/tags", 401, JSON, b'{"value": "order 1"}'),
    Route(b"GET", b"/v1/users/u/messages", 200, V1_USER),
    Route(b"POST", b"/nowhere", 404, JSON, b"{}"),
]
SANDBOX = [
    Route(b"POST", b"/api/v2/users/u-1/messages", 202, BASIC + JSON, json.dumps(v2_message()).encode()),
    Route(b"POST", b"/v1/users/u-1/messages", 201, BASIC + JSON, json.dumps(v1_message()).encode()),
    Route(b"POST", b"/v1/users/u-1/messages", 401, JSON, json.dumps(v1_message()).encode()),
    Route(b"GET", b"/v1/users/u-1/messages", 200, BASIC),
    Route(b"GET", b"/sandbox/posts", 200),
    Route(b"POST", b"/sandbox/rates", 200, JSON, b"{}"),
    Route(b"POST", b"/nowhere", 404, JSON, b"{}"),
]
EACH = [*[("receiver", route) for route in RECEIVER], *[("sandbox", route) for route in SANDBOX]]
each_route = pytest.mark.parametrize(("program", "route"), EACH, ids=lambda value: str(value).replace("/", "-"))


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Reasons:
    """Collects the reasons for which the server refuses requests itself and closes connections."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.closed: list[str] = []
        self.rejected, self.connection_closed = self.refused.append, self.closed.append


@dataclass(frozen=True, slots=True)
class Site:
    """A running program."""

    url: str
    app: Any

    @asynccontextmanager
    async def connection(self, source: str = "127.0.0.1") -> AsyncIterator[Connection]:
        parts = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, local_addr=(source, 0))
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def raw(self, *parts: bytes, pause: float = 0) -> bytes:
        """What the server answers, until it closes the connection."""
        async with self.connection() as (reader, writer):
            try:
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(pause)
                return await asyncio.wait_for(reader.read(), 30)
            except ConnectionError:
                return b""


@asynccontextmanager
async def running(program: str, sqlite_url: str) -> AsyncIterator[Site]:
    if program == "sandbox":
        app: Any = application(SandboxSettings(messages_per_second=0))
        async with serving(app) as url:
            yield Site(url, app)
        return
    settings = Settings(
        database_url=sqlite_url,
        callback_credentials=["token:secret"],
        api_tokens=[TOKEN],
        tag_keys=["k1:secret"],
        worker="inline",
    )
    app = Receiver(settings).app
    async with serving(app) as url:
        yield Site(url, app)


@pytest.fixture
async def site(program: str, sqlite_url: str) -> AsyncIterator[Site]:
    async with running(program, sqlite_url) as site:
        yield site


CLOSE = b"connection: close\r\n"


def statuses(answer: bytes) -> list[int]:
    return [int(part[1:4]) for part in answer.split(b"HTTP/1.1")[1:]]


def pieces(request: bytes, size: int = 16_384) -> list[bytes]:
    return [request[place : place + size] for place in range(0, len(request), size)]


H2C = b"upgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"


@each_route
async def test_requests_with_an_offer_are_answered_in_every_form(site: Site, route: Route) -> None:
    """An offered upgrade is ignored: with a length, chunked, head and body in separate packets, on one connection."""
    offer = H2C + b"connection: Upgrade, HTTP2-Settings\r\n"
    closing = H2C + b"connection: Upgrade, HTTP2-Settings, close\r\n"
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(route.body), route.body) if route.body else b"0\r\n\r\n"
    answer = await site.raw(
        route.head(offer) + b"\r\n" + route.body,
        route.head(offer) + b"\r\n",
        route.body,
        route.head(offer, b"transfer-encoding: chunked\r\n", length=b"") + b"\r\n" + chunked,
        route.head(closing) + b"\r\n" + route.body,
        pause=0.02,
    )
    assert statuses(answer) == [route.status] * 4


@each_route
@pytest.mark.parametrize("pause", [0, 0.005], ids=["at-once", "in-pieces"])
async def test_endless_header_is_not_read(site: Site, route: Route, pause: float) -> None:
    request = route.head(b"x-endless: " + b"a" * 400_000)
    assert await site.raw(*(pieces(request) if pause else [request]), pause=pause) == b""


@each_route
async def test_endless_trailer_closes_the_connection(site: Site, route: Route, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "LINGER_BYTES", 100_000)
    chunked = route.head(b"transfer-encoding: chunked\r\n", length=b"") + b"\r\n0\r\n"
    answer = await site.raw(chunked, *pieces(b"x-endless: " + b"a" * 400_000), pause=0.005)
    # What needs no body is answered before the trailer.
    assert statuses(answer) in ([], [route.status])


@each_route
async def test_content_length_with_very_many_zeros_is_its_number(site: Site, route: Route) -> None:
    length = b"0" * 5000 + str(len(route.body)).encode()
    assert statuses(await site.raw(route.head(CLOSE, length=length) + b"\r\n" + route.body)) == [route.status]
    huge = await site.raw(route.head(CLOSE, length=b"9" * 5000) + b"\r\n" + route.body)
    assert statuses(huge)[0] < 500


@pytest.mark.parametrize(
    ("program", "route"),
    [(program, route) for program, route in EACH if b"authorization" in route.headers and route.status < 300],
    ids=lambda value: str(value).replace("/", "-"),
)
async def test_two_authorization_headers_are_no_credentials(site: Site, route: Route) -> None:
    authorization = route.headers.replace(JSON, b"")
    for more in (authorization, b"authorization: Basic eDp5\r\n"):
        answer = await site.raw(route.head(more, CLOSE) + b"\r\n" + route.body)
        assert statuses(answer) == [401]


REFUSED = [("receiver", route) for route in RECEIVER if route.status >= 400] + [
    ("sandbox", route) for route in SANDBOX if route.status >= 400
]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the pieces that the parser gets."""
    sizes: list[int] = []
    feed_data = web_server._Parser.feed_data

    def counted(parser: Any, data: bytes) -> None:
        sizes.append(len(data))
        feed_data(parser, data)

    monkeypatch.setattr(web_server._Parser, "feed_data", counted)
    return sizes


@pytest.mark.parametrize(("program", "route"), REFUSED, ids=lambda value: str(value).replace("/", "-"))
@pytest.mark.parametrize("form", ["length", "chunked"])
async def test_large_body_behind_a_refusal_is_not_parsed_and_the_answer_arrives(
    site: Site, route: Route, form: str, parsed: list[int]
) -> None:
    body = b"x" * 1_900_000
    if form == "length":
        request = route.head(length=str(len(body)).encode()) + b"\r\n" + body
    else:
        request = route.head(b"transfer-encoding: chunked\r\n", length=b"") + b"\r\n"
        request += b"1\r\nx\r\n" * (len(body) // 6)
    answer = await site.raw(request)
    assert statuses(answer) == [route.status]
    assert b"connection: close" in answer.lower()
    assert sum(parsed) < 1_000_000


async def send_without_end(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x" * 65_536)
        await writer.drain()


@pytest.mark.parametrize(("program", "route"), REFUSED, ids=lambda value: str(value).replace("/", "-"))
async def test_endless_body_behind_a_refusal_is_cut_off(
    site: Site, route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_server, "LINGER_BYTES", 300_000)
    async with site.connection() as (_, writer), asyncio.timeout(20):
        writer.write(route.head(length=b"99999999999") + b"\r\n")
        with pytest.raises(ConnectionError):
            await send_without_end(writer)


@pytest.mark.parametrize(("program", "route"), REFUSED, ids=lambda value: str(value).replace("/", "-"))
async def test_small_body_behind_a_refusal_leaves_the_connection_in_use(site: Site, route: Route) -> None:
    """Bandwidth's first request for each callback has no credentials; the second one uses the same connection."""
    head = route.head(length=b"20000") + b"\r\n"
    answer = await site.raw(
        head, b"x" * 20_000, head, b"x" * 20_000, route.head(CLOSE) + b"\r\n" + route.body, pause=0.02
    )
    assert statuses(answer) == [route.status] * 3
    assert answer.lower().count(b"connection: close") == 1


@pytest.mark.parametrize("program", ["receiver", "sandbox"])
async def test_connection_whose_body_came_after_the_answer_times_out(
    site: Site, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [*_, refused] = [route for each, route in REFUSED if each == program]
    settings: list[Any] = []
    init = web_server.DeadlineProtocol.connection_made

    def quickly(protocol: Any, transport: Any) -> None:
        protocol.timeout_keep_alive = 0.2
        settings.append(protocol)
        init(protocol, transport)

    monkeypatch.setattr(web_server.DeadlineProtocol, "connection_made", quickly)
    answer = await site.raw(refused.head() + b"\r\n", refused.body, b"\r\n", pause=0.05)
    assert statuses(answer) == [refused.status]
    assert len(settings) == 1


@pytest.mark.parametrize(("program", "callback"), [("receiver", RECEIVER[0]), ("sandbox", SANDBOX[0])])
@pytest.mark.parametrize("form", ["length", "chunked"])
async def test_too_large_a_body_is_413_at_once_and_after_the_whole_body(site: Site, callback: Route, form: str) -> None:
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    if form == "length":
        head, body = callback.head(length=b"4000000") + b"\r\n", b" " * 4_000_000
        begun = head + body[:10]
    else:
        head, body = callback.head(b"transfer-encoding: chunked\r\n", length=b"") + b"\r\n", chunk * 4 + b"0\r\n\r\n"
        begun = head + body[: 3 * len(chunk)]
    async with site.connection() as (reader, writer), asyncio.timeout(5):
        writer.write(begun)
        # The rest never comes: the answer does not wait for it.
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413")
    # A client that reads only when it has sent all of it.
    assert statuses(await site.raw(head + body)) == [413]
    assert statuses(await site.raw(callback.head(CLOSE) + b"\r\n" + callback.body)) == [callback.status]


@pytest.mark.parametrize("program", ["receiver", "sandbox"])
async def test_client_with_very_many_connections_gives_up_its_own(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "MAX_CONNECTIONS", 8)
    async with AsyncExitStack() as stack:
        quiet = await stack.enter_async_context(site.connection())
        for _ in range(30):
            await stack.enter_async_context(site.connection("127.0.0.2"))
        other = await stack.enter_async_context(site.connection("127.0.0.3"))
        for reader, writer in (other, quiet):
            writer.write(b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n")
            async with asyncio.timeout(10):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize("program", ["receiver", "sandbox"])
async def test_slow_request_is_408_unless_it_is_answered_already(
    site: Site, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The head of a request that is sent at once must arrive within this time on a busy machine too.
    monkeypatch.setattr(web_server, "REQUEST_SECONDS", 1.0)
    [*_, refused] = [route for each, route in REFUSED if each == program]
    assert statuses(await site.raw(b"POST /")) == [408]
    for length in (b"20000", b"2000000"):
        # The body never comes: no second answer follows the first one.
        assert statuses(await site.raw(refused.head(length=length) + b"\r\n", b"x")) == [refused.status]


GET_SLOW = b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n"
GET_QUICK = b"GET /quick HTTP/1.1\r\nhost: x\r\n\r\n"
POST_HEAD = b"POST /body HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    ("late", "answers"),
    [
        # The head of the second request does not come to its end; nor that of the third.
        (GET_SLOW + b"GET /qui", ["slow", 408]),
        (GET_SLOW + GET_QUICK + b"GET /qui", ["slow", "quick", 408]),
        (GET_SLOW + b"GET /quick HTTP/1.1\r\nupgrade: h2c\r\nconnection: upgr", ["slow", 408]),
        # Nor does its body.
        (GET_SLOW + POST_HEAD + b"content-length: 9\r\n\r\nhalf", ["slow", 408]),
        (GET_SLOW + GET_QUICK + POST_HEAD + b"content-length: 90000000\r\n\r\nhalf", ["slow", "quick", 408]),
        # What follows is no HTTP.
        (GET_SLOW + b"\x00\x01\x02\r\n\r\n", ["slow", 400]),
        (GET_SLOW + GET_QUICK + b"\x00\x01\x02\r\n\r\n", ["slow", "quick", 400]),
        (GET_SLOW + POST_HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n", ["slow", 400]),
        (GET_SLOW + POST_HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n" + GET_QUICK, ["slow", 400]),
    ],
)
async def test_refused_request_is_answered_after_the_earlier_ones(
    late: bytes, answers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_server, "REQUEST_SECONDS", 0.3)
    posted = []

    async def slow(_: Request) -> Response:
        await asyncio.sleep(1)
        return PlainTextResponse("slow")

    async def quick(_: Request) -> Response:
        return PlainTextResponse("quick")

    async def body(request: Request) -> Response:
        posted.append(await request.body())
        return PlainTextResponse("posted")

    routes = [StarletteRoute("/slow", slow), StarletteRoute("/quick", quick)]
    app = Starlette(routes=[*routes, StarletteRoute("/body", body, methods=["POST"])])
    async with serving(app) as url:
        answer = await Site(url, app).raw(late)
    parts = [part.partition(b"\r\n\r\n") for part in answer.split(b"HTTP/1.1 ")[1:]]
    got = [content.decode() if head.startswith(b"200") else int(head[:3]) for head, _, content in parts]
    assert (got, posted) == (answers, [])


async def test_second_answer_never_follows_one_that_has_begun() -> None:
    """A client would take it for the answer to its next request."""

    async def endless(request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"first"
            with suppress(ClientDisconnect):
                await request.body()

        return StreamingResponse(parts())

    app = Starlette(routes=[StarletteRoute("/body", endless, methods=["POST"])])
    async with serving(app) as url:
        head = POST_HEAD + b"transfer-encoding: chunked\r\n\r\n"
        assert statuses(await Site(url, app).raw(head, b"zz\r\n", pause=0.2)) == [200]


@pytest.mark.parametrize(
    ("host", "counted_as"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:0db8:0000:0000"),
        ("2001:db8:0:0:ffff::2", "2001:0db8:0000:0000"),
        ("2001:db8:0:1::1", "2001:0db8:0000:0001"),
        ("", ""),
    ],
)
def test_clients_are_counted_by_address_or_network(host: str, counted_as: str) -> None:
    assert web_server._address(host) == counted_as


async def test_trusted_proxy_may_have_very_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """All clients behind a proxy come from its address: none of them is taken for a crowd."""
    monkeypatch.setattr(web_server, "MAX_CONNECTIONS", 8)
    proxies = [ip_network("127.0.0.2/32")]
    app = Starlette()
    async with serving(app, trusted_proxies=proxies) as url, AsyncExitStack() as stack:
        site = Site(url, app)
        stranger = await stack.enter_async_context(site.connection("127.0.0.3"))
        proxied = [await stack.enter_async_context(site.connection("127.0.0.2")) for _ in range(7)]
        for _ in range(3):
            await stack.enter_async_context(site.connection("127.0.0.4"))
        # Those that waited longest were closed, whoever opened them.
        async with asyncio.timeout(45):
            assert await stranger[0].read() == b""
            assert await proxied[0][0].read() == b""
        reader, writer = proxied[-1]
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(45):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404")


async def test_probes_are_answered_while_every_connection_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "MAX_CONNECTIONS", 4)
    monkeypatch.setattr(web_server, "SPARE_CONNECTIONS", 3)
    reasons = Reasons()
    busy, under_way = asyncio.Event(), []

    async def work(request: Request) -> Response:
        under_way.append(request)
        await busy.wait()
        return PlainTextResponse("done")

    async def alive(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    paths = ("/healthz", "/readyz")
    app = Starlette(routes=[StarletteRoute("/work", work), *(StarletteRoute(path, alive) for path in paths)])
    get = "GET {} HTTP/1.1\r\nhost: x\r\n\r\n"
    async with serving(app, observer=reasons) as url, AsyncExitStack() as stack:
        site = Site(url, app)

        async def asked(path: str) -> Connection:
            reader, writer = await stack.enter_async_context(site.connection())
            writer.write(get.format(path).encode())
            return reader, writer

        working = [await asked("/work") for _ in range(4)]
        # A connection without a request in progress would make room for the next one.
        await eventually(lambda: len(under_way) == 4)
        async with asyncio.timeout(45):
            for path in (*paths, *paths):
                reader, _ = await asked(path)
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            reader, _ = await asked("/work")
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 2" in answer
            assert reasons.refused == ["connections"]
            busy.set()
            for reader, _ in working:
                assert (await reader.readuntil(b"done")).startswith(b"HTTP/1.1 200")


async def test_client_that_reads_no_answer_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its request is in progress for as long as it does not read, so its connection cannot be shed."""

    async def large(_: Request) -> Response:
        return Response(b"x" * 30_000_000)

    app, reasons = Starlette(routes=[StarletteRoute("/large", large)]), Reasons()
    async with serving(app, observer=reasons) as url:
        site = Site(url, app)
        monkeypatch.setattr(web_server, "REQUEST_SECONDS", 0.3)
        async with site.connection() as (reader, writer):
            writer.write(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
            await eventually(lambda: reasons.closed == [Closed.SLOW])
            with suppress(ConnectionError):
                assert len(await reader.read(-1)) < 30_000_000
        # One who reads slowly gets all of it: in eight parts, which take longer than the time allowed without progress.
        monkeypatch.setattr(web_server, "REQUEST_SECONDS", 2.0)
        async with site.connection() as (reader, writer):
            writer.write(b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            received = 0
            for part in range(1, 9):
                while received < part * 3_700_000:
                    received += len(await reader.read(100_000))
                await asyncio.sleep(0.3)
            assert received + len(await reader.read(-1)) > 30_000_000
        assert reasons.closed == [Closed.SLOW]


async def test_more_busy_connections_than_spare_ones_are_closed_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(web_server, "SPARE_CONNECTIONS", 1)
    reasons = Reasons()
    busy, under_way = asyncio.Event(), []

    async def work(request: Request) -> Response:
        under_way.append(request)
        await busy.wait()
        return PlainTextResponse("done")

    app = Starlette(routes=[StarletteRoute("/healthz", work)])
    async with serving(app, observer=reasons) as url, AsyncExitStack() as stack:
        site = Site(url, app)
        opened = []
        for number in range(1, 4):
            reader, writer = await stack.enter_async_context(site.connection())
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            opened.append(reader)
            await eventually(lambda number=number: len(under_way) == number)  # type: ignore[misc]
        assert await site.raw(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n") == b""
        assert reasons.refused == ["connections"]
        busy.set()
        async with asyncio.timeout(45):
            assert [statuses(await reader.read()) for reader in opened] == [[200]] * 3
