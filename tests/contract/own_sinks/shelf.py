"""A target in memory, two sound sinks, and broken sinks, each of which breaks one rule."""

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from receiver.sinks.base import Publication, Published, Refused, Result, Retry, Sink, SinkDown, SinkSettings

MOST_BYTES = 100_000


@dataclass
class Shelf:
    """Stores the ids of events. It cannot be reached while it is down, and does not answer while it is frozen."""

    ids: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    is_down: bool = False
    answers: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.answers.set()

    def take_down(self) -> None:
        self.is_down = True

    def put_up(self) -> None:
        self.is_down = False

    async def put(self, publication: Publication) -> bool:
        """Returns whether the event was stored."""
        await asyncio.sleep(0)
        if self.is_down:
            raise ConnectionRefusedError
        await self.answers.wait()
        if publication.id in self.refused or len(publication.body) > MOST_BYTES:
            return False
        self.ids.append(publication.id)
        return True


shelf = Shelf()


class Sound(Sink):
    max_batch = 3
    max_event_bytes = MOST_BYTES
    concurrency = 4

    def __init__(self, settings: SinkSettings) -> None:
        self.seconds = settings.timeout.total_seconds()
        self.tasks: set[asyncio.Task[Any]] = set()

    async def publish(self, batch: Sequence[Publication]) -> Any:
        async with asyncio.timeout(self.seconds):
            return [await self.put(one) for one in batch]

    async def put(self, publication: Publication) -> Result:
        return Published() if await shelf.put(publication) else Refused(reason="not wanted")

    async def check(self) -> str | None:
        return "nobody is there" if shelf.is_down else None

    def later(self, work: Any) -> None:
        self.tasks.add(asyncio.get_running_loop().create_task(work))


class Streaming(Sound):
    """A sound sink that publishes several events of a message in one batch."""

    max_batch = 50
    concurrency = 1
    keeps_order = True

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        results: list[Result] = []
        stopped: set[str] = set()
        async with asyncio.timeout(self.seconds):
            for one in batch:
                results.append(Retry(reason="behind another") if one.ordering_key in stopped else await self.put(one))
                if not isinstance(results[-1], Published):
                    stopped.add(one.ordering_key)
        return results


class TakesNone(Sound):
    max_batch = 0


class Forgets(Sound):
    async def put(self, publication: Publication) -> Result:
        return Published() if publication.position % 3 == 0 else await super().put(publication)


class Invents(Sound):
    async def put(self, publication: Publication) -> Result:
        shelf.ids.append("0" * 32)
        return await super().put(publication)


class TellsTooLittle(Sound):
    async def publish(self, batch: Sequence[Publication]) -> Any:
        return (await super().publish(batch))[1:]


class TellsTooMuch(Sound):
    async def publish(self, batch: Sequence[Publication]) -> Any:
        return [*await super().publish(batch), Published()]


class TellsNothing(Sound):
    async def publish(self, batch: Sequence[Publication]) -> Any:
        await super().publish(batch)


class SaysOk(Sound):
    async def publish(self, batch: Sequence[Publication]) -> Any:
        return ["ok" for _ in await super().publish(batch)]


class Raises(Sound):
    async def publish(self, batch: Sequence[Publication]) -> Any:
        raise ValueError("what a batch")


class Hangs(Sound):
    async def publish(self, batch: Sequence[Publication]) -> Any:
        await asyncio.sleep(3600)


class Shuffles(Streaming):
    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        return (await super().publish(batch[::-1]))[::-1]


class Overtakes(Sound):
    """Returns Published before it publishes, and publishes the first event of a message after the others."""

    async def put(self, publication: Publication) -> Result:
        async def put() -> None:
            await asyncio.sleep(0.2 if publication.type == "message.queued" else 0)
            await shelf.put(publication)

        self.later(put())
        return Published()


class WantsEachOnce(Sound):
    async def put(self, publication: Publication) -> Result:
        if publication.id in shelf.ids:
            return Refused(reason="it is here already")
        return await super().put(publication)


class StoresEachOnce(Sound):
    """Publishes an event by its id alone, as if there were no other sink."""

    async def put(self, publication: Publication) -> Result:
        return Published() if publication.id in shelf.ids else await super().put(publication)


class WantsToBeAlone(Sound):
    busy = False

    async def publish(self, batch: Sequence[Publication]) -> Any:
        if self.busy:
            raise RuntimeError("another one is under way")
        self.busy = True
        try:
            return await super().publish(batch)
        finally:
            self.busy = False


class Boasts(Sound):
    max_event_bytes = 2 * MOST_BYTES


class SplitsLines(Sound):
    async def put(self, publication: Publication) -> Result:
        if "\n" in publication.event["data"].get("text", ""):
            shelf.ids.append("half an event")
        return await super().put(publication)


class Complains(Sound):
    async def check(self) -> str | None:
        return "it looks like rain"


class Pings(Sound):
    async def check(self) -> str | None:
        shelf.ids.append("ping")
        return None


class StartsOnce(Sound):
    starts = 0

    async def start(self) -> None:
        self.starts += 1
        if self.starts > 1:
            raise RuntimeError("threads can only be started once")


class NeverStops(Sound):
    async def stop(self) -> None:
        await asyncio.sleep(3600)


class StopsOnlyWhatStarted(Sound):
    async def start(self) -> None:
        self.connection = object()

    async def stop(self) -> None:
        del self.connection


class LeavesTasks(Sound):
    async def start(self) -> None:
        self.later(asyncio.sleep(3600))


class LeavesFiles(Sound):
    async def start(self) -> None:
        os.open(os.devnull, os.O_RDONLY)


class Buffers(Sound):
    """Returns Published before it publishes; a stop discards what is not published yet."""

    async def put(self, publication: Publication) -> Result:
        async def put() -> None:
            await asyncio.sleep(index / 100)
            await shelf.put(publication)

        index = len(self.tasks)
        self.later(put())
        return Published()

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()


class SaysPublishedToNobody(Sound):
    async def put(self, publication: Publication) -> Result:
        async def put() -> None:
            while shelf.is_down:
                await asyncio.sleep(0.01)
            await shelf.put(publication)

        self.later(put())
        return Published()


class SeesNothing(Sound):
    async def check(self) -> str | None:
        return None


class BlamesTheEvent(Sound):
    async def put(self, publication: Publication) -> Result:
        try:
            return await super().put(publication)
        except ConnectionError:
            return Retry(reason="not now")


class RefusesWhenDown(Sound):
    async def put(self, publication: Publication) -> Result:
        try:
            return await super().put(publication)
        except ConnectionError:
            return Refused(reason="not now")


class Gossips(Sound):
    async def put(self, publication: Publication) -> Result:
        try:
            return await super().put(publication)
        except ConnectionError:
            return SinkDown(reason=f"cannot publish {publication.event['data']['text']}")


class NeverRecovers(Sound):
    is_broken = False

    async def put(self, publication: Publication) -> Result:
        self.is_broken = self.is_broken or shelf.is_down
        return SinkDown(reason="broken") if self.is_broken else await super().put(publication)


class Persists(Sound):
    """Ignores its cancellation."""

    async def put(self, publication: Publication) -> Result:
        while not shelf.answers.is_set():
            with suppress(asyncio.CancelledError):
                await shelf.answers.wait()
        return await super().put(publication)


class Blocks(Sound):
    """Waits for its answer and blocks the event loop."""

    async def put(self, publication: Publication) -> Result:
        if not shelf.answers.is_set():
            time.sleep(1)  # noqa: ASYNC251
            return Retry(reason="timeout", overloaded=True)
        return await super().put(publication)


class BlocksForEver(Sound):
    async def put(self, publication: Publication) -> Result:
        while not shelf.answers.is_set():
            time.sleep(0.01)  # noqa: ASYNC251
        return await super().put(publication)


class SwallowsPoison(Sound):
    async def put(self, publication: Publication) -> Result:
        await super().put(publication)
        return Published()


class IsDownForPoison(Sound):
    async def put(self, publication: Publication) -> Result:
        result = await super().put(publication)
        return SinkDown(reason="not wanted") if isinstance(result, Refused) else result


class GoesOnWithoutPoison(Streaming):
    """Fails an event, and publishes later events of its message in the same batch."""

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        return [Published() if await shelf.put(one) else Retry(reason="not wanted") for one in batch]
