"""Tests whether a sink can be reached, with a new sink from the same settings and without publishing an event."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from receiver.errors import SettingsError
from receiver.sinks import registry
from receiver.sinks.base import Sink
from receiver.sinks.concurrency import call_sink, run_check

_SECONDS: Final = 15.0
_STOP_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Why a sink cannot be reached, None if it can, and how many seconds the test took."""

    error: str | None
    seconds: float

    @property
    def ok(self) -> bool:
        return self.error is None


async def probe_sink(table: Mapping[str, Any], *, seconds: float = _SECONDS) -> ProbeResult:
    """Makes the sink that a settings table describes, starts it, runs its check and stops it. Publishes no event.

    Does not raise: settings that are wrong, and whatever the sink raises, become the error of the result.
    """
    started = time.perf_counter()
    try:
        [configured] = registry.configure([table])
    except SettingsError as error:
        return ProbeResult(str(error), time.perf_counter() - started)
    try:
        async with asyncio.timeout(seconds):
            reason = await _check(configured.sink)
    except TimeoutError:
        reason = "timeout"
    seconds_taken = time.perf_counter() - started
    await _stop(configured.sink)
    return ProbeResult(reason, seconds_taken)


async def _check(sink: Sink) -> str | None:
    try:
        await call_sink(sink.start())
    except Exception as error:
        reason = f"did not start: {type(error).__name__}"
        # The answer of the check says more than the exception.
        with suppress(Exception):
            return await run_check(sink.check) or reason
        return reason
    try:
        return await run_check(sink.check)
    except Exception as error:
        return f"check failed: {type(error).__name__}"


async def _stop(sink: Sink) -> None:
    """Stops the sink, and abandons a `stop` that does not end in time."""
    with suppress(Exception):
        async with asyncio.timeout(_STOP_SECONDS):
            await call_sink(sink.stop())
