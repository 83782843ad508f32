"""Statistics on both databases: they count what SQL over the view `message_status` counts, after any history."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from receiver.domain.delivery import FinalConflict
from receiver.domain.events import Api, Callback
from receiver.models.queries import DIMENSIONS, StatisticsQuery
from receiver.models.statistics import StatisticRead
from receiver.storage import statistics
from receiver.storage.database import Database
from receiver.storage.rebuild import Rebuild
from receiver.storage.retention import Pruner
from tests.factories import EPOCH, at, callback, v1_event, v2_event
from tests.processing import process, select

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
    """The SQL of the beginning of the hour or the day of a message, as text."""
    if database.is_sqlite:
        return f"strftime('{'%Y-%m-%d %H' if name == 'hour' else '%Y-%m-%d'}', listed_at)"
    return f"to_char(listed_at AT TIME ZONE 'UTC', '{'YYYY-MM-DD HH24' if name == 'hour' else 'YYYY-MM-DD'}')"


async def by_view(database: Database, *by: str) -> set[tuple[Any, ...]]:
    columns = [OF_VIEW.get(name) or time_of(database, name) for name in by]
    grouped = f"GROUP BY {', '.join(map(str, range(1, len(by) + 1)))}" if by else "HAVING count(*) > 0"
    statement = f"SELECT {', '.join([*columns, COUNTED])} FROM message_status {grouped}"
    return {tuple(row) for row in await select(database, statement)}


def as_text(row: StatisticRead) -> StatisticRead:
    formats = {"hour": "%Y-%m-%d %H", "day": "%Y-%m-%d"}
    times = {name: getattr(row, name).strftime(form) for name, form in formats.items() if getattr(row, name)}
    return row.model_copy(update=times)


async def times_by_view(database: Database) -> list[float]:
    """The times to delivery in seconds: Bandwidth's clock, for v1's end ours."""
    rows = await select(
        database,
        "SELECT created_at, delivered_at, updated_at, status FROM message_status "
        "WHERE status IN ('delivered', 'read') AND created_at IS NOT NULL",
    )
    ends = ((row, row.delivered_at or (row.updated_at if row.status == "delivered" else None)) for row in rows)
    return sorted((moment(end) - moment(row.created_at)).total_seconds() for row, end in ends if end is not None)


def moment(value: Any) -> datetime:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def nearest_rank(times: list[float], percent: int) -> float:
    return times[-(-len(times) * percent // 100) - 1]


async def assert_right(database: Database) -> None:
    """The statistics are what SQL over the view counts, by every dimension, and a recount changes nothing."""
    choices = [
        (),
        *((name,) for name in DIMENSIONS),
        ("day", "from", "status"),
        ("hour", "carrierName", "deliveryCode"),
    ]
    for by in choices:
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
    assert await statistics.Recount(database, writes=False).run() == 0


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
STEPS = st.sampled_from(("process", "rebuild", "prune", "sweep"))
LIMITS = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


async def empty(database: Database) -> None:
    async with database.writing() as connection:
        for table in ("statistics", "deliveries", "messages", "events"):
            await connection.execute(text(f"DELETE FROM {table}"))


@LIMITS
@given(history=HISTORIES, cuts=st.lists(st.tuples(st.integers(0, 12), STEPS), max_size=5))
async def test_statistics_are_those_of_the_view_after_every_history(
    database: Database, history: list[Callback], cuts: list[tuple[int, str]]
) -> None:
    await empty(database)
    done = 0
    for cut, step in sorted(cuts):
        await process(database, *history[done:cut])
        done = max(done, cut)
        if step == "rebuild":
            await Rebuild(database, FinalConflict.DELIVERED_WINS).run()
        elif step == "prune":
            await Pruner(database, {"messages": timedelta(hours=3)}, clock=lambda: at(5 * 3600)).prune()
        elif step == "sweep":
            async with database.writing() as connection:
                await statistics.sweep(connection, EPOCH)
        await assert_right(database)
    await process(database, *history[done:])
    await assert_right(database)
