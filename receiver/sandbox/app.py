"""The sandbox as an ASGI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from receiver.sandbox import control_routes, v1_routes, v2_routes
from receiver.sandbox.callback_sender import CallbackSender
from receiver.sandbox.clock import Clock
from receiver.sandbox.settings import SandboxSettings
from receiver.sandbox.state import State

# Room for the 50 messages of a v1 request, however their texts are escaped.
MAX_BODY_BYTES: Final = 2 * 1024 * 1024


def application(settings: SandboxSettings | None = None) -> Starlette:
    """Builds a sandbox. Its lifespan sends the callbacks.

    Code in the same process reaches the messages as `state.sandbox` and the callbacks as `state.callback_sender`.
    """
    settings = settings or SandboxSettings()
    clock = Clock()
    callback_sender = CallbackSender(settings, clock)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with callback_sender.running():
            yield

    app = Starlette(
        routes=[*v1_routes.ROUTES, *v2_routes.ROUTES, *control_routes.ROUTES],
        exception_handlers={HTTPException: _error_response, ClientDisconnect: _nobody_to_answer},
        lifespan=lifespan,
        max_body_size=MAX_BODY_BYTES,
    )
    app.router.redirect_slashes = False
    app.state.sandbox = State(settings, clock, callback_sender)
    app.state.callback_sender = callback_sender
    return app


async def _error_response(request: Request, error: Exception) -> Response:
    """Returns the error in the format of the API that the path belongs to."""
    assert isinstance(error, HTTPException)  # noqa: S101
    path = request.url.path
    if path.startswith(v1_routes.PREFIX):
        return v1_routes.error_response(request, error)
    if path.startswith(v2_routes.PREFIXES):
        return v2_routes.error_response(request, error)
    return control_routes.error_response(request, error)


async def _nobody_to_answer(_: Request, __: Exception) -> Response:
    """The client closed its connection within the body: no fault of the sandbox, and nobody reads the response."""
    return Response(status_code=400)
