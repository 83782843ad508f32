"""What the dispatchers of a process share."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from receiver.storage.database import Database
from receiver.workers.observer import DispatchObserver


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What every dispatcher works with. `chance` gives a random fraction, `steady` is a clock that never jumps.

    `holder` names the worker in its leases; None: each dispatcher has a name of its own.
    """

    database: Database
    observer: DispatchObserver
    clock: Callable[[], datetime]
    steady: Callable[[], float]
    chance: Callable[[], float]
    lease_seconds: float
    poll_seconds: float
    holder: str | None = None
