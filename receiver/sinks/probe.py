"""Trying a sink out: whether it can be reached, asked of one that is made for the purpose and given nothing."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from receiver.errors import SettingsError
from receiver.sinks import registry
from receiver.sinks.base import Sink
from receiver.sinks.concurrency import contained, said

_SECONDS: Final = 15.0
_STOP_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Trial:
    """Why a sink cannot be reached, None if it can, and how long it took to find out."""

    error: str | None
    seconds: float

    @property
    def ok(self) -> bool:
        return self.error is None


async def try_out(table: Mapping[str, Any], *, seconds: float = _SECONDS) -> Trial:
    """Makes the sink that a settings table describes, starts it, asks it, and stops it. It is given no event."""
    started = time.perf_counter()
    try:
        [configured] = registry.configure([table])
    except SettingsError as error:
        return Trial(str(error), time.perf_counter() - started)
    try:
        async with asyncio.timeout(seconds):
            complaint = await _complaint(configured.sink)
    except TimeoutError:
        complaint = "timeout"
    took = time.perf_counter() - started
    await _stop(configured.sink)
    return Trial(complaint, took)


async def _complaint(sink: Sink) -> str | None:
    try:
        await contained(sink.start())
    except Exception as error:
        told = f"did not start: {type(error).__name__}"
        # the sink's own words say more than what it raised
        with suppress(Exception):
            return await said(sink.check) or told
        return told
    try:
        return await said(sink.check)
    except Exception as error:
        return f"could not be asked: {type(error).__name__}"


async def _stop(sink: Sink) -> None:
    """What does not stop by itself is left behind."""
    with suppress(Exception):
        async with asyncio.timeout(_STOP_SECONDS):
            await contained(sink.stop())
