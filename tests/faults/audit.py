"""The audit after a fault: what was answered 200, journal, event log, status table and sinks, compared with each other.

It reads the callbacks of `tests.faults.load` by itself, with plain dictionaries and loops: what is wrong in the
product's parser or fold cannot hide here.
"""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import text

from receiver.domain.delivery import FinalConflict
from receiver.storage import journal
from receiver.storage.database import Database
from receiver.storage.rebuild import Rebuild

DRAIN_SECONDS = 240.0
# of two statuses of one recipient the later in this list holds
STATUSES = ("unknown", "sending", "delivered", "failed")

Identity = tuple[str, str, str, str]


class Posted(Protocol):
    acknowledged: set[Identity]


@dataclass
class Tables:
    """All rows of the load in the database."""

    bodies: dict[str, bytes] = field(default_factory=dict)
    events: list[Any] = field(default_factory=list)
    deliveries: list[Any] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    quarantined: int = 0


async def drained(url: str, seconds: float = DRAIN_SECONDS) -> None:
    """Waits until the processor has passed the end of the journal."""
    database, deadline = Database(url), time.monotonic() + seconds
    while await _pending(database):
        assert time.monotonic() < deadline, "callbacks are still pending"
        await asyncio.sleep(0.05)
    await database.close()


async def _pending(database: Database) -> int:
    async with database.reading() as connection:
        return await journal.pending(database, connection)


async def tables(url: str) -> Tables:
    database, found = Database(url), Tables()
    async with database.reading() as connection:
        for id_, body in await connection.execute(text("SELECT id, body FROM callbacks")):
            found.bodies[id_] = bytes(body)
        found.events = list(await connection.execute(text(_EVENTS)))
        found.deliveries = list(await connection.execute(text(_DELIVERIES)))
        found.messages = list(await connection.scalars(text("SELECT id FROM messages")))
        found.quarantined = (await connection.execute(text("SELECT count(*) FROM quarantine"))).scalar_one()
    await database.close()
    return found


# Without the alerts: a load that contradicts itself fires one as soon as it outlasts a round of evaluation.
_EVENTS = (
    "SELECT position, id, message_id, type, recipient, occurred_at, status, previous_status, changed, callback_id "
    "FROM events WHERE api <> 'alert' ORDER BY position"
)
_DELIVERIES = "SELECT message_id, recipient, status, contradicted FROM deliveries"


async def audit(url: str, load: Posted) -> set[str]:
    """Checks journal, event log and status table, once all is processed; returns the ids of all events in the log."""
    await drained(url)
    found = await tables(url)
    events = read_journal(found.bodies)
    lost = load.acknowledged - events
    assert not lost, f"{len(lost)} events that were answered 200 are not in the journal, for example {min(lost)}"
    assert_log(found, events)
    assert_statuses(found)
    assert found.quarantined == 0
    database = Database(url)
    rebuilt = await Rebuild(database, FinalConflict.FAILED_WINS, writes=False).run()
    await database.close()
    assert (rebuilt.differing, rebuilt.messages) == (0, len(found.messages))
    return {event.id for event in found.events}


def read_journal(bodies: dict[str, bytes]) -> set[Identity]:
    events = set()
    for body in bodies.values():
        for event in json.loads(body):
            events.add((event["message"]["id"], event["type"], event["to"], event["time"].replace(".000Z", "Z")))
    return events


def assert_log(found: Tables, events: set[Identity]) -> None:
    """Each event of the journal is in the log exactly once, from a callback that is in the journal."""
    logged = [(event.message_id, event.type, event.recipient, _time(event.occurred_at)) for event in found.events]
    assert len(logged) == len(set(logged)), "an event is in the log twice"
    assert set(logged) == events
    assert len({event.id for event in found.events}) == len(found.events)
    assert {event.callback_id for event in found.events} <= found.bodies.keys()


def _time(value: Any) -> str:
    """A whole second as the load writes it, from SQLite's text or PostgreSQL's time."""
    return f"{str(value)[:10]}T{str(value)[11:19]}Z"


def assert_statuses(found: Tables) -> None:
    """Folding the log event by event gives the stored statuses."""
    held: dict[tuple[str, str], str] = {}
    statuses: dict[tuple[str, str], set[str]] = defaultdict(set)
    for event in found.events:
        assert event.type == f"message-{event.status}"
        key = (event.message_id, event.recipient)
        before = held.get(key)
        after = max(before or "unknown", event.status, key=STATUSES.index)
        assert event.previous_status in (before, "unknown" if before is None else before)
        assert bool(event.changed) == (after != before)
        held[key] = after
        statuses[key].add(event.status)
    table = {(row.message_id, row.recipient): (row.status, bool(row.contradicted)) for row in found.deliveries}
    assert len(table) == len(found.deliveries)
    wanted = {key: (status, {"delivered", "failed"} <= statuses[key]) for key, status in held.items()}
    assert {key: row for key, row in table.items() if key in wanted} == wanted
    # a recipient of whom no event came is known by the events of the other
    assert {row for key, row in table.items() if key not in wanted} <= {("unknown", False)}
    assert sorted(found.messages) == sorted({message_id for message_id, _ in held})


# --- sinks ---


async def arrive(arrived: Any, events: set[str], seconds: float = DRAIN_SECONDS) -> None:
    """Waits until a sink has all events; `arrived` returns what it has."""
    deadline = time.monotonic() + seconds
    while {event["id"] for event in arrived()} != events:
        assert time.monotonic() < deadline, f"{len({event['id'] for event in arrived()})} of {len(events)} events"
        await asyncio.sleep(0.25)


def audit_sink(arrived: Sequence[dict[str, Any]], events: set[str]) -> int:
    """Checks that a sink has every event, each message's in order, each copy with the same id; returns the copies."""
    ids: dict[int, set[str]] = defaultdict(set)
    for event in arrived:
        ids[event["data"]["sequence"]].add(event["id"])
    assert all(len(of_one) == 1 for of_one in ids.values()), "copies of one event have different ids"
    assert {id_ for [id_] in ids.values()} == events
    assert len(ids) == len(events)
    assert_order(arrived)
    return len(arrived) - len(events)


def assert_order(events: Iterable[dict[str, Any]]) -> None:
    """First copies of a message's events come in the order of their sequence."""
    seen: set[str] = set()
    last: dict[str, int] = {}
    for event in events:
        if event["id"] not in seen:
            seen.add(event["id"])
            sequence = event["data"]["sequence"]
            assert sequence > last.get(event["subject"], 0), event["subject"]
            last[event["subject"]] = sequence
