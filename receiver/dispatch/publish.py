"""Publishing one batch to a sink, and what is stored and logged about each attempt."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Final, Literal

import orjson
import structlog

from receiver.domain.publication import (
    DeadLettered,
    Decision,
    Done,
    Entry,
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
from receiver.providers.published import published
from receiver.sinks.base import Sink
from receiver.sinks.concurrency import CHECK_SECONDS, call_sink, check_error, error_name

# A sink that enforces its own timeout and then checks whether it is down knows the cause better than we do.
_GRACE_SECONDS: Final = 3.0
_RESULTS: Final = (Published, Retry, Refused, SinkDown)
_MAX_RESPONSE_CODE: Final = 2**31


def publication(entry: Entry, source: str | None = None, public_url: str | None = None) -> Publication:
    """Makes the publication of a log entry: the CloudEvent and its JSON, the same for every sink.

    `source` and `public_url` are the settings of these names.
    """
    envelope = published(entry, source, public_url)
    return Publication(
        id=entry.event.id,
        position=entry.position,
        ordering_key=entry.ordering_key,
        type=entry.type,
        received_at=entry.event.received_at,
        event=envelope,
        body=orjson.dumps(envelope),
        recipient=entry.recipient,
        callback_id=entry.callback_id,
    )


async def publish(sink: Sink, batch: Sequence[Publication], seconds: float) -> list[Result]:
    """Publishes a batch and returns one result per event, in their order. Whatever the sink does, this does not raise.

    Events above `max_event_bytes` are refused without being given to the sink. `seconds` is the sink's `timeout`.
    """
    fitting = [event for event in batch if len(event.body) <= sink.max_event_bytes]
    results = iter(await _results(sink, fitting, seconds) if fitting else ())
    return [next(results) if len(event.body) <= sink.max_event_bytes else _too_large(sink) for event in batch]


def longest_publish(seconds: float) -> float:
    """How many seconds `publish` takes at most with a sink that heeds its cancellation."""
    return seconds + _GRACE_SECONDS + CHECK_SECONDS


async def _results(sink: Sink, batch: Sequence[Publication], seconds: float) -> list[Result]:
    try:
        async with asyncio.timeout(seconds + _GRACE_SECONDS):
            # The sink gets its own copy of the list because it may change it. What it returns may never end.
            results = list(islice(await call_sink(sink.publish(list(batch))), len(batch) + 1))
    except TimeoutError:
        return [await _timeout_result(sink)] * len(batch)
    except Exception as error:
        return [await _exception_result(sink, error)] * len(batch)
    if len(results) != len(batch) or not all(map(_is_storable, results)):
        # Nobody knows which result belongs to which event.
        return [Retry(reason="the sink miscounted its results")] * len(batch)
    return results


async def _timeout_result(sink: Sink) -> Result:
    """The result of a publish that timed out.

    A sink that keeps the order of a batch is one stream: if that stands still, the sink is down. Other sinks may have
    failed to answer because of this one event.
    """
    down = "timeout" if sink.keeps_order else await check_error(sink.check)
    return SinkDown(reason=down) if down is not None else Retry(reason="timeout", overloaded=True)


async def _exception_result(sink: Sink, error: Exception) -> Result:
    """The result of a publish that raised: the sink is down if its check fails, else it is the event's fault.

    The text of the exception is left out: it may contain what was published.
    """
    down = await check_error(sink.check)
    return SinkDown(reason=down) if down is not None else Retry(reason=error_name(error))


def _is_storable(result: object) -> bool:
    """Whether the object is a result, and every field in it can be stored."""
    if not isinstance(result, _RESULTS):
        return False
    fields = {name: getattr(result, name, None) for name in ("response", "response_code", "after")}
    reason, code = getattr(result, "reason", ""), fields["response_code"]
    return (
        isinstance(reason, str)
        and isinstance(fields["response"], str | None)
        and isinstance(fields["after"], timedelta | None)
        and (code is None or (isinstance(code, int) and abs(code) < _MAX_RESPONSE_CODE))
    )


def _too_large(sink: Sink) -> Result:
    return Refused(reason=f"larger than {sink.max_event_bytes} bytes")


log = structlog.get_logger("receiver.dispatcher")
_levels: Final = logging.getLogger("receiver.dispatcher")


def record(
    pending: PendingPublication,
    result: Result,
    decision: Decision | None,
    *,
    started_at: datetime,
    seconds: float,
    keep: Literal["all", "failures"],
) -> Attempt | None:
    """The row to store for one attempt.

    None where nothing is stored: a sink that is down says nothing about an event, and with `keep` set to `failures`
    successes are not recorded.
    """
    if isinstance(result, SinkDown) or (isinstance(result, Published) and keep == "failures"):
        return None
    return Attempt(
        position=pending.position,
        event_id=pending.publication.id,
        started_at=started_at,
        ended_at=started_at + timedelta(seconds=seconds),
        outcome=Outcome.of(result),
        decision=_decision_text(decision),
        reason=None if isinstance(result, Published) else result.reason,
        response_code=result.response_code,
        response=result.response,
    )


def log_attempt(
    sink: str,
    pending: PendingPublication,
    result: Result,
    decision: Decision | None,
    *,
    seconds: float,
    counts: bool = True,
) -> None:
    """Logs an attempt with every id and the decision, without message text; at `debug` unless the event failed.

    `seconds` is the duration of the batch. A sink that is down says nothing about the event, and has a line of its own.
    `counts`: False if the result is not used, because an earlier event of the ordering key failed.
    """
    is_failure = counts and isinstance(result, Refused | Retry)
    if not is_failure and not _levels.isEnabledFor(logging.DEBUG):
        return
    publication = pending.publication
    fields = {
        "sink": sink,
        "event_id": publication.id,
        "message_id": publication.event["subject"],
        "position": publication.position,
        "attempt": pending.attempts + 1,
        "outcome": Outcome.of(result),
        "reason": None if isinstance(result, Published) else result.reason,
        "decision": _decision_text(decision),
        "due_at": decision.due_at.isoformat() if isinstance(decision, RetryAt) else None,
        "seconds": round(seconds, 4),
    }
    if is_failure:
        log.warning("attempt failed", **fields)
    else:
        log.debug("attempt ended", **fields)


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
