"""The operation that counts deliveries, and its result as CSV."""

from typing import Final

from receiver.api.operations import Call, Operation
from receiver.api.tables import csv_text
from receiver.models.columns import shown_names
from receiver.models.statistics import StatisticRead, StatisticsRead
from receiver.models.statistics_query import DIMENSIONS, StatisticsQuery
from receiver.storage import statistics

_MEASURES: Final = tuple(name for name in shown_names(StatisticRead) if name not in DIMENSIONS)


def csv_table(found: StatisticsRead, query: StatisticsQuery) -> str:
    """Statistics as CSV: a row for each, its dimensions in the order of `by`, then the counts."""
    columns = (*dict.fromkeys(query.by), *_MEASURES)
    return csv_text(columns, (row.model_dump(mode="json", by_alias=True) for row in found.rows))


async def get_statistics(call: Call) -> StatisticsRead:
    return await statistics.find(call.database, call.query, call.context.clock())


OPERATIONS: Final = (
    Operation(
        name="getStatistics",
        path="/api/stats",
        summary="Count deliveries, by up to three dimensions",
        description="The counts follow every change of a delivery at once. The range is one of whole hours, which the "
        "response names. `Accept: text/csv` gives the rows as a table.",
        handle=get_statistics,
        query=StatisticsQuery,
        answer=StatisticsRead,
        csv=csv_table,
        reads_processed=True,
    ),
)
