"""Standard output: one line of JSON per event."""

import asyncio
import sys
import threading
from collections.abc import Sequence

from receiver.sinks.base import Publication, Published, Result, Sink, SinkDown, SinkSettings
from receiver.sinks.lines import lines, write_all


class StdoutSink(Sink):
    """Prints events. When nobody reads any more the sink is down; when the reader is slow, it waits."""

    max_batch = 256
    keeps_order = True

    def __init__(self, settings: SinkSettings) -> None:
        self._writing = threading.Lock()

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        try:
            await asyncio.to_thread(self._write, lines(batch))
        except OSError as error:
            return [SinkDown(reason=error.strerror or str(error)) for _ in batch]
        return [Published() for _ in batch]

    async def check(self) -> str | None:
        return None if not sys.stdout.closed else "standard output is closed"

    def _write(self, content: bytes) -> None:
        # a write that outlived its time-out still holds the lock; a second must not wait behind it in another thread
        if not self._writing.acquire(blocking=False):
            raise BlockingIOError("the reader of standard output has stopped reading")
        try:
            sys.stdout.flush()
            write_all(sys.stdout.fileno(), content)
        finally:
            self._writing.release()
