"""An application served by uvicorn on a free port, in the event loop of the test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from receiver.intake.server import server


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
