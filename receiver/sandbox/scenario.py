"""The scenario of a message: what happens to it, and which callbacks report it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from receiver.domain.events import Api, Failure
from receiver.providers.bandwidth_codes import failure_side


class Kind(StrEnum):
    """What an event reports; `unknown_type` is an event whose type is in no document of Bandwidth's."""

    SENDING = "sending"
    SENT = "sent"
    WAITING = "waiting"
    DELIVERED = "delivered"
    FAILED = "failed"
    READ = "read"
    RECEIVED = "received"
    UNKNOWN_TYPE = "unknown_type"


FINAL: Final = frozenset({Kind.DELIVERED, Kind.FAILED, Kind.READ})


class Receipts(StrEnum):
    """Which delivery receipts a v1 message requests."""

    NONE = "none"
    ERROR = "error"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class FinalStatus:
    """How the message ends for one recipient: delivered, read, or failed with a code."""

    kind: Kind
    code: int | None = None


DELIVERED: Final = FinalStatus(Kind.DELIVERED)
# v1 has a code for success, v2 has none.
DELIVERED_CODES: Final[Mapping[Api, int | None]] = {Api.V1: 0, Api.V2: None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """The properties of an outbound message that its scenario depends on.

    `receipts` applies to v1 only. `mms_receipts` and `sent_events` select v2's optional events, as in
    `SandboxSettings`.
    """

    api: Api
    recipients: tuple[str, ...]
    is_mms: bool = False
    receipts: Receipts = Receipts.NONE
    mms_receipts: bool = True
    sent_events: bool = False

    @property
    def is_group(self) -> bool:
        return len(self.recipients) > 1

    @property
    def has_all_receipts(self) -> bool:
        """Whether both success and failure are reported."""
        return self.api is Api.V2 or self.receipts is Receipts.ALL


@dataclass(frozen=True, slots=True)
class Step:
    """One event about one recipient, `after` seconds after the message was created.

    A failure has no code if the v1 message did not request a receipt for it.
    """

    after: float
    kind: Kind
    recipient: str
    code: int | None = None


@dataclass(frozen=True, slots=True)
class PlannedCallback:
    """One callback: when it is due, in seconds after the message was created, and the events it contains."""

    after: float
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens to a message, and the callbacks that report it. Faults make the two differ."""

    steps: tuple[Step, ...]
    callbacks: tuple[PlannedCallback, ...]


def is_refused(api: Api, code: int | None) -> bool:
    """Whether a failure with this code happens before the message reaches the network."""
    return failure_side(api, code) is Failure.REFUSED
