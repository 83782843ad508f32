"""What is kept and logged of an attempt."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import islice
from typing import Any, Final, Literal

import orjson
import structlog

from receiver.domain.cloudevents import cloud_event, event_type
from receiver.domain.events import Api
from receiver.domain.publication import (
    DeadLettered,
    Decision,
    Done,
    LogEntry,
    Outcome,
    Parked,
    PendingPublication,
    Publication,
    Published,
    Refused,
    Result,
    Retry,
    RetryAt,
    SinkDown,
    Superseded,
)
from receiver.domain.window import Attempt
from receiver.providers import bandwidth_codes
from receiver.sinks.base import Sink
from receiver.sinks.concurrency import CHECK_SECONDS, complaint, contained, named

# a sink that keeps its time-out itself, and then looks whether it is down, knows better than we what went wrong
_GRACE_SECONDS: Final = 3.0
_RESULTS: Final = (Published, Retry, Refused, SinkDown)
_LARGEST_CODE: Final = 2**31


def publication(entry: LogEntry) -> Publication:
    """An entry of the log, ready for any sink."""
    event = entry.event
    told = cloud_event(entry, _meaning(event.api, entry.delivery.code))
    return Publication(
        id=event.id,
        position=entry.position,
        ordering_key=ordering_key(entry),
        type=event_type(event),
        received_at=event.received_at,
        event=told,
        body=orjson.dumps(told),
        recipient=event.recipient,
    )


def ordering_key(entry: LogEntry) -> str:
    """The events of one message keep their order."""
    return f"{entry.event.api}:{entry.event.message_id}"


async def publish(sink: Sink, batch: Sequence[Publication], seconds: float) -> list[Result]:
    """Gives a batch to a sink and returns one result for each event; those too large are refused unasked."""
    fitting = [one for one in batch if len(one.body) <= sink.max_event_bytes]
    results = iter(await _results(sink, fitting, seconds) if fitting else ())
    return [next(results) if len(one.body) <= sink.max_event_bytes else _too_large(sink) for one in batch]


def longest_publish(seconds: float) -> float:
    """How many seconds `publish` takes at most, of a sink that can be cancelled."""
    return seconds + _GRACE_SECONDS + CHECK_SECONDS


async def _results(sink: Sink, batch: Sequence[Publication], seconds: float) -> list[Result]:
    try:
        async with asyncio.timeout(seconds + _GRACE_SECONDS):
            # what it does to its list is its own affair, and what it returns may never end
            results = list(islice(await contained(sink.publish(list(batch))), len(batch) + 1))
    except TimeoutError:
        return [await _hung(sink)] * len(batch)
    except Exception as error:
        return [await _blamed(sink, error)] * len(batch)
    if len(results) != len(batch) or not all(map(_can_be_kept, results)):
        # which result belongs to which event nobody knows
        return [Retry(reason="the sink miscounted its results")] * len(batch)
    return results


async def _hung(sink: Sink) -> Result:
    """A stream that does not move is down; elsewhere one event that is not answered may be that event's trouble."""
    down = "timeout" if sink.keeps_order else await complaint(sink.check)
    return SinkDown(reason=down) if down is not None else Retry(reason="timeout", overloaded=True)


async def _blamed(sink: Sink, error: Exception) -> Result:
    """Whose fault an exception is. Its text is not told: it may hold what was published."""
    down = await complaint(sink.check)
    return SinkDown(reason=down) if down is not None else Retry(reason=named(error))


def _can_be_kept(result: object) -> bool:
    """Whether it is a result, with nothing in it that could not be written down."""
    if not isinstance(result, _RESULTS):
        return False
    told = {name: getattr(result, name, None) for name in ("response", "response_code", "after")}
    reason, code = getattr(result, "reason", ""), told["response_code"]
    return (
        isinstance(reason, str)
        and isinstance(told["response"], str | None)
        and isinstance(told["after"], timedelta | None)
        and (code is None or (isinstance(code, int) and abs(code) < _LARGEST_CODE))
    )


def _too_large(sink: Sink) -> Result:
    return Refused(reason=f"larger than {sink.max_event_bytes} bytes")


@lru_cache(maxsize=1024)
def _meaning(api: Api, code: int | None) -> dict[str, Any] | None:
    meaning = bandwidth_codes.meaning(api, code)
    return asdict(meaning) if meaning else None


log = structlog.get_logger("receiver.dispatcher")


def record(
    candidate: PendingPublication,
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
        decision=_decision_text(decision),
        reason=None if isinstance(result, Published) else result.reason,
        response_code=result.response_code,
        response=result.response,
    )


def log_failure(sink: str, candidate: PendingPublication, result: Refused | Retry, decision: Decision | None) -> None:
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
        decision=_decision_text(decision),
        due_at=decision.due_at.isoformat() if isinstance(decision, RetryAt) else None,
    )


def _decision_text(decision: Decision | None) -> str:
    """The text of a decision in tables and logs. An attempt that does not count has none, and is `postponed`."""
    return _DECISIONS[type(decision)] if decision is not None else "postponed"


_DECISIONS: Final[dict[type[Decision], str]] = {
    Done: "done",
    RetryAt: "retry",
    Parked: "parked",
    Superseded: "superseded",
    DeadLettered: "dead_letter",
}
