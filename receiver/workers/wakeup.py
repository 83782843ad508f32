"""A signal within one process: the event log has grown."""

from collections.abc import Callable


class Wakeup:
    """Calls everyone who listens when `set` is called, which intake does after each commit."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def set(self) -> None:
        for listener in self._listeners:
            listener()
