"""Requests to callback URLs: one at a time, and what came of each."""

import asyncio
import base64
import ipaddress
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import httpcore2
import httpx2

_JSON: Final = "application/json; charset=utf-8"
_MOST_READ: Final = 64 * 1024
# common servers close an idle connection after five seconds
_IDLE_SECONDS: Final = 4.0
# nothing of the callback has left us
_UNREACHABLE: Final = (httpcore2.ConnectError, httpcore2.ConnectTimeout, httpx2.InvalidURL)
_REMOTE: Final = "not on this machine; remote_callbacks allows it"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request gave: a status and whether credentials are asked for, or an error.

    `unsure` says that the other side may have got the request without telling, `hopeless` that it never will get it.
    """

    status: int | None = None
    challenged: bool = False
    error: str | None = None
    unsure: bool = False
    hopeless: bool = False

    @property
    def is_success(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackRequest:
    """What to ask a URL: by POST with a body, or by GET with parameters in the address."""

    url: str = field(repr=False)
    user_agent: str
    query: str = ""
    body: bytes = b""
    # user:password; else those in the URL
    credentials: str | None = field(default=None, repr=False)

    @property
    def method(self) -> str:
        return "GET" if self.query else "POST"


class CallbackClient:
    """Makes requests over connections that are kept open for the next."""

    def __init__(self, *, connections: int, remote: bool) -> None:
        self._connections = connections
        self._remote = remote
        self._pool: httpcore2.AsyncConnectionPool | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Can be asked as long as the block runs."""
        async with httpcore2.AsyncConnectionPool(
            max_connections=self._connections,
            max_keepalive_connections=self._connections,
            keepalive_expiry=_IDLE_SECONDS,
        ) as self._pool:
            yield

    async def ask(self, request: CallbackRequest, seconds: float) -> Answer:
        """Makes a request, which has so long to be answered; never fails."""
        try:
            target = _target(request.url)
            if not (self._remote or target.is_local):
                return Answer(error=_REMOTE, hopeless=True)
            async with asyncio.timeout(seconds):
                return await self._exchange(request, target)
        except TimeoutError:
            return Answer(error="timeout", unsure=True)
        except _UNREACHABLE as error:
            return Answer(error=f"unreachable: {type(error).__name__}")
        except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            return Answer(error=f"connection broken: {type(error).__name__}", unsure=True)
        except Exception as error:
            # whatever it is, the other callbacks must go on
            return Answer(error=f"unforeseen: {type(error).__name__}", unsure=True)

    async def _exchange(self, request: CallbackRequest, target: "_Target") -> Answer:
        assert self._pool is not None  # noqa: S101
        headers = {"host": target.netloc, "user-agent": request.user_agent, "accept-encoding": "identity"}
        if request.body:
            headers["content-type"] = _JSON
        if pair := request.credentials or target.credentials:
            headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode('ascii')}"
        async with self._pool.stream(
            request.method,
            target.with_query(request.query),
            headers=list(headers.items()),
            content=request.body or None,
        ) as response:
            await _read(response)
        return Answer(response.status, challenged=response.status == 401 and _is_challenge(response))


def is_local(url: str) -> bool:
    """Whether a URL leads to this machine, as far as its host's name tells."""
    try:
        return _target(url).is_local
    except httpx2.InvalidURL:
        return False


@dataclass(frozen=True, slots=True)
class _Target:
    """A URL taken apart."""

    url: httpx2.URL
    netloc: str
    credentials: str | None = field(repr=False)
    is_local: bool

    def with_query(self, query: str) -> httpcore2.URL:
        """The URL to ask, with these parameters after its own."""
        path = self.url.raw_path.decode("ascii")
        if query:
            path += ("&" if self.url.query else "" if path.endswith("?") else "?") + query
        return httpcore2.URL(
            scheme=self.url.raw_scheme, host=self.url.raw_host, port=self.url.port, target=path.encode("ascii")
        )


@lru_cache(maxsize=256)
def _target(text: str) -> _Target:
    url = httpx2.URL(text)
    pair = f"{url.username}:{url.password}" if url.userinfo else None
    return _Target(url, url.netloc.decode("ascii"), pair, _is_this_machine(url.host))


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _read(response: httpcore2.Response) -> None:
    """Reads an answer to its end, so that the connection can be used again, or so far and no further."""
    read = 0
    async with aclosing(response.aiter_stream()) as chunks:
        async for chunk in chunks:
            read += len(chunk)
            if read >= _MOST_READ:
                break


def _is_challenge(response: httpcore2.Response) -> bool:
    return any(
        name.lower() == b"www-authenticate" and value.lstrip().lower().startswith(b"basic")
        for name, value in response.headers
    )
