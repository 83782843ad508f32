"""A client for the targets that receiver talks to itself: it posts JSON, with the bounds that the sink `webhook` has.

It follows no redirects, reads no proxies from the environment, and connects to public addresses and to the networks of
the setting `alert_egress_allow` only.
"""

import asyncio
import base64
import time
from collections.abc import Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from typing import Any, Final

import httpcore2
import httpx2
import orjson

from receiver.sinks.egress import GuardedBackend, Network, ResponseTooLong
from receiver.sinks.webhook import parse_retry_after

_CONNECT_SECONDS: Final = 5.0
_MAX_READ_BYTES: Final = 64 * 1024
_UNREACHABLE: Final = (httpcore2.ConnectError, httpcore2.ConnectTimeout)
_BROKEN: Final = (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a notification was not delivered, in a few words without secrets; `after` is the service's pause."""

    reason: str
    after: timedelta | None = None
    overloaded: bool = False


async def post_json(
    url: httpx2.URL, content: Any, *, allowed: Collection[Network], headers: Mapping[str, str] | None = None
) -> Failure | None:
    """Posts JSON to a URL; returns why it was not accepted, None if it was. The caller sets a time limit."""
    backend = GuardedBackend(allowed, setting="alert_egress_allow", place="the settings")
    target = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    ssl_context = httpcore2.default_ssl_context() if url.scheme == "https" else None
    try:
        async with (
            httpcore2.AsyncConnectionPool(ssl_context=ssl_context, network_backend=backend) as pool,
            pool.stream(
                "POST",
                target,
                headers=[*_headers(url).items(), *(headers or {}).items()],
                content=orjson.dumps(content),
                extensions={"timeout": {"connect": _CONNECT_SECONDS}},
            ) as response,
        ):
            await _read(response)
            return _failure(response)
    except _UNREACHABLE as error:
        return Failure(reason=str(error))
    except ResponseTooLong:
        return Failure(reason="answer too long")
    except _BROKEN:
        return Failure(reason="connection broken")


def _headers(url: httpx2.URL) -> dict[str, str]:
    headers = {
        "host": url.netloc.decode("ascii"),
        "user-agent": f"receiver/{version('bandwidth-receiver')}",
        "accept-encoding": "identity",
        "content-type": "application/json",
    }
    if url.userinfo:
        pair = base64.b64encode(f"{url.username}:{url.password}".encode())
        headers["authorization"] = f"Basic {pair.decode('ascii')}"
    return headers


async def _read(response: httpcore2.Response) -> None:
    size = 0
    async with aclosing(response.aiter_stream()) as chunks:
        async for chunk in chunks:
            size += len(chunk)
            if size >= _MAX_READ_BYTES:
                return


def _failure(response: httpcore2.Response) -> Failure | None:
    if 200 <= response.status < 300:
        return None
    retry_after = next(
        (value.decode("latin-1") for name, value in response.headers if name.lower() == b"retry-after"), None
    )
    return Failure(
        reason=f"status {response.status}",
        after=parse_retry_after(retry_after, time.time()),
        overloaded=response.status == 429,
    )


async def in_time(seconds: float, sending: Any) -> Failure | None:
    """The result of sending, or a failure if it takes longer."""
    try:
        async with asyncio.timeout(seconds):
            result: Failure | None = await sending
            return result
    except TimeoutError:
        return Failure(reason="timeout", overloaded=True)
