"""An application served by uvicorn on a free port, in the event loop of the test; the query API and its client."""

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import uvicorn.server
from starlette.applications import Starlette

from receiver.api import problems
from receiver.api.auth import Tokens
from receiver.api.operations import ApiContext
from receiver.api.routes import routes
from receiver.domain.delivery import FinalConflict
from receiver.domain.events import Callback
from receiver.intake.fold import TagChecker
from receiver.intake.server import server
from receiver.intake.transfer import Reprocessing
from receiver.pages.site import Site, SiteState
from receiver.pages.visit import SiteSettings
from receiver.storage.database import Database
from tests.dispatching import now
from tests.processing import append


class _QuickAsyncio:
    """asyncio, with short pauses."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))


# uvicorn looks ten times a second whether it is to stop, and then waits another tenth: together a minute of the suite.
uvicorn.server.asyncio = _QuickAsyncio()  # type: ignore[assignment]


@asynccontextmanager
async def serving(app: Any, **options: Any) -> AsyncIterator[str]:
    """The base URL of a server that runs while the block runs, and stops as on SIGTERM."""
    receiver = getattr(getattr(app, "state", None), "receiver", None)
    observer = receiver.metrics if receiver is not None else None
    running = server(app, host="127.0.0.1", port=0, **{"observer": observer, **options})
    task = asyncio.create_task(running.serve())
    async with asyncio.timeout(45):
        while not running.started:
            await asyncio.sleep(0.005)
            if task.done():
                await task
    port = running.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.should_exit = True
        await task


ADMIN = "admin-token-f00"
READER = "reader-token-ba7"
TAG_KEY = ("k1", "tag-secret-5ec")
SITE = SiteSettings(callback_user=("bandwidth", "callback-password-c0d"), tag_keys=dict([TAG_KEY]))
AUTHORIZED = {"Authorization": f"Bearer {ADMIN}"}


def basic(password: str) -> str:
    """Basic auth with a token as the password, as clients of the Catapult API send it."""
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


def application(database: Database, **more: Any) -> Starlette:
    """The API and the pages as an application."""

    async def reprocess(ids: Sequence[str]) -> object:
        conflict = FinalConflict.FAILED_WINS
        return await Reprocessing(database=database, checker=TagChecker(), conflict=conflict, clock=now).ids(ids)

    async def append_one(entry: Callback) -> None:
        await append(database, entry)

    tokens = Tokens([ADMIN, f"reporting:read:{READER}"])
    api = ApiContext(
        **{
            "database": database,
            "append": append_one,
            "reprocess": reprocess,
            "tokens": tokens,
            "tag_key": TAG_KEY,
            "clock": now,
            **more,
        }
    )
    state = SiteState()
    site = Site(api, state, SITE)
    handlers = {**problems.APPLICATION_HANDLERS, **problems.handlers(site.problem)}
    app = Starlette(routes=[*site.routes(), *routes(api)], exception_handlers=handlers)
    app.state.site = state
    app.router.redirect_slashes = False
    return app


@asynccontextmanager
async def client(app: Starlette, headers: dict[str, str] | None = None) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://receiver.example", headers=AUTHORIZED if headers is None else headers
    ) as opened:
        yield opened
    if hasattr(app.state, "site"):
        await app.state.site.shared.close()
