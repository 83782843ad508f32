"""Alerts: the rules, what the evaluation of a rule found, and the life of an alert.

A rule is evaluated every few seconds. Each value of its dimension `by` is a group, which has an alert of its own. An
alert is pending until its condition has held for the time `holds_for`, then it fires, and it is resolved once its
condition has been clear for `CLEAR_FOR`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

CLEAR_FOR: Final = timedelta(minutes=5)
"""An alert is resolved after its condition has been clear for this long."""
CLEAR_BELOW: Final = 0.8
"""A condition is clear below this share of the threshold; between the two an open alert stays open."""
UNKNOWN_FOR: Final = timedelta(hours=1)
"""An alert is resolved after nothing has been known about its group for this long, or for its window if longer."""
MAX_GROUPS: Final = 20
"""A rule has at most this many open alerts of groups; the groups beyond it share one alert more."""
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


AlertKey = tuple[RuleType, str, str | None]
"""The type and the name of a rule, and a group: another program may name its alert as a rule here is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alert.

    `began_at` is when its condition began to hold, `clear_since` since when it does not, `unknown_since` since when
    too little is known to tell. `announced_at` is when others heard that it fires: not at once if it was muted.
    `ends_at` is the end that the program which posted it has named.
    """

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
    unknown_since: datetime | None = None
    fired_at: datetime | None = None
    updated_at: datetime
    resolved_at: datetime | None = None
    acknowledged_at: datetime | None = None
    muted_until: datetime | None = None
    announced_at: datetime | None = None
    ends_at: datetime | None = None

    @property
    def key(self) -> AlertKey:
        """The rule and the group; of a rule that is evaluated here, at most one alert of a key is pending or firing."""
        return self.rule, self.name, self.group


class Transition(StrEnum):
    """What a change of an alert means to those who hear of it."""

    STARTED = "started"
    """Pending, or pending with newer evidence: nobody hears of it."""
    FORGOTTEN = "forgotten"
    """It was pending, and its condition is clear or was unknown for as long as it has to hold: it is removed."""
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


# --- the life of an alert ---


def advance(
    rules: Iterable[Rule],
    open_alerts: Iterable[Alert],
    findings: Findings,
    now: datetime,
    new_id: Callable[[], str],
    *,
    watching_since: datetime | None = None,
) -> list[AlertChange]:
    """The changes of alerts that an evaluation brings; `open_alerts` are all that are pending or firing.

    A group with an open alert and without a finding counts as unknown. Nobody evaluated before `watching_since`: no
    condition counts as having held, or as having been clear, for any time before it. Alerts of other programs
    (`RuleType.EXTERNAL`) are left alone.
    """
    evaluated = {rule.name: rule for rule in rules}
    of_rule: dict[str, dict[str | None, Alert]] = {name: {} for name in evaluated}
    life = _Life(now, new_id, watching_since)
    for alert in open_alerts:
        rule = evaluated.get(alert.name)
        if alert.rule is RuleType.EXTERNAL:
            continue
        if rule is None or rule.type is not alert.rule:
            life.end(alert, f"The rule is no longer in the settings. Last: {alert.summary}")
        else:
            of_rule[rule.name][alert.group] = alert
    for rule in evaluated.values():
        life.advance(rule, of_rule[rule.name], findings.get(rule.name, ()))
    return life.changes


class _Life:
    """One evaluation: collects the changes of alerts."""

    def __init__(
        self,
        now: datetime,
        new_id: Callable[[], str],
        watching_since: datetime | None,
    ) -> None:
        self.changes: list[AlertChange] = []
        self._now = now
        self._new_id = new_id
        self._watching_since = watching_since

    def advance(self, rule: Rule, alerts: Mapping[str | None, Alert], findings: Sequence[Finding]) -> None:
        of_group = {finding.group: finding for finding in findings}
        for group, alert in alerts.items():
            if group != OTHER_GROUPS:
                self._continue(rule, alert, of_group.get(group))
        without = [finding for group, finding in of_group.items() if group not in alerts]
        breached = sorted((one for one in without if one.condition is Condition.BREACHED), key=_badness, reverse=True)
        free = max(0, MAX_GROUPS - sum(group != OTHER_GROUPS for group in alerts))
        for finding in breached[:free]:
            self._begin(rule, finding)
        shared = _shared(breached[free:], [one for one in without if one.condition is not Condition.BREACHED])
        if OTHER_GROUPS in alerts:
            self._continue(rule, alerts[OTHER_GROUPS], shared)
        elif shared is not None and shared.condition is Condition.BREACHED:
            self._begin(rule, shared)

    def end(self, alert: Alert, summary: str) -> None:
        """Resolves an alert that fires, and forgets one that is pending."""
        if alert.status is AlertStatus.PENDING:
            self._change(Transition.FORGOTTEN, alert)
        else:
            resolved = replace(alert, status=AlertStatus.RESOLVED, resolved_at=self._now, summary=summary)
            self._change(Transition.RESOLVED, resolved)

    def _begin(self, rule: Rule, finding: Finding) -> None:
        alert = Alert(
            id=self._new_id(),
            rule=rule.type,
            name=rule.name,
            severity=rule.severity,
            status=AlertStatus.PENDING,
            group=finding.group,
            summary=finding.summary,
            evidence=finding.evidence,
            to=rule.to,
            began_at=self._now,
            updated_at=self._now,
        )
        if rule.holds_for > timedelta(0):
            self._change(Transition.STARTED, alert)
        else:
            self._fire(alert)

    def _continue(self, rule: Rule, alert: Alert, finding: Finding | None) -> None:
        """The next step of an open alert."""
        current = replace(alert, severity=rule.severity, to=rule.to)
        condition = finding.condition if finding is not None else Condition.UNKNOWN
        if finding is not None and condition is not Condition.UNKNOWN:
            current = replace(current, summary=finding.summary, evidence=finding.evidence)
        if alert.status is AlertStatus.PENDING:
            self._continue_pending(rule, alert, current, condition)
            return
        if condition is Condition.UNKNOWN:
            since = self._watched(alert.unknown_since)
            if self._now - since >= max(rule.window, UNKNOWN_FOR):
                self.end(current, f"There is too little to tell whether it goes on. Last: {current.summary}")
                return
            current = replace(current, unknown_since=since)
        elif condition is Condition.CLEAR:
            since = self._watched(alert.clear_since)
            current = replace(current, clear_since=since, unknown_since=None)
            if self._now - since >= CLEAR_FOR:
                self.end(current, current.summary)
                return
        else:
            current = replace(current, clear_since=None, unknown_since=None)
        if current != alert:
            self._change(Transition.UPDATED, current)

    def _continue_pending(self, rule: Rule, alert: Alert, current: Alert, condition: Condition) -> None:
        since = self._watched(alert.unknown_since) if condition is Condition.UNKNOWN else None
        # One round that could not read the facts says nothing: else an alert with `for` might never fire.
        if condition is Condition.CLEAR or (since is not None and self._now - since >= rule.holds_for):
            self._change(Transition.FORGOTTEN, alert)
            return
        current = replace(current, began_at=self._watched(alert.began_at), unknown_since=since)
        if condition is Condition.BREACHED and self._now - current.began_at >= rule.holds_for:
            self._fire(current)
        elif current != alert:
            self._change(Transition.STARTED, current)

    def _watched(self, since: datetime | None) -> datetime:
        """The beginning of a time that counts: now if it begins or lies in the future, as after a clock was set back.

        It is not before somebody watched.
        """
        if since is None or since > self._now or (self._watching_since is not None and since < self._watching_since):
            return self._now
        return since

    def _fire(self, alert: Alert) -> None:
        self._change(Transition.FIRED, replace(alert, status=AlertStatus.FIRING, fired_at=self._now))

    def _change(self, transition: Transition, alert: Alert) -> None:
        self.changes.append(AlertChange(transition=transition, alert=replace(alert, updated_at=self._now)))


def _badness(finding: Finding) -> tuple[float, float, str]:
    """Sorts breached findings: the highest values last, of equal ones those of the highest volume."""
    return finding.evidence.value, finding.evidence.volume or 0, finding.group or ""


def _shared(beyond: Sequence[Finding], others: Sequence[Finding]) -> Finding | None:
    """What is known about the groups without an alert of their own; `beyond` are those that have no room for one."""
    conditions = {finding.condition for finding in others}
    number, evidence = len(beyond), Evidence(value=len(beyond), threshold=0, volume=len(beyond) + len(others))
    if beyond:
        named = [finding.group or "" for finding in beyond[:_NAMED_GROUPS]]
        rest = f" and {number - len(named)} others" if number > len(named) else ""
        is_one = "group is" if number == 1 else "groups are"
        summary = f"{number} more {is_one} above the threshold: {', '.join(named)}{rest}."
        return Finding(group=OTHER_GROUPS, condition=Condition.BREACHED, summary=summary, evidence=evidence)
    if Condition.NEAR not in conditions and Condition.CLEAR not in conditions:
        return None
    condition = Condition.NEAR if Condition.NEAR in conditions else Condition.CLEAR
    summary = "No other group is above the threshold."
    return Finding(group=OTHER_GROUPS, condition=condition, summary=summary, evidence=evidence)


_NAMED_GROUPS: Final = 3


# --- what others hear of it ---


def announcement(change: AlertChange, now: datetime) -> Transition | None:
    """What programs and people hear of a change: FIRED, RESOLVED, or nothing.

    Nobody hears that a muted alert fires; if it still does when the mute ends, they hear it then. That an alert is
    resolved goes to those who heard that it fires, also while it is muted: an incident elsewhere would stay open.
    """
    alert = change.alert
    if alert.status is AlertStatus.RESOLVED:
        return Transition.RESOLVED if alert.announced_at is not None else None
    if alert.status is not AlertStatus.FIRING or alert.announced_at is not None:
        return None
    is_muted = alert.muted_until is not None and alert.muted_until > now
    return None if is_muted else Transition.FIRED


def ended(open_alerts: Iterable[Alert], now: datetime) -> list[AlertChange]:
    """The alerts of other programs whose end, which the program has named, has come."""
    return [
        resolution(alert, now)
        for alert in open_alerts
        if alert.rule is RuleType.EXTERNAL and alert.ends_at is not None and alert.ends_at <= now
    ]


def resolution(alert: Alert, now: datetime) -> AlertChange:
    """The end of an alert of another program."""
    resolved = replace(alert, status=AlertStatus.RESOLVED, resolved_at=now, updated_at=now)
    return AlertChange(transition=Transition.RESOLVED, alert=resolved)


def unannounced(open_alerts: Iterable[Alert], changes: Iterable[AlertChange], now: datetime) -> list[AlertChange]:
    """The open alerts without a change of their own whose mute has ended before anybody heard of them."""
    changed = {change.alert.id for change in changes}
    waiting = (AlertChange(transition=Transition.UPDATED, alert=alert) for alert in open_alerts)
    return [change for change in waiting if change.alert.id not in changed and announcement(change, now) is not None]
