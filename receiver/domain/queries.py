"""How far the publication of an event has got."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

PublicationState = Literal["published", "dead_letter", "retry", "parked", "waiting", "passed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicationView:
    """How far the publication of one event of a message to one sink has got.

    `waiting`: the cursor of the sink has not passed the event. `passed`: it has, and nothing else is stored, so the
    event was published or left out by the filter. `last_at` is when the last stored attempt ended, `due_at` when a
    retry is due. `is_held`: later events of the message wait until an operator decides about a dead letter.
    """

    sink: str
    event_id: str
    status: str
    recipient: str | None
    state: PublicationState
    attempts: int
    last_at: datetime | None
    due_at: datetime | None = None
    reason: str | None = None
    dead_letter_id: int | None = None
    is_held: bool = False
    is_paused: bool = False
    is_down: bool = False
