"""Publishing a batch whatever the sink does: it may raise, hang or miscount, and each event still gets its result."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import lru_cache
from itertools import islice
from typing import Any, Final

import orjson

from receiver.domain.cloudevents import cloud_event, event_type
from receiver.domain.events import Api
from receiver.domain.log import LogEntry
from receiver.domain.publication import Publication, Published, Refused, Result, Retry, SinkDown
from receiver.providers import bandwidth_codes
from receiver.sinks.base import Sink
from receiver.sinks.each import CHECK_SECONDS, complaint, contained, named

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
        lane=lane(entry),
        type=event_type(event),
        received_at=event.received_at,
        event=told,
        body=orjson.dumps(told),
        recipient=event.recipient,
    )


def lane(entry: LogEntry) -> str:
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
