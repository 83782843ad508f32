"""A webhook: each event is posted to a URL, signed in Standard Webhooks form."""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Annotated, ClassVar, Final

import httpx2
from pydantic import AfterValidator, Field, SecretStr

from receiver.sinks import signature
from receiver.sinks.base import Publication, Published, Refused, Result, Retry, Secret, Sink, SinkDown, SinkSettings

_MOST_READ: Final = 64 * 1024
_MOST_KEPT: Final = 1000
# common servers close an idle connection after five seconds; one that is reused as it closes costs an attempt
_IDLE_SECONDS: Final = 4.0
_CONNECT_SECONDS: Final = 5.0
_LONGEST_WISH: Final = 10**7

_UNPRINTABLE: Final = re.compile(r"[\x00-\x20\x7f-\x9f]")
_WHOLE_SECONDS: Final = re.compile(r"\d+", re.ASCII)
_CONTENT_TYPE: Final = "application/cloudevents+json; charset=utf-8"

# what no repetition will change: gone, too large, wrong media type, unprocessable
_REFUSALS: Final = frozenset({410, 413, 415, 422})


def _web_address(address: SecretStr) -> SecretStr:
    text = address.get_secret_value()
    if _UNPRINTABLE.search(text):
        raise ValueError("must be without spaces and control characters")
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        raise ValueError("is not a URL") from None
    if not 0 < (url.port or 1) <= 65535:
        raise ValueError("has a port that does not exist")
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("must begin with http:// or https:// and name a host")
    return address


def _usable(secret: SecretStr) -> SecretStr:
    signature.key(secret.get_secret_value())
    return secret


class WebhookSettings(SinkSettings):
    url: Annotated[Secret, AfterValidator(_web_address)] = Field(description="where events are posted to")
    secrets: tuple[Annotated[Secret, AfterValidator(_usable)], ...] = Field(
        (), description="whsec_… or plain text; every one of them signs"
    )
    concurrency: int = Field(8, ge=1, le=64, description="how many posts may be under way at once")


class WebhookSink(Sink):
    """Posts events as CloudEvents in structured JSON. The whole exchange, answer included, has one deadline."""

    Settings: ClassVar[type[SinkSettings]] = WebhookSettings
    keep_attempts = "all"

    def __init__(self, settings: WebhookSettings, now: Callable[[], float] = time.time) -> None:
        self.concurrency = settings.concurrency
        self._url = settings.url.get_secret_value()
        self._keys = [signature.key(secret.get_secret_value()) for secret in settings.secrets]
        self._seconds = settings.timeout.total_seconds()
        self._now = now
        self._client: httpx2.AsyncClient | None = None

    async def start(self) -> None:
        self._client = httpx2.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            timeout=httpx2.Timeout(None, connect=min(_CONNECT_SECONDS, self._seconds / 2)),
            limits=httpx2.Limits(
                max_connections=self.concurrency,
                max_keepalive_connections=self.concurrency,
                keepalive_expiry=_IDLE_SECONDS,
            ),
            # no Accept-Encoding but this: an answer is never unpacked
            headers={"user-agent": f"receiver/{version('bandwidth-receiver')}", "accept-encoding": "identity"},
        )

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        return await asyncio.gather(*(self._post(publication) for publication in batch))

    async def check(self) -> str | None:
        try:
            async with asyncio.timeout(self._seconds):
                await self._exchange("OPTIONS", {}, b"")
        except (TimeoutError, httpx2.RequestError) as error:
            return _words(error)
        return None

    async def stop(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _post(self, publication: Publication) -> Result:
        try:
            async with asyncio.timeout(self._seconds):
                return await self._exchange("POST", self._headers(publication), publication.body)
        except TimeoutError:
            return Retry(reason="timeout", overloaded=True)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            return SinkDown(reason=_words(error))
        except httpx2.RequestError:
            return Retry(reason="connection broken")

    async def _exchange(self, method: str, headers: dict[str, str], body: bytes) -> Result:
        assert self._client is not None, "the sink is not started"  # noqa: S101
        async with self._client.stream(method, self._url, headers=headers, content=body) as response:
            read = await _beginning(response)
        return _result(response.status_code, response.headers.get("retry-after"), read, self._now())

    def _headers(self, publication: Publication) -> dict[str, str]:
        timestamp = int(self._now())
        headers = {
            "content-type": _CONTENT_TYPE,
            "webhook-id": publication.id,
            "webhook-timestamp": str(timestamp),
        }
        if self._keys:
            signed = signature.signatures(self._keys, publication.id, timestamp, publication.body)
            headers["webhook-signature"] = signed
        return headers


async def _beginning(response: httpx2.Response) -> bytes:
    """Reads an answer to its end, so that the connection can be used again, or so far and no further."""
    read = bytearray()
    async for chunk in response.aiter_raw():
        read += chunk
        if len(read) >= _MOST_READ:
            break
    return bytes(read[:_MOST_KEPT])


def _result(code: int, retry_after: str | None, read: bytes, now: float) -> Result:
    answer = read.decode("utf-8", "replace")
    if 200 <= code < 300:
        return Published(response_code=code, response=answer)
    if code in _REFUSALS:
        return Refused(reason=f"status {code}", response_code=code, response=answer)
    return Retry(
        reason="redirect" if 300 <= code < 400 else f"status {code}",
        after=wish(retry_after, now),
        overloaded=code == httpx2.codes.TOO_MANY_REQUESTS,
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
    except (ValueError, IndexError):
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(until - datetime.fromtimestamp(now, UTC), timedelta(0))


def _words(error: Exception) -> str:
    """What a failure to connect says, without the address, which may hold a secret."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
