"""Registered sends: what a sender posts about the messages that it sent, and what it gets back for each."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, SkipValidation
from pydantic.alias_generators import to_camel

from receiver.domain.events import Api
from receiver.models.columns import Read

MAX_SENDS = 1000
"""The largest number of sends in one request."""


class Send(BaseModel):
    """A message that was sent: the body of v2's 202, v1's request with its `location`, or these fields.

    Other fields are ignored. `request` and `results` are v1's request and its answer as they are: the object that was
    sent, with `location` beside it, or the array that was sent and the array of results.
    """

    model_config = ConfigDict(alias_generator=to_camel, extra="allow")

    id: str | None = Field(None, description="the message id; v1 may give `location` in its place")
    location: str | None = Field(None, description="the header `Location` of v1's answer, or that of a result")
    api: Api | None = Field(None, description="default: v1 for what only v1 has and for ids with `m-`, else v2")
    from_: str | None = Field(None, alias="from")
    to: str | list[str] | None = Field(None, description="the recipients; also called `recipients`")
    time: str | None = Field(None, description="when the message was created, RFC 3339")
    text: str | None = None
    media: str | list[str] | None = None
    tag: str | None = Field(None, description="as it was sent; a signature is left out")
    application_id: str | None = None
    owner: str | None = None
    segment_count: int | str | None = None
    channel: str | None = None
    priority: str | None = None
    receipt_expected: bool | None = Field(
        None,
        description="whether a final event should come; default: yes, for v1 if `receiptRequested` is `all`, and until "
        "the first event also if there is a `callbackUrl`",
    )
    receipt_requested: Literal["none", "error", "all"] | None = Field(None, description="v1's parameter")
    callback_url: str | None = Field(None, description="v1's parameter; stored without user name and password")
    callback_timeout: int | str | None = Field(None, description="v1's parameter")
    fallback_url: str | None = Field(None, description="v1's parameter; stored without user name and password")
    request: dict[str, Any] | list[Any] | None = None
    results: list[Any] | None = None


class Sends(RootModel[Any]):
    """One send or a list of sends. Each is checked by itself, so that a wrong one does not stop the others."""

    # A list may have anything, because a wrong send in it is answered and not an error of the request.
    root: Annotated[SkipValidation[Send | list[Send | Any]], Field(description="one send or a list of sends")]


class SendResult(Read):
    """What became of one send: `registered`, or `refused` because of `parameter`, which `detail` explains."""

    index: int = Field(description="the place in the list, from 0")
    id: str | None
    api: Api | None
    result: Literal["registered", "refused"]
    parameter: str | None = None
    detail: str | None = None
