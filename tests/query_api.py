"""The query API on a database of the test, and a client for it."""

import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from starlette.applications import Starlette

from receiver.api import problems
from receiver.api.auth import Tokens
from receiver.api.operations import ApiContext
from receiver.api.routes import routes
from receiver.domain.delivery import FinalConflict
from receiver.intake.fold import TagChecker
from receiver.intake.transfer import Reprocessing
from receiver.storage.database import Database
from tests.event_log import now

ADMIN = "admin-token-f00"
READER = "reader-token-ba7"
TAG_KEY = ("k1", "tag-secret-5ec")
AUTHORIZED = {"Authorization": f"Bearer {ADMIN}"}


def basic(password: str) -> str:
    """Basic auth with a token as the password, as clients of the Catapult API send it."""
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


def application(database: Database, **more: Any) -> Starlette:
    """The API as an application."""

    async def reprocess(ids: Sequence[str]) -> object:
        conflict = FinalConflict.FAILED_WINS
        return await Reprocessing(database=database, checker=TagChecker(), conflict=conflict, clock=now).ids(ids)

    tokens = Tokens([ADMIN, f"reporting:read:{READER}"])
    api = ApiContext(
        **{"database": database, "reprocess": reprocess, "tokens": tokens, "tag_key": TAG_KEY, "clock": now, **more}
    )
    app = Starlette(routes=routes(api), exception_handlers=problems.APPLICATION_HANDLERS)
    app.router.redirect_slashes = False
    return app


@asynccontextmanager
async def client(app: Starlette, headers: dict[str, str] | None = None) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://receiver.example", headers=AUTHORIZED if headers is None else headers
    ) as opened:
        yield opened
