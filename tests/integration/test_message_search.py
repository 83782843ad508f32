"""Searches of messages in spans of time: they find what the whole list has, go on where they end, and end in time."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from math import inf
from typing import Any

import pytest

from receiver.errors import TooSlow
from receiver.models.message_queries import MessageQuery
from receiver.models.parameters import MessagePlace
from receiver.models.queries import SortOrder
from receiver.storage import database as databases
from receiver.storage import messages
from receiver.storage.database import Database
from receiver.storage.message_search import UNLIMITED, Found, Patience, search
from tests.databases import locked, with_slow_rows
from tests.rows import inbound, insert, message, minutes

pytestmark = pytest.mark.anyio


def impatient() -> Callable[[], float]:
    """A clock by which every span takes no time, and the patience is over after the first one."""
    times = chain([0.0], repeat(100.0))
    return lambda: next(times)


async def pages(
    database: Database, query: MessageQuery, patience: Patience, clock: Callable[[], Callable[[], float]] | None = None
) -> list[Found]:
    """The pages of a search to its end."""
    found: list[Found] = []
    while not found or found[-1].after is not None:
        found.append(await search(database, query, patience, clock() if clock is not None else time.monotonic))
        query = query.model_copy(update={"after": found[-1].after})
        assert len(found) < 1000
    return found


def ids(found: Sequence[Found]) -> list[str]:
    return [message.id for page in found for message in page.items]


@pytest.fixture
async def stocked(database: Database) -> Database:
    """Messages of decades, of which many have the same time, with gaps of years between them."""
    times = [
        datetime(1970, 1, 1, tzinfo=UTC),
        *[datetime(2019, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)] * 7,
        *(minutes(30 * number) for number in range(40)),
        *[minutes(600)] * 9,
        datetime(9999, 12, 31, 23, tzinfo=UTC),
    ]
    made = (
        inbound(f"m{number:02}", at=at, sender="+15550100")
        if number % 3 == 0
        else message(f"m{number:02}", at=at, tag=f"order {number}", to=("+15550299", f"+1555020{number % 9}"))
        for number, at in enumerate(times)
    )
    await insert(database, *made)
    return database


QUERIES: dict[str, dict[str, Any]] = {
    "all": {},
    "direction": {"direction": "in"},
    "number": {"number": "+15550100"},
    "recipient": {"recipient": "+15550203"},
    "tag_prefix": {"tag_prefix": "order 1"},
    "since and until": {"since": minutes(60), "until": minutes(600)},
    "since, after the newest of many": {"since": datetime(9999, 12, 31, tzinfo=UTC)},
    "older_than": {"older_than": minutes(300), "until": minutes(301)},
    "until, before all": {"until": datetime(1969, 1, 1, tzinfo=UTC)},
    "since, after all": {"since": datetime.max.replace(tzinfo=UTC)},
    "no alternative": {"direction": "in", "status": ("delivered",)},
}


@pytest.mark.parametrize("order", SortOrder)
@pytest.mark.parametrize("name", QUERIES)
async def test_spans_find_what_the_whole_list_has(stocked: Database, name: str, order: SortOrder) -> None:
    query = MessageQuery(**QUERIES[name], order=order, size=5)
    whole = ids(await pages(stocked, query, UNLIMITED))
    assert len(whole) == len(set(whole))
    begin = datetime(1, 1, 1, tzinfo=UTC) if order is SortOrder.ASC else datetime.max.replace(tzinfo=UTC)
    for span in (timedelta(0), timedelta(minutes=20), timedelta(days=30), timedelta.max):
        in_spans = query.model_copy(update={"after": MessagePlace.at(begin, span)})
        found = await pages(stocked, in_spans, Patience(whole=9.0, in_spans=9.0), impatient)
        assert ids(found) == whole, span
        assert all(len(page.items) == 5 or page.searched_to or page.after is None for page in found)


SLOW = 60


@pytest.fixture
async def slow(postgres_url: str) -> AsyncIterator[Database]:
    """A message an hour, on a server that takes 5 ms to find each of them, and 5 ms to read it."""
    database = Database(postgres_url)
    await insert(database, *(message(f"m{number:02}", at=minutes(60 * number)) for number in range(SLOW)))
    await asyncio.to_thread(with_slow_rows, postgres_url, "messages", 0.005)
    yield database
    await database.close()


NEWEST_FIRST = [f"m{number:02}" for number in reversed(range(SLOW))]


async def test_what_takes_too_long_as_a_whole_is_found_in_spans(slow: Database) -> None:
    query = MessageQuery(size=100)
    assert [each.id for each in (await messages.find(slow, query)).items] == NEWEST_FIRST
    found = await pages(slow, query, Patience(whole=0.1, in_spans=0.12))
    assert ids(found) == NEWEST_FIRST
    assert len(found) > 2
    *early, last = found
    assert [page.searched_to is None for page in early] == [False] * len(early)
    assert (last.after, last.searched_to) == (None, None)
    shares = [page.share for page in found]
    assert shares == sorted(set(shares))
    assert (0 < shares[0] < 1, shares[-1]) == (True, 1)
    # Each page has what lies before the time that it names, and the database has ended no connection.
    for page in early:
        assert page.searched_to is not None
        assert all(each.listed_at >= page.searched_to for each in page.items)
    assert slow.engine.pool.checkedin() == 1  # type: ignore[attr-defined]


async def test_what_was_tried_as_a_whole_in_a_hurry_is_tried_again(slow: Database) -> None:
    first = await search(slow, MessageQuery(size=100), Patience(whole=0.02, in_spans=0.1, whole_again=True))
    assert 0 < len(first.items) < SLOW
    assert first.after is not None
    assert first.after.span is None
    second = await search(slow, MessageQuery(size=100, after=first.after), Patience(whole=20.0, in_spans=0.0))
    assert ids([first, second]) == NEWEST_FIRST
    assert second.after is None


async def test_a_page_in_spans_is_full_where_there_is_enough(slow: Database) -> None:
    found = await pages(slow, MessageQuery(size=7), Patience(whole=0.001, in_spans=5.0))
    assert [len(page.items) for page in found] == [7] * 8 + [4]
    assert all(page.searched_to is None for page in found)
    assert ids(found) == NEWEST_FIRST
    # The next page begins with a span, and tries nothing as a whole.
    assert all(page.after is not None and page.after.span is not None for page in found[:-1])


async def test_without_a_limit_one_call_finds_everything(slow: Database) -> None:
    unlimited = Patience(whole=0.1, in_spans=inf)
    found = await search(slow, MessageQuery(size=100), unlimited)
    assert (ids([found]), found.after) == (NEWEST_FIRST, None)


async def test_a_short_time_is_searched_in_parts_of_it(postgres_url: str) -> None:
    """A span is no longer than what is left: else the same messages would be searched again and again."""
    database = Database(postgres_url)
    await insert(database, *(message(f"m{number:02}", at=minutes(number / 60)) for number in range(SLOW)))
    await asyncio.to_thread(with_slow_rows, postgres_url, "messages", 0.005)
    one_span = Patience(whole=0.05, in_spans=9.0, one_span=0.2)
    found = await search(database, MessageQuery(size=100), one_span)
    assert (ids([found]), found.after) == (NEWEST_FIRST, None)
    await database.close()


async def test_a_span_that_takes_too_long_is_searched_as_a_shorter_one(slow: Database) -> None:
    place = MessagePlace.at(datetime.max.replace(tzinfo=UTC), timedelta(days=10))
    found = await pages(slow, MessageQuery(size=100, after=place), Patience(whole=9.0, in_spans=0.6, one_span=0.2))
    assert found[0].searched_to is not None
    assert ids(found) == NEWEST_FIRST


async def test_a_page_by_number_is_found_as_a_whole_or_not_at_all(
    slow: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = MessagePlace.at(datetime.max.replace(tzinfo=UTC), timedelta(hours=3))
    queries = [MessageQuery(size=10, page=2), MessageQuery(size=10, page=2, after=after)]
    for query in queries:
        assert ids([await search(slow, query, Patience(whole=0.001, in_spans=0.05))]) == NEWEST_FIRST[20:30]
    monkeypatch.setattr(databases, "STATEMENT_SECONDS", 0.05)
    for query in queries:
        with pytest.raises(TooSlow):
            await search(slow, query, UNLIMITED)


async def test_what_is_found_before_a_stall_is_shown_and_the_search_goes_on_there(
    slow: Database, postgres_url: str
) -> None:
    """A statement that a lock holds up is no reason to forget what was found, or to give up."""
    query = MessageQuery(size=100)
    hurried = Patience(whole=0.05, in_spans=0.2, one_span=0.1)
    first = await search(slow, query, hurried)
    assert first.searched_to is not None
    async with locked(postgres_url, "deliveries"):
        query = query.model_copy(update={"after": first.after})
        for _ in range(2):
            held = await search(slow, query, hurried)
            assert (held.items, held.searched_to is None) == ([], False)
            assert held.after is not None
            assert first.after is not None
            assert held.after.span is not None
            assert replace(held.after, span=None) == replace(first.after, span=None)
            query = query.model_copy(update={"after": held.after})
    assert ids([first, *(await pages(slow, query, hurried))]) == NEWEST_FIRST


async def test_no_message_is_repeated_where_a_stall_begins_within_a_page(slow: Database) -> None:
    """Nor where the page before has ended among messages of the same time."""
    page = await search(slow, MessageQuery(size=10), UNLIMITED)
    assert page.after is not None
    held = await search(slow, MessageQuery(size=10, after=page.after), Patience(whole=0.0, in_spans=0.0, one_span=0.0))
    assert held.items == []
    assert held.after is not None
    assert replace(held.after, span=None) == page.after
    assert held.after.span is not None


async def test_what_cannot_be_read_at_all_ends_the_search(postgres_url: str) -> None:
    database = Database(postgres_url)
    await insert(database, message("m1"), message("m2", at=minutes(60)))
    await asyncio.to_thread(with_slow_rows, postgres_url, "messages", 0.2)
    with pytest.raises(TooSlow):
        await pages(database, MessageQuery(), Patience(whole=0.05, in_spans=0.05, one_span=0.05))
    await database.close()
