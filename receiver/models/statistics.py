"""Statistics: counts of deliveries per hour and day, which the processor writes, and what is shown of them."""

from datetime import date
from typing import Any, Final

from pydantic import SerializerFunctionWrapHandler, model_serializer
from sqlalchemy import Column, Integer, PrimaryKeyConstraint
from sqlmodel import Field

from receiver.domain.events import Api, Direction, Status
from receiver.models.columns import Model, Read, Time, integer_column, serial_column, table_of, text_column
from receiver.models.statistics_query import DIMENSIONS


def _key_column() -> Any:
    return Field(sa_column=Column(Integer, primary_key=True, autoincrement=False, nullable=False))


class StatisticRow(Model, table=True):
    """How many deliveries have these values: a cell of the statistics.

    `grain` says whether `hour` (hours since 1970 in UTC) is an hour or the first one of a day or a week, whether the
    cell is of one sender or of all, and whether it has an application, delivery code and carrier, and the time to
    delivery. Texts are empty where a message has none. `bucket` is the time to delivery: its place among the bounds of
    the histogram, or -1 without one. A cell may count 0.
    """

    __tablename__ = "statistics"
    # The cells of a sender lie together: each hour of one, or of some of thousands, is found at once.
    __table_args__ = (
        PrimaryKeyConstraint(
            *("grain", "hour", "sender", "api", "direction", "status"),
            *("delivery_code", "application_id", "carrier_name", "bucket"),
        ),
        # The table is its own index on SQLite.
        {"sqlite_with_rowid": False},
    )

    grain: int = _key_column()
    hour: int = _key_column()
    api: str = text_column(primary_key=True)
    direction: str = text_column(primary_key=True)
    status: str = text_column(primary_key=True)
    delivery_code: int = integer_column(primary_key=True)
    application_id: str = text_column(primary_key=True)
    carrier_name: str = text_column(primary_key=True)
    sender: str = text_column(primary_key=True)
    bucket: int = _key_column()
    deliveries: int = integer_column()
    awaiting: int = integer_column()


class StatisticChangeRow(Model, table=True):
    """A change of a cell of one hour and one sender, which is not added to the cells yet."""

    __tablename__ = "statistics_changes"

    id: int = serial_column()
    hour: int = Field(sa_column=Column(Integer, nullable=False))
    api: str = text_column()
    direction: str = text_column()
    status: str = text_column()
    delivery_code: int = integer_column()
    application_id: str = text_column()
    carrier_name: str = text_column()
    sender: str = text_column()
    bucket: int = Field(sa_column=Column(Integer, nullable=False))
    deliveries: int = integer_column()
    awaiting: int = integer_column()


STATISTICS = table_of(StatisticRow)
CHANGES = table_of(StatisticChangeRow)


class StatisticRead(Read):
    """The deliveries with the same values of the dimensions; dimensions outside of `by` are left out."""

    status: Status | None = None
    delivery_code: int | None = None
    category: str | None = Field(None, description="the category of the delivery code in the catalogue")
    application_id: str | None = None
    sender: str | None = Field(None, serialization_alias="from")
    carrier_name: str | None = None
    direction: Direction | None = None
    api: Api | None = None
    hour: Time | None = Field(None, description="the beginning of the hour, UTC")
    day: date | None = Field(None, description="the day, UTC")
    week: date | None = Field(None, description="the Monday with which the week begins, UTC")
    deliveries: int = Field(description="messages times recipients")
    final: int = Field(description="deliveries with a final event")
    delivered: int = Field(description="delivered or read")
    failed: int
    unconfirmed: int = Field(description="sent to a carrier that confirms nothing")
    awaiting_receipt: int = Field(description="deliveries without a final event although one is expected")
    success_rate: float | None = Field(
        description="delivered, of delivered, failed and unconfirmed; null if there are none of them"
    )
    p50_seconds: float | None = Field(description="half of the delivered messages took at most this long; within 19 %")
    p95_seconds: float | None = Field(description="95 % of the delivered messages took at most this long; within 19 %")

    @model_serializer(mode="wrap")
    def _without_other_dimensions(self, handler: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        others = {name for field in _DIMENSION_NAMES.keys() - self.model_fields_set for name in _DIMENSION_NAMES[field]}
        return {name: value for name, value in handler(self).items() if name not in others}


# Both names of each field, as Python and as JSON.
_DIMENSION_NAMES: Final = {
    field: (field, StatisticRead.model_fields[field].serialization_alias or field)
    for field in StatisticRead.model_fields
    if field in DIMENSIONS.values()
}


class StatisticsRead(Read):
    """Counts of deliveries of the messages in a range of whole hours."""

    since: Time = Field(serialization_alias="from")
    until: Time = Field(serialization_alias="to")
    rows: list[StatisticRead]
    left_out: int = Field(0, exclude=True, description="the number of further rows, which the limit leaves out")
