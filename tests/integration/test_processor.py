"""The processor on both databases: what callbacks become, exactly once, and by whom."""

import asyncio
import json
import random
import secrets
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from receiver import failpoints
from receiver.domain.delivery import FinalConflict
from receiver.domain.events import Api, Callback
from receiver.errors import StorageUnavailable
from receiver.intake.fold import TagChecker
from receiver.intake.journal import Journal
from receiver.intake.processor import Processor, ProcessorStatus
from receiver.intake.transfer import Reprocessing
from receiver.metrics import Processed
from receiver.models.callbacks import CALLBACKS
from receiver.storage import processor as processor_table
from receiver.storage.bulk import Transaction
from receiver.storage.database import Database
from receiver.storage.journal import journal_writer
from receiver.storage.processor import ProcessorLease, ProcessorLeaseLost
from receiver.tags import TagPolicy, sign
from tests.factories import callback, v1_event, v2_event
from tests.processing import NoObserver, append, drain, now, opened, process, select
from tests.servers import on_postgres
from tests.waiting import eventually

pytestmark = pytest.mark.anyio

# An example is a callback on its way through a database.
EXAMPLES = settings.default.max_examples // 5

GROUP = {"to": ["+15550001", "+15550002"]}


class Measured:
    """An observer that adds up what the processor measures."""

    def __init__(self) -> None:
        self.results: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.duplicates = 0
        self.batches = 0

    def processed(self, batch: Processed) -> None:
        self.batches += 1
        self.results += batch.results
        self.events += batch.events
        self.reasons += batch.reasons
        self.duplicates += batch.duplicates
        assert len(batch.lag_seconds) == batch.results.total()

    def stuck(self, is_stuck: bool) -> None: ...


class NoGroups:
    def appended(self, *_: Any) -> None: ...


def make_processor(database: Database, **more: Any) -> Processor:
    defaults = {"checker": TagChecker(), "conflict": FinalConflict.FAILED_WINS, "observer": NoObserver(), "clock": now}
    return Processor(database, **{**defaults, **more})


async def change(database: Database, *statements: str) -> None:
    async with database.writing() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def everything(database: Database) -> list[list[Any]]:
    """All that processing writes, but the cursor."""
    tables = ("callbacks", "quarantine", "events", "messages", "deliveries")
    return [await select(database, f"SELECT * FROM {table} ORDER BY 1, 2, 3, 4") for table in tables]


# --- what a callback becomes ---


async def test_callback_becomes_an_event_a_message_and_a_delivery(database: Database) -> None:
    await process(database, callback([v2_event()]))
    assert await select(
        database,
        "SELECT status, previous_status, delivery_state FROM events JOIN message_status USING (message_id, status)",
    ) == [("delivered", None, "delivered")]
    assert await select(database, "SELECT recipient, status, message_status, code_name FROM message_status") == [
        ("+15550001", "delivered", "delivered", None)
    ]
    assert await select(database, "SELECT callbacks, repeats FROM processor") == [(1, 0)]


async def test_measurements_count_results_events_and_reasons(database: Database) -> None:
    measured = Measured()
    bodies = [[v2_event("m1")], [v2_event("m1")], [v2_event("m2"), 17], [], [1, 2]]
    await append(database, *map(callback, bodies))
    processor = make_processor(database, observer=measured)
    await processor.drain()
    await processor.stop()
    assert measured.results == {"accepted": 1, "duplicate": 2, "quarantined": 2}
    assert measured.events == {"delivered": 2}
    assert measured.reasons == {"unreadable": 3}
    assert measured.duplicates == 1


async def test_status_of_the_processor_names_the_latest_callback_of_each_route(database: Database) -> None:
    await process(database, callback([v2_event()]), callback([v2_event("m2")], received=60))
    await process(database, callback(v1_event(), api=Api.V1, route="fallback", received=120))
    state = await processor_table.state(database)
    assert state.last_callbacks == {
        "v2/primary": "2026-01-01T00:01:00.000000Z",
        "v1/fallback": "2026-01-01T00:02:00.000000Z",
    }
    assert (state.callbacks, state.last_error, state.lease_is_held) == (3, None, False)


async def test_unusable_element_is_quarantined_and_its_neighbours_are_taken(database: Database) -> None:
    await process(database, callback([v2_event("m1"), 17, v2_event("m2")], id="c"))
    assert await select(database, "SELECT callback_id, element, reason FROM quarantine") == [("c", 1, "unreadable")]
    assert await select(database, "SELECT id FROM messages ORDER BY id") == [("m1",), ("m2",)]


async def test_events_processed_one_by_one_give_the_same_rows_as_at_once(database: Database) -> None:
    events = [
        v2_event("m", "message-delivered", to="+15550002", time="2026-01-01T00:00:09Z", message=GROUP),
        v2_event("m", "message-failed", to="+15550002", errorCode=4432, message=GROUP),
        v2_event("m", "message-sending", to="+15550001", message={**GROUP, "text": "hi", "tag": "t"}),
    ]
    for received, event in enumerate(events):
        await process(database, callback([event], received=received))
    expected = [("+15550001", "sending", None, False), ("+15550002", "failed", 4432, True)]
    found = "SELECT recipient, status, delivery_code, contradicted FROM deliveries ORDER BY place"
    assert [(a, b, c, bool(d)) for a, b, c, d in await select(database, found)] == expected
    log = await select(database, "SELECT previous_status, changed FROM events ORDER BY position")
    assert [(status, bool(changed)) for status, changed in log] == [
        (None, True),
        ("delivered", True),
        ("unknown", True),
    ]
    [message] = await select(database, "SELECT text, tag, status FROM messages")
    assert message == ("hi", "t", "pending")


async def test_text_stays_when_later_events_have_none(database: Database) -> None:
    await process(database, callback(v1_event(text="hello")))
    await process(database, callback(v1_event(text="", deliveryState="delivered", deliveryCode="0")))
    assert await select(database, "SELECT text, status, delivery_code FROM messages") == [("hello", "delivered", 0)]


async def test_delivery_without_number_goes_when_a_number_is_known(database: Database) -> None:
    receipt = {"type": "message-delivered", "time": "2026-01-01T00:00:00Z", "message": {"id": "m"}}
    await process(database, callback(receipt))
    assert await select(database, "SELECT recipient, status FROM deliveries") == [(None, "delivered")]
    await process(database, callback(v2_event("m", "message-sending")))
    assert await select(database, "SELECT recipient, status FROM deliveries") == [("+15550001", "sending")]


async def test_message_with_forgotten_events_does_not_change(database: Database) -> None:
    await process(database, callback(v2_event("m")))
    await change(database, "DELETE FROM events", "UPDATE messages SET events_forgotten = true")
    await process(database, callback(v2_event("m", "message-sending")))
    assert await select(database, "SELECT status FROM messages") == [("delivered",)]
    [(changed,)] = await select(database, "SELECT changed FROM events")
    assert not changed


async def test_message_without_a_row_is_folded_from_its_events(database: Database) -> None:
    await process(database, callback(v2_event("m", message=GROUP)))
    await change(database, "DELETE FROM deliveries", "DELETE FROM messages")
    await process(database, callback(v2_event("m", "message-sending", message=GROUP)))
    found = await select(database, "SELECT recipient, status FROM message_status ORDER BY recipient")
    assert found == [("+15550001", "delivered"), ("+15550002", "unknown")]


async def test_text_that_postgresql_cannot_store_is_replaced_in_columns(database: Database) -> None:
    body = json.dumps([v2_event("m", "message-received", description="a\x00b", message={"text": "x\x00\ud800y"})])
    await process(database, callback(body.encode()))
    assert await select(database, "SELECT text FROM messages") == [("x\ufffd\ufffdy",)]
    [(raw,)] = await select(database, "SELECT body FROM callbacks")
    assert bytes(raw) == body.encode()


async def test_tag_of_any_length_is_stored(database: Database) -> None:
    rng = random.Random(7)  # what can be compressed would fit into an index entry after all
    tag = "".join(chr(rng.randrange(0x1F300, 0x1FAFF)) for _ in range(4000))
    await process(database, callback([v2_event(message={"tag": tag})]))
    assert await select(database, "SELECT tag FROM messages") == [(tag,)]


async def test_endless_id_is_quarantined_and_harms_no_neighbour(database: Database) -> None:
    endless = secrets.token_hex(20_000)
    await process(database, callback([v2_event("m1"), v2_event(endless), v2_event("m2", to=endless)]))
    assert await select(database, "SELECT element FROM quarantine ORDER BY element") == [(1,), (2,)]
    assert await select(database, "SELECT message_id FROM events") == [("m1",)]


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.9999999Z"])
async def test_extreme_event_time_harms_no_later_event(database: Database, time: str) -> None:
    await process(database, callback(v2_event("m", "message-sending", time=time)))
    await process(database, callback(v2_event("m")))
    assert await select(database, "SELECT status FROM messages") == [("delivered",)]


async def test_ten_thousand_events_in_one_array_are_taken_whole(database: Database) -> None:
    events = [
        v2_event(f"m{number % 5000}", time=f"2026-01-01T00:{number // 60 % 60:02}:{number % 60:02}Z")
        for number in range(7200)
    ]
    measured = Measured()
    await append(database, callback(events))
    processor = make_processor(database, observer=measured)
    await processor.drain()
    await processor.stop()
    assert measured.batches == 1
    assert measured.events.total() + measured.duplicates == 7200
    assert await select(database, "SELECT count(*) FROM messages") == [(5000,)]


@pytest.mark.parametrize(
    ("conflict", "status"), [(FinalConflict.FAILED_WINS, "failed"), (FinalConflict.DELIVERED_WINS, "delivered")]
)
async def test_final_conflict_decides_which_final_event_wins(
    database: Database, conflict: FinalConflict, status: str
) -> None:
    both = [v2_event("m", "message-failed", errorCode=4720), v2_event("m")]
    await process(database, callback(both), conflict=conflict)
    assert await select(database, "SELECT status FROM messages") == [(status,)]


# --- repeats ---


async def test_repeat_is_dropped_from_the_journal_and_counted(database: Database) -> None:
    await process(database, callback([v2_event()], id="first"))
    await process(database, callback([v2_event()], id="second"), callback([v2_event()], id="third"))
    assert await select(database, "SELECT id FROM callbacks") == [("first",)]
    assert await select(database, "SELECT callbacks, repeats FROM processor") == [(3, 2)]
    assert await select(database, "SELECT callback_id FROM events") == [("first",)]


async def test_repeat_with_something_new_stays_in_the_journal(database: Database) -> None:
    await process(database, callback([v2_event("m1")]))
    await process(database, callback([v2_event("m1"), v2_event("m2")]))
    assert await select(database, "SELECT count(*) FROM callbacks") == [(2,)]
    assert await select(database, "SELECT repeats FROM processor") == [(0,)]


async def test_repeat_of_a_quarantined_callback_stays_in_the_journal(database: Database) -> None:
    await process(database, callback([1]), callback([1]))
    assert await select(database, "SELECT count(*) FROM callbacks") == [(2,)]


async def test_empty_array_brings_nothing_and_is_dropped(database: Database) -> None:
    await process(database, callback([]))
    assert await select(database, "SELECT count(*) FROM callbacks") == [(0,)]
    assert await select(database, "SELECT count(*) FROM quarantine") == [(0,)]


async def test_thousand_concurrent_repeats_are_one_event(database: Database) -> None:
    journal = Journal(journal_writer(database), observer=NoGroups())
    processor = make_processor(database)
    await journal.start()
    await processor.start()
    await asyncio.gather(*(journal.append(callback([v2_event()])) for _ in range(1000)))

    async def all_are_processed() -> bool:
        return await select(database, "SELECT callbacks, repeats FROM processor") == [(1000, 999)]

    await eventually(all_are_processed)
    await processor.stop()
    await journal.stop()
    assert await select(database, "SELECT count(*) FROM events") == [(1,)]
    assert await select(database, "SELECT count(*) FROM callbacks") == [(1,)]


async def set_back(database: Database) -> None:
    """Has everything that is in the journal processed once more."""
    if database.is_sqlite:
        await change(database, "UPDATE processor SET cursor = 0")
    else:
        await change(database, "INSERT INTO pending_callbacks SELECT sequence FROM callbacks")


async def test_callbacks_processed_twice_change_nothing_and_are_no_repeats_of_themselves(database: Database) -> None:
    bodies = [
        [v2_event("m1"), v2_event("m2")],
        [v2_event("m1"), v2_event("m3")],
        [v2_event("m4"), 17],
        [v2_event("m5", message=GROUP), v2_event("m5", "message-failed", to="+15550002", errorCode=4720)],
        v1_event(),
    ]
    await process(database, *map(callback, bodies))
    once = await everything(database)
    await set_back(database)
    await drain(database)
    assert await everything(database) == once
    assert await select(database, "SELECT callbacks, repeats FROM processor") == [(10, 0)]


# --- exactly once ---


@pytest.mark.parametrize("step", ["read", "folded", "written", "advanced"])
async def test_failure_at_any_step_writes_nothing_and_the_next_try_everything(
    database: Database, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    await process(database, callback([v2_event("m0", "message-sending")]))
    before = await everything(database)
    await append(database, callback([v2_event("m0")], id="c1"), callback([v2_event("m1"), 17], id="c2"))
    journal = await select(database, "SELECT id FROM callbacks")

    def fail(name: str) -> None:
        if name == step:
            raise ConnectionError(f"lost at {name}")

    with monkeypatch.context() as patched:
        patched.setattr(failpoints, "reach", fail)
        with pytest.raises((ConnectionError, StorageUnavailable)):
            await drain(database)
    now_there = await everything(database)
    assert now_there[1:] == before[1:]
    assert await select(database, "SELECT id FROM callbacks") == journal
    assert await select(database, "SELECT callbacks FROM processor") == [(1,)]
    await drain(database)
    assert await select(database, "SELECT callbacks, repeats FROM processor") == [(3, 0)]
    events = await select(database, "SELECT callback_id FROM events ORDER BY position")
    assert events[1:] == [("c1",), ("c2",)]


async def test_failure_after_the_commit_appends_no_event_twice(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(database, callback([v2_event("m1")]), callback([v2_event("m2"), 17]))

    def fail(name: str) -> None:
        if name == "committed":
            raise ConnectionError("lost after the commit")

    with monkeypatch.context() as patched:
        patched.setattr(failpoints, "reach", fail)
        with pytest.raises((ConnectionError, StorageUnavailable)):
            await drain(database)
    once = await everything(database)
    assert len(once[2]) == 2
    await drain(database)
    assert await everything(database) == once


async def test_processing_goes_on_where_the_last_processor_ended(database: Database) -> None:
    for number in range(3):
        await process(database, callback([v2_event(f"m{number}")]))
    assert await select(database, "SELECT callbacks, epoch FROM processor") == [(3, 3)]
    assert await select(database, "SELECT count(*) FROM events") == [(3,)]


async def test_late_commit_of_a_smaller_sequence_is_not_skipped(postgres_url: str) -> None:
    columns = "id, received_at, api, route, method, query, headers, body"
    async with opened(postgres_url) as database, opened(postgres_url) as slow:
        processor = make_processor(database)
        await processor.start()
        async with slow.writing() as connection:
            body = json.dumps([v2_event("late")]).encode().hex()
            await connection.execute(
                text(
                    f"WITH added AS (INSERT INTO callbacks ({columns}) VALUES "
                    f"('late', now(), 'v2', 'primary', 'POST', '', '{{}}', '\\x{body}') RETURNING sequence) "
                    "INSERT INTO pending_callbacks SELECT sequence FROM added"
                )
            )
            await append(database, callback([v2_event("early")]))

            async def early_is_processed() -> bool:
                return await select(database, "SELECT message_id FROM events") == [("early",)]

            await eventually(early_is_processed)

        async def both_are_processed() -> bool:
            return await select(database, "SELECT message_id FROM events ORDER BY 1") == [("early",), ("late",)]

        await eventually(both_are_processed)
        await processor.stop()


async def test_callbacks_committed_before_the_lock_are_seen_whatever_the_server_s_isolation(
    postgres: str, postgres_url: str
) -> None:
    name = postgres_url.rpartition("/")[2]
    default = f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'"
    await asyncio.to_thread(on_postgres, postgres, default)
    columns = "id, received_at, api, route, method, query, headers, body"
    row = "'late', now(), 'v2', 'primary', 'POST', '', '{}', ''"
    async with opened(postgres_url) as database, database.appending() as transaction:
        await asyncio.to_thread(on_postgres, postgres_url, f"INSERT INTO callbacks ({columns}) VALUES ({row})")
        assert await transaction.select([CALLBACKS.c.id], "id {among}", ["late"]) == [("late",)]


# --- the lease ---


async def acquire(database: Database, holder: str, *, seconds: float = 60, take_over: bool = False) -> ProcessorLease:
    lease = await processor_table.acquire(database, holder=holder, seconds=seconds, take_over=take_over)
    assert lease is not None
    return lease


async def test_stale_holder_of_the_lease_writes_nothing(database: Database) -> None:
    processor = make_processor(database)
    stale = await acquire(database, "stale")
    await acquire(database, "successor", take_over=True)
    await append(database, callback([v2_event()]), callback([1]))
    with pytest.raises(ProcessorLeaseLost):
        await processor.process_next(stale)
    with pytest.raises(ProcessorLeaseLost):
        await processor_table.record_failure(database, stale, now(), "stale")
    await processor.stop()
    for table in ("events", "messages", "quarantine"):
        assert await select(database, f"SELECT count(*) FROM {table}") == [(0,)]
    assert await select(database, "SELECT callbacks, last_error FROM processor") == [(0, None)]


async def test_processor_that_lost_its_lease_stands_by_and_works_again(postgres_url: str) -> None:
    async with opened(postgres_url) as database:
        processor = make_processor(database, lease_seconds=0.4)
        await processor.start()
        await eventually(lambda: _holds(database, processor))
        other = await acquire(database, "other", take_over=True)

        async def stands_by() -> bool:
            return processor.health.status is ProcessorStatus.STANDBY

        await eventually(stands_by)
        await append(database, callback([v2_event()]))
        await processor_table.release(database, other)
        await eventually(lambda: _is_processed(database, 1))
        await processor.stop()


async def _holds(database: Database, processor: Processor) -> bool:
    return processor.health.status is ProcessorStatus.WORKING and (await processor_table.state(database)).lease_is_held


async def _is_processed(database: Database, callbacks: int) -> bool:
    return await select(database, "SELECT callbacks FROM processor") == [(callbacks,)]


class Frozen:
    """A processor whose process freezes in the transaction of its `batch`-th batch, holding all its locks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
        self.is_frozen, self.thawed = asyncio.Event(), asyncio.Event()
        self._epoch: int | None = None
        self._left = batch
        advance, renew = processor_table.advance, processor_table.renew

        async def frozen_advance(
            database: Database, transaction: Transaction, lease: ProcessorLease, progress: Any
        ) -> None:
            await advance(database, transaction, lease, progress)
            self._left -= 1
            if self._left == 0:
                self._epoch = lease.epoch
                self.is_frozen.set()
                await self.thawed.wait()

        async def frozen_renew(database: Database, lease: ProcessorLease, *, seconds: float) -> None:
            if lease.epoch == self._epoch:
                await self.thawed.wait()
            await renew(database, lease, seconds=seconds)

        monkeypatch.setattr(processor_table, "advance", frozen_advance)
        monkeypatch.setattr(processor_table, "renew", frozen_renew)


@pytest.mark.parametrize("batch", [1, 2], ids=["first batch", "later batch"])
async def test_lease_of_a_frozen_processor_is_taken_over_and_its_session_ended(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    frozen = Frozen(monkeypatch, batch)
    async with opened(postgres_url) as one, opened(postgres_url) as other:
        first, second = make_processor(one, lease_seconds=1), make_processor(other, lease_seconds=1)
        await first.start()
        if batch > 1:
            await append(other, callback([v2_event("before")]))
            await eventually(lambda: _is_processed(other, 1))
        await append(other, callback([v2_event("m")]))
        async with asyncio.timeout(60):
            await frozen.is_frozen.wait()
        froze_at = time.monotonic()
        await second.start()
        await eventually(lambda: _is_processed(other, batch))
        seconds = time.monotonic() - froze_at
        frozen.thawed.set()
        await append(other, callback([v2_event("after")]))
        await eventually(lambda: _is_processed(other, batch + 1))
        await asyncio.gather(first.stop(), second.stop())
        assert await select(other, "SELECT count(*) FROM events") == [(batch + 1,)]
    assert seconds < 10


# --- tags ---

KEYS = {"k1": "secret"}
BOUND = {"sender": "+15559999", "recipients": ["+15550001"]}
REQUIRE = TagChecker(keys=KEYS, policy=TagPolicy.REQUIRE)


@pytest.mark.parametrize(
    ("tag", "verdict", "reason"),
    [
        (sign("order 7", "secret", kid="k1", **BOUND), "valid", None),
        (sign("order 7", "secret", kid="k1"), "valid", None),
        (sign("order 7", "secret", kid="k1", sender="+1", recipients=["+2"]), "forged", "tag-forged"),
        (sign("order 7", "other", kid="k1"), "forged", "tag-forged"),
        ("order 7", "unsigned", "tag-unsigned"),
        (None, "missing", "tag-missing"),
    ],
)
async def test_tag_is_checked_and_rejected_only_where_the_policy_requires_it(
    sqlite_url: str, tag: str | None, verdict: str, reason: str | None
) -> None:
    async with opened(sqlite_url) as database:
        tagged = v2_event("m", message={"tag": tag} if tag else {})
        await process(database, callback([tagged]), checker=REQUIRE)
        assert await select(database, "SELECT reason FROM quarantine") == ([(reason,)] if reason else [])
        await process(database, callback([tagged]), checker=TagChecker(keys=KEYS))
        expected = [("order 7" if tag else None, verdict)]
        assert await select(database, "SELECT tag, tag_verdict FROM messages") == expected


async def test_rejected_callback_is_reprocessed_with_todays_keys(database: Database) -> None:
    rejected = callback([v2_event("m", message={"tag": sign("order 7", "secret", kid="k2")}), 17])
    await process(database, rejected, checker=REQUIRE)
    assert await select(database, "SELECT element FROM quarantine ORDER BY element") == [(0,), (1,)]
    checker = TagChecker(keys={**KEYS, "k2": "secret"}, policy=TagPolicy.REQUIRE)
    again = Reprocessing(database=database, checker=checker, conflict=FinalConflict.FAILED_WINS, clock=now)
    done = await again.ids([rejected.id])
    assert (done.callbacks, done.events, done.quarantined) == (1, 1, 1)
    assert await select(database, "SELECT element FROM quarantine") == [(1,)]
    [(reprocessed_at,)] = await select(database, "SELECT reprocessed_at FROM quarantine")
    assert reprocessed_at is not None
    assert await select(database, "SELECT tag, tag_verdict FROM messages") == [("order 7", "valid")]


_TYPES = ("message-sending", "message-delivered", "message-failed", "message-read", "message-received")
_TAGS = st.sampled_from(
    [
        None,
        "",
        "order 7",
        "x" * 2000,
        sign("order 7", "other", kid="k1"),
        sign("order 7", "secret", kid="k9"),
        sign("order 7", "secret", kid="k1", sender="+1", recipients=["+15550009"]),
        sign("order 7", "secret", kid="k1", sender="+15559999", recipients=["+15550001", "+15550002"])[:-1],
        # somebody saw a tag that is bound to another recipient
        sign("order 7", "secret", kid="k1", sender="+15559999", recipients=["+15550003"]),
    ]
)


@st.composite
def events_without_valid_tag(draw: st.DrawFn) -> Any:
    """An event about the message `m`, in- or outbound, of either version, none of which has a valid tag."""
    tag = draw(_TAGS)
    tagged = {} if tag is None else {"tag": tag}
    number = draw(st.sampled_from(["+15550001", "+15550002", "+15550666", "15550001"]))
    direction = draw(st.sampled_from(["in", "out", "", "OUT", None]))
    if draw(st.booleans()):
        state = draw(st.sampled_from(["sent", "received", "error", "queued"]))
        receipt = draw(st.sampled_from([{}, {"deliveryState": "delivered"}, {"deliveryState": "not-delivered"}]))
        return v1_event("m", state=state, direction=direction, to=number, text="FORGED", **receipt, **tagged)
    message = {"direction": direction, "to": [number], "from": "+1666", "text": "FORGED", "media": ["http://evil/"]}
    kind = draw(st.sampled_from(_TYPES))
    second = draw(st.integers(0, 59))
    event = v2_event("m", kind, to=number, time=f"2020-01-01T00:00:{second:02}Z", message={**message, **tagged})
    if direction is None:
        del event["message"]["direction"]
    return event


async def outbound(database: Database) -> list[Any]:
    return [
        await select(database, f"SELECT * FROM {table} WHERE direction = 'out' ORDER BY 1, 2, 3")
        for table in ("messages", "deliveries", "events")
    ]


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(events_without_valid_tag(), min_size=1, max_size=4), min_size=1, max_size=4))
async def test_without_a_valid_tag_nothing_posted_changes_an_outbound_message(
    sqlite_url: str, bodies: list[list[Any]]
) -> None:
    async with opened(sqlite_url) as database:
        valid = v2_event("m", "message-sending", message={"tag": sign("order 7", "secret", kid="k1", **BOUND)})
        await process(database, callback([valid]), checker=REQUIRE)
        before = await outbound(database)
        assert len(before[0]) == 1
        await process(database, *map(callback, bodies), checker=REQUIRE)
        assert await outbound(database) == before


async def test_inbound_event_with_the_id_of_an_outbound_message_is_another_message(database: Database) -> None:
    inbound = v2_event("m", "message-received", message={"direction": "in", "text": "hi"})
    for first, second in (
        (inbound, v2_event("m")),
        (v2_event("n"), {**inbound, "message": {**inbound["message"], "id": "n"}}),
    ):
        await process(database, callback([first]))
        await process(database, callback([second]))
    found = await select(database, "SELECT id, direction, status, text FROM messages ORDER BY id, direction")
    assert [tuple(row) for row in found] == [
        ("m", "in", "received", "hi"),
        ("m", "out", "delivered", None),
        ("n", "in", "received", "hi"),
        ("n", "out", "delivered", None),
    ]


# --- six writers ---

_WRITER = """
import asyncio, json, random, sys, time
import asyncpg
from receiver.storage.database import Database
from receiver.storage.journal import journal_writer
from tests.factories import callback, v2_event

url, name, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
SLOW = '''WITH added AS (INSERT INTO callbacks (id, received_at, api, route, method, query, headers, body)
VALUES ($1, now(), 'v2', 'primary', 'POST', '', '{}', $2) RETURNING sequence)
INSERT INTO pending_callbacks SELECT sequence FROM added'''
numbers = iter(range(10**9))

def new():
    id_ = f"{name}-{next(numbers)}"
    return callback([v2_event(id_)], id=id_)

async def slowly(until, committed):
    connection = await asyncpg.connect(url)
    while time.monotonic() < until:
        async with connection.transaction():
            one = new()
            await connection.execute(SLOW, one.id, one.body)
            await asyncio.sleep(random.uniform(0.01, 1.0))  # others commit larger sequences meanwhile
        committed.append(one.id)
    await connection.close()

async def main():
    until, committed = time.monotonic() + seconds, []
    database = Database(url)
    writer = journal_writer(database)
    slow = [asyncio.create_task(slowly(until, committed)) for _ in range(2)]
    while time.monotonic() < until:
        group = [new() for _ in range(random.randint(1, 20))]
        await writer.append(group)
        committed += [one.id for one in group]
        await asyncio.sleep(random.uniform(0, 0.02))
    await asyncio.gather(*slow)
    await writer.close()
    await database.close()
    print(json.dumps(committed))

asyncio.run(main())
"""


@pytest.mark.faults
async def test_processor_skips_no_callback_of_six_writing_processes(postgres_url: str) -> None:
    async with opened(postgres_url) as database:
        processor = make_processor(database)
        await processor.start()
        writers = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", _WRITER, postgres_url, f"w{number}", "8", stdout=subprocess.PIPE
            )
            for number in range(6)
        ]
        outputs = [(await writer.communicate())[0] for writer in writers]
        committed = [id_ for output in outputs for id_ in json.loads(output)]
        assert len(committed) == len(set(committed)) > 1000

        async def nothing_is_pending() -> bool:
            return await select(database, "SELECT count(*) FROM pending_callbacks") == [(0,)]

        await eventually(nothing_is_pending, 120)
        await processor.stop()
        found = Counter(id_ for (id_,) in await select(database, "SELECT message_id FROM events"))
        assert found == Counter(committed)
        assert await select(database, "SELECT callbacks, repeats FROM processor") == [(len(committed), 0)]


def test_callback_type_is_what_the_journal_stores() -> None:
    assert {field for field in Callback.__struct_fields__ if field not in CALLBACKS.c} == set()
