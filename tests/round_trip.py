"""A sandbox and a real `receiver serve` that it calls back."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from receiver.sandbox.app import application
from receiver.sandbox.settings import SandboxSettings
from tests.running import PATIENT, Server, serving
from tests.web import serving as serving_here

USER = "u-1"
TOKEN, SECRET = "token", "secret"
PAIR = "callbacks:pass-77d"
API_TOKEN = "admin-token-f00"


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """A receiver as a process, a sandbox in this one, and a client for each."""

    server: Server
    sandbox_url: str
    sandbox: httpx2.AsyncClient
    receiver: httpx2.AsyncClient

    def v1_callback_url(self, path: str = "/callbacks/bandwidth/v1") -> str:
        """What a v1 client gives as `callbackUrl`: v1 knows credentials in the URL alone."""
        return f"http://{PAIR}@{urlsplit(self.server.url).netloc}{path}"

    async def settle(self, seconds: float = 45) -> None:
        """Waits until the sandbox has nothing left to post."""
        answer = await self.sandbox.get("/sandbox/idle", params={"wait": seconds}, timeout=seconds + 60)
        assert answer.json()["idle"], answer.text


@asynccontextmanager
async def round_trip(
    folder: Path, *, receiver: Mapping[str, str] | None = None, **sandbox: Any
) -> AsyncIterator[RoundTrip]:
    """Both, wired: v2 with a challenge, v1 with credentials in the URL; delays are compressed a thousandfold."""
    settings = {"CALLBACK_CREDENTIALS": json.dumps([PAIR]), "API_TOKENS": json.dumps([API_TOKEN])}
    async with AsyncExitStack() as stack:
        server = stack.enter_context(serving(folder, settings={**settings, **(receiver or {})}))
        callbacks = f"{server.url}/callbacks/bandwidth"
        defaults = {
            "speed": 1000,
            "messages_per_second": 0,
            "outbound_url": f"{callbacks}/v2",
            "callback_credentials": PAIR,
            "v1_inbound_url": f"{callbacks}/v1".replace("://", f"://{PAIR}@"),
        }
        url = await stack.enter_async_context(serving_here(application(SandboxSettings(**{**defaults, **sandbox}))))
        there = httpx2.AsyncClient(base_url=url, auth=(TOKEN, SECRET), **PATIENT)
        here = httpx2.AsyncClient(base_url=server.url, headers={"Authorization": f"Bearer {API_TOKEN}"}, **PATIENT)
        yield RoundTrip(server, url, await stack.enter_async_context(there), await stack.enter_async_context(here))
