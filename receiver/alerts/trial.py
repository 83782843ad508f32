"""A test alert to targets for people, with the result of each."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import uuid4

from receiver.alerts.targets import ConfiguredTarget
from receiver.domain.alerts import Alert, AlertStatus, Evidence, RuleType, Severity, Transition
from receiver.domain.notifications import Notification

_SUMMARY: Final = "This is a test of the way from receiver to you. There is nothing to do."


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """Whether a target accepted the test alert, why not, and how many seconds it took."""

    target: str
    error: str | None
    seconds: float

    @property
    def ok(self) -> bool:
        return self.error is None


async def try_targets(targets: Iterable[ConfiguredTarget], *, base_url: str, now: datetime) -> list[TrialResult]:
    """Sends a test alert to all targets at once. Where it opens an incident, it also closes it."""
    return list(await asyncio.gather(*(_try(one, base_url, now) for one in targets)))


async def _try(configured: ConfiguredTarget, base_url: str, now: datetime) -> TrialResult:
    started = time.perf_counter()
    fired = sample_notification(base_url, now)
    failure = await configured.target.send(fired)
    if failure is None and configured.target.closes:
        resolved = replace(fired.alert, status=AlertStatus.RESOLVED, resolved_at=now)
        failure = await configured.target.send(replace(fired, alert=resolved, transition=Transition.RESOLVED))
    return TrialResult(
        target=configured.recipient.label,
        error=failure.reason if failure is not None else None,
        seconds=time.perf_counter() - started,
    )


def sample_notification(base_url: str, now: datetime) -> Notification:
    """A notification of an alert that does not exist."""
    alert = Alert(
        id=f"test-{uuid4().hex}",
        rule=RuleType.EXTERNAL,
        name="receiver",
        severity=Severity.INFO,
        status=AlertStatus.FIRING,
        group=None,
        summary=_SUMMARY,
        evidence=Evidence(value=1, threshold=0),
        began_at=now,
        fired_at=now,
        updated_at=now,
    )
    return Notification(
        alert=alert,
        transition=Transition.FIRED,
        link=base_url,
        runbook=f"{base_url}/docs/alerts",
        is_test=True,
    )
