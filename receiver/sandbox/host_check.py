"""Refuses requests whose Host header is a name that a stranger may have pointed at this machine (DNS rebinding).

A web page from such a name has the same origin as the sandbox then. It could read messages and send requests, because
the paths under `/sandbox/` need no credentials.
"""

import ipaddress
from collections.abc import Awaitable, Callable, Collection
from typing import Final
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

ErrorHandler = Callable[[Request, Exception], Awaitable[Response]]

# Names that nobody can register.
_RESERVED: Final = (".localhost", ".internal", ".test")


def is_safe(host: str, own: Collection[str] = ()) -> bool:
    """Whether a Host header is no stranger's name: an address, a name without a dot, a reserved name, or an own one."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    return bool(name) and (_is_address(name) or "." not in name or name.endswith(_RESERVED) or name in own)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


class HostCheck:
    """Middleware that answers 421 to such a request. The host of `public_url` is an own one."""

    def __init__(self, app: ASGIApp, public_url: str | None, on_error: ErrorHandler) -> None:
        self._app = app
        self._own = {urlsplit(public_url).hostname or ""} if public_url else set()
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        # A browser always sends the header.
        if all(is_safe(host, self._own) for host in hosts):
            await self._app(scope, receive, send)
            return
        error = HTTPException(421, "The Host header is not a name of the sandbox: use its address, or set public_url")
        response = await self._on_error(Request(scope), error)
        await response(scope, receive, send)
