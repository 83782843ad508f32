"""Reconciliation: which worker queries which API, with what budget, and when each message was looked up."""

from datetime import datetime

from sqlalchemy import BigInteger, Column, PrimaryKeyConstraint
from sqlmodel import Field

from receiver.domain.events import Api
from receiver.models.columns import Model, integer_column, table_of, text_column, time_column


def _number() -> int:
    number: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    return number


class ReconcilerRow(Model, table=True):
    """One API that is queried: the lease of the worker that queries it, its budget, its health.

    `requests` are those of `day` (UTC). `answer` is the meaning of the last request if the API is at fault.
    """

    __tablename__ = "reconcilers"

    api: Api = text_column(primary_key=True)
    epoch: int = _number()
    lease_holder: str | None = text_column(nullable=True)
    lease_until: datetime | None = time_column()
    day: str | None = text_column(nullable=True)
    requests: int = _number()
    requested_at: datetime | None = time_column()
    is_exhausted: bool = False
    failures: int = _number()
    failing_since_at: datetime | None = time_column()
    answer: str | None = text_column(nullable=True)
    last_error: str | None = text_column(nullable=True)
    paused_until_at: datetime | None = time_column()


class ReconciliationRow(Model, table=True):
    """A message that was looked up: how often, when last, and when again."""

    __tablename__ = "reconciliations"
    __table_args__ = (PrimaryKeyConstraint("message_id", "api", name="pk_reconciliations"),)

    api: Api = text_column(primary_key=True)
    message_id: str = text_column(primary_key=True)
    tries: int = integer_column()
    asked_at: datetime = time_column(nullable=False)
    due_at: datetime = time_column(nullable=False)


RECONCILERS = table_of(ReconcilerRow)
RECONCILIATIONS = table_of(ReconciliationRow)
