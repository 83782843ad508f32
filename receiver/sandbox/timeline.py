"""What becomes of a message, as steps in time: the words that scripts, misbehaviours and callbacks share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from receiver.domain.events import Api, Failure
from receiver.providers.bandwidth_codes import failure_side


class Kind(StrEnum):
    """What one event says; `unfamiliar` is one that no document knows."""

    SENDING = "sending"
    SENT = "sent"
    WAITING = "waiting"
    DELIVERED = "delivered"
    FAILED = "failed"
    READ = "read"
    RECEIVED = "received"
    UNFAMILIAR = "unfamiliar"


FINAL: Final = frozenset({Kind.DELIVERED, Kind.FAILED, Kind.READ})


class Receipts(StrEnum):
    """Which receipts a v1 message asks for."""

    NONE = "none"
    ERROR = "error"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ends for one recipient: delivered, read, or failed with a code."""

    kind: Kind
    code: int | None = None


DELIVERED: Final = Outcome(Kind.DELIVERED)
# v1 has a code for success, v2 has none
DELIVERED_CODES: Final[Mapping[Api, int | None]] = {Api.V1: 0, Api.V2: None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """What a script must know of an outbound message. `receipts` is v1's alone.

    `mms_receipts` and `sent_events` say which of v2's optional events come; see `SandboxSettings`.
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
    def wants_receipts(self) -> bool:
        """Whether final events of every kind are due."""
        return self.api is Api.V2 or self.receipts is Receipts.ALL


@dataclass(frozen=True, slots=True)
class Step:
    """One event about one recipient, so many seconds after the message was made.

    A failure without a code is one that v1 was not asked a receipt for.
    """

    after: float
    kind: Kind
    recipient: str
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Post:
    """One callback: when it is due, in seconds after the message was made, and the events in it."""

    after: float
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """What becomes of a message, and what is told of it."""

    steps: tuple[Step, ...]
    posts: tuple[Post, ...]


def is_refusal(api: Api, code: int | None) -> bool:
    """Whether a failure with this code happened before the network."""
    return failure_side(api, code) is Failure.REFUSED


# what is planned after it still has a date
_LAST: Final = datetime(9998, 1, 1, tzinfo=UTC)


def _real() -> datetime:
    return datetime.now(UTC)


class Clock:
    """Tells the time."""

    def __init__(self, real: Callable[[], datetime] = _real) -> None:
        self._real = real
        self._ahead = timedelta()

    def now(self) -> datetime:
        return self._real() + self._ahead

    def advance(self, by: timedelta) -> None:
        """Moves the clock forward; raises ValueError for a step back, ValueError or OverflowError
        beyond the end of time."""
        if by < timedelta():
            raise ValueError("the clock goes forward only")
        if self._real() + self._ahead + by > _LAST:
            raise ValueError("time ends before that")
        self._ahead += by

    def reset(self) -> None:
        self._ahead = timedelta()
