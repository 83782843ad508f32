"""What the sandbox can be told; everything has a default."""

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from receiver.sandbox.faults import Rates
from receiver.sandbox.v1_requests import LONGEST_TIMEOUT, is_web_address

CALLBACK_TYPES: Final = frozenset(
    {"message-sending", "message-sent", "message-delivered", "message-failed", "message-read"}
)


def _pair(pair: SecretStr) -> SecretStr:
    if ":" not in pair.get_secret_value():
        raise ValueError('must be two words with a colon between them, such as "token:secret"')
    return pair


def _web_address(url: SecretStr) -> SecretStr:
    if not is_web_address(url.get_secret_value()):
        raise ValueError("must begin with http:// or https:// and name a host")
    return url


def _known(types: frozenset[str]) -> frozenset[str]:
    if unknown := sorted(types - CALLBACK_TYPES):
        raise ValueError(f"{unknown[0]} is not a callback type; there are {', '.join(sorted(CALLBACK_TYPES))}")
    return types


Pair = Annotated[SecretStr, AfterValidator(_pair)]
Url = Annotated[SecretStr, AfterValidator(_web_address)]


class SandboxSettings(BaseModel):
    """What a sandbox is like."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    credentials: tuple[Pair, ...] = Field(
        (SecretStr("token:secret"),), description='"token:secret" that may send; none: anybody may'
    )
    users: tuple[str, ...] = Field((), description="users (v2: accounts) that exist; none named: any")
    numbers: tuple[str, ...] = Field((), description="numbers to send from; none named: any")
    application_ids: tuple[str, ...] = Field((), description="v2 applications; none named: any")

    outbound_url: Url | None = Field(None, description="where the statuses of v2 messages are posted")
    inbound_url: Url | None = Field(None, description="where inbound v2 messages are posted; else the outbound URL")
    callback_credentials: Pair | None = Field(None, description='"user:password" for a v2 URL that asks for it')
    callback_types: Annotated[frozenset[str], AfterValidator(_known)] = Field(
        CALLBACK_TYPES, description="the v2 statuses that are posted"
    )
    callback_timeout: float = Field(10.0, gt=0, description="seconds that a v2 URL has to answer")
    v1_inbound_url: Url | None = Field(None, description="where inbound v1 messages are told")
    v1_inbound_fallback_url: Url | None = Field(None, description="where they are told if that fails")
    v1_inbound_method: Literal["get", "post"] = "post"
    v1_inbound_timeout: int = Field(LONGEST_TIMEOUT, ge=1, le=LONGEST_TIMEOUT, description="milliseconds to answer")
    remote_callbacks: bool = Field(False, description="calls back to other machines too, not to this one alone")

    public_url: str | None = Field(None, description="what the URLs of messages start with; else as we were called")
    seed: int = Field(1, description="what every choice follows from")
    speed: float = Field(1.0, gt=0, le=1e6, description="what every delay is divided by")
    messages_per_second: float = Field(1.0, ge=0, description="v1: for each sending number; 0: no limit")
    rates: Rates = Rates()
    mms_receipts: bool = Field(True, description="v2 MMS and group messages have receipts of the carrier")
    sent_events: bool = Field(False, description="v2 has message-sent too")
    connections: int = Field(20, ge=1, le=1000, description="callbacks under way at once")
    max_messages: int = Field(20_000, ge=1, description="how many messages are kept, the oldest go")
    max_posts: int = Field(10_000, ge=1, description="how many posts are kept, the oldest go")
