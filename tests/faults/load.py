"""Callbacks posted without pause, and the audit of what became of them."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import text

from receiver.domain.delivery import FinalConflict
from receiver.storage.database import Database
from receiver.storage.rebuild import Rebuild
from tests.posts import v2_event
from tests.running import PATIENT, whole_lines

STORY = ("message-sending", "message-delivered", "message-failed", "message-delivered")


def posts(message_id: str) -> list[list[dict[str, Any]]]:
    """The callbacks of a message's life, shuffled: one event each, one of them twice, one array of two."""
    group = {"to": ["+15550001", "+15550002"]}
    events = [
        v2_event(message_id, kind, time=f"2026-01-01T00:00:0{place}Z", message=group)
        for place, kind in enumerate(STORY)
    ]
    bodies = [[events[0]], [events[1]], events[2:4], [events[1]]]
    random.shuffle(bodies)
    return bodies


class Load:
    """Remembers which events were answered 200."""

    def __init__(self) -> None:
        self.acknowledged: set[tuple[str, str, str]] = set()
        self.answers: Counter[int] = Counter()

    @asynccontextmanager
    async def on(self, url: str, name: str, *, connections: int = 24) -> AsyncIterator[None]:
        """Posts to a server until the block ends or the server is gone; `name` is that of no other load."""
        ending = asyncio.Event()
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        async with httpx2.AsyncClient(base_url=url, auth=("u", "p"), limits=limits, **PATIENT) as client:
            tasks = [asyncio.create_task(self._post(client, f"{name}-{place}", ending)) for place in range(connections)]
            try:
                yield
            finally:
                ending.set()
                await asyncio.gather(*tasks)

    async def _post(self, client: httpx2.AsyncClient, name: str, ending: asyncio.Event) -> None:
        number = 0
        while not ending.is_set():
            number += 1
            for body in posts(f"{name}-{number}"):
                try:
                    answer = await client.post("/callbacks/bandwidth/v2", json=body)
                except httpx2.TransportError:
                    return
                self.answers[answer.status_code] += 1
                if answer.status_code == 200:
                    self.acknowledged |= {(one["message"]["id"], one["type"], one["time"]) for one in body}


async def audit(url: str, load: Load) -> set[str]:
    """Checks ledger and status table; returns the ids of all events in the log."""
    database = Database(url)
    async with database.reading() as connection:
        events = list(await connection.scalars(text("SELECT id FROM events")))
        bodies = list(await connection.scalars(text("SELECT body FROM callbacks")))
    rebuilt = await Rebuild(database, FinalConflict.FAILED_WINS, writes=False).run()
    await database.close()
    ledger = {(one["message"]["id"], one["type"], one["time"]) for body in bodies for one in json.loads(bytes(body))}
    assert load.acknowledged <= ledger
    assert len(events) == len(set(events)) == len(ledger)
    assert (rebuilt.differing, rebuilt.messages) == (0, len({message for message, _, _ in ledger}))
    return set(events)


def published(path: Path) -> list[dict[str, Any]]:
    """The events in a file; a line that the end of its process has torn holds none."""
    found = []
    for line in whole_lines(path):
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


async def let_the_lease_lapse(url: str) -> None:
    """Spares the test the minute after which another process may work for the sinks of a killed one."""
    database = Database(url)
    async with database.writing() as connection:
        await connection.execute(text("UPDATE sinks SET lease_until = NULL"))
    await database.close()
