"""Callbacks posted without pause, and the processes of a server that is to suffer under them."""

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import text

from receiver.storage.database import Database
from tests.factories import v2_event
from tests.faults.audit import audit
from tests.processes import PATIENT, Server, until, whole_lines

__all__ = [
    "Load",
    "audit",
    "children",
    "freeze",
    "is_gone",
    "let_the_lease_lapse",
    "posts",
    "published",
    "worker_of",
]

FIRST, SECOND = "+15550001", "+15550002"
STORY = (
    ("message-sending", FIRST),
    ("message-sending", SECOND),
    ("message-delivered", FIRST),
    ("message-failed", FIRST),
    ("message-failed", SECOND),
    ("message-delivered", FIRST),
)

Identity = tuple[str, str, str, str]


def identity(event: dict[str, Any]) -> Identity:
    """What makes a v2 event another one."""
    return event["message"]["id"], event["type"], event["to"], event["time"]


def posts(message_id: str) -> list[list[dict[str, Any]]]:
    """The callbacks of a message to two recipients, shuffled: an array of two, one event twice, and single events."""
    group = {"to": [FIRST, SECOND]}
    events = [
        v2_event(message_id, kind, to=to, time=f"2026-01-01T00:00:0{place}Z", message=group)
        for place, (kind, to) in enumerate(STORY)
    ]
    bodies = [[events[0]], [events[1]], events[2:4], [events[2]], [events[4]], [events[5]]]
    random.shuffle(bodies)
    return bodies


class Load:
    """Remembers which events were answered 200, and how long each answer took."""

    def __init__(self) -> None:
        self.acknowledged: set[Identity] = set()
        self.answers: Counter[int] = Counter()
        self.seconds: list[float] = []

    @asynccontextmanager
    async def on(self, url: str, name: str, *, connections: int = 24, pause: float = 0.0) -> AsyncIterator[None]:
        """Posts to a server until the block ends or the server is gone; `name` is that of no other load.

        `pause` is the time between two posts of a connection.
        """
        ending = asyncio.Event()
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        async with httpx2.AsyncClient(base_url=url, auth=("u", "p"), limits=limits, **PATIENT) as client:
            tasks = [
                asyncio.create_task(self._post(client, f"{name}-{place}", ending, pause))
                for place in range(connections)
            ]
            try:
                yield
            finally:
                ending.set()
                await asyncio.gather(*tasks)

    async def _post(self, client: httpx2.AsyncClient, name: str, ending: asyncio.Event, pause: float) -> None:
        number = 0
        while not ending.is_set():
            number += 1
            for body in posts(f"{name}-{number}"):
                try:
                    answer = await client.post("/callbacks/bandwidth/v2", json=body)
                except httpx2.TransportError:
                    return
                self.answers[answer.status_code] += 1
                self.seconds.append(answer.elapsed.total_seconds())
                if answer.status_code == 200:
                    self.acknowledged |= {identity(event) for event in body}
                await asyncio.sleep(pause)


def published(path: Path) -> list[dict[str, Any]]:
    """The events in a file; a line that the end of its process has torn holds none."""
    found = []
    for line in whole_lines(path):
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


async def let_the_lease_lapse(url: str) -> None:
    """Spares the test the seconds after which another worker takes over from one that is dead."""
    database = Database(url)
    async with database.writing() as connection:
        await connection.execute(text("UPDATE sinks SET lease_until = NULL"))
        await connection.execute(text("UPDATE processor SET lease_until = NULL"))
    await database.close()


# --- processes ---


def children(parent: int) -> list[int]:
    """The process ids of a process's children that run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = _stat(stat)
        if fields and fields[0] != "Z" and int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def worker_of(server: Server, *, but: int | None = None) -> int:
    """The process id of a server's worker, `but` the one that is about to end."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = [pid for pid in children(server.process.pid) if pid != but]
        return bool(found)

    until(is_there)
    return found[0]


def is_gone(pid: int) -> bool:
    fields = _stat(Path(f"/proc/{pid}/stat"))
    return not fields or fields[0] == "Z"


def freeze(pid: int) -> None:
    """Halts a process and waits until it has halted."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: (fields := _stat(Path(f"/proc/{pid}/stat"))) and fields[0] == "T")


def _stat(path: Path) -> list[str]:
    """State, parent and further fields of a process; none where it is gone."""
    try:
        return path.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
