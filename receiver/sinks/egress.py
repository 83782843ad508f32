"""Where a sink may connect to: public addresses, and the networks its settings name."""

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

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# all others are for one network, one machine or no machine at all, or hold an IPv4 address
_GLOBAL_IPV6: Final = ipaddress.IPv6Network("2000::/3")

# named here and not taken from `is_global`, which says something else in every version of Python
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
    """An IPv4 address that is written as an IPv6 one (`::ffff:a.b.c.d`) as what it is."""
    return getattr(address, "ipv4_mapped", None) or address


def is_public(address: Address) -> bool:
    """Whether an address is one of the Internet's, where anybody may reach it."""
    if address.version == 6 and address not in _GLOBAL_IPV6:
        return False
    return not any(address in network for network in _NOT_PUBLIC)


def first_blocked(addresses: Iterable[Address], allowed: Collection[Network]) -> Address | None:
    """The first address that is neither public nor in a network that is allowed; one of them condemns all."""
    return next((one for one in addresses if not is_public(one) and not any(one in net for net in allowed)), None)


# a name may stand for any number of addresses; the time there is to connect is shared among the first of them
_MOST_TRIED: Final = 3
# of an answer, its headers included; and of that at once, since what was read is parsed before anyone else has a turn
_MOST_READ: Final = 128 * 1024
_READ_AT_ONCE: Final = 4 * 1024


class AnswerTooLong(httpcore2.ReadError):
    """More came than an answer needs."""


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to public addresses and to those in allowed networks, over TCP alone.

    The ConnectError or ConnectTimeout it raises says why in a few words.
    """

    def __init__(self, allowed: Collection[Network]) -> None:
        self._allowed = allowed
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
                return BoundedStream(await self._connected(addresses[:_MOST_TRIED], port, timeout))
        except TimeoutError:
            raise httpcore2.ConnectTimeout("no connection in time") from None

    async def _addresses(self, host: str) -> Sequence[Address]:
        addresses = await self._resolver.addresses(host)
        if isinstance(addresses, str):
            raise httpcore2.ConnectError(f"its name cannot be resolved: {addresses}")
        if blocked := first_blocked(addresses, self._allowed):
            raise httpcore2.ConnectError(f"{blocked} is not a public address and in no network of egress_allow")
        return addresses

    async def _connected(
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
                failure = httpcore2.ConnectError(_words(error))
        raise failure


class BoundedStream(httpcore2.AsyncNetworkStream):
    """A connection on which no answer goes on for ever: what is read is counted from one request to the next."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self._left = _MOST_READ

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        received = await self._stream.read(min(max_bytes, _READ_AT_ONCE), timeout)
        self._left -= len(received)
        if self._left < 0:
            raise AnswerTooLong
        return received

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self._left = _MOST_READ
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
            raise httpcore2.ConnectError(f"TLS: {_words(error)}") from None

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class Resolver:
    """The system's resolver. Who asks for a name that is being looked up shares the answer; no answer is kept.

    So there is one thread for each name at most, and a daemon: where the resolver hangs, neither others' work nor the
    end of the process waits for it.
    """

    def __init__(self) -> None:
        self._pending: dict[str, asyncio.Future[Sequence[Address] | str]] = {}

    async def addresses(self, host: str) -> Sequence[Address] | str:
        """The addresses of a host, the best one first, or why there are none."""
        pending = self._pending.get(host)
        if pending is None:
            pending = self._pending[host] = asyncio.get_running_loop().create_future()
            pending.add_done_callback(lambda _: self._pending.pop(host))
            Thread(target=_look_up, args=(host, pending), name="receiver-resolver", daemon=True).start()
        return await asyncio.shield(pending)


def _look_up(host: str, pending: asyncio.Future[Sequence[Address] | str]) -> None:
    answer: Sequence[Address] | str
    try:
        # as bytes, or Python would change the name once more
        found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
        answer = list(dict.fromkeys(_address(*sockaddr) for *_, sockaddr in found))
    except OSError as error:
        answer = error.strerror or type(error).__name__
    # the loop may have ended meanwhile
    with suppress(RuntimeError):
        pending.get_loop().call_soon_threadsafe(pending.set_result, answer)


def _address(host: str, port: int, flow: int = 0, scope: int = 0) -> Address:
    return plain(ipaddress.ip_address(f"{host}%{scope}" if scope else host))


def _words(error: BaseException) -> str:
    """What went wrong beneath a library's exception."""
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
