"""What a sink is: a typed table of settings, and a class with one method that matters.

    class PrintSink(Sink):
        def __init__(self, settings: SinkSettings) -> None:
            self.name = settings.name

        async def publish(self, batch: Sequence[Publication]) -> Sequence[Result]:
            print(self.name, batch[0].body)
            return [Published()]

Give it a name in the entry point group `receiver.sinks`, or write `type = "module:PrintSink"`.
"""

import os
import re
from abc import abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Protocol

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from receiver.domain.events import Direction
from receiver.domain.filters import EVENT_TYPES, Filter
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
# a calendar has an end: a century later is still in it
_LONGEST: Final = timedelta(days=36_500)


def _duration(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value
    spelled = _DURATION.fullmatch(str(value).strip()) if isinstance(value, str | int | float) else None
    if spelled is None:
        raise ValueError('must be a duration such as "15s", "2m" or "72h"')
    span = timedelta(seconds=float(spelled[1]) * _UNITS[spelled[2]])
    if span > _LONGEST:
        raise ValueError(f"must not be longer than {_LONGEST.days}d")
    return span


def _resolved(value: Any) -> Any:
    """The secret itself where the settings say where it is kept."""
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

Secret = Annotated[SecretStr, BeforeValidator(_resolved)]
"""A text never shown, written as itself, as "env:NAME" or as "file:/path"."""


_Text = Annotated[str, Field(min_length=1)]
_Number = Annotated[str, Field(pattern=r"^\+?[0-9]+$"), AfterValidator(lambda number: number.removeprefix("+"))]


class SinkSettings(BaseModel):
    """The fields every sink has; a sink's own model adds the rest."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    type: str
    events: Annotated[frozenset[str], AfterValidator(_known)] = Field(frozenset(), description="none named: all")
    changes_only: bool = Field(False, description="only events that moved a status")
    direction: Direction | None = Field(None, description="none: both")
    applications: frozenset[_Text] = Field(frozenset(), description="ids; none named: all")
    number_prefixes: tuple[_Number, ...] = Field((), description="of sender or recipient; none named: all")
    tag_prefixes: tuple[_Text, ...] = Field((), description="none named: all, those without tag too")
    start: Annotated[Literal["end", "beginning"] | datetime, BeforeValidator(_start)] = Field(
        "end", description="where in the log a new sink begins"
    )
    # below a third of the lease, so that nothing is under way any more when the lease ends
    timeout: Duration = Field(timedelta(seconds=15), gt=timedelta(0), le=timedelta(seconds=18))
    max_age: Duration = Field(MAX_AGE, gt=timedelta(0))
    schedule: tuple[Annotated[Duration, Field(ge=timedelta(seconds=1))], ...] = Field(SCHEDULE, min_length=1)
    on_refused: Literal["continue", "park"] = Field(
        "continue", description="whether later events of a message go on after one that is given up"
    )
    on_expire: Literal["keep", "dead_letter"] = Field(
        "keep", description="what becomes of events past their age while the sink is down"
    )
    coalesce: Literal["latest"] | None = Field(
        None, description='"latest": of the events of a delivery that wait, only the newest'
    )

    @property
    def filter(self) -> Filter:
        return Filter(
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
    """A place events go to.

    `publish` gets at most `max_batch` events, none larger than `max_event_bytes`, and returns one result for each, in
    their order. It is called up to `concurrency` times at once, never for two events of one lane. Where `keeps_order`
    is true it is called once at a time, and a batch may hold several events of a lane; the sink then takes none after
    an earlier one of its lane that it did not take. What it raises counts as a retry if `check` finds nothing wrong,
    else as the sink being down. `keep_attempts` says whether successes are recorded too. A sink is started when this
    process gets the right to work for it and stopped when it gives that up, perhaps several times.
    """

    Settings: ClassVar[type[SinkSettings]] = SinkSettings
    max_batch: int = 1
    max_event_bytes: int = 1024 * 1024
    concurrency: int = 1
    keeps_order: bool = False
    keep_attempts: Literal["all", "failures"] = "failures"

    async def start(self) -> None:
        """Gets ready; may raise if the sink cannot be reached, and is then called again later."""
        return

    @abstractmethod
    async def publish(self, batch: Sequence[Publication]) -> Sequence[Result]:
        """Gives the events to the sink and says of each what came of it."""

    async def check(self) -> str | None:
        """Why the sink cannot be reached now; None if it can."""
        return None

    async def stop(self) -> None:
        """Lets go of everything."""
        return
