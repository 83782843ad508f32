"""The sink `python`: calls a Python function with each event, in the process of the worker."""

import asyncio
import importlib
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import cache
from operator import attrgetter
from pathlib import Path
from queue import SimpleQueue
from traceback import walk_tb
from types import FrameType, TracebackType
from typing import Annotated, Any, ClassVar, Final, get_args

import orjson
from pydantic import AfterValidator, Field

from receiver.sinks.base import Publication, Published, Result, Retry, Sink, SinkDown, SinkSettings
from receiver.sinks.concurrency import Escaped, call_sink, error_name, publish_each
from receiver.sinks.encoding import traced_body

APPLICATION_LOOP: Final[ContextVar[asyncio.AbstractEventLoop | None]] = ContextVar("APPLICATION_LOOP", default=None)
"""The event loop of the application that mounts this one, where its async functions and their connections belong."""

_STUCK: Final = "earlier calls of the function have not returned"
_ENDED: Final = "the event loop of the application has ended"
_RESULTS: Final = get_args(Result)

Event = dict[str, Any]
Function = Callable[[Event], Any]


def _function(target: str) -> Function:
    """The function that a target names; raises ValueError."""
    module, colon, attribute = target.partition(":")
    if not (module and colon and attribute):
        raise ValueError('must be a module and a function such as "shop.events:handle"')
    try:
        function: Function = attrgetter(attribute)(importlib.import_module(module))
    except ModuleNotFoundError as error:
        raise ValueError(f"{target} cannot be loaded: {error}; install it, or put its folder into PYTHONPATH") from None
    except AttributeError as error:
        raise ValueError(
            f"{target} cannot be loaded: {error}; define it before create_app() is called, or in a module of its own"
        ) from None
    except Exception as error:
        raise ValueError(f"{target} cannot be loaded: {error}") from None
    if not callable(function) or inspect.isclass(function):
        raise ValueError(f"{target} is not a function")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ValueError(f"{target} is a generator, which a call does not run: it must not contain yield")
    try:
        inspect.signature(function).bind({})
    except TypeError:
        raise ValueError(f"{target} must take one argument, the event") from None
    except ValueError:
        # A function in C may have no signature.
        pass
    return function


def _loadable(target: str) -> str:
    _function(target)
    return target


class PythonSettings(SinkSettings):
    target: Annotated[str, AfterValidator(_loadable)] = Field(description="the function, as `module:function`")
    concurrency: int = Field(1, ge=1, le=64, description="how many calls may be under way at once")


class PythonSink(Sink):
    """Calls an async function on the event loop of the application, a plain function in a thread.

    Without an application, as in `receiver serve`, async functions run on one event loop of their own: a function that
    blocks it must not hold up the processor. That loop is never closed, since a function may keep connections on it.
    """

    Settings: ClassVar[type[SinkSettings]] = PythonSettings

    def __init__(self, settings: PythonSettings) -> None:
        self.concurrency = settings.concurrency
        self._name = settings.name
        self._seconds = settings.timeout.total_seconds()
        self._function = _function(settings.target)
        self._is_async = _is_async(self._function)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads: _Threads | None = None

    async def start(self) -> None:
        self._loop = APPLICATION_LOOP.get() or _own_loop()
        if self._threads is None and not self._is_async:
            self._threads = _Threads(f"receiver-sink-{self._name}", self.concurrency)

    async def publish(self, batch: Sequence[Publication]) -> list[Result]:
        return await publish_each(batch, self._call, seconds=self._seconds, check=self.check)

    async def check(self) -> str | None:
        if self._loop is not None and self._loop.is_closed():
            return _ENDED
        return _STUCK if self._threads is not None and not self._threads.free else None

    async def stop(self) -> None:
        if self._threads is not None:
            self._threads.end()
            self._threads = None

    async def _call(self, publication: Publication) -> Result:
        # A copy: the function may change it, and other sinks get the same event.
        event = orjson.loads(traced_body(publication))
        if (down := await self.check()) is not None:
            return SinkDown(reason=down)
        try:
            if self._threads is not None:
                result = await self._threads.call(self._function, event)
            else:
                result = await self._on_loop(_called(self._function, event))
            if inspect.isawaitable(result):
                result = await self._on_loop(_awaited(result))
        except Exception as error:
            return Retry(reason=f"{error_name(error)}{self._place(error)}")
        return result if isinstance(result, _RESULTS) else Published()

    async def _on_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Runs a coroutine where the functions run. Cancelled, it cancels the coroutine and does not wait for it."""
        assert self._loop is not None, "the sink is not started"  # noqa: S101
        try:
            running = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise
        return await asyncio.wrap_future(running)

    def _place(self, error: Exception) -> str:
        """Where the function raised: the last line of its own file, else the last of all; no text, which may be secret.

        A developer needs it: attempts and log show nothing else of the exception.
        """
        frames = list(walk_tb(_traceback(error)))
        code = getattr(inspect.unwrap(self._function), "__code__", None)
        own = [frame for frame in frames if code is not None and frame[0].f_code.co_filename == code.co_filename]
        return _line(*(own or frames)[-1]) if frames else ""


def _traceback(error: BaseException) -> TracebackType | None:
    # One that may not end the worker is raised as another exception, from None.
    return error.__context__.__traceback__ if isinstance(error, Escaped) and error.__context__ else error.__traceback__


def _line(frame: FrameType, line: int) -> str:
    return f" at {Path(frame.f_code.co_filename).name}:{line}"


def _is_async(function: Function) -> bool:
    # An object with an async `__call__` is one, too.
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


async def _called(function: Function, event: Event) -> Any:
    # SystemExit must not end the event loop.
    return await call_sink(function(event))


async def _awaited(result: Awaitable[Any]) -> Any:
    return await call_sink(result)


@cache
def _own_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="receiver-functions", daemon=True).start()
    return loop


class _Threads:
    """Threads that call plain functions. They are daemons: a function that never returns must not hold up a stop.

    `free` is how many of them wait for a call. A thread whose call has timed out is not free before the call returns.
    """

    def __init__(self, name: str, number: int) -> None:
        self.free = number
        self._number = number
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        for _ in range(number):
            threading.Thread(target=self._run, name=name, daemon=True).start()

    async def call(self, function: Function, event: Event) -> Any:
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Any] = loop.create_future()

        def returned(result: Any, error: BaseException | None) -> None:
            self.free += 1
            if outcome.cancelled():
                return
            if error is None:
                outcome.set_result(result)
            else:
                outcome.set_exception(error)

        def run() -> None:
            arguments = _outcome(function, event)
            # The event loop may have ended meanwhile.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(returned, *arguments)

        self.free -= 1
        self._calls.put(run)
        return await outcome

    def end(self) -> None:
        """Ends every thread, one that is busy when its call has returned."""
        for _ in range(self._number):
            self._calls.put(None)

    def _run(self) -> None:
        while (run := self._calls.get()) is not None:
            run()


def _outcome(function: Function, event: Event) -> tuple[Any, BaseException | None]:
    try:
        return function(event), None
    except Exception as error:
        # A future takes no StopIteration.
        return None, error if not isinstance(error, StopIteration) else Escaped("StopIteration")
    except BaseException as error:
        escaped = Escaped(type(error).__name__)
        escaped.__context__ = error
        return None, escaped
