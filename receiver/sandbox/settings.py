"""The settings of a sandbox: the fields of the fixture, the options of `receiver sandbox`, the variables SANDBOX_….

Every setting has a default. The command builds its options from the fields at each start of the program, so this module
imports little.
"""

from collections.abc import Mapping
from enum import StrEnum
from random import Random
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic.alias_generators import to_camel

from receiver.models.parameters import Option

CALLBACK_TYPES: Final = frozenset(
    {"message-sending", "message-sent", "message-delivered", "message-failed", "message-read"}
)
MAX_TIMEOUT_MS: Final = 10_000
# The prefix of the variables of the environment.
VARIABLES: Final = "SANDBOX_"


def is_http_url(url: str) -> bool:
    """Whether a text is an http or https URL with a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and " " not in url
    except ValueError:
        return False


def _credentials(credentials: SecretStr) -> SecretStr:
    if ":" not in credentials.get_secret_value():
        raise ValueError('must be USER:PASSWORD, for example "token:secret"')
    return credentials


def _http_url(url: SecretStr) -> SecretStr:
    if not is_http_url(url.get_secret_value()):
        raise ValueError("must begin with http:// or https:// and name a host")
    return url


def _public_url(url: str) -> str:
    if not is_http_url(url):
        raise ValueError("must begin with http:// or https:// and name a host")
    return url.rstrip("/")


def _known_types(types: frozenset[str]) -> frozenset[str]:
    if unknown := sorted(types - CALLBACK_TYPES):
        raise ValueError(f"{unknown[0]} is not a callback type, use {', '.join(sorted(CALLBACK_TYPES))}")
    return types


Credentials = Annotated[SecretStr, AfterValidator(_credentials)]
Url = Annotated[SecretStr, AfterValidator(_http_url), Option(metavar="URL")]


# --- rates ---

Share = Annotated[float, Field(ge=0, le=1)]


class Fault(StrEnum):
    """A fault in the callbacks of one recipient."""

    DUPLICATE = "duplicate"
    REORDER = "reorder"
    DELAY = "delay"
    LATE = "late"
    MISSING = "missing"
    SILENT = "silent"
    CONTRADICT = "contradict"
    UNKNOWN_TYPE = "unknown_type"
    BATCH = "batch"


DESCRIPTIONS: Final[Mapping[Fault, str]] = {
    Fault.DUPLICATE: "every callback comes twice or three times",
    Fault.REORDER: "the callbacks come in the opposite order",
    Fault.DELAY: "every callback comes 5 to 120 seconds late",
    Fault.LATE: "the final receipt comes 1 to 20 hours late",
    Fault.MISSING: "no final receipt ever comes",
    Fault.SILENT: "no callback ever comes",
    Fault.CONTRADICT: "both delivered and failed come",
    Fault.UNKNOWN_TYPE: "an event of a type that no document knows comes too",
    Fault.BATCH: "v2 callbacks come with several events in one array",
}


class Rates(BaseModel):
    """The share of recipients, from 0 to 1, that each fault or failure applies to."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True, defer_build=True
    )

    failed: Share = Field(0, description="fail, with a code of the catalogue")
    unconfirmed: Share = Field(0, description="end with a code that does not prove a failure")
    duplicate: Share = Field(0, description=DESCRIPTIONS[Fault.DUPLICATE])
    reorder: Share = Field(0, description=DESCRIPTIONS[Fault.REORDER])
    delay: Share = Field(0, description=DESCRIPTIONS[Fault.DELAY])
    late: Share = Field(0, description=DESCRIPTIONS[Fault.LATE])
    missing: Share = Field(0, description=DESCRIPTIONS[Fault.MISSING])
    silent: Share = Field(0, description=DESCRIPTIONS[Fault.SILENT])
    contradict: Share = Field(0, description=DESCRIPTIONS[Fault.CONTRADICT])
    unknown_type: Share = Field(0, description=DESCRIPTIONS[Fault.UNKNOWN_TYPE])
    batch: Share = Field(0, description=DESCRIPTIONS[Fault.BATCH])

    @model_validator(mode="after")
    def _sum_is_a_share(self) -> Self:
        if self.failed + self.unconfirmed > 1:
            raise ValueError("the sum of failed and unconfirmed must be at most 1")
        return self

    def draw(self, random: Random) -> frozenset[Fault]:
        """Draws the faults of one recipient.

        Every fault takes one random number whatever its rate, so that a rate does not change the other faults.
        """
        return frozenset(fault for fault in Fault if random.random() < getattr(self, fault))


RATE_NAMES: Final = tuple(to_camel(name) for name in Rates.model_fields)

# --- settings ---


class SandboxSettings(BaseModel):
    """The settings of a sandbox."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, defer_build=True)

    credentials: Annotated[tuple[Credentials, ...], Option(metavar="TOKEN:SECRET")] = Field(
        (SecretStr("token:secret"),), description="credentials of a client; none: no credentials are needed"
    )
    users: Annotated[tuple[str, ...], Option(metavar="USER")] = Field(
        (), description="a user (v2: account) that exists; default: every user exists"
    )
    numbers: Annotated[tuple[str, ...], Option(metavar="NUMBER")] = Field(
        (), description="a number that messages can be sent from; default: every number"
    )
    application_ids: Annotated[tuple[str, ...], Option(metavar="ID")] = Field(
        (), description="a v2 application that exists; default: every application exists"
    )
    remote_clients: bool = Field(
        False, description="serve other machines too; the paths under /sandbox/ need no credentials"
    )

    outbound_url: Url | None = Field(None, description="the callback URL for outbound v2 messages")
    inbound_url: Url | None = Field(
        None, description="the callback URL for inbound v2 messages; default: the outbound URL"
    )
    callback_credentials: Annotated[Credentials | None, Option(metavar="USER:PASSWORD")] = Field(
        None, description="credentials for the v2 callback URLs, for a receiver that asks for them"
    )
    callback_types: Annotated[frozenset[str], AfterValidator(_known_types), Option(metavar="TYPE")] = Field(
        CALLBACK_TYPES, description="a type of v2 status callbacks that is sent; default: all; none: no type"
    )
    callback_timeout: float = Field(10.0, gt=0, description="the timeout of a v2 callback in seconds")
    v1_inbound_url: Url | None = Field(
        None, description="the callback URL for inbound v1 messages; may contain user and password"
    )
    v1_inbound_fallback_url: Url | None = Field(
        None, description="the URL for inbound v1 messages if the v1 inbound URL fails"
    )
    v1_inbound_method: Literal["get", "post"] = Field("post", description="the method of inbound v1 callbacks")
    v1_inbound_timeout: int = Field(
        MAX_TIMEOUT_MS, ge=1, le=MAX_TIMEOUT_MS, description="the timeout of an inbound v1 callback in milliseconds"
    )
    remote_callbacks: bool = Field(False, description="send callbacks to other machines too, not only to this one")

    public_url: Annotated[str, AfterValidator(_public_url), Option(metavar="URL")] | None = Field(
        None, description="the start of message URLs; default: the URL of the request"
    )
    seed: int = Field(1, description="the random seed")
    speed: float = Field(1.0, gt=0, le=1e6, description="the divisor of every delay")
    messages_per_second: float = Field(1.0, ge=0, description="the v1 rate limit of each sending number; 0: no limit")
    rates: Annotated[Rates, Option("--rate", metavar="NAME=SHARE")] = Field(
        default_factory=Rates, description=f"the probability of a fault, 0 to 1. Names: {', '.join(RATE_NAMES)}"
    )
    mms_receipts: bool = Field(True, description="send carrier receipts for v2 MMS and group messages")
    sent_events: bool = Field(False, description="send message-sent of v2 too")
    connections: int = Field(20, ge=1, le=1000, description="the limit of callbacks in flight")
    max_messages: int = Field(20_000, ge=1, description="the limit of stored messages; the oldest are evicted")
    max_posts: int = Field(10_000, ge=1, description="the limit of recorded callbacks; the oldest are evicted")
