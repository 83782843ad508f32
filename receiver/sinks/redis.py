"""The sink `redis`: each event is added to a stream, a whole batch in one round trip."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Final
from urllib.parse import parse_qs, urlsplit

import orjson
from pydantic import AfterValidator, Field, SecretStr
from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry as RetryInside
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from receiver.sinks.base import Publication, Published, Result, Retry, Secret, Sink, SinkDown, SinkSettings
from receiver.sinks.concurrency import check_error, error_name, exception_result
from receiver.sinks.encoding import Binding, Template, marks_of, render

# Other options could switch off the verification of certificates, or repeat commands.
_OPTIONS: Final = frozenset({"db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})

# Errors about the state of the server or of the key: any other event would fail too.
_DOWN: Final = frozenset(
    {
        "ASK",
        "BUSY",
        "CLUSTERDOWN",
        "MASTERDOWN",
        "MISCONF",
        "MOVED",
        "NOAUTH",
        "NOPERM",
        "NOREPLICAS",
        "OOM",
        "READONLY",
        "WRONGTYPE",
    }
)


def _server(address: SecretStr) -> SecretStr:
    text = address.get_secret_value()
    try:
        url = urlsplit(text)
        usable = bool(url.path if url.scheme == "unix" else url.hostname and url.port != 0)
        options = parse_qs(url.query)
    except ValueError:
        usable, options = False, {}
    if not usable or url.scheme not in ("redis", "rediss", "unix") or not text.isprintable() or " " in text:
        raise ValueError("must be redis:// or rediss:// with a host, or unix:// with a path")
    if set(options) - _OPTIONS:
        raise ValueError(f"may have no options but {', '.join(sorted(_OPTIONS))}")
    database = options["db"][0] if "db" in options else "" if url.scheme == "unix" else url.path.removeprefix("/")
    if database and not (database.isascii() and database.isdigit()):
        raise ValueError("must have a number for its database")
    return address


class RedisSettings(SinkSettings):
    url: Annotated[Secret, AfterValidator(_server)] = Field(description="redis://, rediss:// for TLS, or unix://")
    stream: Annotated[Template, Field(min_length=1)] = "sms:events"
    maxlen: int | None = Field(
        None, ge=1, description="about how many entries the stream keeps, read or not; none: all"
    )
    binding: Binding = "structured"
    wait_aof: bool = Field(False, description="an event is published only once the server has it on disk")
    max_batch: int = Field(128, ge=1, le=1000, description="how many events go in one round trip")


class RedisSink(Sink):
    """Adds events to streams. The client retries nothing by itself."""

    Settings: ClassVar[type[SinkSettings]] = RedisSettings

    def __init__(self, settings: RedisSettings) -> None:
        self.max_batch = settings.max_batch
        self._settings = settings
        self._seconds = settings.timeout.total_seconds()
        self._client = Redis.from_url(
            settings.url.get_secret_value(),
            # RESP2 has no push messages between the answers, and old servers know no other protocol.
            protocol=2,
            retry=RetryInside(NoBackoff(), 0),
            # The batch has one timeout.
            socket_timeout=None,
        )
        _load_files(self._client)

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        try:
            async with asyncio.timeout(self._seconds):
                results = await self._add(batch)
        except Exception as error:
            return [await self._exception_result(error)] * len(batch)
        if any(isinstance(result, SinkDown) for result in results):
            # After a failover the name may lead to another server.
            with suppress(RedisError):
                await self._client.connection_pool.disconnect(inuse_connections=False)
        return results

    async def check(self) -> str | None:
        try:
            await self._client.ping()
        except NoPermissionError:
            return None
        except RedisError as error:
            return _reason(error)
        return None

    async def stop(self) -> None:
        await self._client.aclose()

    async def _add(self, batch: Sequence[Publication]) -> list[Result]:
        async with self._client.pipeline(transaction=False) as pipeline:
            for publication in batch:
                stream = render(self._settings.stream, publication)
                pipeline.xadd(stream, self._fields(publication), maxlen=self._settings.maxlen)
            if self._settings.wait_aof:
                pipeline.waitaof(1, 0, 0)
            replies = await pipeline.execute(raise_on_error=False)
        if self._settings.wait_aof and isinstance(replies.pop(), ResponseError):
            return [SinkDown(reason="the server cannot say what is on its disk")] * len(batch)
        return [_result(reply) for reply in replies]

    async def _exception_result(self, error: Exception) -> Result:
        if isinstance(error, RedisError) and error.status_code:
            # The server answered with an error before it read an event.
            return SinkDown(reason=error.status_code)
        return exception_result(error, await check_error(self.check))

    def _fields(self, publication: Publication) -> dict[Any, Any]:
        event, marks = publication.event, marks_of(publication)
        if self._settings.binding == "binary":
            attributes = {name: value for name, value in event.items() if name != "data"}
            return {**attributes, "data": orjson.dumps(event["data"]), **marks}
        fields = {"id": publication.id, "type": publication.type, "message_id": event["subject"]}
        return {**fields, "event": publication.body, **marks}


def _load_files(client: Redis) -> None:
    """Loads the certificate files that the URL names. Raises ValueError when one cannot be used."""
    connection = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    if not isinstance(connection, SSLConnection):
        return
    try:
        connection.ssl_context.get()
    except OSError as error:
        raise ValueError(f"url: the files cannot be used: {error.strerror or type(error).__name__}") from None


def _result(reply: Any) -> Result:
    if not isinstance(reply, ResponseError):
        return Published()
    code = _code(reply)
    return SinkDown(reason=code) if code in _DOWN else Retry(reason=code)


def _code(error: RedisError) -> str:
    """The error code of the server: the first word of its error."""
    return error.status_code or str(error).partition(" ")[0]


def _reason(error: RedisError) -> str:
    """Why a command failed, without the error's text, which may contain message text."""
    if isinstance(error, ResponseError) or error.status_code:
        return _code(error)
    return error_name(error.__context__ if isinstance(error.__context__, Exception) else error)
