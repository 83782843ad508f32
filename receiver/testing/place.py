"""Where a sink under test publishes to."""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from receiver.domain.publication import Publication

Action = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a sink under test publishes to, and what can be done to it; every function may be async.

    `settings` is the sink's table with its `type` and its own fields, `name` left out. `arrived` gives the ids of the
    events that have arrived since the place was made, in the order of their arrival, every copy. It is not called
    while the place is down or frozen. What is left out costs the tests that need it:

    `down` and `up`: nobody can reach the place; it is back where it was, with what it had.
    `freeze` and `thaw`: it can be reached, and does not answer; it answers again.
    `refuse`: from now on it takes every event but this one, whether the sink calls that `Refused` or `Retry`.
    `publication.id` and `publication.event` say which.
    """

    settings: Mapping[str, Any]
    arrived: Callable[[], Iterable[str] | Awaitable[Iterable[str]]]
    down: Action | None = None
    up: Action | None = None
    freeze: Action | None = None
    thaw: Action | None = None
    refuse: Callable[[Publication], Any] | None = None

    def __post_init__(self) -> None:
        for one, other in (("down", "up"), ("freeze", "thaw")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise TypeError(f"a place has both `{one}` and `{other}`, or neither")

    async def ids(self) -> list[str]:
        """The ids that have arrived."""
        return list(await _done(self.arrived()))

    async def do(self, action: Callable[..., Any] | None, *told: Any) -> None:
        assert action is not None  # noqa: S101
        await _done(action(*told))


async def _done(given: Any) -> Any:
    return await given if inspect.isawaitable(given) else given
