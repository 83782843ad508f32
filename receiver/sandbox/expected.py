"""The delivery statuses that a correct receiver shows, computed from the callbacks that were answered 2xx.

The computation uses the sandbox's own steps and none of the receiver's parsing or merging, so that a test can compare
the two.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from receiver.domain.events import Api, Direction
from receiver.sandbox.messages import SandboxMessage
from receiver.sandbox.scenario import Kind, Step

# In rising rank, as the receiver documents them.
_RANKS: Final = ("unknown", "sending", "sent", "unconfirmed", "delivered", "failed", "read", "received")
_STATUSES: Final = {
    Kind.SENDING: "sending",
    Kind.SENT: "sent",
    Kind.WAITING: "sent",
    Kind.DELIVERED: "delivered",
    Kind.READ: "read",
    Kind.RECEIVED: "received",
}
_UNCONFIRMED_CODES: Final = {Api.V1: frozenset({902, 999}), Api.V2: frozenset(range(9000, 10_000))}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedStatus:
    """The status that a correct receiver shows for one delivery.

    `status` is None if no callback of the message was answered 2xx. `certain` is false if a callback ended without an
    answer: the receiver may have stored it all the same.
    """

    api: Api
    message_id: str
    recipient: str
    direction: Direction
    status: str | None
    code: int | None
    contradicted: bool
    certain: bool


def expected_statuses(message: SandboxMessage) -> Iterator[ExpectedStatus]:
    """Yields the expected status of each delivery of a message."""
    confirmed = [step for step in message.confirmed if step.kind is not Kind.UNKNOWN_TYPE]
    uncertain = [step for step in message.unanswered - message.confirmed if step.kind is not Kind.UNKNOWN_TYPE]
    inbound = message.direction is Direction.IN
    for recipient in message.recipients:
        steps = [step for step in confirmed if inbound or step.recipient == recipient]
        status, code = _winner(message.api, steps)
        statuses = {_status(message.api, step) for step in steps}
        yield ExpectedStatus(
            api=message.api,
            message_id=message.id,
            recipient=recipient,
            direction=message.direction,
            status=status if confirmed else None,
            code=code,
            contradicted="failed" in statuses and not statuses.isdisjoint({"delivered", "read"}),
            certain=not uncertain,
        )


def _winner(api: Api, steps: Iterable[Step]) -> tuple[str, int | None]:
    """Returns the status of the highest rank with its code."""
    statuses = [(_status(api, step), step.code) for step in steps]
    return max(statuses, key=lambda status: _RANKS.index(status[0]), default=(_RANKS[0], None))


def _status(api: Api, step: Step) -> str:
    if step.kind is Kind.FAILED:
        return "unconfirmed" if step.code in _UNCONFIRMED_CODES[api] else "failed"
    return _STATUSES[step.kind]
