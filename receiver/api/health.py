"""`/healthz`: the process is alive. `/readyz`: a callback can be committed now; worker and sinks do not matter.

Neither needs a token, and neither answers with more than its state.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

_PROBE_EVERY_SECONDS: Final = 1.0
_PROBE_SECONDS: Final = 4.5


class Health:
    """The two addresses for probes. `probe` makes a commit, and raises an error where that fails."""

    def __init__(self, probe: Callable[[], Awaitable[None]]) -> None:
        self._probe = probe
        self._lock = asyncio.Lock()
        self._probed_at = float("-inf")
        self._ready = False
        self._probing: asyncio.Task[bool] | None = None

    def routes(self) -> list[Route]:
        return [
            Route("/healthz", self._healthz, include_in_schema=False),
            Route("/readyz", self._readyz, include_in_schema=False),
        ]

    async def _healthz(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    async def _readyz(self, request: Request) -> PlainTextResponse:
        if await self._is_ready():
            return PlainTextResponse("ready\n")
        return PlainTextResponse("not ready\n", status_code=503)

    async def _is_ready(self) -> bool:
        """The result of the latest probe. One older than a second is repeated; only one probe runs at a time."""
        async with self._lock:
            if time.monotonic() - self._probed_at >= _PROBE_EVERY_SECONDS:
                self._ready = await self._succeeds()
                self._probed_at = time.monotonic()
            return self._ready

    async def _succeeds(self) -> bool:
        """Whether a commit succeeds in time. A late one is not cancelled: that would mean to wait for its end."""
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._commits())
        done, _ = await asyncio.wait({self._probing}, timeout=_PROBE_SECONDS)
        return bool(done) and self._probing.result()

    async def _commits(self) -> bool:
        try:
            await self._probe()
        except Exception:  # for whatever reason
            return False
        return True
