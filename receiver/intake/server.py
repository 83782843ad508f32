"""uvicorn, configured for untrusted clients, with the deadline for requests and the bounds that it lacks."""

import asyncio
import ipaddress
import logging
import resource
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from itertools import chain
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

import httptools
import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from receiver.intake.endpoint import Network, is_in
from receiver.logs import Sampled

log = structlog.get_logger("receiver.server")

REQUEST_SECONDS: Final = 10.0
# A v1 GET has a whole message in its URL: 2048 characters, each up to 12 when percent-encoded.
MAX_HEADER_BYTES: Final = 65_536
# The number of requests that a client may send without waiting for earlier answers.
MAX_PIPELINED: Final = 64
GRACEFUL_SECONDS: Final = 10
KEEP_ALIVE_SECONDS: Final = 75
STREAMED: Final = "receiver.streamed"
"""The key in a request's scope that says that its response has no end of its own."""
# How long a stop waits for the client of a stream to take the rest.
STREAM_SECONDS: Final = 2.0
# More than this, and connections that only wait are closed. Fewer where the process may open fewer files.
MAX_CONNECTIONS: Final = 4096
# If none waits, so many more are accepted, for probes: anything else is answered 503 there.
SPARE_CONNECTIONS: Final = 64
_OTHER_FILES: Final = 256
# A client with more than this part of all connections gives up one of its own for each new one.
_LARGE_SHARE: Final = 4
_COUNT_EVERY_SECONDS: Final = 0.1
# A Content-Length of so many digits is read to its end whatever the answer: the connection serves further requests.
_SMALL_BODY_DIGITS: Final = 5
# What is read and thrown away of a larger body that nobody wants, so that the client can read the answer to it.
LINGER_BYTES: Final = 8 * 1024 * 1024
_PROBES: Final = ("/healthz", "/readyz")
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
    """Receives the measurements of the connections, and the reason for each request that the server refuses itself."""

    def connection_closed(self, reason: str) -> None: ...

    def rejected(self, reason: str) -> None: ...


class _Unobserved:
    def connection_closed(self, reason: str) -> None: ...

    def rejected(self, reason: str) -> None: ...


class _TooManyRequests(Exception):
    """Ends the parsing of data with too many pipelined requests; the connection is closed."""


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
            except httptools.HttpParserCallbackError:
                if self._protocol.transport.is_closing():
                    return
                raise
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
    waited longest is closed, and one whose request is being answered never. If one client has very many, it gives up
    one of its own. Below the limit a client may have any number. Trusted proxies, which bring many, never count as one
    client.
    """

    def __init__(self) -> None:
        self.idle: dict[DeadlineProtocol, None] = {}
        self.reading: dict[DeadlineProtocol, None] = {}
        self.by_address: Counter[str] = Counter()
        self._counted_at = float("-inf")
        self._shed = Sampled(log, "too many connections; those that wait longest are closed")
        self._largest = ""

    def remove(self, connection: "DeadlineProtocol") -> None:
        self.idle.pop(connection, None)
        self.reading.pop(connection, None)

    def shed(self, latest: "DeadlineProtocol") -> None:
        """Closes the connection that has waited longest, if one besides the latest waits."""
        self._shed.add(limit=_max_connections())
        closed = self._waits_longest(latest)
        if closed is not None:
            self.remove(closed)
            closed.transport.abort()
            # uvicorn does it later, and this connection no longer counts.
            closed.connections.discard(closed)
            latest.observer.connection_closed(Closed.LIMIT)

    def _waits_longest(self, latest: "DeadlineProtocol") -> "DeadlineProtocol | None":
        """Of the connections of a client that has very many, else of all."""
        crowd, longest = self._crowd(latest), None
        for other in chain(self.idle, self.reading):
            if other is not latest:
                if crowd is None or other.address == crowd:
                    return other
                longest = longest or other
        return longest

    def _crowd(self, latest: "DeadlineProtocol") -> str | None:
        """The address with the most connections, if it has a large part of all."""
        now = latest.loop.time()
        if now - self._counted_at >= _COUNT_EVERY_SECONDS and self.by_address:
            # Very many addresses take a fraction of a millisecond, which not every connection of a flood may cost.
            self._counted_at, self._largest = now, max(self.by_address, key=self.by_address.__getitem__)
        is_large = self.by_address[self._largest] * _LARGE_SHARE > len(latest.connections)
        return self._largest if is_large else None


class _LingeringTransport:
    """The transport of a request whose body has not been read completely: closing it lingers."""

    def __init__(self, protocol: "DeadlineProtocol") -> None:
        self.write, self.is_closing = protocol.transport.write, protocol.transport.is_closing
        self.close = protocol.linger


def _address(host: str) -> str:
    """The address of a client; of IPv6 the network of 64 bits, which one client may have to itself."""
    if ":" not in host:
        return host
    address = ipaddress.ip_address(host)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped) if mapped else address.exploded[:19]


_waiting: Final[WeakKeyDictionary[Any, _Waiting]] = WeakKeyDictionary()


def _max_connections() -> int:
    """The most connections of a server: the constant, or what the limit of open files leaves room for."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(MAX_CONNECTIONS, max(16, files - _OTHER_FILES)) if files != resource.RLIM_INFINITY else MAX_CONNECTIONS


class DeadlineProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a deadline for each request, and bounds on its headers, on pipelined requests and on connections.

    The checks run once for each piece of data: overriding the method that uvicorn calls for every header took a seventh
    of a callback's CPU time. Once the head of a request is complete, uvicorn's `cycle` has the scope of the protocol.

    An answer that is given before the body was read ends the connection: the rest is read without being parsed, up to a
    bound, since most clients read an answer only when they have sent everything, and a closed connection would take
    the answer with it.
    """

    parser: Any
    address = ""
    # How many bytes are still thrown away; None while requests are read.
    _lingering: int | None = None
    # The request that came in pieces and is prepared for an early answer, and whether its connection stays open then.
    _prepared: object = None
    _keep_alive = False
    # The scope of the request that is being read, and of the last request that was read completely.
    _reading: object = None
    _complete: object = None
    # The bytes of the current request outside of its body: headers and trailers.
    _head_bytes = 0
    # What is wrong with data behind requests that are still to be answered; nothing more is read.
    _broken: str | None = None
    # When the current request must be complete; None between two requests.
    _deadline: float | None = None
    _timer: asyncio.TimerHandle | None = None
    # While the client does not read its answer as fast as it is written.
    _write_timer: asyncio.TimerHandle | None = None
    _unread_bytes = 0

    def __init__(
        self, *arguments: Any, observer: ServerObserver, trusted_proxies: Sequence[Network] = (), **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.observer = observer
        self.parser = _Parser(self)
        self._trusted_proxies = trusted_proxies

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        host = self.client[0] if self.client else ""
        self.address = "" if is_in(host, self._trusted_proxies) else _address(host)
        self._lingering_transport: Any = _LingeringTransport(self)
        self._waiting = _waiting.setdefault(self.server_state, _Waiting())
        self._waiting.idle[self] = None
        if self.address:
            self._waiting.by_address[self.address] += 1
        limit = _max_connections()
        if len(self.connections) > limit:
            self._waiting.shed(self)
        if len(self.connections) > limit:
            self._refuse(all_requests=len(self.connections) > limit + SPARE_CONNECTIONS)
        self._start_deadline()

    def _refuse(self, *, all_requests: bool) -> None:
        """Every connection is being answered: this one is closed, or serves probes only."""
        if all_requests:
            self.observer.rejected("connections")
            self.observer.connection_closed(Closed.LIMIT)
            self.transport.abort()
        else:
            self.app = partial(self._answer_probes, self.app)

    async def _answer_probes(self, app: Any, scope: Any, receive: Any, send: Any) -> None:
        """Answers 503 to all requests but probes: a process that is busy must not count as dead."""
        if scope["path"].endswith(_PROBES):
            await app(scope, receive, send)
            return
        self.observer.rejected("connections")
        headers = [(b"content-length", b"0"), (b"retry-after", b"2"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._waiting.remove(self)
        counts = self._waiting.by_address
        counts[self.address] -= 1
        if counts[self.address] <= 0:
            del counts[self.address]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingering is not None:
            self._lingering -= len(data)
            if self._lingering < 0:
                self.transport.abort()
            return
        if self._broken is not None:
            return
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
        if self.transport.is_closing() or self._broken is not None:
            return
        if self.scope is self._complete is not None:
            self._deadline, self._head_bytes = None, 0
            self._waiting.reading.pop(self, None)
            if self.cycle.response_complete:
                # The end of a body whose request is answered already, or an empty line: uvicorn no longer times this
                # connection.
                self._wait_for_request()
            return
        self._waiting.reading[self] = None
        if self.cycle is not None and self.cycle.scope is self.scope is not self._prepared:
            self._prepare_to_linger()
        if self.scope is not self._reading:
            self._reading, self._head_bytes = self.scope, 0
            self._start_deadline()
        if self.cycle is cycle and self._complete is complete:
            is_body = in_body and (len(cycle.body) > body_bytes or cycle.response_complete)
            self._head_bytes += 0 if is_body else len(data)
        if self._head_bytes > MAX_HEADER_BYTES:
            self._abort(Closed.LONG_HEAD)

    def send_400_response(self, msg: str) -> None:
        """Refuses what cannot be parsed and closes the connection, once the earlier requests are answered.

        A client takes answers in the order of its requests: this one would be taken for theirs.
        """
        if self._has_earlier_requests:
            self._broken, self._deadline = msg, None
            self._waiting.remove(self)
            if self._is_queued:
                self.pipeline.popleft()
            self.flow.pause_reading()
            return
        if self._is_answered:
            self.transport.close()
        else:
            super().send_400_response(msg)
        self._report_closed(Closed.NOT_HTTP)

    @property
    def _has_head(self) -> bool:
        """Whether the request that is being read has a complete head, so that `cycle` is its own."""
        cycle: Any = self.cycle
        return cycle is not None and cycle.scope is self.scope is not self._complete

    @property
    def _is_queued(self) -> bool:
        """Whether the request that is being read waits for the answers to earlier ones."""
        return self._has_head and any(cycle is self.cycle for cycle, _ in self.pipeline)

    @property
    def _has_earlier_requests(self) -> bool:
        """Whether requests before the one that is being read are still to be answered."""
        cycle: Any = self.cycle
        if self._has_head:
            return self._is_queued
        return cycle is not None and not cycle.response_complete

    @property
    def _is_answered(self) -> bool:
        """Whether the answer to the request that is being read has begun."""
        return self._has_head and self.cycle.response_started

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_bytes = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(REQUEST_SECONDS, self._look_at_reader)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _look_at_reader(self) -> None:
        """Ends a connection whose client reads nothing of its answer, else looks again.

        Such a connection belongs to a request in progress, so it could not be shed, and closing it would wait for ever.
        """
        unread = self.transport.get_write_buffer_size()
        if unread >= self._unread_bytes:
            self.transport.abort()
            self.observer.connection_closed(Closed.SLOW)
            return
        self._unread_bytes = unread
        self._write_timer = self.loop.call_later(REQUEST_SECONDS, self._look_at_reader)

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
        if len(self.pipeline) >= MAX_PIPELINED:
            # Within the data: one piece of it has room for ten thousand requests, each of which takes 5 KB.
            self._abort(Closed.PIPELINED)
            raise _TooManyRequests
        super().on_headers_complete()
        # uvicorn adds the trailers of a chunked body to the headers: trailers must not set credentials or addresses.
        self.headers = []

    def on_message_complete(self) -> None:
        if self.parser.is_offered_upgrade:
            return
        self._complete = self.scope
        cycle: Any = self.cycle
        if cycle.transport is not self.transport:
            cycle.transport = self.transport
            if not cycle.response_started:
                cycle.keep_alive = self._keep_alive
        super().on_message_complete()

    def shutdown(self) -> None:
        self._keep_alive = False
        super().shutdown()
        # A stream ends by itself, but a client that does not read would hold up the stop.
        if self.scope and STREAMED in self.scope:
            self.loop.call_later(STREAM_SECONDS, self.transport.abort)

    def _prepare_to_linger(self) -> None:
        """Makes an answer that comes before the body was read close the connection, unless the body is small.

        The first request for each of Bandwidth's callbacks is answered 401, and the next one uses the same connection.
        """
        self._prepared = self.scope
        lengths = [value.lstrip(b"0") for name, value in self.scope["headers"] if name == b"content-length"]
        if any(len(length) <= _SMALL_BODY_DIGITS for length in lengths):
            return
        cycle: Any = self.cycle
        self._keep_alive = cycle.keep_alive
        cycle.keep_alive, cycle.transport = False, self._lingering_transport

    def linger(self) -> None:
        """Ends the connection after the answer to a request that was not read completely, without losing the answer."""
        if self.transport.is_closing():
            return
        self._lingering = LINGER_BYTES
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()

    def _wait_for_request(self) -> None:
        if self.pipeline or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        self._waiting.idle[self] = None

    def on_response_complete(self) -> None:
        if self._lingering is not None:
            self.server_state.total_requests += 1
            return
        if self._broken is not None and not self.pipeline and not self.transport.is_closing():
            self.server_state.total_requests += 1
            self.send_400_response(self._broken)
            return
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
        elif self._has_earlier_requests:
            # A client may wait for their answers, and uvicorn reads little meanwhile. The time begins behind them.
            self._start_deadline()
        elif not self.transport.is_closing():
            if not self._is_answered:
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
    trusted_proxies: Sequence[Network] = (),
) -> uvicorn.Server:
    """A server for the application; SIGTERM lets it finish the accepted requests. `lifespan` runs that of the app.

    `keep_alive` are the seconds for which a connection stays open between two requests. `trusted_proxies` may have
    any number of connections.
    """
    logging.getLogger("uvicorn.error").addFilter(_is_no_warning_for_each_request)
    protocol: Any = partial(DeadlineProtocol, observer=observer or _Unobserved(), trusted_proxies=trusted_proxies)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=protocol,
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
