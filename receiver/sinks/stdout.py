"""Standard output: one line of JSON per event."""

import asyncio
import select
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
        if sys.stdout.closed:
            return "standard output is closed"
        return "nobody reads standard output" if _is_broken(sys.stdout.fileno()) else None

    def _write(self, content: bytes) -> None:
        # a write that outlived its time-out still holds the lock; a second must not wait behind it in another thread
        if not self._writing.acquire(blocking=False):
            raise BlockingIOError("the reader of standard output has stopped reading")
        try:
            sys.stdout.flush()
            write_all(sys.stdout.fileno(), content)
        finally:
            self._writing.release()


def _is_broken(descriptor: int) -> bool:
    """Whether it is a pipe or a socket whose other end is closed."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
