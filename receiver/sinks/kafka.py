"""The sink `kafka`: each event is a record of a topic, keyed by its message id."""

import asyncio
import logging
import re
import ssl
from collections.abc import Sequence
from functools import partial
from string import Formatter
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from aiokafka import AIOKafkaProducer
from aiokafka.codec import has_lz4, has_snappy, has_zstd
from aiokafka.conn import create_conn
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.metadata import MetadataRequest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FilePath, model_validator

from receiver.sinks.base import Publication, Published, Refused, Result, Retry, Secret, Sink, SinkDown, SinkSettings
from receiver.sinks.client_loop import ClientLoop
from receiver.sinks.concurrency import check_error, error_name, publish_each
from receiver.sinks.encoding import Binding, Template, bind, render

_DEFAULT_PORT: Final = 9092
_MAX_TOPIC_LENGTH: Final = 249
_CHECK_SECONDS: Final = 2.0
# The event's id in both bindings. A header `ce_id` would make a structured event binary for the SDK in Python, which
# tells the bindings apart by the prefix and not by the content type.
_EVENT_ID: Final = "receiver-event-id"
# How many requests of the client fit into one timeout.
_REQUESTS_PER_TIMEOUT: Final = 3
# Well below the limit of any topic; only a single record may be larger.
_RECORD_BATCH_BYTES: Final = 64 * 1024
# Room for key and headers besides the body.
_OVERHEAD_BYTES: Final = 4 * 1024

_BROKER: Final = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?", re.ASCII)
_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]*", re.ASCII)
_INSTALLED: Final = {"snappy": has_snappy, "lz4": has_lz4, "zstd": has_zstd}

# The client logs every failed request, at DEBUG also the contents of records. The results report what matters.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def _address(broker: str) -> tuple[str, int]:
    parts = _BROKER.fullmatch(broker)
    port = int(parts["port"] or _DEFAULT_PORT) if parts else 0
    if parts is None or not 0 < port <= 65535:
        raise ValueError('must be "host:port"')
    return parts["host"].strip("[]"), port


def _broker(broker: str) -> str:
    _address(broker)
    return broker


def _topic(template: str) -> str:
    literals = [literal for literal, *_ in Formatter().parse(template)]
    if not all(_TOPIC.fullmatch(literal) for literal in literals) or template in ("", ".", ".."):
        raise ValueError("must be made of letters, digits, '.', '_', '-' and fields")
    return template


def _codec(name: str) -> str:
    if name in _INSTALLED and not _INSTALLED[name]():
        raise ValueError(f"{name} is not installed: pip install 'aiokafka[{name}]'")
    return name


class KafkaSecurity(BaseModel):
    """How to connect to the brokers."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True)

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    username: Secret | None = None
    password: Secret | None = None
    ca_file: FilePath | None = Field(None, description="none: those the system trusts")
    cert_file: FilePath | None = Field(None, description="a client certificate")
    key_file: FilePath | None = Field(None, description="its key, where it is in a file of its own")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        sasl = (self.mechanism, self.username, self.password)
        if self.protocol.startswith("SASL_") and None in sasl:
            raise ValueError(f"{self.protocol} needs mechanism, username and password")
        if not self.protocol.startswith("SASL_") and sasl != (None, None, None):
            raise ValueError(f"{self.protocol} has no use for mechanism, username and password")
        if self.protocol.endswith("PLAINTEXT") and (self.ca_file or self.cert_file or self.key_file):
            raise ValueError(f"{self.protocol} has no use for ca_file, cert_file and key_file")
        if self.key_file and not self.cert_file:
            raise ValueError("key_file needs cert_file")
        self.options()
        return self

    def options(self) -> dict[str, Any]:
        """These settings as keyword arguments of the client."""
        return {
            "security_protocol": self.protocol,
            "ssl_context": self._context() if self.protocol.endswith("SSL") else None,
            "sasl_mechanism": self.mechanism or "PLAIN",
            "sasl_plain_username": self.username and self.username.get_secret_value(),
            "sasl_plain_password": self.password and self.password.get_secret_value(),
        }

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file:
                # With an empty password OpenSSL does not prompt for one on the terminal.
                context.load_cert_chain(self.cert_file, self.key_file, password="")
        except OSError as error:
            raise ValueError(f"the certificates cannot be used: {error.strerror or type(error).__name__}") from None
        return context


class KafkaSettings(SinkSettings):
    bootstrap: tuple[Annotated[str, AfterValidator(_broker)], ...] = Field(
        min_length=1, description='brokers to begin with, "host:port"'
    )
    topic: Annotated[Template, AfterValidator(_topic)] = Field("sms-events", description="may hold fields")
    binding: Binding = "structured"
    security: KafkaSecurity = KafkaSecurity()
    compression: Annotated[Literal["none", "gzip", "snappy", "lz4", "zstd"], AfterValidator(_codec)] = "none"
    max_request_size: int = Field(
        1024 * 1024, ge=_RECORD_BATCH_BYTES, le=2**30, description="bytes of the largest record"
    )


class KafkaSink(Sink):
    """Publishes with an idempotent producer. A record is published once all in-sync replicas have it.

    After a record failed or timed out, the producer is discarded before the results are returned, with its event loop.
    It would deliver the record in the background, perhaps hours later and after its retry, and it does not recover its
    sequence numbers.
    """

    Settings: ClassVar[type[SinkSettings]] = KafkaSettings
    max_batch = 256

    def __init__(self, settings: KafkaSettings) -> None:
        self.max_event_bytes = settings.max_request_size - _OVERHEAD_BYTES
        self._seconds = settings.timeout.total_seconds()
        self._topic = settings.topic
        self._binding: Binding = settings.binding
        self._brokers = settings.bootstrap
        self._access = {
            "client_id": f"receiver-{settings.name}",
            "request_timeout_ms": max(1, int(self._seconds * 1000 / _REQUESTS_PER_TIMEOUT)),
            **settings.security.options(),
        }
        self._options = {
            "enable_idempotence": True,
            "acks": "all",
            "compression_type": None if settings.compression == "none" else settings.compression,
            "max_request_size": settings.max_request_size,
            "max_batch_size": _RECORD_BATCH_BYTES,
        }
        self._client: tuple[ClientLoop, AIOKafkaProducer] | None = None
        self._is_unusable = False

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        clock = asyncio.get_running_loop().time
        until = clock() + self._seconds
        try:
            async with asyncio.timeout_at(until):
                loop, producer = await self._get_client()
        except Exception as error:
            down = SinkDown(reason=await check_error(self.check) or error_name(error))
            return [down] * len(batch)
        send = partial(self._send, producer, is_alone=len(batch) == 1)
        try:
            return await publish_each(batch, send, seconds=until - clock(), check=self.check, loop=loop)
        except BaseException:
            self._is_unusable = True
            raise
        finally:
            if self._is_unusable:
                await self.stop()

    async def check(self) -> str | None:
        """Checks all brokers at once; one that answers is enough."""
        errors = await asyncio.gather(*(self._check_broker(*_address(broker)) for broker in self._brokers))
        return None if None in errors else errors[0]

    async def stop(self) -> None:
        client, self._client, self._is_unusable = self._client, None, False
        if client is not None:
            await client[0].end()

    async def _get_client(self) -> tuple[ClientLoop, AIOKafkaProducer]:
        if self._client is None:
            loop = ClientLoop("receiver-kafka")
            try:
                self._client = loop, await loop.call(self._start_producer(loop))
            except BaseException:
                await loop.end()
                raise
        return self._client

    async def _start_producer(self, loop: ClientLoop) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(bootstrap_servers=list(self._brokers), **self._access, **self._options)
        loop.close = producer.stop
        await producer.start()
        return producer

    async def _send(self, producer: AIOKafkaProducer, publication: Publication, *, is_alone: bool) -> Result:
        topic = render(self._topic, publication)
        if len(topic) > _MAX_TOPIC_LENGTH:
            return Refused(reason=f"the name of its topic is longer than {_MAX_TOPIC_LENGTH} characters")
        bound = bind(publication, self._binding, prefix="ce_", quoted=False)
        headers = {"content-type": bound.content_type, _EVENT_ID: publication.id} | bound.headers
        key = str(publication.event["subject"]).encode()
        try:
            delivery = await producer.send(
                topic, bound.body, key=key, headers=[(name, value.encode()) for name, value in headers.items()]
            )
            await self._await_delivery(delivery)
        except (MessageSizeTooLargeError, RecordListTooLargeError):
            if is_alone or len(bound.body) > _RECORD_BATCH_BYTES:
                return Refused(reason="too large for the topic or for max_request_size")
            return Retry(reason="too large together with others")
        except KafkaTimeoutError:
            raise TimeoutError from None
        except KafkaError as error:
            if (down := _topic_error(type(error), topic)) is None:
                raise
            return SinkDown(reason=down)
        return Published()

    async def _await_delivery(self, delivery: asyncio.Future[Any]) -> None:
        try:
            await delivery
        except BaseException:
            self._is_unusable = True
            raise

    async def _check_broker(self, host: str, port: int) -> str | None:
        """Returns why a broker cannot be used, None if it can. Creates no topic."""
        topics = [] if "{" in self._topic else [self._topic]
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                connection = await create_conn(host, port, **self._access)
                try:
                    answer = await connection.send(MetadataRequest(topics, allow_auto_topic_creation=False))
                finally:
                    await connection.close()
        except Exception as error:
            return _reason(error)
        return next((_topic_error(for_code(code), topic) for code, topic, *_ in answer.topics), None)


def _reason(error: Exception) -> str:
    """Why a broker did not answer. The text of the broker itself is left out."""
    is_local = isinstance(error, OSError) and not isinstance(error, TimeoutError)
    return f"{type(error).__name__}: {error}" if is_local else error_name(error)


def _topic_error(error: type[KafkaError], topic: str) -> str | None:
    """The reason for an error about a topic; None for any other error."""
    if error is UnknownTopicOrPartitionError:
        return f"there is no topic {topic}"
    if error in (TopicAuthorizationFailedError, ClusterAuthorizationFailedError):
        return f"not authorized for topic {topic}"
    return None
