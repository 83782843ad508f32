"""The interface of a sink: a model of its settings, and a class with one required method, `publish`.

    class PrintSink(Sink):
        def __init__(self, settings: SinkSettings) -> None:
            self.name = settings.name

        async def publish(self, batch: Sequence[Publication]) -> Sequence[Result]:
            print(self.name, batch[0].body)
            return [Published()]

Register it under a name in the entry point group `receiver.sinks`, or write `type = "module:PrintSink"`.
"""

import os
import re
from abc import abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Protocol

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from receiver.domain.cloudevents import EVENT_TYPES, Filter
from receiver.domain.events import Direction
from receiver.domain.publication import Publication, Published, Refused, Result, Retry, SinkDown
from receiver.domain.retry import MAX_AGE, SCHEDULE, RetryPolicy

__all__ = [
    "Duration",
    "Publication",
    "Published",
    "Refused",
    "Result",
    "Retry",
    "Secret",
    "Sink",
    "SinkDown",
    "SinkSettings",
]

_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*(ms|s|m|h|d|)", re.ASCII)
# Adding a duration to today must not overflow `datetime`, which ends with the year 9999.
_MAX_DURATION: Final = timedelta(days=36_500)


def _duration(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value
    parts = _DURATION.fullmatch(str(value).strip()) if isinstance(value, str | int | float) else None
    if parts is None:
        raise ValueError('must be a duration such as "15s", "2m" or "72h"')
    duration = timedelta(seconds=float(parts[1]) * _UNITS[parts[2]])
    if duration > _MAX_DURATION:
        raise ValueError(f"must not be longer than {_MAX_DURATION.days}d")
    return duration


def resolved(value: Any) -> Any:
    """Reads the secret from the environment or the file that the value names."""
    if not isinstance(value, str):
        return value
    if value.startswith("env:"):
        value = os.environ.get(name := value.removeprefix("env:"))
        if value is None:
            raise ValueError(f"there is no environment variable {name}")
    elif value.startswith("file:"):
        value = _content(Path(value.removeprefix("file:")))
    if not value:
        raise ValueError("must not be empty")
    return value


def _content(path: Path) -> str:
    try:
        return path.read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None


def _known(types: frozenset[str]) -> frozenset[str]:
    if unknown := sorted(types - EVENT_TYPES):
        raise ValueError(f"{unknown[0]} is not an event type; there are {', '.join(sorted(EVENT_TYPES))}")
    return types


def _start(value: Any) -> Any:
    if value in ("end", "beginning"):
        return value
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError('must be "end", "beginning" or a time with zone such as "2026-01-31T00:00:00Z"')
    return moment.astimezone(UTC)


Duration = Annotated[timedelta, BeforeValidator(_duration)]
"""A time span, written "15s", "2m", "72h" or as a number of seconds."""

Secret = Annotated[SecretStr, BeforeValidator(resolved)]
"""A text that is never shown; written in the settings as itself, as "env:NAME" or as "file:/path"."""


_Text = Annotated[str, Field(min_length=1)]
_Number = Annotated[str, Field(pattern=r"^\+?[0-9]+$"), AfterValidator(lambda number: number.removeprefix("+"))]


class SinkSettings(BaseModel):
    """The settings that every sink has. The model of a sink inherits from it and adds its own fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    type: str
    events: Annotated[frozenset[str], AfterValidator(_known)] = Field(
        frozenset(), description="none named: all events of messages, and no alerts"
    )
    changes_only: bool = Field(False, description="only events that moved a status")
    direction: Direction | None = Field(None, description="none: both")
    applications: frozenset[_Text] = Field(frozenset(), description="ids; none named: all")
    number_prefixes: tuple[_Number, ...] = Field((), description="of sender or recipient; none named: all")
    tag_prefixes: tuple[_Text, ...] = Field((), description="none named: all, those without tag too")
    start: Annotated[Literal["end", "beginning"] | datetime, BeforeValidator(_start)] = Field(
        "end", description="where in the log a new sink begins"
    )
    # A stop waits for the publishes under way: the timeout plus 5.5 s at most.
    timeout: Duration = Field(timedelta(seconds=15), gt=timedelta(0), le=timedelta(seconds=18))
    max_age: Duration = Field(MAX_AGE, gt=timedelta(0))
    schedule: tuple[Annotated[Duration, Field(ge=timedelta(seconds=1))], ...] = Field(SCHEDULE, min_length=1)
    on_refused: Literal["continue", "park"] = Field(
        "continue", description="whether later events of a message are published after one became a dead letter"
    )
    on_expire: Literal["keep", "dead_letter"] = Field(
        "keep", description="what happens to events older than max_age while the sink is down"
    )
    coalesce: Literal["latest"] | None = Field(
        None, description='"latest": of the waiting events of a delivery, publish only the newest'
    )

    @property
    def filter(self) -> Filter:
        return Filter(
            sink=self.name,
            types=self.events,
            changes_only=self.changes_only,
            direction=self.direction,
            applications=self.applications,
            number_prefixes=self.number_prefixes,
            tag_prefixes=self.tag_prefixes,
        )

    @property
    def policy(self) -> RetryPolicy:
        return RetryPolicy(schedule=self.schedule, max_age=self.max_age, holds=self.on_refused == "park")


class Sink(Protocol):
    """A destination of events.

    `publish` gets at most `max_batch` events, none with a body of more than `max_event_bytes` bytes, and returns one
    result per event, in their order. Up to `concurrency` calls run at once, never two with the same ordering key.

    With `keeps_order = True` one call runs at a time, and a batch may contain several events of an ordering key. Once
    an event of an ordering key fails, the sink must not publish later events of that key from the batch.

    An exception counts as `Retry` if `check` then returns None, else as `SinkDown`. `keep_attempts` says whether
    successful attempts are recorded too. `start` is called when this process acquires the lease of the sink and `stop`
    when it releases the lease, perhaps several times.
    """

    Settings: ClassVar[type[SinkSettings]] = SinkSettings
    max_batch: int = 1
    max_event_bytes: int = 1024 * 1024
    concurrency: int = 1
    keeps_order: bool = False
    keep_attempts: Literal["all", "failures"] = "failures"

    async def start(self) -> None:
        """Prepares the sink. May raise if the destination cannot be reached; it is then called again later."""
        return

    @abstractmethod
    async def publish(self, batch: Sequence[Publication]) -> Sequence[Result]:
        """Publishes the events and returns one result per event, in their order."""

    async def check(self) -> str | None:
        """Returns why the destination cannot be reached now, in a few words without message text; None if it can."""
        return None

    async def probe(self) -> str | None:
        """As `check`, when the sink has started and while it is idle, where the destination would mistake a `check`."""
        return await self.check()

    async def stop(self) -> None:
        """Closes every connection and file and ends every task. May be called twice, and without a `start` before."""
        return
