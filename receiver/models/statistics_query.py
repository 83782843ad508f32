"""The query of statistics and its dimensions."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import Field, field_validator

from receiver.domain.events import Api, Direction, Status
from receiver.models.parameters import CommaSeparated, Large, Moment, Number, Option, Rows, Text, not_before_since
from receiver.models.queries import NOT_EMPTY, Query

Dimension = Literal[
    "status",
    "deliveryCode",
    "category",
    "applicationId",
    "from",
    "carrierName",
    "direction",
    "api",
    "hour",
    "day",
    "week",
]
# The dimensions of statistics, with the field that has each.
DIMENSIONS: Final[Mapping[Dimension, str]] = {
    "status": "status",
    "deliveryCode": "delivery_code",
    "category": "category",
    "applicationId": "application_id",
    "from": "sender",
    "carrierName": "carrier_name",
    "direction": "direction",
    "api": "api",
    "hour": "hour",
    "day": "day",
    "week": "week",
}


class StatisticsQuery(Query):
    """The parameters of statistics. A range is widened to whole hours, and covers 30 days unless it has a beginning."""

    by: Annotated[tuple[Dimension, ...], CommaSeparated, Option(metavar="DIMENSION,...")] = Field(
        (),
        json_schema_extra=NOT_EMPTY,
        max_length=3,
        description="up to three dimensions, separated by commas: "
        + ", ".join(f"`{name}`" for name in DIMENSIONS)
        + "; without any there is one row",
    )
    since: Annotated[Moment | None, Option("--since")] = Field(
        None,
        alias="fromDateTime",
        description="messages created in the hour of this time or later; without a creation time, first received; "
        "default: 30 days before the end",
    )
    until: Annotated[Moment | None, Option("--until")] = Field(
        None, alias="toDateTime", description="messages created before the end of the hour of this time; default: now"
    )
    limit: Annotated[Rows | None, Option(metavar="NUMBER")] = Field(
        None,
        description="at most so many rows: those with the most deliveries, most first; default: all rows, in the order "
        "of their dimensions",
    )
    status: Annotated[tuple[Status, ...], CommaSeparated] = Field(
        (),
        json_schema_extra=NOT_EMPTY,
        description="the status of the delivery; several values are separated by commas",
    )
    delivery_code: Annotated[tuple[Large, ...], CommaSeparated, Option("--code")] = Field(
        (),
        json_schema_extra=NOT_EMPTY,
        max_length=20,
        description="the delivery code; several values are separated by commas",
    )
    sender: Number | None = Field(
        None, alias="from", description="the number of the sender of outbound messages, in any usual spelling"
    )
    application_id: Annotated[Text | None, Option("--application")] = Field(
        None, description="the id of the application at Bandwidth"
    )
    carrier_name: Annotated[Text | None, Option("--carrier")] = Field(None, description="the name of the carrier")
    direction: Direction | None = Field(None, description="`in` (received) or `out` (sent)")
    api: Api | None = Field(None, description="messages of this API version")

    _until = field_validator("until")(not_before_since)
