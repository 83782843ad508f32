"""What the routes of both generations look at in a request."""

import base64
import binascii
import hmac
from typing import Any, Final

import orjson
from starlette.requests import Request

from receiver.sandbox.settings import SandboxSettings
from receiver.sandbox.state import World

CHALLENGE: Final = 'Basic realm="Bandwidth API"'


def world(request: Request) -> World:
    found: World = request.app.state.world
    return found


def user(request: Request) -> str:
    """The user (v2: account) that the address names."""
    return str(request.path_params["userId"])


def base_url(request: Request) -> str:
    """What the addresses of messages begin with."""
    return world(request).settings.public_url or f"{request.url.scheme}://{request.url.netloc}"


def may_ask(request: Request) -> bool:
    """Whether the credentials are right and the user is known."""
    settings = world(request).settings
    known = not settings.users or user(request) in settings.users
    return known and _is_accepted(request.headers.get("authorization", ""), settings)


def _is_accepted(authorization: str, settings: SandboxSettings) -> bool:
    if not settings.credentials:
        return True
    scheme, _, encoded = authorization.partition(" ")
    try:
        pair = base64.b64decode(encoded.strip(), validate=True) if scheme.lower() == "basic" else b""
    except (binascii.Error, ValueError):
        return False
    return any(hmac.compare_digest(each.get_secret_value().encode(), pair) for each in settings.credentials)


def is_json(request: Request) -> bool:
    """Whether the body says that it is JSON."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


async def json_body(request: Request) -> Any:
    """The body; raises ValueError if it is not JSON."""
    return orjson.loads(await request.body())
