"""The sink `nats`: each event is published to a JetStream subject, and counts once a stream has stored it."""

import asyncio
import random
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from string import Formatter
from typing import Annotated, Any, ClassVar, Final, Self
from urllib.parse import urlsplit

import orjson
from nats.aio.client import NO_RESPONDERS_STATUS, Client, RawCredentials
from nats.aio.msg import Msg
from nats.errors import Error, NoServersError
from nats.js.api import Header
from pydantic import AfterValidator, Field, FilePath, SecretStr, model_validator

from receiver.sinks.base import Publication, Published, Refused, Result, Retry, Secret, Sink, SinkDown, SinkSettings
from receiver.sinks.client_loop import ClientLoop
from receiver.sinks.concurrency import error_name, publish_each
from receiver.sinks.encoding import Binding, Template, bind, render

_CONNECT_SECONDS: Final = 2
_CHECK_SECONDS: Final = 2.0
_PING_SECONDS: Final = 20

# The default limit of a server, less room for the headers, which count too.
_MAX_EVENT_BYTES: Final = 1024 * 1024 - 8 * 1024

_TOO_LARGE: Final = frozenset({10054, 10097})
_WRONG_STREAM: Final = frozenset({10060, 10109})
_SERVER_FAULT: Final = 500


def _address(text: str) -> str:
    try:
        url = urlsplit(text)
        usable = url.scheme in ("nats", "tls") and url.hostname and url.port != 0
    except ValueError:
        usable = False
    if not usable or text != text.strip() or not text.isprintable():
        raise ValueError("must be nats:// or tls:// with a host and perhaps a port")
    if "@" in url.netloc:
        raise ValueError("must be without user and password, which have fields of their own")
    return text


def _subject(template: str) -> str:
    """Checks that the literal text of the subject makes tokens. Values of fields cannot break a token."""
    literal = "".join(text + ("x" if field is not None else "") for text, field, _, _ in Formatter().parse(template))
    tokens = literal.split(".")
    if not all(tokens) or any(character in literal for character in "*> \t\r\n") or literal.startswith("$"):
        raise ValueError("must be tokens with dots between them, without spaces and wildcards")
    return template


def _creds(content: SecretStr) -> SecretStr:
    # The client loops for ever over a text without these lines.
    for mark in ("-----BEGIN NATS USER JWT-----", "-----BEGIN USER NKEY SEED-----"):
        if mark not in content.get_secret_value():
            raise ValueError('must be what a .creds file holds, as in "file:/path/to/user.creds"')
    return content


class NatsSettings(SinkSettings):
    servers: tuple[Annotated[str, AfterValidator(_address)], ...] = Field(
        min_length=1, description="nats:// or tls://; one that can be reached is enough"
    )
    subject: Annotated[Template, AfterValidator(_subject)] = "sms.{direction}.{type}"
    stream: str | None = Field(
        None, pattern=r"^[^\s.*>/\\]+$", description="the stream that must store the events; none named: any"
    )
    binding: Binding = "structured"
    user: Secret | None = None
    password: Secret | None = None
    token: Secret | None = None
    credentials: Annotated[Secret, AfterValidator(_creds)] | None = Field(
        None, description="the content of a .creds file"
    )
    tls_ca: FilePath | None = Field(None, description="none: the authorities this system trusts")
    tls_certificate: FilePath | None = None
    tls_key: FilePath | None = None
    max_batch: int = Field(128, ge=1, le=1000, description="how many events may be unacknowledged at once")

    @property
    def has_tls(self) -> bool:
        return self.tls_ca is not None or self.tls_certificate is not None

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        if sum(way is not None for way in (self.user, self.token, self.credentials)) > 1:
            raise ValueError("user, token and credentials exclude each other")
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password belong together")
        if self.tls_key is not None and self.tls_certificate is None:
            raise ValueError("tls_key needs tls_certificate")
        return self


class NatsSink(Sink):
    """Publishes CloudEvents. An event is published once the stream acknowledges it, also as a duplicate."""

    Settings: ClassVar[type[SinkSettings]] = NatsSettings
    max_event_bytes = _MAX_EVENT_BYTES

    def __init__(self, settings: NatsSettings) -> None:
        self.max_batch = settings.max_batch
        self._settings = settings
        self._seconds = settings.timeout.total_seconds()
        self._tls = _tls(settings)
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        try:
            connection = await self._get_connection()
        except Exception as error:
            return [SinkDown(reason=_reason(error))] * len(batch)
        publish = partial(self._publish, connection)
        return await publish_each(batch, publish, seconds=self._seconds, check=self.check, loop=connection.loop)

    async def check(self) -> str | None:
        try:
            connection = await self._get_connection()
        except Exception as error:
            return _reason(error)
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                return await connection.loop.call(self._check(connection))
        except BaseException as error:
            # This connection may never answer again, while a new connection would.
            await connection.close()
            if not isinstance(error, Exception):
                raise
            return error_name(error)

    async def stop(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def _get_connection(self) -> "_Connection":
        async with self._connecting:
            if self._connection is not None and self._connection.is_closed:
                await self._connection.close()
                self._connection = None
            if self._connection is None:
                self._connection = await _connect(self._settings, self._tls)
            return self._connection

    async def _publish(self, connection: "_Connection", publication: Publication) -> Result:
        headers, body = self._message(publication)
        if _size(headers, body) > connection.max_payload:
            return Refused(reason=f"larger than the {connection.max_payload} bytes that the server allows")
        try:
            answer = await connection.request(render(self._settings.subject, publication), headers, body)
        except _NoResponders:
            return SinkDown(reason="no stream takes the subject")
        except _NotPermitted:
            return SinkDown(reason="permissions violation")
        return _result(answer)

    async def _check(self, connection: "_Connection") -> str | None:
        stream = self._settings.stream
        try:
            answer = await connection.request(f"$JS.API.STREAM.INFO.{stream}" if stream else "$JS.API.INFO", {}, b"")
        except _NoResponders:
            return "JetStream is not enabled"
        except _NotPermitted:
            # The user lacks permission for this request, but the server has answered.
            return None
        if "error" in answer:
            return _error_text(answer["error"])
        return "the stream acknowledges nothing" if answer.get("config", {}).get("no_ack") else None

    def _message(self, publication: Publication) -> tuple[dict[str, str], bytes]:
        bound = bind(publication, self._settings.binding, prefix="ce-")
        headers = {"content-type": bound.content_type, **bound.headers}
        if self._settings.binding == "binary":
            headers["ce-datacontenttype"] = bound.content_type
        if not publication.replayed:
            # Without the id, the stream stores a replayed event again, also within its duplicate window.
            # With the name of the sink: a stream that takes the subjects of two sinks stores the event of each.
            headers[Header.MSG_ID.value] = f"{self._settings.name}:{publication.id}"
        if self._settings.stream is not None:
            headers[Header.EXPECTED_STREAM.value] = self._settings.stream
        return headers, bound.body


class _Connection:
    """A connection to one server that is never reopened.

    The client's own reconnect is off: it would send later what nobody waits for any more.
    """

    def __init__(self, *, needs_tls: bool) -> None:
        # The cleanup of the client ends early if its connection is broken, and reports nothing then.
        self.loop = ClientLoop("receiver-nats", tls_only=needs_tls, on_lost=self._on_lost)
        self._client = Client()
        self._is_lost = self._is_deaf = False
        self._inbox = ""
        self._numbers = count()
        self._waiting: dict[str, tuple[str, asyncio.Future[Msg]]] = {}
        self.last_error: Exception | None = None

    async def open(self, server: str, settings: NatsSettings, tls: ssl.SSLContext | None) -> None:
        await self.loop.call(self._open(server, settings, tls))

    async def _open(self, server: str, settings: NatsSettings, tls: ssl.SSLContext | None) -> None:
        await self._client.connect(
            [server],
            name="receiver",
            error_cb=self._on_error,
            closed_cb=self._on_closed,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=_CONNECT_SECONDS,
            ping_interval=_PING_SECONDS,
            # With a buffer, a full one would keep `publish` from heeding its cancellation.
            pending_size=0,
            user=_plain(settings.user),
            password=_plain(settings.password),
            token=_plain(settings.token),
            user_credentials=RawCredentials(_plain(settings.credentials)) if settings.credentials else None,
            tls=tls,
        )
        self._inbox = self._client.new_inbox()
        await self._client.subscribe(f"{self._inbox}.*", cb=self._on_answer)

    @property
    def is_closed(self) -> bool:
        return self._is_lost or not self._client.is_connected

    @property
    def max_payload(self) -> int:
        return self._client.max_payload

    async def request(self, subject: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
        """Publishes a message and returns JetStream's answer. To be called on the loop of the connection.

        Raises _NoResponders, _NotPermitted, or ConnectionError when the connection is lost.
        """
        if self._is_deaf:
            raise _NotPermitted
        inbox = f"{self._inbox}.{next(self._numbers)}"
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[inbox] = subject, answer
        try:
            await self._client.publish(subject, body, reply=inbox, headers=headers)
            message = await answer
        finally:
            del self._waiting[inbox]
        if (message.headers or {}).get(Header.STATUS) == NO_RESPONDERS_STATUS:
            raise _NoResponders
        parsed: dict[str, Any] = orjson.loads(message.data)
        return parsed

    async def close(self) -> None:
        """Closes the connection at once and discards what is not sent yet.

        The client would send its buffer first, which never ends when the server no longer reads.
        """
        await self.loop.end()

    async def _on_answer(self, message: Msg) -> None:
        _, answer = self._waiting.get(message.subject, (None, None))
        if answer is not None and not answer.done():
            answer.set_result(message)

    async def _on_error(self, error: Exception) -> None:
        self.last_error = error
        text = str(error)
        if "permissions violation" in text:
            # The only subscription is the one for the answers: without it there will be none.
            self._is_deaf = self._is_deaf or "subscription" in text
            self._fail(_NotPermitted, lambda subject: "subscription" in text or f'"{subject.lower()}"' in text)

    async def _on_closed(self) -> None:
        self._on_lost()

    def _on_lost(self) -> None:
        self._is_lost = True
        self._fail(ConnectionResetError, lambda _: True)

    def _fail(self, error: type[Exception], concerns: Callable[[str], bool]) -> None:
        for subject, answer in list(self._waiting.values()):
            if concerns(subject) and not answer.done():
                answer.set_exception(error())


class _NoResponders(Exception):
    """No stream takes the subject."""


class _NotPermitted(Exception):
    """The user lacks permission to publish to the subject or to receive the acknowledgement."""


async def _connect(settings: NatsSettings, tls: ssl.SSLContext | None) -> _Connection:
    """Connects to the servers in random order until one accepts. Raises the error of the last one if none does."""
    failure: Exception = NoServersError()
    for server in random.sample(settings.servers, len(settings.servers)):
        connection = _Connection(needs_tls=tls is not None and (settings.has_tls or server.startswith("tls:")))
        try:
            await connection.open(server, settings, tls)
        except BaseException as error:
            await connection.close()
            if not isinstance(error, Exception):
                raise
            failure = connection.last_error or error
        else:
            return connection
    raise failure


def _result(answer: dict[str, Any]) -> Result:
    """The result for JetStream's answer to a publish."""
    if "error" not in answer:
        if "seq" not in answer:
            return Retry(reason="not the answer of a stream")
        return Published(duplicate=answer.get("duplicate") is True)
    error = answer["error"]
    reason, number, code = _error_text(error), error.get("err_code"), error.get("code", 0)
    if number in _TOO_LARGE:
        return Refused(reason=reason)
    if number in _WRONG_STREAM or (code >= _SERVER_FAULT and "per subject" not in reason):
        return SinkDown(reason=reason)
    return Retry(reason=reason)


def _error_text(error: dict[str, Any]) -> str:
    return str(error.get("description") or f"error {error.get('err_code')}")


def _reason(error: Exception) -> str:
    """Why the connection failed. The text of the server itself is left out."""
    refused = isinstance(error, Error) and "auth" in str(error).lower()
    return "authorization violation" if refused else error_name(error)


def _size(headers: dict[str, str], body: bytes) -> int:
    """The size of a message in bytes, as the server counts it."""
    lines = sum(len(name) + len(value) + len(": \r\n") for name, value in headers.items())
    return len("NATS/1.0\r\n") + lines + len("\r\n") + len(body)


def _plain(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret is not None else None


def _tls(settings: NatsSettings) -> ssl.SSLContext | None:
    """The TLS context, None without TLS. Raises ValueError when a certificate file cannot be used."""
    if not settings.has_tls and not any(server.startswith("tls:") for server in settings.servers):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca)
        if settings.tls_certificate is not None:
            # With an empty password OpenSSL does not prompt for one on the terminal.
            context.load_cert_chain(settings.tls_certificate, settings.tls_key, password="")
    except OSError as error:
        raise ValueError(f"tls: the files cannot be used: {error.strerror or type(error).__name__}") from None
    return context
