"""Publishes the events of a batch concurrently, and turns what a sink raises into results."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from receiver.domain.publication import Publication, Result, Retry, SinkDown
from receiver.sinks.client_loop import ClientLoop

T = TypeVar("T")

CHECK_SECONDS: Final = 2.5


async def publish_each(
    batch: Sequence[Publication],
    publish_one: Callable[[Publication], Awaitable[Result]],
    *,
    seconds: float,
    check: Callable[[], Awaitable[str | None]],
    loop: ClientLoop | None = None,
) -> list[Result]:
    """Calls `publish_one` for all events at once and returns one result per event, in their order.

    With a `loop` it is called there, and `check` still here.

    An exception of `publish_one`, or a timeout after `seconds`, is the event's fault if `check` then returns None, else
    the sink's. The text of an exception is left out of the result: it may contain what was published.
    """
    outcomes: list[Result | Exception]
    try:
        attempts = _publish_all(batch, publish_one, seconds)
        outcomes = await (attempts if loop is None else loop.call(attempts))
    except ConnectionResetError as error:
        outcomes = [error for _ in batch]
    if not any(isinstance(outcome, Exception) for outcome in outcomes):
        return [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
    down = await check_error(check)
    return [exception_result(outcome, down) if isinstance(outcome, Exception) else outcome for outcome in outcomes]


async def check_error(check: Callable[[], Awaitable[str | None]]) -> str | None:
    """Runs the check of a sink for at most CHECK_SECONDS and returns why the sink cannot be reached, None if it can."""
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await run_check(check)
    except Exception as error:
        return error_name(error)


def probe_of(sink: Any) -> Callable[[], Awaitable[str | None]]:
    """The probe of a sink. One that does not inherit from `Sink` may have only `check`."""
    probe: Callable[[], Awaitable[str | None]] = getattr(sink, "probe", sink.check)
    return probe


async def run_check(check: Callable[[], Awaitable[str | None]]) -> str | None:
    """Runs a check and returns its answer. An answer that is neither None nor a text becomes an error text."""
    error = await call_sink(check())
    return error if error is None or isinstance(error, str) else f"check returned a {type(error).__name__}"


class Escaped(Exception):
    """Stands for an exception of a sink that is no Exception, such as SystemExit, or for a cancellation of its own."""


async def call_sink(call: Awaitable[T]) -> T:
    """Awaits a call of a sink. Raises nothing but Exception, so that a sink cannot end the work of others."""
    try:
        return await call
    except asyncio.CancelledError:
        if _is_cancelled():
            raise
        raise Escaped("CancelledError") from None
    except (Exception, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise Escaped(type(error).__name__) from None


def _is_cancelled() -> bool:
    """Whether the current task is being cancelled, rather than the sink having cancelled something of its own."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def exception_result(error: Exception, down: str | None) -> Result:
    """The result for an exception. `down` is what the check of the sink returned after it."""
    if down is not None:
        return SinkDown(reason=down)
    return Retry(reason=error_name(error), overloaded=isinstance(error, TimeoutError))


def error_name(error: Exception) -> str:
    """The class of an exception as a reason, without its text, which may contain what was published."""
    if isinstance(error, Escaped):
        return str(error)
    return "timeout" if isinstance(error, TimeoutError) else type(error).__name__


async def _publish_all(
    batch: Sequence[Publication], publish_one: Callable[[Publication], Awaitable[Result]], seconds: float
) -> list[Result | Exception]:
    return await asyncio.gather(*(_result_or_error(publish_one, publication, seconds) for publication in batch))


async def _result_or_error(
    publish_one: Callable[[Publication], Awaitable[Result]], publication: Publication, seconds: float
) -> Result | Exception:
    try:
        async with asyncio.timeout(seconds):
            return await publish_one(publication)
    except Exception as error:
        return error
