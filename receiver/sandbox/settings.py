"""The settings of a sandbox. Every setting has a default."""

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from receiver.sandbox.scenario import Rates
from receiver.sandbox.v1_requests import MAX_TIMEOUT_MS, is_http_url

CALLBACK_TYPES: Final = frozenset(
    {"message-sending", "message-sent", "message-delivered", "message-failed", "message-read"}
)


def _credentials(credentials: SecretStr) -> SecretStr:
    if ":" not in credentials.get_secret_value():
        raise ValueError('must be USER:PASSWORD, for example "token:secret"')
    return credentials


def _http_url(url: SecretStr) -> SecretStr:
    if not is_http_url(url.get_secret_value()):
        raise ValueError("must begin with http:// or https:// and name a host")
    return url


def _known_types(types: frozenset[str]) -> frozenset[str]:
    if unknown := sorted(types - CALLBACK_TYPES):
        raise ValueError(f"{unknown[0]} is not a callback type, use {', '.join(sorted(CALLBACK_TYPES))}")
    return types


Credentials = Annotated[SecretStr, AfterValidator(_credentials)]
Url = Annotated[SecretStr, AfterValidator(_http_url)]


class SandboxSettings(BaseModel):
    """The settings of a sandbox."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    credentials: tuple[Credentials, ...] = Field(
        (SecretStr("token:secret"),),
        description='accepted "token:secret" pairs; empty: no credentials are needed',
    )
    users: tuple[str, ...] = Field((), description="users (v2: accounts) that exist; empty: every user exists")
    numbers: tuple[str, ...] = Field((), description="numbers that messages can be sent from; empty: every number")
    application_ids: tuple[str, ...] = Field((), description="v2 applications that exist; empty: every one")

    outbound_url: Url | None = Field(None, description="URL for the status callbacks of v2 messages")
    inbound_url: Url | None = Field(None, description="URL for inbound v2 messages; default: outbound_url")
    callback_credentials: Credentials | None = Field(None, description='"user:password" for a v2 URL that asks for it')
    callback_types: Annotated[frozenset[str], AfterValidator(_known_types)] = Field(
        CALLBACK_TYPES, description="the types of v2 status callbacks that are sent"
    )
    callback_timeout: float = Field(10.0, gt=0, description="timeout of a v2 callback in seconds")
    v1_inbound_url: Url | None = Field(None, description="URL for inbound v1 messages, may contain user:password@")
    v1_inbound_fallback_url: Url | None = Field(None, description="URL for inbound v1 messages if v1_inbound_url fails")
    v1_inbound_method: Literal["get", "post"] = "post"
    v1_inbound_timeout: int = Field(
        MAX_TIMEOUT_MS, ge=1, le=MAX_TIMEOUT_MS, description="timeout of an inbound v1 callback in milliseconds"
    )
    remote_callbacks: bool = Field(False, description="whether callbacks may go to other machines")

    public_url: str | None = Field(None, description="start of message URLs; default: the URL of the request")
    seed: int = Field(1, description="the random seed")
    speed: float = Field(1.0, gt=0, le=1e6, description="divides every delay")
    messages_per_second: float = Field(1.0, ge=0, description="v1 rate limit of each sending number; 0: no limit")
    rates: Rates = Rates()
    mms_receipts: bool = Field(True, description="whether v2 MMS and group messages have carrier receipts")
    sent_events: bool = Field(False, description="whether v2 sends message-sent too")
    connections: int = Field(20, ge=1, le=1000, description="limit of callbacks in flight")
    max_messages: int = Field(20_000, ge=1, description="limit of stored messages; the oldest are evicted")
    max_posts: int = Field(10_000, ge=1, description="limit of recorded callbacks; the oldest are evicted")
