"""A process that publishes to a file until it is killed: `python publisher.py DATABASE_URL FILE [BEHAVIOUR]`."""

import asyncio
import fcntl
import os
import random
import signal
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from receiver.dispatch.dispatcher import Dispatchers
from receiver.dispatch.reader import Wakeup
from receiver.domain.publication import Publication, Published, Result, Retry
from receiver.sinks.base import Sink
from receiver.sinks.file import JsonlSettings, JsonlSink, lines
from receiver.sinks.registry import ConfiguredSink
from receiver.storage.database import Database
from tests.dispatching import Nobody, now

# A process that gets no CPU for half of the lease must not lose it.
LEASE_SECONDS: Final = 4.0
POLL_SECONDS: Final = 0.05
TURNS: Final = "turns"
OVERLAPS: Final = "overlaps"
AT_WORK: Final = "at-work"
EVENTS_OF_A_LIFE: Final = 300


class Wavering(JsonlSink):
    """A slow file sink with small batches that now and then fails the events of a message."""

    max_batch = 7

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        unwanted = {one.ordering_key for one in batch if random.random() < 0.03}
        wanted = [one for one in batch if one.ordering_key not in unwanted]
        taken = iter(await super().publish(wanted))
        await asyncio.sleep(random.uniform(0, 0.01))
        return [next(taken) if one in wanted else Retry(reason="wavering") for one in batch]


class Lines(Sink):
    """A file sink that appends single events, several at once."""

    concurrency = 8

    def __init__(self, settings: JsonlSettings) -> None:
        self.path = settings.path
        self._descriptor = os.open(settings.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        await asyncio.sleep(random.uniform(0, 0.005))
        os.write(self._descriptor, lines(batch))
        return [Published() for _ in batch]


class Mortal(Sink):
    """Kills its process after a number of events, before the last of them is settled."""

    taken = 0

    async def publish(self, batch: Sequence[Publication]) -> Sequence[Result]:
        results = await super().publish(batch)  # type: ignore[safe-super]
        self.taken += len(batch)
        if self.taken > EVENTS_OF_A_LIFE:
            os.kill(os.getpid(), signal.SIGKILL)
        return results


class MortalStream(Mortal, JsonlSink): ...


class MortalPosts(Mortal, Lines): ...


class WatchedPosts(Lines):
    """Records which process publishes, and pairs that publish events of one message at the same time."""

    max_batch = 3

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        (self.path.parent / AT_WORK).write_text(str(os.getpid()))
        with ExitStack() as turns:
            for ordering_key in sorted({one.ordering_key for one in batch}):
                turns.enter_context(self._turn(ordering_key.rpartition(":")[2]))
            return await super().publish(batch)

    @contextmanager
    def _turn(self, message: str) -> Iterator[None]:
        with (self.path.parent / TURNS / message).open("ab") as turn:
            try:
                fcntl.lockf(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with (self.path.parent / OVERLAPS).open("a") as overlaps:
                    overlaps.write(f"{_holder(turn)} {os.getpid()}\n")
            yield


def _holder(turn: BinaryIO) -> int:
    """The id of the process that holds the lock on a file; 0 if it has just ended."""
    layout = "hhqqi"
    request = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    return int(struct.unpack(layout, fcntl.fcntl(turn, fcntl.F_GETLK, request))[-1])


class WatchedStream(WatchedPosts):
    """Like WatchedPosts, but in the order of the log, with several events of a message in one batch."""

    keeps_order = True
    concurrency = 1
    max_batch = 40


BEHAVIOURS: Final = {one.__name__: one for one in (Wavering, MortalStream, MortalPosts, WatchedPosts, WatchedStream)}


async def main(url: str, path: str, behaviour: str) -> None:
    fields: dict[str, Any] = {"name": "file", "type": "test", "path": path, "start": "beginning"}
    settings = JsonlSettings(**fields, timeout="0.4s", schedule=("1s",))  # type: ignore[arg-type]
    dispatchers = Dispatchers(
        Database(url),
        [ConfiguredSink(settings, BEHAVIOURS[behaviour](settings))],
        clock=now,
        wakeup=Wakeup(),
        observer=Nobody(),
        lease_seconds=LEASE_SECONDS,
        poll_seconds=POLL_SECONDS,
    )
    await dispatchers.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
