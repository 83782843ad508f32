"""The sandbox as an ASGI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from receiver.sandbox import control_routes, v1_routes, v2_routes
from receiver.sandbox.callback_sender import Caller
from receiver.sandbox.settings import SandboxSettings
from receiver.sandbox.state import World
from receiver.sandbox.timeline import Clock

# fifty messages of v1, however they are escaped
MAX_BODY_BYTES: Final = 2 * 1024 * 1024


def application(settings: SandboxSettings | None = None) -> Starlette:
    """A sandbox; its lifespan posts the callbacks. `state.world` and `state.caller` are for those in its process."""
    settings = settings or SandboxSettings()
    clock = Clock()
    caller = Caller(settings, clock)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with caller.running():
            yield

    app = Starlette(
        routes=[*v1_routes.ROUTES, *v2_routes.ROUTES, *control_routes.ROUTES],
        exception_handlers={HTTPException: _refuse},
        lifespan=lifespan,
        max_body_size=MAX_BODY_BYTES,
    )
    app.router.redirect_slashes = False
    app.state.world = World(settings, clock, caller)
    app.state.caller = caller
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    """Says what is wrong in the words of whom the address belongs to."""
    assert isinstance(error, HTTPException)  # noqa: S101
    path = request.url.path
    if path.startswith(v1_routes.PREFIX):
        return v1_routes.refuse(request, error)
    if path.startswith(v2_routes.PREFIXES):
        return v2_routes.refuse(request, error)
    return control_routes.refuse(request, error)
