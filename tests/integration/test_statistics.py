"""Statistics on both databases: they count what SQL over the view `message_status` counts, after any history."""

import asyncio
import gc
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, event, text

from receiver.domain.delivery import FinalConflict
from receiver.domain.events import Api, Callback
from receiver.errors import StorageUnavailable, TooMuch
from receiver.intake.fold import Folder
from receiver.models.statistics import STATISTICS, StatisticRead
from receiver.models.statistics_query import DIMENSIONS, StatisticsQuery
from receiver.storage import statistics, statistics_cells, statistics_retention
from receiver.storage.database import Database
from receiver.storage.rebuild import Rebuild
from receiver.storage.retention import Pruner
from receiver.storage.statistics_rebuild import Recount
from tests.factories import EPOCH, at, callback, v1_event, v2_event
from tests.pages import ROOT
from tests.processing import process, select
from tests.waiting import reference_seconds

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 3, 1, tzinfo=UTC)
EVERYTHING = {"since": datetime(2000, 1, 1, tzinfo=UTC), "until": datetime(2040, 1, 1, tzinfo=UTC)}
# The dimensions as SQL over the view.
OF_VIEW = {
    "status": "status",
    "deliveryCode": "delivery_code",
    "category": "code_category",
    "applicationId": "application_id",
    "from": "CASE WHEN direction = 'out' THEN sender END",
    "carrierName": "carrier_name",
    "direction": "direction",
    "api": "api",
}
MEASURES = ("deliveries", "final", "delivered", "failed", "unconfirmed", "awaiting_receipt")
COUNTED = """
    count(*), sum(CASE WHEN is_final THEN 1 ELSE 0 END), sum(CASE WHEN is_delivered THEN 1 ELSE 0 END),
    sum(CASE WHEN status = 'failed' THEN 1 ELSE 0 END), sum(CASE WHEN status = 'unconfirmed' THEN 1 ELSE 0 END),
    sum(CASE WHEN awaiting_receipt AND NOT is_final THEN 1 ELSE 0 END)
"""


async def counted(database: Database, *by: str, **filters: Any) -> list[StatisticRead]:
    query = StatisticsQuery(by=by, **{**EVERYTHING, **filters})
    return (await statistics.find(database, query, NOW)).rows


def values(row: StatisticRead, by: tuple[str, ...]) -> tuple[Any, ...]:
    """A row as SQL has it."""
    return (*(getattr(row, DIMENSIONS[name]) for name in by), *(getattr(row, measure) for measure in MEASURES))  # type: ignore[index]


def time_of(database: Database, name: str) -> str:
    """The SQL of the beginning of the hour, the day or the week of a message, as text."""
    if name == "week" and database.is_sqlite:
        return "date(listed_at, 'weekday 0', '-6 days')"
    if name == "week":
        return "to_char(date_trunc('week', listed_at AT TIME ZONE 'UTC'), 'YYYY-MM-DD')"
    if database.is_sqlite:
        return f"strftime('{'%Y-%m-%d %H' if name == 'hour' else '%Y-%m-%d'}', listed_at)"
    return f"to_char(listed_at AT TIME ZONE 'UTC', '{'YYYY-MM-DD HH24' if name == 'hour' else 'YYYY-MM-DD'}')"


async def by_view(database: Database, *by: str) -> set[tuple[Any, ...]]:
    columns = [OF_VIEW.get(name) or time_of(database, name) for name in by]
    grouped = f"GROUP BY {', '.join(map(str, range(1, len(by) + 1)))}" if by else "HAVING count(*) > 0"
    statement = f"SELECT {', '.join([*columns, COUNTED])} FROM message_status {grouped}"
    return {tuple(row) for row in await select(database, statement)}


def as_text(row: StatisticRead) -> StatisticRead:
    formats = {"hour": "%Y-%m-%d %H", "day": "%Y-%m-%d", "week": "%Y-%m-%d"}
    times = {name: getattr(row, name).strftime(form) for name, form in formats.items() if getattr(row, name)}
    return row.model_copy(update=times)


async def times_by_view(database: Database) -> list[float]:
    """The times to delivery in seconds: Bandwidth's clock, for v1's end ours."""
    rows = await select(
        database,
        "SELECT created_at, delivered_at, delivered_received_at, status FROM message_status "
        "WHERE status IN ('delivered', 'read') AND created_at IS NOT NULL",
    )
    ends = (
        (row, row.delivered_at or (row.delivered_received_at if row.status == "delivered" else None)) for row in rows
    )
    return sorted((moment(end) - moment(row.created_at)).total_seconds() for row, end in ends if end is not None)


def moment(value: Any) -> datetime:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def nearest_rank(times: list[float], percent: int) -> float:
    return times[-(-len(times) * percent // 100) - 1]


FINE = ((), ("day", "from", "status"), ("hour", "carrierName", "deliveryCode"))


async def assert_right(database: Database, choices: Iterable[tuple[str, ...]] = ()) -> None:
    """The statistics are what SQL over the view counts, by every dimension, and a recount changes nothing."""
    for by in choices or (*FINE, *((name,) for name in DIMENSIONS)):
        found = [values(as_text(row), by) for row in await counted(database, *by)]
        assert set(found) == await by_view(database, *by), by
        assert len(set(found)) == len(found), by
    times = await times_by_view(database)
    for row in await counted(database):
        for percent, estimate in ((50, row.p50_seconds), (95, row.p95_seconds)):
            exact = nearest_rank(times, percent) if times else None
            assert (estimate is None) is (exact is None)
            if exact is not None and estimate is not None and 0.125 <= exact < 262_144:
                assert 2**-0.26 <= estimate / exact <= 2**0.26
    assert await Recount(database, writes=False).run() == 0


# --- histories

IDS = ("m1", "m2", "m3")
TYPES = ("message-sending", "message-delivered", "message-failed", "message-read", "message-received")
SECONDS = st.sampled_from((0.0, 0.2, 3.7, 95.0, 4000.0, 90_000.0))


@st.composite
def v2_callbacks(draw: Callable[..., Any]) -> Callback:
    kind = draw(st.sampled_from(TYPES))
    seconds, received = draw(SECONDS), draw(SECONDS)
    numbers = draw(st.sampled_from((["+15550001"], ["+15550001", "+15550002"])))
    message = {
        "direction": "in" if kind == "message-received" else "out",
        "to": numbers,
        "from": draw(st.sampled_from(("+15559999", "15559999", "CODE", ""))),
        "applicationId": draw(st.sampled_from(("a-1", "a-2", "", None, "a" * 99))),
        "time": draw(st.sampled_from(("2026-01-01T00:00:00.000Z", "2026-01-01T23:59:59.999Z", "2025-12-31", None))),
    }
    more: dict[str, Any] = {"time": draw(st.sampled_from((at(seconds).isoformat(), None)))}
    if kind == "message-failed":
        more["errorCode"] = draw(st.sampled_from((4720, 4700, 9999, 1, -5)))
    if (carrier := draw(st.sampled_from((None, "Verizon", "AT&T", "é" * 100)))) is not None:
        more["carrierName"] = carrier
    more["to"] = draw(st.sampled_from(("+15550001", "+15550002", "+15550003", None)))
    return callback([v2_event(draw(st.sampled_from(IDS)), kind, message=message, **more)], received=received)


@st.composite
def v1_callbacks(draw: Callable[..., Any]) -> Callback:
    more = draw(
        st.sampled_from(
            (
                {},
                {"deliveryState": "waiting"},
                {"deliveryState": "delivered", "deliveryCode": "0"},
                {"deliveryState": "not-delivered", "deliveryCode": "902"},
            )
        )
    )
    return callback([v1_event(draw(st.sampled_from(IDS)), **more)], api=Api.V1, received=draw(SECONDS))


HISTORIES = st.lists(st.one_of(v2_callbacks(), v1_callbacks()), max_size=12)
STEPS = st.sampled_from(("process", "rebuild", "prune", "sweep", "add", "other conflict"))
OTHER = {
    FinalConflict.FAILED_WINS: FinalConflict.DELIVERED_WINS,
    FinalConflict.DELIVERED_WINS: FinalConflict.FAILED_WINS,
}
LIMITS = settings(
    # There are four variants of the test.
    max_examples=settings().max_examples // 2,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


async def add_changes(database: Database) -> None:
    async with database.appending() as transaction:
        await statistics_cells.add_changes(transaction)


async def empty(database: Database) -> None:
    async with database.writing() as connection:
        for table in ("statistics", "statistics_changes", "deliveries", "messages", "events"):
            await connection.execute(text(f"DELETE FROM {table}"))


@pytest.fixture(params=[True, False], ids=["added", "appended"])
def adds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether each batch adds its changes to the cells, or only appends them."""
    monkeypatch.setattr(Folder, "_has_many_changes", lambda _: request.param)


@pytest.mark.usefixtures("adds")
@LIMITS
@given(history=HISTORIES, cuts=st.lists(st.tuples(st.integers(0, 12), STEPS), max_size=5))
async def test_statistics_are_those_of_the_view_after_every_history(
    database: Database, history: list[Callback], cuts: list[tuple[int, str]]
) -> None:
    await empty(database)
    done, conflict = 0, FinalConflict.FAILED_WINS
    for cut, step in sorted(cuts):
        await process(database, *history[done:cut], conflict=conflict)
        done = max(done, cut)
        if step == "rebuild":
            await Rebuild(database, conflict).run()
        elif step == "other conflict":
            conflict = OTHER[conflict]
        elif step == "prune":
            await Pruner(database, {"messages": timedelta(hours=3)}, clock=lambda: at(5 * 3600)).prune()
        elif step == "add":
            await add_changes(database)
        elif step == "sweep":
            await Pruner(database, {}, clock=lambda: EPOCH).prune()
        await assert_right(database, FINE)
    await process(database, *history[done:], conflict=conflict)
    await assert_right(database)


# --- single cases


async def test_a_change_moves_a_delivery_between_cells(database: Database) -> None:
    await process(database, callback([v2_event("m1", "message-sending")]))
    assert [(row.status, row.deliveries, row.awaiting_receipt) for row in await counted(database, "status")] == [
        ("sending", 1, 1)
    ]
    await process(database, callback([v2_event("m1", time=at(3).isoformat(), carrierName="Verizon")]))
    [row] = await counted(database, "carrierName")
    assert (row.carrier_name, row.deliveries, row.delivered, row.awaiting_receipt) == ("Verizon", 1, 1, 0)
    assert row.success_rate == 1
    assert row.p50_seconds == pytest.approx(3, rel=0.19)


async def test_deliveries_without_a_final_event_are_left_out_of_the_rate(database: Database) -> None:
    kinds = ("message-sending", "message-delivered", "message-delivered", "message-failed", "message-received")
    messages = [
        v2_event(f"m{number}", kind, message={"direction": "in" if kind == "message-received" else "out"})
        for number, kind in enumerate(kinds)
    ]
    await process(database, callback(messages))
    [row] = await counted(database)
    assert (row.deliveries, row.final, row.delivered, row.failed, row.success_rate) == (5, 4, 2, 1, 0.666667)
    [row] = await counted(database, direction="in")
    assert (row.deliveries, row.success_rate, row.p50_seconds) == (1, None, None)


async def test_the_time_to_delivery_of_v1_ends_with_our_receipt(database: Database) -> None:
    receipt = v1_event("m1", deliveryState="delivered", deliveryCode="0")
    await process(database, callback([receipt], api=Api.V1, received=60))
    [row] = await counted(database)
    assert row.p95_seconds == pytest.approx(60, rel=0.19)


async def test_many_times_have_percentiles_within_a_fifth(database: Database) -> None:
    seconds = [0.2 * 1.03**number for number in range(400)]
    events = [v2_event(f"m{number}", time=at(each).isoformat()) for number, each in enumerate(seconds)]
    await process(database, *(callback([event]) for event in events))
    [row] = await counted(database)
    assert row.p50_seconds == pytest.approx(nearest_rank(seconds, 50), rel=0.19)
    assert row.p95_seconds == pytest.approx(nearest_rank(seconds, 95), rel=0.19)


async def test_filters_choose_cells(database: Database) -> None:
    await process(
        database,
        callback([v2_event("m1", message={"from": "+15551111"})]),
        callback([v2_event("m2", "message-failed", errorCode=4720, message={"applicationId": "a-2"})]),
        callback([v2_event("m3", carrierName="Verizon", message={"time": "2026-01-05T10:30:00Z"})]),
        callback([v1_event("m4")], api=Api.V1),
    )
    filters: dict[str, dict[str, Any]] = {
        "m1": {"sender": "(1) 555-1111"},
        "m2": {"delivery_code": "4700,4720"},
        "m3": {"carrier_name": "Verizon"},
        "m4": {"api": "v1"},
    }
    for fields in (*filters.values(), {"status": "failed,read"}, {"application_id": "a-2"}, {"status": "sent"}):
        assert [row.deliveries for row in await counted(database, **fields)] == [1], fields
    assert [row.deliveries for row in await counted(database, since=datetime(2026, 1, 5, 10, 45, tzinfo=UTC))] == [1]
    assert await counted(database, since=datetime(2026, 1, 5, 11, tzinfo=UTC)) == []
    assert [row.day for row in await counted(database, "day", until=datetime(2026, 1, 1, 1, tzinfo=UTC))] == [
        datetime(2026, 1, 1, tzinfo=UTC).date()
    ]


async def test_a_range_is_widened_to_whole_hours_and_has_30_days_by_default(database: Database) -> None:
    found = await statistics.find(database, StatisticsQuery(), datetime(2026, 1, 31, 10, 30, tzinfo=UTC))
    assert (found.since, found.until) == (datetime(2026, 1, 1, 11, tzinfo=UTC), datetime(2026, 1, 31, 11, tzinfo=UTC))
    early = StatisticsQuery(until="0001-01-02", since=None)
    assert (await statistics.find(database, early, NOW)).since == datetime(1, 1, 1, tzinfo=UTC)
    late = StatisticsQuery(since="9999-12-31", until="9999-12-31 23:59:59")
    assert (await statistics.find(database, late, NOW)).until == datetime.max.replace(tzinfo=UTC)


@pytest.mark.parametrize("are_added", [True, False], ids=["cells", "changes"])
async def test_what_is_listed_after_the_end_of_a_range_is_not_counted(database: Database, are_added: bool) -> None:
    """Also where the range ends now, and whole days and weeks are read less what is listed later in them."""
    begun = datetime(2026, 1, 5, tzinfo=UTC)
    times = [begun + timedelta(hours=7 * number) for number in range(60)]
    events = [
        v2_event(f"m{number}", message={"from": f"+1555{number % 3}", "time": listed_at.isoformat()})
        for number, listed_at in enumerate(times)
    ]
    await process(database, callback(events))
    if are_added:
        await add_changes(database)
    for hours in (1, 30, 77, 100, 168, 200, 336):
        until, since = begun + timedelta(hours=hours), begun + timedelta(hours=hours // 3)
        for now in (until - timedelta(minutes=20), until + timedelta(days=9)):
            expected = [(number, listed_at) for number, listed_at in enumerate(times) if since <= listed_at < until]
            for by, keys in (
                ((), {None for _ in expected}),
                (("day",), {listed_at.date() for _, listed_at in expected}),
                (("from",), {number % 3 for number, _ in expected}),
                (("week", "from"), {(listed_at.isocalendar()[1], number % 3) for number, listed_at in expected}),
                (("from", "deliveryCode"), {number % 3 for number, _ in expected}),
            ):
                for limit in (None, 100):
                    query = StatisticsQuery(by=by, since=since, until=until, limit=limit)
                    rows = (await statistics.find(database, query, now)).rows
                    assert sum(row.deliveries for row in rows) == len(expected), (hours, by, limit)
                    assert len(rows) == len(keys), (hours, by, limit)


async def test_a_limit_leaves_the_rows_with_most_deliveries(database: Database) -> None:
    """Whether cells have them, changes that are not added to the cells yet, or both."""
    days = ("1969-12-25", "1969-12-31", "1970-01-01", "2026-01-01", "2026-01-05")
    events = [
        v2_event(
            f"m{number}",
            **({"errorCode": 4720 + number % 3} if number % 4 else {}),
            message={
                "from": f"+1555{(number if number % 4 else number * number) % 7}",
                "applicationId": "a-1" if number % 4 else None,
                "time": f"{days[number % 5]}T{number % 3:02}:00:00Z",
            },
        )
        for number in range(60)
    ]
    await process(database, callback(events[:30]))
    await add_changes(database)
    await process(database, callback(events[30:]))
    without_senders: tuple[tuple[str, ...], ...] = (("deliveryCode", "applicationId"), ("category",))
    with_senders = (
        *(("from",), ("from", "status"), ("hour", "from"), ("day", "from"), ("week", "from", "applicationId")),
        *(("from", "deliveryCode"), ("category", "from")),
    )
    for by in (*without_senders, *with_senders):
        all_rows = await counted(database, *by)
        ordered = sorted(all_rows, key=lambda row: -row.deliveries)
        for limit in (1, 3, 1000):
            query = StatisticsQuery(by=by, limit=limit, **EVERYTHING)
            found = await statistics.find(database, query, NOW)
            assert found.rows == ordered[:limit], (by, limit)
            assert found.left_out == max(0, len(all_rows) - limit)


@pytest.mark.parametrize("limit", [None, 10])
async def test_statistics_of_many_groups_do_not_hold_up_the_event_loop(database: Database, limit: int | None) -> None:
    cell = {"grain": statistics_cells.SENDER_HOUR, "api": "v2", "direction": "out", "status": "delivered"}
    cell |= {"application_id": "", "carrier_name": "", "delivery_code": statistics_cells.NO_CODE, "bucket": 3}
    first = statistics_cells.hour_of(NOW) - 60
    numbers = range(60_000)
    async with database.writing() as connection:
        for begin in numbers[::1000]:
            cells = [
                {**cell, "hour": first + n // 1000, "sender": f"+1555{n % 1000:06}", "deliveries": 2, "awaiting": 0}
                for n in numbers[begin : begin + 1000]
            ]
            await connection.execute(STATISTICS.insert(), cells)
    longest, is_done = 0.0, asyncio.Event()

    async def watch() -> None:
        """Measures the processor time of the event loop's thread, which other processes do not change."""
        nonlocal longest
        while not is_done.is_set():
            began = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - began)

    # The garbage of other tests is not to be measured.
    gc.collect()
    gc.freeze()
    watching = asyncio.create_task(watch())
    try:
        if limit is None:
            with pytest.raises(TooMuch, match="more than 10,000 rows"):
                await counted(database, "from", "hour")
        else:
            rows = await counted(database, "from", "hour", limit=limit)
            assert [(row.deliveries, row.sender) for row in rows] == [(2, "+1555000000")] * limit
    finally:
        is_done.set()
        await watching
        gc.unfreeze()
    # A step of the garbage collector may come on top; without threads it was more than a second, twenty times the
    # reference work.
    assert longest < 5 * reference_seconds()


async def test_the_largest_of_thousands_of_senders_are_found(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a statement may have parameters, each in several parts of the range, and their sums alone are read."""
    first, number = statistics_cells.hour_of(NOW), 7_000
    counts = statistics_cells.Counts()
    for sender in range(number):
        for hour in (first - 200, first - 30, first - 2):
            key = (hour, f"+1555{sender:06}", "v2", "out", "delivered", statistics_cells.NO_CODE, "", "", 3)
            counts.add_cell((statistics_cells.SENDER_HOUR, *key), 1 + sender % 2, 0)
    async with database.appending() as transaction:
        await transaction.run([counts.cells()])
    # The rows of all hours are `number`, those of each hour three times as many.
    rows = await counted(database, "from", limit=10_000)
    assert len(rows) == number
    assert (rows[0].deliveries, rows[-1].deliveries) == (6, 3)
    monkeypatch.setattr(statistics, "_MOST_GROUPS", 100)
    found = await statistics.find(database, StatisticsQuery(by="from,day", limit=5, **EVERYTHING), NOW)
    assert [row.deliveries for row in found.rows] == [2] * 5
    assert found.left_out == 3 * number - 5


async def test_rows_that_later_cells_take_away_are_not_too_many(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime(2026, 1, 10, 9, 30, tzinfo=UTC)
    times = [now - timedelta(days=1), now + timedelta(hours=3)]
    await process(
        database,
        callback(
            [
                v2_event(f"m{sender}-{place}", message={"from": f"+1555{sender}", "time": listed_at.isoformat()})
                for sender in range(3)
                for place, listed_at in enumerate(times)
            ]
        ),
    )
    await add_changes(database)
    monkeypatch.setattr(statistics, "_MOST_ROWS", 3)
    for by in ("day,from", "week,applicationId,from", "from"):
        query = StatisticsQuery(by=by, since=now - timedelta(days=9), until=now)
        assert [row.deliveries for row in (await statistics.find(database, query, now)).rows] == [1, 1, 1]


async def test_too_many_senders_are_found_out_before_their_sums_are_read(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await process(database, callback([v2_event(f"m{n}", message={"from": f"+1555{n}"}) for n in range(3)]))
    await add_changes(database)
    statements: list[str] = []
    event.listen(
        database.engine.sync_engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, *_: statements.append(statement),
    )
    monkeypatch.setattr(statistics, "_MOST_ROWS", 2)
    with pytest.raises(TooMuch, match="more than 2 rows"):
        await counted(database, "from")
    assert not [statement for statement in statements if "bucket" in statement]


async def test_a_sender_without_its_plus_is_found(database: Database) -> None:
    await process(
        database, callback([v2_event("m1", message={"from": "15551"}), v2_event("m2", message={"from": "+15551"})])
    )
    assert [row.deliveries for row in await counted(database, sender="15551")] == [2]


async def test_too_many_rows_are_refused(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    await process(database, *(callback([v2_event(f"m{n}", message={"from": f"+1555{n}"})]) for n in range(3)))
    monkeypatch.setattr(statistics, "_MOST_ROWS", 2)
    with pytest.raises(TooMuch, match="more than 2 rows"):
        await counted(database, "from")


async def tables(database: Database) -> list[list[Any]]:
    names = ("messages", "deliveries", "statistics", "statistics_changes")
    return [sorted(map(repr, await select(database, f"SELECT * FROM {name}"))) for name in names]


async def test_rebuild_that_does_not_write_changes_no_table(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Folder, "_has_many_changes", lambda _: False)
    await process(database, callback([v2_event("m1"), v2_event("m2", message={"time": "2026-01-03T05:00:00Z"})]))
    await add_changes(database)
    await process(database, callback([v2_event("m2", "message-failed", errorCode=4720), v2_event("m3")]))
    before = await tables(database)
    assert before[-1], "there are no changes that are not added yet"
    assert (await Rebuild(database, FinalConflict.FAILED_WINS, writes=False).run()).statistics == 0
    assert await tables(database) == before
    async with database.writing() as connection:
        # A change of an hour that has neither messages nor cells.
        last = "(SELECT max(id) FROM statistics_changes)"
        await connection.execute(text(f"UPDATE statistics_changes SET hour = 7 WHERE id = {last}"))
    before = await tables(database)
    assert (await Rebuild(database, FinalConflict.FAILED_WINS, writes=False).run()).statistics > 0
    assert await tables(database) == before


async def test_rebuild_corrects_wrong_missing_and_stale_cells(database: Database) -> None:
    await process(database, callback([v2_event("m1"), v2_event("m2", message={"time": "2026-01-03T05:00:00Z"})]))
    right = await counted(database, "hour", "status", "applicationId")
    await add_changes(database)
    async with database.writing() as connection:
        await connection.execute(text("UPDATE statistics SET deliveries = 7 WHERE grain = 0 AND hour % 24 = 5"))
        await connection.execute(text("DELETE FROM statistics WHERE grain = 3"))
        await connection.execute(
            text("INSERT INTO statistics VALUES (2, 7, 'v2', 'out', 'failed', 0, '', '', '', -1, 3, 0)")
        )
    # The cells of a day are compared with those of its hours, which stay wrong without writing.
    assert (await Rebuild(database, FinalConflict.FAILED_WINS, writes=False).run()).statistics == 9
    assert (await Rebuild(database, FinalConflict.FAILED_WINS).run()).statistics == 4
    assert await counted(database, "hour", "status", "applicationId") == right
    assert (await Rebuild(database, FinalConflict.FAILED_WINS).run()).statistics == 0


def upgrade(connection: Connection) -> None:
    """Runs the migrations that make and fill the tables of the statistics, and no others."""
    scripts = ScriptDirectory(str(ROOT / "migrations"))
    with Operations.context(MigrationContext.configure(connection)):
        for number in ("0008", "0012", "0014", "0016"):
            revision = scripts.get_revision(number)
            assert revision is not None
            revision.module.upgrade()


async def test_migration_fills_the_statistics(database: Database) -> None:
    history = [callback([v2_event(f"m{n}", time=at(n * 7.3).isoformat(), carrierName="A")]) for n in range(60)]
    history += [callback([v2_event("group", "message-sending", to=None, message={"to": ["+1555", "+1556"]})])]
    history += [callback([v1_event("v1", deliveryState="delivered")], api=Api.V1, received=3)]
    history += [callback([v2_event("old", message={"time": "1969-12-30T23:59:59.999999Z"})])]
    await process(database, *history)
    await add_changes(database)
    right = await select(database, "SELECT * FROM statistics ORDER BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10")
    async with database.writing() as connection:
        await connection.execute(text("DROP TABLE statistics"))
        await connection.execute(text("DROP TABLE statistics_changes"))
    async with database.migrating() as connection:
        await connection.run_sync(upgrade)
    assert await select(database, "SELECT * FROM statistics ORDER BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10") == right


async def test_a_long_text_is_counted_by_its_beginning(database: Database) -> None:
    await process(database, callback([v2_event("m1", carrierName="é" * 240)]))
    assert [row.carrier_name for row in await counted(database, "carrierName")] == ["é" * 100]
    assert len(await counted(database, carrier_name="é" * 240)) == 1
    assert (await Rebuild(database, FinalConflict.FAILED_WINS).run()).statistics == 0


async def test_rows_that_no_event_explains_are_taken_out(database: Database) -> None:
    await process(database, callback([v2_event("m1", "message-sending")]))
    async with database.writing() as connection:
        await connection.execute(text("DELETE FROM events"))
    await process(database, callback([v2_event("m1")]))
    assert [(row.status, row.deliveries) for row in await counted(database, "status")] == [("delivered", 1)]


@pytest.mark.parametrize("first", FinalConflict)
async def test_statistics_are_right_after_the_final_conflict_setting_has_changed(
    database: Database, first: FinalConflict
) -> None:
    number = {"to": "+15550001", "message": {"to": ["+15550001", "+15550002"]}}
    await process(
        database,
        callback([v2_event("m1", "message-delivered", time=at(3).isoformat(), **number)]),
        callback([v2_event("m1", "message-failed", errorCode=4720, time=at(4).isoformat(), **number)]),
        callback([v2_event("m2", "message-failed", errorCode=4720, time=at(3).isoformat())]),
        callback([v2_event("m2", "message-failed", errorCode=4401, time=at(4).isoformat())]),
        conflict=first,
    )
    await process(
        database,
        callback([v2_event("m1", "message-read", time=at(5).isoformat(), **number)]),
        callback([v2_event("m2", "message-sending", time=at(5).isoformat(), carrierName="Verizon")]),
        callback([v2_event("m1", "message-failed", errorCode=4721, time=at(6).isoformat(), **number)]),
        conflict=OTHER[first],
    )
    await assert_right(database)


async def test_sweep_removes_cells_that_count_nothing(database: Database) -> None:
    await process(database, callback([v2_event("m1", "message-sending")]))
    await add_changes(database)
    await process(database, callback([v2_event("m1")]))
    await add_changes(database)
    assert await select(database, "SELECT count(*) FROM statistics") == [(22,)]
    assert await Pruner(database, {}, clock=lambda: at(3600)).prune() == {}
    assert await select(database, "SELECT DISTINCT status FROM statistics") == [("delivered",)]


async def test_sweep_removes_a_bounded_number_of_cells_at_once(database: Database) -> None:
    events = [v2_event(f"m{number}", "message-sending", carrierName=f"c{number}") for number in range(5)]
    await process(database, callback(events))
    await add_changes(database)
    await process(database, callback([v2_event(f"m{number}", carrierName=f"c{number}") for number in range(5)]))
    await add_changes(database)
    cells = await statistics_retention.cells_to_sweep(database, at(3600))
    # Totals and the cells of all messages have no carriers: one cell of each beginning.
    assert [await statistics_retention.sweep(database, *of_hour, 3) for of_hour in cells] == [3] * 5 + [1] * 6
    assert await Pruner(database, {}, clock=lambda: at(3600), limit=2).prune() == {}
    assert await statistics_retention.cells_to_sweep(database, at(3600)) == []
    assert await select(database, "SELECT DISTINCT status FROM statistics") == [("delivered",)]
    await assert_right(database)


async def test_changes_that_are_added_meanwhile_are_counted_once(database: Database) -> None:
    await process(database, callback([v2_event(f"m{number}") for number in range(50)]))

    async def change() -> None:
        for number in range(50, 60):
            await process(database, callback([v2_event(f"m{number}")]))
            await add_changes(database)

    changing = asyncio.create_task(change())
    while not changing.done():
        [row] = await counted(database)
        assert 50 <= row.deliveries <= 60
    await changing
    assert [row.deliveries for row in await counted(database)] == [60]


async def test_changes_that_cannot_be_added_stop_no_callback(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise StorageUnavailable("canceling statement due to statement timeout")

    monkeypatch.setattr(Folder, "_has_many_changes", lambda _: True)
    with monkeypatch.context() as patched:
        patched.setattr(statistics_cells, "add_changes", fail)
        await process(database, callback([v2_event("m1")]))
    assert await select(database, "SELECT count(*) FROM statistics") == [(0,)]
    assert [(row.status, row.deliveries) for row in await counted(database, "status")] == [("delivered", 1)]
    await process(database, callback([v2_event("m2")]))
    assert await select(database, "SELECT count(*) FROM statistics_changes") == [(0,)]
    assert [(row.status, row.deliveries) for row in await counted(database, "status")] == [("delivered", 2)]


async def test_changes_are_added_in_bounded_parts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folder, "_has_many_changes", lambda _: False)
    events = [v2_event(f"m{number}", message={"applicationId": f"a{number}"}) for number in range(20)]
    await process(database, callback(events))
    async with database.appending() as transaction:
        monkeypatch.setattr(
            statistics_cells,
            "_OLDEST_CHANGES",
            statistics_cells._OLDEST_CHANGES.replace(str(statistics_cells.MOST_CHANGES), "3"),
        )
        added, last = await statistics_cells.add_changes(transaction)
    assert added == 3
    assert await select(database, f"SELECT count(*) FROM statistics_changes WHERE id > {last}") == [(17,)]
    assert await select(database, "SELECT count(*) FROM statistics_changes") == [(17,)]
    assert [(row.status, row.deliveries) for row in await counted(database, "status")] == [("delivered", 20)]


async def test_buckets_whose_changes_add_up_to_nothing_give_no_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Folder, "_has_many_changes", lambda _: False)
    await process(database, callback([v2_event("m1")]))
    await process(database, callback([v2_event("m1", "message-failed", errorCode=4720)]))
    [row] = await counted(database)
    assert (row.delivered, row.failed, row.p50_seconds, row.p95_seconds) == (0, 1, None, None)
