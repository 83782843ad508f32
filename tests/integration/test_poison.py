"""Poison: bodies within the limit that could keep the processor busy, and what bounds each of them.

Costs are counts, bytes, or CPU time as a multiple of a reference; none is the clock of a busy machine.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from receiver.domain import fold as batch_module
from receiver.domain import message as message_module
from receiver.domain.delivery import FinalConflict
from receiver.domain.events import MAX_EVENTS, MAX_RECIPIENTS, Callback
from receiver.intake import fold
from receiver.intake.fold import TagChecker
from receiver.intake.processor import Processor
from receiver.metrics import Processed
from receiver.storage import event_log
from receiver.storage.bulk import Transaction
from receiver.storage.database import Database
from receiver.storage.processor import MAX_LISTED
from tests.factories import callback, v2_event
from tests.processing import append, drain, now, opened, process, select
from tests.waiting import cpu_at_most

pytestmark = pytest.mark.anyio

LIMIT = 1_048_576
# What each of these bodies may cost, as a multiple of the reference work. Measured: 17 for the worst, 5 for a further
# event of its message; in the first version 100 and 50.
CPU_OF_BODY = 50
CPU_OF_FURTHER_EVENT = 15


async def count(database: Database, table: str) -> int:
    [(number,)] = await select(database, f"SELECT count(*) FROM {table}")
    return int(number)


def compact(events: list[Any]) -> bytes:
    return json.dumps(events, separators=(",", ":")).encode()


def small_event(message_id: str, second: int = 0, to: list[str] | None = None, kind: str = "delivered") -> Any:
    """As small as an event can be."""
    moment = f"2026-01-01T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}Z"
    message = {"id": message_id, **({"to": to} if to else {})}
    return {"type": f"message-{kind}", "time": moment, "message": message}


def numbers(count: int, start: int = 0) -> list[str]:
    return [f"+1{5_000_000_000 + number}" for number in range(start, start + count)]


def body_of(make: Callable[[int], Any]) -> bytes:
    """An array of as many events as the limit of a body has room for."""
    size = len(json.dumps(make(10_000), separators=(",", ":"))) + 1
    return compact([make(number) for number in range((LIMIT - 2) // size)])


ONES = b"[" + b",".join([b"1"] * 523_999) + b"]"
BODIES: dict[str, bytes] = {
    "half a million unusable elements": ONES,
    "distinct events": body_of(lambda number: small_event(f"m{number:05}", number)),
    "events of one message": body_of(lambda number: small_event("m", number)),
    "20,000 recipients": compact([small_event("m", to=numbers(20_000))]),
    "65,000 recipients": compact([small_event("m", to=numbers(65_000))]),
    "300 other recipients in each event": compact(
        [small_event("m", number, numbers(200, number * 300)) for number in range(300)]
    ),
    "repetitions of one event": compact([small_event("m")] * 12_000),
    "deep arrays": b"[" * 500_000 + b"]" * 500_000,
    "a million keys": b"{" + b",".join(b'"%d":1' % number for number in range(80_000)) + b"}",
    "one huge text": compact([v2_event("m", message={"text": "x" * 1_000_000})]),
}


def test_bodies_are_within_the_limit() -> None:
    assert all(len(body) <= LIMIT for body in BODIES.values()), {name: len(body) for name, body in BODIES.items()}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_poison_body_costs_bounded_time_and_so_does_what_follows(sqlite_url: str, body: bytes) -> None:
    async with opened(sqlite_url) as database:
        await process(database, callback([v2_event("warm")]))
        await append(database, callback(body), callback([v2_event("neighbour")]))
        with cpu_at_most(CPU_OF_BODY):
            await drain(database)
        assert await select(database, "SELECT status FROM messages WHERE id = 'neighbour'") == [("delivered",)]
        await append(database, callback([small_event("m", 90_000 % 86_400, kind="sending")]))
        with cpu_at_most(CPU_OF_FURTHER_EVENT):
            await drain(database)
        assert await count(database, "quarantine") <= MAX_LISTED + 1


async def test_quarantine_of_half_a_million_elements_is_a_hundred_rows(database: Database) -> None:
    await process(database, callback(ONES, id="c"))
    rows = await select(database, "SELECT element, reason, detail FROM quarantine ORDER BY element")
    assert [row.element for row in rows] == list(range(MAX_LISTED))
    assert {row.reason for row in rows} == {"unreadable"}
    assert [row.detail for row in rows if "further elements" in row.detail] == [rows[-1].detail]
    assert "523,899 further elements" in rows[-1].detail
    assert await count(database, "events") == 0


async def test_hundred_thousand_recipients_are_too_large(database: Database) -> None:
    await process(database, callback([small_event("m", to=numbers(100_000))]), callback([v2_event("n")]))
    assert await select(database, "SELECT reason FROM quarantine") == [("too-large",)]
    assert await select(database, "SELECT id FROM messages") == [("n",)]
    assert await count(database, "deliveries") == 1


async def test_recipients_of_a_message_are_bounded_over_all_of_its_events(database: Database) -> None:
    events = [small_event("m", number, numbers(300, number * 300)) for number in range(413)]
    for start in range(0, len(events), 100):
        await process(database, callback(events[start : start + 100]))
    assert await count(database, "deliveries") <= MAX_RECIPIENTS
    assert await count(database, "events") == MAX_RECIPIENTS // 300
    assert await select(database, "SELECT DISTINCT reason FROM quarantine") == [("too-large",)]


async def test_event_10001_of_a_message_is_too_large_and_repeats_are_still_recognised(sqlite_url: str) -> None:
    half = [[small_event("m", second) for second in range(start, start + 5000)] for start in (0, 5000)]
    async with opened(sqlite_url) as database:
        for events in half:
            await process(database, callback(compact(events)))
        assert await count(database, "events") == MAX_EVENTS == 10_000
        before = await select(database, "SELECT * FROM messages")
        await assert_full(database, half[1][-1], small_event("m", 80_000, kind="failed"))
        assert await select(database, "SELECT * FROM messages") == before


async def assert_full(database: Database, known: Any, new: Any) -> None:
    """A message takes no further event, and knows those that it has."""
    events = await count(database, "events")
    with cpu_at_most(CPU_OF_FURTHER_EVENT):
        await process(database, callback([known], id="repeat"), callback([new], id="new"))
    assert await select(database, "SELECT callback_id, reason FROM quarantine") == [("new", "too-large")]
    assert await select(database, "SELECT id FROM callbacks WHERE id IN ('new', 'repeat')") == [("new",)]
    assert await count(database, "events") == events


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is full with 100 events, and a batch reads 250."""
    for module in (batch_module, message_module, event_log):
        monkeypatch.setattr(module, "MAX_EVENTS", 100)
    monkeypatch.setattr(fold, "_MAX_KNOWN_EVENTS", 250)


@pytest.mark.usefixtures("small_limits")
async def test_full_message_takes_no_event_and_harms_no_neighbour(database: Database) -> None:
    events = [small_event("m", second) for second in range(120)]
    await process(database, callback(events, id="many"))
    assert await count(database, "events") == 100
    assert await select(database, "SELECT count(*), min(element) FROM quarantine") == [(20, 100)]
    # read beside so many others that its events are counted first
    for other in ("a", "b"):
        await process(database, callback([small_event(other, second) for second in range(90)]))
    bodies = [[small_event("m", 7)], [small_event("m", 500)], [small_event("a", 95), small_event("b", 95)]]
    await process(database, *(callback(body, id=f"c{place}") for place, body in enumerate(bodies)))
    assert await select(database, "SELECT callback_id, reason FROM quarantine WHERE callback_id <> 'many'") == [
        ("c1", "too-large")
    ]
    assert await count(database, "events") == 100 + 91 + 91
    # of callbacks that brought nothing new only the rejected one stays
    found = await select(database, "SELECT id FROM callbacks WHERE id LIKE 'c_' ORDER BY id")
    assert [id_ for (id_,) in found] == ["c1", "c2"]


@pytest.mark.usefixtures("small_limits")
async def test_batch_of_many_large_messages_reads_a_bounded_number_of_events(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [f"m{number}" for number in range(12)]
    for message in messages:
        await process(database, callback([small_event(message, second) for second in range(90)]))
    read: list[int] = []
    of_messages = event_log.of_messages

    async def counting(transaction: Transaction, wanted: Any, **more: Any) -> Any:
        found = await of_messages(transaction, wanted, **more)
        read.append(sum(map(len, found.events.values())))
        return found

    monkeypatch.setattr(event_log, "of_messages", counting)
    await process(database, *(callback([small_event(message, 95)]) for message in messages))
    assert await count(database, "events") == 12 * 91
    assert await select(database, "SELECT DISTINCT status FROM messages") == [("delivered",)]
    assert len(read) >= 6
    assert max(read) <= 250


@pytest.mark.usefixtures("small_limits")
async def test_callback_about_many_large_messages_is_read_whole(database: Database) -> None:
    messages = [f"m{number}" for number in range(6)]
    for message in messages:
        await process(database, callback([small_event(message, second) for second in range(90)]))
    await process(database, callback([small_event(message, 95) for message in messages]), callback([v2_event("n")]))
    assert await count(database, "events") == 6 * 91 + 1


class Batches:
    """An observer that remembers how large the batches are."""

    def __init__(self) -> None:
        self.callbacks: list[int] = []
        self.events: list[int] = []

    def processed(self, batch: Processed) -> None:
        self.callbacks.append(batch.results.total())
        self.events.append(batch.events.total())

    def stuck(self, is_stuck: bool) -> None: ...


async def batches_of(database: Database, *callbacks: Callback) -> Batches:
    await append(database, *callbacks)
    observer = Batches()
    processor = Processor(
        database, checker=TagChecker(), conflict=FinalConflict.FAILED_WINS, observer=observer, clock=now
    )
    assert await processor.drain()
    await processor.stop()
    return observer


async def test_batch_is_bounded_in_callbacks(database: Database) -> None:
    batches = await batches_of(database, *(callback([v2_event(f"m{number}")]) for number in range(1200)))
    assert batches.callbacks == [1000, 200]


async def test_batch_is_bounded_in_bytes(database: Database) -> None:
    large = [v2_event("m", message={"text": "x" * 1_000_000})]
    batches = await batches_of(database, *(callback(large) for _ in range(12)))
    assert max(batches.callbacks) <= 5
    assert sum(batches.callbacks) == 12


async def test_batch_is_bounded_in_events(database: Database) -> None:
    bodies = [[small_event(f"m{number}-{place}") for place in range(900)] for number in range(6)]
    batches = await batches_of(database, *(callback(body) for body in bodies))
    assert max(batches.events) <= 2700
    assert sum(batches.events) == 5400


async def test_long_parsing_and_folding_let_others_have_their_turn(sqlite_url: str) -> None:
    """The lease is renewed and the supervisor is told that the worker lives while a large body is processed."""
    async with opened(sqlite_url) as database:
        await append(database, callback(BODIES["distinct events"]), callback(ONES))
        turns = 0
        done = asyncio.Event()

        async def count_turns() -> None:
            nonlocal turns
            while not done.is_set():
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count_turns())
        await drain(database)
        done.set()
        await counting
        # a turn for a hundred elements
        assert turns > (9000 + 523_999) / 100


_BACKLOG = """
import asyncio, json, resource, sys
from receiver.storage.database import Database
from tests.waiting import cpu_at_most
from tests.factories import callback, v2_event
from tests.processing import append, drain

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

async def fill():
    database = Database(sys.argv[1])
    texts = [v2_event(f"m-{n}", message={"text": "x" * 50_000}) for n in range(20)]
    for number in range(64):
        for place, event in enumerate(texts):
            event["message"]["id"] = f"m{number}-{place}"
        body = json.dumps(texts).encode()
        assert 1_000_000 < len(body) <= 1_048_576
        await append(database, callback(body, id=f"b{number:02}"))
    small = [{"type": "message-delivered", "message": {"id": f"s{n}"}} for n in range(15_000)]
    ones = b"[" + b"1," * 523_998 + b"1]"
    await append(database, callback(json.dumps(small).encode(), id="c1"), callback(ones, id="c2"))
    await database.close()

async def drained():
    database = Database(sys.argv[1])
    before = peak()
    await drain(database)
    print(json.dumps([before, peak()]))
    await database.close()

asyncio.run(fill() if sys.argv[2] == "fill" else drained())
"""


async def run_backlog(url: str, what: str) -> bytes:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _BACKLOG, url, what, stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output


@pytest.mark.slow
async def test_backlog_of_64_megabytes_is_processed_in_bounded_memory(database_url: str) -> None:
    await run_backlog(database_url, "fill")
    before, peak = json.loads((await run_backlog(database_url, "drain")).splitlines()[-1])
    assert peak - before < 200
    async with opened(database_url) as database:
        assert await select(database, "SELECT callbacks, last_error FROM processor") == [(66, None)]
        assert await count(database, "messages") == 64 * 20 + 15_000
