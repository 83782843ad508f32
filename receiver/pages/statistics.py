"""The pages with numbers: the overview, live, and statistics as a table and a chart."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson
from starlette.responses import Response

from receiver.api.messages import OPERATIONS as MESSAGES
from receiver.api.operations import Listed, named
from receiver.api.problems import ProblemError
from receiver.api.routing import csv_answer
from receiver.api.statistics import OPERATIONS as STATISTICS
from receiver.api.statistics import csv_table
from receiver.api.status import OPERATIONS as STATUS
from receiver.api.status import InstallationStatus
from receiver.domain.cloudevents import rfc3339
from receiver.domain.events import Status
from receiver.errors import StorageUnavailable, TooMuch, TooSlow
from receiver.models.message_queries import MessageQuery
from receiver.models.messages import MessageRead
from receiver.models.queries import SortOrder
from receiver.models.statistics import StatisticRead, StatisticsRead
from receiver.models.statistics_query import DIMENSIONS, StatisticsQuery
from receiver.pages.visit import Visit
from receiver.providers import registry

_STATUS_NOW: Final = named(STATUS, "getStatus")
_STATISTICS: Final = named(STATISTICS, "getStatistics")
_LIST: Final = named(MESSAGES, "listMessages")

_DAY: Final = timedelta(hours=24)
_TOP: Final = 5
_MAX_POINTS: Final = 2000
# Of more rows the page shows those with the most deliveries; of more times the last ones.
_MAX_ROWS: Final = 100
_MAX_TIMES: Final = 750
# The hours of longer ranges are left out: those of 90 days took longer than a page may.
_LONGEST_BY_HOUR: Final = timedelta(days=14)
_TIMES: Final = ("hour", "day", "week")
# An open overview is refreshed every five seconds; the counts of a day change slowly.
_STATUS_SECONDS: Final = 2.0
_NUMBERS_SECONDS: Final = 10.0
_STALE_NUMBERS_SECONDS: Final = 600.0
_SENDERS_SECONDS: Final = 30.0
# A page waits so long for its numbers, so that it takes less than 200 ms with all of its work.
_PATIENCE_SECONDS: Final = 0.1


# --- the overview ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The deliveries of the last 24 hours and of the 24 hours before; None: there were none."""

    now: StatisticRead | None
    before: StatisticRead | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The values of a dimension with most failures: each with its row, its label and the filter of its messages."""

    title: str
    rows: Sequence[tuple[StatisticRead, str, Mapping[str, str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What the overview counts: the deliveries, the oldest message without a receipt, failures, the hours' chart."""

    deliveries: Comparison
    oldest: MessageRead | None
    rankings: Sequence[Ranking]
    chart: str | None


async def overview(visit: Visit) -> Response:
    """How messages and this installation are, now."""
    status: InstallationStatus = await visit.shared.get("status", _STATUS_SECONDS, lambda: visit.perform(_STATUS_NOW))
    if status.processor.callbacks is None:
        # The database cannot be read: the sentences of the status say so, and all else would wait for it.
        return visit.page("overview.html", status=503, installation=status, numbers=None, rate=None)
    numbers: Numbers | None = None
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            numbers = await visit.shared.get(
                "numbers", _NUMBERS_SECONDS, lambda: _numbers(visit), stale_seconds=_STALE_NUMBERS_SECONDS
            )
    except TooSlow as error:
        # Here are no filters to narrow.
        raise StorageUnavailable(str(error)) from error
    except TimeoutError:
        # The page comes without them, and requests itself again until they are read.
        pass
    pending = status.journal.pending or 0
    return visit.page(
        "overview.html",
        installation=status,
        rate=visit.rate.add(visit.now, status.processor.callbacks + pending),
        numbers=numbers,
    )


async def _numbers(visit: Visit) -> Numbers:
    # One after the other: at once they would take the connections that callbacks and their processing need.
    deliveries = await _deliveries(visit)
    oldest = await _oldest_awaiting(visit)
    hours = await _counts(visit, _since(visit.now), by="hour", direction="out")
    rankings = [
        await _ranking(visit, "Failures by code", "deliveryCode"),
        await _ranking(visit, "Failures by sender", "from"),
        await _ranking(visit, "Failures by carrier", "carrierName"),
        await _ranking(visit, "Failures by application", "applicationId"),
    ]
    return Numbers(
        deliveries=deliveries,
        oldest=oldest,
        rankings=[ranking for ranking in rankings if ranking.rows],
        chart=_chart("hour", hours),
    )


async def _counts(visit: Visit, since: datetime, until: datetime | None = None, **more: str) -> StatisticsRead:
    given = {"fromDateTime": rfc3339(since), **more}
    if until is not None:
        given["toDateTime"] = rfc3339(until)
    query = StatisticsQuery.model_validate(given, by_alias=True, by_name=False, context=visit.numbers)
    result: StatisticsRead = await visit.perform(_STATISTICS, query=query)
    return result


def _since(now: datetime) -> datetime:
    """The beginning of the last 24 hours: of this hour and of the 23 before it, as statistics have whole hours."""
    return now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=23)


async def _deliveries(visit: Visit) -> Comparison:
    since = _since(visit.now)
    now = await _counts(visit, since, direction="out")
    # The end is widened to that of its hour.
    before = await _counts(visit, since - _DAY, since - timedelta(hours=1), direction="out")
    return Comparison(now=next(iter(now.rows), None), before=next(iter(before.rows), None))


async def _oldest_awaiting(visit: Visit) -> MessageRead | None:
    """The oldest message of the last days of which a final event is awaited."""
    query = MessageQuery(awaiting_receipt=True, order=SortOrder.ASC, size=1, since=visit.now - 3 * _DAY)
    found: Listed[MessageRead] = await visit.perform(_LIST, query=query)
    return found.items[0] if found.items else None


async def _ranking(visit: Visit, title: str, dimension: str) -> Ranking:
    # One more than is shown: messages without a value of the dimension have a row, too.
    since = _since(visit.now)
    try:
        found = await _counts(visit, since, by=dimension, direction="out", status="failed", limit=str(_TOP + 1))
    except TooMuch:
        # So many values that they cannot be ranked.
        return Ranking(title=title, rows=[])
    rows = [row for row in found.rows if row.failed and _value(row, dimension) is not None]
    worst = sorted(rows, key=lambda row: row.failed, reverse=True)[:_TOP]
    return Ranking(
        title=title,
        rows=[(row, _label(row, dimension), _message_filter(row, dimension, since)) for row in worst],
    )


def _value(row: StatisticRead, dimension: str) -> Any:
    return getattr(row, DIMENSIONS[dimension])  # type: ignore[index]


def _label(row: StatisticRead, dimension: str) -> str:
    value = _value(row, dimension)
    if dimension == "deliveryCode":
        names = {entry.name for entry in registry.catalogue() if entry.code == value}
        return f"{value} {' or '.join(sorted(names))}".rstrip()
    return str(value)


def _message_filter(row: StatisticRead, dimension: str, since: datetime) -> dict[str, str]:
    """The parameters that list the messages of a row; empty where messages have no such filter."""
    if dimension not in ("deliveryCode", "from", "applicationId"):
        return {}
    return {dimension: str(_value(row, dimension)), "status": "failed", "fromDateTime": rfc3339(since)}


# --- statistics ---


LABELS: Final = {
    "hour": "Hour",
    "day": "Day (UTC)",
    "week": "Week from (UTC)",
    "status": "Status",
    "api": "API",
    "direction": "Direction",
    "applicationId": "Application",
    "carrierName": "Carrier",
    "deliveryCode": "Delivery code",
    "category": "Category of the code",
    "from": "Sender",
}
# The fields of the form for the second and the third dimension; the API takes all of them in one parameter.
_FURTHER: Final = ("by2", "by3")
# What the API does not have; with `wait` the page waits for its numbers.
_OF_PAGE: Final = dict.fromkeys((*_FURTHER, "wait"), "")


def _chosen(visit: Visit) -> dict[str, str]:
    """The parameters of the API that the address chooses; without any, the days."""
    given = {name: value for name, value in visit.parameters if value.strip() and name != "wait"}
    if not given:
        return {"by": "day"}
    by = [value for name in ("by", *_FURTHER) if (value := given.pop(name, ""))]
    return {**given, "by": ",".join(dict.fromkeys(",".join(by).replace(" ", "").split(",")))}


async def statistics_page(visit: Visit) -> Response:
    """Deliveries counted by up to three dimensions, as a table, and over time as a chart."""
    chosen = _chosen(visit)
    found: StatisticsRead | None = None
    problem: ProblemError | None = None
    is_counting = False
    names = chosen["by"].split(",")
    by = [name for name in names if name in DIMENSIONS]
    is_over_time = not set(_TIMES).isdisjoint(by)
    limit = {"limit": str(_MAX_ROWS)} if by and not is_over_time and "limit" not in chosen else {}
    filters = {**_OF_PAGE, **chosen, **limit}
    earliest = _earliest_hour(visit, filters) if "hour" in by else None
    if earliest is not None:
        filters["fromDateTime"] = rfc3339(earliest)
    # Those of thousands of senders in three months take up to half a second to add up.
    shared_seconds = _SENDERS_SECONDS if "from" in by or "from" in chosen else 0
    try:
        async with asyncio.timeout(None if "wait" in dict(visit.parameters) else _PATIENCE_SECONDS):
            found, problem = await visit.filtered(_STATISTICS, filters, shared_seconds=shared_seconds)
    except TimeoutError:
        is_counting = True
    rows = found.rows if found is not None else []
    most = _MAX_TIMES if is_over_time else _MAX_ROWS
    # With a limit the largest rows come first.
    is_in_time = bool(by) and by[0] in _TIMES and "limit" not in chosen
    return await visit.filtered_page(
        "statistics.html",
        problem,
        found=found,
        is_counting=is_counting,
        rows=[(row, [_shown(row, name) for name in by]) for row in (rows[-most:] if is_in_time else rows[:most])],
        left_out=max(0, len(rows) - most) + (found.left_out if found is not None else 0),
        is_in_time=is_in_time,
        is_shortened=earliest is not None,
        most_days=_LONGEST_BY_HOUR.days,
        by=by,
        by_fields=dict(zip(("by", *_FURTHER), names, strict=False)),
        dimensions=list(DIMENSIONS),
        labels=LABELS,
        statuses=[status.value for status in Status],
        given=chosen,
        chart=_chart(by[0], found) if found is not None and len(by) == 1 and by[0] in _TIMES else None,
    )


def _earliest_hour(visit: Visit, filters: Mapping[str, str]) -> datetime | None:
    """Where the hours of a longer range begin on the page; None if all of them are shown."""
    try:
        query: StatisticsQuery = visit.query(StatisticsQuery, **filters)
    except ProblemError:
        return None
    # A whole hour, so that visitors of the same hour share the numbers.
    until = min(query.until or visit.now, visit.now).replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    # "14d" was 14 days before the moment at which it was read.
    if query.since is not None and until - query.since <= _LONGEST_BY_HOUR + timedelta(hours=1):
        return None
    return max(until, datetime.min.replace(tzinfo=UTC) + _LONGEST_BY_HOUR) - _LONGEST_BY_HOUR


async def export(visit: Visit) -> Response:
    """The same numbers as a file for a spreadsheet."""
    query: StatisticsQuery = visit.query(StatisticsQuery, **_OF_PAGE, **_chosen(visit))
    found: StatisticsRead = await visit.perform(_STATISTICS, query=query)
    return csv_answer(csv_table(found, query), name="statistics", link={})


def _shown(row: StatisticRead, dimension: str) -> Any:
    """A value of a dimension for people; times stay times."""
    value = _value(row, dimension)
    if value is None:
        return "none"
    return _label(row, dimension) if dimension == "deliveryCode" else value


def _chart(dimension: str, counts: StatisticsRead) -> str | None:
    """The data of a chart over time as JSON: seconds since 1970, delivered, failed, other deliveries."""
    points = [
        (
            int(_moment(_value(row, dimension)).timestamp()),
            row.delivered,
            row.failed,
            row.deliveries - row.delivered - row.failed,
        )
        for row in counts.rows
    ]
    if len(points) < 2:
        return None
    return orjson.dumps([list(column) for column in zip(*sorted(points)[-_MAX_POINTS:], strict=True)]).decode()


def _moment(value: Any) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(f"{value}T00:00:00+00:00")
