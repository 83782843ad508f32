"""Restricts where a sink may connect to: public addresses, and the networks that its settings allow."""

import asyncio
import ipaddress
import os
import socket
import ssl
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from threading import Thread
from typing import Any, Final

import httpcore2

from receiver.sinks.response_head import ResponseHeads

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Every other IPv6 address is for one network, one machine or no machine at all, or contains an IPv4 address.
_GLOBAL_IPV6: Final = ipaddress.IPv6Network("2000::/3")

# Listed here instead of using `is_global`, whose answers differ between versions of Python.
_NOT_PUBLIC: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # this machine
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # behind a carrier's NAT
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's own services, reached from within only
        "169.254.0.0/16",  # link-local, where clouds keep credentials
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
        "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)


def plain(address: Address) -> Address:
    """Turns an IPv4 address in IPv6 form (`::ffff:a.b.c.d`) into an IPv4 address."""
    return getattr(address, "ipv4_mapped", None) or address


def is_public(address: Address) -> bool:
    """Whether an address is reachable on the public Internet."""
    if address.version == 6 and address not in _GLOBAL_IPV6:
        return False
    return not any(address in network for network in _NOT_PUBLIC)


def blocked(addresses: Iterable[Address], allowed: Collection[Network]) -> list[Address]:
    """The addresses that are neither public nor in an allowed network. A single one blocks the whole host."""
    return [address for address in addresses if not is_public(address) and not any(address in net for net in allowed)]


def refusal(addresses: Sequence[Address], setting: str = "egress_allow", place: str = "the sink") -> str:
    """Why a host with these blocked addresses is not connected to, with the line of the settings that allows it."""
    networks = [f'"{str(address).partition("%")[0]}/{address.max_prefixlen}"' for address in addresses[:_MAX_ADDRESSES]]
    return (
        f"{addresses[0]} is not a public address and in no network of {setting}; "
        f"if it is meant, add {setting} = [{', '.join(networks)}] to {place}"
    )


# A name may resolve to any number of addresses; the first of them share the time there is to connect.
_MAX_ADDRESSES: Final = 3
# Bytes read of one response, headers included, and of one read: a chunk is parsed before other tasks get a turn.
_MAX_READ_BYTES: Final = 128 * 1024
_CHUNK_BYTES: Final = 4 * 1024


class ResponseTooLong(httpcore2.ReadError):
    """A response is longer than any sink needs."""


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Connects over TCP to public addresses and to addresses in the allowed networks.

    Raises ConnectError or ConnectTimeout with the reason in a few words. `setting` is what holds the allowed networks,
    and `place` where it is written.
    """

    def __init__(self, allowed: Collection[Network], *, setting: str = "egress_allow", place: str = "the sink") -> None:
        self._allowed = allowed
        self._setting, self._place = setting, place
        self._network = httpcore2.AnyIOBackend()
        self._resolver = Resolver()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._addresses(host)
                return BoundedStream(await self._connect(addresses[:_MAX_ADDRESSES], port, timeout))
        except TimeoutError:
            raise httpcore2.ConnectTimeout("no connection in time") from None

    async def _addresses(self, host: str) -> Sequence[Address]:
        addresses = await self._resolver.addresses(host)
        if isinstance(addresses, str):
            raise httpcore2.ConnectError(f"its name cannot be resolved: {addresses}")
        if refused := blocked(addresses, self._allowed):
            raise httpcore2.ConnectError(refusal(refused, self._setting, self._place))
        return addresses

    async def _connect(
        self, addresses: Sequence[Address], port: int, seconds: float | None
    ) -> httpcore2.AsyncNetworkStream:
        share = None if seconds is None else seconds / len(addresses)
        failure: Exception = TimeoutError()
        for address in addresses:
            try:
                return await self._network.connect_tcp(str(address), port, timeout=share)
            except httpcore2.ConnectTimeout:
                failure = TimeoutError()
            except httpcore2.ConnectError as error:
                failure = httpcore2.ConnectError(_reason(error))
        raise failure


class BoundedStream(httpcore2.AsyncNetworkStream):
    """A connection that limits the size of a response and repairs its head.

    Bytes read are counted from one request to the next.
    """

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self._left = _MAX_READ_BYTES
        self._heads = ResponseHeads()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        while True:
            received = await self._stream.read(min(max_bytes, _CHUNK_BYTES), timeout)
            self._left -= len(received)
            if self._left < 0:
                raise ResponseTooLong
            if (parsable := self._heads.feed(received)) or not received:
                return parsable

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self._left = _MAX_READ_BYTES
        self._heads.expect()
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore2.AsyncNetworkStream:
        try:
            return BoundedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))
        except httpcore2.ConnectTimeout:
            raise httpcore2.ConnectTimeout("no TLS in time") from None
        except httpcore2.ConnectError as error:
            raise httpcore2.ConnectError(f"TLS: {_reason(error)}") from None

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class Resolver:
    """The resolver of the system. Concurrent look-ups of one name share one answer; no answer is cached.

    Each name is looked up in at most one thread, a daemon: when the resolver hangs, neither other look-ups nor the end
    of the process waits for it.
    """

    def __init__(self) -> None:
        self._pending: dict[str, asyncio.Future[Sequence[Address] | str]] = {}

    async def addresses(self, host: str) -> Sequence[Address] | str:
        """Returns the addresses of a host, in the resolver's order of preference, or why there are none."""
        pending = self._pending.get(host)
        if pending is None:
            pending = self._pending[host] = asyncio.get_running_loop().create_future()
            pending.add_done_callback(lambda _: self._pending.pop(host))
            Thread(target=_look_up, args=(host, pending), name="receiver-resolver", daemon=True).start()
        return await asyncio.shield(pending)


def _look_up(host: str, pending: asyncio.Future[Sequence[Address] | str]) -> None:
    answer: Sequence[Address] | str
    try:
        # As bytes: Python would encode a text once more.
        found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
        answer = list(dict.fromkeys(_address(*sockaddr) for *_, sockaddr in found))
    except OSError as error:
        answer = error.strerror or type(error).__name__
    # The event loop may be closed by now.
    with suppress(RuntimeError):
        pending.get_loop().call_soon_threadsafe(pending.set_result, answer)


def _address(host: str, port: int, flow: int = 0, scope: int = 0) -> Address:
    return plain(ipaddress.ip_address(f"{host}%{scope}" if scope else host))


def _reason(error: BaseException) -> str:
    """The original reason beneath a library's exception, in a few words."""
    while error.__cause__ is not None:
        error = error.__cause__
    match error:
        case ssl.SSLCertVerificationError():
            return error.verify_message
        case ssl.SSLError():
            return error.reason or type(error).__name__
        case OSError(errno=int(number)):
            return os.strerror(number)
        case _:
            return type(error).__name__
