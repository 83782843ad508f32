"""The sink `webhook`: each event is posted to a URL, signed as Standard Webhooks prescribes.

It uses httpcore2 directly, which follows no redirects, reads no proxies from the environment, and handles neither
cookies nor compression. `GuardedBackend` decides where a connection may lead.
"""

import asyncio
import base64
import binascii
import hmac
import re
import ssl
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, ClassVar, Final, Self

import httpcore2
import httpx2
from pydantic import AfterValidator, Field, IPvAnyNetwork, SecretStr, ValidationInfo, model_validator

from receiver.sinks.base import Publication, Published, Refused, Result, Retry, Secret, Sink, SinkDown, SinkSettings
from receiver.sinks.egress import GuardedBackend, ResponseTooLong
from receiver.sinks.encoding import Binding, bind

_PREFIX: Final = "whsec_"


def key(secret: str) -> bytes:
    """The signing key of a secret: the decoded base64 after `whsec_`, or any other text as UTF-8."""
    if not secret.startswith(_PREFIX):
        return secret.encode()
    encoded = secret.removeprefix(_PREFIX).rstrip("=")
    try:
        decoded = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"what follows {_PREFIX} is not base64") from None
    if not decoded:
        raise ValueError(f"nothing follows {_PREFIX}")
    return decoded


def signatures(keys: Iterable[bytes], event_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: one signature per key, so that keys can be rotated without a gap."""
    signed = b"%b.%d.%b" % (event_id.encode(), timestamp, body)
    digests = (hmac.digest(key, signed, "sha256") for key in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


_MAX_READ_BYTES: Final = 64 * 1024
_MAX_STORED_BYTES: Final = 1000
# Shorter ones are values like "prod", which would be cut out of ordinary words.
_LEAST_SECRET: Final = 8
# Common servers close an idle connection after five seconds; reusing a connection as it closes costs an attempt.
_IDLE_SECONDS: Final = 4.0
_CONNECT_SECONDS: Final = 5.0
_MAX_RETRY_AFTER_SECONDS: Final = 10**7

_PORTS: Final = {"http": 80, "https": 443}
_UNPRINTABLE: Final = re.compile(r"[\x00-\x20\x7f-\x9f]")
_WHOLE_SECONDS: Final = re.compile(r"\d+", re.ASCII)

_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE: Final = re.compile(r"[!-~]+(?:[ \t]+[!-~]+)*")
# Headers that frame the request, describe its body or its target, and those that this sink sends itself.
_RESERVED: Final = re.compile(
    r"host|connection|keep-alive|te|trailer|transfer-encoding|upgrade|expect|accept-encoding|user-agent"
    r"|traceparent|tracestate|(?:content|proxy|webhook|ce|receiver)-.*"
)

# Status codes that no retry will change: gone, too large, wrong media type, unprocessable.
_REFUSALS: Final = frozenset({HTTPStatus.GONE, 413, 415, 422})

_UNREACHABLE: Final = (httpcore2.ConnectError, httpcore2.ConnectTimeout)
_BROKEN: Final = (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError)


def _web_address(address: SecretStr) -> SecretStr:
    text = address.get_secret_value()
    if _UNPRINTABLE.search(text):
        raise ValueError("must be without spaces and control characters")
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        raise ValueError("is not a URL") from None
    if url.port is not None and not 0 < url.port <= 65535:
        raise ValueError("has a port that does not exist")
    # A percent sign begins the zone of an IPv6 address, which is valid only on the local link.
    if url.scheme not in _PORTS or not url.host or "%" in url.host:
        raise ValueError("must begin with http:// or https:// and name a host")
    return address


def _not_our_own(address: SecretStr, info: ValidationInfo) -> SecretStr:
    """Rejects the receiver's own callback URLs, `own_urls` of the context: events would come back as callbacks."""
    own: Collection[str] = (info.context or {}).get("own_urls", ())
    if _destination(address.get_secret_value()) in map(_destination, own):
        raise ValueError("is where this receiver takes callbacks itself")
    return address


def _destination(text: str) -> tuple[str, int, str]:
    url = httpx2.URL(text)
    return url.host, _port(url), url.path


def _port(url: httpx2.URL) -> int:
    return url.port or _PORTS[url.scheme]


def _usable(secret: SecretStr) -> SecretStr:
    key(secret.get_secret_value())
    return secret


def _settable(headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a header")
        if _RESERVED.fullmatch(name.lower()):
            raise ValueError(f"{name} is a reserved header")
        if not _HEADER_VALUE.fullmatch(value.get_secret_value()):
            raise ValueError(f"{name} must be of printable ASCII characters, on one line")
    if len({name.lower() for name in headers}) < len(headers):
        raise ValueError("a header is there twice")
    return headers


def _certificates(path: Path) -> Path:
    try:
        _tls(path)
    except ssl.SSLError:
        raise ValueError(f"{path} holds no certificate") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    return path


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file) if ca_file else httpcore2.default_ssl_context()


class WebhookSettings(SinkSettings):
    url: Annotated[Secret, AfterValidator(_web_address), AfterValidator(_not_our_own)] = Field(
        description="where events are posted to"
    )
    secrets: tuple[Annotated[Secret, AfterValidator(_usable)], ...] = Field(
        (), description="whsec_… or plain text; every event is signed with each"
    )
    binding: Binding = "structured"
    headers: Annotated[dict[str, Secret], AfterValidator(_settable)] = Field({}, description="sent with every event")
    egress_allow: tuple[IPvAnyNetwork, ...] = Field(
        (), description="networks that are allowed besides public addresses"
    )
    egress_ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = Field((), description="none named: any")
    ca_file: Annotated[Path, AfterValidator(_certificates)] | None = Field(
        None, description="the only certificate authorities to trust; none: those of the system"
    )
    concurrency: int = Field(8, ge=1, le=64, description="how many posts may be under way at once")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        url = httpx2.URL(self.url.get_secret_value())
        if self.egress_ports and (port := _port(url)) not in self.egress_ports:
            raise ValueError(f"url: its port, {port}, is not in egress_ports")
        if url.userinfo and any(name.lower() == "authorization" for name in self.headers):
            raise ValueError("headers: Authorization is in url already")
        return self


class WebhookSink(Sink):
    """Posts events as CloudEvents. `timeout` covers the whole exchange, with the response."""

    Settings: ClassVar[type[SinkSettings]] = WebhookSettings
    keep_attempts = "all"

    def __init__(self, settings: WebhookSettings, now: Callable[[], float] = time.time) -> None:
        self.concurrency = settings.concurrency
        url = httpx2.URL(settings.url.get_secret_value())
        self._url = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        self._headers = _fixed_headers(url, settings)
        self._sent_secrets = _sent_secrets(url, settings)
        self._keys = [key(secret.get_secret_value()) for secret in settings.secrets]
        self._binding: Binding = settings.binding
        self._allowed = settings.egress_allow
        self._ca_file = settings.ca_file
        self._seconds = settings.timeout.total_seconds()
        self._extensions = {"timeout": {"connect": min(_CONNECT_SECONDS, self._seconds / 2)}}
        self._now = now
        self._pool: httpcore2.AsyncConnectionPool | None = None

    async def start(self) -> None:
        # All connections of a pool were checked with the same settings: other settings make another sink.
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=_tls(self._ca_file) if self._url.scheme == b"https" else None,
            max_connections=self.concurrency,
            max_keepalive_connections=self.concurrency,
            keepalive_expiry=_IDLE_SECONDS,
            network_backend=GuardedBackend(self._allowed),
        )

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        return await asyncio.gather(*(self._post(publication) for publication in batch))

    async def check(self) -> str | None:
        try:
            async with asyncio.timeout(self._seconds):
                await self._exchange("OPTIONS", {}, b"")
        except TimeoutError:
            return "timeout"
        except _UNREACHABLE as error:
            return str(error)
        except _BROKEN:
            return "connection broken"
        return None

    async def probe(self) -> str | None:
        """Connects and sends nothing: a consumer may take any request for an event."""
        host, is_encrypted = self._url.host.decode("ascii"), self._url.scheme == b"https"
        port, seconds = (
            self._url.port or _PORTS["https" if is_encrypted else "http"],
            self._extensions["timeout"]["connect"],
        )
        try:
            stream = await GuardedBackend(self._allowed).connect_tcp(host, port, seconds)
            try:
                if is_encrypted:
                    stream = await stream.start_tls(_tls(self._ca_file), host, seconds)
            finally:
                await stream.aclose()
        except _UNREACHABLE as error:
            return str(error)
        return None

    async def stop(self) -> None:
        if self._pool is not None:
            await self._pool.aclose()
            self._pool = None

    async def _post(self, publication: Publication) -> Result:
        try:
            async with asyncio.timeout(self._seconds):
                return await self._exchange("POST", *self._bound(publication))
        except TimeoutError:
            return Retry(reason="timeout", overloaded=True)
        except _UNREACHABLE as error:
            return SinkDown(reason=str(error))
        except ResponseTooLong:
            return Retry(reason="answer too long")
        except _BROKEN:
            return Retry(reason="connection broken")

    async def _exchange(self, method: str, headers: dict[str, str], body: bytes) -> Result:
        assert self._pool is not None, "the sink is not started"  # noqa: S101
        all_headers = [*self._headers.items(), *headers.items()]
        async with self._pool.stream(
            method, self._url, headers=all_headers, content=body, extensions=self._extensions
        ) as response:
            beginning = self._without_secrets(await _read_content(response))[:_MAX_STORED_BYTES]
        return _result(response.status, _retry_after(response), beginning, self._now())

    def _without_secrets(self, content: bytes) -> bytes:
        """A response without what we authenticate with: some servers answer with the request that they got."""
        for secret in self._sent_secrets:
            content = content.replace(secret, b"***")
        return content

    def _bound(self, publication: Publication) -> tuple[dict[str, str], bytes]:
        """The headers and the body of a post."""
        bound, timestamp = bind(publication, self._binding, prefix="ce-"), int(self._now())
        headers = bound.headers | {
            "content-type": bound.content_type,
            "webhook-id": publication.id,
            "webhook-timestamp": str(timestamp),
        }
        if self._keys:
            signed = signatures(self._keys, publication.id, timestamp, bound.body)
            headers["webhook-signature"] = signed
        return headers, bound.body


def _fixed_headers(url: httpx2.URL, settings: WebhookSettings) -> dict[str, str]:
    """The headers of every request. `identity` as the only Accept-Encoding keeps responses uncompressed."""
    headers = {
        "host": url.netloc.decode("ascii"),
        "user-agent": f"receiver/{version('bandwidth-receiver')}",
        "accept-encoding": "identity",
    }
    if url.userinfo:
        pair = base64.b64encode(f"{url.username}:{url.password}".encode())
        headers["authorization"] = f"Basic {pair.decode('ascii')}"
    return headers | {name: value.get_secret_value() for name, value in settings.headers.items()}


def _sent_secrets(url: httpx2.URL, settings: WebhookSettings) -> list[bytes]:
    """What every request has in its headers that nobody may see, whole and in its parts, longest first."""
    values = [value.get_secret_value() for value in settings.headers.values()]
    if url.userinfo:
        values += [url.password, base64.b64encode(f"{url.username}:{url.password}".encode()).decode("ascii")]
    parts = {part for value in values for part in (value, *value.split(" ")) if len(part) >= _LEAST_SECRET}
    return sorted((part.encode() for part in parts), key=len, reverse=True)


async def _read_content(response: httpcore2.Response) -> bytes:
    """Reads a response to its end, so that the connection can be reused, and returns it.

    It stops after 64 KiB; the connection is then closed.
    """
    content = bytearray()
    async with aclosing(response.aiter_stream()) as chunks:
        async for chunk in chunks:
            content += chunk
            if len(content) >= _MAX_READ_BYTES:
                break
    return bytes(content)


def _retry_after(response: httpcore2.Response) -> str | None:
    return next((value.decode("latin-1") for name, value in response.headers if name.lower() == b"retry-after"), None)


def _result(code: int, retry_after: str | None, beginning: bytes, now: float) -> Result:
    answer = beginning.decode("utf-8", "replace")
    if 200 <= code < 300:
        return Published(response_code=code, response=answer)
    if code in _REFUSALS:
        return Refused(reason=f"status {code}", gone=code == HTTPStatus.GONE, response_code=code, response=answer)
    return Retry(
        reason="redirect" if 300 <= code < 400 else f"status {code}",
        after=parse_retry_after(retry_after, now),
        overloaded=code == HTTPStatus.TOO_MANY_REQUESTS,
        response_code=code,
        response=answer,
    )


def parse_retry_after(retry_after: str | None, now: float) -> timedelta | None:
    """The pause that a Retry-After header asks for, in seconds or until a date; None if it is not valid."""
    if retry_after is None:
        return None
    text = retry_after.strip()
    if _WHOLE_SECONDS.fullmatch(text):
        return timedelta(seconds=min(int(text[:12]), _MAX_RETRY_AFTER_SECONDS))
    try:
        until = parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(until - datetime.fromtimestamp(now, UTC), timedelta(0))
