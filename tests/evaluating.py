"""Evaluations of alerts, round by round, with findings that a test chooses."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from itertools import count
from typing import Any

from sqlalchemy import select

from receiver.alerts.evaluator import Begun, Evaluator, Rulebook, Sought
from receiver.domain.alerts import AlertChange, Condition, Evidence, Finding, Rule, RuleType
from receiver.domain.publication import AlertEntry
from receiver.models.alerts import ALERTS
from receiver.storage import alerts, event_counts, event_log
from receiver.storage.alerts import AlertingLease
from receiver.storage.database import Database
from tests.factories import at

BASE_URL = "https://sms.example.com"
# Longer than what tests leave out between two rounds: a gap in the evaluation is no time that counts.
EVERY = timedelta(minutes=30)


def make_rule(name: str = "blocks", **changes: Any) -> Rule:
    fields: dict[str, Any] = {
        "type": RuleType.FAILURE_RATE,
        "name": name,
        "window": timedelta(minutes=15),
        "above": 0.2,
        "by": "carrierName",
    }
    return Rule(**{**fields, **changes})


def finding(condition: Condition, group: str | None = "T-Mobile", value: float = 0.31) -> Finding:
    evidence = Evidence(value=value, threshold=0.2, volume=120, before=0.02)
    return Finding(group=group, condition=condition, summary=f"{value:.0%} failed.", evidence=evidence)


class ChosenFindings:
    """A watch whose rules find what the test chooses: a list of findings, or an error, by the name of the rule."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.found: dict[str, list[Finding] | Exception] = {}
        self.gathering: Exception | None = None
        self.about: list[str] = ["m1", "m2"]
        self.is_behind = False

    async def begin(self, epoch: int, now: datetime, every: timedelta, rules: Sequence[Rule]) -> Begun:
        return Begun(await event_counts.note_round(self._database, epoch, now, every), self.is_behind)

    async def end(self, epoch: int, now: datetime) -> None:
        await event_counts.note_end(self._database, epoch, now)

    async def gather(self, rules: Sequence[Rule], now: datetime, sinks: Mapping[str, str]) -> None:
        if self.gathering is not None:
            raise self.gathering

    def evaluate(self, rule: Rule, facts: None, now: datetime) -> list[Finding]:
        found = self.found.get(rule.name, [])
        if isinstance(found, Exception):
            raise found
        return found

    async def messages(
        self, sought: Sequence[Sought], facts: None, now: datetime, is_stopping: Callable[[], bool]
    ) -> list[list[str]]:
        return [self.about for _ in sought]


class Measured:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.firing: Mapping[tuple[str, str], int] = {}
        self.rounds = 0
        self.failures = 0

    def alerts_evaluated(self, firing: Mapping[tuple[str, str], int], seconds: float, timestamp: float) -> None:
        self.firing, self.rounds = dict(firing), self.rounds + 1

    def alert_evaluation_failed(self) -> None:
        self.failures += 1

    def alerts_left(self) -> None: ...


_ids = count(1)


class Rounds:
    """Evaluates round by round: each takes place `seconds` after the epoch of the tests."""

    def __init__(self, database: Database, *rules: Rule, **rulebook: Any) -> None:
        self.database = database
        self.watch = ChosenFindings(database)
        self.measured = Measured()
        self.now = at(0)
        self.heard = 0
        self.evaluator = Evaluator(
            database,
            self.rulebook(*rules, **rulebook),
            self.watch,
            observer=self.measured,
            clock=lambda: self.now,
            on_heard=self._hear,
            new_id=lambda: f"alert-{next(_ids)}",
            holder="tests",
        )
        self.lease: AlertingLease | None = None

    def rulebook(self, *rules: Rule, **changes: Any) -> Rulebook:
        return Rulebook(**{"rules": rules or (make_rule(),), "every": EVERY, "base_url": BASE_URL, **changes})

    def _hear(self) -> None:
        self.heard += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Evaluates by itself meanwhile, as a worker does."""
        await self.evaluator.start()
        try:
            yield
        finally:
            await self.evaluator.stop()

    async def round(self, seconds: float, *findings: Finding, rule: str = "blocks") -> list[AlertChange]:
        """Evaluates once; the rule finds these things."""
        if findings:
            self.watch.found[rule] = list(findings)
        self.now = at(0) + timedelta(seconds=seconds)
        self.lease = self.lease or await acquire(self.database, "tests")
        assert self.lease is not None
        return await self.evaluator.evaluate(self.lease)


async def acquire(database: Database, holder: str) -> AlertingLease | None:
    return await alerts.acquire(database, holder=holder, seconds=60)


async def alert_entries(database: Database) -> list[AlertEntry]:
    """The entries of the log that are about alerts."""
    async with database.reading() as connection:
        entries = await event_log.read_after(connection, 0, 1_000_000)
    return [entry for entry in entries if isinstance(entry, AlertEntry)]


async def rows(database: Database) -> list[Any]:
    """The rows of alerts, in the order of their beginning."""
    async with database.reading() as connection:
        return list(await connection.execute(select(ALERTS).order_by(ALERTS.c.began_at, ALERTS.c.id)))
