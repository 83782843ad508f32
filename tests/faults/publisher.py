"""A process that publishes to a file until it is killed: `python publisher.py DATABASE_URL FILE`."""

import asyncio
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from receiver.domain.publication import Publication, Result, Retry
from receiver.sinks.jsonl import JsonlSettings, JsonlSink
from receiver.sinks.registry import ConfiguredSink
from receiver.storage.database import Database
from receiver.workers.dispatcher import Dispatchers
from receiver.workers.wakeup import Wakeup
from tests.event_log import Nobody, now


class Wavering(JsonlSink):
    """A file that takes its time, in small batches, and now and then does not take a message's events."""

    max_batch = 7

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        unwanted = {one.lane for one in batch if random.random() < 0.03}
        wanted = [one for one in batch if one.lane not in unwanted]
        taken = iter(await super().publish(wanted))
        await asyncio.sleep(random.uniform(0, 0.01))
        return [next(taken) if one in wanted else Retry(reason="wavering") for one in batch]


async def main(url: str, path: str) -> None:
    fields: dict[str, Any] = {"name": "file", "type": "test", "path": path, "start": "beginning"}
    settings = JsonlSettings(**fields, timeout="0.4s", schedule=("1s",))  # type: ignore[arg-type]
    dispatchers = Dispatchers(
        Database(url),
        [ConfiguredSink(settings, Wavering(settings))],
        clock=now,
        wakeup=Wakeup(),
        observer=Nobody(),
        lease_seconds=1.5,
        poll_seconds=0.05,
    )
    await dispatchers.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
