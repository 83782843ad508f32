"""A webhook: each event is posted to a URL, signed in Standard Webhooks form.

HTTP is spoken by httpcore2 alone, which knows no redirects, proxies of the environment, cookies or packed answers;
`guarded` says where a connection may lead.
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
from receiver.sinks.egress import AnswerTooLong, GuardedBackend
from receiver.sinks.encoding import Binding, bind

_PREFIX: Final = "whsec_"


def key(secret: str) -> bytes:
    """The key a secret stands for: base64 after `whsec_`, any other text as its bytes."""
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
    """The value of `webhook-signature`: one signature for each key, so that keys can be changed without a gap."""
    signed = b"%b.%d.%b" % (event_id.encode(), timestamp, body)
    digests = (hmac.digest(key, signed, "sha256") for key in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


_MOST_READ: Final = 64 * 1024
_MOST_KEPT: Final = 1000
# common servers close an idle connection after five seconds; one that is reused as it closes costs an attempt
_IDLE_SECONDS: Final = 4.0
_CONNECT_SECONDS: Final = 5.0
_LONGEST_WISH: Final = 10**7

_PORTS: Final = {"http": 80, "https": 443}
_UNPRINTABLE: Final = re.compile(r"[\x00-\x20\x7f-\x9f]")
_WHOLE_SECONDS: Final = re.compile(r"\d+", re.ASCII)

_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE: Final = re.compile(r"[!-~]+(?:[ \t]+[!-~]+)*")
# what frames a message, says what is in it or where it goes, and what we say ourselves
_RESERVED: Final = re.compile(
    r"host|connection|keep-alive|te|trailer|transfer-encoding|upgrade|expect|accept-encoding|user-agent"
    r"|(?:content|proxy|webhook|ce|receiver)-.*"
)

# what no repetition will change: gone, too large, wrong media type, unprocessable
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
    # a percent sign begins the zone of an address, which leads no further than the next switch
    if url.scheme not in _PORTS or not url.host or "%" in url.host:
        raise ValueError("must begin with http:// or https:// and name a host")
    return address


def _not_our_own(address: SecretStr, info: ValidationInfo) -> SecretStr:
    """Refuses what would come back to us: `own_urls` of the context."""
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
            raise ValueError(f"{name} is not for you to set")
        if not _HEADER_VALUE.fullmatch(value.get_secret_value()):
            raise ValueError(f"{name} must be of printable ASCII characters, on one line")
    if len({name.lower() for name in headers}) < len(headers):
        raise ValueError("one is there twice")
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
        (), description="whsec_… or plain text; every one of them signs"
    )
    binding: Binding = "structured"
    headers: Annotated[dict[str, Secret], AfterValidator(_settable)] = Field({}, description="sent with every event")
    egress_allow: tuple[IPvAnyNetwork, ...] = Field((), description="networks that need not be public to be posted to")
    egress_ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = Field((), description="none named: any")
    ca_file: Annotated[Path, AfterValidator(_certificates)] | None = Field(
        None, description="the only certificates to trust; none: those the system trusts"
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
    """Posts events as CloudEvents. The whole exchange, answer included, has one deadline."""

    Settings: ClassVar[type[SinkSettings]] = WebhookSettings
    keep_attempts = "all"

    def __init__(self, settings: WebhookSettings, now: Callable[[], float] = time.time) -> None:
        self.concurrency = settings.concurrency
        url = httpx2.URL(settings.url.get_secret_value())
        self._url = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        self._headers = _standing_headers(url, settings)
        self._keys = [key(secret.get_secret_value()) for secret in settings.secrets]
        self._binding: Binding = settings.binding
        self._allowed = settings.egress_allow
        self._ca_file = settings.ca_file
        self._seconds = settings.timeout.total_seconds()
        self._extensions = {"timeout": {"connect": min(_CONNECT_SECONDS, self._seconds / 2)}}
        self._now = now
        self._pool: httpcore2.AsyncConnectionPool | None = None

    async def start(self) -> None:
        # every connection of this pool was judged by the same rules: other settings make another sink
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
        except AnswerTooLong:
            return Retry(reason="answer too long")
        except _BROKEN:
            return Retry(reason="connection broken")

    async def _exchange(self, method: str, headers: dict[str, str], body: bytes) -> Result:
        assert self._pool is not None, "the sink is not started"  # noqa: S101
        told = [*self._headers.items(), *headers.items()]
        async with self._pool.stream(
            method, self._url, headers=told, content=body, extensions=self._extensions
        ) as response:
            read = await _beginning(response)
        return _result(response.status, _retry_after(response), read, self._now())

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


def _standing_headers(url: httpx2.URL, settings: WebhookSettings) -> dict[str, str]:
    """What is the same in every request. Without Accept-Encoding but this, no answer is packed."""
    headers = {
        "host": url.netloc.decode("ascii"),
        "user-agent": f"receiver/{version('bandwidth-receiver')}",
        "accept-encoding": "identity",
    }
    if url.userinfo:
        pair = base64.b64encode(f"{url.username}:{url.password}".encode())
        headers["authorization"] = f"Basic {pair.decode('ascii')}"
    return headers | {name: value.get_secret_value() for name, value in settings.headers.items()}


async def _beginning(response: httpcore2.Response) -> bytes:
    """Reads an answer to its end, so that the connection can be used again, or so far and no further."""
    read = bytearray()
    async with aclosing(response.aiter_stream()) as chunks:
        async for chunk in chunks:
            read += chunk
            if len(read) >= _MOST_READ:
                break
    return bytes(read[:_MOST_KEPT])


def _retry_after(response: httpcore2.Response) -> str | None:
    return next((value.decode("latin-1") for name, value in response.headers if name.lower() == b"retry-after"), None)


def _result(code: int, retry_after: str | None, read: bytes, now: float) -> Result:
    answer = read.decode("utf-8", "replace")
    if 200 <= code < 300:
        return Published(response_code=code, response=answer)
    if code in _REFUSALS:
        return Refused(reason=f"status {code}", gone=code == HTTPStatus.GONE, response_code=code, response=answer)
    return Retry(
        reason="redirect" if 300 <= code < 400 else f"status {code}",
        after=wish(retry_after, now),
        overloaded=code == HTTPStatus.TOO_MANY_REQUESTS,
        response_code=code,
        response=answer,
    )


def wish(retry_after: str | None, now: float) -> timedelta | None:
    """The pause that a Retry-After asks for, in seconds or until a date; None for one that makes no sense."""
    if retry_after is None:
        return None
    told = retry_after.strip()
    if _WHOLE_SECONDS.fullmatch(told):
        return timedelta(seconds=min(int(told[:12]), _LONGEST_WISH))
    try:
        until = parsedate_to_datetime(told)
    except (ValueError, IndexError, OverflowError):
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(until - datetime.fromtimestamp(now, UTC), timedelta(0))
