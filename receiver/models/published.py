"""What a published event looks like, for programs that read it: the schema of the CloudEvent and of its `data`.

`receiver.domain.cloudevents` makes the events themselves, as dictionaries; a test compares the two.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from receiver.domain.events import Api, Direction, Status, TagVerdict
from receiver.models.alerts import AlertRead
from receiver.models.codes import ReasonRead
from receiver.models.columns import Time, json_name


class MessageEventData(BaseModel):
    """The `data` of a published event. Every field is always there; further fields may be added."""

    model_config = ConfigDict(frozen=True, alias_generator=json_name)

    message_id: str = Field(description="Bandwidth's id of the message")
    api: Api
    direction: Direction
    recipient: str | None = Field(description="the number this event is about; null where the callback did not name it")
    sender: str | None = Field(alias="from")
    numbers: list[str] = Field(alias="to", description="all recipients of the message")
    status: Status = Field(description="the delivery's status after this event")
    previous_status: Status | None = Field(description="its status before; null for the first event of a delivery")
    changed: bool = Field(description="whether this event changed the status")
    state: str | None = Field(description="the status in v1's words, also for v2")
    delivery_state: str | None = Field(description="the status in v1's words, also for v2")
    delivery_code: int | None = Field(description="Bandwidth's code")
    delivery_description: str | None = Field(description="the text that came with the code")
    reason: ReasonRead | None
    tag: str | None = Field(description="the tag without its signature")
    tag_verdict: TagVerdict
    application_id: str | None
    segment_count: int | None
    channel: str | None
    carrier_name: str | None
    text: str | None
    media: list[str]
    contradicted: bool = Field(description="whether delivered and failed were both reported for this delivery")
    route: Literal["primary", "fallback", "reconciled"] = Field(
        description="by which URL the callback came; `reconciled`: Bandwidth answered it when it was asked"
    )
    received_at: Time = Field(description="when the callback was received")
    sequence: int = Field(description="the position in the event log, rising")


class CloudEvent(BaseModel):
    """A published event of a message: CloudEvents 1.0 in JSON."""

    model_config = ConfigDict(frozen=True)

    specversion: Literal["1.0"]
    id: str = Field(description="the same in every copy of the event")
    source: str
    type: str = Field(description="`message.` and the status that the event itself reports")
    subject: str = Field(description="the message id")
    time: Time = Field(description="Bandwidth's time of the event; without one the time of receipt")
    datacontenttype: Literal["application/json"]
    dataschema: str = Field(description="the URI of the schema of `data`; it ends in `schemas/message-event/1`")
    data: MessageEventData


class AlertCloudEvent(BaseModel):
    """A published change of an alert: CloudEvents 1.0 in JSON."""

    model_config = ConfigDict(frozen=True)

    specversion: Literal["1.0"]
    id: str = Field(description="the same in every copy of the event")
    source: str = Field(description="`RECEIVER_SOURCE` and `/alerts`")
    type: Literal["alert.fired", "alert.resolved"]
    subject: str = Field(description="the id of the alert")
    time: Time = Field(description="when the alert fired, or was resolved")
    datacontenttype: Literal["application/json"]
    dataschema: str = Field(description="the URI of the schema of `data`; it ends in `schemas/alert/1`")
    data: AlertRead
