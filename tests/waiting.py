"""Waiting for a condition in the event loop of a test; `tests.running.until` waits outside of one."""

import asyncio
import time
from collections.abc import Awaitable, Callable


async def eventually(condition: Callable[[], Awaitable[object] | object], seconds: float = 45) -> None:
    """Waits until a condition holds: on a busy machine too, but for no lease to end and no long pause to pass."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if await found if isinstance(found, Awaitable) else found:
            return
        assert time.monotonic() < deadline, "the condition did not hold in time"
        await asyncio.sleep(0.01)
