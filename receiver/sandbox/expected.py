"""What the other side must know of each delivery, from what it was told and confirmed to have heard.

Worked out from the sandbox's own steps, without the receiver's reading or merging of callbacks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from receiver.domain.events import Api, Direction
from receiver.sandbox.messages import Message
from receiver.sandbox.timeline import Kind, Step

# in rising rank, as the receiver promises it
_RANKS: Final = ("unknown", "sending", "sent", "unconfirmed", "delivered", "failed", "read", "received")
_STATUSES: Final = {
    Kind.SENDING: "sending",
    Kind.SENT: "sent",
    Kind.WAITING: "sent",
    Kind.DELIVERED: "delivered",
    Kind.READ: "read",
    Kind.RECEIVED: "received",
}
_UNCONFIRMED: Final = {Api.V1: frozenset({902, 999}), Api.V2: frozenset(range(9000, 10_000))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What the other side must say of one delivery.

    `status` is None where nothing of the message got through. `certain` is false where a callback ended without an
    answer: the other side may know more than it confirmed.
    """

    api: Api
    message_id: str
    recipient: str
    direction: Direction
    status: str | None
    code: int | None
    contradicted: bool
    certain: bool


def truths(message: Message) -> Iterator[Truth]:
    """What the other side must know of each delivery of a message."""
    known = [step for step in message.confirmed if step.kind is not Kind.UNFAMILIAR]
    doubtful = [step for step in message.unsure - message.confirmed if step.kind is not Kind.UNFAMILIAR]
    inbound = message.direction is Direction.IN
    for recipient in message.recipients:
        own = [step for step in known if inbound or step.recipient == recipient]
        status, code = _winner(message.api, own)
        seen = {_status(message.api, step) for step in own}
        yield Truth(
            api=message.api,
            message_id=message.id,
            recipient=recipient,
            direction=message.direction,
            status=status if known else None,
            code=code,
            contradicted="failed" in seen and not seen.isdisjoint({"delivered", "read"}),
            certain=not doubtful,
        )


def _winner(api: Api, steps: Iterable[Step]) -> tuple[str, int | None]:
    """The status of the highest rank, and the code that came with it."""
    told = [(_status(api, step), step.code) for step in steps]
    return max(told, key=lambda each: _RANKS.index(each[0]), default=(_RANKS[0], None))


def _status(api: Api, step: Step) -> str:
    if step.kind is Kind.FAILED:
        return "unconfirmed" if step.code in _UNCONFIRMED[api] else "failed"
    return _STATUSES[step.kind]
