"""Sends callback requests over HTTP and reports the result of each."""

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
_MAX_ANSWER_BYTES: Final = 64 * 1024
# Common servers close an idle connection after five seconds.
_KEEP_ALIVE_SECONDS: Final = 4.0
# The errors after which no byte of the callback has been sent.
_UNREACHABLE: Final = (httpcore2.ConnectError, httpcore2.ConnectTimeout, httpx2.InvalidURL)
_REMOTE: Final = "not on this machine; remote_callbacks allows it"


@dataclass(frozen=True, slots=True)
class RequestResult:
    """The result of one request: a status, or an error.

    `challenged` says that the answer asks for credentials, `may_have_arrived` that the other side may have received
    the request without an answer, `is_permanent` that a retry would fail too.
    """

    status: int | None = None
    challenged: bool = False
    error: str | None = None
    may_have_arrived: bool = False
    is_permanent: bool = False

    @property
    def is_success(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackRequest:
    """A request to a callback URL: a GET if there is a query, else a POST."""

    url: str = field(repr=False)
    user_agent: str
    query: str = ""
    body: bytes = b""
    # "user:password", instead of the credentials in the URL.
    credentials: str | None = field(default=None, repr=False)

    @property
    def method(self) -> str:
        return "GET" if self.query else "POST"


class CallbackClient:
    """Sends callback requests over a pool of connections."""

    def __init__(self, *, connections: int, remote: bool) -> None:
        self._connections = connections
        self._remote = remote
        self._pool: httpcore2.AsyncConnectionPool | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keeps the connection pool open while the block runs."""
        async with httpcore2.AsyncConnectionPool(
            max_connections=self._connections,
            max_keepalive_connections=self._connections,
            keepalive_expiry=_KEEP_ALIVE_SECONDS,
        ) as self._pool:
            yield

    async def send(self, request: CallbackRequest, seconds: float) -> RequestResult:
        """Sends a request, which has `seconds` to be answered. Errors are part of the result and never raised."""
        try:
            target = _target(request.url)
            if not (self._remote or target.is_local):
                return RequestResult(error=_REMOTE, is_permanent=True)
            async with asyncio.timeout(seconds):
                return await self._exchange(request, target)
        except TimeoutError:
            return RequestResult(error="timeout", may_have_arrived=True)
        except _UNREACHABLE as error:
            return RequestResult(error=f"unreachable: {type(error).__name__}")
        except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            return RequestResult(error=f"connection broken: {type(error).__name__}", may_have_arrived=True)
        except Exception as error:
            # An unexpected error of one callback must not stop the other callbacks.
            return RequestResult(error=f"unexpected: {type(error).__name__}", may_have_arrived=True)

    async def _exchange(self, request: CallbackRequest, target: "_Target") -> RequestResult:
        assert self._pool is not None  # noqa: S101
        headers = {"host": target.netloc, "user-agent": request.user_agent, "accept-encoding": "identity"}
        if request.body:
            headers["content-type"] = _JSON
        if credentials := request.credentials or target.credentials:
            headers["authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode('ascii')}"
        async with self._pool.stream(
            request.method,
            target.with_query(request.query),
            headers=list(headers.items()),
            content=request.body or None,
        ) as response:
            await _drain(response)
        return RequestResult(response.status, challenged=response.status == 401 and _is_challenge(response))


def is_local(url: str) -> bool:
    """Whether the host of a URL is this machine: a loopback address or localhost. Names are not resolved."""
    try:
        return _target(url).is_local
    except httpx2.InvalidURL:
        return False


@dataclass(frozen=True, slots=True)
class _Target:
    """A parsed URL without its credentials."""

    url: httpx2.URL
    netloc: str
    credentials: str | None = field(repr=False)
    is_local: bool

    def with_query(self, query: str) -> httpcore2.URL:
        """The URL with a query appended to its own."""
        path = self.url.raw_path.decode("ascii")
        if query:
            path += ("&" if self.url.query else "" if path.endswith("?") else "?") + query
        return httpcore2.URL(
            scheme=self.url.raw_scheme, host=self.url.raw_host, port=self.url.port, target=path.encode("ascii")
        )


@lru_cache(maxsize=256)
def _target(text: str) -> _Target:
    url = httpx2.URL(text)
    credentials = f"{url.username}:{url.password}" if url.userinfo else None
    return _Target(url, url.netloc.decode("ascii"), credentials, _is_this_machine(url.host))


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _drain(response: httpcore2.Response) -> None:
    """Reads an answer to its end, which frees the connection for the next request, but at most 64 KiB."""
    size = 0
    async with aclosing(response.aiter_stream()) as chunks:
        async for chunk in chunks:
            size += len(chunk)
            if size >= _MAX_ANSWER_BYTES:
                break


def _is_challenge(response: httpcore2.Response) -> bool:
    return any(
        name.lower() == b"www-authenticate" and value.lstrip().lower().startswith(b"basic")
        for name, value in response.headers
    )
