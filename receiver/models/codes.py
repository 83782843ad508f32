"""Delivery codes: the table for joins, and what is shown of a code."""

from sqlalchemy import Integer
from sqlmodel import Field

from receiver.domain.events import Api
from receiver.models.columns import Model, Read, table_of, text_column
from receiver.providers import registry


class ReasonBase(Model):
    """The meaning of a delivery code; null where no source documents it."""

    name: str = text_column()
    description: str = text_column()
    category: str = text_column()
    retryable: bool | None
    billable: bool | None


class ReasonRead(ReasonBase, Read):
    """The meaning of a delivery code; null where no source documents it."""


class DeliveryCodeBase(ReasonBase):
    """A code with its meaning for the delivery (`delivered`, `failed`, `unconfirmed`)."""

    api: Api = text_column(primary_key=True)
    code: int = Field(primary_key=True, sa_type=Integer, sa_column_kwargs={"autoincrement": False})
    outcome: str = text_column()


class DeliveryCodeRow(DeliveryCodeBase, table=True):
    """The code catalogue as a table, for joins; `receiver migrate` writes it from `receiver.providers`."""

    __tablename__ = "delivery_codes"


class DeliveryCodeRead(DeliveryCodeBase, Read):
    """A delivery code that Bandwidth documents."""

    retry_limit: int | None
    status: str
    v2_analogue: int | None
    first_documented: str | None
    notes: str | None
    earlier_name: str | None = Field(description="the name in earlier documents of Bandwidth's, where it differs")


DELIVERY_CODES = table_of(DeliveryCodeRow)


def reason_of(api: Api, code: int | None) -> ReasonRead | None:
    """What is shown of the meaning of a code."""
    meaning = registry.meaning(api, code)
    return ReasonRead.model_validate(meaning) if meaning else None
