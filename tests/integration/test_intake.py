"""Intake on both databases: what is committed, what only counts, and what happens when it cannot be committed."""

import asyncio
import json
import random
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text

from receiver import intake as intake_module
from receiver.domain.delivery import FinalConflict
from receiver.errors import IntakeFull, StorageUnavailable
from receiver.intake import Intake, Judge, Receipt
from receiver.metrics import Metrics
from receiver.storage.appending import Transaction
from receiver.storage.callbacks import CALLBACKS
from receiver.storage.database import Database
from receiver.tags import TagPolicy, sign
from tests.events import at
from tests.posts import callback, v1_event, v2_event
from tests.servers import on_postgres

pytestmark = pytest.mark.anyio


def make_intake(database: Database, **more: Any) -> Intake:
    return Intake(database, observer=Metrics(), clock=lambda: at(0), **more)


@pytest.fixture
async def intake(database: Database) -> AsyncIterator[Intake]:
    intake = make_intake(database)
    await intake.start()
    yield intake
    await intake.stop()


async def select(database: Database, statement: str, **values: Any) -> list[Any]:
    async with database.reading() as connection:
        return list(await connection.execute(text(statement), values))


async def test_one_callback_becomes_a_raw_row_an_event_a_message_and_a_delivery(
    database: Database, intake: Intake
) -> None:
    assert await intake.accept(callback([v2_event()])) == Receipt(events=1)
    assert await select(database, "SELECT outcome, events, duplicates FROM callbacks") == [("accepted", 1, 0)]
    assert await select(
        database,
        "SELECT status, previous_status, delivery_state FROM events JOIN message_status USING (message_id, status)",
    ) == [("delivered", None, "delivered")]
    assert await select(database, "SELECT recipient, status, message_status, code_name FROM message_status") == [
        ("+15550001", "delivered", "delivered", None)
    ]


async def test_a_copy_only_counts(database: Database, intake: Intake) -> None:
    await intake.accept(callback([v2_event()]))
    assert await intake.accept(callback([v2_event()])) == Receipt(duplicates=1)
    assert await select(database, "SELECT outcome, events, duplicates FROM callbacks") == [("accepted", 1, 1)]
    assert await select(database, "SELECT count(*) FROM events") == [(1,)]


async def test_a_thousand_copies_at_once_are_one_event(database: Database, intake: Intake) -> None:
    receipts = await asyncio.gather(*(intake.accept(callback([v2_event()])) for _ in range(1000)))
    assert sum(receipt.events for receipt in receipts) == 1
    assert await select(database, "SELECT count(*) FROM events") == [(1,)]
    assert await select(database, "SELECT duplicates FROM callbacks") == [(999,)]


async def test_a_copy_that_brings_something_new_is_kept(database: Database, intake: Intake) -> None:
    await intake.accept(callback([v2_event("m1")]))
    assert await intake.accept(callback([v2_event("m1"), v2_event("m2")])) == Receipt(events=1, duplicates=1)
    assert await select(database, "SELECT count(*) FROM callbacks") == [(2,)]


async def test_one_bad_element_is_quarantined_and_its_neighbours_are_taken(database: Database, intake: Intake) -> None:
    receipt = await intake.accept(callback([v2_event("m1"), 17, v2_event("m2")]))
    assert (receipt.events, [element.index for element in receipt.unread]) == (2, [1])
    [row] = await select(database, "SELECT outcome, reason, events FROM callbacks")
    assert row == ("quarantined", "unreadable", 2)


async def test_an_empty_array_is_good_and_leaves_nothing(database: Database, intake: Intake) -> None:
    assert await intake.accept(callback([])) == Receipt()
    assert await select(database, "SELECT count(*) FROM callbacks") == [(0,)]


async def test_events_that_come_one_by_one_give_the_same_rows_as_at_once(
    database_url: str, database: Database, intake: Intake
) -> None:
    group = {"to": ["+15550001", "+15550002"]}
    story = [
        v2_event("m", "message-delivered", to="+15550002", time="2026-01-01T00:00:09Z", message=group),
        v2_event("m", "message-failed", to="+15550002", errorCode=4432, message=group),
        v2_event("m", "message-sending", to="+15550001", message={**group, "text": "hi", "tag": "t"}),
    ]
    for received, event in enumerate(story):
        await intake.accept(callback([event], received=received))
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


async def test_text_stays_when_later_events_have_none(database: Database, intake: Intake) -> None:
    await intake.accept(callback(v1_event(text="hello")))
    await intake.accept(callback(v1_event(text="", deliveryState="delivered", deliveryCode="0")))
    assert await select(database, "SELECT text, status, delivery_code FROM messages") == [("hello", "delivered", 0)]


async def test_a_row_without_number_goes_when_a_number_is_known(database: Database, intake: Intake) -> None:
    receipt = {"type": "message-delivered", "time": "2026-01-01T00:00:00Z", "message": {"id": "m"}}
    await intake.accept(callback(receipt))
    assert await select(database, "SELECT recipient, status FROM deliveries") == [(None, "delivered")]
    await intake.accept(callback(v2_event("m", "message-sending")))
    assert await select(database, "SELECT recipient, status FROM deliveries") == [("+15550001", "sending")]


async def test_a_message_whose_events_are_forgotten_moves_no_more(database: Database, intake: Intake) -> None:
    await intake.accept(callback(v2_event("m")))
    async with database.writing() as connection:
        await connection.execute(text("DELETE FROM events"))
        await connection.execute(text("UPDATE messages SET events_forgotten = true"))
    assert await intake.accept(callback(v2_event("m", "message-sending"))) == Receipt(events=1)
    assert await select(database, "SELECT status FROM messages") == [("delivered",)]
    assert await select(database, "SELECT count(*) FROM events") == [(1,)]


async def test_a_message_whose_row_is_gone_is_made_anew_from_its_events(database: Database, intake: Intake) -> None:
    group = {"to": ["+15550001", "+15550002"]}
    await intake.accept(callback(v2_event("m", message=group)))
    async with database.writing() as connection:
        for table in ("deliveries", "messages"):
            await connection.execute(text(f"DELETE FROM {table}"))
    await intake.accept(callback(v2_event("m", "message-sending", message=group)))
    found = await select(database, "SELECT recipient, status FROM message_status ORDER BY recipient")
    assert found == [("+15550001", "delivered"), ("+15550002", "unknown")]


async def test_text_that_postgresql_cannot_hold_is_kept_raw_and_replaced_in_columns(
    database: Database, intake: Intake
) -> None:
    body = json.dumps([v2_event("m", "message-received", description="a\x00b", message={"text": "x\x00\ud800y"})])
    await intake.accept(callback(body.encode()))
    assert await select(database, "SELECT text FROM messages") == [("x\ufffd\ufffdy",)]
    [(raw,)] = await select(database, "SELECT body FROM callbacks")
    assert bytes(raw) == body.encode()


async def test_what_the_database_refuses_is_kept_raw_and_harms_no_neighbour(postgres_url: str) -> None:
    await asyncio.to_thread(on_postgres, postgres_url, "ALTER TABLE messages ADD CHECK (id <> 'poison')")
    database = Database(postgres_url)
    intake = make_intake(database)
    await intake.start()
    bodies = [[v2_event("m1")], [v2_event("poison"), 17, v2_event("m3")], [v2_event("m2")]]
    receipts = await asyncio.gather(*(intake.accept(callback(body)) for body in bodies))
    assert [receipt.events for receipt in receipts] == [1, 0, 1]
    assert [element.index for element in receipts[1].unread] == [0, 1, 2]
    assert await select(database, "SELECT outcome, reason FROM callbacks ORDER BY id") == [
        ("accepted", None),
        ("quarantined", "unreadable"),
        ("accepted", None),
    ]
    await intake.stop()
    await database.close()


async def test_a_tag_of_any_length_is_kept(database: Database, intake: Intake) -> None:
    rng = random.Random(7)  # what can be compressed would fit into an index entry after all
    tag = "".join(chr(rng.randrange(0x1F300, 0x1FAFF)) for _ in range(4000))
    assert await intake.accept(callback([v2_event(message={"tag": tag})])) == Receipt(events=1)
    assert await select(database, "SELECT tag FROM messages") == [(tag,)]


async def test_ten_thousand_events_in_one_array_are_one_commit(
    database: Database, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a second's work: on a machine that is busy with other things it may be more than the answer may take
    monkeypatch.setattr(intake_module, "ANSWER_SECONDS", 60)
    events = [
        v2_event(f"m{number % 5000}", time=f"2026-01-01T00:{number // 60 % 60:02}:{number % 60:02}Z")
        for number in range(10_000)
    ]
    receipt = await intake.accept(callback(events))
    assert receipt.events + receipt.duplicates == 10_000
    assert await select(database, "SELECT count(*) FROM callbacks") == [(1,)]
    assert await select(database, "SELECT count(*) FROM messages") == [(5000,)]


async def test_while_another_holds_the_lock_the_answer_comes_in_time_and_is_no(
    database_url: str, database: Database, intake: Intake
) -> None:
    holder = Database(database_url)
    async with holder.writing() as connection:
        await holder.lock_intake(connection)
        # Bandwidth waits no longer
        async with asyncio.timeout(10):
            with pytest.raises(StorageUnavailable):
                await intake.accept(callback([v2_event()]))
    await holder.close()
    assert await intake.accept(callback([v2_event("m2")])) == Receipt(events=1)


async def test_a_connection_lost_while_idle_costs_no_callback(postgres_url: str) -> None:
    database, other = Database(postgres_url), Database(postgres_url)
    intake = make_intake(database)
    await intake.start()
    assert await intake.accept(callback([v2_event("m1")])) == Receipt(events=1)
    everyone_else = "datname = current_database() AND pid <> pg_backend_pid()"
    await select(other, f"SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity WHERE {everyone_else}")
    assert await intake.accept(callback([v2_event("m2")])) == Receipt(events=1)
    await intake.stop()
    for one in (database, other):
        await one.close()


async def test_readers_do_not_use_up_what_intake_needs(postgres_url: str) -> None:
    database = Database(postgres_url, pool_size=1)
    intake = make_intake(database)
    await intake.start()
    async with database.reading() as connection:
        await connection.execute(text("SELECT 1"))
        assert await intake.accept(callback([v2_event()])) == Receipt(events=1)
    await intake.stop()
    await database.close()


async def test_a_fault_of_the_metrics_ends_neither_the_intake_nor_the_wait(sqlite_url: str) -> None:
    class Broken(Metrics):
        def taken(self, *_: Any) -> None:
            raise RuntimeError("no metrics today")

    database = Database(sqlite_url)
    intake = Intake(database, observer=Broken(), clock=lambda: at(0))
    await intake.start()
    for message_id in ("m1", "m2"):
        with pytest.raises(StorageUnavailable):
            await intake.accept(callback([v2_event(message_id)]))
    assert await select(database, "SELECT count(*) FROM messages") == [(2,)]
    await intake.stop()
    await database.close()


async def test_stop_commits_what_was_accepted_and_refuses_the_rest(database: Database) -> None:
    intake = make_intake(database)
    await intake.start()
    accepted = [asyncio.create_task(intake.accept(callback([v2_event(f"m{n}")]))) for n in range(50)]
    await asyncio.sleep(0)
    await intake.stop()
    assert [(await one).events for one in accepted] == [1] * 50
    with pytest.raises(IntakeFull):
        await intake.accept(callback([v2_event("late")]))
    assert await select(database, "SELECT count(*) FROM messages") == [(50,)]


KEYS = {"k1": "secret"}
BOUND = {"sender": "+15559999", "recipients": ["+15550001"]}


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
async def test_a_tag_is_judged_and_refused_only_where_the_policy_requires_it(
    sqlite_url: str, tag: str | None, verdict: str, reason: str | None
) -> None:
    database = Database(sqlite_url)
    record, require = (
        make_intake(database, judge=Judge(keys=KEYS, policy=policy)) for policy in (TagPolicy.RECORD, TagPolicy.REQUIRE)
    )
    for intake in (require, record):
        await intake.start()
    told = v2_event("m", message={"tag": tag} if tag else {})
    refused = await require.accept(callback([told]))
    assert [element.reason for element in refused.unread] == ([reason] if reason else [])
    await record.accept(callback([told]))
    assert await select(database, "SELECT tag, tag_verdict FROM messages") == [("order 7" if tag else None, verdict)]
    for intake in (require, record):
        await intake.stop()
    await database.close()


async def test_a_refused_callback_is_reread_with_todays_keys(database: Database) -> None:
    raw = callback([v2_event("m", message={"tag": sign("order 7", "secret", kid="k2")})])
    before = make_intake(database, judge=Judge(keys=KEYS, policy=TagPolicy.REQUIRE))
    after = make_intake(database, judge=Judge(keys={**KEYS, "k2": "secret"}, policy=TagPolicy.REQUIRE))
    for intake, again, outcome in ((before, False, "quarantined"), (after, True, "accepted")):
        await intake.start()
        await intake.accept(raw, reread=again)
        assert await select(database, "SELECT outcome FROM callbacks") == [(outcome,)]
        await intake.stop()
    assert await select(database, "SELECT tag, tag_verdict FROM messages") == [("order 7", "valid")]


@pytest.mark.parametrize(
    ("conflict", "status"), [(FinalConflict.FAILED_WINS, "failed"), (FinalConflict.DELIVERED_WINS, "delivered")]
)
async def test_the_setting_decides_which_final_event_wins(
    database: Database, conflict: FinalConflict, status: str
) -> None:
    intake = make_intake(database, conflict=conflict)
    await intake.start()
    await intake.accept(callback([v2_event("m", "message-failed", errorCode=4720), v2_event("m")]))
    assert await select(database, "SELECT status FROM messages") == [(status,)]
    await intake.stop()


def served_by(url: str) -> str:
    """The statement that ends all connections of `receiver` to the database of a URL, and waits until they have."""
    name = url.rpartition("/")[2]
    return (
        "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity "
        f"WHERE datname = '{name}' AND application_name = 'receiver'"
    )


async def test_a_lost_connection_is_the_database_s_fault_whatever_it_looks_like(
    postgres: str, postgres_url: str
) -> None:
    database = Database(postgres_url)

    async def lose_it() -> None:
        async with database.appending():
            await asyncio.to_thread(on_postgres, postgres, served_by(postgres_url))
            raise RuntimeError("got result for unknown protocol state")

    with pytest.raises(StorageUnavailable):
        await lose_it()
    async with database.appending():
        pass
    await database.close()


async def test_while_connections_are_cut_callbacks_are_stored_or_refused_and_never_quarantined(
    postgres: str, postgres_url: str
) -> None:
    database = Database(postgres_url)
    intake = make_intake(database)
    await intake.start()
    stored: list[str] = []
    cutting = asyncio.create_task(asyncio.to_thread(on_postgres, postgres, *[served_by(postgres_url)] * 30))

    async def send(sender: int) -> None:
        number = 0
        while not cutting.done():
            number += 1
            try:
                await intake.accept(callback([v2_event(f"m{sender}-{number}")]))
                stored.append(f"m{sender}-{number}")
            except StorageUnavailable:
                await asyncio.sleep(0.001)

    await asyncio.gather(*(send(sender) for sender in range(16)))
    assert await intake.accept(callback([v2_event("after")])) == Receipt(events=1)
    logged = {id_ for (id_,) in await select(database, "SELECT message_id FROM events")}
    assert set(stored) <= logged
    assert await select(database, "SELECT DISTINCT outcome FROM callbacks") == [("accepted",)]
    await intake.stop()
    await database.close()


async def test_what_was_committed_before_the_lock_came_is_seen_whatever_the_server_s_isolation(
    postgres: str, postgres_url: str
) -> None:
    name = postgres_url.rpartition("/")[2]
    default = f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'"
    await asyncio.to_thread(on_postgres, postgres, default)
    columns = "id, received_at, api, route, method, query, headers, body, outcome, events"
    row = "'late', now(), 'v2', 'primary', 'POST', '', '{}', '', 'accepted', 1"
    database = Database(postgres_url)
    async with database.appending() as transaction:
        await asyncio.to_thread(on_postgres, postgres_url, f"INSERT INTO callbacks ({columns}) VALUES ({row})")
        assert await transaction.select([CALLBACKS.c.id], "id {among}", ["late"]) == [("late",)]
    await database.close()


class Faltering(Database):
    """A database that refuses the first batch for its data and then hangs."""

    begun = False

    @asynccontextmanager
    async def appending(self) -> AsyncIterator[Transaction]:
        if self.begun:
            await asyncio.Event().wait()
        self.begun = True
        raise ValueError("one of them cannot be stored")
        yield


async def test_who_waits_behind_a_callback_taken_singly_is_answered_in_time_too(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiver.intake.ANSWER_SECONDS", 0.2)
    database = Faltering(sqlite_url)
    intake = make_intake(database)
    await intake.start()
    async with asyncio.timeout(45):
        waiting = (intake.accept(callback([v2_event(f"m{n}")])) for n in range(3))
        answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer) for answer in answers] == [StorageUnavailable] * 3
    for task in intake._tasks:
        task.cancel()
    await database.close()


async def test_a_callback_that_is_still_being_read_at_the_stop_is_refused_not_forgotten(database: Database) -> None:
    intake = make_intake(database)
    await intake.start()
    long = asyncio.create_task(intake.accept(callback([v2_event(f"m{n}") for n in range(3000)])))
    await asyncio.sleep(0)
    await intake.stop()
    async with asyncio.timeout(45):
        with pytest.raises(IntakeFull):
            await long


async def test_a_late_event_of_a_message_with_forgotten_events_is_no_change(database: Database, intake: Intake) -> None:
    await intake.accept(callback(v2_event("m")))
    async with database.writing() as connection:
        await connection.execute(text("DELETE FROM events"))
        await connection.execute(text("UPDATE messages SET events_forgotten = true"))
    await intake.accept(callback(v2_event("m", "message-sending")))
    [(changed,)] = await select(database, "SELECT changed FROM events")
    assert not changed


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.9999999Z"])
async def test_a_time_that_is_none_harms_no_later_event(database: Database, intake: Intake, time: str) -> None:
    await intake.accept(callback(v2_event("m", "message-sending", time=time)))
    assert await intake.accept(callback(v2_event("m"))) == Receipt(events=1)
    assert await select(database, "SELECT status FROM messages") == [("delivered",)]


async def test_an_element_with_an_endless_id_harms_no_neighbour_in_its_array(
    database: Database, intake: Intake
) -> None:
    endless = secrets.token_hex(20_000)
    receipt = await intake.accept(callback([v2_event("m1"), v2_event(endless), v2_event("m2", to=endless)]))
    assert (receipt.events, [element.index for element in receipt.unread]) == (1, [1, 2])
