"""The callback routes: check credentials before the body, bound the body while it streams, append to the journal, 200.

A provider that signs its callbacks is checked after the body. Nothing here parses a callback. Whatever its content, the
answer is 200 once it is on disk: any other answer makes Bandwidth repeat the identical request for a day (contract,
section 1).
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import itertools
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol

import structlog
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from receiver import failpoints
from receiver.domain.events import Callback
from receiver.errors import JournalFull, StorageUnavailable
from receiver.intake.request_ids import HEADER, request_id
from receiver.logs import Sampled
from receiver.providers.base import CallbackUrl, Provider
from receiver.providers.registry import URLS

log = structlog.get_logger("receiver.endpoint")
_levels: Final = logging.getLogger("receiver.endpoint")

REASONS: Final = (
    "no-credentials",
    "wrong-credentials",
    "network",
    "method",
    "unknown-path",
    "too-large",
    "compressed",
    "disconnected",
    "full",
    "unavailable",
    "connections",
)
"""Why a request is refused: the labels of its metric."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_RETRY_AFTER: Final = (b"retry-after", b"2")
_CHALLENGE: Final = (b"www-authenticate", b'Basic realm="receiver", charset="UTF-8"')
_SECRET_HEADERS: Final = frozenset({b"authorization", b"proxy-authorization", b"cookie"})


class _RequestRejected(Exception):
    """A request is answered without being appended to the journal. `drains`: the rest of its body is read then."""

    def __init__(self, status: int, reason: str, *headers: tuple[bytes, bytes], drains: bool = False) -> None:
        self.status, self.reason, self.headers, self.drains = status, reason, headers, drains


def basic_pair(authorization: bytes) -> bytes | None:
    """The `user:password` in `Authorization: Basic …` (RFC 7617); None for anything else."""
    scheme, _, encoded = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except binascii.Error:
        return None


class Credentials:
    """The accepted `user:password` pairs. Each check compares all of them, in constant time."""

    def __init__(self, pairs: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(pair.encode()).digest() for pair in pairs]

    def accept(self, authorization: bytes) -> bool:
        """Whether an Authorization header holds one of the pairs."""
        pair = basic_pair(authorization)
        if pair is None:
            return False
        digest, is_known = hashlib.sha256(pair).digest(), False
        for known in self._digests:
            is_known |= hmac.compare_digest(digest, known)
        return is_known


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Who may post callbacks (credentials None: anybody; no networks: from anywhere), and their maximum size.

    `keys` has, by API, the keys of the providers that sign their callbacks.
    """

    credentials: Credentials | None
    networks: Sequence[Network]
    max_body_bytes: int
    keys: Mapping[str, str] = field(default_factory=dict)


class EndpointObserver(Protocol):
    """Receives the measurements of the callback routes."""

    def rejected(self, reason: str) -> None: ...


class Appends(Protocol):
    def append(self, callback: Callback) -> asyncio.Future[None]: ...


class CallbackEndpoints:
    """The callback routes. `admission` may be replaced at any time and applies to later requests.

    `id_header` is the header with the id of a request. It is read where a line of the log or an error needs it alone: a
    callback that is accepted must not wait for it.
    """

    def __init__(
        self,
        journal: Appends,
        *,
        admission: Admission,
        observer: EndpointObserver,
        clock: Callable[[], datetime],
        id_header: str = HEADER,
    ) -> None:
        self.admission = admission
        self._id_header = id_header.lower().encode()
        self._journal = journal
        self._observer = observer
        self._clock = clock
        self._wrong_credentials = Sampled(log, "callbacks with wrong credentials are refused")

    def routes(self) -> list[Route]:
        return [Route(url.path, _Endpoint(provider, url, self), include_in_schema=False) for provider, url in URLS]

    async def answer(self, provider: Provider, url: CallbackUrl, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request to a callback URL."""
        try:
            callback = await self._admit(provider, url, scope, receive)
            if failpoints.ARMED:
                failpoints.reach("body")
            await self._journal.append(callback)
            if failpoints.ARMED:
                failpoints.reach("accepted")
        except _RequestRejected as rejection:
            headers = [*rejection.headers, *self._report(rejection.reason, url, scope)]
            await _answer(send, rejection.status, *headers, drained=receive if rejection.drains else None)
        except JournalFull:
            await _answer(send, 503, _RETRY_AFTER, *self._report("full", url, scope))
        except StorageUnavailable:
            await _answer(send, 503, _RETRY_AFTER, *self._report("unavailable", url, scope))
        except Exception:
            # The answer 503 makes Bandwidth repeat the callback: no fault of the program may lose it.
            header, identity = self._request_id(scope)
            log.exception("a callback request failed", path=url.path, request_id=identity.decode())
            self._observer.rejected("unavailable")
            await _answer(send, 503, _RETRY_AFTER, (header, identity))
        else:
            if _levels.isEnabledFor(logging.DEBUG):
                await self._answer_and_log(callback, url, scope, send)
            else:
                await _answer(send, 200)

    async def _answer_and_log(self, callback: Callback, url: CallbackUrl, scope: Scope, send: Send) -> None:
        header, identity = self._request_id(scope)
        fields = {"callback": callback.id, "path": url.path, "bytes": len(callback.body)}
        log.debug("a callback was accepted", **fields, request_id=identity.decode())
        await _answer(send, 200, (header, identity))

    def _report(self, reason: str, url: CallbackUrl, scope: Scope) -> list[tuple[bytes, bytes]]:
        """Counts a refusal; returns the headers that name its request.

        Wrong credentials are in the log: a wrong setting at Bandwidth, or somebody guesses.
        """
        self._observer.rejected(reason)
        is_logged = _levels.isEnabledFor(logging.DEBUG)
        if reason == "no-credentials" and not is_logged:
            # Each v2 callback is refused like this once, which is no error.
            return []
        header, identity = self._request_id(scope)
        fields = {"path": url.path, "remote": _remote(scope), "request_id": identity.decode()}
        if reason == "wrong-credentials":
            self._wrong_credentials.add(**fields)
        if is_logged:
            log.debug("a request was refused", reason=reason, **fields)
        return [(header, identity)]

    def _request_id(self, scope: Scope) -> tuple[bytes, bytes]:
        """The header of the answer with the id of the request."""
        return self._id_header, request_id(scope, self._id_header)

    async def _admit(self, provider: Provider, url: CallbackUrl, scope: Scope, receive: Receive) -> Callback:
        """The request as a callback; raises _RequestRejected. The first check that fails decides the answer."""
        admission = self.admission
        method: str = scope["method"]
        remote = _remote(scope)
        if admission.networks and not is_in(remote, admission.networks):
            raise _RequestRejected(403, "network")
        if method not in url.methods:
            raise _RequestRejected(405, "method", (b"allow", ", ".join(url.methods).encode()))
        authorization, headers = _headers(scope["headers"])
        signature = provider.signature
        if admission.credentials and not signature and not admission.credentials.accept(authorization):
            # Bandwidth sends each v2 callback without credentials first: that is no fault of anybody.
            raise _RequestRejected(401, "wrong-credentials" if authorization else "no-credentials", _CHALLENGE)
        body = b"" if method == "GET" else await _body(headers, receive, admission.max_body_bytes)
        now = self._clock()
        if admission.credentials and signature:
            key = admission.keys.get(provider.api)
            if not key or not signature(key, headers, body, now):
                raise _RequestRejected(401, "wrong-credentials")
        return Callback(
            id=new_callback_id(now),
            received_at=now,
            api=provider.api,
            route=url.route,
            method=method,
            remote=remote,
            query=scope["query_string"].decode("utf-8", "replace"),
            headers=headers,
            body=body,
        )


class _Endpoint:
    """One callback URL as an ASGI application, as Starlette's `Route` accepts it."""

    def __init__(self, provider: Provider, url: CallbackUrl, endpoints: CallbackEndpoints) -> None:
        self._provider, self._url, self._endpoints = provider, url, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._endpoints.answer(self._provider, self._url, scope, receive, send)


class UnknownPaths:
    """The application with all other routes; it counts and logs requests below `/callbacks` that it has no route for.

    The path in an answer of 404 is the first mistake of an installation, and Bandwidth shows it to nobody.
    """

    def __init__(self, app: ASGIApp, observer: EndpointObserver) -> None:
        self._app, self._observer = app, observer
        self._unknown = Sampled(log, "requests to unknown callback URLs are refused")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_below_callbacks(scope):
            await self._app(scope, receive, send)
            return

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (404, 405):
                self._observer.rejected("unknown-path")
                self._unknown.add(
                    method=scope["method"], path=scope["path"][:_LOGGED_CHARACTERS], remote=_remote(scope)
                )
            await send(message)

        await self._app(scope, receive, observed)


_LOGGED_CHARACTERS: Final = 100


def _is_below_callbacks(scope: Scope) -> bool:
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path == "/callbacks" or path.startswith("/callbacks/")


# --- the body ---


# Some senders confuse Content-Encoding with the charset of Content-Type, and their users cannot change that.
_UNCOMPRESSED: Final = frozenset({"", "identity", "utf-8", "utf8", "us-ascii", "iso-8859-1"})


async def _body(headers: Mapping[str, str], receive: Receive, max_bytes: int) -> bytes:
    if headers.get("content-encoding", "").strip().lower() not in _UNCOMPRESSED:
        raise _RequestRejected(415, "compressed", (b"accept-encoding", b"identity"))
    over = _declares_more(headers.get("content-length", ""), max_bytes)
    body = None if over else await _stream(receive, max_bytes)
    if body is None:
        # A sender that waits for "100 Continue" ("expect") sends no body after this answer.
        raise _RequestRejected(413, "too-large", _CLOSE, drains=not (over and "expect" in headers))
    return body


def _declares_more(length: str, max_bytes: int) -> bool:
    """Whether a Content-Length is over the limit. The digits are bounded because `int` raises for 4,301 of them."""
    digits = length.strip().lstrip("0")
    return digits.isdecimal() and (len(digits) > 19 or int(digits) > max_bytes)


async def _stream(receive: Receive, max_bytes: int) -> bytes | None:
    """The body, counted while it streams; None once it is over the limit."""
    message = await receive()
    parts: list[bytes] = [message.get("body", b"")]
    size = len(parts[0])
    while message["type"] != "http.disconnect" and message.get("more_body") and size <= max_bytes:
        message = await receive()
        part: bytes = message.get("body", b"")
        parts.append(part)
        size += len(part)
    if message["type"] == "http.disconnect":
        raise _RequestRejected(400, "disconnected", _CLOSE)
    if size > max_bytes:
        return None
    return parts[0] if len(parts) == 1 else b"".join(parts)


_CLOSE: Final = (b"connection", b"close")
_DRAINED_BYTES: Final = 4 * 1024 * 1024


async def _drain(receive: Receive) -> None:
    """Reads a bounded part of an unwanted body: if the connection were closed now, the sender would lose the answer."""
    left = _DRAINED_BYTES
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b"")) or 1
        if not message.get("more_body"):
            return


# --- values ---

_PROCESS: Final = secrets.token_hex(5)
_numbers: Final = itertools.count()


def new_callback_id(now: datetime) -> str:
    """An id of 32 hexadecimal digits that rises with time: microseconds since 1970, then process and counter."""
    return f"{round(now.timestamp() * 1_000_000):014x}{_PROCESS}{next(_numbers) & 0xFFFFFFFF:08x}"


async def _answer(send: Send, status: int, *headers: tuple[bytes, bytes], drained: Receive | None = None) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0"), *headers]})
    if drained is not None:
        # Between start and end of the answer: after its end no server reads on, and a server that closes the connection
        # then takes the answer with it.
        await _drain(drained)
    await send({"type": "http.response.body", "body": b""})


def _headers(raw: list[tuple[bytes, bytes]]) -> tuple[bytes, dict[str, str]]:
    """The Authorization header, and the headers to be stored, without those that hold secrets."""
    authorization = b""
    headers: dict[str, str] = {}
    for name_bytes, value_bytes in raw:
        if name_bytes not in _SECRET_HEADERS:
            name, value = name_bytes.decode("latin-1"), value_bytes.decode("latin-1")
            # A repeated header is equal to one with the values as a list (RFC 9110, 5.2).
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        elif name_bytes == b"authorization":
            authorization = b"%b, %b" % (authorization, value_bytes) if authorization else value_bytes
    return authorization, headers


def _remote(scope: Scope) -> str | None:
    """The address of the client."""
    client = scope.get("client")
    return client[0] if client else None


def is_in(address: str | None, networks: Sequence[Network]) -> bool:
    """Whether an address is in one of the networks."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return any((mapped or parsed) in network for network in networks)
