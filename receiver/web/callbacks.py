"""The callback routes, as bare ASGI: credentials before the body, the body counted while it streams, intake, 200.

Nothing slow happens here. A callback that cannot be used is still answered 200 once it is kept, for anything else makes
Bandwidth send the identical request for a day (contract, section 1).
"""

import hashlib
import hmac
import ipaddress
import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from starlette.types import Receive, Scope, Send

from receiver.domain.callbacks import Callback
from receiver.domain.events import Api
from receiver.errors import IntakeFull, StorageUnavailable
from receiver.web.auth import basic_pair

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_RETRY_AFTER: Final = (b"retry-after", b"2")
_CHALLENGE: Final = (b"www-authenticate", b'Basic realm="receiver", charset="UTF-8"')
_SECRET_HEADERS: Final = frozenset({b"authorization", b"proxy-authorization", b"cookie"})


@dataclass(frozen=True, slots=True)
class Route:
    """One callback URL: the generation it is meant for, which of the two addresses it is, and its methods."""

    api: Api
    name: str
    methods: tuple[str, ...]


ROUTES: Final = {
    "/callbacks/bandwidth/v1": Route(Api.V1, "primary", ("GET", "POST")),
    "/callbacks/bandwidth/v1/fallback": Route(Api.V1, "fallback", ("GET", "POST")),
    "/callbacks/bandwidth/v2": Route(Api.V2, "primary", ("POST",)),
    "/callbacks/bandwidth/v2/fallback": Route(Api.V2, "fallback", ("POST",)),
}


class Refused(Exception):
    """A request that is answered without being taken in."""

    def __init__(self, status: int, reason: str, *headers: tuple[bytes, bytes]) -> None:
        self.status, self.reason, self.headers = status, reason, headers


class Credentials:
    """The accepted `user:password` pairs; compared in constant time, every one of them each time."""

    def __init__(self, pairs: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(pair.encode()).digest() for pair in pairs]

    def accept(self, authorization: bytes) -> bool:
        """Whether an Authorization header holds one of the pairs."""
        pair = basic_pair(authorization)
        if pair is None:
            return False
        digest = hashlib.sha256(pair).digest()
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


class CallbackObserver(Protocol):
    """Who is told what became of requests, for the metrics."""

    def answered(self, seconds: float) -> None: ...

    def refused(self, reason: str) -> None: ...


class Intake(Protocol):
    async def accept(self, callback: Callback) -> object: ...


class Callbacks:
    """The ASGI application behind the callback URLs."""

    def __init__(
        self,
        intake: Intake,
        *,
        credentials: Credentials | None,
        networks: Sequence[Network],
        max_body_bytes: int,
        observer: CallbackObserver,
        clock: Callable[[], datetime],
    ) -> None:
        self._intake = intake
        self._credentials = credentials
        self._networks = networks
        self._max_body_bytes = max_body_bytes
        self._observer = observer
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        try:
            callback = await self._admit(scope, receive)
            await self._intake.accept(callback)
        except Refused as refusal:
            self._observer.refused(refusal.reason)
            await _answer(send, refusal.status, *refusal.headers)
        except IntakeFull:
            self._observer.refused("full")
            await _answer(send, 503, _RETRY_AFTER)
        except StorageUnavailable:
            self._observer.refused("unavailable")
            await _answer(send, 503, _RETRY_AFTER)
        else:
            self._observer.answered(time.perf_counter() - started)
            await _answer(send, 200)

    async def _admit(self, scope: Scope, receive: Receive) -> Callback:
        """The request as a callback; raises Refused. The order of the checks is the order of the answers."""
        route: Route = ROUTES[scope["path"]]
        method: str = scope["method"]
        remote = scope["client"][0] if scope.get("client") else None
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if self._networks and not _is_in(remote, self._networks):
            raise Refused(403, "network")
        if method not in route.methods:
            raise Refused(405, "method", (b"allow", ", ".join(route.methods).encode()))
        if self._credentials and not self._credentials.accept(_header(headers, b"authorization")):
            raise Refused(401, "unauthorized", _CHALLENGE)
        body = b"" if method == "GET" else await self._body(headers, receive)
        now = self._clock()
        return Callback(
            id=new_callback_id(now),
            received_at=now,
            api=route.api,
            route=route.name,
            method=method,
            remote=remote,
            query=scope["query_string"].decode("utf-8", "replace"),
            headers=_kept_headers(headers),
            body=body,
        )

    async def _body(self, headers: list[tuple[bytes, bytes]], receive: Receive) -> bytes:
        if _header(headers, b"content-encoding").strip().lower() not in (b"", b"identity"):
            raise Refused(415, "compressed", (b"accept-encoding", b"identity"))
        declared = _header(headers, b"content-length")
        over = declared.isdigit() and int(declared) > self._max_body_bytes
        body = None if over else await self._stream(receive)
        if body is None:
            # who asks before sending is told at once: to read on would be to say "continue"
            if not (over and _header(headers, b"expect")):
                await _drain(receive)
            raise Refused(413, "too-large", _CLOSE)
        return body

    async def _stream(self, receive: Receive) -> bytes | None:
        """The body, counted as it comes; None once it is over the limit."""
        parts: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "disconnected", _CLOSE)
            part: bytes = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > self._max_body_bytes:
                return None
            more = message.get("more_body", False)
        return parts[0] if len(parts) == 1 else b"".join(parts)


_CLOSE: Final = (b"connection", b"close")
_DRAINED_BYTES: Final = 4 * 1024 * 1024


async def _drain(receive: Receive) -> None:
    """Lets a body that is not wanted run out, within bounds: closing on a sender would cost it the answer."""
    left = _DRAINED_BYTES
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b"")) or 1
        if not message.get("more_body"):
            return


_PROCESS: Final = secrets.token_hex(5)
_numbers: Final = itertools.count()


def new_callback_id(now: datetime) -> str:
    """An id of 32 hexadecimal digits that rises with time: microseconds since 1970, then process and number."""
    return f"{round(now.timestamp() * 1_000_000):014x}{_PROCESS}{next(_numbers) & 0xFFFFFFFF:08x}"


async def _answer(send: Send, status: int, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0"), *headers]})
    await send({"type": "http.response.body", "body": b""})


def _header(headers: list[tuple[bytes, bytes]], name: bytes) -> bytes:
    for key, value in headers:
        if key == name:
            return value
    return b""


def _kept_headers(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    return {key.decode("latin-1"): value.decode("latin-1") for key, value in headers if key not in _SECRET_HEADERS}


def _is_in(address: str | None, networks: Sequence[Network]) -> bool:
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return any((mapped or parsed) in network for network in networks)
