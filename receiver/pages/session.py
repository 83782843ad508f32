"""Sign-in: an API token becomes a session cookie, which every process that has the token in its settings can check.

The cookie holds an expiry and a random number, signed with a key that is derived from the token. Nothing is stored: a
session ends when it expires, when its browser forgets the cookie, or when its token leaves the settings.
"""

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

from receiver.api.auth import Access, ApiToken, Tokens

COOKIE: Final = "receiver_session"
LIFETIME: Final = timedelta(hours=12)

_VERSION: Final = "1"
_MAX_COOKIE: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A signed-in visitor. `digest` is that of the token; `csrf` is what a form of this session must contain."""

    access: Access
    digest: bytes = field(repr=False)
    csrf: str = field(repr=False)
    expires_at: datetime

    @property
    def is_admin(self) -> bool:
        return self.access is Access.ADMIN


def start_session(tokens: Tokens, presented: str, now: datetime) -> str | None:
    """The value of the cookie for a token; None if the token is not accepted."""
    token = tokens.find(presented.encode())
    if token is None:
        return None
    claims = f"{_VERSION}.{int((now + LIFETIME).timestamp())}.{secrets.token_urlsafe(16)}"
    return f"{claims}.{_signature(token, 'session', claims)}"


def read_session(tokens: Tokens, cookie: str, now: datetime) -> Session | None:
    """The session of a cookie; None if the cookie is forged, or its session or its token has ended."""
    claims, _, signature = cookie.rpartition(".")
    version, _, rest = claims.partition(".")
    expiry, _, _ = rest.partition(".")
    if version != _VERSION or len(cookie) > _MAX_COOKIE or not (expiry.isascii() and expiry.isdigit()):
        return None
    if int(expiry) <= now.timestamp():
        return None
    for token in tokens:
        if hmac.compare_digest(_signature(token, "session", claims).encode(), signature.encode("utf-8", "replace")):
            return Session(
                access=token.access,
                digest=token.digest,
                csrf=_signature(token, "form", claims),
                expires_at=datetime.fromtimestamp(int(expiry), now.tzinfo),
            )
    return None


def _signature(token: ApiToken, purpose: str, claims: str) -> str:
    key = hmac.new(token.digest, f"receiver {purpose}".encode(), hashlib.sha256).digest()
    return hmac.new(key, claims.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


# --- throttling ---

_FREE_ATTEMPTS: Final = 5
_WINDOW_SECONDS: Final = 60.0
_MAX_ADDRESSES: Final = 10_000


class Throttle:
    """Limits failed sign-ins to some within a minute for each address; of IPv6, for each network of 64 bits.

    There is no limit for all addresses together: with it a stranger could keep everybody from signing in. `monotonic`
    returns seconds that never jump: a clock that is set back must keep nobody from signing in, either.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def seconds_to_wait(self, address: str) -> int:
        """How long this address must wait before its next attempt; 0: not at all."""
        recent = self._recent(_network(address))
        if len(recent) < _FREE_ATTEMPTS:
            return 0
        return int(recent[-_FREE_ATTEMPTS] + _WINDOW_SECONDS - self._monotonic()) + 1

    def failed(self, address: str) -> None:
        network = _network(address)
        recent = self._recent(network)
        # The address that failed last is the last to be forgotten.
        self._failures.pop(network, None)
        self._failures[network] = [*recent, self._monotonic()]
        while len(self._failures) > _MAX_ADDRESSES:
            self._failures.popitem(last=False)

    def _recent(self, network: str) -> list[float]:
        now = self._monotonic()
        return [failure for failure in self._failures.get(network, []) if now - failure < _WINDOW_SECONDS]


def _network(address: str) -> str:
    """What counts as one address: anybody has millions of the addresses of IPv6."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ip_network((parsed, 64), strict=False)) if isinstance(parsed, IPv6Address) else str(parsed)
