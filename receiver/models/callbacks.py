"""Callbacks: the journal, the processor that reads it on, the quarantine, and what is shown of a callback."""

import base64
from datetime import datetime
from typing import Literal

from pydantic import computed_field
from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, PrimaryKeyConstraint, UniqueConstraint
from sqlmodel import Field

from receiver.domain.events import Api, Quarantine
from receiver.models.columns import (
    Model,
    Position,
    Read,
    Time,
    json_column,
    only_where,
    position_column,
    serial_column,
    table_of,
    text_column,
    time_column,
)
from receiver.models.queries import CallbackOutcome


class CallbackBase(Model):
    """One HTTP request from Bandwidth, without headers and body."""

    id: str = text_column()
    received_at: Time = time_column(nullable=False)
    api: Api = text_column()
    route: str = text_column()
    method: str = text_column()
    remote: str | None = text_column(nullable=True)


class CallbackRow(CallbackBase, table=True):
    """The journal: one HTTP request from Bandwidth, appended and never changed.

    On SQLite it is a file of its own (see `receiver.storage.database.journal_file`). `sequence` is the order of the
    commits, except on PostgreSQL, where a larger one may become visible first. `id` rises with `received_at` and orders
    the lists.
    """

    __tablename__ = "callbacks"
    # Without AUTOINCREMENT SQLite would reuse the number of a deleted row, which is before the processor's cursor.
    __table_args__ = (UniqueConstraint("id", name="uq_callbacks_id"), {"sqlite_autoincrement": True})

    sequence: int | None = serial_column()
    query: str = text_column()
    headers: dict[str, str] = json_column(nullable=False)
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class PendingCallbackRow(Model, table=True):
    """PostgreSQL only: the pending callbacks. Appends insert rows, and the processor removes them.

    A cursor over `sequence` would skip rows on PostgreSQL, where a larger number can be committed first.
    """

    __tablename__ = "pending_callbacks"

    sequence: int = position_column(primary_key=True)


class ProcessorRow(Model, table=True):
    """A single row: the processor's cursor, lease and failure.

    SQLite: every callback up to `cursor` is processed. PostgreSQL: `cursor` is the largest processed `sequence`, and
    `pending_callbacks` has the pending ones. `epoch` rises with every change of the lease's holder and fences off the
    previous one. `backend` is the process number of the holder's PostgreSQL session, which a successor terminates.
    `last_callbacks` has the time of the latest processed callback by version and route. `repeats` counts the dropped
    callbacks without a new event.
    """

    __tablename__ = "processor"

    id: int = Field(default=1, sa_column=Column(Integer, primary_key=True, autoincrement=False))
    cursor: int = Field(default=0, sa_column=Column(Position, nullable=False))
    epoch: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    lease_holder: str | None = text_column(nullable=True)
    lease_until: datetime | None = time_column()
    backend: int | None = None
    callbacks: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    repeats: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    last_callbacks: dict[str, str] = json_column(nullable=False)
    failing_since_at: datetime | None = time_column()
    last_error: str | None = text_column(nullable=True)


class QuarantineBase(Model):
    """An element of a callback that did not become an event, and why."""

    element: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False), serialization_alias="index")
    reason: Quarantine = text_column()
    detail: str = text_column()
    message_id: str | None = text_column(nullable=True)


class QuarantineRow(QuarantineBase, table=True):
    """An element of a callback that did not become an event, with the reason; `element` is its place in the array.

    Of very many elements of a callback the first ones are listed; `elements` is how many a row stands for.
    """

    __tablename__ = "quarantine"
    __table_args__ = (
        PrimaryKeyConstraint("callback_id", "element", name="pk_quarantine"),
        Index("ix_quarantine_reason", "reason", "callback_id"),
        Index("ix_quarantine_message", "message_id", **only_where("message_id IS NOT NULL")),
    )

    callback_id: str = text_column(primary_key=True)
    reprocessed_at: datetime | None = time_column()
    elements: int = Field(default=1, sa_column=Column(Integer, nullable=False, server_default="1"))


CALLBACKS = table_of(CallbackRow)
PENDING = table_of(PendingCallbackRow)
PROCESSOR = table_of(ProcessorRow)
QUARANTINE = table_of(QuarantineRow)


class CallbackSummaryRead(CallbackBase, Read):
    """A callback of the journal, without headers and body.

    `reason` is the reason of its first quarantined element, `reprocessedTime` the time of its latest reprocessing; both
    are null unless an element of the callback is quarantined.
    """

    outcome: CallbackOutcome
    reason: Quarantine | None
    reprocessed_at: Time | None


class ElementProblemRead(QuarantineBase, Read):
    """Why one element of a callback did not become an event; `messageId` is null where the element names none."""


class CallbackRead(CallbackSummaryRead):
    """A callback of the journal as it was received; `body` is text, or base64 where the bytes are not UTF-8."""

    query: str
    headers: dict[str, str]
    raw: bytes = Field(validation_alias="body", exclude=True)
    problems: list[ElementProblemRead]

    @computed_field
    def body(self) -> str:
        return _text_and_encoding(self.raw)[0]

    @computed_field
    def body_encoding(self) -> Literal["utf-8", "base64"]:
        return _text_and_encoding(self.raw)[1]


def _text_and_encoding(body: bytes) -> tuple[str, Literal["utf-8", "base64"]]:
    try:
        return body.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(body).decode("ascii"), "base64"
