"""Requests to a provider's API: by the guarded connections of the webhook sink, without redirects and proxies."""

import asyncio
import base64
import time
from collections.abc import Collection
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from typing import Final

import httpcore2
import httpx2

from receiver.reconciliation.settings import Account
from receiver.sinks.egress import GuardedBackend, Network, ResponseTooLong
from receiver.sinks.webhook import parse_retry_after

_SECONDS: Final = 10.0
_CONNECT_SECONDS: Final = 5.0
# Common servers close an idle connection after five seconds.
_IDLE_SECONDS: Final = 4.0
_BROKEN: Final = (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError)


class NoAnswer(Exception):
    """A request had no answer; `is_unreachable`: there was no connection, so the request was not sent."""

    def __init__(self, reason: str, *, is_unreachable: bool = False) -> None:
        super().__init__(reason)
        self.is_unreachable = is_unreachable


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer: its status, its body, and the pause that it requests."""

    status: int
    body: bytes
    retry_after: timedelta | None


class Client:
    """Queries the API of one account. `seconds` bound each request as a whole."""

    def __init__(self, account: Account, allowed: Collection[Network], *, seconds: float = _SECONDS) -> None:
        self._account = account
        self._allowed = allowed
        self._seconds = seconds
        pair = base64.b64encode(account.credentials.get_secret_value().encode())
        self._headers = {
            "host": httpx2.URL(account.url).netloc.decode("ascii"),
            "user-agent": f"receiver/{version('bandwidth-receiver')}",
            "accept": "application/json",
            "accept-encoding": "identity",
            "authorization": f"Basic {pair.decode('ascii')}",
        }
        self._pool: httpcore2.AsyncConnectionPool | None = None

    async def get(self, target: str) -> Response:
        """The answer to a GET of a path and query below the API's URL. Raises NoAnswer."""
        try:
            async with asyncio.timeout(self._seconds):
                return await self._exchange(target)
        except TimeoutError:
            raise NoAnswer(f"no answer within {self._seconds:g} s") from None
        except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
            raise NoAnswer(str(error) or type(error).__name__, is_unreachable=True) from None
        except ResponseTooLong:
            raise NoAnswer("the answer is too long") from None
        except _BROKEN:
            raise NoAnswer("the connection broke") from None

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.aclose()
            self._pool = None

    async def _exchange(self, target: str) -> Response:
        base = httpx2.URL(self._account.url)
        url = httpcore2.URL(
            scheme=base.raw_scheme,
            host=base.raw_host,
            port=base.port,
            target=base.raw_path.rstrip(b"/") + target.encode("ascii"),
        )
        if self._pool is None:
            self._pool = httpcore2.AsyncConnectionPool(
                ssl_context=httpcore2.default_ssl_context() if base.scheme == "https" else None,
                max_connections=1,
                keepalive_expiry=_IDLE_SECONDS,
                network_backend=GuardedBackend(self._allowed, place="the table [reconciliation]"),
            )
        extensions = {"timeout": {"connect": min(_CONNECT_SECONDS, self._seconds / 2)}}
        content = bytearray()
        headers = list(self._headers.items())
        async with (
            self._pool.stream("GET", url, headers=headers, extensions=extensions) as response,
            aclosing(response.aiter_stream()) as chunks,
        ):
            async for chunk in chunks:
                content += chunk
        named = (value.decode("latin-1") for name, value in response.headers if name.lower() == b"retry-after")
        retry_after = parse_retry_after(next(named, None), time.time())
        return Response(status=response.status, body=bytes(content), retry_after=retry_after)
