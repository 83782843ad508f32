"""uvicorn, set up for strangers on the other end: a deadline for requests and a bound on headers, which it lacks."""

import asyncio
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

REQUEST_SECONDS: Final = 10.0
# a v1 GET carries a whole message in its address: 2048 characters, each up to 12 when percent-encoded
MAX_HEADER_BYTES: Final = 65_536
GRACEFUL_SECONDS: Final = 10
_MAX_CONNECTIONS: Final = 4096
_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class PatientProtocol(HttpToolsProtocol):
    """HTTP/1.1 that waits for a request, headers and body, only so long, and takes only so many bytes of headers."""

    # When the request must be complete; None between two requests.
    _deadline: float | None = None
    _timer: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _in_body = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._header_bytes = 0
        self._in_body = False
        self._arm()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        # uvicorn takes the trailers of a chunked body for headers: credentials and addresses must not come in that way
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._disarm()
        super().on_message_complete()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            self.transport.abort()

    def _arm(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.time() + REQUEST_SECONDS
            # One timer for many requests: to make and cancel one for each took some microseconds of every callback.
            if self._timer is None:
                self._timer = self.loop.call_later(REQUEST_SECONDS, self._look)

    def _disarm(self) -> None:
        self._deadline = None

    def _look(self) -> None:
        """Closes the connection if its request is late; else looks again when it would be."""
        self._timer = None
        if self._deadline is None:
            return
        left = self._deadline - self.loop.time()
        if left > 0:
            self._timer = self.loop.call_later(left, self._look)
        elif not self.transport.is_closing():
            self.transport.write(_TOO_SLOW)
            self.transport.close()


def server(app: Any, *, host: str, port: int, lifespan: bool = True) -> uvicorn.Server:
    """A server for the application; SIGTERM lets it finish what it has accepted. `lifespan`: it runs the app's."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=PatientProtocol,
        ws="none",
        lifespan="on" if lifespan else "off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
    )
    return uvicorn.Server(config)
