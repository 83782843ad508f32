"""Weeks of traffic on a simulated clock, evaluated by the rules of alerts as a worker does it, without a database.

The traffic is random, but the same in every run: applications with the rhythm of days and weeks, campaigns, carriers
with a few per cent of failures, receipts that come late. A trouble changes it for a while.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from random import Random
from typing import Any

from receiver.domain.alert_facts import (
    Cell,
    Facts,
    Measure,
    ProcessorFacts,
    Receipts,
    SinkFacts,
    Span,
    StorageFacts,
    Waiting,
    hour_of,
    reference_hours,
    span_of,
    window_hours,
)
from receiver.domain.alert_rules import evaluate
from receiver.domain.alerts import Alert, AlertChange, Rule, RuleType, Transition, advance
from receiver.domain.events import Api
from receiver.providers import registry

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
GIB = 1024**3
HEALTHY: dict[str, Any] = {
    "processor": ProcessorFacts(pending=3, oldest_seconds=0.2),
    "sinks": (SinkFacts(name="crm", oldest_seconds=1.0, waiting=5), SinkFacts(name="archive")),
    "storage": StorageFacts(disk_bytes=100 * GIB, free_bytes=40 * GIB, wal_bytes=8_000_000),
}


def poisson(random: Random, mean: float) -> int:
    if mean <= 0:
        return 0
    if mean > 50:
        return max(0, round(random.gauss(mean, math.sqrt(mean))))
    limit, product, number = math.exp(-mean), random.random(), 0
    while product > limit:
        product *= random.random()
        number += 1
    return number


# --- traffic ---


@dataclass(frozen=True)
class Application:
    """An application: how many messages it sends in an hour of the week."""

    id: str
    hourly: Callable[[datetime], float]


def shop(now: datetime) -> float:
    """Every day, with quiet nights."""
    return 900 * (0.04 + max(0.0, math.sin((now.hour + now.minute / 60 - 6) / 16 * math.pi))) if now.hour >= 6 else 30


def bank(now: datetime) -> float:
    """Working days, little at other times."""
    return 300 if now.weekday() < 5 and 8 <= now.hour < 18 else 4


def clinic(now: datetime) -> float:
    """Working hours alone: silent nights and weekends."""
    return 60 if now.weekday() < 5 and 8 <= now.hour < 17 else 0


APPLICATIONS = (Application("shop", shop), Application("bank", bank), Application("clinic", clinic))
CARRIERS = {"T-Mobile": (0.4, 0.03), "Verizon": (0.3, 0.02), "AT&T": (0.25, 0.04), "Rural": (0.05, 0.08)}
CODES = ((4720, 0.5), (4750, 0.25), (4700, 0.15), (4770, 0.1))
# Minutes until the final event, the time to delivery by Bandwidth's clock in seconds, and how often.
DELAYS = ((0, 4.0, 0.93), (1, 45.0, 0.04), (12, 700.0, 0.02), (180, 10_000.0, 0.01))
UNCONFIRMED, CONTRADICTED, INBOUND = 0.015, 0.0005, 0.05
CAMPAIGN = "campaigns"


@dataclass
class Traffic:
    """What the traffic is at a moment; a trouble changes it.

    `failing` has shares of failures by carrier beyond the usual ones, with their code. `slow` carriers deliver after
    ten minutes. Of `silent` applications no receipt comes, though they send. `dead` applications send nothing.
    """

    failing: dict[str, tuple[float, int]] = field(default_factory=dict)
    slow: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)
    extra: dict[Measure, float] = field(default_factory=dict)
    states: dict[str, Any] = field(default_factory=dict)
    quarantined: int = 0
    refused: int = 0
    dead_letters: int = 0


Trouble = Callable[[Traffic], None]


class Simulation:
    """An installation on a simulated clock."""

    def __init__(self, rules: Sequence[Rule], *, seed: int = 7, start: datetime = MONDAY) -> None:
        self.rules = rules
        self.now = start
        self.start = start
        self.alerts: dict[str, Alert] = {}
        self.history: list[tuple[datetime, AlertChange]] = []
        self.rounds = 0
        self.watching_since = start
        # How far the clocks of those who send are ahead of UTC.
        self.ahead = timedelta(0)
        self._random = Random(seed)
        self._ids = map(str, count(1))
        self._minutes: dict[int, Counter[tuple[Any, ...]]] = {}
        self._hours: defaultdict[int, Counter[tuple[Any, ...]]] = defaultdict(Counter)
        self._late: defaultdict[int, list[tuple[str, str, str, int, int | None, float, int]]] = defaultdict(list)
        self._open: dict[tuple[int, str], int] = {}
        self._reported: dict[str, list[tuple[int, str, int]]] = {"quarantine": [], "refusal": [], "dead letter": []}
        self._before: dict[tuple[Span, int], list[Cell]] = {}
        self._campaign_left = 0.0
        self._held: list[tuple[tuple[Any, ...], int]] = []

    # --- traffic ---

    def pass_time(self, slot: timedelta, trouble: Trouble | None = None, *, is_down: bool = False) -> None:
        """Sends and receives for a time; while the receiver is down, events come when it is up again."""
        traffic = Traffic()
        if trouble is not None:
            trouble(traffic)
        minute, hours = int(self.now.timestamp() // 60), slot / timedelta(hours=1)
        cells: Counter[tuple[Any, ...]] = Counter()
        for application, messages in self._sent(hours):
            if application in traffic.dead:
                continue
            for carrier, (share, failures) in CARRIERS.items():
                number = poisson(self._random, messages * share)
                if number:
                    self._send(cells, minute, application, carrier, number, failures, traffic)
        for place in sorted(place for place in self._late if place <= minute):
            for late in self._late.pop(place):
                if late[0] not in traffic.silent:
                    self._end(cells, *late)
        for measure, hourly in traffic.extra.items():
            cells[measure, "v2", "out", "shop", "", None, None] += poisson(self._random, hourly * hours)
        if is_down:
            self._held += cells.items()
        else:
            for key, number in self._held:
                cells[key] += number
            self._held = []
            self._minutes[minute] = cells
            self._hours[minute // 60].update(cells)
            for kind, number in (
                ("quarantine", traffic.quarantined + (self._random.random() < 0.05 * hours)),
                ("refusal", traffic.refused + (2 if self._random.random() < 0.05 * hours else 0)),
                ("dead letter", traffic.dead_letters),
            ):
                if number:
                    self._reported[kind].append((minute, "", number))
        self._states = HEALTHY | traffic.states
        self.now += slot
        self._forget(minute)

    def _sent(self, hours: float) -> Iterable[tuple[str, float]]:
        for application in APPLICATIONS:
            yield application.id, application.hourly(self.now + self.ahead) * hours
        # About three campaigns a week, in working hours, each of some thousand messages within half an hour.
        if 9 <= self.now.hour < 19 and self._random.random() < 3 / 70 * hours:
            self._campaign_left = self._random.uniform(3_000, 12_000)
        sent = min(self._campaign_left, 20_000 * hours)
        self._campaign_left -= sent
        yield CAMPAIGN, sent

    def _send(
        self,
        cells: Counter[tuple[Any, ...]],
        minute: int,
        application: str,
        carrier: str,
        number: int,
        failures: float,
        traffic: Traffic,
    ) -> None:
        self._open[minute, application] = self._open.get((minute, application), 0) + number
        if application in traffic.silent:
            return
        # message-sending
        cells[Measure.RECEIPT, "v2", "out", application, "", None, None] += number
        cells[Measure.INBOUND, "v2", "in", application, "", None, None] += poisson(self._random, number * INBOUND)
        more, code = traffic.failing.get(carrier, (0.0, 4720))
        blocked = min(number, poisson(self._random, number * more))
        failed = min(number - blocked, poisson(self._random, number * failures))
        unconfirmed = min(number - blocked - failed, poisson(self._random, number * UNCONFIRMED))
        delivered = number - blocked - failed - unconfirmed
        self._end(cells, application, carrier, Measure.FAILED, blocked, code, 0, minute)
        rest = failed
        for listed, share in CODES[:-1]:
            part = sum(self._random.random() < share for _ in range(failed)) if failed < 200 else round(failed * share)
            part = min(rest, part)
            self._end(cells, application, carrier, Measure.FAILED, part, listed, 0, minute)
            rest -= part
        self._end(cells, application, carrier, Measure.FAILED, rest, CODES[-1][0], 0, minute)
        # Bandwidth waits for hours before it says so.
        late = (application, carrier, Measure.UNCONFIRMED, unconfirmed, 9902, 0.0, minute)
        self._late[minute + 240].append(late)
        rest = delivered
        for after, seconds, share in reversed(DELAYS):
            part = rest if after == 0 else min(rest, poisson(self._random, delivered * share))
            rest -= part
            if carrier in traffic.slow and after < 12:
                after, seconds = 12, 700.0
            late = (application, carrier, Measure.DELIVERED, part, None, seconds, minute)
            self._late[minute + after].append(late)
        cells[Measure.CONTRADICTED, "v2", "out", application, "", None, None] += poisson(
            self._random, delivered * CONTRADICTED
        )

    def _end(
        self,
        cells: Counter[tuple[Any, ...]],
        application: str,
        carrier: str,
        measure: str,
        number: int,
        code: int | None,
        seconds: float,
        sent: int,
    ) -> None:
        if not number:
            return
        timed = seconds if measure == Measure.DELIVERED else None
        cells[measure, "v2", "out", application, carrier, code, timed] += number
        cells[Measure.RECEIPT, "v2", "out", application, "", None, None] += number
        if (sent, application) in self._open:
            self._open[sent, application] -= number

    def _forget(self, minute: int) -> None:
        for old in [place for place in self._minutes if place < minute - 130]:
            del self._minutes[old]
        for key in [key for key in self._open if key[0] < minute - 1500]:
            del self._open[key]
        for hour in [hour for hour in self._hours if hour < minute // 60 - 60]:
            # The history: receipts alone.
            self._hours[hour] = Counter(
                {
                    key: number
                    for key, number in self._hours[hour].items()
                    if key[0] in (Measure.RECEIPT, Measure.INBOUND)
                }
            )
            if hour < minute // 60 - 5 * 168:
                del self._hours[hour]

    # --- evaluation ---

    def evaluate(self) -> list[AlertChange]:
        """A round of evaluation."""
        facts = self.facts()
        findings = {rule.name: evaluate(rule, facts, self.now) for rule in self.rules}
        changes = advance(
            self.rules,
            list(self.alerts.values()),
            findings,
            self.now,
            lambda: next(self._ids),
            watching_since=self.watching_since,
        )
        for change in changes:
            if change.transition in (Transition.FORGOTTEN, Transition.RESOLVED):
                self.alerts.pop(change.alert.id)
            else:
                self.alerts[change.alert.id] = change.alert
        self.history += [(self.now, change) for change in changes]
        self.rounds += 1
        return changes

    def run(
        self, until: datetime, *, slot: timedelta = MINUTE, trouble: Trouble | None = None, evaluates: bool = True
    ) -> None:
        while self.now < until:
            self.pass_time(slot, trouble)
            if evaluates:
                self.evaluate()

    def outage(self, length: timedelta, slot: timedelta) -> None:
        """The receiver is down for a while; what Bandwidth could not post comes afterwards."""
        until = self.now + length
        while self.now < until:
            self.pass_time(slot, is_down=True)
        self.watching_since = self.now

    def transitions(self, transition: Transition) -> list[tuple[datetime, Alert]]:
        return [(moment, change.alert) for moment, change in self.history if change.transition is transition]

    def facts(self) -> Facts:
        spans = {span for rule in self.rules if (span := span_of(rule)) is not None}
        history: dict[Receipts, dict[int, int]] = {}
        hours = {
            hour
            for rule in self.rules
            if rule.type is RuleType.RECEIPTS_STOPPED
            for hour in reference_hours(self.now, rule.window)
        }
        for hour in hours:
            for key, number in self._hours[hour].items() if hour in self._hours else ():
                if key[0] in (Measure.RECEIPT, Measure.INBOUND):
                    history.setdefault(Receipts(*key[:4]), {})[hour] = number
        windows = {rule.window for rule in self.rules}
        return Facts(
            watching_since=self.watching_since,
            cells={span: self._window(span) for span in spans},
            before={span: self._day_before(span) for span in spans},
            around={span: _cells(self._of_hours(window_hours(self.now, span.window))) for span in spans},
            history=history,
            history_since=hour_of(self.start),
            waiting={rule.name: self._waiting(rule) for rule in self.rules if rule.longer_than is not None},
            quarantined={window: {"unreadable": self._recent("quarantine", window)} for window in windows},
            refused={window: {"wrong-credentials": self._recent("refusal", window)} for window in windows},
            dead_letters={window: {"crm": self._recent("dead letter", window)} for window in windows},
            code_name=lambda api, code: registry.reason(Api(api), code).name,
            category=lambda api, code: registry.reason(Api(api), code).category,
            **self._states,
        )

    def _window(self, span: Span) -> list[Cell]:
        total: Counter[tuple[Any, ...]] = Counter()
        if span.window < timedelta(hours=2):
            first = int((self.now - span.window).timestamp() // 60)
            for minute, cells in self._minutes.items():
                if minute >= first:
                    total.update(cells)
        else:
            total = self._of_hours(window_hours(self.now, span.window))
        return _cells(total)

    def _of_hours(self, hours: Iterable[int]) -> Counter[tuple[Any, ...]]:
        total: Counter[tuple[Any, ...]] = Counter()
        for hour in hours:
            if hour in self._hours:
                total.update(self._hours[hour])
        return total

    def _day_before(self, span: Span) -> list[Cell]:
        end = window_hours(self.now, span.window)[0]
        if (span, end) not in self._before:
            self._before = {key: cells for key, cells in self._before.items() if key[0] != span}
            self._before[span, end] = _cells(self._of_hours(range(end - 24, end)))
        return self._before[span, end]

    def _waiting(self, rule: Rule) -> list[Waiting]:
        limit = rule.longer_than or timedelta(0)
        end = int((self.now - limit).timestamp() // 60)
        first = end - rule.window // MINUTE
        found: Counter[str] = Counter()
        for (minute, application), number in self._open.items():
            if first <= minute < end:
                found[application] += number
        return [Waiting("v2", application, "", number) for application, number in found.items()]

    def _recent(self, kind: str, window: timedelta) -> int:
        first = int((self.now - window).timestamp() // 60)
        return sum(number for minute, _, number in self._reported[kind] if minute >= first)


def _cells(total: Counter[tuple[Any, ...]]) -> list[Cell]:
    return [Cell(*key[:5], "", *key[5:], number) for key, number in total.items() if number]
