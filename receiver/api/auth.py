"""Authentication by API tokens: as bearer tokens, or on the Catapult routes as the password of basic auth."""

import hashlib
import hmac
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request

from receiver.api.problems import BEARER_CHALLENGE, ProblemError
from receiver.intake.endpoint import basic_pair


class Access(IntEnum):
    """What a token permits, in rising order."""

    READ = 1
    ADMIN = 2


@dataclass(frozen=True, slots=True)
class ApiToken:
    """The digest of a token, and what it permits."""

    digest: bytes = field(repr=False)
    access: Access

    @classmethod
    def parse(cls, entry: str) -> "ApiToken":
        """A token from `token`, `name:read:token` or `name:admin:token`; a token without a name is an admin token."""
        parts = entry.split(":", 2)
        if len(parts) == 3 and parts[1] in _ACCESS:
            return cls(_digest(parts[2].encode()), _ACCESS[parts[1]])
        return cls(_digest(entry.encode()), Access.ADMIN)


_ACCESS: Final = {"read": Access.READ, "admin": Access.ADMIN}


class Tokens:
    """The accepted tokens. A presented token is compared with each of them in constant time."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._tokens = [ApiToken.parse(entry) for entry in entries]

    def __iter__(self) -> Iterator[ApiToken]:
        return iter(self._tokens)

    def find(self, presented: bytes) -> ApiToken | None:
        """The accepted token that is presented, the one that permits most; None if it is not accepted."""
        digest = _digest(presented)
        matching = [token for token in self._tokens if hmac.compare_digest(token.digest, digest)]
        return max(matching, key=lambda token: token.access) if presented and matching else None

    def has(self, digest: bytes) -> bool:
        """Whether the token with this digest is accepted."""
        return any(hmac.compare_digest(token.digest, digest) for token in self._tokens)

    def access(self, presented: bytes) -> Access | None:
        """What a presented token permits; None if it is not accepted."""
        token = self.find(presented)
        return token.access if token is not None else None


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def bearer(authorization: bytes) -> bytes | None:
    """The token in `Authorization: Bearer …`."""
    scheme, _, token = authorization.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None


def basic_password(authorization: bytes) -> bytes | None:
    """The password in `Authorization: Basic …`; the user name is ignored."""
    pair = basic_pair(authorization)
    return pair.partition(b":")[2] if pair is not None else None


@dataclass(frozen=True, slots=True)
class Scheme:
    """A way to present a token: a function that reads it from the header, and the challenge of a 401."""

    token: Callable[[bytes], bytes | None]
    challenge: str


BEARER: Final = Scheme(bearer, BEARER_CHALLENGE)
BASIC: Final = Scheme(basic_password, 'Basic realm="receiver", charset="UTF-8"')

_READING: Final = frozenset({"GET", "HEAD"})


class ApiUser(BaseUser):
    """Who presented a token."""

    def __init__(self, access: Access, digest: bytes) -> None:
        self.access = access
        self.digest = digest

    @property
    def is_authenticated(self) -> bool:
        return True


class TokenBackend(AuthenticationBackend):
    """Requires a token: any accepted token for GET and HEAD, an admin token for the rest. Raises ProblemError."""

    def __init__(self, tokens: Tokens, scheme: Scheme = BEARER) -> None:
        self._tokens = tokens
        self._scheme = scheme

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser]:
        presented = conn.headers.getlist("authorization")
        # A proxy and this application might disagree about which of two headers counts.
        token = self._scheme.token(presented[0].encode("latin-1")) if len(presented) == 1 else None
        access = self._tokens.access(token) if token is not None else None
        if token is None or access is None:
            detail = "This token is not accepted." if presented else "A token is required."
            raise ProblemError(401, detail, headers={"WWW-Authenticate": self._scheme.challenge})
        if access is Access.READ and conn.scope["method"] not in _READING:
            raise ProblemError(403, "This token may only read.")
        return AuthCredentials(), ApiUser(access, _digest(token))


def is_admin(request: Request) -> bool:
    """Whether a request has an admin token, or needs no token."""
    # Another application that mounts this one may have users of its own.
    user = request.scope.get("user")
    return user.access is Access.ADMIN if isinstance(user, ApiUser) else True


def token_digest(request: Request) -> bytes | None:
    """The digest of the token of a request; None if it needs no token."""
    user = request.scope.get("user")
    return user.digest if isinstance(user, ApiUser) else None


def token_guard(tokens: Tokens) -> Middleware:
    """Middleware for a route that requires a token."""
    return Middleware(AuthenticationMiddleware, backend=TokenBackend(tokens))
