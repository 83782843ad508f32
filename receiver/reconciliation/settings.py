"""The settings of reconciliation: the accounts whose APIs may be queried, and how often."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, IPvAnyNetwork, SecretStr, model_validator

from receiver.domain.events import Api
from receiver.domain.reconciliation import ReconciliationPolicy

_V1_URL: Final = "https://api.catapult.inetwork.com/v1"
_V2_URL: Final = "https://messaging.bandwidth.com/api/v2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account of an API: its id in the paths, the `user:password` of its requests, and the URL of the API."""

    api: Api
    id: str
    credentials: SecretStr
    url: str


# A name or an address; a percent sign would begin the zone of an IPv6 address.
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")


def _checked_url(url: str) -> str:
    if any(not "!" <= one <= "~" for one in url):
        raise ValueError("must be without spaces and of printable ASCII characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not _HOST.fullmatch(parts.hostname):
        raise ValueError("must begin with https:// and a host")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("must be without user, password and query")
    if port == 0:
        raise ValueError("has a port that does not exist")
    if parts.scheme == "http" and not _is_near(parts.hostname):
        raise ValueError("must begin with https://: the credentials would be sent unencrypted")
    return url.rstrip("/")


def _is_near(host: str) -> bool:
    """Whether a host is this machine, or a name without a dot: a sandbox in the next container, for example."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return "." not in host


def _checked_pair(pair: SecretStr) -> SecretStr:
    user, _, password = pair.get_secret_value().partition(":")
    if not user or not password:
        raise ValueError('must be "user:password" (v1: "token:secret")')
    return pair


Url = Annotated[str, AfterValidator(_checked_url)]
Pair = Annotated[SecretStr, AfterValidator(_checked_pair)]
AccountId = Annotated[str, Field(pattern=r"^[!-~]{1,100}$")]


class Reconciliation(BaseModel):
    """The accounts at which messages without a final event are looked up, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    v1_user_id: AccountId | None = Field(None, description="The user id of v1, `u-…`. Without it v1 is not queried.")
    v1_credentials: Pair | None = Field(None, description='`"token:secret"` of v1\'s API.')
    v1_url: Url = Field(_V1_URL, description="The beginning of v1's URLs, for example that of a sandbox.")
    v2_account_id: AccountId | None = Field(None, description="The account id of v2. Without it v2 is not queried.")
    v2_credentials: Pair | None = Field(None, description='`"user:password"` of v2\'s API.')
    v2_url: Url = Field(_V2_URL, description="The beginning of v2's URLs, for example that of a sandbox.")
    after: int = Field(
        10_800,
        ge=1,
        le=30 * 86_400,
        description="Seconds without a final event after which a message is looked up. Bandwidth itself waits up to "
        "two hours for the receipt of a carrier.",
    )
    give_up_after: int = Field(
        3 * 86_400,
        ge=2,
        le=365 * 86_400,
        description="Seconds after which a message is no longer looked up. v2 finds messages of the last 14 days.",
    )
    requests_per_second: float = Field(1.0, gt=0, le=100, description="The largest rate of requests to one API.")
    requests_per_day: int = Field(
        10_000, ge=1, description="The largest number of requests to one API in a day (UTC): its budget."
    )
    egress_allow: tuple[IPvAnyNetwork, ...] = Field(
        (), description="Networks that may be queried besides public addresses, for example that of a sandbox."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name, id_, credentials in (
            ("v1_user_id", self.v1_user_id, self.v1_credentials),
            ("v2_account_id", self.v2_account_id, self.v2_credentials),
        ):
            if (id_ is None) != (credentials is None):
                pair = f"{name[:2]}_credentials"
                raise ValueError(f"{name} and {pair} belong together: {name if id_ is None else pair} is missing")
        if self.give_up_after <= self.after:
            raise ValueError("give_up_after must be more than after")
        return self

    @property
    def accounts(self) -> Mapping[Api, Account]:
        """The accounts whose APIs are queried, by API; none: reconciliation is off."""
        found = (
            (Api.V1, self.v1_user_id, self.v1_credentials, self.v1_url),
            (Api.V2, self.v2_account_id, self.v2_credentials, self.v2_url),
        )
        return {
            api: Account(api=api, id=id_, credentials=credentials, url=url)
            for api, id_, credentials, url in found
            if id_ is not None and credentials is not None
        }

    @property
    def policy(self) -> ReconciliationPolicy:
        return ReconciliationPolicy(
            after=timedelta(seconds=self.after),
            give_up_after=timedelta(seconds=self.give_up_after),
            per_second=self.requests_per_second,
            per_day=self.requests_per_day,
        )
