"""v1's words for how far a message got, `state` and `deliveryState`, which are shown for messages of every provider.

Events of v1 have these words. For all other events they are derived from the status. The domain gets this module as its
`StateRules`.
"""

from collections.abc import Mapping
from typing import Final

from receiver.domain.delivery import Delivery, States
from receiver.domain.events import Failure, Status

_BY_STATUS: Final[Mapping[str, States]] = {
    "unknown": (None, None),
    "queued": ("queued", None),
    "sending": ("sending", None),
    "sent": ("sent", None),
    "unconfirmed": ("sent", "waiting"),
    "delivered": ("sent", "delivered"),
    "failed": ("sent", "not-delivered"),
    "read": ("sent", "delivered"),
    "received": ("received", None),
    # messages whose recipients differ
    "pending": ("sent", "waiting"),
    "partial": ("sent", None),
}

# The delivery states that messages of a status can have: a delivery state is derived from the status, or comes from v1
# events with this status.
DELIVERY_STATES: Final[Mapping[str, frozenset[str]]] = {
    "unknown": frozenset(),
    "queued": frozenset({"waiting"}),
    "sending": frozenset({"waiting"}),
    "sent": frozenset({"waiting"}),
    "unconfirmed": frozenset({"waiting", "not-delivered"}),
    "delivered": frozenset({"delivered"}),
    "failed": frozenset({"waiting", "not-delivered"}),
    "read": frozenset({"delivered"}),
    "received": frozenset({"waiting", "delivered", "not-delivered"}),
    "pending": frozenset({"waiting"}),
    "partial": frozenset(),
}

# Python 3.11 takes 0.15 us to look up a member of an enumeration.
_SENT: Final = Status.SENT
_FAILED: Final = Status.FAILED
_REFUSED: Final = Failure.REFUSED


def of_delivery(delivery: Delivery) -> States:
    """`state` and `deliveryState` of a delivery: those of its events if they have any, else derived from the status."""
    status = delivery.status
    state, delivery_state = _BY_STATUS[status]
    if status is _SENT and delivery.awaits_receipt:
        delivery_state = "waiting"
    elif status is _FAILED and (event := delivery.coded or delivery.winner) and event.failure is _REFUSED:
        state = "error"
    if delivery.stated:
        state = delivery.stated.state
        # An event with a state is v1's, whose `deliveryState` is a receipt's: without a receipt nothing is derived.
        delivery_state = delivery_state if status is not _FAILED else None
    if delivery.receipted:
        delivery_state = delivery.receipted.delivery_state
    return state, delivery_state


def of_status(status: str) -> States:
    """`state` and `deliveryState` of a status alone, for a message whose recipients do not agree."""
    return _BY_STATUS[status]
