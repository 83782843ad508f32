"""An application served by uvicorn on a free port, in the event loop of the test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn.server

from receiver.intake.server import server


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
async def serving(app: Any) -> AsyncIterator[str]:
    """The base URL of a server that runs while the block runs, and stops as on SIGTERM."""
    running = server(app, host="127.0.0.1", port=0)
    task = asyncio.create_task(running.serve())
    async with asyncio.timeout(10):
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
