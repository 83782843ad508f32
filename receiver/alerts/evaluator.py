"""The evaluator: every few seconds it evaluates the rules, and writes what has become of the alerts.

One worker at a time evaluates the rules of a database; another worker takes over when the lease has lapsed. The state
of every alert is in the database, so a new holder goes on where the last one stopped. The rows of alerts, the entries
of the event log and the notifications are written in one transaction, which the epoch of the lease fences off.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Generic, Protocol, TypeVar
from uuid import uuid4

import structlog

from receiver import failpoints
from receiver.alerts.external import log_heard
from receiver.domain import alert_rules
from receiver.domain.alert_facts import Facts as LogFacts
from receiver.domain.alerts import (
    Alert,
    AlertChange,
    AlertStatus,
    Finding,
    Findings,
    Rule,
    Transition,
    advance,
    ended,
    unannounced,
)
from receiver.errors import StorageUnavailable
from receiver.logs import Sampled
from receiver.monitoring import Failures
from receiver.storage import alert_facts, alerts, event_counts
from receiver.storage.alerts import AlertingLease, AlertingLeaseLost, Further, Named
from receiver.storage.database import Database
from receiver.storage.leases import Held, Leasing
from receiver.storage.status import StatusReader
from receiver.waiting import wait_for

# As that of the processor: another worker notices within 10 s that this one is frozen.
LEASE_SECONDS: Final = 8.0
_STANDBY_SECONDS: Final = 1.0
# Between two rounds while alerts are switched off: alerts of rules that are gone were resolved in the first.
_IDLE: Final = timedelta(minutes=1)
_FIRST_BACKOFF_SECONDS: Final = 1.0
_MAX_BACKOFF_SECONDS: Final = 60.0

log = structlog.get_logger("receiver.alerts")

AnyFacts = TypeVar("AnyFacts")


@dataclass(frozen=True, slots=True)
class Begun:
    """Since when no round was left out, and whether there is more to count than a round counts."""

    watching_since: datetime
    is_behind: bool = False


Sought = tuple[Rule, str | None]
"""The rule and the group of a finding."""


class Watch(Protocol[AnyFacts]):
    """Where the facts come from, and what the rules make of them."""

    async def begin(self, epoch: int, now: datetime, every: timedelta, rules: Sequence[Rule]) -> Begun:
        """Counts what happened since the last round, as far as the rules need it."""
        ...

    async def end(self, epoch: int, now: datetime) -> None:
        """Records that the round has ended."""
        ...

    async def gather(self, rules: Sequence[Rule], now: datetime, sinks: Mapping[str, str]) -> AnyFacts:
        """The facts that the rules need; `sinks` are the types of the configured sinks, by name."""
        ...

    def evaluate(self, rule: Rule, facts: AnyFacts, now: datetime) -> list[Finding]:
        """What a rule finds in the facts."""
        ...

    async def messages(
        self, sought: Sequence[Sought], facts: AnyFacts, now: datetime, is_stopping: Callable[[], bool]
    ) -> list[list[str]]:
        """The ids of up to ten messages for each finding, within a bounded time."""
        ...


class LogWatch:
    """Counts the events of the log, gathers the facts from the database and from the state of the installation."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reader = StatusReader(database)

    async def begin(self, epoch: int, now: datetime, every: timedelta, rules: Sequence[Rule]) -> Begun:
        since = await event_counts.note_round(self._database, epoch, now, every)
        senders = event_counts.senders_of(rules)
        counted = await event_counts.count(self._database, epoch, now, senders=senders)
        return Begun(since, counted.left > 0)

    async def end(self, epoch: int, now: datetime) -> None:
        await event_counts.note_end(self._database, epoch, now)

    async def gather(self, rules: Sequence[Rule], now: datetime, sinks: Mapping[str, str]) -> LogFacts:
        return await alert_facts.gather(self._reader, rules, now, sinks=sinks)

    def evaluate(self, rule: Rule, facts: LogFacts, now: datetime) -> list[Finding]:
        return alert_rules.evaluate(rule, facts, now)

    async def messages(
        self, sought: Sequence[Sought], facts: LogFacts, now: datetime, is_stopping: Callable[[], bool]
    ) -> list[list[str]]:
        return await alert_facts.offending(self._database, sought, facts, now, is_stopping=is_stopping)


class EvaluationObserver(Protocol):
    """Receives the measurements of the evaluator."""

    def alerts_evaluated(self, firing: Mapping[tuple[str, str], int], seconds: float, timestamp: float) -> None:
        """A round has ended: the number of alerts that fire, by the kind of rule and severity, 0 for other rules."""
        ...

    def alert_evaluation_failed(self) -> None: ...

    def alerts_left(self) -> None:
        """Another process evaluates."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rulebook:
    """What a reload changes: the rules, the types of the configured sinks by name, and the steps that notify people.

    `sinks_of` says which sinks an alert is for. `every` is the time between two rounds; without rules it may be 0.
    `further` gets the time of a round.
    """

    rules: Sequence[Rule]
    sinks: Mapping[str, str] = field(default_factory=dict)
    sinks_of: Named = lambda _: None
    every: timedelta = timedelta(seconds=30)
    base_url: str = ""
    further: Callable[[datetime], Further] = lambda _: lambda _heard, _spelling: ()


class Evaluator(Generic[AnyFacts]):
    """Evaluates the rules while this worker holds the lease of its database."""

    def __init__(
        self,
        database: Database,
        rulebook: Rulebook,
        watch: Watch[AnyFacts],
        *,
        observer: EvaluationObserver,
        clock: Callable[[], datetime],
        on_heard: Callable[[], None] = lambda: None,
        new_id: Callable[[], str] = lambda: uuid4().hex,
        lease_seconds: float = LEASE_SECONDS,
        holder: str | None = None,
    ) -> None:
        self._database = database
        self._rulebook = rulebook
        self._watch = watch
        self._observer = observer
        self._clock = clock
        self._on_heard = on_heard
        self._new_id = new_id
        self._leasing = Leasing(
            database, alerts.acquire, alerts.renew, alerts.release, seconds=lease_seconds, holder=holder
        )
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._failures = Failures(clock, first_seconds=_FIRST_BACKOFF_SECONDS, most_seconds=_MAX_BACKOFF_SECONDS)
        self._rule_failures = Sampled(log, "a rule cannot be evaluated")
        self._rules_failing_since: datetime | None = None
        self._is_behind = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Finishes the current round and releases the lease."""
        self._stopping.set()
        self._changed.set()
        if self._task is not None:
            await self._task

    def reload(self, rulebook: Rulebook) -> None:
        """Evaluates these rules from now on, at once."""
        self._rulebook = rulebook
        self._changed.set()

    # --- the lease ---

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                async with self._leasing.hold() as held:
                    if held is not None:
                        await self._work(held)
                    else:
                        await wait_for(self._stopping, _STANDBY_SECONDS)
            except AlertingLeaseLost as error:
                log.warning("lease of the alerts lost", error=str(error))
            except Exception as error:
                await self._failed(error, None)

    async def _work(self, held: Held[AlertingLease]) -> None:
        """Evaluates round after round while the lease is ours."""
        try:
            while not self._stopping.is_set():
                held.check()
                self._changed.clear()
                started = time.monotonic()
                try:
                    await self.evaluate(held.lease)
                except AlertingLeaseLost:
                    raise
                except Exception as error:
                    await self._failed(error, held.lease)
                    continue
                if self._failures.since is not None:
                    log.info("alerts are evaluated again", tries=self._failures.number)
                    self._failures.end()
                every = 0.0 if self._is_behind else (self._rulebook.every or _IDLE).total_seconds()
                await held.wait(self._changed, started + every - time.monotonic())
        finally:
            self._observer.alerts_left()

    async def _failed(self, error: Exception, lease: AlertingLease | None) -> None:
        """Records that alerts cannot be evaluated, and waits before the next try."""
        seconds = self._failures.add(error)
        since, reason = self._failures.since, self._failures.error
        if self._failures.line_is_due:
            log.error("alerts cannot be evaluated", error=reason, tries=self._failures.number)
        self._observer.alert_evaluation_failed()
        if lease is not None and since is not None and reason is not None:
            with suppress(Exception):  # the failure may be the database itself
                await alerts.record_failure(self._database, lease, since, reason)
        await wait_for(self._stopping, seconds)

    # --- a round ---

    async def evaluate(self, lease: AlertingLease) -> list[AlertChange]:
        """Evaluates all rules once; returns what others hear of.

        Raises AlertingLeaseLost, StorageUnavailable, or any other error that prevents the write; then nothing changed.
        """
        started, now, rulebook = time.monotonic(), self._clock(), self._rulebook
        begun = await self._watch.begin(lease.epoch, now, rulebook.every or _IDLE, rulebook.rules)
        self._is_behind = begun.is_behind
        failpoints.reach("alerts_counted")
        facts = await self._watch.gather(rulebook.rules, now, rulebook.sinks)
        findings, errors = await self._evaluate_rules(rulebook.rules, facts, now)
        async with self._database.reading() as connection:
            open_alerts = await alerts.open_alerts(connection)
        changes = advance(rulebook.rules, open_alerts, findings, now, self._new_id, watching_since=begun.watching_since)
        changes = await self._with_messages(changes, rulebook.rules, facts, now)
        changes = [*changes, *ended(open_alerts, now)]
        changes += unannounced(open_alerts, changes, now)
        failpoints.reach("alerts_evaluated")
        async with self._database.appending() as transaction:
            await alerts.hold(transaction, lease, self._rule_failure(errors, now))
            heard = await alerts.write(
                transaction,
                changes,
                now=now,
                base_url=rulebook.base_url,
                sinks=rulebook.sinks_of,
                further=rulebook.further(now),
            )
            failpoints.reach("alerts_written")
        failpoints.reach("alerts_committed")
        self._report(open_alerts, changes, heard, time.monotonic() - started, now)
        # Not by the clock: one that was set, or a machine that slept, would pass for a slow round.
        await self._watch.end(lease.epoch, now + timedelta(seconds=time.monotonic() - started))
        return heard

    async def _evaluate_rules(
        self, rules: Sequence[Rule], facts: AnyFacts, now: datetime
    ) -> tuple[Findings, dict[str, Exception]]:
        """The findings of the rules, and the errors of those that could not be evaluated: their alerts stay open."""
        findings: dict[str, Sequence[Finding]] = {}
        errors: dict[str, Exception] = {}
        for rule in rules:
            try:
                findings[rule.name] = self._watch.evaluate(rule, facts, now)
            except Exception as error:
                errors[rule.name] = error
                self._rule_failures.add(rule=rule.name, error=_first_line(error))
            # A rule may have hundreds of groups.
            await asyncio.sleep(0)
        return findings, errors

    async def _with_messages(
        self, changes: Sequence[AlertChange], rules: Sequence[Rule], facts: AnyFacts, now: datetime
    ) -> list[AlertChange]:
        """The changes; alerts that fire have the messages they are about, or none if these cannot be read."""
        by_name = {rule.name: rule for rule in rules}
        fired = {
            change.alert.id: (by_name[change.alert.name], change.alert.group)
            for change in changes
            if change.transition is Transition.FIRED and change.alert.name in by_name
        }
        if not fired:
            return list(changes)
        try:
            found = await self._watch.messages(list(fired.values()), facts, now, self._stopping.is_set)
        except StorageUnavailable:
            raise
        except Exception as error:
            names = ", ".join(sorted({rule.name for rule, _ in fired.values()}))
            self._rule_failures.add(rule=names, error=_first_line(error))
            return list(changes)
        named = {alert_id: tuple(messages) for alert_id, messages in zip(fired, found, strict=True)}
        return [
            replace(change, alert=replace(change.alert, messages=named.get(change.alert.id, change.alert.messages)))
            for change in changes
        ]

    def _rule_failure(self, errors: Mapping[str, Exception], now: datetime) -> tuple[datetime, str] | None:
        """Since when rules cannot be evaluated, and the first of them."""
        if not errors:
            self._rules_failing_since = None
            return None
        self._observer.alert_evaluation_failed()
        self._rules_failing_since = self._rules_failing_since or now
        name, error = next(iter(errors.items()))
        return self._rules_failing_since, f"rule {name}: {_first_line(error)}"

    def _report(
        self,
        open_alerts: Sequence[Alert],
        changes: Sequence[AlertChange],
        heard: Sequence[AlertChange],
        seconds: float,
        now: datetime,
    ) -> None:
        """Reports a committed round. A listener or observer that raises must not make the round look failed."""
        try:
            if heard:
                self._on_heard()
            log_heard(heard)
            after = {alert.id: alert for alert in (*open_alerts, *(change.alert for change in changes))}
            firing = Counter({(rule.type.value, rule.severity.value): 0 for rule in self._rulebook.rules})
            firing.update(
                (alert.rule.value, alert.severity.value)
                for alert in after.values()
                if alert.status is AlertStatus.FIRING
            )
            self._observer.alerts_evaluated(firing, seconds, now.timestamp())
        except Exception:
            log.exception("the measurements of the alerts were lost")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
