"""A message that is to come in, as the control route takes it."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from receiver.domain.events import Api
from receiver.sandbox.messages import Reply

InboundEvent = Literal[
    "message-received",
    "suggestion-response",
    # one event, three spellings in three editions of the specification
    "requested-location-response",
    "request-location-response",
    "location-request-response",
]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Numbers = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=250)], ...], BeforeValidator(_listed)]


class InboundRequest(BaseModel):
    """Somebody writes to us, or answers to RCS: `to` are our numbers, `others` who else is in the group."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, hide_input_in_errors=True)

    api: Api = Api.V2
    from_: Annotated[str, Field(alias="from", min_length=1, max_length=250)]
    to: Annotated[Numbers, Field(min_length=1)]
    others: Numbers = ()
    text: str | None = None
    media: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    channel: Literal["SMS", "MMS", "RBM"] | None = None
    event: InboundEvent = "message-received"
    user: str | None = None
    application_id: str | None = None
    carrier_name: str | None = None
    # of a suggestion-response
    postback_data: str | None = None
    paired_message_id: str | None = None
    # of a location response
    latitude: str | None = None
    longitude: str | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.api is Api.V1 and (len(self.to) > 1 or self.others or self.channel or self.reply):
            raise ValueError("v1 has no groups and no RCS")
        if len({*self.to, *self.others}) < len(self.to) + len(self.others):
            raise ValueError("a number is there twice")
        return self

    @property
    def is_mms(self) -> bool:
        return bool(self.media or self.others or len(self.to) > 1)

    @property
    def reply(self) -> Reply | None:
        """What an RCS user did in place of writing."""
        if self.event == "message-received":
            return None
        if self.event == "suggestion-response":
            return Reply(text=self.text, postback_data=self.postback_data, paired_message_id=self.paired_message_id)
        return Reply(latitude=self.latitude or "37.7749", longitude=self.longitude or "-122.4194")
