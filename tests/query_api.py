"""The query API on a database of the test's own, and a client for it."""

import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from sqlalchemy import update
from starlette.applications import Starlette

from receiver.storage.callbacks import CALLBACKS
from receiver.storage.database import Database
from receiver.web import problems
from receiver.web.api import routes
from receiver.web.auth import Tokens
from receiver.web.operations import Api
from tests.builders import NOON
from tests.event_log import now

ADMIN = "admin-token-f00"
READER = "reader-token-ba7"
TAG_KEY = ("k1", "tag-secret-5ec")
AUTHORIZED = {"Authorization": f"Bearer {ADMIN}"}


def basic(password: str) -> str:
    """Basic auth with a token as the password, as clients of the seed API present it."""
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


def application(database: Database, **more: Any) -> Starlette:
    """The API as an application; reading a callback again, which is intake's, is an update of the ledger here."""

    async def reread(ids: Sequence[str]) -> None:
        async with database.writing() as connection:
            judged = {"outcome": "accepted", "reason": None, "problems": None, "events": 1, "reread_at": NOON}
            await connection.execute(update(CALLBACKS).where(CALLBACKS.c.id.in_(list(ids))).values(judged))

    tokens = Tokens([ADMIN, f"reporting:read:{READER}"])
    api = Api(**{"database": database, "reread": reread, "tokens": tokens, "tag_key": TAG_KEY, "clock": now, **more})
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
