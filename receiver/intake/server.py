"""uvicorn, configured for untrusted clients, with the deadline for requests and the bound on headers that it lacks."""

import asyncio
import logging
import resource
from enum import StrEnum
from functools import partial
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

import httptools
import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from receiver.logs import Sampled

log = structlog.get_logger("receiver.server")

REQUEST_SECONDS: Final = 10.0
# A v1 GET has a whole message in its URL: 2048 characters, each up to 12 when percent-encoded.
MAX_HEADER_BYTES: Final = 65_536
# The number of requests that a client may send without waiting for earlier answers.
MAX_PIPELINED: Final = 64
GRACEFUL_SECONDS: Final = 10
KEEP_ALIVE_SECONDS: Final = 75
# More than this, and connections that only wait are closed. Fewer where the process may open fewer files.
MAX_CONNECTIONS: Final = 4096
_OTHER_FILES: Final = 256
_LOG_EVERY_SECONDS: Final = 60.0
_SAMPLED: Final = {
    "not-http": Sampled(log, "a connection was closed: what it sent is not HTTP"),
    "long-head": Sampled(log, "a connection was closed: the head of its request is too long"),
    "pipelined": Sampled(log, "a connection was closed: it sent too many requests without waiting for answers"),
}
_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Closed(StrEnum):
    """Why the server closes a connection before the client does: the labels of its metric."""

    NOT_HTTP = "not-http"
    LONG_HEAD = "long-head"
    PIPELINED = "pipelined"
    SLOW = "slow"
    LIMIT = "limit"


class ServerObserver(Protocol):
    """Receives the measurements of the connections."""

    def connection_closed(self, reason: str) -> None: ...


class _Unobserved:
    def connection_closed(self, reason: str) -> None: ...


class _Parser:
    """httptools' parser, which reads a request that offers an upgrade as if the offer were not there (RFC 9110, 7.8).

    httptools takes every offer: it ends such a request behind its head, and leaves the body unread. A client that
    prefers HTTP/2 (curl --http2, the JVM's) offers it with each POST, and would be answered 200 for a lost callback.
    """

    def __init__(self, protocol: "DeadlineProtocol") -> None:
        self._protocol = protocol
        self._begin()

    def _begin(self) -> None:
        parser = httptools.HttpRequestParser(self._protocol)
        # As uvicorn does, so that the first of several pipelined requests is answered.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._parser = parser
        self.get_http_version, self.get_method = parser.get_http_version, parser.get_method
        self.should_keep_alive, self.should_upgrade = parser.should_keep_alive, parser.should_upgrade

    @property
    def is_offered_upgrade(self) -> bool:
        """Whether the head that is complete now offers an upgrade. CONNECT asks for a tunnel and has no body."""
        return bool(self.should_upgrade()) and self.get_method() != b"CONNECT"

    def feed_data(self, data: bytes) -> None:
        # The data may have several requests, each with an offer of its own.
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                if not self.is_offered_upgrade:
                    raise
                [end_of_head] = offer.args
                data = self._head_without_offer() + data[end_of_head:]
                self._begin()

    def _head_without_offer(self) -> bytes:
        protocol = self._protocol
        lines = [b"%s: %s\r\n" % header for header in protocol.headers if header[0] != b"upgrade"]
        version = self.get_http_version().encode()
        return b"%s %s HTTP/%s\r\n%s\r\n" % (self.get_method(), protocol.url, version, b"".join(lines))


class _Waiting:
    """The connections of one server that wait for their client, longest first: between requests, or within one.

    Whoever opens connections and sends nothing must not shut out those who do: at the limit the connection that has
    waited longest is closed, and one whose request is being answered never.
    """

    def __init__(self) -> None:
        self.idle: dict[DeadlineProtocol, None] = {}
        self.reading: dict[DeadlineProtocol, None] = {}
        self._logged_at = float("-inf")

    def remove(self, connection: "DeadlineProtocol") -> None:
        self.idle.pop(connection, None)
        self.reading.pop(connection, None)

    def shed(self, latest: "DeadlineProtocol") -> None:
        """Closes the connection that has waited longest, or the latest if none waits."""
        others = (connection for waiting in (self.idle, self.reading) for connection in waiting)
        closed = next((connection for connection in others if connection is not latest), latest)
        self.remove(closed)
        closed.transport.abort()
        latest.observer.connection_closed(Closed.LIMIT)
        now = latest.loop.time()
        if now - self._logged_at >= _LOG_EVERY_SECONDS:
            self._logged_at = now
            log.warning("too many connections; those that wait longest are closed", limit=_max_connections())


_waiting: Final[WeakKeyDictionary[Any, _Waiting]] = WeakKeyDictionary()


def _max_connections() -> int:
    """The most connections of a server: the constant, or what the limit of open files leaves room for."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(MAX_CONNECTIONS, max(16, files - _OTHER_FILES)) if files != resource.RLIM_INFINITY else MAX_CONNECTIONS


class DeadlineProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a deadline for each request, and bounds on its headers, on pipelined requests and on connections.

    The checks run once for each piece of data: overriding the method that uvicorn calls for every header took a seventh
    of a callback's CPU time. Once the head of a request is complete, uvicorn's `cycle` has the scope of the protocol.
    """

    parser: Any
    # The scope of the request that is being read, and of the last request that was read completely.
    _reading: object = None
    _complete: object = None
    # The bytes of the current request outside of its body: headers and trailers.
    _head_bytes = 0
    # When the current request must be complete; None between two requests.
    _deadline: float | None = None
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, observer: ServerObserver, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.observer = observer
        self.parser = _Parser(self)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._waiting = _waiting.setdefault(self.server_state, _Waiting())
        self._waiting.idle[self] = None
        if len(self.connections) > _max_connections():
            self._waiting.shed(self)
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._waiting.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._waiting.idle.pop(self, None)
        complete, cycle = self._complete, self.cycle
        in_body = cycle is not None and cycle.scope is self.scope is not complete
        body_bytes = len(cycle.body) if in_body else 0
        left = MAX_HEADER_BYTES - self._head_bytes
        # The parser holds a head in memory, so a head that is too long must not reach it.
        if len(data) > left and not in_body and data.find(b"\r\n\r\n", 0, left) < 0:
            self._abort(Closed.LONG_HEAD)
            return
        super().data_received(data)
        if len(self.pipeline) > MAX_PIPELINED:
            self._abort(Closed.PIPELINED)
            return
        if self.scope is self._complete is not None:
            self._deadline, self._head_bytes = None, 0
            self._waiting.reading.pop(self, None)
            return
        self._waiting.reading[self] = None
        if self.scope is not self._reading:
            self._reading, self._head_bytes = self.scope, 0
            self._start_deadline()
        if self.cycle is cycle and self._complete is complete:
            is_body = in_body and (len(cycle.body) > body_bytes or cycle.response_complete)
            self._head_bytes += 0 if is_body else len(data)
        if self._head_bytes > MAX_HEADER_BYTES:
            self._abort(Closed.LONG_HEAD)

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(msg)
        self._report_closed(Closed.NOT_HTTP)

    def _abort(self, reason: Closed) -> None:
        self.transport.abort()
        self._report_closed(reason)

    def _report_closed(self, reason: Closed) -> None:
        self.observer.connection_closed(reason)
        _SAMPLED[reason].add(remote=self.client[0] if self.client else None)

    def on_headers_complete(self) -> None:
        if self.parser.is_offered_upgrade:
            # The parser reads the request again without the offer.
            return
        super().on_headers_complete()
        # uvicorn adds the trailers of a chunked body to the headers: trailers must not set credentials or addresses.
        self.headers = []

    def on_message_complete(self) -> None:
        if self.parser.is_offered_upgrade:
            return
        self._complete = self.scope
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._deadline is None and not self.pipeline and not self.transport.is_closing():
            self._waiting.idle[self] = None

    def _start_deadline(self) -> None:
        self._deadline = self.loop.time() + REQUEST_SECONDS
        # One timer serves many requests: making and cancelling one for each took some microseconds of every callback.
        if self._timer is None:
            self._timer = self.loop.call_later(REQUEST_SECONDS, self._look)

    def _look(self) -> None:
        """Closes the connection if its request is late; else checks again at the deadline."""
        self._timer = None
        if self._deadline is None:
            return
        left = self._deadline - self.loop.time()
        if left > 0:
            self._timer = self.loop.call_later(left, self._look)
        elif not self.transport.is_closing():
            self.transport.write(_TOO_SLOW)
            self.transport.close()
            # Not in the log: browsers open connections in advance, and leave them idle.
            self.observer.connection_closed(Closed.SLOW)


def _is_no_warning_for_each_request(record: logging.LogRecord) -> bool:
    """Whether a line of uvicorn may be logged. Its protocol warns each time a stranger sends what it cannot read."""
    return record.module != HttpToolsProtocol.__module__.rpartition(".")[2] or record.levelno >= logging.ERROR


def server(
    app: Any,
    *,
    host: str,
    port: int,
    lifespan: bool = True,
    keep_alive: int = KEEP_ALIVE_SECONDS,
    observer: ServerObserver | None = None,
) -> uvicorn.Server:
    """A server for the application; SIGTERM lets it finish the accepted requests. `lifespan` runs that of the app.

    `keep_alive` are the seconds for which a connection stays open between two requests.
    """
    logging.getLogger("uvicorn.error").addFilter(_is_no_warning_for_each_request)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=partial(DeadlineProtocol, observer=observer or _Unobserved()),  # type: ignore[arg-type]
        ws="none",
        lifespan="on" if lifespan else "off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=keep_alive,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
    )
    return uvicorn.Server(config)
