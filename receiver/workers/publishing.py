"""Publishing a batch whatever the sink does: it may raise, hang or miscount, and each event still gets its result."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any, Final

import orjson

from receiver.domain.cloudevents import cloud_event, event_type
from receiver.domain.events import Api
from receiver.domain.log import LogEntry
from receiver.domain.publication import Publication, Published, Refused, Result, Retry, SinkDown
from receiver.providers import bandwidth_codes
from receiver.sinks.base import Sink

# a sink that keeps its time-out itself knows better than we what went wrong
_GRACE_SECONDS: Final = 1.0
_CHECK_SECONDS: Final = 5.0
_RESULTS: Final = (Published, Retry, Refused, SinkDown)


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
    )


def lane(entry: LogEntry) -> str:
    """The events of one message keep their order."""
    return f"{entry.event.api}:{entry.event.message_id}"


async def publish(sink: Sink, batch: Sequence[Publication], seconds: float) -> list[Result]:
    """Gives a batch to a sink and returns one result for each event; those too large are refused unasked."""
    fitting = [one for one in batch if len(one.body) <= sink.max_event_bytes]
    results = iter(await _results(sink, fitting, seconds) if fitting else ())
    return [next(results) if len(one.body) <= sink.max_event_bytes else _too_large(sink) for one in batch]


async def _results(sink: Sink, batch: Sequence[Publication], seconds: float) -> list[Result]:
    try:
        async with asyncio.timeout(seconds + _GRACE_SECONDS):
            results = list(await sink.publish(batch))
    except TimeoutError:
        return [_hung(sink)] * len(batch)
    except asyncio.CancelledError:
        if _is_cancelled():
            raise
        return [Retry(reason="CancelledError")] * len(batch)
    except Exception as error:
        return [await _blamed(sink, error)] * len(batch)
    if len(results) != len(batch) or not all(isinstance(result, _RESULTS) for result in results):
        # which result belongs to which event nobody knows
        return [Retry(reason="the sink miscounted its results")] * len(batch)
    return results


def _hung(sink: Sink) -> Result:
    """A stream that does not move is down; one event that is not answered is that event's trouble."""
    return SinkDown(reason="timeout") if sink.keeps_order else Retry(reason="timeout", overloaded=True)


async def _blamed(sink: Sink, error: Exception) -> Result:
    """Whose fault an exception is. Its text is not told: it may hold what was published."""
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            down = await sink.check()
    except Exception as failure:
        down = type(failure).__name__
    return SinkDown(reason=down) if down is not None else Retry(reason=type(error).__name__)


def _too_large(sink: Sink) -> Result:
    return Refused(reason=f"larger than {sink.max_event_bytes} bytes")


def _is_cancelled() -> bool:
    """Whether it is us who are to stop, or the sink cancelled something of its own."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@lru_cache(maxsize=1024)
def _meaning(api: Api, code: int | None) -> dict[str, Any] | None:
    meaning = bandwidth_codes.meaning(api, code)
    return asdict(meaning) if meaning else None
