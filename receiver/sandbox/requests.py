"""What the routes of both API versions read from a request."""

import base64
import binascii
import hmac
from typing import Any, Final

import orjson
from starlette.requests import Request

from receiver.sandbox.settings import SandboxSettings
from receiver.sandbox.state import State

CHALLENGE: Final = 'Basic realm="Bandwidth API"'


def sandbox_state(request: Request) -> State:
    state: State = request.app.state.sandbox
    return state


def user_id(request: Request) -> str:
    """The user (v2: account) in the path."""
    return str(request.path_params["userId"])


def base_url(request: Request) -> str:
    """The start of message URLs: `public_url`, else the URL of the request."""
    return sandbox_state(request).settings.public_url or f"{request.url.scheme}://{request.url.netloc}"


def is_authorized(request: Request) -> bool:
    """Whether the credentials are accepted and the user exists."""
    settings = sandbox_state(request).settings
    user_exists = not settings.users or user_id(request) in settings.users
    return user_exists and _is_accepted(request.headers.get("authorization", ""), settings)


def _is_accepted(authorization: str, settings: SandboxSettings) -> bool:
    if not settings.credentials:
        return True
    scheme, _, encoded = authorization.partition(" ")
    try:
        pair = base64.b64decode(encoded.strip(), validate=True) if scheme.lower() == "basic" else b""
    except (binascii.Error, ValueError):
        return False
    return any(hmac.compare_digest(accepted.get_secret_value().encode(), pair) for accepted in settings.credentials)


def is_json(request: Request) -> bool:
    """Whether the Content-Type is JSON."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


async def json_body(request: Request) -> Any:
    """Returns the parsed body. Raises ValueError if it is not JSON."""
    return orjson.loads(await request.body())
