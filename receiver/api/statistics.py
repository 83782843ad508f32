"""The operation that counts deliveries."""

from typing import Final

from receiver.api.operations import Call, Operation
from receiver.models.statistics import StatisticsRead
from receiver.models.statistics_query import StatisticsQuery
from receiver.storage import statistics


async def get_statistics(call: Call) -> StatisticsRead:
    return await statistics.find(call.database, call.query, call.context.clock())


OPERATIONS: Final = (
    Operation(
        name="getStatistics",
        path="/api/stats",
        summary="Count deliveries, by up to three dimensions",
        description="The counts follow every change of a delivery at once. The range is one of whole hours, which the "
        "response names.",
        handle=get_statistics,
        query=StatisticsQuery,
        answer=StatisticsRead,
        reads_processed=True,
    ),
)
