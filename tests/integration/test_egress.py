"""Where a webhook may lead: the guard against a real server, with a resolver that says what the test wants."""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpcore2
import pytest

from receiver.domain.publication import Published, Result, Retry, SinkDown
from receiver.sinks import webhook as module
from receiver.sinks.egress import BoundedStream, GuardedBackend, refusal
from tests.brokers.own import free_port
from tests.fault_servers import FaultServer, fault_server
from tests.servers import Authority
from tests.webhooks import post, posted, webhook

pytestmark = pytest.mark.anyio

NAME = "hooks.example"
LOOPBACK = ["127.0.0.1/32"]


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with fault_server() as served:
        yield served


@pytest.fixture
async def inside() -> AsyncIterator[FaultServer]:
    """A server nobody is to reach."""
    async with fault_server("127.0.0.2", free_port()) as served:
        yield served
    assert served.connections == 0


class Names:
    """What the resolver says of NAME: one answer after another, the last of them for ever."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, ...] | OSError] = []
        self.threads: list[threading.Thread] = []
        self.free = threading.Event()
        self.free.set()
        self._resolver = socket.getaddrinfo

    def echo(self, *answers: tuple[str, ...] | OSError) -> None:
        self.answers = list(answers)

    @property
    def lookups(self) -> int:
        return len(self.threads)

    def __call__(self, host: Any, *args: Any, **kwargs: Any) -> list[Any]:
        if host not in (NAME, NAME.encode()):
            return self._resolver(host, *args, **kwargs)
        self.threads.append(threading.current_thread())
        self.free.wait(30)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, OSError):
            raise answer
        return [_found(address) for address in answer]


def _found(address: str) -> Any:
    if ":" not in address:
        return socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)
    host, _, zone = address.partition("%")
    return socket.AF_INET6, socket.SOCK_STREAM, 6, "", (host, 0, 0, int(zone or 0))


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    stub = Names()
    monkeypatch.setattr(socket, "getaddrinfo", stub)
    yield stub
    stub.free.set()


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "127。0。0。1",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "0.0.0.0",
        "0",
        "localhost",
        "LOCALHOST",
        "example.com@127.0.0.1",
        "example.com:secret@127.0.0.1",
    ],
)
async def test_however_this_machine_is_spelled_it_is_not_posted_to(server: FaultServer, host: str) -> None:
    result = await posted(f"http://{host}:{server.port}/200")
    assert isinstance(result, SinkDown)
    assert "is not a public address and in no network of egress_allow" in result.reason
    assert server.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1.", "localhost."])
async def test_a_dot_at_its_end_does_not_make_a_name_public(server: FaultServer, host: str) -> None:
    assert isinstance(await posted(f"http://{host}:{server.port}/200"), SinkDown)
    assert server.connections == 0


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("169.254.169.254", "169.254.169.254"),
        ("10.0.0.1", "10.0.0.1"),
        ("172.16.0.1", "172.16.0.1"),
        ("192.168.0.1", "192.168.0.1"),
        ("100.64.0.1", "100.64.0.1"),
        ("[::]", "::"),
        ("[::1]", "::1"),
        ("[fd00:ec2::254]", "fd00:ec2::254"),
        ("[64:ff9b::7f00:1]", "64:ff9b::7f00:1"),
        ("[::127.0.0.1]", "::7f00:1"),
        ("[::ffff:169.254.169.254]", "169.254.169.254"),
    ],
)
async def test_what_is_blocked_is_named_with_the_setting_that_would_allow_it(host: str, address: str) -> None:
    reason = refusal([ip_address(address)])
    async with webhook(f"http://{host}/path-with-token") as sink:
        assert await post(sink) == SinkDown(reason=reason)
        assert await sink.check() == reason


@pytest.mark.parametrize("networks", [["127.0.0.1"], ["10.0.0.0/8", "127.0.0.0/8"]])
async def test_a_network_that_is_named_may_be_posted_to(server: FaultServer, networks: list[str]) -> None:
    assert isinstance(await posted(server.url("/200"), egress_allow=networks), Published)


async def test_an_ipv6_network_may_be_named_too() -> None:
    async with fault_server("::1") as server:
        assert isinstance(await posted(server.url("/200"), egress_allow=["::1/128"]), Published)
        assert server.requests[0].headers["host"] == f"[::1]:{server.port}"


@pytest.mark.parametrize("answer", [("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.1")])
async def test_one_blocked_address_among_a_names_condemns_all(
    server: FaultServer, names: Names, answer: tuple[str, ...]
) -> None:
    names.echo(answer)
    result = await posted(f"http://{NAME}:{server.port}/200", egress_allow=LOOPBACK)
    assert result == SinkDown(reason=refusal([ip_address("127.0.0.2")]))
    assert server.connections == 0


async def test_a_name_cannot_change_between_the_look_and_the_connection(
    server: FaultServer, inside: FaultServer, names: Names
) -> None:
    names.echo(("127.0.0.1",), ("127.0.0.2",))
    inside_port = inside.port
    async with fault_server("127.0.0.1", inside_port) as outside:
        assert isinstance(await posted(f"http://{NAME}:{inside_port}/200", egress_allow=LOOPBACK), Published)
        assert (names.lookups, outside.connections) == (1, 1)
        later = await posted(f"http://{NAME}:{inside_port}/200", egress_allow=LOOPBACK)
    assert isinstance(later, SinkDown)
    assert later.reason.startswith("127.0.0.2 is not")
    assert names.lookups == 2


async def test_an_address_with_a_zone_is_named_with_it(names: Names) -> None:
    names.echo(("fe80::1%7",))
    result = await posted(f"http://{NAME}/200")
    assert result == SinkDown(reason=refusal([ip_address("fe80::1%7")]))


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (("127.0.0.2", "127.0.0.1"), Published),
        (("127.0.0.2", "127.0.0.3", "127.0.0.1"), Published),
        (("127.0.0.2", "127.0.0.2", "127.0.0.2", "127.0.0.1"), Published),
        (("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.1"), SinkDown),
    ],
)
async def test_the_next_address_is_tried_where_one_refuses_up_to_the_third(
    server: FaultServer, names: Names, answer: tuple[str, ...], result: type[Result]
) -> None:
    names.echo(answer)
    found = await posted(f"http://{NAME}:{server.port}/200", egress_allow=["127.0.0.0/8"])
    assert isinstance(found, result)


async def test_the_next_address_is_tried_where_one_is_silent(server: FaultServer, names: Names) -> None:
    names.echo(("127.0.0.2", "127.0.0.1"))
    url = f"http://{NAME}:{server.port}/200"
    with _silent("127.0.0.2", server.port):
        assert isinstance(await posted(url, egress_allow=["127.0.0.0/8"], timeout="6s"), Published)


async def test_who_does_not_take_the_connection_is_down() -> None:
    with _silent("127.0.0.1") as port:
        result = await posted(f"http://127.0.0.1:{port}/", egress_allow=LOOPBACK, timeout="1s")
    assert result == SinkDown(reason="no connection in time")


class _silent:  # noqa: N801
    """A place that has as many connections waiting as it holds, and does not answer to another."""

    def __init__(self, host: str, port: int = 0) -> None:
        self._place = (host, port)
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> int:
        listening = socket.socket()
        listening.bind(self._place)
        listening.listen(0)
        self._sockets = [listening, *(socket.socket() for _ in range(3))]
        for waiting in self._sockets[1:]:
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        return int(listening.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        for one in self._sockets:
            one.close()


async def test_a_name_that_is_not_known_for_a_while_is_found_again(server: FaultServer, names: Names) -> None:
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    names.echo(unknown, ("127.0.0.1",), unknown, ("127.0.0.1",))
    down = SinkDown(reason="its name cannot be resolved: Name or service not known")
    taken = Published(response_code=200, response="body")
    for expected in (down, taken, down, taken):
        assert await posted(f"http://{NAME}:{server.port}/200", egress_allow=LOOPBACK) == expected


async def test_a_name_no_resolver_takes_is_not_found() -> None:
    result = await posted(f"http://{'a' * 64}.example/")
    assert isinstance(result, SinkDown)
    assert result.reason.startswith("its name cannot be resolved: ")


@pytest.mark.slow
async def test_a_resolver_that_hangs_costs_one_thread_and_nobody_elses_time(server: FaultServer, names: Names) -> None:
    names.echo(("127.0.0.1",))
    names.free.clear()
    url = f"http://{NAME}:{server.port}/200"
    async with (
        webhook(url, egress_allow=LOOPBACK, timeout="4s", concurrency=20) as hanging,
        webhook(server.url("/200"), egress_allow=LOOPBACK) as other,
    ):
        posts = asyncio.gather(*(post(hanging) for _ in range(20)))
        assert isinstance(await post(other), Published)
        assert not posts.done()
        assert await posts == [SinkDown(reason="no connection in time")] * 20
        assert await hanging.check() == "no connection in time"
        assert [thread.daemon for thread in names.threads] == [True]
        names.free.set()
        assert isinstance(await post(hanging), Published)


async def test_a_resolver_that_answers_after_everything_has_ended_disturbs_nobody(names: Names) -> None:
    names.echo(("127.0.0.1",))
    names.free.clear()

    def run() -> None:
        assert asyncio.run(posted(f"http://{NAME}/", timeout="0.6s")) == SinkDown(reason="no connection in time")

    await asyncio.to_thread(run)
    [thread] = names.threads
    names.free.set()
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()


async def test_an_idle_connection_is_used_again_and_later_the_name_is_asked_again(
    server: FaultServer, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    names.echo(("127.0.0.1",), ("127.0.0.2",))
    url = f"http://{NAME}:{server.port}/200"
    async with webhook(url, egress_allow=LOOPBACK) as sink:
        for _ in range(3):
            assert isinstance(await post(sink), Published)
        assert (names.lookups, server.connections) == (1, 1)
    names.echo(("127.0.0.1",), ("127.0.0.2",))
    monkeypatch.setattr(module, "_IDLE_SECONDS", 0.0)
    async with webhook(url, egress_allow=LOOPBACK) as sink:
        assert isinstance(await post(sink), Published)
        assert isinstance(await post(sink), SinkDown)


async def test_connections_end_with_the_settings_they_were_made_under(server: FaultServer) -> None:
    async with webhook(server.url("/200"), egress_allow=LOOPBACK) as sink:
        assert isinstance(await post(sink), Published)
        # other settings: another sink, other connections
        assert isinstance(await posted(server.url("/200")), SinkDown)
        await sink.stop()
        await _eventually(lambda: server.closed == 1)
        await sink.start()
        assert isinstance(await post(sink), Published)
    assert server.connections == 2


async def _eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(45):
        while not condition():
            await asyncio.sleep(0.005)


async def test_host_and_tls_keep_the_name(names: Names, tmp_path: Path) -> None:
    names.echo(("127.0.0.1",))
    authority, asked_for = Authority(tmp_path), []
    tls = authority.server(NAME)
    tls.sni_callback = lambda _, name, __: asked_for.append(name)
    async with fault_server(tls=tls) as server:
        url = f"https://{NAME}:{server.port}/200"
        assert isinstance(await posted(url, egress_allow=LOOPBACK, ca_file=str(authority.file)), Published)
    assert asked_for == [NAME]
    assert server.requests[0].headers["host"] == f"{NAME}:{server.port}"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(server: FaultServer, inside: FaultServer, code: int) -> None:
    server.location = inside.url("/200")
    result = await posted(server.url(f"/{code}"), egress_allow=["127.0.0.0/8"])
    assert result == Retry(reason="redirect", response_code=code, response="body")
    assert len(server.requests) == 1


@pytest.mark.parametrize("scheme", ["http", "https", "all"])
async def test_proxies_from_the_environment_are_not_used(
    server: FaultServer, inside: FaultServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scheme: str
) -> None:
    for variable in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY"):
        monkeypatch.setenv(variable, inside.url(""))
    assert isinstance(await posted(server.url("/200"), egress_allow=["127.0.0.0/8"]), Published)
    authority = Authority(tmp_path)
    async with fault_server(tls=authority.server("localhost")) as secure:
        url = f"https://localhost:{secure.port}/200"
        fields = {"egress_allow": ["127.0.0.0/8", "::1"], "ca_file": str(authority.file)}
        assert isinstance(await posted(url, **fields), Published)


async def test_there_is_no_way_past_the_guard_in_the_library(tmp_path: Path) -> None:
    """Its ways to connect are those we know; a new one must be looked at."""
    assert _own(httpcore2.AsyncNetworkBackend) == {"connect_tcp", "connect_unix_socket", "sleep"}
    assert _own(GuardedBackend) == {"connect_tcp"}
    assert _own(httpcore2.AsyncNetworkStream) == _own(BoundedStream)
    with pytest.raises(NotImplementedError):
        await GuardedBackend([]).connect_unix_socket(str(tmp_path / "socket"))


def _own(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def _trusting(authority: Authority) -> dict[str, Any]:
    return {"egress_allow": ["127.0.0.0/8", "::1"], "ca_file": str(authority.file)}


async def test_a_certificate_is_verified_by_its_name_age_and_authority(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")

    async def tls_error(tls: ssl.SSLContext) -> str:
        async with fault_server(tls=tls) as server:
            async with webhook(f"https://localhost:{server.port}/200", **_trusting(authority)) as sink:
                result = await post(sink)
                assert isinstance(result, SinkDown)
                assert await sink.check() == result.reason
            assert not server.requests
            return result.reason

    assert await tls_error(authority.server("localhost", days=-1)) == "TLS: certificate has expired"
    assert (await tls_error(authority.server(NAME))).startswith("TLS: Hostname mismatch")
    assert await tls_error(other.server("localhost")) == "TLS: unable to get local issuer certificate"


async def test_a_certificate_that_changes_is_noticed_and_one_that_is_good_again_too(tmp_path: Path) -> None:
    authority, other, port = Authority(tmp_path), Authority(tmp_path, "other"), free_port()
    results = []
    async with webhook(f"https://localhost:{port}/200", **_trusting(authority)) as sink:
        for signer in (authority, other, authority):
            async with fault_server(port=port, tls=signer.server("localhost")):
                results.append(type(await post(sink)))
    assert results == [Published, SinkDown, Published]


async def test_an_authority_of_ones_own_is_trusted_only_where_it_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with fault_server(tls=authority.server("localhost")) as server:
        url = f"https://localhost:{server.port}/200"
        assert isinstance(await posted(url, **_trusting(authority)), Published)
        result = await posted(url, egress_allow=["127.0.0.0/8", "::1"])
    assert isinstance(result, SinkDown)
    assert result.reason.startswith("TLS: ")


async def test_within_tls_too_an_answer_that_only_grows_is_given_up(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with fault_server(tls=authority.server("localhost")) as server:
        url = f"https://localhost:{server.port}/interim-answers"
        result = await posted(url, **_trusting(authority), timeout="18s")
    assert result == Retry(reason="answer too long")


async def test_a_server_without_tls_is_down() -> None:
    async def plain(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    async with server:
        result = await posted(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/", egress_allow=LOOPBACK)
    assert result == SinkDown(reason="TLS: WRONG_VERSION_NUMBER")


async def test_a_server_that_says_nothing_of_tls_is_down() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/"
        result = await posted(url, egress_allow=LOOPBACK, timeout="1s")
    assert result == SinkDown(reason="no TLS in time")
