"""What is kept and logged of an attempt."""

from datetime import datetime, timedelta
from typing import Literal

import structlog

from receiver.domain.publication import Again, Candidate, Decision, Outcome, Published, Refused, Result, Retry, SinkDown
from receiver.domain.window import Attempt

log = structlog.get_logger("receiver.dispatcher")


def record(
    candidate: Candidate,
    result: Result,
    decision: Decision | None,
    *,
    started_at: datetime,
    seconds: float,
    keep: Literal["all", "failures"],
) -> Attempt | None:
    """An attempt as it is kept, where it is: that a sink is down says nothing of an event."""
    if isinstance(result, SinkDown) or (isinstance(result, Published) and keep == "failures"):
        return None
    return Attempt(
        position=candidate.position,
        event_id=candidate.publication.id,
        started_at=started_at,
        ended_at=started_at + timedelta(seconds=seconds),
        outcome=Outcome.of(result),
        decision=_word(decision),
        reason=None if isinstance(result, Published) else result.reason,
        response_code=result.response_code,
        response=result.response,
    )


def log_failure(sink: str, candidate: Candidate, result: Refused | Retry, decision: Decision | None) -> None:
    publication = candidate.publication
    log.warning(
        "attempt failed",
        sink=sink,
        event_id=publication.id,
        message_id=publication.event["subject"],
        position=publication.position,
        attempt=candidate.attempts + 1,
        outcome=Outcome.of(result),
        reason=result.reason,
        decision=_word(decision),
        due_at=decision.due_at.isoformat() if isinstance(decision, Again) else None,
    )


def _word(decision: Decision | None) -> str:
    """The word for a decision in tables and logs; an event that is tried on without one is postponed."""
    return type(decision).__name__.lower() if decision is not None else "postponed"
