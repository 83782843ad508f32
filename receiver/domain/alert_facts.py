"""What the rules of alerts are evaluated on: a snapshot of counts and states, gathered once for all rules."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from receiver.domain.alerts import Rule, RuleType
from receiver.domain.vocabulary import Word

BEFORE: Final = timedelta(hours=24)
"""Rules compare with so much time before their window."""


class Measure(Word):
    """What is counted of the events of the log; an event may count for several."""

    DELIVERED = "delivered"
    """A delivery became delivered, or read without having been delivered before."""
    FAILED = "failed"
    UNCONFIRMED = "unconfirmed"
    RECEIPT = "receipt"
    """A provider reported something about an outbound message, by itself: our own look-ups are no receipts."""
    INBOUND = "inbound"
    CONTRADICTED = "contradicted"
    FORGED = "forged"
    MISSING = "missing"
    UNSIGNED = "unsigned"
    FALLBACK = "fallback"


FINAL_MEASURES: Final = (Measure.DELIVERED, Measure.FAILED, Measure.UNCONFIRMED)


class Cell(NamedTuple):
    """How many events of a time have these values. Texts are empty where there is none, `code` is then None.

    `seconds` is about the time from the creation of the message to its delivery; None: it is not known.
    """

    measure: str
    api: str
    direction: str
    application_id: str
    carrier_name: str
    sender: str
    code: int | None
    seconds: float | None
    events: int


class Span(NamedTuple):
    """A window that ends now; `by_sender`: the cells of senders, which have no times to delivery, instead of all."""

    window: timedelta
    by_sender: bool


class Waiting(NamedTuple):
    """How many messages of an API, an application and a sender wait for a final event for too long."""

    api: str
    application_id: str
    sender: str
    messages: int


class Receipts(NamedTuple):
    """Whose history of receipts it is."""

    measure: str
    api: str
    direction: str
    application_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorFacts:
    """The processor: how many callbacks wait, the oldest for how many seconds, since when it is stuck and why."""

    pending: int
    oldest_seconds: float
    failing_since: datetime | None = None
    error: str | None = None
    is_held: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkFacts:
    """A sink of the settings. `oldest_seconds` is the age of its oldest waiting event, None: none waits."""

    name: str
    paused: bool = False
    down_since: datetime | None = None
    last_error: str | None = None
    oldest_seconds: float | None = None
    waiting: int = 0
    waiting_at_least: bool = False
    """More wait than were counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageFacts:
    """The space of an embedded database; the server's own is not known."""

    disk_bytes: int
    free_bytes: int
    wal_bytes: int


def _number(_: str, code: int) -> str:
    return str(code)


def _no_category(_: str, __: int) -> str:
    return "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that the rules look at; None: it could not be read.

    `cells` are the counts within a window, `before` those of the 24 hours before it. `around` are those of the hours
    that a window has a part of: a group whose last event came in those hours, but before the window, is in neither of
    the others. `partial` are the windows whose cells of senders leave out final events of other senders. `history` has
    receipts by hour since 1970 for the hours that `reference_hours` names; `history_since` is the first hour that was
    counted as a whole. `waiting` is by the name of the rule; `quarantined`, `refused` and `dead_letters` are by window,
    then by reason or sink. `unreadable` has the reasons why parts could not be read. `code_name` and `category` know
    the codes of an API.
    """

    watching_since: datetime | None = None
    cells: Mapping[Span, Sequence[Cell]] = field(default_factory=dict)
    before: Mapping[Span, Sequence[Cell]] = field(default_factory=dict)
    around: Mapping[Span, Sequence[Cell]] = field(default_factory=dict)
    partial: frozenset[Span] = frozenset()
    history: Mapping[Receipts, Mapping[int, int]] = field(default_factory=dict)
    history_since: int | None = None
    waiting: Mapping[str, Sequence[Waiting]] = field(default_factory=dict)
    quarantined: Mapping[timedelta, Mapping[str, int]] = field(default_factory=dict)
    refused: Mapping[timedelta, Mapping[str, int]] = field(default_factory=dict)
    dead_letters: Mapping[timedelta, Mapping[str, int]] = field(default_factory=dict)
    last_callbacks: Mapping[str, datetime] = field(default_factory=dict)
    processor: ProcessorFacts | None = None
    sinks: Sequence[SinkFacts] | None = None
    storage: StorageFacts | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)
    code_name: Callable[[str, int], str] = _number
    category: Callable[[str, int], str] = _no_category


_OF_EVENTS: Final = (
    RuleType.FAILURE_RATE,
    RuleType.CODE_SPIKE,
    RuleType.SLOW_DELIVERY,
    RuleType.RECEIPTS_STOPPED,
    RuleType.AWAITING_RECEIPT,
    RuleType.CONTRADICTIONS,
    RuleType.FORGED_TAGS,
    RuleType.FALLBACK_USED,
)


def span_of(rule: Rule) -> Span | None:
    """The cells that a rule looks at; None: it does not count events."""
    if rule.type not in _OF_EVENTS:
        return None
    return Span(rule.window, rule.by == "from" or "from" in rule.where)


# --- history ---

WEEKS: Final = 4
DAYS: Final = 6
_WEEK_HOURS: Final = 7 * 24
_EPOCH_WEEKDAY: Final = 3
HISTORY_HOURS: Final = 5 * _WEEK_HOURS


def hour_of(moment: datetime) -> int:
    """The hour of a time, counted from 1970 in UTC."""
    return int(moment.timestamp() // 3600)


def window_hours(now: datetime, window: timedelta) -> range:
    """The hours that a window has a part of."""
    return range(hour_of(now - window), hour_of(now) + 1)


def weekly_shifts() -> list[int]:
    """How many hours before the same hours of the weekday were."""
    return [week * _WEEK_HOURS for week in range(1, WEEKS + 1)]


def daily_shifts(now: datetime) -> list[int]:
    """How many hours before the same hours of neighbouring days were: of working days, or of the weekend."""
    today = hour_of(now) // 24
    days = range(1, DAYS + 1)
    return [day * 24 for day in days if _is_weekend(today - day) == _is_weekend(today)]


def _is_weekend(day: int) -> bool:
    return (day + _EPOCH_WEEKDAY) % 7 >= 5


def compared_hours(now: datetime, window: timedelta) -> range:
    """The hours whose like of weeks and days before tell how many receipts to expect in a window.

    They are those that the window has a part of, and up to two hours beside them if the window is shorter than that:
    after a change of summer time, traffic begins and ends an hour earlier or later than in the weeks before, at any
    minute of that hour.
    """
    hours = window_hours(now, window)
    return range(min(hours[0], hours[-1] - _BESIDE), max(hours[-1], hours[0] + _BESIDE) + 1)


_BESIDE: Final = 2


def reference_hours(now: datetime, window: timedelta) -> list[int]:
    """The hours before that tell how many receipts to expect in a window."""
    shifts = {*weekly_shifts(), *daily_shifts(now)}
    return sorted({hour - shift for hour in compared_hours(now, window) for shift in shifts})
