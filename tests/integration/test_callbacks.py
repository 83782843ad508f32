"""The journal, listed and read back, on both databases: every filter finds, and finds by an index."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text as sql

from receiver.domain.delivery import EMPTY_DELIVERY, Change, merge
from receiver.domain.publication import Appended
from receiver.intake.endpoint import new_callback_id
from receiver.intake.fold import TagChecker
from receiver.models.callbacks import ElementProblemRead
from receiver.models.queries import CallbackQuery, SortOrder
from receiver.providers import states
from receiver.storage import callbacks, event_log, journal
from receiver.storage.database import Database
from receiver.tags import TagPolicy
from tests.databases import Explained
from tests.factories import callback as posted
from tests.factories import make_event, v1_event, v2_event
from tests.processing import process
from tests.rows import NOON, callback, insert_callbacks, problem

pytestmark = pytest.mark.anyio


async def append_events(database: Database, *brought: tuple[str, str]) -> None:
    """Appends an event for each pair of a message's id and a callback's."""
    events = [make_event(message_id=message_id, callback_id=callback_id) for message_id, callback_id in brought]
    entries = [Appended.of(event, Change(None, merge(EMPTY_DELIVERY, event), True), states) for event in events]
    async with database.appending() as transaction:
        await transaction.run([event_log.append(entries, transaction.spelling)])


@pytest.fixture
async def stocked(database: Database) -> Database:
    """Callbacks of every outcome, of which `m1` is a message that 01 and 03 speak of."""
    await insert_callbacks(
        database,
        callback("01"),
        callback("02", problems=[problem("tag-forged"), problem("unreadable", 2)]),
        callback(
            "03",
            problems=[problem("tag-missing", message_id="m1", reprocessed_at=NOON)],
            body=b"\xff\x00{",
            query="a=%2B1",
            headers={"user-agent": "BandwidthAPI/v2"},
        ),
        callback("04"),
        callback("05", is_pending=True),
        callback("06", is_pending=True, problems=[problem("unreadable")]),
    )
    await append_events(database, ("m1", "01"), ("m2", "04"))
    return database


FILTERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, ["06", "05", "04", "03", "02", "01"]),
    "pending": ({"outcome": "pending"}, ["06", "05"]),
    "accepted": ({"outcome": "accepted"}, ["04", "01"]),
    "quarantined": ({"outcome": "quarantined"}, ["03", "02"]),
    "reason of the first element": ({"reason": "tag-forged"}, ["02"]),
    "reason of another element": ({"reason": "unreadable"}, ["02"]),
    "reason and outcome": ({"reason": "tag-forged", "outcome": "quarantined"}, ["02"]),
    "no accepted callback has a reason": ({"outcome": "accepted", "reason": "unreadable"}, []),
    "no pending callback has a reason": ({"outcome": "pending", "reason": "unreadable"}, []),
    "message": ({"message_id": "m1"}, ["03", "01"]),
    "message, accepted": ({"message_id": "m1", "outcome": "accepted"}, ["01"]),
    "message, quarantined": ({"message_id": "m1", "outcome": "quarantined"}, ["03"]),
    "message, reason": ({"message_id": "m1", "reason": "tag-missing"}, ["03"]),
    "message, another reason": ({"message_id": "m1", "reason": "tag-forged"}, []),
    "message, pending": ({"message_id": "m1", "outcome": "pending"}, []),
    "message, accepted with a reason": ({"message_id": "m1", "outcome": "accepted", "reason": "unreadable"}, []),
    "no such message": ({"message_id": "m3"}, []),
}


@pytest.mark.parametrize(("fields", "expected"), FILTERS.values(), ids=FILTERS)
async def test_a_filter_finds_what_it_says(stocked: Database, fields: dict[str, Any], expected: list[str]) -> None:
    async def ids(query: CallbackQuery) -> list[str]:
        return [one.id for one in (await callbacks.find(stocked, query)).items]

    assert await ids(CallbackQuery(**fields)) == expected
    assert await ids(CallbackQuery(**fields, order=SortOrder.ASC)) == expected[::-1]


@pytest.mark.parametrize(("fields", "expected"), FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("order", SortOrder)
async def test_pages_by_cursor_show_every_callback_once(
    stocked: Database, fields: dict[str, Any], expected: list[str], order: SortOrder
) -> None:
    query = CallbackQuery(**fields, order=order, size=1)
    seen: list[str] = []
    for _ in range(7):
        page = await callbacks.find(stocked, query)
        seen += [one.id for one in page.items]
        if not page.more:
            break
        query = query.model_copy(update={"after": page.items[-1].id})
    assert seen == (expected if order is SortOrder.DESC else expected[::-1])


async def test_a_page_by_number_begins_after_the_pages_before(stocked: Database) -> None:
    page = await callbacks.find(stocked, CallbackQuery(size=2, page=1))
    assert ([one.id for one in page.items], page.more) == (["04", "03"], True)


async def test_outcome_and_reason_are_derived_from_processor_and_quarantine(stocked: Database) -> None:
    views = (await callbacks.find(stocked, CallbackQuery())).items
    assert [(one.id, one.outcome, one.reason, one.reprocessed_at) for one in views] == [
        ("06", "pending", None, None),
        ("05", "pending", None, None),
        ("04", "accepted", None, None),
        ("03", "quarantined", "tag-missing", NOON),
        ("02", "quarantined", "tag-forged", None),
        ("01", "accepted", None, None),
    ]


async def test_one_callback_comes_whole(stocked: Database) -> None:
    found = await callbacks.with_id(stocked, "03")
    assert found is not None
    assert (found.raw, found.query, found.headers) == (b"\xff\x00{", "a=%2B1", {"user-agent": "BandwidthAPI/v2"})
    assert found.problems == [ElementProblemRead(element=0, reason="tag-missing", detail="", message_id="m1")]
    assert await callbacks.with_id(stocked, "09") is None


async def test_callbacks_by_id_come_in_the_order_of_the_ids(stocked: Database) -> None:
    assert [one.id for one in await callbacks.by_ids(stocked, ["04", "09", "01"])] == ["04", "01"]
    assert await callbacks.by_ids(stocked, []) == []


async def test_a_callback_that_the_journal_no_longer_has_is_left_out(stocked: Database) -> None:
    await journal.remove(stocked, ["01", "03"])
    for query in (CallbackQuery(message_id="m1"), CallbackQuery(outcome="quarantined", size=1)):
        assert [one.id for one in (await callbacks.find(stocked, query)).items] == (["02"] if query.outcome else [])


@pytest.mark.parametrize(("fields", "expected"), FILTERS.values(), ids=FILTERS)
async def test_pages_of_whole_callbacks_come_oldest_first(
    stocked: Database, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], expected: list[str]
) -> None:
    monkeypatch.setattr(callbacks, "_PAGE_BYTES", 5)
    pages = [[one.id for one in page] async for page in callbacks.pages(stocked, CallbackQuery(**fields))]
    assert [id_ for page in pages for id_ in page] == expected[::-1]
    by_id = [[one.id for one in page] async for page in callbacks.pages_with_ids(stocked, [*expected, "09"])]
    assert [id_ for page in by_id for id_ in page] == expected[::-1]


async def test_pages_are_bounded_by_the_bytes_of_their_bodies(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "_PAGE_BYTES", 1000)
    sizes = {"01": 10, "02": 2000, "03": 600, "04": 600, "05": 1}
    await insert_callbacks(database, *(callback(id_, body=b"x" * size) for id_, size in sizes.items()))
    expected = [["01", "02"], ["03", "04"], ["05"]]
    assert [[one.id for one in page] async for page in callbacks.pages(database, CallbackQuery())] == expected
    assert [[one.id for one in page] async for page in callbacks.pages_with_ids(database, list(sizes))] == expected


async def test_a_time_range_is_one_of_the_times_of_receipt(database: Database) -> None:
    times = [NOON + timedelta(seconds=second) for second in range(3)]
    rows = [callback(new_callback_id(time), received_at=time) for time in times]
    await insert_callbacks(database, *rows)
    page = await callbacks.find(database, CallbackQuery(since=times[1], until=times[2]))
    assert [one.received_at for one in page.items] == [times[1]]


# --- plans


async def plan(database: Database, query: CallbackQuery) -> str:
    async with database.reading() as connection:
        rows = await connection.execute(Explained(callbacks.page_statement(database, query)))
        return "\n".join(" ".join(str(value) for value in row) for row in rows)


def problems_of(number: int) -> list[dict[str, Any]]:
    if number % 5:
        return []
    reason = "tag-forged" if number % 100 == 0 else "unreadable"
    return [problem(reason, element, message_id=f"q{number}") for element in range(3)]


async def fill(database: Database) -> None:
    """Enough callbacks for the planner to prefer an index where there is one: few pending, a fifth quarantined."""
    await insert_callbacks(database, *(callback(f"{one:08}", problems=problems_of(one)) for one in range(5000)))
    await insert_callbacks(
        database,
        *(callback(f"{number:08}", is_pending=True) for number in range(5000, 5020)),
    )
    await append_events(database, *((f"m{number}", f"{number:08}") for number in range(1, 3000)))
    if not database.is_sqlite:
        async with database.writing() as connection:
            await connection.execute(sql("ANALYZE"))


# The index that finds the callbacks of a query: on SQLite, on PostgreSQL.
INDEXES: dict[str, tuple[dict[str, Any], str, str]] = {
    "nothing": ({}, "sqlite_autoindex_callbacks_1", "uq_callbacks_id"),
    "pending": ({"outcome": "pending"}, "INTEGER PRIMARY KEY (rowid>?)", "pk_callbacks"),
    "accepted": ({"outcome": "accepted"}, "sqlite_autoindex_callbacks_1", "uq_callbacks_id"),
    "quarantined": ({"outcome": "quarantined"}, "sqlite_autoindex_quarantine_1", "pk_quarantine"),
    "reason": ({"reason": "tag-forged"}, "ix_quarantine_reason", "ix_quarantine_reason"),
    "message": ({"message_id": "m7"}, "sqlite_autoindex_events_1", "uq_events_message_id"),
    "message in quarantine": ({"message_id": "q50"}, "ix_quarantine_message", "ix_quarantine_message"),
}


async def test_every_filter_is_answered_by_an_index(database: Database) -> None:
    await fill(database)
    for name, (fields, sqlite_index, postgresql_index) in INDEXES.items():
        for after in (None, "00002500"):
            found = await plan(database, CallbackQuery(**fields).model_copy(update={"after": after}))
            assert (sqlite_index if database.is_sqlite else postgresql_index) in found, f"{name}:\n{found}"
            assert "SCAN callbacks\n" not in found, f"{name}:\n{found}"
            assert "Seq Scan on callbacks" not in found, f"{name}:\n{found}"


async def test_accepted_callbacks_are_read_in_order_where_hardly_any_others_are(database: Database) -> None:
    bad = [problem("unreadable", 0)]
    rows = (callback(f"{number:08}", problems=bad if number % 1000 == 7 else []) for number in range(5000))
    await insert_callbacks(database, *rows)
    if not database.is_sqlite:
        async with database.writing() as connection:
            await connection.execute(sql("ANALYZE"))
    for since in (None, NOON - timedelta(days=400)):
        found = await plan(database, CallbackQuery(outcome="accepted", since=since))
        assert ("sqlite_autoindex_callbacks_1" if database.is_sqlite else "uq_callbacks_id on callbacks") in found
        assert "Seq Scan on callbacks" not in found, found
        assert "SCAN callbacks\n" not in found, found


# --- what the quarantine knows of the message


@pytest.mark.parametrize(
    ("element", "message_id"),
    [
        pytest.param({**v2_event("m1"), "type": "message-unheard-of"}, "m1", id="v2, unknown type"),
        pytest.param(v2_event("m1", message={"to": ["+1"] * 5000}), "m1", id="v2, too many recipients"),
        pytest.param({**v1_event("m-1"), "state": 7}, "m-1", id="v1, unknown state"),
        pytest.param(v2_event("m" * 251), None, id="an id that is too long"),
        pytest.param({"type": "what"}, None, id="no message"),
        pytest.param({"type": "what", "message": {"id": ["m1"]}}, None, id="an id that is no text"),
        pytest.param(1, None, id="no object"),
    ],
)
async def test_a_quarantined_element_is_found_by_the_message_it_names(
    database: Database, element: Any, message_id: str | None
) -> None:
    one = posted([element])
    await process(database, one)
    found = await callbacks.with_id(database, one.id)
    assert found is not None
    assert [problem.message_id for problem in found.problems] == [message_id]
    if message_id is not None:
        page = await callbacks.find(database, CallbackQuery(message_id=message_id))
        assert [view.id for view in page.items] == [one.id]


async def test_an_event_whose_tag_is_refused_is_found_by_its_message(database: Database) -> None:
    one = posted([v2_event("m1")])
    await process(database, one, checker=TagChecker(policy=TagPolicy.REQUIRE))
    page = await callbacks.find(database, CallbackQuery(message_id="m1", outcome="quarantined"))
    assert [view.id for view in page.items] == [one.id]
