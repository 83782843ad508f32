"""Alerts: the rules, what the evaluation of a rule found, and the life of an alert.

A rule is evaluated every few seconds. Each value of its dimension `by` is a group, which has an alert of its own. An
alert is pending until its condition has held for the time `holds_for`, then it fires, and it is resolved once its
condition has been clear for `CLEAR_FOR`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

CLEAR_FOR: Final = timedelta(minutes=5)
"""An alert is resolved after its condition has been clear for this long."""
CLEAR_BELOW: Final = 0.8
"""A condition is clear below this share of the threshold; between the two an open alert stays open."""
MAX_GROUPS: Final = 20
"""A rule has at most this many open alerts; the groups beyond it share one alert."""
OTHER_GROUPS: Final = "(others)"
"""The group of the alert that the groups beyond `MAX_GROUPS` share."""
MAX_MESSAGES: Final = 10
"""An alert names at most this many messages."""


class RuleType(StrEnum):
    """What a rule looks at."""

    FAILURE_RATE = "failure-rate"
    CODE_SPIKE = "code-spike"
    SLOW_DELIVERY = "slow-delivery"
    RECEIPTS_STOPPED = "receipts-stopped"
    AWAITING_RECEIPT = "awaiting-receipt"
    CONTRADICTIONS = "contradictions"
    FORGED_TAGS = "forged-tags"
    QUARANTINE = "quarantine"
    FALLBACK_USED = "fallback-used"
    WRONG_CREDENTIALS = "wrong-credentials"
    PROCESSOR_BEHIND = "processor-behind"
    SINK_DOWN = "sink-down"
    SINK_BEHIND = "sink-behind"
    DEAD_LETTERS = "dead-letters"
    STORAGE = "storage"
    EXTERNAL = "external"
    """Not evaluated here: another program posts the alert in Alertmanager's format."""


class Severity(StrEnum):
    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule of the settings, with the defaults of its type filled in.

    `name` is unique. `above` is the threshold: a share from 0 to 1 or a number, whatever the type counts. Below a
    volume of `minimum` nothing is concluded. `where` has the allowed values by dimension; `by` is the dimension that
    makes the groups. Dimensions have the names of the JSON fields (`carrierName`, `from`). `holds_for` is the setting
    `for`. `to` are names of sinks and targets for people; empty: every sink that asks for alert events.
    """

    type: RuleType
    name: str
    window: timedelta
    above: float
    minimum: int = 1
    by: str | None = None
    where: Mapping[str, frozenset[str]] = field(default_factory=dict)
    holds_for: timedelta = timedelta(0)
    longer_than: timedelta | None = None
    codes: frozenset[int] = frozenset()
    severity: Severity = Severity.WARNING
    to: tuple[str, ...] = ()


class Condition(StrEnum):
    """What an evaluation says about a group."""

    BREACHED = "breached"
    """The value is above the threshold."""
    NEAR = "near"
    """Not above the threshold, and not clear either: an open alert stays open, a new one does not begin."""
    CLEAR = "clear"
    UNKNOWN = "unknown"
    """Too little is known: not enough volume, or nobody was watching."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The numbers of an alert: the value and the threshold, how much was looked at, and the value before."""

    value: float
    threshold: float
    volume: int | None = None
    before: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the evaluation of a rule found for one group; `summary` is a sentence for people."""

    group: str | None
    condition: Condition
    summary: str
    evidence: Evidence


class AlertStatus(StrEnum):
    PENDING = "pending"
    """The condition does not hold for long enough yet; people and programs do not see the alert."""
    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alert. `began_at` is when its condition began to hold, `clear_since` since when it does not."""

    id: str
    rule: RuleType
    name: str
    severity: Severity
    status: AlertStatus
    group: str | None
    summary: str
    evidence: Evidence
    to: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    began_at: datetime
    clear_since: datetime | None = None
    fired_at: datetime | None = None
    updated_at: datetime
    resolved_at: datetime | None = None
    acknowledged_at: datetime | None = None
    muted_until: datetime | None = None

    @property
    def key(self) -> tuple[str, str | None]:
        """The name of the rule and the group; at most one alert of a key is pending or firing."""
        return self.name, self.group


class Transition(StrEnum):
    """What a change of an alert means to those who hear of it."""

    STARTED = "started"
    """Pending: nobody hears of it."""
    FORGOTTEN = "forgotten"
    """It was pending and its condition is clear: it is removed."""
    FIRED = "fired"
    UPDATED = "updated"
    """Still firing, with newer evidence: the row changes, nobody hears of it."""
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertChange:
    """A change of an alert that an evaluation has brought."""

    transition: Transition
    alert: Alert


Findings = Mapping[str, Sequence[Finding]]
"""The findings of an evaluation by the name of the rule."""
