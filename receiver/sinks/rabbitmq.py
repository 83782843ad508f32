"""The sink `rabbitmq`: each event is a message to an exchange, confirmed by the broker."""

import asyncio
import logging
import re
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Final

from aio_pika import Connection, DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractExchange
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelClosed,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    InvalidFrameError,
    PublishError,
)
from pydantic import AfterValidator, Field, SecretStr
from yarl import URL

from receiver.sinks.base import Publication, Published, Refused, Result, Retry, Secret, Sink, SinkDown, SinkSettings
from receiver.sinks.concurrency import error_name, publish_each
from receiver.sinks.encoding import Binding, Template, bind, render

# A header for routing and consistent hashing. The property `message_id` is the event id, as consumers expect.
_MESSAGE_ID: Final = "receiver-message-id"
_MAX_NAME_BYTES: Final = 255
_CLOSE_SECONDS: Final = 1.0
_BLOCKED: Final = "the broker blocks those who publish"
_UNPRINTABLE: Final = re.compile(r"[\x00-\x20\x7f-\x9f]")
_PARAMETERS: Final = frozenset({"auth", "cafile", "capath", "certfile", "heartbeat", "keyfile"})

# At DEBUG these loggers write messages and credentials; above it, what the results report better.
for _name in ("aio_pika", "aiormq", "pamqp"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def _address(address: SecretStr) -> SecretStr:
    text = address.get_secret_value()
    if _UNPRINTABLE.search(text):
        raise ValueError("must be without spaces and control characters")
    try:
        url = URL(text)
    except ValueError:
        raise ValueError("is not a URL") from None
    if url.scheme not in ("amqp", "amqps") or not url.host:
        raise ValueError("must begin with amqp:// or amqps:// and name a host")
    if unknown := sorted(set(url.query) - _PARAMETERS):
        raise ValueError(f"{unknown[0]} is not a parameter of it; there are {', '.join(sorted(_PARAMETERS))}")
    return address


def _short(name: str) -> str:
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise ValueError(f"must not be longer than {_MAX_NAME_BYTES} bytes")
    return name


class RabbitmqSettings(SinkSettings):
    url: Annotated[Secret, AfterValidator(_address)] = Field(description="amqp://user:password@host:5672/vhost")
    exchange: Annotated[str, AfterValidator(_short)] = Field(description='must exist; "" is the default exchange')
    routing_key: Annotated[Template, AfterValidator(_short)] = Field("{type}", description="may hold fields")
    binding: Binding = "structured"


class RabbitmqSink(Sink):
    """Publishes persistent, mandatory messages. An event is published once the broker has confirmed its message.

    After anything other than a confirm or a return, the connection is discarded before the results are returned: a
    message that it still has to write must not arrive after its retry.
    """

    Settings: ClassVar[type[SinkSettings]] = RabbitmqSettings
    max_batch = 128

    def __init__(self, settings: RabbitmqSettings) -> None:
        self._name = settings.name
        self._url = URL(settings.url.get_secret_value())
        self._seconds = settings.timeout.total_seconds()
        self._exchange = settings.exchange
        self._routing_key = settings.routing_key
        self._binding: Binding = settings.binding
        self._link: _Link | None = None

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        clock = asyncio.get_running_loop().time
        until = clock() + self._seconds
        try:
            async with asyncio.timeout_at(until):
                link = await self._get_link()
        except Exception as error:
            return [SinkDown(reason=self._reason(error))] * len(batch)
        if await link.is_blocked():
            return [SinkDown(reason=_BLOCKED)] * len(batch)
        send = partial(self._send, link, is_alone=len(batch) == 1)
        try:
            return await publish_each(batch, send, seconds=until - clock(), check=partial(self._check_link, link))
        finally:
            # A blocked connection stays open: the broker tells it when there is room again, and it keeps the order.
            if link.is_unusable and not await link.is_blocked():
                self._link = None
                await link.abort()

    async def check(self) -> str | None:
        try:
            link = await self._open()
        except Exception as error:
            return self._reason(error)
        await link.close()
        return None

    async def stop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    async def _get_link(self) -> "_Link":
        if self._link is not None and self._link.is_closed:
            await self.stop()
        if self._link is None:
            self._link = await self._open()
        return self._link

    async def _send(self, link: "_Link", publication: Publication, *, is_alone: bool) -> Result:
        key = render(self._routing_key, publication)
        if len(key.encode()) > _MAX_NAME_BYTES:
            return Refused(reason=f"its routing key is longer than {_MAX_NAME_BYTES} bytes")
        message = self._message(publication)
        try:
            await link.exchange.publish(message, key)
        except PublishError:
            return Retry(reason="unroutable")
        except DeliveryError:
            return Retry(reason="not confirmed")
        except BaseException as error:
            link.mark_unusable(error)
            if is_alone and isinstance(error, ChannelPreconditionFailed):
                return Refused(reason="too large for the broker")
            raise
        return Published()

    def _message(self, publication: Publication) -> Message:
        # CloudEvents has a binding for AMQP 1.0 (`cloudEvents:`) and none for 0-9-1. This is Knative's; SDKs read it:
        # https://github.com/knative-extensions/eventing-rabbitmq/blob/main/cloudevents-protocol-spec/spec.md
        bound = bind(publication, self._binding, prefix="ce-", quoted=False)
        return Message(
            bound.body,
            content_type=bound.content_type,
            delivery_mode=DeliveryMode.PERSISTENT,
            message_id=publication.id,
            timestamp=publication.received_at,
            headers={_MESSAGE_ID: str(publication.event["subject"]), **bound.headers},
        )

    async def _open(self) -> "_Link":
        link = _Link(self._url, f"receiver {self._name}")
        try:
            await link.open(self._exchange)
        except BaseException:
            await link.abort()
            raise
        return link

    async def _check_link(self, link: "_Link") -> str | None:
        """Returns why a publish over this link failed; None if neither the broker nor the exchange is the cause."""
        if isinstance(link.closed_by, ChannelNotFoundEntity | ChannelAccessRefused):
            return self._reason(link.closed_by)
        return _BLOCKED if await link.is_blocked() else await self.check()

    def _reason(self, error: Exception) -> str:
        if isinstance(error, ChannelNotFoundEntity):
            return f"there is no exchange {self._exchange}"
        if isinstance(error, ChannelAccessRefused):
            return f"not allowed to publish to exchange {self._exchange}"
        if isinstance(error, InvalidFrameError):
            # The client cannot parse the broker's error about a virtual host.
            return "there is no such virtual host, or no access to it"
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            return f"{type(error).__name__}: {error}"
        return error_name(error)


class _Link:
    """A connection with one channel to an exchange."""

    exchange: AbstractExchange
    _channel: AbstractChannel

    def __init__(self, url: URL, name: str) -> None:
        self._transport_keeper = _TransportKeeper(
            TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        )
        self._connection = Connection(url, client_properties={"connection_name": name})
        self._connection.kwargs["transport_factory"] = self._transport_keeper
        self.is_unusable = False
        self.closed_by: ChannelClosed | None = None

    @property
    def is_closed(self) -> bool:
        return self._channel.is_closed

    async def open(self, exchange: str) -> None:
        """Connects and checks that the exchange exists. The default exchange always exists."""
        await self._connection.connect()
        self._channel = self._connection.channel(on_return_raises=True)
        await self._channel.initialize()
        self.exchange = await self._channel.get_exchange(exchange, ensure=exchange != "")

    def mark_unusable(self, error: BaseException) -> None:
        """Marks the link as unusable because a message failed or was not confirmed in time."""
        self.is_unusable = True
        if isinstance(error, ChannelClosed):
            self.closed_by = error

    async def is_blocked(self) -> bool:
        """Whether the broker has blocked publishers, for lack of memory or disk."""
        if self._connection.transport is None or self.is_closed:
            return False
        try:
            async with asyncio.timeout(0):
                await self._connection.transport.ready()
        except TimeoutError:
            return True
        return False

    async def close(self) -> None:
        """Closes the connection, within a second: the library waits for the broker even when it is cancelled."""
        aborting = asyncio.get_running_loop().call_later(_CLOSE_SECONDS, self._transport_keeper.abort)
        try:
            await self._connection.close()
        finally:
            aborting.cancel()
            self._transport_keeper.abort()

    async def abort(self) -> None:
        """Closes the connection at once and discards what is not written yet."""
        self._transport_keeper.abort()
        await self._connection.close()


class _TransportKeeper(TransportFactory):
    """Connects as the library does and keeps the transport, so that it can be aborted; the library only closes it."""

    def __init__(self, factory: TransportFactory) -> None:
        self._factory = factory
        self._transport: asyncio.WriteTransport | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self._factory.create(url, **kwargs)
        self._transport = writer.transport
        return reader, writer

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
